//! Reloads files when their contents change, without a restart.

use std::{
    fmt,
    fs::File,
    hash::{DefaultHasher, Hasher},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{config, telemetry::ReloadMetrics};

/// A file, or several that are loaded together. Their contents are compared, because Kubernetes replaces a mounted Secret by
/// changing a symbolic link. Files that are written one after the other are loaded once both are complete.
pub struct FileWatch {
    /// The flag that names the files, for the log.
    flag: &'static str,
    files: Vec<PathBuf>,
    /// The files as they were before the last load that succeeded.
    loaded: Fingerprint,
    /// The files at the last poll. They are loaded if they are still the same at the next one.
    polled: Fingerprint,
    /// The files at the last load, and its error, if it failed.
    failed: Option<(Fingerprint, String)>,
    status: ReloadStatus,
    metrics: Option<ReloadMetrics>,
    reload: Box<dyn FnMut() -> Result<(), String> + Send>,
}

/// Why a watch's files could not be reloaded, if so. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ReloadStatus(Arc<Mutex<Option<String>>>);

impl ReloadStatus {
    /// The error of the last load, if it failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, failure: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

/// A hash of each file and its mode; `None` where it cannot be read.
type Fingerprint = Vec<Option<(u64, u32)>>;

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
        let (status, metrics) = (ReloadStatus::default(), None);
        let polled = loaded.clone();
        Ok((Self { flag, files, polled, loaded, failed: None, status, metrics, reload }, receiver))
    }

    /// The flag that names the files.
    #[must_use]
    pub const fn flag(&self) -> &'static str {
        self.flag
    }

    /// The result of reloads.
    #[must_use]
    pub fn status(&self) -> ReloadStatus {
        self.status.clone()
    }

    /// With metrics of its reloads.
    #[must_use]
    pub fn observed(self, metrics: ReloadMetrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// Polls the files once. A change is loaded when two polls in succession find the files the same. Where that fails the
    /// last value stays in use, each poll tries again, and the failure is logged when its text changes.
    pub fn poll_once(&mut self) {
        let current = fingerprint(&self.files);
        let is_stable = current == self.polled;
        self.polled.clone_from(&current);
        if !is_stable || (current == self.loaded && self.failed.is_none()) {
            return;
        }
        match (self.reload)() {
            Ok(()) => {
                tracing::info!(flag = self.flag, file = self.changed(&current), "reloaded");
                self.failed = None;
                self.loaded = current;
                self.status.set(None);
                self.metrics.iter().for_each(ReloadMetrics::succeed);
            }
            Err(error) => {
                if self.failed.as_ref().is_none_or(|(_, logged)| *logged != error) {
                    self.log_failure(&current, &error);
                }
                // Not each time that it is tried again.
                if self.failed.as_ref().is_none_or(|failed| *failed != (current.clone(), error.clone())) {
                    self.metrics.iter().for_each(ReloadMetrics::fail);
                    self.status.set(Some(error.clone()));
                }
                self.failed = Some((current, error));
            }
        }
    }

    fn log_failure(&self, current: &Fingerprint, error: &str) {
        // The flag is that of the group. An error that begins with a flag has that of the file at fault.
        let flag = (!error.starts_with("--")).then_some(self.flag);
        let file = self.changed(current);
        tracing::error!(flag, file, error, "not reloaded; the last valid contents stay in use");
    }

    /// The files that have changed since the last load, or since the last that succeeded.
    fn changed(&self, current: &Fingerprint) -> String {
        let failed = self.failed.as_ref().map_or(&self.loaded, |(failed, _)| failed);
        let states = current.iter().zip(&self.loaded).zip(failed);
        let files = self.files.iter().zip(states);
        let changed = files.filter(|(_, ((current, loaded), failed))| current != loaded || current != failed);
        changed.map(|(file, _)| file.display().to_string()).collect::<Vec<_>>().join(", ")
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
    files.iter().map(|file| state(file).ok()).collect()
}

/// Hashes a file through a buffer that is wiped, and returns its mode too. The hash function holds eight bytes of it at a
/// time: some of the files are keys, and SHA-256 leaves parts of its input on the stack.
fn state(file: &Path) -> io::Result<(u64, u32)> {
    let file = File::open(file)?;
    let mode = file.metadata()?.permissions().mode();
    let mut contents = file.take(config::net::WATCHED_FILE_LIMIT);
    let mut buffer = Zeroizing::new([0; 4096]);
    let mut hasher = DefaultHasher::new();
    loop {
        match contents.read(buffer.as_mut_slice())? {
            0 => return Ok((hasher.finish(), mode)),
            read => hasher.write(buffer.get(..read).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        error::Error,
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
        path::Path,
    };

    use super::FileWatch;

    fn load(file: &Path) -> Result<u32, String> {
        if fs::metadata(file).map_err(|error| error.to_string())?.permissions().mode() & 0o004 != 0 {
            return Err("it is world-readable".to_owned());
        }
        let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
        text.parse().map_err(|_error| format!("--number: {text} is no number"))
    }

    #[test]
    fn a_failed_load_is_retried_at_each_poll_and_logged_when_its_error_changes() -> Result<(), Box<dyn Error>>
    {
        let folder = tempfile::tempdir()?;
        let log = tempfile::NamedTempFile::new()?;
        let (key, other) = (folder.path().join("key"), folder.path().join("other"));
        let set_mode = |mode| fs::set_permissions(&key, Permissions::from_mode(mode));
        fs::write(&key, "1")?;
        fs::write(&other, "other")?;
        set_mode(0o600)?;
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.reopen()?).finish();
        let _subscribed = tracing::subscriber::set_default(subscriber);
        let files = vec![key.clone(), other.clone()];
        let (mut watch, value) = FileWatch::load("--key", files, {
            let key = key.clone();
            move || load(&key)
        })?;
        let mut lines_of_polls = |polls| {
            let before = fs::read_to_string(log.path()).unwrap_or_default().lines().count();
            for _ in 0..polls {
                watch.poll_once();
            }
            let log = fs::read_to_string(log.path()).unwrap_or_default();
            log.lines().skip(before).map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(lines_of_polls(3).is_empty());

        // The same contents under another mode. Changed contents do not make it another error.
        set_mode(0o644)?;
        let lines = lines_of_polls(5);
        assert!(matches!(&lines[..], [line] if line.contains("world-readable")), "{lines:?}");
        fs::write(&key, "2")?;
        assert!(lines_of_polls(5).is_empty());
        assert_eq!(*value.borrow(), 1);
        set_mode(0o600)?;
        let lines = lines_of_polls(5);
        let named = format!("reloaded flag=\"--key\" file={:?}", key.display().to_string());
        assert!(matches!(&lines[..], [line] if line.ends_with(&named)), "{lines:?}");
        assert_eq!(*value.borrow(), 2);

        // An error that names its own flag; then the contents of the last load that succeeded.
        fs::write(&key, "x")?;
        let lines = lines_of_polls(5);
        assert!(matches!(&lines[..], [line] if line.contains("--number: x") && !line.contains("--key")));
        fs::write(&key, "2")?;
        assert!(matches!(&lines_of_polls(5)[..], [line] if line.ends_with(&named)));

        fs::write(&other, "changed")?;
        let lines = lines_of_polls(5);
        assert!(matches!(&lines[..], [line] if line.contains("/other\"") && !line.contains("/key\"")));
        Ok(())
    }
}
