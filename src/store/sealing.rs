//! Secrets at rest: AES-256-GCM under a key from a file. The row a secret belongs to is authenticated with it, so a
//! sealed secret copied to another row does not open.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::{
    config,
    domain::{Entropy, Secret},
};

const NONCE_BYTES: usize = 12;
const KEY_BYTES: usize = 32;
/// What base64 makes of a key.
const KEY_LETTERS: usize = 44;

/// The keys of a key file by their ids, as the file was when it was last read. New secrets are sealed under the first.
pub struct KeyRing {
    path: PathBuf,
    keys: RwLock<Keys>,
    entropy: Entropy,
}

/// What a key file holds.
struct Keys {
    /// The id of the first key, which seals.
    current: String,
    /// All ids, in the order of the file.
    ids: Vec<String>,
    /// Boxed, because a map that grows would leave copies behind that are not wiped.
    by_id: HashMap<String, Box<Aes256Gcm>>,
    /// The file itself, to tell whether it has changed: Kubernetes swaps a mounted file behind a symbolic link, so its times
    /// say nothing, and a hash function leaves pieces of what it hashes on the stack.
    text: Zeroizing<String>,
}

/// Why a key file cannot be used. Says which line, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    #[error("readable or writable by all users of this machine; run chmod o= on it")]
    Exposed,
    #[error("is longer than {} bytes", config::credentials::KEY_FILE_LIMIT)]
    TooLong,
    #[error("line {0}: expected <key id>:<base64 of 32 bytes>")]
    Malformed(usize),
    #[error("line {0}: this key id stands there twice")]
    Repeated(usize),
    #[error("holds no key")]
    Empty,
}

/// Why a secret does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    #[error("the key file has no key of this id")]
    UnknownKey,
    #[error("the key of this id does not open it: another key had that id, or the row is damaged")]
    Damaged,
}

impl KeyRing {
    /// Reads a key file: a line a key, `<key id>:<base64 of 32 bytes>`, the one to seal with first. Empty lines and
    /// lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The file cannot be read, is open to everybody, holds no key, or a line is malformed.
    pub fn read(path: &Path, entropy: Entropy) -> Result<Self, KeyRingError> {
        let keys = RwLock::new(Keys::parse(read_file(path)?)?);
        Ok(Self { path: path.to_owned(), keys, entropy })
    }

    /// Reads the key file again and, where it has changed, takes over what it holds now; says whether it has. Keys that
    /// are gone from it open nothing any more.
    ///
    /// # Errors
    /// As for [`Self::read`]. The keys stay as they were.
    pub fn reload(&self) -> Result<bool, KeyRingError> {
        let text = read_file(&self.path)?;
        if text == self.keys().text {
            return Ok(false);
        }
        let keys = Keys::parse(text)?;
        tracing::info!(key_ids = keys.ids.join(", "), sealing = keys.current, "key file loaded");
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(true)
    }

    /// A fresh key as a line of a key file.
    #[must_use]
    pub fn generate_line(id: &str, entropy: &Entropy) -> Zeroizing<String> {
        let key = Zeroizing::new(entropy.bytes::<KEY_BYTES>());
        // With room for all of it: a string that grows leaves copies behind.
        let mut line = Zeroizing::new(String::with_capacity(id.len() + KEY_LETTERS + 2));
        line.push_str(id);
        line.push(':');
        BASE64_STANDARD.encode_string(key, &mut line);
        line.push('\n');
        line
    }

    /// Where the key file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id of the key that seals.
    #[must_use]
    pub fn current(&self) -> String {
        self.keys().current.clone()
    }

    /// Random bytes for new secrets come from here too.
    pub(super) fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// Seals under the current key; gives that key's id and nonce-and-ciphertext.
    pub(super) fn seal(&self, secret: &Secret, row: &str) -> Result<(String, Vec<u8>), Unopened> {
        let nonce = self.entropy.bytes::<NONCE_BYTES>();
        let payload = Payload { msg: secret.expose().as_bytes(), aad: row.as_bytes() };
        let keys = self.keys();
        let key = keys.by_id.get(&keys.current).ok_or(Unopened::UnknownKey)?;
        let ciphertext = key.encrypt(&Nonce::from(nonce), payload).map_err(|_error| Unopened::Damaged)?;
        Ok((keys.current.clone(), [nonce.as_slice(), &ciphertext].concat()))
    }

    /// Opens what was sealed for this row.
    pub(super) fn open(&self, key_id: &str, sealed: &[u8], row: &str) -> Result<Secret, Unopened> {
        let keys = self.keys();
        let key = keys.by_id.get(key_id).ok_or(Unopened::UnknownKey)?;
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(Unopened::Damaged)?;
        let payload = Payload { msg: ciphertext, aad: row.as_bytes() };
        let plain = key.decrypt(&Nonce::from(*nonce), payload).map_err(|_error| Unopened::Damaged)?;
        String::from_utf8(plain).map(Secret::from).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            Unopened::Damaged
        })
    }

    fn keys(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn parse(text: Zeroizing<String>) -> Result<Self, KeyRingError> {
        let mut ids = Vec::new();
        let mut by_id = HashMap::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (id, key) = parse_key(line).ok_or(KeyRingError::Malformed(number))?;
            ids.push(id.to_owned());
            if by_id.insert(id.to_owned(), key).is_some() {
                return Err(KeyRingError::Repeated(number));
            }
        }
        let current = ids.first().ok_or(KeyRingError::Empty)?.clone();
        Ok(Self { current, ids, by_id, text })
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, KeyRingError> {
    let file = File::open(path)?;
    // The group may read it: so Kubernetes mounts a Secret for a process that is not root.
    if file.metadata()?.permissions().mode() & 0o006 != 0 {
        return Err(KeyRingError::Exposed);
    }
    // With room for all of it: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(config::credentials::KEY_FILE_LIMIT + 1));
    file.take(config::credentials::KEY_FILE_LIMIT as u64 + 1).read_to_string(&mut text)?;
    if text.len() > config::credentials::KEY_FILE_LIMIT {
        return Err(KeyRingError::TooLong);
    }
    Ok(text)
}

fn parse_key(line: &str) -> Option<(&str, Box<Aes256Gcm>)> {
    let (id, encoded) = line.split_once(':')?;
    let id_is_plain = !id.is_empty()
        && id.len() <= 64
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    // One byte more than a key, to see that there is none.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 1]);
    let length = BASE64_STANDARD.decode_slice(encoded.trim(), bytes.as_mut_slice()).ok()?;
    let key = Box::new(Aes256Gcm::new_from_slice(bytes.get(..length)?).ok()?);
    id_is_plain.then_some((id, key))
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("current", &self.keys().current).finish_non_exhaustive()
    }
}
