//! Destroys that wait for their turn.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{Destroy, Failed, Outcome};
use crate::{config, domain::DestroyError};

/// A destroy and who waits for it.
#[derive(Debug)]
pub struct Waiting {
    pub destroy: Destroy,
    since: Instant,
    answer: oneshot::Sender<Outcome>,
}

/// First come, first served. Everything in it is unsent.
#[derive(Debug, Default)]
pub struct Queue {
    line: Mutex<Line>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    closed: bool,
}

impl Waiting {
    /// The destroy, and where its outcome will be heard.
    pub fn new(destroy: Destroy) -> (Self, oneshot::Receiver<Outcome>) {
        let (answer, answered) = oneshot::channel();
        (Self { destroy, since: Instant::now(), answer }, answered)
    }

    /// Until when it is worth waiting for its turn.
    pub fn patience(&self) -> Instant {
        self.destroy.deadline.min(self.since + config::STORE_WAIT)
    }

    /// Tells the caller. A failure that nobody waits for any more is left to the log.
    pub fn tell(self, outcome: Outcome) {
        let (id, user) = (self.destroy.id, self.destroy.user);
        let Err(unheard) = self.answer.send(outcome) else { return };
        const UNHEARD: &str = "a destroy ended that nobody waited for any more";
        match unheard {
            Err(Failed { error, cause }) if error.is_fault() => {
                tracing::error!(collection.id = %id, enduser.id = %user, outcome = ?error, error = cause.as_deref(), "{UNHEARD}");
            }
            outcome => {
                let outcome = outcome.map_err(|failed| failed.error);
                tracing::info!(collection.id = %id, enduser.id = %user, ?outcome, "{UNHEARD}");
            }
        }
    }

    /// Itself, if there is still somebody to destroy it for. Where the time is over the caller is told.
    pub fn in_time(self, now: Instant) -> Option<Self> {
        if self.answer.is_closed() {
            return None;
        }
        if now < self.destroy.deadline {
            return Some(self);
        }
        self.tell(Err(Failed::unexplained(DestroyError::DeadlineExceeded)));
        None
    }

    /// Its turn did not come.
    pub fn give_up(self) {
        if let Some(waiting) = self.in_time(Instant::now()) {
            waiting.tell(Err(Failed::unexplained(DestroyError::Overloaded)));
        }
    }
}

impl Queue {
    /// # Errors
    /// There is no room, or the store is closing.
    pub fn push(&self, waiting: Waiting) -> Result<(), Failed> {
        let mut line = self.line();
        if line.closed {
            return Err(Failed::because(DestroyError::StoreUnavailable, "the store is closed"));
        }
        if line.waiting.len() >= config::DESTROY_QUEUE {
            return Err(Failed::unexplained(DestroyError::Overloaded));
        }
        line.waiting.push_back(waiting);
        drop(line);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits until there is something to take; `false` once there never will be.
    pub async fn has_some(&self) -> bool {
        loop {
            let (is_empty, closed) = {
                let line = self.line();
                (line.waiting.is_empty(), line.closed)
            };
            if !is_empty {
                return true;
            }
            if closed {
                // One notice reaches one worker: each passes on that it is over.
                self.arrived.notify_one();
                return false;
            }
            self.arrived.notified().await;
        }
    }

    /// Those who have waited longest, at most so many of them: all, or half where they are many.
    ///
    /// While the database works on one half the other is answered and comes back. If all went together, callers who
    /// wait for their answers would move as one crowd, and the database would idle while they are answered.
    pub fn take(&self, most: usize) -> Vec<Waiting> {
        let mut line = self.line();
        let waiting = line.waiting.len();
        let count = waiting.div_ceil(2).max(waiting.min(config::BATCH_WHOLE)).min(most);
        let taken = line.waiting.drain(..count).collect();
        if !line.waiting.is_empty() {
            // For another worker: what is left may have come with one notice alone.
            self.arrived.notify_one();
        }
        taken
    }

    /// Refuses those who have waited for too long, and forgets those who went away.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut line = self.line();
        let stale = |waiting: &Waiting| waiting.answer.is_closed() || waiting.patience() <= now;
        let (over, kept) = std::mem::take(&mut line.waiting).into_iter().partition(stale);
        line.waiting = kept;
        drop(line);
        let over: VecDeque<Waiting> = over;
        over.into_iter().for_each(Waiting::give_up);
    }

    /// Nothing more is taken in; what is there is still served.
    pub fn close(&self) {
        self.line().closed = true;
        self.arrived.notify_one();
    }

    /// Nothing panics while it is held, so it is never left half-changed.
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
