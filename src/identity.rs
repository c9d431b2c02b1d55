//! Turns credentials into an [`AuthenticatedUser`]. Nothing else can make one, so a value of it proves that credentials
//! were verified.

mod callers;
mod client_network;
mod excerpt;
pub mod jwt;
pub mod oauth1;
mod peer;
mod peer_name;
mod user;

pub use callers::Callers;
pub use client_network::client_network;
pub use excerpt::{excerpt, excerpts};
pub use oauth1::Scheme;
pub use peer::{Peer, PeerCertificate, Transport, VerifiedNames};
pub use peer_name::{NameScope, NameScopeError, PeerName, PeerNameError, TrustedPeers};
pub use user::AuthenticatedUser;
