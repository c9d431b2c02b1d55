//! The service as its callers meet it: real listeners, real databases. Started by `tests/run`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests"
)]

mod admin;
mod answers;
mod architecture;
mod batches;
mod certificates;
mod cli;
mod configuration;
mod connecting;
mod deletion;
mod destroy;
mod discovery;
mod documents;
mod errors;
mod faults;
mod forgeries;
mod fuzz;
mod gateway;
mod help;
mod histories;
mod hostile;
mod ids;
mod import;
mod jwks;
mod jwt;
mod ledger;
mod locked_rows;
mod log;
mod lost_answers;
mod matrix;
mod metrics;
mod model;
mod oauth_cases;
mod openapi;
mod pgbouncer;
mod placement;
mod plans;
mod process;
mod purge;
mod rate_limit;
mod readiness;
mod recorded;
mod refusal_causes;
mod remanence;
mod replicas;
mod rest;
mod restore;
mod rotation;
mod sealing;
mod signatures;
mod support;
mod tls;
mod tombstone_files;
mod tombstones;
mod traces;
mod verify;
