//! The results for people, as Markdown, and for programs, as JSON.

use std::fmt::Write;

use crate::{
    Kind, Result,
    ids::Order,
    measure::Measured,
    results::{Medians, Results},
    targets::{Target, Verdict, verdicts},
    testbed::Environment,
};

pub fn json(results: &Results) -> Result<String> {
    let cells = results.closed.iter().flat_map(|(kind, cells)| cells.keys().map(|callers| (*kind, *callers)));
    let medians: Vec<_> = cells
        .filter_map(|cell| {
            Some(serde_json::json!({"kind": cell.0, "callers": cell.1, "medians": results.medians(cell)?}))
        })
        .collect();
    let whole = serde_json::json!({"medians": medians, "targets": verdicts(results), "rounds": results});
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

/// The tables; with a column for the CPU time of each process if asked for.
pub fn markdown(results: &Results, cpu: bool) -> String {
    let mut text = String::new();
    if !results.closed.is_empty() {
        rates(results, &mut text);
        latencies(results, &mut text);
        if cpu {
            cpu_times(results, &mut text);
            wal_bytes(results, &mut text);
        }
        versus(results, &mut text);
    }
    if !results.open.is_empty() {
        open(results, &mut text);
    }
    contest(results, &mut text);
    let verdicts = verdicts(results);
    if !verdicts.is_empty() {
        targets(&verdicts, &mut text);
    }
    let environment = &results.environment;
    let rounds = results.rounds;
    let _written = writeln!(
        text,
        "Medians of {rounds} {} of {} s; the load generator, the service and the database share {} cores of {}. \
         {}, {}, Linux {}. {}. Whatever else ran there had at most {:.0} % of their time.",
        if rounds == 1 { "round" } else { "rounds" },
        results.seconds,
        environment.cores,
        environment.processor,
        environment.program,
        environment.postgres,
        environment.kernel,
        tables(environment),
        100.0 * results.others()
    );
    text
}

/// How many rows of how many users there are, and in which order their ids are asked for.
fn tables(environment: &Environment) -> String {
    let [postgres, sqlite] = [environment.postgres_table, environment.sqlite_table];
    let (users, order) = match postgres.order {
        Order::Scattered => ("users", "scattered over the table"),
        Order::Contiguous => ("user", "in contiguous ranges, one a caller"),
    };
    format!(
        "{} rows of {} {users} in PostgreSQL, {} in SQLite, ids {order}",
        grouped(postgres.rows as f64),
        grouped(postgres.owners() as f64),
        grouped(sqlite.rows as f64),
    )
}

/// The first lines of a table with a column for each number of callers.
fn header(title: &str, callers: &[usize], text: &mut String) {
    let _written = write!(text, "| {title}, by callers |");
    for callers in callers {
        let _written = write!(text, " {} |", grouped(*callers as f64));
    }
    let _written = writeln!(text, "\n|---|{}", "---:|".repeat(callers.len()));
}

/// A row for each kind, a column for each number of callers.
fn table(results: &Results, title: &str, cell: impl Fn(Kind, usize, Medians) -> String, text: &mut String) {
    let callers = results.callers();
    header(title, &callers, text);
    for kind in results.closed.keys() {
        let _written = write!(text, "| {} |", kind.label());
        for callers in &callers {
            let cell = results.medians((*kind, *callers)).map(|medians| cell(*kind, *callers, medians));
            let _written = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text.push('\n');
}

fn rates(results: &Results, text: &mut String) {
    let cell = |kind: Kind, callers, medians: Medians| {
        let compared = kind == Kind::GrpcPostgres || kind.is_signed();
        let ratio = results.ratio((kind, callers), (Kind::Pgbench, callers), |round| round.rate);
        match ratio.filter(|_| compared) {
            Some(ratio) => format!("{} ({ratio:.2}×)", grouped(medians.rate)),
            None => grouped(medians.rate),
        }
    };
    table(results, "calls a second (times pgbench's)", cell, text);
}

fn latencies(results: &Results, text: &mut String) {
    let cell = |_, _, medians: Medians| format!("{} / {}", short(medians.p50_ms), short(medians.p99_ms));
    table(results, "p50 / p99 in ms", cell, text);
}

fn cpu_times(results: &Results, text: &mut String) {
    let cell = |_, _, medians: Medians| {
        let times = [medians.generator_us, medians.service_us, medians.database_us];
        times.map(|time| format!("{time:.1}")).join(" / ")
    };
    table(results, "CPU µs a call: generator / service / PostgreSQL", cell, text);
}

fn wal_bytes(results: &Results, text: &mut String) {
    let cell = |_, _, medians: Medians| short(medians.wal_bytes);
    table(results, "bytes of write-ahead log a call, the last checkpoint before the warm-up", cell, text);
}

/// The program's figures over those of the other one: medians of the ratios of each round.
fn versus(results: &Results, text: &mut String) {
    if !results.closed.contains_key(&Kind::GrpcVersus) {
        return;
    }
    let (rate, p50) = (|round: &Measured| round.rate, |round: &Measured| round.p50_ms);
    let callers = results.callers();
    header("the program, times the other one", &callers, text);
    for (name, of) in [("calls a second", rate as fn(&Measured) -> f64), ("p50", p50)] {
        let _written = write!(text, "| {name} |");
        for callers in &callers {
            let ratio = results.ratio((Kind::GrpcPostgres, *callers), (Kind::GrpcVersus, *callers), of);
            let _written = write!(text, " {:.3}× |", ratio.unwrap_or(f64::NAN));
        }
        text.push('\n');
    }
    text.push('\n');
}

fn open(results: &Results, text: &mut String) {
    text.push_str(
        "| open loop | calls/s due | good/s | p50 ms | p99 ms | refused/s | refusals' p99 ms \
         | the same from the send | generator late: p50, p99 ms | never sent/s | peak MB before, after |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (kind, rounds) in &results.open {
        let median = |of: fn(&crate::open::Opened) -> f64| results.opened(*kind, of).unwrap_or(f64::NAN);
        let _written = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {}, {} | {} | {:.0}, {:.0} |",
            kind.label(),
            grouped(median(|round| round.rate)),
            grouped(median(|round| round.goodput)),
            short(median(|round| round.p50_ms)),
            short(median(|round| round.p99_ms)),
            grouped(median(|round| round.refused)),
            short(median(|round| round.refused_p99_ms)),
            short(median(|round| round.refused_p99_from_send_ms)),
            short(median(|round| round.lag_p50_ms)),
            short(median(|round| round.lag_p99_ms)),
            grouped(median(|round| round.unsent)),
            median(|round| round.memory_mb[0]),
            median(|round| round.memory_mb[1]),
        );
        for other in rounds.iter().filter(|round| !round.others.is_empty()) {
            let _written = writeln!(text, "| besides | {:?} ||||||||||", other.others);
        }
    }
    text.push('\n');
}

fn contest(results: &Results, text: &mut String) {
    let Some(first) = results.two_processes.first() else { return };
    let median = |of: fn(&crate::contest::Contested) -> f64| results.contested(of).unwrap_or(f64::NAN);
    let wrong: usize = results.two_processes.iter().map(|round| round.wrong).sum();
    let deadlocks: usize = results.two_processes.iter().map(|round| round.deadlocks).sum();
    let _written = writeln!(
        text,
        "Two processes on one PostgreSQL, 64 callers each, all asking for the same {} ids: {} destroys a second, \
         p50 / p99 {} / {} ms, {wrong} ids without exactly one OK, {deadlocks} deadlocks in PostgreSQL's log.\n",
        grouped(first.ids as f64),
        grouped(median(|round| round.rate)),
        short(median(|round| round.p50_ms)),
        short(median(|round| round.p99_ms)),
    );
}

fn targets(verdicts: &[Verdict], text: &mut String) {
    text.push_str("| target | measured | at least or at most | met |\n|---|---:|---:|---|\n");
    for verdict in verdicts {
        let (sign, target) = match verdict.target {
            Target::AtLeast(least) => ("≥", least),
            Target::AtMost(most) => ("≤", most),
        };
        let aim = verdict.aim.map(|aim| format!(", aim {}", short(aim))).unwrap_or_default();
        let met = if verdict.met { "yes" } else { "**no**" };
        let _written = writeln!(
            text,
            "| {} | {} | {sign} {}{aim} | {met} |",
            verdict.what,
            short(verdict.measured),
            short(target)
        );
    }
    text.push('\n');
}

/// Three digits, which is what a measurement is worth.
pub fn short(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        value if value >= 100.0 => grouped(value),
        value if value >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        value => format!("{value:.2}"),
    }
}

/// A whole number, its thousands marked.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
