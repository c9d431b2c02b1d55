//! Callers that arrive together share a statement: while one batch is in flight the others wait, and those who wait when it
//! returns are the next. There is no timer to wait for company, so a lone call goes at once.

use std::{
    fmt,
    future::poll_fn,
    mem,
    panic::{self, AssertUnwindSafe},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use sea_orm::{DatabaseConnection, DbErr};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Destroy, Failed, Outcome, Sight,
    lane::{Kind, Lane},
    queue::{Queue, Waiting},
};
use crate::{
    config,
    domain::{Clock, DestroyError},
    store::{Capacity, failure::Failure},
};

/// The one way to destroy. Closed or dropped, it finishes what it has taken in.
pub struct Batcher {
    queue: Arc<Queue>,
    /// Where nobody has begun with it yet.
    work: Mutex<Vec<Work>>,
}

/// What a worker does until the queue is closed and empty.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes turns at the queue with a connection of its own.
struct Worker {
    queue: Arc<Queue>,
    lane: Lane,
    most: usize,
    alone: Alone,
}

/// Where a destroy goes that its batch could not decide, or that may have failed all others: to a statement of its own,
/// beside the batches, as if there were none.
#[derive(Clone)]
struct Alone {
    db: DatabaseConnection,
    clock: Clock,
    /// However many are stuck here, batches, health and credentials have their connections.
    gate: Arc<Semaphore>,
}

/// Why a batch ended without telling everyone.
#[derive(Debug, thiserror::Error)]
enum Undecided {
    #[error(transparent)]
    Failed(DbErr),
    #[error("the destroys kept colliding with others")]
    Colliding,
}

impl Batcher {
    pub fn new(db: &DatabaseConnection, capacity: Capacity, clock: &Clock) -> Self {
        let queue = Arc::new(Queue::default());
        if capacity.batches_in_flight == 0 {
            queue.close();
        }
        let gate = Arc::new(Semaphore::new(capacity.alone()));
        let alone = Alone { db: db.clone(), clock: clock.clone(), gate };
        let work = |_| -> Work {
            let (queue, alone) = (queue.clone(), alone.clone());
            Box::pin(async move {
                // A worker that dies takes its batch with it, and must not take the service too.
                while let Err(error) = survived(Worker::new(&queue, &alone, capacity.batch_max).work()).await
                {
                    tracing::error!(error, "a batch died");
                    sleep(config::WORKER_PAUSE).await;
                }
            })
        };
        let work = (0..capacity.batches_in_flight).map(work).collect();
        Self { queue, work: Mutex::new(work) }
    }

    /// Runs `main` and, in the same task, the batches.
    ///
    /// A runtime of one thread looks at the task that it blocks on before all others. In line with them, a batch of a crowd
    /// would wait until all calls that came meanwhile have been looked at, and the database for the batch.
    pub async fn beside<T>(&self, main: impl Future<Output = T>) -> T {
        if Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread {
            // Here that task has a thread of its own, to which everything would have to be handed over.
            let ended = main.await;
            self.close();
            return ended;
        }
        let (mut main, mut work) = (pin!(main), self.take_work());
        let mut go_on = |context: &mut Context<'_>| {
            work.retain_mut(|work| work.as_mut().poll(context).is_pending());
            work.is_empty()
        };
        let ended = poll_fn(|context| {
            go_on(context);
            main.as_mut().poll(context)
        })
        .await;
        self.close();
        // Connections say good-bye to the database.
        let rest = poll_fn(|context| if go_on(context) { Poll::Ready(()) } else { Poll::Pending });
        let _in_time = timeout(config::FAREWELL, rest).await;
        ended
    }

    fn take_work(&self) -> Vec<Work> {
        mem::take(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns once the outcome is durable.
    pub async fn destroy(&self, destroy: Destroy) -> Outcome {
        for work in self.take_work() {
            tokio::spawn(work);
        }
        let (waiting, answered) = Waiting::new(destroy);
        self.queue.push(waiting)?;
        let died = |_| Failed::because(DestroyError::Internal, "the destroy's batch died");
        answered.await.map_err(died)?
    }

    /// Takes in nothing more.
    pub fn close(&self) {
        self.queue.close();
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.close();
    }
}

impl Worker {
    fn new(queue: &Arc<Queue>, alone: &Alone, most: u32) -> Self {
        let lane = Lane::new(&alone.db, Kind::Own);
        Self { queue: queue.clone(), lane, most: most as usize, alone: alone.clone() }
    }

    async fn work(mut self) {
        let queue = self.queue.clone();
        while queue.has_some().await {
            let mut turn = pin!(self.take_turn());
            while timeout(config::QUEUE_SWEEP, turn.as_mut()).await.is_err() {
                queue.sweep();
            }
        }
        self.lane.close().await;
    }

    /// One batch: those who wait once there is a connection to send them over. Where the database refuses it as a whole,
    /// one row may be to blame: each half is tried, and each half of that which is refused again.
    async fn take_turn(&mut self) {
        let (queue, most) = (self.queue.clone(), self.most);
        let mut left: Vec<_> =
            self.lane.destroy(&self.alone.clock, || queue.take(most)).await.into_iter().collect();
        while let Some((error, mut batch)) = left.pop() {
            if batch.len() > 1 {
                tracing::warn!(%error, destroys = batch.len(), "a batch failed, so its destroys are tried apart");
            }
            if batch.len() == 1 || !error.is_refusal() {
                // To wait for a lock, or for others, beside the next batches.
                for waiting in batch {
                    tokio::spawn(self.alone.clone().destroy(waiting));
                }
                continue;
            }
            let half = batch.split_off(batch.len() / 2);
            for part in [batch, half] {
                left.extend(self.lane.destroy(&self.alone.clock, || part).await);
            }
        }
    }
}

impl Alone {
    async fn destroy(self, waiting: Waiting) {
        let patience = waiting.destroy.deadline.min(Instant::now() + config::STORE_WAIT);
        let Ok(Ok(_permit)) = timeout_at(patience, self.gate.acquire()).await else {
            return waiting.give_up();
        };
        let mut lane = Lane::new(&self.db, Kind::Pooled);
        if let Some((error, left)) = lane.destroy(&self.clock, || vec![waiting]).await {
            let failure = error.means();
            left.into_iter().for_each(|waiting| waiting.tell(Err(Failed::because(failure, &error))));
        }
    }
}

/// An error, with the panic's message, where the work ended in one.
async fn survived<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    poll_fn(|context| {
        // It is not polled again.
        match panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
                Poll::Ready(Err(message.unwrap_or_else(|| "a panic".to_owned())))
            }
        }
    })
    .await
}

