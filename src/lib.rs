//! collections-service destroys collections: permanently, only for their owner, and exactly once.
//!
//! # The path of one destroy
//!
//! gRPC: [`net`] accepts the connection, [`grpc`] bounds the call (record, deadline, body, admission) and lets [`identity`]
//! authenticate the caller, [`collections`] is the use case, and [`store`] the one atomic statement.
//! REST: [`rest`] verifies the OAuth 1.0a signature or the bearer token through [`identity`] and reaches the same use case
//! through [`collections::DestroyApi`]: in this process ([`collections::Local`]), or on servers elsewhere ([`upstream`]).
//! Afterwards [`jobs`] erases the entries of what was destroyed.
//!
//! [`domain`] has the types that all modules share, [`config`] every limit by name, [`rate_limit`] the counters of users and
//! callers, [`jwks`] the key sets of token issuers, [`telemetry`] log, metrics and traces, [`proto`] the generated contract. [`server`]
//! composes them, and [`cli`] has the commands.
//!
//! # Invariants
//!
//! 1. Only [`store`] names sea-orm or holds SQL; only [`grpc`] names tonic's server, and only [`rest`] and [`server`] axum.
//! 2. Nothing reaches [`collections::Local::destroy`] without an [`identity::AuthenticatedUser`], which only [`identity`] makes.
//! 3. Ownership is decided by the deleting statement itself, and OK is returned only after its commit.
//! 4. One table ([`domain::DestroyError::row`]) pairs each failure with its codes on both protocols.
//! 5. Time and randomness come from [`domain::Clock`] and [`domain::Entropy`].
//! 6. Every queue, pool, cache, body, header and wait has a limit, named in [`config`].
//! 7. A tombstone is written once, by the statement that destroys, and changed only if a row that was put back by hand is
//!    destroyed again. Work that follows a destroy is a row in a queue table, written by the same statement.
//! 8. PostgreSQL sessions carry no state of ours, so that any pooler or node may serve any statement.
//! 9. Every table has a deletion rule ([`store::DELETION_RULES`]).
//! 10. A module imports only the modules below it, and imports have no cycles.

pub mod cli;
pub mod collections;
pub mod config;
pub mod domain;
pub mod grpc;
pub mod identity;
pub mod jobs;
pub mod jwks;
pub mod net;
pub mod proto;
pub mod rate_limit;
pub mod rest;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod upstream;
