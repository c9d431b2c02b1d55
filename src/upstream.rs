//! The gateway's connections to RPC servers elsewhere: the name's addresses, and which of them gets a call.

mod balancer;
mod client;
mod resolver;
mod url;

pub use client::Upstream;
pub use resolver::Resolver;
pub use url::{UpstreamUrl, UpstreamUrlError};
