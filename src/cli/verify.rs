//! `verify`: reads the whole database for rows that contradict each other, next to a running service.

mod report;

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Exit, database::DatabaseArgs, print, progress::Progress, signal::Stop};
use crate::store::{Inconsistency, Store, VerifyChunk, VerifyError, VerifyPhase, VerifyPosition};
use report::{Report, counted};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Repair what can be repaired: delete orphan entries and queue rows without tombstone, queue unfinished purges again
    #[arg(long)]
    fix: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why the command ended before everything was read.
enum Interruption {
    Signal,
    Failed(VerifyError),
}

struct Verification {
    store: Store,
    fix: bool,
    report: Report,
    stop: Stop,
    progress: Progress,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    let stop = Stop::listen()?;
    let store = args.database.open_migrated().await?;
    let (report, progress) = (Report::default(), Progress::begin(None));
    let mut verification = Verification { store, fix: args.fix, report, stop, progress };
    let ended = verification.read_all().await;
    let Verification { report, progress, .. } = verification;
    drop(progress);
    if let Err(interruption) = ended {
        let done = report.until_now();
        return Err(Exit::Failed(match interruption {
            Interruption::Signal => format!("stopped: {done}; run verify again"),
            Interruption::Failed(error) => format!("{error}; {done}; run verify again"),
        }));
    }
    print(if args.json { report.in_json() } else { report.in_text(args.fix) })?;
    if report.found() == report.fixed() { Ok(()) } else { Err(Exit::Failed(report.result(args.fix))) }
}

impl Verification {
    async fn read_all(&mut self) -> Result<(), Interruption> {
        let mut position = Some(VerifyPosition::default());
        while let Some(here) = position {
            let chunk = self.store.verify_chunk(here).await.map_err(Interruption::Failed)?;
            self.report.count(&chunk);
            for (kind, ids) in &chunk.found {
                self.report.add(*kind, ids);
                if self.fix && kind.is_fixable() {
                    self.fix_all(*kind, ids).await?;
                }
            }
            self.show(&chunk);
            position = chunk.next;
            if position.is_some() {
                self.check_signal().await?;
            }
        }
        self.report.oldest_purge = self.store.oldest_queued_purge().await.map_err(Interruption::Failed)?;
        Ok(())
    }

    async fn fix_all(&mut self, kind: Inconsistency, mut ids: &[i64]) -> Result<(), Interruption> {
        while !ids.is_empty() {
            let begun = Instant::now();
            let done = self.store.fix(kind, ids).await.map_err(Interruption::Failed)?;
            let (fixed, rest) = ids.split_at_checked(done).unwrap_or((ids, &[]));
            self.report.add_fixed(kind, fixed);
            ids = rest;
            // On SQLite destroys run between these transactions only; without pauses they would starve.
            self.pause(begun.elapsed()).await?;
        }
        Ok(())
    }

    /// Ends the command at once when a signal arrives.
    async fn pause(&mut self, duration: Duration) -> Result<(), Interruption> {
        tokio::select! {
            biased;
            () = self.stop.requested() => Err(Interruption::Signal),
            () = sleep(duration) => Ok(()),
        }
    }

    /// Ends the command between two steps when a signal has arrived.
    async fn check_signal(&mut self) -> Result<(), Interruption> {
        if self.stop.is_requested().await { Err(Interruption::Signal) } else { Ok(()) }
    }

    fn show(&mut self, chunk: &VerifyChunk) {
        let (rows, found) =
            (self.report.rows(chunk.phase), counted(self.report.found(), "finding", "findings"));
        let what = match chunk.phase {
            VerifyPhase::PurgeQueue => "rows of the purge queue",
            VerifyPhase::EventOutbox => "rows of the event outbox",
            VerifyPhase::Tombstones => "tombstones",
            VerifyPhase::Entries => "entries",
        };
        self.progress.report(rows, format_args!("{what}: {rows} checked; {found} so far"));
    }
}
