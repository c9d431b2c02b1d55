//! The loop of an import: from batch to batch, until the input ends or something stops it.

use std::{
    fmt,
    io::{self, Write},
    pin::pin,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Args,
    reader::{Batch, PositionError, Reader},
    rejects::{self, Rejects, RejectsError},
};
use crate::{
    cli::{Exit, print, progress::Progress, signal::Stop},
    config,
    store::{CollectionToImport, Import, ImportError, ImportOutcome, ImportProgress, Store},
};

/// The database that is written, or only read by a dry run.
enum Target {
    Database(Import),
    DryRun(Store, ImportProgress),
}

/// Why an import ended before the end of its input.
enum Interruption {
    Signal,
    TooManyRejects,
    Input(io::Error),
    Batch(ImportError),
}

/// Reports the progress on standard error.
struct Report {
    progress: Progress,
    begun: Instant,
    /// The progress of earlier runs.
    before: ImportProgress,
    consumed_before: u64,
}

/// Where the stored progress of an import whose input has ended may not be deleted.
const FINISHED: &str = "everything is imported, and --resume removes the stored progress";

pub async fn run(args: &Args) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    let (reader, mut rejects, mut target) = tokio::select! {
        prepared = prepare(args) => prepared?,
        () = stop.requested() => {
            let message = "stopped before the first batch; nothing was imported by this run";
            return Err(Exit::Failed(message.to_owned()));
        }
    };
    let mut report = Report::begin(&reader, *target.progress());
    let outcome = import(args, reader, &mut target, &mut rejects, &mut report, &mut stop).await;
    drop(report);
    match outcome {
        Ok(()) => tokio::select! {
            finished = finish(args, target, rejects) => finished,
            () = stop.requested() => Err(Exit::Failed(format!("stopped; {FINISHED}"))),
        },
        Err(interruption) => Err(interrupted(args, &interruption, &target, &rejects)),
    }
}

/// Opens the input, the database and the rejects file, and goes to the first line that is not imported yet. Nothing is
/// lost where the future is dropped.
async fn prepare(args: &Args) -> Result<(Reader, Rejects, Target), Exit> {
    let file = args.file().map(ToOwned::to_owned);
    let reader = spawn_blocking(move || Reader::open(file)).await.map_err(Exit::failed)?;
    let reader = reader.map_err(|error| Exit::Usage(format!("{}: {error}", args.input_name())))?;
    let name = args.name()?;
    let store = args.database.open_migrated().await?;
    // Before the import begins: an import of the same name that is running has the file locked.
    let mut rejects = open_rejects(args)?;
    let target = if args.dry_run {
        Target::DryRun(store, ImportProgress::default())
    } else {
        match store.begin_import(&name, &reader.head_sha256, args.resume).await {
            Ok(import) => {
                if let Some(ImportProgress { line, .. }) = import.discarded() {
                    note(format_args!(
                        "import `{name}`: discarded the progress of an unfinished import at line {line}"
                    ));
                }
                Target::Database(import)
            }
            Err(error) => {
                // An empty file is removed.
                drop(rejects.close());
                return Err(begin_failed(&error, &name));
            }
        }
    };
    rejects.truncate(target.progress().rejects_bytes).map_err(Exit::failed)?;
    let reader = skip(reader, *target.progress()).await?;
    Ok((reader, rejects, target))
}

fn open_rejects(args: &Args) -> Result<Rejects, Exit> {
    Rejects::open(args.rejects(), args.file()).map_err(|error| match error {
        RejectsError::Io { .. } | RejectsError::Input(_) | RejectsError::NotRegular(_) => {
            Exit::Usage(format!("--rejects: {error}"))
        }
        error => Exit::failed(error),
    })
}

