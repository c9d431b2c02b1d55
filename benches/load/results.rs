//! Everything that was measured, and what the rounds come to.

use std::collections::BTreeMap;

use crate::{
    Kind,
    contest::Contested,
    measure::{Measured, median},
    open::Opened,
    testbed::Environment,
};

#[derive(Debug, serde::Serialize)]
pub struct Results {
    pub environment: Environment,
    pub rounds: u16,
    pub seconds: f64,
    /// By kind and callers: the rounds in their order.
    pub closed: BTreeMap<Kind, BTreeMap<usize, Vec<Measured>>>,
    pub two_processes: Vec<Contested>,
    /// By what the rate was.
    pub open: BTreeMap<Kind, Vec<Opened>>,
}

/// Medians over the rounds. CPU times are microseconds a call, `wal_bytes` is bytes a call.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Medians {
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub generator_us: f64,
    pub service_us: f64,
    pub database_us: f64,
    pub wal_bytes: f64,
}

/// One cell of the table: a kind, and how many callers it has.
pub type Cell = (Kind, usize);

impl Results {
    pub fn new(environment: Environment, rounds: u16, seconds: f64) -> Self {
        let (closed, two_processes, open) = Default::default();
        Self { environment, rounds, seconds, closed, two_processes, open }
    }

    pub fn add(&mut self, (kind, callers): Cell, measured: Measured) {
        self.closed.entry(kind).or_default().entry(callers).or_default().push(measured);
    }

    pub fn rounds_of(&self, (kind, callers): Cell) -> &[Measured] {
        self.closed.get(&kind).and_then(|cells| cells.get(&callers)).map_or(&[], Vec::as_slice)
    }

    pub fn median(&self, cell: Cell, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let rounds = self.rounds_of(cell);
        (!rounds.is_empty()).then(|| median(rounds.iter().map(of)))
    }

    pub fn medians(&self, cell: Cell) -> Option<Medians> {
        let a_call = |used: fn(&Measured) -> f64| {
            self.median(cell, |round| used(round) / (round.rate * round.seconds))
        };
        Some(Medians {
            rate: self.median(cell, |round| round.rate)?,
            p50_ms: self.median(cell, |round| round.p50_ms)?,
            p99_ms: self.median(cell, |round| round.p99_ms)?,
            generator_us: a_call(|round| round.cpu.generator * 1e6)?,
            service_us: a_call(|round| round.cpu.service * 1e6)?,
            database_us: a_call(|round| round.cpu.database * 1e6)?,
            wal_bytes: a_call(|round| round.cpu.wal_bytes)?,
        })
    }

    /// One cell's figure over another's, round by round, and then the median: what slows the machine down for a while
    /// slows down both.
    pub fn ratio(&self, one: Cell, other: Cell, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let pairs = self.rounds_of(one).iter().zip(self.rounds_of(other));
        let ratios: Vec<f64> = pairs.map(|(one, other)| of(one) / of(other)).collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// The part of the machine's CPU time that was neither the benchmark's nor idle, where it was most.
    pub fn others(&self) -> f64 {
        let closed =
            self.closed.values().flat_map(BTreeMap::values).flatten().map(|round| (round.cpu, round.seconds));
        let open = self.open.values().flatten().map(|round| (round.cpu, round.seconds));
        let parts =
            closed.chain(open).map(|(cpu, seconds)| cpu.others / seconds / self.environment.cores as f64);
        parts.fold(0.0, f64::max)
    }

    /// How many callers were tried.
    pub fn callers(&self) -> Vec<usize> {
        let mut callers: Vec<usize> = self.closed.values().flat_map(BTreeMap::keys).copied().collect();
        callers.sort_unstable();
        callers.dedup();
        callers
    }

    /// The most destroys a second over gRPC on PostgreSQL, whatever the number of callers.
    pub fn maximum(&self) -> Option<f64> {
        let rates = self
            .callers()
            .into_iter()
            .filter_map(|callers| self.median((Kind::GrpcPostgres, callers), |round| round.rate));
        rates.max_by(f64::total_cmp)
    }

    /// The median of an open loop's rounds.
    pub fn opened(&self, kind: Kind, of: impl Fn(&Opened) -> f64) -> Option<f64> {
        self.open.get(&kind).map(|rounds| median(rounds.iter().map(of)))
    }

    /// The median of the rounds with two processes.
    pub fn contested(&self, of: impl Fn(&Contested) -> f64) -> Option<f64> {
        (!self.two_processes.is_empty()).then(|| median(self.two_processes.iter().map(of)))
    }
}
