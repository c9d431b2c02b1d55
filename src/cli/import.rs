//! `import`: collections with their entries, from NDJSON.

mod line;
mod reader;
mod rejects;
mod run;

use std::path::{Path, PathBuf};

use clap::value_parser;

use super::{Exit, database::DatabaseArgs};
use crate::config::import;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service import collections.ndjson.zst
  collections-service import --dry-run collections.ndjson
  ssh backup cat collections.ndjson | collections-service import --name nightly -

Every example takes the database from COLLECTIONS_DATABASE_URL.")]
pub struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The file of collections, one on each line; `-` or none for standard input
    ///
    /// A file whose name ends with `.gz` or `.zst` is decompressed.
    file: Option<PathBuf>,
    /// Continue the unfinished import of this name, or begin at the start where there is none
    #[arg(long, env = "COLLECTIONS_IMPORT_RESUME")]
    resume: bool,
    /// The name under which the progress is stored [default: the file's name, or `stdin`]
    #[arg(long, value_name = "NAME", env = "COLLECTIONS_IMPORT_NAME", value_parser = parse_name)]
    name: Option<String>,
    /// The file for the lines that are not imported [default: `<FILE>.rejects.ndjson` or `stdin.rejects.ndjson`]
    ///
    /// It is overwritten, unless an import is resumed.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_IMPORT_REJECTS")]
    rejects: Option<PathBuf>,
    /// Stop after the batch in which more lines than this have been rejected
    #[arg(long, value_name = "COUNT", default_value_t = import::MAX_REJECTS, env = "COLLECTIONS_IMPORT_MAX_REJECTS", value_parser = value_parser!(u64))]
    max_rejects: u64,
    /// Check every line against the database, and write nothing to it
    ///
    /// Lines are not compared with one another.
    #[arg(long, env = "COLLECTIONS_IMPORT_DRY_RUN", conflicts_with = "resume")]
    dry_run: bool,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    run::run(&args).await
}

impl Args {
    /// None: standard input.
    fn file(&self) -> Option<&Path> {
        self.file.as_deref().filter(|file| *file != Path::new("-"))
    }

    fn name(&self) -> Result<String, Exit> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let Some(file) = self.file() else { return Ok("stdin".to_owned()) };
        let name = file.file_name().and_then(|name| name.to_str());
        name.map(str::to_owned).ok_or_else(|| Exit::usage("the file's name is not UTF-8; give --name"))
    }

    /// The rejects of a dry run do not replace those of an import that may be unfinished.
    fn rejects(&self) -> PathBuf {
        if let Some(rejects) = &self.rejects {
            return rejects.clone();
        }
        let mut path = self.file().map_or_else(|| "stdin".into(), |file| file.as_os_str().to_owned());
        path.push(if self.dry_run { ".dry-run.rejects.ndjson" } else { ".rejects.ndjson" });
        path.into()
    }
}

fn parse_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > import::NAME_LIMIT || name.contains('\0') {
        return Err(format!("expected a name of 1 to {} bytes", import::NAME_LIMIT));
    }
    Ok(name.to_owned())
}
