//! The generated service's one method: parse, destroy, answer.

use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::{Span, field::display};

use super::status_of;
use crate::{
    collections, config,
    domain::{CollectionId, DestroyError, ParseCollectionIdError},
    identity::AuthenticatedUser,
    proto::{DestroyRequest, DestroyResponse, collections_service_server::CollectionsService},
    store::Store,
};

/// What the guard found out about a call, left in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// The service over a store.
#[derive(Clone, Debug)]
pub struct Collections {
    store: Store,
}

impl Collections {
    #[must_use]
    pub const fn new(store: Store) -> Self {
        Self { store }
    }

    async fn destroy_as_asked(&self, request: Request<DestroyRequest>) -> Result<(), DestroyError> {
        let (_, extensions, DestroyRequest { id, request_id }) = request.into_parts();
        let user = extensions.get::<AuthenticatedUser>().ok_or(DestroyError::CredentialsMissing)?;
        let deadline = extensions
            .get::<Deadline>()
            .map_or_else(|| Instant::now() + config::calls::TIMEOUT, |Deadline(deadline)| *deadline);
        let id: CollectionId = id.parse().map_err(|error| match error {
            ParseCollectionIdError::Empty => DestroyError::IdRequired,
            ParseCollectionIdError::Malformed => DestroyError::IdInvalid,
        })?;
        Span::current().record("collection.id", display(id));
        let request_id = match request_id.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_error| DestroyError::RequestIdInvalid)?),
        };
        collections::destroy(&self.store, user, id, request_id, deadline).await
    }
}

#[tonic::async_trait]
impl CollectionsService for Collections {
    async fn destroy(&self, request: Request<DestroyRequest>) -> Result<Response<DestroyResponse>, Status> {
        self.destroy_as_asked(request).await.map_err(status_of)?;
        Ok(Response::new(DestroyResponse { destroyed: true }))
    }
}
