//! `migrate up` and `migrate status`.

use clap::Subcommand;

use super::{Exit, database::DatabaseArgs, print, signal::Stop};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service migrate up --database-url 'sqlite:collections.sqlite?mode=rwc'
  collections-service migrate status --database-url postgres://collections@127.0.0.1/collections")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply every missing version, oldest first
    ///
    /// When several processes run it at the same time, one works and the others wait. A version cannot be undone.
    #[command(after_help = "Example:
  collections-service migrate up --database-url 'sqlite:collections.sqlite?mode=rwc'")]
    Up(DatabaseArgs),
    /// List the versions, and whether each is applied
    ///
    /// The exit code is 1 when one is missing.
    #[command(after_help = "Example:
  collections-service migrate status --database-url postgres://collections@127.0.0.1/collections")]
    Status(DatabaseArgs),
}

pub async fn run(args: Args) -> Result<(), Exit> {
    // As the first process of a container it would not be ended by a signal that it does not handle.
    let mut stop = Stop::listen()?;
    let command = async {
        match args.command {
            Command::Up(database) => up(&database).await,
            Command::Status(database) => status(&database).await,
        }
    };
    tokio::select! {
        outcome = command => outcome,
        () = stop.requested() => {
            Err(Exit::Failed("stopped by a signal; a version that was not complete is rolled back".to_owned()))
        }
    }
}

async fn up(database: &DatabaseArgs) -> Result<(), Exit> {
    let store = database.open().await?;
    let applied = store.migrate().await.map_err(Exit::failed)?;
    for name in &applied {
        print(format_args!("applied  {name}"))?;
    }
    print(if applied.is_empty() { "already up to date" } else { "the schema is complete" })
}

async fn status(database: &DatabaseArgs) -> Result<(), Exit> {
    let versions = database.open().await?.schema().await.map_err(Exit::failed)?;
    for version in &versions {
        print(format_args!("{}  {}", if version.applied { "applied" } else { "missing" }, version.name))?;
    }
    if versions.iter().all(|version| version.applied) {
        Ok(())
    } else {
        Err(Exit::Failed("the schema is incomplete: run `collections-service migrate up`".to_owned()))
    }
}
