//! The service as its callers meet it: real listeners, real databases. Started by `tests/run`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod architecture;
mod destroy;
mod ids;
mod rest;
mod support;
