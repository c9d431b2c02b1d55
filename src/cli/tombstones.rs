//! `tombstones export|apply`: copies tombstones to a file, and from it to a restored database.

mod apply;
mod export;
mod file;

use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, database::DatabaseArgs};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the tombstones of all destroyed collections as lines of JSON. What is destroyed during the export may be
    /// missing from it
    Export {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The file to write instead of standard output. It is replaced when the export is complete, unless it is complete
        /// and has tombstones that are not in the export
        #[arg(long)]
        output: Option<PathBuf>,
        /// Also replace a file that has tombstones which are not in the export
        #[arg(long, requires = "output")]
        force: bool,
    },
    /// Destroy again what an export names, after a database was restored from a backup. Nothing is applied unless the whole
    /// file is valid
    Apply {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The file that `tombstones export` wrote
        file: PathBuf,
        /// Also apply a file without its trailing line, or whose count or hash does not match
        #[arg(long)]
        allow_incomplete: bool,
    },
}

pub async fn run(args: Args) -> Result<(), Exit> {
    match args.command {
        Command::Export { database, output, force } => export::run(&database, output.as_deref(), force).await,
        Command::Apply { database, file, allow_incomplete } => {
            apply::run(&database, &file, allow_incomplete).await
        }
    }
}
