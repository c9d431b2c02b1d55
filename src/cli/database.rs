//! The database of a command.

use super::{Exit, heading::DATABASE};
use crate::{
    config::DatabaseUrl,
    domain::{Clock, Entropy},
    store::Store,
};

#[derive(Debug, clap::Args)]
pub struct DatabaseArgs {
    /// The database: `postgres://<user>@<host>/<database>` or `sqlite:<path>`
    ///
    /// Several PostgreSQL hosts are separated by commas. For a database on another machine add `?sslmode=verify-full`, and
    /// `&sslrootcert=<file>` for an authority of your own. With `?mode=rwc` after the path of an SQLite file, `migrate up`
    /// creates the file. A password is accepted in the variable, in PGPASSWORD and in ~/.pgpass, but not on the command line.
    #[arg(long, value_name = "URL", env = "COLLECTIONS_DATABASE_URL", hide_env_values = true, help_heading = DATABASE)]
    database_url: DatabaseUrl,
}

impl DatabaseArgs {
    pub const fn url(&self) -> &DatabaseUrl {
        &self.database_url
    }

    /// Opens the database, whatever the version of its schema.
    pub async fn open(&self) -> Result<Store, Exit> {
        Store::open(&self.database_url, Clock::System, Entropy::default()).await.map_err(Exit::database_url)
    }

    /// Opens the database, whose schema must be this program's.
    pub async fn open_migrated(&self) -> Result<Store, Exit> {
        let store = self.open().await?;
        store.check_schema().await.map_err(Exit::failed)?;
        Ok(store)
    }
}
