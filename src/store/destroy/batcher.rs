//! Callers that arrive together share a statement: while one batch is in flight the others wait, and those who wait when it
//! returns are the next. There is no timer to wait for company, so a lone call is sent at once.

use std::{
    any::Any,
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Poll,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    Destroy, Outcome,
    connection::{BatchConnection, Kind},
    executor::{Executor, Shared},
    placement::Placement,
    queue::{Pending, Queue},
    single::SingleExecutor,
};
use crate::{
    config::store,
    domain::{DestroyError, DestroyFailure},
    store::{Capacity, connect::Database},
};

/// Where destroys are handed in.
pub struct Batcher {
    groups: Mutex<Groups>,
}

/// A queue for each group of the placement.
struct Groups {
    placement: Arc<Placement>,
    queues: Vec<Arc<Queue>>,
    /// Where the driver gets new queues. `None` once the store is closed.
    added: Option<mpsc::UnboundedSender<Arc<Queue>>>,
}

/// Runs the batches of a store. [`crate::store::Store::connect`] returns it with the store; the composition root runs it.
#[must_use = "without it nothing is destroyed"]
pub struct BatchDriver {
    batcher: Weak<Batcher>,
    queues: mpsc::UnboundedReceiver<Arc<Queue>>,
    workers: WorkerSettings,
}

#[derive(Clone)]
struct WorkerSettings {
    database: Database,
    capacity: Capacity,
    shared: Arc<Shared>,
    singles: SingleExecutor,
}

impl Batcher {
    pub fn new(database: &Database, capacity: Capacity, shared: &Arc<Shared>) -> (Arc<Self>, BatchDriver) {
        let (added, queues) = mpsc::unbounded_channel();
        let groups = Groups { placement: Arc::default(), queues: Vec::new(), added: Some(added) };
        let batcher = Arc::new(Self { groups: Mutex::new(groups) });
        batcher.regroup(Placement::default());
        if capacity.batches_in_flight == 0 {
            batcher.close();
        }
        let singles = SingleExecutor::new(database, capacity.locked_rows(), shared);
        let workers =
            WorkerSettings { database: database.clone(), capacity, shared: shared.clone(), singles };
        let driver = BatchDriver { batcher: Arc::downgrade(&batcher), queues, workers };
        (batcher, driver)
    }

    /// Returns once the outcome is durable.
    pub async fn destroy(&self, destroy: Destroy) -> Outcome {
        let (pending, outcome) = Pending::new(destroy);
        let queue = {
            let groups = self.groups();
            let group = groups.placement.group_of(pending.destroy.id);
            groups.queues.get(group).or_else(|| groups.queues.first()).cloned()
        };
        let queue =
            queue.ok_or_else(|| DestroyFailure::new(DestroyError::Internal, "the store has no queue"))?;
        queue.push(pending)?;
        let dropped = |_| DestroyFailure::new(DestroyError::Internal, "the destroy's batch panicked");
        outcome.await.map_err(dropped)?
    }

    /// From now on destroys are grouped like this. What is queued already stays where it is.
    pub fn regroup(&self, placement: Placement) {
        let mut groups = self.groups();
        let Some(added) = groups.added.clone() else { return };
        while groups.queues.len() < placement.groups() {
            let queue = Arc::new(Queue::default());
            groups.queues.push(queue.clone());
            // Without a driver the store is closed soon.
            let _sent = added.send(queue);
        }
        groups.placement = Arc::new(placement);
    }

    /// How many destroys wait in all queues.
    pub fn queue_depth(&self) -> usize {
        self.groups().queues.iter().map(|queue| queue.depth()).sum()
    }

    pub fn placement(&self) -> Arc<Placement> {
        self.groups().placement.clone()
    }

    /// Accepts nothing more; what is queued is still served.
    pub fn close(&self) {
        let mut groups = self.groups();
        groups.added = None;
        groups.queues.iter().for_each(|queue| queue.close());
    }

    /// Nothing panics while it is held, so it is never left half-changed.
    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.close();
    }
}

impl BatchDriver {
    /// Runs the batches until the store is closed and its queues are empty.
    ///
    /// All workers are polled whenever one is woken: there are few, and `FuturesUnordered` would wake this task once more after
    /// each poll, which costs a lone call a turn of the runtime.
    pub async fn run(mut self) {
        let mut workers: Vec<BoxFuture<'static, ()>> = Vec::new();
        let mut is_closed = false;
        poll_fn(|context| {
            while !is_closed && let Poll::Ready(added) = self.queues.poll_recv(context) {
                let Some(queue) = added else {
                    is_closed = true;
                    break;
                };
                let more = (0..self.workers.capacity.batches_in_flight)
                    .map(|_| serve(queue.clone(), self.workers.clone()).boxed());
                workers.extend(more);
            }
            workers.retain_mut(|worker| worker.as_mut().poll(context).is_pending());
            if is_closed && workers.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Runs the batches in the same task as `main`, ahead of it, until `main` has ended; then closes the store.
    ///
    /// A runtime of one thread polls the task that it blocks on before all others. Among the others, a batch would wait until
    /// every call that has arrived meanwhile is polled, and the database would wait for the batch.
    pub async fn run_until<T>(self, main: impl Future<Output = T>) -> T {
        let batcher = self.batcher.clone();
        let main = async {
            let ended = main.await;
            if let Some(batcher) = batcher.upgrade() {
                batcher.close();
            }
            ended
        };
        let (mut batches, mut main) = (pin!(self.run()), pin!(main));
        tokio::select! {
            biased;
            () = batches.as_mut() => main.await,
            ended = main.as_mut() => {
                // The connections close.
                let _in_time = timeout(store::CLOSE_TIMEOUT, batches).await;
                ended
            }
        }
    }
}

/// Serves a queue until it is closed and empty. A panic takes one batch with it, and not the service.
async fn serve(queue: Arc<Queue>, settings: WorkerSettings) {
    while let Err(panic) = AssertUnwindSafe(take_turns(&queue, &settings)).catch_unwind().await {
        tracing::error!(error = message(&*panic), "a batch panicked");
        sleep(store::RESTART_PAUSE).await;
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Sends one batch after the other.
async fn take_turns(queue: &Queue, settings: &WorkerSettings) {
    let connection = BatchConnection::new(&settings.database, Kind::Dedicated);
    let mut executor = Executor { connection, shared: settings.shared.clone() };
    let most = settings.capacity.batch_max as usize;
    while queue.wait().await {
        let take = || settings.singles.divert(queue.take(most));
        let begun = Instant::now();
        let mut batch = pin!(executor.run(store::BATCH_LOCK_TIMEOUT, take));
        let locked = loop {
            match timeout(store::QUEUE_SWEEP, batch.as_mut()).await {
                Ok(locked) => break locked,
                Err(_elapsed) => queue.sweep(),
            }
            if begun.elapsed() > store::SLOW_BATCH {
                settings.shared.status.report_failure();
            }
        };
        locked.into_iter().for_each(|pending| settings.singles.park(pending));
    }
    executor.connection.close().await;
}
