//! `tombstones export|apply`: copies tombstones to a file, and from it to a restored database.

mod apply;
mod export;
mod file;

use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, database::DatabaseArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service tombstones export --output tombstones.ndjson
  collections-service tombstones apply tombstones.ndjson

Every example takes the database from COLLECTIONS_DATABASE_URL. deploy/RESTORE.md has the whole procedure.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the tombstones of all destroyed collections as lines of JSON
    ///
    /// Collections that are destroyed during the export may be missing from it.
    #[command(after_help = "Examples:
  collections-service tombstones export --output tombstones.ndjson
  collections-service tombstones export | gzip > tombstones.ndjson.gz

Every example takes the database from COLLECTIONS_DATABASE_URL.")]
    Export {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The file to write, instead of standard output
        ///
        /// It is replaced when the export is complete, unless it is complete itself and has tombstones that are not in the
        /// export.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Also replace a file that has tombstones which are not in the export
        #[arg(long, requires = "output")]
        force: bool,
    },
    /// Destroy again what an export names, after the database was restored from a backup
    ///
    /// Nothing is applied unless the whole file is valid. It can be applied any number of times.
    #[command(after_help = "Example:
  collections-service tombstones apply tombstones.ndjson

The example takes the database from COLLECTIONS_DATABASE_URL.")]
    Apply {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The file that `tombstones export` wrote
        file: PathBuf,
        /// Also apply a file without its last line, or whose count or hash does not match
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
