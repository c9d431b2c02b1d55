//! What one measurement finds out, and what many of them come to.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::time::Instant;

use crate::{
    Result, Window,
    usage::{Processes, Usage},
};

/// Latencies in nanoseconds, true to three digits.
pub type Latencies = Histogram<u64>;

pub fn latencies() -> Latencies {
    // Up to a minute: longer than any call may take.
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order")
}

/// One row kind, measured once.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Measured {
    /// Calls that ended well in a second.
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// The CPU seconds of the measured seconds.
    pub seconds: f64,
    pub cpu: Usage,
}

impl Measured {
    pub fn new(latencies: &Latencies, took: Duration, cpu: Usage) -> Self {
        let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
        let seconds = took.as_secs_f64();
        Self {
            rate: latencies.len() as f64 / seconds,
            p50_ms: ms(latencies.value_at_quantile(0.5)),
            p99_ms: ms(latencies.value_at_quantile(0.99)),
            max_ms: ms(latencies.max()),
            seconds,
            cpu,
        }
    }
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Good,
    /// Not this time, in the way that the scenario expects.
    Refused,
    /// Anything else, in words.
    Other(String),
}

/// What the callers of a closed loop share: when it counts, and what came of their calls.
pub struct Gauge {
    window: Cell<Option<(Instant, Instant)>>,
    latencies: RefCell<Latencies>,
    /// All good answers, warm-up and the last ones in flight included.
    good: Cell<u64>,
    refused: Cell<u64>,
    others: RefCell<BTreeMap<String, u64>>,
}

impl Gauge {
    /// It does not count yet.
    pub fn new() -> Self {
        Self {
            window: Cell::new(None),
            latencies: RefCell::new(latencies()),
            good: Cell::new(0),
            refused: Cell::new(0),
            others: RefCell::default(),
        }
    }

    /// Every caller is there: the warm-up begins.
    pub fn start(&self, window: Window) {
        let from = Instant::now() + window.warm_up;
        self.window.set(Some((from, from + window.measured)));
    }

    pub fn is_over(&self, now: Instant) -> bool {
        self.window.get().is_some_and(|(_, until)| now >= until)
    }

    /// Somebody has nothing left to ask for: from now on the callers would be fewer than they should be.
    pub fn end(&self, now: Instant) {
        self.window.update(|window| window.map(|(from, until)| (from, until.min(now))));
    }

    pub fn count(&self, answer: Answer, sent: Instant, now: Instant) {
        match answer {
            Answer::Good => {
                self.good.update(|good| good + 1);
                if self.window.get().is_none_or(|(from, until)| (from..until).contains(&now)) {
                    self.latencies.borrow_mut().saturating_record(nanoseconds(now - sent));
                }
            }
            Answer::Refused => self.refused.update(|refused| refused + 1),
            Answer::Other(answer) => *self.others.borrow_mut().entry(answer).or_default() += 1,
        }
    }

    /// What the window used.
    pub async fn watch(&self, processes: &Processes) -> Result<Usage> {
        let (from, until) = self.window.get().ok_or("it has not begun")?;
        tokio::time::sleep_until(from).await;
        let before = processes.usage().await?;
        tokio::time::sleep_until(until).await;
        Ok(processes.usage().await?.since(before))
    }

    /// The good answers in all, and the refused ones. Any other answer makes a measurement worthless.
    pub fn totals(&self) -> Result<(u64, u64)> {
        let others = self.others.borrow();
        if others.is_empty() {
            return Ok((self.good.get(), self.refused.get()));
        }
        Err(format!("other answers than those expected: {others:?}").into())
    }

    /// What was measured in the window, which ended early where somebody had nothing left to ask for.
    pub fn measured(&self, cpu: Usage) -> Result<Measured> {
        let (from, until) = self.window.get().ok_or("it has not begun")?;
        let latencies = self.latencies.borrow();
        if latencies.is_empty() {
            return Err("no call ended in time".into());
        }
        Ok(Measured::new(&latencies, until.saturating_duration_since(from), cpu))
    }

    /// The same where it is over with the last call.
    pub fn measured_in(&self, took: Duration, cpu: Usage) -> Measured {
        Measured::new(&self.latencies.borrow(), took, cpu)
    }
}

pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The middle one, or what lies between the two middle ones.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}
