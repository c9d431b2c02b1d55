//! The open loop: calls come by a schedule, whatever became of those before. A latency counts from the time at which
//! its call was due, so that waiting behind a slow one counts too.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, thread, time::Duration};

use tokio::{sync::Notify, task::JoinSet, time::Instant};

use crate::{
    Result, Window,
    closed::Call,
    grpc::{Reader, Refusal, destroy, destroy_head},
    http2::{self, Answers, Receiver, Sender},
    ids::Spread,
    measure::{Answer, Latencies, latencies, nanoseconds},
    usage::{Processes, Usage},
};

/// With as many streams on each as the service allows, far more calls can be open than it takes at one time.
const CONNECTIONS: usize = 64;
const STREAMS: usize = 100;
/// The shortest pause between two looks at the schedule: shorter, and the looking costs more than the calls. tokio's own
/// timer is no finer than a millisecond.
const TICK: Duration = Duration::from_micros(250);
/// How long the last answers may take.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// What an open loop found out.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Opened {
    /// Calls a second, as scheduled.
    pub rate: f64,
    pub goodput: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Refused calls a second, of those that were due in the window.
    pub refused: f64,
    pub refused_p99_ms: f64,
    /// The same from the time at which the call was really sent.
    pub refused_p99_from_send_ms: f64,
    /// How late calls were sent: the generator's own part in the latencies.
    pub lag_p50_ms: f64,
    pub lag_p99_ms: f64,
    pub lag_max_ms: f64,
    /// Calls a second that were due in the window and never sent: what is missing in the latencies. They count in the lag.
    pub unsent: f64,
    /// Answers that were neither good nor a refusal which says when to try again.
    pub others: BTreeMap<String, u64>,
    pub seconds: f64,
    pub cpu: Usage,
    /// The service's peak of memory before it, and after.
    pub memory_mb: [f64; 2],
}

struct Schedule {
    start: Instant,
    window: (Instant, Instant),
    rate: f64,
}

/// What came of the calls so far.
struct Tally {
    good: u64,
    /// Good answers that came in the window.
    goodput: u64,
    latencies: Latencies,
    refused: Latencies,
    refused_from_send: Latencies,
    lag: Latencies,
    unsent: u64,
    others: BTreeMap<String, u64>,
}

impl Schedule {
    fn due(&self, number: usize) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }

    fn counts(&self, time: Instant) -> bool {
        (self.window.0..self.window.1).contains(&time)
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            good: 0,
            goodput: 0,
            latencies: latencies(),
            refused: latencies(),
            refused_from_send: latencies(),
            lag: latencies(),
            unsent: 0,
            others: BTreeMap::new(),
        }
    }

    /// The window is over: this call and those after it, as far as they were due, are not sent any more.
    fn miss(&mut self, schedule: &Schedule, number: usize) {
        let dues = (number..).map(|number| schedule.due(number)).take_while(|due| *due < schedule.window.1);
        for due in dues.filter(|due| schedule.counts(*due)) {
            self.unsent += 1;
            self.lag.saturating_record(nanoseconds(schedule.window.1 - due));
        }
    }

    fn count(&mut self, schedule: &Schedule, answer: Answer, number: usize, sent: Instant, now: Instant) {
        let due = schedule.due(number);
        let counts = schedule.counts(due);
        match answer {
            Answer::Good => {
                self.good += 1;
                self.goodput += u64::from(schedule.counts(now));
                if counts {
                    self.latencies.saturating_record(nanoseconds(now - due));
                }
            }
            Answer::Refused if counts => {
                self.refused.saturating_record(nanoseconds(now - due));
                self.refused_from_send.saturating_record(nanoseconds(now - sent));
            }
            Answer::Refused => {}
            Answer::Other(answer) => *self.others.entry(answer).or_default() += 1,
        }
    }
}

/// Calls at this rate for the window; also tells how many good answers there were in all.
pub async fn measure(
    address: &str,
    rate: f64,
    spread: Spread,
    window: Window,
    processes: &Processes,
) -> Result<(Opened, u64)> {
    let mut connections = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..CONNECTIONS {
        let (sender, receiver) = http2::connect(address, Answers::Alike).await?;
        let sender = Rc::new(sender);
        connections.push(sender.clone());
        receivers.push((sender, receiver));
    }
    let start = Instant::now();
    let from = start + window.warm_up;
    let schedule = Rc::new(Schedule { start, window: (from, from + window.measured), rate });
    let tally = Rc::new(RefCell::new(Tally::new()));
    let mut tasks = JoinSet::new();
    for (sender, receiver) in receivers {
        let reading = read(sender, receiver, schedule.clone(), tally.clone());
        tasks.spawn_local(async move { reading.await.map_err(|error| error.to_string()) });
    }
    let watched = async {
        tokio::time::sleep_until(schedule.window.0).await;
        let before = processes.usage().await?;
        tokio::time::sleep_until(schedule.window.1).await;
        Result::Ok(processes.usage().await?.since(before))
    };
    let load = async {
        pace(address, &connections, &schedule, &tally, spread).await?;
        finish(&connections).await
    };
    let cpu = tokio::select! {
        done = async { tokio::try_join!(watched, load) } => done?.0,
        Some(ended) = tasks.join_next() => return Err(format!("a connection ended: {ended:?}").into()),
    };
    let tally = tally.borrow();
    Ok((tally.opened(rate, window.measured, cpu), tally.good))
}

