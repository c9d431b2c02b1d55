//! Sockets, connections and what protects them: the accept loop, the table of open connections, shutdown, TLS, and files
//! that are reloaded when they change.

pub mod body;
mod connection;
mod connection_table;
mod file_watch;
mod lifecycle;
mod listener;
mod tls;

pub use file_watch::FileWatch;
pub use lifecycle::Lifecycle;
pub use listener::{Listener, Protocol, ServerTlsReceiver, raise_file_limit};
pub use tls::{ClientAuth, ClientTls, KeyPair, ServerTls, TlsError};
