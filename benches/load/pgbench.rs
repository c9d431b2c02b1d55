//! The yardstick: pgbench with one statement a destroy.

use std::{fs, os::unix::process::CommandExt, process::Stdio, time::Duration};

use collections_service::domain::Clock;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{process::Command, time::Instant};

use crate::{
    Result, Window,
    cluster::{Cluster, DATABASE},
    data::Data,
    ids::Spread,
    measure::{Measured, latencies},
    usage::Processes,
};

/// More threads take CPU time from PostgreSQL, fewer serve many clients late.
const THREADS: usize = 2;
/// How long all clients together may take to their first transaction.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Destroys one collection: deletes the row, writes its tombstone and returns the outcome, in one round trip. A variable of
/// pgbench cannot be NULL, which `request_id` is. `PURGE` stands for [`PURGE`] or nothing.
const DESTROY: &str = "\
WITH gone AS (
  DELETE FROM collections WHERE id = :id AND owner_id = :owner RETURNING id, owner_id
), tombstone AS (
  INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
  SELECT id, owner_id, :now, NULL::uuid, :client_id FROM gone
  RETURNING id
)PURGE
SELECT CASE
  WHEN EXISTS (SELECT 1 FROM tombstone) THEN 'd'
  WHEN EXISTS (SELECT 1 FROM destroyed_collections
    WHERE id = :id AND owner_id = :owner AND request_id = NULL::uuid) THEN 'r'
  WHEN EXISTS (SELECT 1 FROM collections WHERE id = :id AND owner_id = :owner) THEN 'o'
  WHEN EXISTS (SELECT 1 FROM collections WHERE id = :id) THEN 'f'
  ELSE 'n'
END AS outcome";

/// Enqueues the purge of the collection's entries, where the schema has that queue.
const PURGE: &str = ", purge AS (
  INSERT INTO purge_queue (id, since) SELECT id, :now FROM gone
)";

/// The same ids as those of the service's callers, each asked for by its owner. The tombstone's caller is the client.
fn script(spread: Spread, has_purge_queue: bool) -> String {
    let (id, owner) = (spread.id_expression(":client_id", ":n"), spread.table.owner_expression(":id"));
    let statement = DESTROY.replace("PURGE", if has_purge_queue { PURGE } else { "" });
    format!("\\set n :n + 1\n\\set id {id}\n\\set owner {owner}\n{statement};\n")
}

/// Runs it with as many clients as there are callers. Also returns how many transactions it did in all.
pub async fn run(cluster: &Cluster, data: &Data, spread: Spread, window: Window) -> Result<(Measured, u64)> {
    let Window { warm_up, measured } = window;
    let folder = tempfile::tempdir()?;
    let (file, log) = (folder.path().join("script"), folder.path().join("log"));
    fs::write(&file, script(spread, data.has_table("purge_queue").await?))?;
    let longest = (START_TIMEOUT + warm_up + measured).as_secs() + 10;
    let mut command = std::process::Command::new(cluster.program("pgbench"));
    command
        .args(["-M", "prepared", "-n", "-l", "--log-prefix"])
        .arg(&log)
        .args(["-h", "127.0.0.1", "-p", &cluster.port().to_string(), "-U", "bench"])
        .args(["-c", &spread.callers.to_string(), "-j", &THREADS.min(spread.callers).to_string()])
        .args(["-T", &longest.to_string(), "-D", "n=-1", "-D", "now=2026-01-01 00:00:00+00"])
        .arg("-f")
        .arg(&file)
        .arg(DATABASE)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = Command::from(command).kill_on_drop(true).spawn()?;
    let generator = child.id().ok_or("pgbench has ended")?;
    let processes = Processes { generator, service: None, database: Some(cluster.pid()), data: data.clone() };
    let watched = async {
        let deadline = Instant::now() + START_TIMEOUT;
        // Each session has to learn the tables and the statement first: with a thousand of them, that takes seconds.
        while data.callers().await? < spread.callers && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(warm_up).await;
        let (before, from) = (processes.usage().await?, microseconds());
        tokio::time::sleep(measured).await;
        let seen = (from..microseconds(), processes.usage().await?.since(before));
        // The load is on a little longer than the window. What ends it is pgbench's own alarm, before it is due.
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill(Pid::from_raw(generator.cast_signed()), Signal::SIGALRM)?;
        Result::Ok(seen)
    };
    let (ended, watched) = tokio::join!(child.wait_with_output(), watched);
    let ended = ended?;
    if !ended.status.success() {
        return Err(format!("pgbench failed: {}", String::from_utf8_lossy(&ended.stderr)).into());
    }
    let (window, cpu) = watched?;
    let (mut latencies, mut all) = (latencies(), 0);
    for entry in fs::read_dir(folder.path())? {
        let path = entry?.path();
        if path == file {
            continue;
        }
        for line in fs::read_to_string(&path)?.lines() {
            // client, transaction, microseconds, script, and when it ended: seconds, microseconds.
            let fields: Vec<u64> = line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
            let [_, _, took, _, seconds, fraction] = fields[..] else {
                return Err(format!("pgbench logged {line:?}").into());
            };
            all += 1;
            if window.contains(&(seconds * 1_000_000 + fraction)) {
                latencies.saturating_record(took * 1000);
            }
        }
    }
    Ok((Measured::new(&latencies, Duration::from_micros(window.end - window.start), cpu), all))
}

fn microseconds() -> u64 {
    Clock::System.now().timestamp_micros().unsigned_abs()
}