/// Skips the lines that are already imported. Compressed input is decompressed for that, which takes a while.
async fn skip(mut reader: Reader, to: ImportProgress) -> Result<Reader, Exit> {
    let mut progress = Progress::begin(reader.size);
    let consumed = reader.consumed();
    let mut skipping = spawn_blocking(move || {
        reader.skip_to(to.byte_offset, to.line)?;
        Ok::<_, PositionError>(reader)
    });
    let skipped = loop {
        tokio::select! {
            skipped = &mut skipping => break skipped.map_err(Exit::failed)?,
            () = sleep(config::import::SKIP_PROGRESS_INTERVAL) => {
                progress.report(consumed.get(), format_args!("skipping {} lines that are already imported", to.line));
            }
        }
    };
    skipped.map_err(|error| {
        Exit::Failed(format!("{error}; begin again without --resume, or give another --name"))
    })
}

async fn import(
    args: &Args,
    reader: Reader,
    target: &mut Target,
    rejects: &mut Rejects,
    report: &mut Report,
    stop: &mut Stop,
) -> Result<(), Interruption> {
    let (sender, mut batches) = mpsc::channel(config::import::BATCHES_WAITING);
    // Not waited for at the end: it may be reading from a terminal.
    drop(spawn_blocking(move || reader.run(&sender)));
    // The wait for input counts as the pause between two batches.
    let mut next_batch_at = Instant::now();
    loop {
        let receive = async {
            let batch = batches.recv().await;
            if batch.is_some() {
                sleep_until(next_batch_at).await;
            }
            batch
        };
        let batch = tokio::select! {
            biased;
            () = stop.requested() => return Err(Interruption::Signal),
            batch = receive => batch,
        };
        let Some(batch) = batch else { return Ok(()) };
        let batch = batch.map_err(Interruption::Input)?;
        let begun = Instant::now();
        run_batch(&batch, target, rejects, stop).await?;
        let ended = Instant::now();
        next_batch_at = ended + target.pause_after(ended - begun);
        report.update(target.progress(), batch.consumed);
        if target.progress().rejected > args.max_rejects {
            return Err(Interruption::TooManyRejects);
        }
    }
}

/// Runs a batch. After a signal it may still end; where it takes too long it is cancelled.
async fn run_batch(
    batch: &Batch,
    target: &mut Target,
    rejects: &mut Rejects,
    stop: &mut Stop,
) -> Result<(), Interruption> {
    let mut running = pin!(target.run(batch, rejects));
    let ran = tokio::select! {
        ran = &mut running => ran,
        () = stop.requested() => {
            let ran = timeout(config::import::STOP_GRACE, running).await;
            ran.unwrap_or(Ok(())).map_err(Interruption::Batch)?;
            return Err(Interruption::Signal);
        }
    };
    ran.map_err(Interruption::Batch)
}

impl Target {
    fn progress(&self) -> &ImportProgress {
        match self {
            Self::Database(import) => import.progress(),
            Self::DryRun(_, progress) => progress,
        }
    }

    fn pause_after(&self, batch: Duration) -> Duration {
        match self {
            Self::Database(import) => import.pause_after(batch),
            Self::DryRun(..) => Duration::ZERO,
        }
    }

    async fn run(&mut self, batch: &Batch, rejects: &mut Rejects) -> Result<(), ImportError> {
        let collections: Vec<&CollectionToImport> =
            batch.lines.iter().filter_map(|line| line.collection.as_ref().ok()).collect();
        let record =
            |before: &ImportProgress, outcomes: &[ImportOutcome]| record(batch, before, outcomes, rejects);
        match self {
            Self::Database(import) => import.run(&collections, record).await,
            Self::DryRun(store, progress) => {
                let outcomes = store.check_import(&collections).await?;
                let mut record = record;
                *progress = record(progress, &outcomes).map_err(ImportError::Rejects)?;
                Ok(())
            }
        }
    }
}

/// Writes the rejects of a batch, and returns the progress after it.
fn record(
    batch: &Batch,
    before: &ImportProgress,
    outcomes: &[ImportOutcome],
    rejects: &mut Rejects,
) -> io::Result<ImportProgress> {
    let mut after = ImportProgress { byte_offset: batch.byte_offset, line: batch.line, ..*before };
    let mut text = Vec::new();
    let mut outcomes = outcomes.iter();
    for line in &batch.lines {
        let reason = match &line.collection {
            Err(reason) => reason.clone(),
            Ok(collection) => match outcomes.next() {
                Some(ImportOutcome::Imported) => {
                    after.imported += 1;
                    after.entries += collection.entries.len() as u64;
                    continue;
                }
                Some(ImportOutcome::Existing) => {
                    after.existing += 1;
                    continue;
                }
                Some(ImportOutcome::Refused(refusal)) => refusal.to_string(),
                None => return Err(io::Error::other("a line has no outcome")),
            },
        };
        after.rejected += 1;
        rejects::append(&mut text, line, &reason)?;
    }
    after.rejects_bytes = rejects.write(before.rejects_bytes, &text)?;
    Ok(after)
}

