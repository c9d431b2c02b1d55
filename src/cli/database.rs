//! The database of a command that is not a server.

use super::Exit;
use crate::{
    config::DatabaseUrl,
    domain::{Clock, Entropy},
    store::Store,
};

#[derive(Debug, clap::Args)]
pub struct DatabaseArgs {
    /// sqlite:<path> or postgres://<user>@<host>/<database>
    #[arg(long, env = "COLLECTIONS_DATABASE_URL", hide_env_values = true)]
    database_url: DatabaseUrl,
}

impl DatabaseArgs {
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
