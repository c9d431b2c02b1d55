//! A row that another transaction keeps locked, while its owner asks for it ten times a second.

use std::time::Duration;

use collections_service::proto::{DestroyRequest, collections_service_client::CollectionsServiceClient};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use sea_orm::DatabaseTransaction;
use tokio::task::JoinHandle;
use tonic::{Request, body::Body};

use crate::{Result, data::Data};

/// Between two calls for the row.
const INTERVAL: Duration = Duration::from_millis(100);

pub struct LockedRow {
    id: i64,
    lock: DatabaseTransaction,
    callers: JoinHandle<()>,
}

impl LockedRow {
    /// Locks a row of its own and begins to ask for it.
    pub async fn new(address: &str, data: &Data) -> Result<Self> {
        let (id, owner, lock) = data.lock_row().await?;
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
        let client = CollectionsServiceClient::with_origin(http, format!("http://{address}").parse()?);
        let callers = tokio::task::spawn_local(async move {
            loop {
                let mut request =
                    Request::new(DestroyRequest { id: format!("custom-{id}"), request_id: String::new() });
                request.metadata_mut().insert("x-user-id", owner.into());
                let mut client = client.clone();
                tokio::task::spawn_local(async move { client.destroy(request).await.map(|_destroyed| ()) });
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Ok(Self { id, lock, callers })
    }

    /// Deletes the row. The calls that still wait for it are told that there is none.
    pub async fn remove(self, data: &Data) -> Result<()> {
        self.callers.abort();
        data.delete_locked(self.id, self.lock).await
    }
}
