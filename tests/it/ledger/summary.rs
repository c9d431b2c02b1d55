//! The figures of a run.

use std::{collections::BTreeMap, fmt, time::Duration};

use tokio::time::Instant;

use super::book::{Answer, Differences, Entry};

/// The figures of one kind of fault.
#[derive(Debug, Default)]
pub struct Summary {
    pub kind: &'static str,
    pub faults: usize,
    pub calls: usize,
    pub acknowledged: usize,
    pub not_found: usize,
    pub failures: BTreeMap<String, usize>,
    /// Retries of acknowledged requests, after the fault.
    pub replays: usize,
    /// Destroys that were committed before the fault, and acknowledged only after it.
    pub recovered: usize,
    /// Destroys whose entries were erased by the time of the comparison.
    pub purged: usize,
    /// Imports, and purges, that were running when the fault was injected.
    pub in_flight: (usize, usize),
    pub lost: usize,
    pub wrong: usize,
    /// From the moment when the database was right again until the service was ready.
    pub ready: Vec<Duration>,
    /// Of each fault, the longest interval without an acknowledged call.
    pub gaps: Vec<Duration>,
}

impl Summary {
    pub fn count(&mut self, entries: &[Entry], acknowledged: &[Instant], differences: &Differences) {
        self.faults += 1;
        for attempt in entries.iter().flat_map(|entry| &entry.attempts) {
            self.calls += 1;
            match &attempt.answer {
                Answer::Ok => self.acknowledged += 1,
                Answer::NotFound => self.not_found += 1,
                Answer::Failed(reason) => *self.failures.entry(reason.clone()).or_default() += 1,
            }
        }
        self.lost += differences.lost.len();
        self.wrong += differences.wrong.len();
        let mut times = acknowledged.to_vec();
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        self.gaps.push(gaps.max().unwrap_or_default());
    }

    /// Prints the figures below their names.
    pub fn print(&self) {
        eprintln!(
            "{:<22} {:>6} {:>8} {:>8} {:>9} {:>7} {:>9} {:>8} {:>7} {:>6} {:>5} {:>5}  {:<15} {:<15} failures\n{self}",
            "fault",
            "faults",
            "calls",
            "ok",
            "not found",
            "replays",
            "recovered",
            "purged",
            "imports",
            "purges",
            "lost",
            "wrong",
            "ready p50/max",
            "gap p50/max"
        );
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} {:>6} {:>8} {:>8} {:>9} {:>7} {:>9} {:>8} {:>7} {:>6} {:>5} {:>5}  {:<15} {:<15} {:?}",
            self.kind,
            self.faults,
            self.calls,
            self.acknowledged,
            self.not_found,
            self.replays,
            self.recovered,
            self.purged,
            self.in_flight.0,
            self.in_flight.1,
            self.lost,
            self.wrong,
            median_and_longest(&self.ready),
            median_and_longest(&self.gaps),
            self.failures,
        )
    }
}

fn median_and_longest(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default().as_secs_f64();
    format!("{:.2}/{:.2} s", at(times.len() / 2), at(times.len().saturating_sub(1)))
}
