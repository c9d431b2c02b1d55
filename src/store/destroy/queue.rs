//! Destroys that wait to be sent.

use std::{
    collections::VecDeque,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{Destroy, Outcome};
use crate::{
    config::store,
    domain::{DestroyError, DestroyFailure, Destroyed},
};

/// A destroy and the caller who waits for its outcome.
#[derive(Debug)]
pub struct Pending {
    pub destroy: Destroy,
    /// Whether the request id was made by the service: a replay is then its own.
    pub has_own_request_id: bool,
    /// Whether a statement with it was sent: without an answer, its outcome is unknown.
    pub is_sent: bool,
    submitted: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// First in, first out. Everything in it is unsent.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Pending>,
    closed: bool,
}

impl Pending {
    /// The destroy, and where its outcome will be received.
    pub fn new(destroy: Destroy) -> (Self, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        let submitted = Instant::now();
        (Self { destroy, has_own_request_id: false, is_sent: false, submitted, reply }, outcome)
    }

    /// Marks it as sent. Returns how long it has waited for that, the first time.
    pub fn mark_sent(&mut self, now: Instant) -> Option<Duration> {
        let is_first = !mem::replace(&mut self.is_sent, true);
        is_first.then(|| now.saturating_duration_since(self.submitted))
    }

    /// Sends the outcome to the caller. Where the caller has disconnected, the outcome is logged.
    pub fn complete(self, outcome: Outcome) {
        let outcome = match outcome {
            Ok(Destroyed::Before) if self.has_own_request_id => Ok(Destroyed::Now),
            other => other,
        };
        let (id, user) = (self.destroy.id, self.destroy.user);
        let Err(unsent) = self.reply.send(outcome) else { return };
        const MESSAGE: &str = "destroy finished after the caller disconnected";
        match unsent {
            Err(DestroyFailure { error, cause }) if error.is_fault() => {
                tracing::error!(collection.id = %id, enduser.id = %user, outcome = ?error, error = cause.as_deref(), "{MESSAGE}");
            }
            outcome => {
                let outcome = outcome.map_err(|failed| failed.error);
                tracing::info!(collection.id = %id, enduser.id = %user, ?outcome, "{MESSAGE}");
            }
        }
    }

    /// Itself, if its caller is still connected and its deadline has not passed. Where it has, the call is completed.
    pub fn in_time(self, now: Instant) -> Option<Self> {
        if self.reply.is_closed() {
            if self.is_sent {
                let (id, user) = (self.destroy.id, self.destroy.user);
                tracing::info!(collection.id = %id, enduser.id = %user, "outcome unknown after the caller disconnected");
            }
            return None;
        }
        if now < self.destroy.deadline {
            return Some(self);
        }
        self.complete(Err(DestroyError::DeadlineExceeded.into()));
        None
    }
}

impl Queue {
    /// # Errors
    /// The queue is full, or the store is closed.
    pub fn push(&self, pending: Pending) -> Result<(), DestroyFailure> {
        let mut state = self.state();
        if state.closed {
            return Err(DestroyFailure::new(DestroyError::StoreUnavailable, "the store is closed"));
        }
        if state.pending.len() >= store::QUEUE_CAPACITY {
            return Err(DestroyError::Overloaded.into());
        }
        state.pending.push_back(pending);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits until the queue is not empty; `false` once it is closed and empty.
    pub async fn wait(&self) -> bool {
        loop {
            let (is_empty, closed) = {
                let state = self.state();
                (state.pending.is_empty(), state.closed)
            };
            if !is_empty {
                return true;
            }
            if closed {
                // A notification wakes one worker: each wakes the next.
                self.arrived.notify_one();
                return false;
            }
            self.arrived.notified().await;
        }
    }

    /// Takes the destroys that have waited longest, at most so many: all, or half where they are many.
    ///
    /// While the database works on one half, the callers of the other are answered and send their next calls. If all went
    /// together, the database would be idle while they are answered.
    pub fn take(&self, most: usize) -> Vec<Pending> {
        let mut state = self.state();
        let length = state.pending.len();
        let count = length.div_ceil(2).max(length.min(store::BATCH_WHOLE)).min(most);
        let taken = state.pending.drain(..count).collect();
        if !state.pending.is_empty() {
            // For another worker: what is left may have come with one notification.
            self.arrived.notify_one();
        }
        taken
    }

    /// Removes the destroys whose deadline has passed or whose caller has disconnected.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let is_over = |pending: &Pending| pending.reply.is_closed() || pending.destroy.deadline <= now;
        let (over, kept): (VecDeque<_>, _) = mem::take(&mut state.pending).into_iter().partition(is_over);
        state.pending = kept;
        drop(state);
        over.into_iter().for_each(|pending| drop(pending.in_time(now)));
    }

    /// How many destroys wait in it.
    pub fn depth(&self) -> usize {
        self.state().pending.len()
    }

    /// Accepts nothing more; what is queued is still served.
    pub fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_one();
    }

    /// Nothing panics while it is held, so it is never left half-changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
