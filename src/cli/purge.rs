//! `purge --once`, and the flags of the purge.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Exit, database::DatabaseArgs, print, progress::Progress, signal::Stop};
use crate::{
    config,
    jobs::purge::PurgeSettings,
    store::{PurgeBacklog, Purged, Store},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Erase until nothing is left, then end
    #[arg(long, required = true)]
    once: bool,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// How fast entries are erased.
#[derive(Debug, clap::Args)]
pub struct PaceArgs {
    /// Entries that are erased in one step
    #[arg(long, default_value_t = config::PURGE_BATCH, env = "COLLECTIONS_PURGE_BATCH", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    purge_batch: u32,
    /// Milliseconds between two steps, at the least: four times as long as the step took
    #[arg(long, default_value_t = config::PURGE_PAUSE.as_millis() as u64, env = "COLLECTIONS_PURGE_PAUSE", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    purge_pause: u64,
}

impl PaceArgs {
    pub const fn settings(&self) -> PurgeSettings {
        PurgeSettings { batch: self.purge_batch, pause: Duration::from_millis(self.purge_pause) }
    }
}

/// What has been erased.
#[derive(Default)]
struct Totals {
    entries: u64,
    collections: u64,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    let store = args.database.open_migrated().await?;
    let mut totals = Totals::default();
    let purged = purge(&store, args.pace.settings(), &mut totals, &mut stop).await;
    let done = format!("erased {} entries of {} collections", totals.entries, totals.collections);
    match purged? {
        Some(PurgeBacklog { blocked: 0, .. }) => print(format_args!("{done}; the purge queue is empty")),
        Some(PurgeBacklog { blocked, .. }) => Err(Exit::Failed(format!(
            "{done}; {blocked} rows of the purge queue are of ids that are not destroyed: run `collections-service verify`"
        ))),
        None => Err(Exit::Failed(format!("stopped by a signal: {done}; run it again for the others"))),
    }
}

/// Erases until nothing is left that can be erased. Returns what is left then, or nothing after a signal.
async fn purge(
    store: &Store,
    settings: PurgeSettings,
    totals: &mut Totals,
    stop: &mut Stop,
) -> Result<Option<PurgeBacklog>, Exit> {
    let mut purger = store.purger(settings.batch, true);
    let queued = store.purge_backlog().await.map_err(Exit::failed)?.purgeable;
    let mut progress = Progress::begin(Some(queued.cast_unsigned()));
    loop {
        let begun = Instant::now();
        let purged = purger.step().await.map_err(Exit::failed)?;
        totals.entries += purged.entries;
        totals.collections += purged.collections;
        let reason = if purged.wait.is_some() {
            "; waiting for another process that uses the SQLite file"
        } else {
            ""
        };
        let Totals { entries, collections } = totals;
        progress.report(
            *collections,
            format_args!("{collections} collections, {entries} entries erased{reason}"),
        );
        let mut pause = settings.pause_after(begun.elapsed());
        if let Purged { is_pass_complete: true, .. } = purged {
            let backlog = store.purge_backlog().await.map_err(Exit::failed)?;
            if backlog.purgeable == 0 {
                return Ok(Some(backlog));
            }
            // Another process purges them, or reads the file.
            pause = config::PURGE_IDLE_INTERVAL;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.requested() => return Ok(None),
        }
    }
}
