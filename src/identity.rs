//! Turns credentials into an [`AuthenticatedUser`]. Nothing else can make one, so holding one is the proof.

mod callers;
mod excerpt;
pub mod jwt;
pub mod oauth1;
mod peer;
mod user;

pub use callers::Callers;
pub use excerpt::{excerpt, excerpts};
pub use oauth1::Scheme;
pub use peer::{Peer, PeerName, PeerNameError, Transport, TrustedPeers};
pub use user::AuthenticatedUser;
