//! `purge --once`, and the flags of the purge.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Exit, database::DatabaseArgs, heading::PURGE, print, progress::Progress, signal::Stop};
use crate::{
    config,
    jobs::purge::PurgeSettings,
    store::{PurgeBacklog, PurgeError, PurgeLimits, Purged, Store},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  collections-service purge --once --database-url sqlite:collections.sqlite")]
pub struct Args {
    /// Erase what was destroyed until now, then end
    ///
    /// An SQLite file is rewritten, and destroys wait while that is done.
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
    /// Entries that are erased in one step, at most
    #[arg(long, value_name = "COUNT", default_value_t = config::purge::BATCH, env = "COLLECTIONS_PURGE_BATCH", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = PURGE)]
    purge_batch: u32,
    /// The shortest pause between two steps, in milliseconds
    ///
    /// The pause is four times as long as the step took, and not shorter than this.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = config::purge::PAUSE.as_millis() as u64, env = "COLLECTIONS_PURGE_PAUSE", value_parser = clap::value_parser!(u64).range(0..=60_000), help_heading = PURGE)]
    purge_pause: u64,
}

impl PaceArgs {
    pub const fn settings(&self) -> PurgeSettings {
        PurgeSettings { batch: self.purge_batch, pause: Duration::from_millis(self.purge_pause) }
    }
}

/// A purge and what it has erased.
struct Purge {
    store: Store,
    settings: PurgeSettings,
    entries: u64,
    collections: u64,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    let store = tokio::select! {
        store = args.database.open_migrated() => store?,
        () = stop.requested() => return Err(Exit::Failed("stopped by a signal; nothing was erased".to_owned())),
    };
    let mut purge = Purge { store, settings: args.pace.settings(), entries: 0, collections: 0 };
    // What a step has not committed is rolled back.
    let left = tokio::select! {
        left = purge.run() => left.map(Some),
        () = stop.requested() => Ok(None),
    };
    let done = format!("erased {} entries of {} collections", purge.entries, purge.collections);
    match left {
        Ok(Some(PurgeBacklog { blocked: 0, .. })) => print(format_args!("{done}; the purge is complete")),
        Ok(Some(PurgeBacklog { blocked, .. })) => Err(Exit::Failed(format!(
            "{done}; rows of the purge queue that are live or have no tombstone: {blocked}; run `collections-service verify`"
        ))),
        Ok(None) => Err(Exit::Failed(format!("stopped by a signal; {done}; run the command again"))),
        Err(error) => Err(Exit::Failed(format!("{error}; {done}; run the command again"))),
    }
}

impl Purge {
    /// Erases until nothing is left of what was destroyed before this began. Returns what cannot be erased.
    async fn run(&mut self) -> Result<PurgeBacklog, PurgeError> {
        let mut purger = self.store.purger(PurgeLimits::once(self.settings.batch));
        let queued = self.store.purge_backlog(None).await?;
        let mut progress = Progress::begin(Some(queued.purgeable.cast_unsigned()));
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            // Another process erases too, has locked rows, or uses the file.
            let mut pause = config::purge::IDLE_INTERVAL;
            match purger.step().await {
                Ok(purged) => {
                    failures = 0;
                    self.count(&purged, &mut progress);
                    if !purged.is_pass_complete {
                        pause = self.settings.pause_after(begun.elapsed());
                    } else {
                        let backlog = self.store.purge_backlog(queued.newest).await?;
                        if backlog.purgeable == 0 {
                            return Ok(backlog);
                        }
                    }
                }
                Err(error) => {
                    failures += 1;
                    if failures >= config::purge::ATTEMPTS {
                        return Err(error);
                    }
                }
            }
            sleep(pause).await;
        }
    }

    fn count(&mut self, purged: &Purged, progress: &mut Progress) {
        self.entries += purged.entries;
        self.collections += purged.collections;
        let Self { entries, collections, .. } = self;
        let wait = if purged.wait.is_some() {
            "; waiting for another process that uses the SQLite file"
        } else if purged.locked > 0 {
            "; waiting for locked entries"
        } else {
            ""
        };
        progress
            .report(*collections, format_args!("{collections} collections, {entries} entries erased{wait}"));
    }
}
