//! collections-service destroys collections: permanently, only for their owner, and exactly once.
//!
//! # The way a destroy takes
//!
//! gRPC: [`server`] accepts, [`grpc`] bounds the call and asks [`identity`] who calls, [`collections`] is the use case,
//! [`store`] the one atomic statement, run by the batch driver that the composition root polls. REST: [`rest`] verifies the OAuth 1.0a signature or the bearer token through
//! [`identity`] and calls the same RPC through its generated client ([`proto`]), in process or over the network.
//! Afterwards [`jobs`] erases the entries of what was destroyed.
//! [`domain`] is what all of them talk about, [`config`] every limit by name, [`rate_limit`] what the REST edge counts,
//! [`telemetry`] log and metrics, [`cli`] the commands.
//!
//! # What always holds
//!
//! 1. Only [`store`] names sea-orm or holds SQL; only [`grpc`] names tonic's server, and only [`rest`] axum.
//! 2. Nothing reaches [`collections::destroy`] without an [`identity::AuthenticatedUser`], which only [`identity`] makes.
//! 3. Ownership is decided by the deleting statement itself, and OK is said only after its commit.
//! 4. One table ([`domain::DestroyError::row`]) pairs each failure with its codes on both protocols.
//! 5. Time and randomness come from [`domain::Clock`] and [`domain::Entropy`].
//! 6. Every queue, pool, cache, body, header and wait has a limit, named in [`config`].
//! 7. A tombstone is written once, by the statement that destroys, and changed only if a row that was put back by hand is
//!    destroyed again. What is left to do after a destroy is a row in a queue table, written by the same statement.
//! 8. PostgreSQL sessions carry no state of ours, so that any pooler or node may serve any statement.
//! 9. Every table has a deletion rule ([`store::DELETION_RULES`]).

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