/// Sends each call when it is due, or as soon after as some connection has a stream left.
async fn pace(
    address: &str,
    connections: &[Rc<RefCell<Sender>>],
    schedule: &Schedule,
    tally: &RefCell<Tally>,
    spread: Spread,
) -> Result<()> {
    let ticks = ticks(TICK.max(Duration::from_secs_f64(1.0 / schedule.rate)));
    let mut rows = spread.all();
    let (head, mut call, mut number) = (destroy_head(address), Call::default(), 0);
    loop {
        ticks.notified().await;
        let now = Instant::now();
        if now >= schedule.window.1 {
            tally.borrow_mut().miss(schedule, number);
            return Ok(());
        }
        while schedule.due(number) <= now {
            // As a client's pool does it: another connection when the ones before it are full.
            let free = connections.iter().find(|connection| connection.borrow().in_flight() < STREAMS);
            let Some(free) = free else { break };
            call.more.clear();
            call.body.clear();
            let caller = number % rows.len();
            destroy(rows[caller].next().ok_or("there are no ids left")?, &mut call);
            free.borrow_mut().call(number, now, &head, &call.more, &call.body)?;
            let due = schedule.due(number);
            if schedule.counts(due) {
                tally.borrow_mut().lag.saturating_record(nanoseconds(now - due));
            }
            number += 1;
        }
        for connection in connections {
            connection.borrow_mut().flush()?;
        }
    }
}

/// A tick now and then, from a thread of its own for as long as somebody listens.
fn ticks(pause: Duration) -> Arc<Notify> {
    let ticks = Arc::new(Notify::new());
    let heard = Arc::downgrade(&ticks);
    thread::spawn(move || {
        while let Some(ticks) = heard.upgrade() {
            ticks.notify_one();
            drop(ticks);
            thread::sleep(pause);
        }
    });
    ticks
}

/// Waits for the last answers.
async fn finish(connections: &[Rc<RefCell<Sender>>]) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while connections.iter().any(|connection| connection.borrow().in_flight() > 0) {
        if Instant::now() > deadline {
            return Err("some calls were never answered".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn read(
    sender: Rc<RefCell<Sender>>,
    mut receiver: Receiver,
    schedule: Rc<Schedule>,
    tally: Rc<RefCell<Tally>>,
) -> Result<()> {
    let (mut reader, mut finished) = (Reader::expecting(Refusal::Unavailable), Vec::new());
    loop {
        receiver.receive(&sender, &mut finished).await?;
        let now = Instant::now();
        let mut tally = tally.borrow_mut();
        for answer in finished.drain(..) {
            tally.count(&schedule, reader.read(&answer), answer.caller, answer.sent, now);
        }
    }
}

impl Tally {
    fn opened(&self, rate: f64, window: Duration, cpu: Usage) -> Opened {
        let seconds = window.as_secs_f64();
        // Of none at all there is no latency, and no target that it could meet.
        let at = |latencies: &Latencies, quantile| {
            if latencies.is_empty() { f64::NAN } else { latencies.value_at_quantile(quantile) as f64 / 1e6 }
        };
        Opened {
            rate,
            goodput: self.goodput as f64 / seconds,
            p50_ms: at(&self.latencies, 0.5),
            p99_ms: at(&self.latencies, 0.99),
            refused: self.refused.len() as f64 / seconds,
            refused_p99_ms: at(&self.refused, 0.99),
            refused_p99_from_send_ms: at(&self.refused_from_send, 0.99),
            lag_p50_ms: at(&self.lag, 0.5),
            lag_p99_ms: at(&self.lag, 0.99),
            lag_max_ms: at(&self.lag, 1.0),
            unsent: self.unsent as f64 / seconds,
            others: self.others.clone(),
            seconds,
            cpu,
            memory_mb: [0.0; 2],
        }
    }
}
