//! Destroys whose row another transaction has locked. Each id waits apart from the batches, and one of its callers at a
//! time asks the database.

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Failed,
    connection::{BatchConnection, Kind},
    executor::{Executor, Shared},
    queue::Pending,
};
use crate::{
    config::store,
    domain::{CollectionId, DestroyError},
    store::connect::Database,
};

/// Runs destroys on their own, over connections of the pool. Cheap to clone.
#[derive(Clone)]
pub struct SingleExecutor(Arc<State>);

struct State {
    database: Database,
    shared: Arc<Shared>,
    /// However many rows are locked, health and credentials have a connection left.
    connections: Semaphore,
    locked: Mutex<HashMap<CollectionId, VecDeque<Pending>>>,
}

impl SingleExecutor {
    pub fn new(database: &Database, connections: usize, shared: &Arc<Shared>) -> Self {
        Self(Arc::new(State {
            database: database.clone(),
            shared: shared.clone(),
            connections: Semaphore::new(connections),
            locked: Mutex::default(),
        }))
    }

    /// Queues the destroys whose row is known to be locked, and returns the others.
    pub fn divert(&self, batch: Vec<Pending>) -> Vec<Pending> {
        let mut locked = self.locked();
        if locked.is_empty() {
            return batch;
        }
        let mut waiting = locked.values().map(VecDeque::len).sum();
        let others = batch.into_iter().filter_map(|pending| match locked.get_mut(&pending.destroy.id) {
            Some(queue) => {
                push(queue, pending, &mut waiting);
                None
            }
            None => Some(pending),
        });
        others.collect()
    }

    /// Queues a destroy that met a locked row.
    pub fn park(&self, pending: Pending) {
        let id = pending.destroy.id;
        let mut locked = self.locked();
        let mut waiting = locked.values().map(VecDeque::len).sum();
        let is_known = locked.contains_key(&id);
        push(locked.entry(id).or_default(), pending, &mut waiting);
        drop(locked);
        if !is_known {
            let executor = self.clone();
            tokio::spawn(async move {
                // Whatever happens, the id does not count as locked for ever.
                if AssertUnwindSafe(executor.serve(id)).catch_unwind().await.is_err() {
                    tracing::error!(collection.id = %id, "a destroy on its own panicked");
                }
                executor.locked().remove(&id);
            });
        }
    }

    /// Runs the destroys of one id, one after the other, until none has come for a moment.
    async fn serve(&self, id: CollectionId) {
        loop {
            let mut is_locked = false;
            while let Some(pending) = self.next(id) {
                let permit = timeout_at(pending.destroy.deadline, self.0.connections.acquire()).await;
                let Ok(Ok(_permit)) = permit else {
                    drop(pending.in_time(Instant::now()));
                    continue;
                };
                let connection = BatchConnection::new(&self.0.database, Kind::Pooled);
                let mut executor = Executor { connection, shared: self.0.shared.clone() };
                let locked = executor.run(store::SINGLE_LOCK_TIMEOUT, || vec![pending]).await;
                is_locked = !locked.is_empty();
                if let Some(queue) = self.locked().get_mut(&id) {
                    locked.into_iter().for_each(|pending| queue.push_front(pending));
                }
            }
            if is_locked {
                // Its caller has given up, and the lock may still be there.
                sleep(store::LOCKED_MEMORY).await;
            }
            let mut locked = self.locked();
            if locked.get(&id).is_none_or(VecDeque::is_empty) {
                locked.remove(&id);
                return;
            }
        }
    }

    /// The next destroy of this id that is in time.
    fn next(&self, id: CollectionId) -> Option<Pending> {
        let now = Instant::now();
        let mut locked = self.locked();
        let queue = locked.get_mut(&id)?;
        let in_time = std::mem::take(queue).into_iter().filter_map(|pending| pending.in_time(now));
        *queue = in_time.collect();
        queue.pop_front()
    }

    /// Nothing panics while it is held, so it is never left half-changed.
    fn locked(&self) -> MutexGuard<'_, HashMap<CollectionId, VecDeque<Pending>>> {
        self.0.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(queue: &mut VecDeque<Pending>, pending: Pending, waiting: &mut usize) {
    if *waiting >= store::LOCKED_CAPACITY {
        let cause = "too many destroys wait for locked rows";
        return pending.complete(Err(Failed::because(DestroyError::Overloaded, cause)));
    }
    *waiting += 1;
    queue.push_back(pending);
}
