//! `migrate up` and `migrate status`.

use clap::Subcommand;

use super::{Exit, database::DatabaseArgs, print, signal::Stop};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply every missing version, oldest first. Of several at one time, one works and the others wait
    Up(DatabaseArgs),
    /// List the versions. Exit 1 when one is missing
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
