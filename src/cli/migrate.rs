//! `migrate up` and `migrate status`.

use clap::Subcommand;

use super::{Exit, print, signal::Stop};
use crate::{
    config::DatabaseUrl,
    domain::{Clock, Entropy},
    store::Store,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply every missing version, oldest first. Of several at one time, one works and the others wait
    Up(Database),
    /// List the versions. Exit 1 when one is missing
    Status(Database),
}

#[derive(Debug, clap::Args)]
struct Database {
    /// sqlite:<path>?mode=rwc or postgres://<user>@<host>/<database>
    #[arg(long, env = "COLLECTIONS_DATABASE_URL", hide_env_values = true)]
    database_url: DatabaseUrl,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    // As the first process of a container it would not be ended by a signal that it does not handle.
    let mut stop = Stop::listen()?;
    let command = async {
        match args.command {
            Command::Up(database) => up(&database.database_url).await,
            Command::Status(database) => status(&database.database_url).await,
        }
    };
    tokio::select! {
        outcome = command => outcome,
        () = stop.requested() => {
            Err(Exit::Failed("stopped by a signal; a version that was not complete is rolled back".to_owned()))
        }
    }
}

async fn up(url: &DatabaseUrl) -> Result<(), Exit> {
    let store = connect(url).await?;
    let applied = store.migrate().await.map_err(Exit::failed)?;
    for name in &applied {
        print(format_args!("applied  {name}"))?;
    }
    print(if applied.is_empty() { "already up to date" } else { "the schema is complete" })
}

async fn status(url: &DatabaseUrl) -> Result<(), Exit> {
    let versions = connect(url).await?.schema().await.map_err(Exit::failed)?;
    for version in &versions {
        print(format_args!("{}  {}", if version.applied { "applied" } else { "missing" }, version.name))?;
    }
    if versions.iter().all(|version| version.applied) {
        Ok(())
    } else {
        Err(Exit::Failed("the schema is incomplete: run `collections-service migrate up`".to_owned()))
    }
}

async fn connect(url: &DatabaseUrl) -> Result<Store, Exit> {
    Store::open(url, Clock::System, Entropy::default()).await.map_err(Exit::database_url)
}
