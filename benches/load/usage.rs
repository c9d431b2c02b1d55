//! The CPU time of each process and the bytes of PostgreSQL's write-ahead log: what a measurement used.

use std::{fs, process, time::Duration};

use crate::{Result, data::Data};

/// Seconds of CPU, user and system, of each process that takes part; and write-ahead log.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Usage {
    pub generator: f64,
    pub service: f64,
    pub database: f64,
    /// Everything else on this machine, and what its host gave to other machines.
    pub others: f64,
    /// Bytes of PostgreSQL's write-ahead log; NaN on SQLite.
    pub wal_bytes: f64,
}

/// The processes that are measured, and the database. Where pgbench generates the load, it is the generator.
pub struct Processes {
    pub generator: u32,
    pub service: Option<u32>,
    pub database: Option<u32>,
    pub data: Data,
}

impl Processes {
    /// Where this process itself generates the load.
    pub fn with_own_load(service: u32, database: Option<u32>, data: Data) -> Self {
        Self { generator: process::id(), service: Some(service), database, data }
    }

    pub async fn usage(&self) -> Result<Usage> {
        let of = |pid: Option<u32>| pid.map_or(Ok(Duration::ZERO), |pid| cpu(pid).map(|(own, _)| own));
        let mut usage = Usage {
            generator: of(Some(self.generator))?.as_secs_f64(),
            service: of(self.service)?.as_secs_f64(),
            database: self.database.map_or(Ok(Duration::ZERO), with_children)?.as_secs_f64(),
            others: 0.0,
            wal_bytes: 0.0,
        };
        usage.others = machine()?.as_secs_f64() - usage.generator - usage.service - usage.database;
        usage.wal_bytes = self.data.wal_bytes().await?;
        Ok(usage)
    }
}

impl Usage {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            generator: self.generator - earlier.generator,
            service: self.service - earlier.service,
            database: self.database - earlier.database,
            others: self.others - earlier.others,
            wal_bytes: self.wal_bytes - earlier.wal_bytes,
        }
    }
}

/// A process's own time, and that of its children which have ended.
fn cpu(pid: u32) -> Result<(Duration, Duration)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before the last parenthesis may have spaces in it.
    let (_, fields) = stat.rsplit_once(')').ok_or("no stat")?;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(4).map(str::parse).collect::<std::result::Result<_, _>>()?;
    // A clock tick as it is shown to programs is a hundredth of a second on every Linux.
    let [user, system, ended_user, ended_system] = ticks[..] else { return Err("no stat".into()) };
    Ok((Duration::from_millis(10 * (user + system)), Duration::from_millis(10 * (ended_user + ended_system))))
}

/// All the time that was not idle, on all processors.
fn machine() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = stat.lines().next().ok_or("no stat")?.split_whitespace().skip(1);
    let ticks: Vec<u64> = ticks.map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen, ..] = ticks[..] else {
        return Err("no stat".into());
    };
    Ok(Duration::from_millis(10 * (user + nice + system + interrupts + soft_interrupts + stolen)))
}

/// A PostgreSQL server with all its sessions.
fn with_children(pid: u32) -> Result<Duration> {
    let (own, ended) = cpu(pid)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    // A session may end meanwhile.
    let children = children.split_whitespace().filter_map(|child| cpu(child.parse().ok()?).ok());
    Ok(own + ended + children.map(|(own, _)| own).sum::<Duration>())
}
