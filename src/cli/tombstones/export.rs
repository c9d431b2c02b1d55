//! `tombstones export`.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::file::{End, FileError, Reader, Writer};
use crate::{
    cli::{Exit, database::DatabaseArgs, print, progress::Progress, signal::Stop},
    config::tombstones::{APPLY_BATCH, EXPORT_BATCH},
    domain::Entropy,
    store::Store,
};

pub async fn run(database: &DatabaseArgs, output: Option<&Path>, force: bool) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    let store = database.open_migrated().await?;
    let Some(path) = output else {
        let failed = |error| Exit::Failed(format!("standard output: {error}"));
        let mut writer = Writer::new(BufWriter::new(io::stdout()));
        write_all(&store, &mut writer, &mut stop, failed).await?;
        writer.finish().map_err(failed)?;
        return Ok(());
    };
    let failed =
        |error: FileError| Exit::Failed(format!("{}: {error}; the file was not replaced", path.display()));
    let io_failed = |error: io::Error| failed(error.into());
    let partial = Partial::create(path).map_err(io_failed)?;
    let mut writer = Writer::new(BufWriter::new(&partial.file));
    write_all(&store, &mut writer, &mut stop, io_failed).await?;
    let count = writer.finish().map_err(io_failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(io_failed)?;
    // Held until the end: the file that is compared is the one that is replaced. A file system without locks on folders
    // leaves a short time between the two.
    drop(folder.lock());
    if !force {
        let missing = count_missing(path, &partial.path, &mut stop).await;
        let missing = missing.map_err(failed)?.ok_or_else(|| stopped(count))?;
        if missing > 0 {
            return Err(not_replaced(path, missing));
        }
    }
    partial.complete(path).map_err(io_failed)?;
    folder.sync_all().map_err(io_failed)?;
    print(format_args!("exported {count} tombstones to {}", path.display()))
}

async fn write_all<W: Write>(
    store: &Store,
    writer: &mut Writer<W>,
    stop: &mut Stop,
    failed: impl Fn(io::Error) -> Exit,
) -> Result<(), Exit> {
    let mut progress = Progress::begin(None);
    let mut last = None;
    loop {
        let batch = tokio::select! {
            biased;
            () = stop.requested() => return Err(stopped(writer.count())),
            batch = store.tombstones_after(last, EXPORT_BATCH) => batch.map_err(Exit::failed)?,
        };
        let Some(tombstone) = batch.last() else { return Ok(()) };
        last = Some(tombstone.id);
        for tombstone in &batch {
            writer.write(tombstone).map_err(&failed)?;
        }
        let count = writer.count();
        progress.report(count, format_args!("{count} tombstones exported"));
    }
}

fn stopped(count: u64) -> Exit {
    Exit::Failed(format!("stopped after {count} tombstones; the export is not complete, run it again"))
}

fn not_replaced(path: &Path, missing: u64) -> Exit {
    let path = path.display();
    Exit::Failed(format!(
        "{path}: {missing} of its tombstones are not in this export, and the file was not replaced. If the database was \
         restored from a backup, apply the file to it first. To keep both files, export to another one; to replace the \
         file, give --force"
    ))
}

/// Counts the tombstones of an existing file that are not in the new one. Tombstones are never deleted, so they are of
/// another database, or of this one before it was restored, or were added since this export began. A file that is not
/// complete counts as 0. None after a signal.
async fn count_missing(existing: &Path, new: &Path, stop: &mut Stop) -> Result<Option<u64>, FileError> {
    match fs::metadata(existing) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(Some(0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        Err(error) => return Err(error.into()),
    }
    let mut existing = Reader::new(BufReader::new(File::open(existing)?));
    let mut new = Reader::new(BufReader::new(File::open(new)?));
    let mut candidate = new.next()?;
    let mut missing = 0;
    loop {
        let batch = match existing.next_batch(APPLY_BATCH) {
            Err(FileError::Line { .. }) => return Ok(Some(0)),
            batch => batch?,
        };
        if batch.is_empty() {
            break;
        }
        for tombstone in batch {
            while candidate.as_ref().is_some_and(|candidate| candidate.id < tombstone.id) {
                candidate = new.next()?;
            }
            let is_same = candidate
                .as_ref()
                .is_some_and(|candidate| candidate.id == tombstone.id && candidate.owner == tombstone.owner);
            missing += u64::from(!is_same);
        }
        if stop.is_requested().await {
            return Ok(None);
        }
    }
    Ok(Some(if existing.contents().end == End::Complete { missing } else { 0 }))
}

/// A file that is written, and deleted unless it is completed. Its name is the target's with a random part, so that each
/// export has a file of its own.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// Creates the file, readable by its owner only: it holds user ids.
    fn create(target: &Path) -> io::Result<Self> {
        let random = u64::from_ne_bytes(Entropy::default().bytes());
        let mut name = OsString::from(target);
        name.push(format!(".{random:016x}.partial"));
        let path = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    /// Renames the file to its target once its content is on the disk.
    fn complete(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        self.path.clear();
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            drop(fs::remove_file(&self.path));
        }
    }
}
