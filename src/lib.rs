//! collections-service: permanently delete a collection owned by the authenticated user.
pub mod config;
pub mod domain;
pub mod store;
pub mod identity;
pub mod collections;
pub mod grpc;
pub mod rest;
pub mod proto;
pub mod server;
