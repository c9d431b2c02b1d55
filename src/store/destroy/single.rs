//! Destroys whose row another transaction has locked. Each id waits apart from the batches, and one of its callers at a
//! time asks the database.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use super::{
    connection::{BatchConnection, Kind},
    executor::{Executor, Shared},
    queue::Pending,
};
use crate::{
    config::store,
    domain::{CollectionId, DestroyError, DestroyFailure},
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
                    executor.locked().remove(&id);
                }
            });
        }
    }

    /// Runs the destroys of one id until none has come for a moment: one at a time while its row is locked, and the others
    /// together once it is not.
    async fn serve(&self, id: CollectionId) {
        let (mut is_locked, mut has_slept) = (true, false);
        loop {
            let pending = self.take(id, if is_locked { 1 } else { store::LOCKED_CAPACITY });
            if let Some(deadline) = pending.iter().map(|pending| pending.destroy.deadline).min() {
                let locked = match timeout_at(deadline, self.0.connections.acquire()).await {
                    Ok(Ok(_permit)) => self.run(pending).await,
                    // The first deadline has passed; the next turn completes that destroy.
                    _ => pending,
                };
                (is_locked, has_slept) = (!locked.is_empty(), false);
                if let Some(queue) = self.locked().get_mut(&id) {
                    locked.into_iter().rev().for_each(|pending| queue.push_front(pending));
                }
            } else if is_locked && !has_slept {
                // Its callers have given up, and the lock may still be there.
                has_slept = true;
                sleep(store::LOCKED_MEMORY).await;
            } else {
                let mut locked = self.locked();
                if locked.get(&id).is_none_or(VecDeque::is_empty) {
                    locked.remove(&id);
                    return;
                }
            }
        }
    }

    async fn run(&self, pending: Vec<Pending>) -> Vec<Pending> {
        let connection = BatchConnection::new(&self.0.database, Kind::Pooled);
        let mut executor = Executor { connection, shared: self.0.shared.clone() };
        executor.run(store::SINGLE_LOCK_TIMEOUT, || pending).await
    }

    /// Up to so many destroys of this id, of those that are in time.
    fn take(&self, id: CollectionId, most: usize) -> Vec<Pending> {
        let now = Instant::now();
        let mut locked = self.locked();
        let Some(queue) = locked.get_mut(&id) else { return Vec::new() };
        let in_time = mem::take(queue).into_iter().filter_map(|pending| pending.in_time(now));
        *queue = in_time.collect();
        queue.drain(..most.min(queue.len())).collect()
    }

    /// Nothing panics while it is held, so it is never left half-changed.
    fn locked(&self) -> MutexGuard<'_, HashMap<CollectionId, VecDeque<Pending>>> {
        self.0.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(queue: &mut VecDeque<Pending>, pending: Pending, waiting: &mut usize) {
    if *waiting >= store::LOCKED_CAPACITY {
        let cause = "too many destroys wait for locked rows";
        return pending.complete(Err(DestroyFailure::new(DestroyError::Overloaded, cause)));
    }
    *waiting += 1;
    queue.push_back(pending);
}
