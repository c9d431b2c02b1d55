//! Configuration as plain data, and every limit by name.

pub mod calls;
pub mod cli;
pub mod credentials;
pub mod identity;
pub mod import;
pub mod jwks;
pub mod net;
pub mod purge;
pub mod rate_limit;
pub mod store;
pub mod telemetry;
pub mod tombstones;
pub mod traces;
pub mod upstream;
pub mod verify;

use std::{fmt, time::Duration};

use zeroize::Zeroizing;

/// How often a long command logs its progress, where there is no terminal.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// A database URL: `sqlite:…` or `postgres://…`. Its `Debug` hides it, because it may hold a password. Any text makes
/// one, and the store judges it: a refusal by clap would show the text.
#[derive(Clone)]
pub struct DatabaseUrl(Zeroizing<String>);

impl DatabaseUrl {
    /// The URL with its secrets.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        self.0.starts_with("sqlite:")
    }

    #[must_use]
    pub fn is_postgres(&self) -> bool {
        ["postgres://", "postgresql://"].iter().any(|scheme| self.0.starts_with(scheme))
    }

    /// Whether the URL holds a password, in its authority or as a parameter.
    #[must_use]
    pub fn has_password(&self) -> bool {
        has_password(&self.0)
    }
}

/// Whether a URL holds a password, in its authority or as a parameter.
#[must_use]
pub fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next());
    let userinfo = authority.and_then(|authority| authority.rsplit_once('@')).map(|(userinfo, _)| userinfo);
    userinfo.is_some_and(|userinfo| userinfo.contains(':')) || url.contains("password=")
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(Zeroizing::new(url))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl")
    }
}
