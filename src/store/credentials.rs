//! OAuth applications and access tokens: made, listed and revoked by an operator, looked up by the gateway through a
//! small cache with a short life.

use std::{future::Future, pin::Pin, sync::Arc};

use chrono::{DateTime, Utc};
use moka::future::Cache;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::{
    KeyRing, Store,
    entities::{oauth_access_token as token, oauth_application as application},
    failure::{Failure, error_type},
};
use crate::{
    config,
    domain::{AccessToken, Application, CredentialDirectory, DirectoryError, Found, Secret, UserId},
    telemetry::DatabaseOperation,
};

/// The operator's side.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(super) store: Store,
    pub(super) keys: Arc<KeyRing>,
}

/// The gateway's side: what [`Credentials`] holds, seen through the cache.
#[derive(Debug)]
pub struct CredentialCache {
    credentials: Credentials,
    applications: Cache<String, Option<Arc<Application>>>,
    tokens: Cache<String, Option<Arc<AccessToken>>>,
}

/// A new application. The secret is shown this once.
#[derive(Debug)]
pub struct NewApplication {
    pub consumer_key: String,
    pub secret: Secret,
}

/// A new access token. The secret is shown this once.
#[derive(Debug)]
pub struct IssuedToken {
    pub token: String,
    pub secret: Secret,
}

/// An application as it may be listed.
#[derive(Clone, Debug)]
pub struct AppView {
    pub consumer_key: String,
    pub name: String,
    /// Which key sealed its secret.
    pub key_id: String,
    pub suspended: bool,
    pub created_at: DateTime<Utc>,
}

/// A token as it may be listed.
#[derive(Clone, Debug)]
pub struct TokenView {
    pub token: String,
    pub consumer_key: String,
    pub user: UserId,
    /// Which key sealed its secret.
    pub key_id: String,
    pub write: bool,
    pub revoked: bool,
}

/// Why credentials could not be made, listed or looked up.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("no application has the consumer key {0}")]
    UnknownApplication(String),
    #[error("no such token: {0}")]
    UnknownToken(String),
    #[error(
        "a stored secret does not open: the key that sealed it, {0}, is missing from the key file or another one"
    )]
    Sealed(String),
    #[error("the database failed: {0}")]
    Database(#[from] DbErr),
}

impl CredentialError {
    /// Whether the database is away, or refuses until an operator acts: the credentials themselves may be right.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let Self::Database(error) = self else { return false };
        matches!(Failure::from(error), Failure::Unavailable | Failure::Unusable)
    }

    fn is_lost_statement(&self) -> bool {
        matches!(self, Self::Database(error) if Failure::from(error) == Failure::Unprepared)
    }
}

impl Credentials {
    #[must_use]
    pub const fn new(store: Store, keys: Arc<KeyRing>) -> Self {
        Self { store, keys }
    }

    /// Makes an application with a key and a secret of its own.
    ///
    /// # Errors
    /// The database failed.
    pub async fn create_app(&self, name: &str) -> Result<NewApplication, CredentialError> {
        let entropy = self.keys.entropy();
        let (consumer_key, secret) = (entropy.hex::<12>(), Secret::from(entropy.hex::<25>()));
        self.put_app(name, &consumer_key, &secret).await?;
        Ok(NewApplication { consumer_key, secret })
    }

    /// Stores an application whose key and secret exist already, for instance one moved here from elsewhere.
    ///
    /// # Errors
    /// The key is taken, or the database failed.
    pub async fn put_app(&self, name: &str, key: &str, secret: &Secret) -> Result<(), CredentialError> {
        let (key_id, sealed_secret) =
            self.keys.seal(secret, &app_row(key)).map_err(|_| CredentialError::Sealed(key.to_owned()))?;
        let model = application::ActiveModel {
            consumer_key: Set(key.to_owned()),
            name: Set(name.to_owned()),
            key_id: Set(key_id),
            sealed_secret: Set(sealed_secret),
            suspended: Set(false),
            created_at: Set(self.store.clock.now()),
        };
        application::Entity::insert(model).exec_without_returning(&self.store.db).await?;
        Ok(())
    }

