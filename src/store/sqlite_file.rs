//! The file behind the SQLite connection, which other processes may delete or replace.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use sea_orm::DbErr;

/// A database file and what its one connection has open.
#[derive(Default)]
pub struct SqliteFile {
    path: PathBuf,
    /// Device and inode of the file that the connection has open.
    opened: Mutex<Option<(u64, u64)>>,
    /// The connection is to be replaced before it is used again.
    discarded: AtomicBool,
}

impl SqliteFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// The connection has opened the file that the path leads to now.
    pub fn note_opened(&self) {
        let identity = self.identity().ok();
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Fails where the path no longer leads to the open file: what is committed then would be lost with it.
    pub fn check(&self) -> Result<(), DbErr> {
        let opened = *self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match self.identity() {
            Ok(identity) if opened.is_none_or(|opened| opened == identity) => Ok(()),
            Ok(_replaced) => {
                self.discard();
                Err(DbErr::Custom("the database file was replaced under the open connection".to_owned()))
            }
            Err(error) => Err(gone(error)),
        }
    }

    /// Fails where there is no file. The error of a connection that cannot be opened would be less clear.
    pub fn check_exists(&self) -> Result<(), DbErr> {
        self.identity().map(|_found| ()).map_err(gone)
    }

    /// In bytes, without the write-ahead log.
    pub fn size(&self) -> Result<u64, DbErr> {
        fs::metadata(&self.path).map(|metadata| metadata.len()).map_err(gone)
    }

    /// Whether the connection is to be replaced. It is, after this.
    pub fn take_discarded(&self) -> bool {
        self.discarded.swap(false, Ordering::Relaxed)
    }

    /// Closes the connection before its next use.
    pub fn discard(&self) {
        self.discarded.store(true, Ordering::Relaxed);
    }
}

fn gone(error: io::Error) -> DbErr {
    DbErr::Custom(format!("the database file is gone: {error}"))
}
