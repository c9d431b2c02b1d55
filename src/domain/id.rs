//! Ids, parsed once at the door.

use std::{fmt, num::NonZeroI64, str::FromStr};

use uuid::Uuid;

const COLLECTION_PREFIX: &str = "custom-";

/// A collection's id: `custom-` and a decimal in `1..=i64::MAX` on the wire, the number alone in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionId(NonZeroI64);

/// A user's id: a decimal in `1..=i64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(NonZeroI64);

/// The caller's name for one destroy and its retries (AIP-155): a UUID in any of its usual textual forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Uuid);

/// Why a text is no collection id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCollectionIdError {
    #[error("the id is empty")]
    Empty,
    #[error("the id is not `custom-` and a decimal in 1..=9223372036854775807")]
    Malformed,
}

/// A text that is no user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a user id is a decimal in 1..=9223372036854775807")]
pub struct ParseUserIdError;

/// The canonical decimal of a positive `i64`: ASCII digits alone, no leading zero. `i64::from_str` is laxer (it takes a
/// `+`), and two spellings of one id would be two keys in a caller's cache.
fn positive_decimal(text: &str) -> Option<NonZeroI64> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if canonical { text.parse().ok() } else { None }
}

impl CollectionId {
    /// The id with this number, if it is positive.
    #[must_use]
    pub fn new(number: i64) -> Option<Self> {
        NonZeroI64::new(number).filter(|number| number.is_positive()).map(Self)
    }

    /// The number behind `custom-`, always positive.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0.get()
    }
}

impl FromStr for CollectionId {
    type Err = ParseCollectionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ParseCollectionIdError::Empty);
        }
        text.strip_prefix(COLLECTION_PREFIX)
            .and_then(positive_decimal)
            .map(Self)
            .ok_or(ParseCollectionIdError::Malformed)
    }
}

impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{COLLECTION_PREFIX}{}", self.0)
    }
}

impl UserId {
    /// The user with this number, if it is positive.
    #[must_use]
    pub fn new(number: i64) -> Option<Self> {
        NonZeroI64::new(number).filter(|number| number.is_positive()).map(Self)
    }

    /// The number, always positive.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0.get()
    }
}

impl FromStr for UserId {
    type Err = ParseUserIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        positive_decimal(text).map(Self).ok_or(ParseUserIdError)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl RequestId {
    /// The UUID itself.
    #[must_use]
    pub const fn get(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for RequestId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl FromStr for RequestId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
