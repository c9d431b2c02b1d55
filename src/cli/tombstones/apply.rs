//! `tombstones apply`: the whole file is checked, then it is applied batch by batch.

use std::{fs, io, path::Path};

use tokio::time::Instant;

use super::file::{Contents, End, Reader};
use crate::{
    cli::{Exit, database::DatabaseArgs, input::Input, print, progress::Progress, signal::Stop},
    config::tombstones::{APPLY_BATCH, NAMED},
    store::{Applied, OwnerMismatch, Store},
};

pub async fn run(database: &DatabaseArgs, path: &Path, allow_incomplete: bool) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    let named = |error: io::Error| Exit::Usage(format!("{}: {error}", path.display()));
    if !fs::metadata(path).map_err(named)?.is_file() {
        return Err(Exit::Usage(format!("{}: not a regular file; it is read twice", path.display())));
    }
    let contents = check(path, &mut stop).await?;
    if contents.end != End::Complete && !allow_incomplete {
        return Err(Exit::Failed(format!(
            "{}: {}; nothing was applied. Copy the file again, or apply what it has with --allow-incomplete",
            path.display(),
            contents.end
        )));
    }
    let store = database.open_migrated().await?;
    let mut total = Total::default();
    let applied = apply(&store, path, &contents, &mut total, &mut stop).await;
    applied.map_err(|why| {
        let done = total.seen();
        let advice = "applied tombstones stay applied; run the command again for the others";
        Exit::Failed(format!("{why}; {done} of {} tombstones are done: {advice}", contents.count))
    })?;
    report(&total, &contents.end)
}

/// Reads the whole file.
async fn check(path: &Path, stop: &mut Stop) -> Result<Contents, Exit> {
    let failed = |error| Exit::Failed(format!("{}: {error}; nothing was applied", path.display()));
    let mut reader = Reader::new(Input::open(Some(path)).map_err(|error| failed(error.into()))?);
    let mut progress = Progress::begin(None);
    while !reader.next_batch(APPLY_BATCH).map_err(failed)?.is_empty() {
        let count = reader.count();
        progress.report(count, format_args!("{count} tombstones checked"));
        if stop.is_requested().await {
            return Err(Exit::Failed("stopped; nothing was applied".to_owned()));
        }
    }
    Ok(reader.contents())
}

/// What was applied so far.
#[derive(Default)]
struct Total {
    applied: Applied,
    /// Ids of other owners. `applied` has the first ones.
    mismatches: u64,
}

impl Total {
    fn add(&mut self, batch: Applied) {
        let total = &mut self.applied;
        total.destroyed += batch.destroyed;
        total.recorded += batch.recorded;
        total.existing += batch.existing;
        total.queued += batch.queued;
        self.mismatches += batch.mismatches.len() as u64;
        let more = NAMED.saturating_sub(total.mismatches.len());
        total.mismatches.extend(batch.mismatches.into_iter().take(more));
    }

    const fn seen(&self) -> u64 {
        self.applied.destroyed + self.applied.recorded + self.applied.existing + self.mismatches
    }
}

/// Applies the file. An error is the reason why it ended early.
async fn apply(
    store: &Store,
    path: &Path,
    checked: &Contents,
    total: &mut Total,
    stop: &mut Stop,
) -> Result<(), String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut reader = Reader::new(Input::open(Some(path)).map_err(|error| named(&error))?);
    let mut progress = Progress::begin(Some(checked.count));
    loop {
        let batch = reader.next_batch(APPLY_BATCH).map_err(|error| named(&error))?;
        if batch.is_empty() {
            break;
        }
        let begun = Instant::now();
        let applied = tokio::select! {
            biased;
            applied = store.apply_tombstones(&batch) => applied,
            // The batch is rolled back, or, where its commit was sent, applied and not counted.
            () = stop.requested() => return Err("stopped".to_owned()),
        };
        total.add(applied.map_err(|error| error.to_string())?);
        let seen = total.seen();
        progress.report(seen, format_args!("{seen} of {} tombstones applied", checked.count));
        let pause = store.pause_after_batch(begun.elapsed());
        if seen < checked.count && stop.is_requested_within(pause).await {
            return Err("stopped".to_owned());
        }
    }
    if reader.contents() != *checked {
        return Err(named(&"the file was changed during the command"));
    }
    Ok(())
}

fn report(total: &Total, end: &End) -> Result<(), Exit> {
    let Applied { destroyed, recorded, existing, queued, mismatches } = &total.applied;
    let incomplete = if *end == End::Complete { String::new() } else { format!("; {end}") };
    print(format_args!(
        "applied {} tombstones: {destroyed} collections destroyed again, {recorded} tombstones of absent collections \
         added, {existing} tombstones were there already; {queued} purges queued{incomplete}",
        destroyed + recorded + existing,
    ))?;
    if total.mismatches == 0 {
        return Ok(());
    }
    let mut message = format!(
        "{} ids belong to another owner in this database, and were left alone; is the file of another environment?",
        total.mismatches
    );
    for OwnerMismatch { id, in_file, in_database } in mismatches {
        message.push_str(&format!("\n  {id}: of {in_file} in the file, of {in_database} in the database"));
    }
    let unnamed = total.mismatches.saturating_sub(mismatches.len() as u64);
    if unnamed > 0 {
        message.push_str(&format!("\n  and {unnamed} more"));
    }
    Err(Exit::Failed(message))
}
