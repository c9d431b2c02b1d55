//! Sockets, connections and what protects them: the accept loop, the table of open connections, shutdown, TLS, and files
//! that are reloaded when they change.

pub mod body;
mod client_verifier;
mod connection;
mod connection_table;
mod event_counter;
mod file_watch;
mod frame_meter;
mod frame_scanner;
mod handshake;
mod lifecycle;
mod listener;
mod metered_stream;
mod process_limits;
mod request_budget;
mod resources;
mod source;
mod tls;

pub use connection::Refuse;
pub use file_watch::{FileWatch, ReloadStatus};
pub use handshake::{HandshakeThreads, ServerTlsReceiver, TlsServer};
pub use lifecycle::Lifecycle;
pub use listener::{Listener, ListenerSettings, Protocol};
pub use resources::Resources;
pub use tls::{
    ClientAuth, ClientAuthority, ClientTls, KeyPair, ServerTls, ServerTlsConfig, TlsError, TlsInput,
    install_crypto_provider,
};
