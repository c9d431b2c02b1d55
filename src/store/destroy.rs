//! The destroy: one atomic step that deletes the row where id and owner match, and writes the tombstone and the row of the
//! purge queue. Calls that arrive together share it.

mod batcher;
mod connection;
mod executor;
mod placement;
mod postgres;
mod queue;
mod single;
mod sqlite;

use std::time::Duration;

use tokio::time::Instant;

use super::Store;
use crate::{
    domain::{CollectionId, DestroyError, DestroyFailure, Destroyed, RequestId, UserId},
    telemetry::CallSpan,
};

pub use batcher::{BatchDriver, Batcher};
pub use connection::{BatchConnection, Kind, Ready};
pub use executor::Shared;
pub use placement::{Placement, hashint8};
pub use sqlite::{SQLITE_CLASSIFY, SQLITE_DELETE, SQLITE_OUTBOX, SQLITE_PURGE, SQLITE_TOMBSTONES};

/// One destroy, as requested.
#[derive(Clone, Debug)]
pub struct Destroy {
    pub id: CollectionId,
    pub user: UserId,
    pub request_id: Option<RequestId>,
    /// The calling service, for the audit trail.
    pub caller: Option<String>,
    /// After it, the statement is not sent any more.
    pub deadline: Instant,
    /// The recorded span of the call, which the statement's span is below or linked with.
    pub span: Option<CallSpan>,
}

pub(super) type Outcome = Result<Destroyed, DestroyFailure>;

/// How a statement is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// Write to the outbox too.
    publish: bool,
    /// Decide which destroys are replays before anything is deleted, and write over tombstones that stand already.
    replays_first: bool,
    lock_timeout: Duration,
}

/// What one run of the statement did with one destroy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOutcome {
    Destroyed,
    Replayed,
    NotOwner,
    NotFound,
    /// Another call took the row, perhaps one of the same batch: run it again.
    Conflict,
}

impl RowOutcome {
    /// The statements return a letter for each destroy, in the order they were given.
    const fn of_letter(letter: u8) -> Option<Self> {
        match letter {
            b'd' => Some(Self::Destroyed),
            b'r' => Some(Self::Replayed),
            b'c' => Some(Self::Conflict),
            b'f' => Some(Self::NotOwner),
            b'n' => Some(Self::NotFound),
            _ => None,
        }
    }

    /// `None` where it has to be run again.
    fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Destroyed => Some(Ok(Destroyed::Now)),
            Self::Replayed => Some(Ok(Destroyed::Before)),
            Self::NotOwner => Some(Err(DestroyError::NotOwner.into())),
            Self::NotFound => Some(Err(DestroyError::NotFound.into())),
            Self::Conflict => None,
        }
    }
}

impl Store {
    /// Destroys a collection of this user; returns once that is durable.
    ///
    /// Where the outcome of a statement is unknown it is run again, until the deadline. A caller that is dropped takes its
    /// destroy out of the queue, but does not cancel a statement in flight.
    ///
    /// # Errors
    /// [`DestroyError::NotOwner`], [`DestroyError::NotFound`], [`DestroyError::DeadlineExceeded`] when the statement was
    /// not sent in time, [`DestroyError::Overloaded`] when the queue is full, [`DestroyError::StoreUnavailable`],
    /// [`DestroyError::Internal`].
    pub async fn destroy(&self, destroy: Destroy) -> Result<Destroyed, DestroyFailure> {
        self.batcher.destroy(destroy).await
    }
}