    /// Issues a token that lets an application act for a user.
    ///
    /// # Errors
    /// The application is unknown, or the database failed.
    pub async fn issue_token(
        &self,
        consumer_key: &str,
        user: UserId,
        write: bool,
    ) -> Result<IssuedToken, CredentialError> {
        let entropy = self.keys.entropy();
        let token = format!("{user}-{}", entropy.hex::<20>());
        let secret = Secret::from(entropy.hex::<22>());
        self.put_token(consumer_key, user, write, &token, &secret).await?;
        Ok(IssuedToken { token, secret })
    }

    /// Stores a token that exists already.
    ///
    /// # Errors
    /// The application is unknown, the token is taken, or the database failed.
    pub async fn put_token(
        &self,
        consumer_key: &str,
        user: UserId,
        write: bool,
        token: &str,
        secret: &Secret,
    ) -> Result<(), CredentialError> {
        if application::Entity::find_by_id(consumer_key).one(&self.store.db).await?.is_none() {
            return Err(CredentialError::UnknownApplication(consumer_key.to_owned()));
        }
        let (key_id, sealed_secret) = self
            .keys
            .seal(secret, &token_row(token))
            .map_err(|_| CredentialError::Sealed(token.to_owned()))?;
        let model = token::ActiveModel {
            token: Set(token.to_owned()),
            consumer_key: Set(consumer_key.to_owned()),
            user_id: Set(user),
            key_id: Set(key_id),
            sealed_secret: Set(sealed_secret),
            write_access: Set(write),
            created_at: Set(self.store.clock.now()),
            expires_at: Set(None),
            revoked_at: Set(None),
        };
        token::Entity::insert(model).exec_without_returning(&self.store.db).await?;
        Ok(())
    }

    /// Whether these keys are the ones that sealed what is stored, as far as the newest applications show.
    ///
    /// # Errors
    /// A secret does not open, or the database failed.
    pub async fn check(&self) -> Result<(), CredentialError> {
        let newest = application::Entity::find()
            .order_by_desc(application::Column::CreatedAt)
            .limit(config::credentials::READINESS_SAMPLE)
            .all(&self.store.db);
        for model in newest.await? {
            self.open(&model.key_id, &model.sealed_secret, &app_row(&model.consumer_key))?;
        }
        // Whether tokens can be read at all.
        let _any = token::Entity::find().one(&self.store.db).await?;
        Ok(())
    }

    /// The secret of an application that has this name, with its key: what `dev` signs its demo line with.
    ///
    /// # Errors
    /// The database failed, or the secret does not open.
    pub async fn app_named(&self, name: &str) -> Result<Option<NewApplication>, CredentialError> {
        let found = application::Entity::find()
            .filter(application::Column::Name.eq(name))
            .order_by_asc(application::Column::CreatedAt)
            .one(&self.store.db)
            .await?;
        found
            .map(|model| {
                let secret = self.open(&model.key_id, &model.sealed_secret, &app_row(&model.consumer_key))?;
                Ok(NewApplication { consumer_key: model.consumer_key, secret })
            })
            .transpose()
    }

    async fn application(&self, key: &str) -> Result<Option<Arc<Application>>, CredentialError> {
        let found = self.look_up(application::Entity::find_by_id(key).one(&self.store.db)).await?;
        let Some(model) = found else { return Ok(None) };
        let secret = self.open(&model.key_id, &model.sealed_secret, &app_row(key))?;
        Ok(Some(Arc::new(Application { secret, suspended: model.suspended })))
    }

    async fn token(&self, token: &str) -> Result<Option<Arc<AccessToken>>, CredentialError> {
        let found = self.look_up(token::Entity::find_by_id(token).one(&self.store.db)).await?;
        let Some(model) = found else { return Ok(None) };
        Ok(Some(Arc::new(AccessToken {
            revoked: is_over(&model, self.store.clock.now()),
            secret: self.open(&model.key_id, &model.sealed_secret, &token_row(token))?,
            consumer_key: model.consumer_key,
            user: model.user_id,
            write: model.write_access,
        })))
    }

    /// Runs a statement, and observes it.
    async fn look_up<T>(&self, statement: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        let timer = self.store.database.metrics.start(DatabaseOperation::Credentials);
        let found = statement.await;
        timer.finish(error_type(&found));
        found
    }

