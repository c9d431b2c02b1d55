//! Reloads files when their contents change, without a restart.

use std::{
    fmt,
    fs::File,
    hash::{DefaultHasher, Hasher},
    io::{self, Read},
    path::{Path, PathBuf},
};

use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::config;

/// A file, or several that are loaded together. Their contents are compared, because Kubernetes replaces a mounted Secret by
/// changing a symbolic link. Files that are written one after the other are loaded once both are complete.
pub struct FileWatch {
    /// The flag that names the files, for the log.
    flag: &'static str,
    files: Vec<PathBuf>,
    loaded: Fingerprint,
    /// Contents that have changed since, and are loaded if they are still the same at the next poll.
    changed: Option<Fingerprint>,
    reload: Box<dyn FnMut() -> Result<(), String> + Send>,
}

/// A hash of each file; `None` where it cannot be read.
type Fingerprint = Vec<Option<u64>>;

impl FileWatch {
    /// Loads a value from files, and again whenever they change: the receiver has the last value that was loaded.
    ///
    /// # Errors
    /// The first load fails.
    pub fn load<T: Send + Sync + 'static, E: fmt::Display>(
        flag: &'static str,
        files: Vec<PathBuf>,
        mut load: impl FnMut() -> Result<T, E> + Send + 'static,
    ) -> Result<(Self, watch::Receiver<T>), E> {
        // Before the files are read: a change in between is detected by the next poll.
        let loaded = fingerprint(&files);
        let (current, receiver) = watch::channel(load()?);
        let reload = Box::new(move || match load() {
            Ok(value) => {
                current.send_replace(value);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        });
        Ok((Self { flag, files, loaded, changed: None, reload }, receiver))
    }

    /// Polls the files once. Changed contents are loaded when two polls in succession find them the same. Where that fails the
    /// last value stays in use, and the failure is logged once.
    pub fn poll_once(&mut self) {
        let current = fingerprint(&self.files);
        if current == self.loaded {
            self.changed = None;
        } else if self.changed.as_ref() != Some(&current) {
            self.changed = Some(current);
        } else {
            match (self.reload)() {
                Ok(()) => tracing::info!(flag = self.flag, "reloaded"),
                Err(error) => tracing::error!(
                    flag = self.flag,
                    error,
                    "not reloaded; the last valid contents stay in use"
                ),
            }
            self.loaded = current;
            self.changed = None;
        }
    }

    /// Polls the files until the task ends, on threads where reading a file may block.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(config::net::RELOAD_INTERVAL).await;
            let polled = tokio::task::spawn_blocking(move || {
                self.poll_once();
                self
            });
            match polled.await {
                Ok(watch) => self = watch,
                Err(error) => {
                    return tracing::error!(%error, "file watch failed; changed files are not reloaded any more");
                }
            }
        }
    }
}

impl fmt::Debug for FileWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWatch")
            .field("flag", &self.flag)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn fingerprint(files: &[PathBuf]) -> Fingerprint {
    files.iter().map(|file| hash(file).ok()).collect()
}

/// Hashes a file through a buffer that is wiped. The hash function holds eight bytes of it at a time: some of the files are
/// keys, and SHA-256 leaves parts of its input on the stack.
fn hash(file: &Path) -> io::Result<u64> {
    let mut contents = File::open(file)?.take(config::net::WATCHED_FILE_LIMIT);
    let mut buffer = Zeroizing::new([0; 4096]);
    let mut hasher = DefaultHasher::new();
    loop {
        match contents.read(buffer.as_mut_slice())? {
            0 => return Ok(hasher.finish()),
            read => hasher.write(buffer.get(..read).unwrap_or_default()),
        }
    }
}
