//! Files that are put to use again when their contents change, without a restart.

use std::{fmt, fs, path::PathBuf};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::config;

/// A file, or several that belong together. Their contents are compared, because Kubernetes swaps a mounted Secret by
/// turning a link, and whoever writes one file after the other is caught between the two.
pub struct Watched {
    /// What names them.
    flag: &'static str,
    files: Vec<PathBuf>,
    used: Fingerprint,
    /// What was seen last, where that is not in use.
    fresh: Option<Fingerprint>,
    put_to_use: Box<dyn FnMut() -> Result<(), String> + Send>,
}

/// A digest of each file; `None` where it could not be read.
type Fingerprint = Vec<Option<[u8; 32]>>;

impl Watched {
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
    pub fn look(&mut self) {
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
    pub async fn keep(mut self) {
        loop {
            tokio::time::sleep(config::RELOAD_INTERVAL).await;
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(watched) => self = watched,
                Err(error) => return tracing::error!(%error, "files are not watched any more"),
            }
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("flag", &self.flag)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn fingerprint(files: &[PathBuf]) -> Fingerprint {
    files.iter().map(|file| fs::read(file).ok().map(|contents| Sha256::digest(contents).into())).collect()
}
