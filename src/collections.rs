//! The use case: policy without protocol.

use tokio::time::Instant;
use tracing::Span;

use crate::{
    domain::{CollectionId, DestroyError, RequestId},
    identity::AuthenticatedUser,
    store::{Destroy, Destroyed, Store},
};

/// Permanently destroys a collection that this user owns; returns once that is durable.
///
/// # Errors
/// [`DestroyError::NotOwner`], [`DestroyError::NotFound`], or that the store could not do it in time.
pub async fn destroy(
    store: &Store,
    user: &AuthenticatedUser,
    id: CollectionId,
    request_id: Option<RequestId>,
    deadline: Instant,
) -> Result<(), DestroyError> {
    let caller = user.caller().map(str::to_owned);
    let destroyed = store.destroy(Destroy { id, user: user.user(), request_id, caller, deadline }).await?;
    if destroyed == Destroyed::Before {
        Span::current().record("replayed", true);
    }
    Ok(())
}
