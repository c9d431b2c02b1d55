//! `verify`: reads the whole database for rows that contradict each other, next to a running service.

mod report;

use tokio::time::{Instant, sleep};

use super::{Exit, database::DatabaseArgs, print, progress::Progress, signal::Stop};
use crate::store::{Inconsistency, Store, VerifyChunk, VerifyError, VerifyPhase, VerifyPosition};
use report::{Report, counted};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service verify
  collections-service verify --fix
  collections-service verify --json

Every example takes the database from COLLECTIONS_DATABASE_URL.")]
pub struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Repair what can be repaired
    ///
    /// Deletes entries without a collection and queue rows without a tombstone, and queues unfinished purges again.
    #[arg(long)]
    fix: bool,
    /// Print one JSON object instead of text
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
    progress: Progress,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    let store = tokio::select! {
        store = args.database.open_migrated() => store?,
        () = stop.requested() => return Err(Exit::Failed("stopped by a signal".to_owned())),
    };
    let (report, progress) = (Report::default(), Progress::begin(None));
    let mut verification = Verification { store, fix: args.fix, report, progress };
    // What a step has not committed is rolled back.
    let ended = tokio::select! {
        ended = verification.read_all() => ended.map_err(Interruption::Failed),
        () = stop.requested() => Err(Interruption::Signal),
    };
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
    async fn read_all(&mut self) -> Result<(), VerifyError> {
        let mut position = Some(VerifyPosition::default());
        while let Some(here) = position {
            let chunk = self.store.verify_chunk(here).await?;
            self.report.count(&chunk);
            for (kind, ids) in &chunk.found {
                self.report.add(*kind, ids);
                if self.fix && kind.is_fixable() {
                    self.fix_all(*kind, ids).await?;
                }
            }
            self.show(&chunk);
            position = chunk.next;
        }
        self.report.oldest_purge = self.store.oldest_queued_purge().await?;
        Ok(())
    }

    async fn fix_all(&mut self, kind: Inconsistency, mut ids: &[i64]) -> Result<(), VerifyError> {
        while !ids.is_empty() {
            let begun = Instant::now();
            let done = self.store.fix(kind, ids).await?;
            let (fixed, rest) = ids.split_at_checked(done).unwrap_or((ids, &[]));
            self.report.add_fixed(kind, fixed);
            ids = rest;
            // On SQLite destroys run between these transactions only; without pauses they would starve.
            sleep(begun.elapsed()).await;
        }
        Ok(())
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
