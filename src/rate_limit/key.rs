//! What requests are counted by.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::domain::UserId;

/// Identifies a user, or a service that calls on behalf of users. The two never share a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    User(UserId),
    Caller(CallerHash),
}

/// The first 16 bytes of the SHA-256 of a caller's name, which may have 2 KiB: a key has the same size for every name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerHash([u8; 16]);

impl Key {
    /// The key of a calling service, by the name that its certificate or token gives it: `mtls:…` or `jwt:…`.
    #[must_use]
    pub fn caller(name: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(name).into();
        let mut hash = [0; 16];
        for (byte, digest) in hash.iter_mut().zip(digest) {
            *byte = digest;
        }
        Self::Caller(CallerHash(hash))
    }
}

/// The key as a part of the name of a count in Redis.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "{user}"),
            Self::Caller(CallerHash(hash)) => write!(f, "caller:{:032x}", u128::from_be_bytes(*hash)),
        }
    }
}
