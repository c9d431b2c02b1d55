//! Turns credentials into an [`AuthenticatedUser`]. Nothing else can make one, so holding one is the proof.

mod callers;
pub mod jwt;
pub mod oauth1;
mod peer;

use std::sync::Arc;

use crate::domain::UserId;

pub use callers::Callers;
pub use oauth1::Scheme;
pub use peer::{Peer, PeerName, PeerNameError, Transport, TrustedPeers};

/// A user whose credentials were checked, and the service that speaks for them where one is known.
#[derive(Clone, Debug)]
pub struct AuthenticatedUser {
    user: UserId,
    caller: Option<Arc<str>>,
}

impl AuthenticatedUser {
    /// Who it is.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// On whose behalf the call was made, for the audit trail: an application or a service.
    #[must_use]
    pub const fn caller(&self) -> Option<&Arc<str>> {
        self.caller.as_ref()
    }
}
