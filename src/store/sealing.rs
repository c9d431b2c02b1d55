//! Secrets at rest: AES-256-GCM under a key from a file. The row a secret belongs to is authenticated with it, so a
//! sealed secret copied to another row does not open.

use std::{collections::HashMap, fmt, fs, io, path::Path};

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::domain::{Entropy, Secret};

const NONCE_BYTES: usize = 12;
const KEY_BYTES: usize = 32;

/// The keys of a key file by their ids. New secrets are sealed under the first one.
pub struct KeyRing {
    current: String,
    keys: HashMap<String, Aes256Gcm>,
    entropy: Entropy,
}

/// Why a key file cannot be used. Says which line, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    #[error("line {0}: expected <key id>:<base64 of 32 bytes>")]
    Malformed(usize),
    #[error("line {0}: this key id stands there twice")]
    Repeated(usize),
    #[error("holds no key")]
    Empty,
}

/// A secret that does not open: another key, another row, or damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unopened;

impl KeyRing {
    /// Reads a key file: a line a key, `<key id>:<base64 of 32 bytes>`, the one to seal with first. Empty lines and
    /// lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The file cannot be read, holds no key, or a line is malformed.
    pub fn read(path: &Path, entropy: Entropy) -> Result<Self, KeyRingError> {
        let text = Zeroizing::new(fs::read_to_string(path)?);
        let mut current = None;
        let mut keys = HashMap::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (id, key) = parse_key(line).ok_or(KeyRingError::Malformed(number))?;
            current.get_or_insert_with(|| id.to_owned());
            if keys.insert(id.to_owned(), key).is_some() {
                return Err(KeyRingError::Repeated(number));
            }
        }
        let current = current.ok_or(KeyRingError::Empty)?;
        Ok(Self { current, keys, entropy })
    }

    /// A fresh key as a line of a key file.
    #[must_use]
    pub fn generate_line(id: &str, entropy: &Entropy) -> Zeroizing<String> {
        let key = Zeroizing::new(entropy.bytes::<KEY_BYTES>());
        Zeroizing::new(format!("{id}:{}\n", BASE64_STANDARD.encode(key)))
    }

    /// Random bytes for new secrets come from here too.
    pub(super) fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// Seals under the current key; gives that key's id and nonce-and-ciphertext.
    pub(super) fn seal(&self, secret: &Secret, row: &str) -> Result<(String, Vec<u8>), Unopened> {
        let nonce = self.entropy.bytes::<NONCE_BYTES>();
        let payload = Payload { msg: secret.expose().as_bytes(), aad: row.as_bytes() };
        let key = self.keys.get(&self.current).ok_or(Unopened)?;
        let ciphertext = key.encrypt(&Nonce::from(nonce), payload).map_err(|_error| Unopened)?;
        Ok((self.current.clone(), [nonce.as_slice(), &ciphertext].concat()))
    }

    /// Opens what was sealed for this row.
    pub(super) fn open(&self, key_id: &str, sealed: &[u8], row: &str) -> Result<Secret, Unopened> {
        let key = self.keys.get(key_id).ok_or(Unopened)?;
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(Unopened)?;
        let payload = Payload { msg: ciphertext, aad: row.as_bytes() };
        let plain = key.decrypt(&Nonce::from(*nonce), payload).map_err(|_error| Unopened)?;
        String::from_utf8(plain).map(Secret::from).map_err(|_error| Unopened)
    }
}

fn parse_key(line: &str) -> Option<(&str, Aes256Gcm)> {
    let (id, encoded) = line.split_once(':')?;
    let id_is_plain = !id.is_empty()
        && id.len() <= 64
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(encoded.trim()).ok()?);
    let key = Aes256Gcm::new_from_slice(&bytes).ok()?;
    id_is_plain.then_some((id, key))
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("current", &self.current).finish_non_exhaustive()
    }
}
