//! The destroy: one atomic step that deletes the row where id and owner match and leaves the tombstone. Calls that arrive
//! together share it.

mod batcher;
mod lane;
mod postgres;
mod queue;
mod sqlite;

use std::{fmt, sync::Arc};

use tokio::time::Instant;
use tracing::{Span, field};

use super::Store;
use crate::domain::{CollectionId, DestroyError, RequestId, UserId};

pub use batcher::Batcher;
pub use postgres::{DESTROY, DESTROY_BATCH, SETTINGS, set_up};
pub use sqlite::{SQLITE_DELETE, SQLITE_LOOK, SQLITE_TOMBSTONES};

/// One destroy, as asked for.
#[derive(Clone, Debug)]
pub struct Destroy {
    pub id: CollectionId,
    pub user: UserId,
    pub request_id: Option<RequestId>,
    /// The service that asks, for the audit trail.
    pub caller: Option<String>,
    /// Past it, the statement is not sent any more.
    pub deadline: Instant,
}

/// How a destroy succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    Now,
    /// An earlier call with the same request id had already done it.
    Before,
}

/// Why a destroy failed, with what only the log may hear.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    error: DestroyError,
    cause: Option<Arc<str>>,
}

pub(super) type Outcome = Result<Destroyed, Failed>;

/// What one run of the statement saw of one destroy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Destroyed,
    Replayed,
    NotOwner,
    NotFound,
    /// The statement's snapshot still shows the user's row, but another call took it meanwhile, perhaps one of the same
    /// batch: look again.
    Overtaken,
}

impl Sight {
    /// The statements answer with a letter for each destroy, in the order they were given.
    const fn of_letter(letter: u8) -> Option<Self> {
        match letter {
            b'd' => Some(Self::Destroyed),
            b'r' => Some(Self::Replayed),
            b'o' => Some(Self::Overtaken),
            b'f' => Some(Self::NotOwner),
            b'n' => Some(Self::NotFound),
            _ => None,
        }
    }

    /// `None` where it has to be looked at again.
    const fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Destroyed => Some(Ok(Destroyed::Now)),
            Self::Replayed => Some(Ok(Destroyed::Before)),
            Self::NotOwner => Some(Err(Failed::unexplained(DestroyError::NotOwner))),
            Self::NotFound => Some(Err(Failed::unexplained(DestroyError::NotFound))),
            Self::Overtaken => None,
        }
    }
}

impl Failed {
    const fn unexplained(error: DestroyError) -> Self {
        Self { error, cause: None }
    }

    fn because(error: DestroyError, cause: impl fmt::Display) -> Self {
        Self { error, cause: Some(cause.to_string().into()) }
    }
}

impl Store {
    /// Destroys a collection of this user; returns once that is durable.
    ///
    /// A caller who stops waiting takes its destroy out of the queue, but does not cut a statement in two.
    ///
    /// # Errors
    /// [`DestroyError::NotOwner`], [`DestroyError::NotFound`], [`DestroyError::DeadlineExceeded`] when the statement was
    /// not sent in time, [`DestroyError::Overloaded`] when there is no room or its turn did not come,
    /// [`DestroyError::StoreUnavailable`], [`DestroyError::Internal`].
    pub async fn destroy(&self, destroy: Destroy) -> Result<Destroyed, DestroyError> {
        self.batcher.destroy(destroy).await.map_err(|failed| {
            // The cause goes on the call's line in the log; the caller is told the failure alone.
            if let Some(cause) = failed.cause {
                Span::current().record("error", field::display(cause));
            }
            failed.error
        })
    }
}
