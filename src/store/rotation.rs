//! Re-seals stored secrets under the current key, batch by batch along the primary keys. Each row is written only if it is
//! still what was read, so a batch may run while a service or another rotation runs, and again.

use std::{fmt, time::Duration};

use sea_orm::{
    ColumnTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect, TransactionTrait, sea_query::Expr,
};

use super::{
    Credentials,
    credentials::{app_row, token_row},
    entities::{oauth_access_token as token, oauth_application as application},
    failure::Failure,
    sealing::Unopened,
};
use crate::config;

/// Whose secret it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holder {
    #[default]
    Application,
    Token,
}

/// Where a pass over all secrets stands: it goes by primary key, first through the applications, then the tokens.
#[derive(Clone, Debug, Default)]
pub struct Place {
    holder: Holder,
    /// The last key that was read.
    after: Option<String>,
}

/// What became of a batch of secrets.
#[derive(Debug, Default)]
pub struct Rotated {
    /// Re-sealed by this batch.
    pub resealed: u64,
    /// Found under the current key, and opened by it.
    pub current: u64,
    /// Changed by another process between reading and writing; left to the next pass.
    pub overtaken: u64,
    /// Left as they are.
    pub unopened: Vec<UnopenedSecret>,
    /// Where the next batch begins, or none after the last.
    pub next: Option<Place>,
}

/// A secret that does not open, by its row. Displays as one line.
#[derive(Debug)]
pub struct UnopenedSecret {
    holder: Holder,
    key: String,
    key_id: String,
    why: Unopened,
}

/// Why a batch was not re-sealed.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("a secret could not be sealed: {0}")]
    Seal(Unopened),
    #[error("the database failed: {0}")]
    Database(#[from] DbErr),
    #[error("the database did not answer in time")]
    Timeout,
}

/// A row to be written: its key, what was read, what is to be.
struct Change {
    key: String,
    old: (String, Vec<u8>),
    new: (String, Vec<u8>),
}

impl Credentials {
    /// Re-seals the secrets of one batch that are not under the current key.
    ///
    /// # Errors
    /// The database failed or was too slow: nothing of this batch is re-sealed, or, if it went away at the commit, all.
    pub async fn rotate(&self, place: &Place) -> Result<Rotated, RotationError> {
        let mut attempt = 1;
        loop {
            let rotated =
                tokio::time::timeout(config::credentials::ROTATION_TIMEOUT, self.rotate_once(place)).await;
            match rotated.map_err(|_elapsed| RotationError::Timeout)? {
                Err(RotationError::Database(error))
                    if attempt < config::credentials::ROTATION_ATTEMPTS
                        && Failure::from(&error) == Failure::Conflict =>
                {
                    tokio::time::sleep(Duration::from_millis(1 << attempt)).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn rotate_once(&self, place: &Place) -> Result<Rotated, RotationError> {
        match place.holder {
            Holder::Application => {
                use application::Column::{ConsumerKey, KeyId, SealedSecret};
                self.rotate_table::<application::Entity>(place, [ConsumerKey, KeyId, SealedSecret]).await
            }
            Holder::Token => {
                use token::Column::{KeyId, SealedSecret, Token};
                self.rotate_table::<token::Entity>(place, [Token, KeyId, SealedSecret]).await
            }
        }
    }

    async fn rotate_table<E: EntityTrait>(
        &self,
        place: &Place,
        columns: [E::Column; 3],
    ) -> Result<Rotated, RotationError> {
        let [key, ..] = columns;
        let mut query = E::find()
            .select_only()
            .columns(columns)
            .order_by_asc(key)
            .limit(config::credentials::ROTATION_BATCH);
        if let Some(after) = &place.after {
            query = query.filter(key.gt(after));
        }
        let rows: Vec<(String, String, Vec<u8>)> = query.into_tuple().all(&self.store.db).await?;
        let is_full = rows.len() as u64 == config::credentials::ROTATION_BATCH;
        let last = rows.last().filter(|_| is_full).map(|(key, ..)| key.clone());
        let mut rotated = Rotated { next: place.next(last), ..Rotated::default() };
        let mut changes = Vec::new();
        for (key, key_id, sealed) in rows {
            let row = place.holder.row(&key);
            let new = match self.keys.open(&key_id, &sealed, &row) {
                Ok(_) if key_id == self.keys.current() => {
                    rotated.current += 1;
                    continue;
                }
                Ok(secret) => self.keys.seal(&secret, &row).map_err(RotationError::Seal)?,
                Err(why) => {
                    rotated.unopened.push(UnopenedSecret { holder: place.holder, key, key_id, why });
                    continue;
                }
            };
            changes.push(Change { key, old: (key_id, sealed), new });
        }
        let proposed = changes.len() as u64;
        rotated.resealed = self.write::<E>(changes, columns).await?;
        rotated.overtaken = proposed - rotated.resealed;
        Ok(rotated)
    }

    /// In one transaction, for its one commit. On SQLite it begins by writing, so it waits its turn rather than fail. Says
    /// how many rows were still as they had been read.
    async fn write<E: EntityTrait>(
        &self,
        changes: Vec<Change>,
        [key, key_id, sealed]: [E::Column; 3],
    ) -> Result<u64, DbErr> {
        if changes.is_empty() {
            return Ok(0);
        }
        let transaction = self.store.db.begin().await?;
        let mut written = 0;
        for Change { key: row, old, new } in changes {
            let update = E::update_many()
                .col_expr(key_id, Expr::value(new.0))
                .col_expr(sealed, Expr::value(new.1))
                .filter(key.eq(row))
                .filter(key_id.eq(old.0))
                .filter(sealed.eq(old.1));
            written += update.exec(&transaction).await?.rows_affected;
        }
        transaction.commit().await?;
        Ok(written)
    }
}

impl Place {
    /// After this key, or, where there are no more keys, at the next holder's first.
    fn next(&self, last: Option<String>) -> Option<Self> {
        match (last, self.holder) {
            (Some(last), holder) => Some(Self { holder, after: Some(last) }),
            (None, Holder::Application) => Some(Self { holder: Holder::Token, after: None }),
            (None, Holder::Token) => None,
        }
    }
}

impl Holder {
    /// What a secret of this row is bound to.
    fn row(self, key: &str) -> String {
        match self {
            Self::Application => app_row(key),
            Self::Token => token_row(key),
        }
    }
}

impl fmt::Display for UnopenedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holder = match self.holder {
            Holder::Application => "application",
            Holder::Token => "token",
        };
        let (key, key_id) = (self.key.escape_debug(), self.key_id.escape_debug());
        write!(f, "{holder} {key}, sealed under key {key_id}: {}", self.why)
    }
}
