//! What the figures must be at least, or at most.

use crate::{Kind, results::Results};

/// What a pod may have, in deploy/base.
const POD_MEMORY: f64 = 256.0;

/// A target, and whether it was met.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Verdict {
    pub what: &'static str,
    pub measured: f64,
    pub target: Target,
    /// What to go for beyond that.
    pub aim: Option<f64>,
    pub met: bool,
}

#[derive(Clone, Copy, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// Every target for which there is a measurement.
pub fn verdicts(results: &Results) -> Vec<Verdict> {
    use Kind::{
        GrpcLockedRow, GrpcPostgres, GrpcSqlite, GrpcSqliteSingle, HalfLoad, Health, Overload, Pgbench,
        RestH2Postgres, RestPostgres,
    };
    use Target::{AtLeast, AtMost};
    let rate = |one, other| results.ratio(one, other, |round| round.rate);
    let p50 = results.ratio((GrpcPostgres, 1), (Pgbench, 1), |round| round.p50_ms);
    let p99 = results.ratio((GrpcPostgres, 64), (Pgbench, 64), |round| round.p99_ms);
    let locked = results.ratio((GrpcLockedRow, 64), (GrpcPostgres, 64), |round| round.p99_ms);
    let wrong = results.contested(|round| round.wrong as f64);
    let deadlocks = results.contested(|round| round.deadlocks as f64);
    let spread = results.opened(HalfLoad, |round| round.p99_ms / round.p50_ms);
    let over = |of: fn(&crate::open::Opened) -> f64| results.opened(Overload, of);
    let goodput =
        over(|round| round.goodput).zip(results.maximum()).map(|(goodput, maximum)| goodput / maximum);
    let memory = over(|round| round.memory_mb[1]);
    let all = [
        ("64 in flight: rate, times pgbench's", rate((GrpcPostgres, 64), (Pgbench, 64)), AtLeast(3.0), None),
        ("1 in flight: p50, times pgbench's", p50, AtMost(1.3), Some(1.15)),
        ("64 in flight: p99, times pgbench's", p99, AtMost(1.0 / 3.0), None),
        (
            "256 in flight: rate, times pgbench's with 64",
            rate((GrpcPostgres, 256), (Pgbench, 64)),
            AtLeast(3.6),
            None,
        ),
        ("64 in flight: p99 with a locked row, times the p99 without", locked, AtMost(2.0), None),
        (
            "1,024 in flight: rate, of an empty RPC's",
            rate((GrpcPostgres, 1024), (Health, 1024)),
            AtLeast(0.5),
            None,
        ),
        (
            "SQLite, 64 in flight: rate, times batches of one",
            rate((GrpcSqlite, 64), (GrpcSqliteSingle, 64)),
            AtLeast(6.0),
            None,
        ),
        (
            "REST over HTTP/1.1, 64 in flight: rate, of gRPC's",
            rate((RestPostgres, 64), (GrpcPostgres, 64)),
            AtLeast(0.5),
            Some(0.65),
        ),
        (
            "REST over HTTP/2, 64 in flight: rate, of gRPC's",
            rate((RestH2Postgres, 64), (GrpcPostgres, 64)),
            AtLeast(0.5),
            Some(0.65),
        ),
        ("two processes: ids without exactly one OK", wrong, AtMost(0.0), None),
        ("two processes: deadlocks in PostgreSQL's log", deadlocks, AtMost(0.0), None),
        ("open loop at half the maximum: p99, times p50", spread, AtMost(3.0), None),
        ("three times the maximum: goodput, of the maximum", goodput, AtLeast(0.8), None),
        (
            "three times the maximum: p99 of refusals, ms",
            over(|round| round.refused_p99_ms),
            AtMost(5.0),
            None,
        ),
        ("three times the maximum: peak memory, MB", memory, AtMost(POD_MEMORY), None),
    ];
    let judged = all.into_iter().filter_map(|(what, measured, target, aim)| {
        let measured = measured.filter(|measured| measured.is_finite())?;
        let met = match target {
            AtLeast(least) => measured >= least,
            AtMost(most) => measured <= most,
        };
        Some(Verdict { what, measured, target, aim, met })
    });
    judged.collect()
}
