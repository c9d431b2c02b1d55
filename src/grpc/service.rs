//! The generated service's one method: parse, destroy, respond.

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::status_of;
use crate::{
    collections::{CallContext, DestroyCall, Local},
    domain::{CollectionId, DestroyError, DestroyFailure, Destroyed, ParseCollectionIdError},
    identity::{AuthenticatedUser, excerpt},
    proto::{DestroyRequest, DestroyResponse, collections_service_server::CollectionsService},
    telemetry::CallRecord,
};

/// A call that has passed the pipeline; in the extensions of its request.
#[derive(Clone, Debug)]
pub struct AuthenticatedCall {
    pub user: AuthenticatedUser,
    pub deadline: Instant,
    pub record: CallRecord,
}

/// The service over this process's own store.
#[derive(Clone, Debug)]
pub struct Collections {
    local: Local,
}

impl Collections {
    #[must_use]
    pub const fn new(local: Local) -> Self {
        Self { local }
    }

    async fn run(
        &self,
        call: AuthenticatedCall,
        request: DestroyRequest,
    ) -> Result<Destroyed, DestroyFailure> {
        let AuthenticatedCall { user, deadline, record } = call;
        let id: CollectionId = request.id.parse().map_err(|error| match error {
            ParseCollectionIdError::Empty => DestroyError::IdRequired.into(),
            ParseCollectionIdError::Malformed => invalid(DestroyError::IdInvalid, &request.id),
        })?;
        record.fields().collection = Some(id);
        let request_id = match request.request_id.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_error| invalid(DestroyError::RequestIdInvalid, text))?),
        };
        let context = CallContext { trace: record.fields().trace.clone(), ..CallContext::default() };
        let call = DestroyCall { user, id, request_id, deadline, context };
        self.local.destroy(call).await
    }
}

/// The failure for a value of the message.
fn invalid(error: DestroyError, value: &str) -> DestroyFailure {
    DestroyFailure::new(error, format_args!("the value is {}", excerpt(value)))
}

#[tonic::async_trait]
impl CollectionsService for Collections {
    async fn destroy(&self, request: Request<DestroyRequest>) -> Result<Response<DestroyResponse>, Status> {
        let (_, mut extensions, message) = request.into_parts();
        let call: AuthenticatedCall =
            extensions.remove().ok_or_else(|| status_of(DestroyError::CredentialsMissing))?;
        let record = call.record.clone();
        let destroyed = self.run(call, message).await;
        record.finish(&destroyed);
        destroyed.map_err(|failure| status_of(failure.error))?;
        Ok(Response::new(DestroyResponse { destroyed: true }))
    }
}
