//! `migrate up` and `migrate status`.

use clap::Subcommand;

use super::{Exit, print};
use crate::{
    config::DatabaseUrl,
    domain::Clock,
    store::{Capacity, Store},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply every missing version, oldest first. Run one at a time
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
    match args.command {
        Command::Up(database) => up(&database.database_url).await,
        Command::Status(database) => status(&database.database_url).await,
    }
}

async fn up(url: &DatabaseUrl) -> Result<(), Exit> {
    let store = connect(url).await?;
    while let Some(name) = store.migrate_one().await.map_err(Exit::failed)? {
        print(format_args!("applied  {name}"))?;
    }
    print("the schema is complete")
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

/// One connection, so that what a migration sets for its session holds.
async fn connect(url: &DatabaseUrl) -> Result<Store, Exit> {
    Store::connect(url, Capacity::without_destroys(1), Clock::System).await.map_err(Exit::usage)
}
