//! The proof that credentials were checked.

use std::sync::Arc;

use crate::domain::UserId;

/// A user whose credentials were checked, and the calling service, where it is known.
#[derive(Clone, Debug)]
pub struct AuthenticatedUser {
    pub(super) user: UserId,
    pub(super) caller: Option<Arc<str>>,
}

impl AuthenticatedUser {
    /// Returns the user's id.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// Returns the application or service that made the call, for the audit trail.
    #[must_use]
    pub const fn caller(&self) -> Option<&Arc<str>> {
        self.caller.as_ref()
    }
}
