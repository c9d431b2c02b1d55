//! The rejects file: a line of JSON for each line of the input that was not imported.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::reader::Line;

/// Open and locked, so that no other import writes it.
pub struct Rejects {
    path: PathBuf,
    file: File,
    length: u64,
}

/// Why the rejects file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RejectsError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: another import is writing this file", .0.display())]
    Locked(PathBuf),
    #[error("{}: not a regular file; rejects are written to a file that can be truncated", .0.display())]
    NotRegular(PathBuf),
    #[error("{}: this is the input; name another file for the rejects", .0.display())]
    Input(PathBuf),
    #[error(
        "{}: the file is shorter than the {expected} bytes that the unfinished import wrote; put it back, or begin \
         again without --resume", path.display()
    )]
    Shorter { path: PathBuf, expected: u64 },
}

#[derive(Serialize)]
struct Reject<'a> {
    line: u64,
    reason: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// Adds a reject to `text`.
pub fn append(text: &mut Vec<u8>, line: &Line, reason: &str) -> io::Result<()> {
    let lossy = String::from_utf8_lossy(&line.text);
    let reject = Reject { line: line.number, reason, text: &lossy, truncated: line.is_truncated };
    serde_json::to_writer(&mut *text, &reject)?;
    text.push(b'\n');
    Ok(())
}

impl Rejects {
    /// Opens the file, and creates it where it does not exist. Its content stays until [`Self::truncate`].
    pub fn open(path: PathBuf, input: Option<&Path>) -> Result<Self, RejectsError> {
        let failed = |error| RejectsError::Io { path: path.clone(), error };
        let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        if input.is_some_and(|input| identity(input).is_some() && identity(input) == identity(&path)) {
            return Err(RejectsError::Input(path));
        }
        if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(RejectsError::NotRegular(path));
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(RejectsError::Locked(path)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Ok(()) => {}
        }
        // The name has to be as durable as what the file will hold.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(Self { path, file, length })
    }

    /// Truncates the file to this length.
    pub fn truncate(&mut self, length: u64) -> Result<(), RejectsError> {
        if self.length < length {
            return Err(RejectsError::Shorter { path: self.path.clone(), expected: length });
        }
        self.file.set_len(length).map_err(|error| RejectsError::Io { path: self.path.clone(), error })?;
        self.length = length;
        Ok(())
    }

    /// Writes the text behind this length, in place of what is there, and waits until it is on the disk.
    pub fn write(&mut self, length: u64, text: &[u8]) -> io::Result<u64> {
        if self.length != length {
            self.file.set_len(length)?;
            self.length = length;
        }
        if !text.is_empty() {
            self.file.seek(SeekFrom::Start(length))?;
            self.file.write_all(text)?;
            self.length = length + text.len() as u64;
            self.file.sync_data()?;
        }
        Ok(self.length)
    }

    /// Removes the file where it is empty.
    pub fn close(self) -> io::Result<()> {
        if self.length == 0 { fs::remove_file(&self.path) } else { self.file.sync_all() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
