//! Callers that destroy one collection after the other, and record the answers.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::{Builder, Uuid};

use collections_service::domain::Entropy;

use super::book::{Answer, Attempt, Entry, TRANSPORT};
use crate::support::{OWNER, Rpc, destroy, rpc, wait_until};

const CALLERS: i64 = 16;
/// Of so many calls the last two are for the same collection.
const SHARED_EVERY: i64 = 8;
const PAUSE_MICROS: u64 = 2000;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The service answers every call within 10 s.
const ANSWER_BOUND: Duration = Duration::from_secs(15);
/// A caller without a final answer stops retrying.
const GIVE_UP: Duration = Duration::from_secs(40);

pub struct Load {
    shared: Arc<Shared>,
    callers: Vec<JoinHandle<Vec<Entry>>>,
}

struct Shared {
    origin: watch::Receiver<String>,
    ids: RangeInclusive<i64>,
    calls: AtomicI64,
    is_stopped: AtomicBool,
    acknowledged: Mutex<Vec<Instant>>,
}

impl Load {
    /// Every second caller gives a request id with each call.
    pub fn start(origin: watch::Receiver<String>, ids: RangeInclusive<i64>) -> Self {
        let shared = Arc::new(Shared {
            origin,
            ids,
            calls: AtomicI64::new(0),
            is_stopped: AtomicBool::new(false),
            acknowledged: Mutex::default(),
        });
        let callers = (0..CALLERS).map(|caller| tokio::spawn(run_caller(caller, shared.clone()))).collect();
        Self { shared, callers }
    }

    /// Waits until so many calls were acknowledged after this moment.
    pub async fn wait_for_acknowledged(&self, count: usize, after: Instant) {
        let is_after = |at: &&Instant| **at > after;
        let are_acknowledged = async || {
            self.shared.acknowledged.lock().unwrap().iter().rev().take_while(is_after).count() >= count
        };
        wait_until(&format!("{count} calls are acknowledged"), are_acknowledged).await;
    }

    /// Stops the callers after the calls that they have begun. Returns their calls, and when calls were acknowledged.
    pub async fn stop(self) -> (Vec<Entry>, Vec<Instant>) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        let mut entries = Vec::new();
        for caller in self.callers {
            entries.extend(caller.await.unwrap());
        }
        let acknowledged = std::mem::take(&mut *self.shared.acknowledged.lock().unwrap());
        (entries, acknowledged)
    }
}

impl Shared {
    fn next_entry(&self, caller: i64) -> Entry {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let (round, place) = (call / SHARED_EVERY, call % SHARED_EVERY);
        let id = self.ids.start() + round * (SHARED_EVERY - 1) + place.min(SHARED_EVERY - 2);
        assert!(self.ids.contains(&id), "the load has used up its collections");
        let request_id = (caller % 2 == 0).then(random_uuid);
        Entry { id, request_id, attempts: Vec::new() }
    }
}

fn random_uuid() -> Uuid {
    Builder::from_random_bytes(Entropy::default().bytes()).into_uuid()
}

async fn run_caller(caller: i64, shared: Arc<Shared>) -> Vec<Entry> {
    let mut origin = shared.origin.clone();
    let mut client = rpc(&origin.borrow_and_update());
    let mut entries = Vec::new();
    while !shared.is_stopped.load(Ordering::Relaxed) {
        let mut entry = shared.next_entry(caller);
        let first = Instant::now();
        loop {
            if origin.has_changed().unwrap_or(false) {
                client = rpc(&origin.borrow_and_update());
            }
            let attempt = attempt(&mut client, &entry).await;
            if attempt.answer == Answer::Ok {
                shared.acknowledged.lock().unwrap().push(attempt.ended);
            }
            let is_final = !matches!(attempt.answer, Answer::Failed(_));
            entry.attempts.push(attempt);
            if is_final || first.elapsed() > GIVE_UP {
                break;
            }
            sleep(RETRY_PAUSE).await;
        }
        entries.push(entry);
        sleep(Duration::from_micros(super::random_below(PAUSE_MICROS))).await;
    }
    entries
}

/// Calls once for this entry.
pub async fn attempt(client: &mut Rpc, entry: &Entry) -> Attempt {
    let request_id = entry.request_id.map(|id| id.to_string()).unwrap_or_default();
    let begun = Instant::now();
    let id = format!("custom-{}", entry.id);
    let call = destroy(client, OWNER, &id, &request_id);
    let answer = match timeout(ANSWER_BOUND, call).await {
        Ok(Ok(_)) => Answer::Ok,
        Ok(Err(status)) => answer_of(&status),
        Err(_elapsed) => Answer::Failed("NO_ANSWER".to_owned()),
    };
    Attempt { begun, ended: Instant::now(), answer }
}

fn answer_of(status: &Status) -> Answer {
    let details = status.get_error_details();
    match (status.code(), details.error_info()) {
        (Code::NotFound, Some(_)) => Answer::NotFound,
        (_, Some(info)) => Answer::Failed(info.reason.clone()),
        (_, None) => Answer::Failed(TRANSPORT.to_owned()),
    }
}
