//! Files that are put to use again when their contents change, without a restart.

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

/// A file, or several that belong together. Their contents are compared, because Kubernetes swaps a mounted Secret by
/// turning a link, and whoever writes one file after the other is caught between the two.
pub struct FileWatch {
    /// What names them.
    flag: &'static str,
    files: Vec<PathBuf>,
    used: Fingerprint,
    /// What was seen last, where that is not in use.
    fresh: Option<Fingerprint>,
    put_to_use: Box<dyn FnMut() -> Result<(), String> + Send>,
}

/// A hash of each file; `None` where it could not be read.
type Fingerprint = Vec<Option<u64>>;

impl FileWatch {
    /// Loads something from files, and again whenever they change: the receiver has the last one that could be loaded.
    ///
    /// # Errors
    /// It cannot be loaded now.
    pub fn load<T: Send + Sync + 'static, E: fmt::Display>(
        flag: &'static str,
        files: Vec<PathBuf>,
        mut load: impl FnMut() -> Result<T, E> + Send + 'static,
    ) -> Result<(Self, watch::Receiver<T>), E> {
        // Before they are read: a change that comes between is seen later.
        let used = fingerprint(&files);
        let (current, receiver) = watch::channel(load()?);
        let put_to_use = Box::new(move || match load() {
            Ok(loaded) => {
                current.send_replace(loaded);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        });
        Ok((Self { flag, files, used, fresh: None, put_to_use }, receiver))
    }

    /// One look. Contents that have changed are put to use once they have stood still from one look to the next; if they
    /// cannot be used, what was in use stays so, and the log says it once.
    pub fn poll_once(&mut self) {
        let seen = fingerprint(&self.files);
        if seen == self.used {
            self.fresh = None;
        } else if self.fresh.as_ref() != Some(&seen) {
            self.fresh = Some(seen);
        } else {
            match (self.put_to_use)() {
                Ok(()) => tracing::info!(flag = self.flag, "reloaded"),
                Err(error) => tracing::error!(
                    flag = self.flag,
                    error,
                    "not reloaded: what was read before stays in force"
                ),
            }
            self.used = seen;
            self.fresh = None;
        }
    }

    /// Looks again and again, where reading a file may block.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(config::net::RELOAD_INTERVAL).await;
            let looked = tokio::task::spawn_blocking(move || {
                self.poll_once();
                self
            });
            match looked.await {
                Ok(watched) => self = watched,
                Err(error) => return tracing::error!(%error, "files are not watched any more"),
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

/// Through a buffer that is wiped, by a hash that holds eight bytes of it at a time: some of the files are keys, and pieces
/// of what SHA-256 hashes stay on the stack.
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