    fn open(&self, key_id: &str, sealed: &[u8], row: &str) -> Result<Secret, CredentialError> {
        self.keys.open(key_id, sealed, row).map_err(|_| CredentialError::Sealed(key_id.to_owned()))
    }
}

/// What needs no keys.
impl Store {
    /// Revokes a token for good; every replica refuses it within [`config::credentials::CACHE_LIFETIME`].
    ///
    /// # Errors
    /// The token is unknown, or the database failed.
    pub async fn revoke_token(&self, token: &str) -> Result<(), CredentialError> {
        let Some(model) = token::Entity::find_by_id(token).one(&self.db).await? else {
            return Err(CredentialError::UnknownToken(token.to_owned()));
        };
        if model.revoked_at.is_none() {
            let mut revoked: token::ActiveModel = model.into();
            revoked.revoked_at = Set(Some(self.clock.now()));
            revoked.update(&self.db).await?;
        }
        Ok(())
    }

    /// All applications and all tokens, oldest first, without secrets.
    ///
    /// # Errors
    /// The database failed.
    pub async fn credentials(&self) -> Result<(Vec<AppView>, Vec<TokenView>), CredentialError> {
        let db = &self.db;
        let apps = application::Entity::find().order_by_asc(application::Column::CreatedAt).all(db).await?;
        let tokens = token::Entity::find().order_by_asc(token::Column::CreatedAt).all(db).await?;
        let now = self.clock.now();
        let tokens = tokens.into_iter().map(|model| TokenView::of(model, now));
        Ok((apps.into_iter().map(AppView::from).collect(), tokens.collect()))
    }
}

impl CredentialCache {
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, applications: cache(), tokens: cache() }
    }

    async fn look_up(&self, consumer_key: &str, token: Option<&str>) -> Result<Found, Arc<CredentialError>> {
        let application = self
            .applications
            .try_get_with_by_ref(consumer_key, self.credentials.application(consumer_key))
            .await?;
        let token = match token {
            Some(token) => self.tokens.try_get_with_by_ref(token, self.credentials.token(token)).await?,
            None => None,
        };
        Ok(Found { application, token })
    }
}

impl CredentialDirectory for CredentialCache {
    fn find<'a>(
        &'a self,
        consumer_key: &'a str,
        token: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Found, DirectoryError>> + Send + 'a>> {
        Box::pin(async move {
            let found =
                tokio::time::timeout(config::store::STATEMENT_BOUND, self.look_up(consumer_key, token)).await;
            Err(match found {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(cause)) if cause.is_lost_statement() => {
                    let status = &self.credentials.store.status;
                    status.report_lost_statement();
                    status.report_failure();
                    DirectoryError::Unavailable(cause.to_string())
                }
                Ok(Err(cause)) if cause.is_transient() => DirectoryError::Unavailable(cause.to_string()),
                Ok(Err(cause)) => DirectoryError::Broken(cause.to_string()),
                Err(_elapsed) => {
                    DirectoryError::Unavailable("the database did not answer in time".to_owned())
                }
            })
        })
    }
}

fn cache<V: Clone + Send + Sync + 'static>() -> Cache<String, V> {
    Cache::builder()
        .max_capacity(config::credentials::CACHE_SIZE)
        .time_to_live(config::credentials::CACHE_LIFETIME)
        .build()
}

/// What the secret of an application is bound to.
pub(super) fn app_row(consumer_key: &str) -> String {
    format!("oauth_applications/{consumer_key}")
}

/// What the secret of a token is bound to.
pub(super) fn token_row(token: &str) -> String {
    format!("oauth_access_tokens/{token}")
}

impl From<application::Model> for AppView {
    fn from(model: application::Model) -> Self {
        let application::Model { consumer_key, name, key_id, suspended, created_at, .. } = model;
        Self { consumer_key, name, key_id, suspended, created_at }
    }
}

impl TokenView {
    fn of(model: token::Model, now: DateTime<Utc>) -> Self {
        let revoked = is_over(&model, now);
        let token::Model { token, consumer_key, user_id, key_id, write_access, .. } = model;
        Self { token, consumer_key, user: user_id, key_id, write: write_access, revoked }
    }
}

/// Revoked or expired.
fn is_over(model: &token::Model, now: DateTime<Utc>) -> bool {
    model.revoked_at.is_some() || model.expires_at.is_some_and(|expiry| expiry <= now)
}
