//! collections-service destroys collections: permanently, only for their owner, and exactly once.
//!
//! # The way a destroy takes
//!
//! gRPC: [`server`] accepts, [`grpc`] bounds the call and asks [`identity`] who calls, [`collections`] is the use case,
//! [`store`] the one atomic statement. REST: [`rest`] verifies the OAuth 1.0a signature or the bearer token through
//! [`identity`] and calls the same RPC through its generated client ([`proto`]), in process or over the network.
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

pub mod cli;
pub mod collections;
pub mod config;
pub mod domain;
pub mod grpc;
pub mod identity;
pub mod proto;
pub mod rate_limit;
pub mod rest;
pub mod server;
pub mod store;
pub mod telemetry;