/// Tells everyone what was seen; gives back those for whom it has to be looked again.
fn tell(batch: Vec<Waiting>, sights: Vec<Sight>) -> Vec<Waiting> {
    let told = batch.into_iter().zip(sights).filter_map(|(waiting, sight)| match sight.outcome() {
        Some(outcome) => {
            waiting.tell(outcome);
            None
        }
        None => Some(waiting),
    });
    told.collect()
}

impl Undecided {
    /// Whether the database would not have the statement, however often it is asked.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Failed(error) if Failure::from(error) == Failure::Fault)
    }

    /// For a caller whose destroy was alone.
    fn means(&self) -> DestroyError {
        match self {
            _ if self.is_refusal() => DestroyError::Internal,
            Self::Failed(_) | Self::Colliding => DestroyError::StoreUnavailable,
        }
    }
}

impl Lane {
    /// Runs the statement for a batch until everyone is told, a bounded number of times; or gives back those it cannot
    /// decide together. `take` is asked for them when there is a connection: until then nothing is sent.
    async fn destroy(
        &mut self,
        clock: &Clock,
        take: impl FnOnce() -> Vec<Waiting>,
    ) -> Option<(Undecided, Vec<Waiting>)> {
        let mut take = Some(take);
        let mut batch = Vec::new();
        for attempt in 1..=config::DESTROY_ATTEMPTS {
            let ready = timeout(config::STORE_BOUND, self.ready()).await;
            if let Some(take) = take.take() {
                batch = take();
                // Everyone takes rows in this order, so that no two batches wait for each other.
                batch.sort_by_key(|waiting| waiting.destroy.id);
            }
            let now = Instant::now();
            batch = batch.into_iter().filter_map(|waiting| waiting.in_time(now)).collect();
            if batch.is_empty() {
                return None;
            }
            let sights = match ready {
                Ok(Ok(ready)) => {
                    let destroys = batch.iter().map(|waiting| &waiting.destroy).collect::<Vec<_>>();
                    timeout(config::STORE_BOUND, ready.destroy(&destroys, clock.now())).await
                }
                Ok(Err(error)) => Ok(Err(error)),
                Err(elapsed) => Err(elapsed),
            };
            match sights {
                Ok(Ok(sights)) => batch = tell(batch, sights),
                Ok(Err(error)) => match Failure::from(&error) {
                    Failure::Conflict => sleep(Duration::from_millis(1 << attempt)).await,
                    Failure::Locked | Failure::Fault => return Some((Undecided::Failed(error), batch)),
                    Failure::Unavailable => return self.fail(batch, DestroyError::StoreUnavailable, error),
                    Failure::Misread => return self.fail(batch, DestroyError::Internal, error),
                },
                Err(_elapsed) => {
                    let cause = "the database did not answer in time";
                    return self.fail(batch, DestroyError::StoreUnavailable, cause);
                }
            }
            if batch.is_empty() {
                return None;
            }
        }
        Some((Undecided::Colliding, batch))
    }

    /// Whether the statement took effect may not be known, so nothing is run again, and nothing more sent over this
    /// connection.
    fn fail(
        &mut self,
        batch: Vec<Waiting>,
        error: DestroyError,
        cause: impl fmt::Display,
    ) -> Option<(Undecided, Vec<Waiting>)> {
        self.cut();
        let failed = Failed::because(error, cause);
        batch.into_iter().for_each(|waiting| waiting.tell(Err(failed.clone())));
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::survived;

    #[tokio::test]
    #[expect(clippy::panic, reason = "this is about a panic")]
    async fn a_panic_is_survived() {
        assert_eq!(survived(ready(1)).await, Ok(1));
        assert_eq!(survived::<()>(async { panic!("of a test") }).await, Err("of a test".to_owned()));
    }
}