async fn finish(args: &Args, target: Target, rejects: Rejects) -> Result<(), Exit> {
    let progress = match target {
        Target::DryRun(_, progress) => progress,
        Target::Database(import) => {
            import.finish().await.map_err(|error| Exit::Failed(format!("{error}; {FINISHED}")))?
        }
    };
    let path = rejects.path().display().to_string();
    rejects.close().map_err(|error| Exit::Failed(format!("{path}: {error}")))?;
    print(summary(args, &progress))?;
    match progress.rejected {
        0 => Ok(()),
        1 => Err(Exit::Failed(format!("1 line was rejected; it is in {path} with the reason"))),
        count => {
            Err(Exit::Failed(format!("{count} lines were rejected; they are in {path} with the reasons")))
        }
    }
}

fn summary(args: &Args, progress: &ImportProgress) -> String {
    let ImportProgress { imported, entries, existing, rejected, .. } = progress;
    let verb = if args.dry_run { "would import" } else { "imported" };
    format!(
        "{verb} {imported} collections with {entries} entries, {existing} existed already, {rejected} rejected"
    )
}

/// Writes a line to standard error.
fn note(line: impl fmt::Display) {
    // A closed standard error does not end the import.
    drop(writeln!(io::stderr(), "{line}"));
}

fn begin_failed(error: &ImportError, name: &str) -> Exit {
    let advice = match error {
        ImportError::OtherInput => "; give the same input, or begin again without --resume",
        _ => "",
    };
    Exit::Failed(format!("import {name}: {error}{advice}"))
}

fn interrupted(args: &Args, interruption: &Interruption, target: &Target, rejects: &Rejects) -> Exit {
    let progress = target.progress();
    let why = match interruption {
        Interruption::Signal => "stopped".to_owned(),
        Interruption::TooManyRejects => {
            format!("more than {} lines were rejected; see {}", args.max_rejects, rejects.path().display())
        }
        Interruption::Input(error) => format!("{}: {error}", args.input_name()),
        Interruption::Batch(error) => error.to_string(),
    };
    let (line, summary) = (progress.line, summary(args, progress));
    if args.dry_run {
        return Exit::Failed(format!("{why}; after line {line}: {summary}"));
    }
    let how = match interruption {
        Interruption::TooManyRejects => "a higher --max-rejects and --resume continue",
        Interruption::Batch(ImportError::Superseded) => "the other import continues",
        _ => "--resume continues",
    };
    Exit::Failed(format!("{why}; after line {line}: {summary}; this stays, and {how}"))
}

impl Args {
    /// The input's name for messages.
    fn input_name(&self) -> String {
        self.file().map_or_else(|| "standard input".to_owned(), |file| file.display().to_string())
    }
}

impl Report {
    fn begin(reader: &Reader, before: ImportProgress) -> Self {
        let consumed_before = reader.consumed().get();
        let total = reader.size.map(|size| size.saturating_sub(consumed_before));
        Self { progress: Progress::begin(total), begun: Instant::now(), before, consumed_before }
    }

    fn update(&mut self, progress: &ImportProgress, consumed: u64) {
        let rows = |progress: &ImportProgress| progress.imported + progress.entries + progress.existing;
        let done = rows(progress).saturating_sub(rows(&self.before));
        let rate = done as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let ImportProgress { line, imported, entries, rejected, .. } = progress;
        let text = format_args!(
            "{line} lines: {imported} collections, {entries} entries, {rejected} rejected, {rate:.0} rows/s"
        );
        self.progress.report(consumed.saturating_sub(self.consumed_before), text);
    }
}
