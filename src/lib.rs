//! collections-service: permanently delete a collection owned by the authenticated user.
mod config;
mod domain;
mod store;
mod identity;
mod collections;
