//! `tombstones export`.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::file::Writer;
use crate::{
    cli::{Exit, database::DatabaseArgs, print, progress::Progress, signal::Stop},
    config::tombstones::EXPORT_BATCH,
    domain::Entropy,
    store::Store,
};

pub async fn run(database: &DatabaseArgs, output: Option<&Path>) -> Result<(), Exit> {
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
        |error| Exit::Failed(format!("{}: {error}; {} is as before", path.display(), path.display()));
    let partial = Partial::create(path).map_err(failed)?;
    let mut writer = Writer::new(BufWriter::new(&partial.file));
    write_all(&store, &mut writer, &mut stop, failed).await?;
    let count = writer.finish().map_err(failed)?;
    partial.complete(path).map_err(failed)?;
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
        let batch = store.tombstones_after(last, EXPORT_BATCH).await.map_err(Exit::failed)?;
        let Some(tombstone) = batch.last() else { return Ok(()) };
        last = Some(tombstone.id);
        for tombstone in &batch {
            writer.write(tombstone).map_err(&failed)?;
        }
        let count = writer.count();
        progress.report(count, format_args!("{count} tombstones exported"));
        if stop.is_requested().await {
            let message =
                format!("stopped after {count} tombstones; the export is not complete, run it again");
            return Err(Exit::Failed(message));
        }
    }
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
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            drop(fs::remove_file(&self.path));
        }
    }
}
