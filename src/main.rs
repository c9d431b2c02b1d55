//! `collections-service`: see `collections_service::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    collections_service::cli::run()
}
