//! The use case and how it is reached: policy without protocol.

mod admission;

use std::{future::Future, pin::Pin};

use tokio::time::Instant;

use crate::{
    domain::{CollectionId, DestroyFailure, Destroyed, RequestId},
    identity::AuthenticatedUser,
    store::{Destroy, Store},
    telemetry::CallTrace,
};

pub use admission::{Admission, Holder, Permit};

/// A destroy that an authenticated user requested.
#[derive(Clone, Debug)]
pub struct DestroyCall {
    pub user: AuthenticatedUser,
    pub id: CollectionId,
    /// Makes a repetition of the call safe.
    pub request_id: Option<RequestId>,
    /// After it, the caller does not wait for the answer any more.
    pub deadline: Instant,
    pub context: CallContext,
}

/// What relates a call to others in logs and traces.
#[derive(Clone, Debug, Default)]
pub struct CallContext {
    /// The header `x-request-id`.
    pub request_id: Option<Box<str>>,
    /// The call's place in its trace.
    pub trace: CallTrace,
    /// The header `traceparent` as it was received. It is forwarded where traces are off.
    pub traceparent: Option<Box<str>>,
    /// The header `tracestate` as it was received.
    pub tracestate: Option<Box<str>>,
}

/// Where destroys are carried out: in this process, or by RPC servers elsewhere.
pub trait DestroyApi: Send + Sync {
    /// Permanently destroys a collection that the call's user owns; returns once that is durable, or at the deadline.
    ///
    /// # Errors
    /// As [`Local::destroy`], and where the servers elsewhere do not answer, [`crate::domain::DestroyError::StoreUnavailable`].
    fn destroy(&self, call: DestroyCall) -> DestroyFuture<'_>;
}

pub type DestroyFuture<'a> = Pin<Box<dyn Future<Output = Result<Destroyed, DestroyFailure>> + Send + 'a>>;

/// The use case over this process's own store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Local {
    store: Store,
}

impl Local {
    #[must_use]
    pub const fn new(store: Store) -> Self {
        Self { store }
    }

    /// Permanently destroys a collection that the call's user owns; returns once that is durable.
    ///
    /// # Errors
    /// [`crate::domain::DestroyError::NotOwner`], [`crate::domain::DestroyError::NotFound`], or that the store could not do it
    /// in time.
    pub async fn destroy(&self, call: DestroyCall) -> Result<Destroyed, DestroyFailure> {
        let DestroyCall { user, id, request_id, deadline, context } = call;
        let caller = user.caller().map(|caller| caller.to_string());
        let span = context.trace.recorded().cloned();
        self.store.destroy(Destroy { id, user: user.user(), request_id, caller, deadline, span }).await
    }
}

impl DestroyApi for Local {
    fn destroy(&self, call: DestroyCall) -> DestroyFuture<'_> {
        Box::pin(Self::destroy(self, call))
    }
}
