//! The answers that the callers got, and whether the database agrees.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement};
use tokio::time::Instant;
use uuid::Uuid;

/// A call that took this long had used up its deadline of 10 s: its outcome may be unknown.
const DEADLINE_SPENT: Duration = Duration::from_millis(9500);
/// The errors that a caller may get from the fault alone.
const EXPECTED: [&str; 3] = ["STORE_UNAVAILABLE", "OVERLOADED", "DEADLINE_EXCEEDED"];
/// Of a failure that did not come from the service.
pub const TRANSPORT: &str = "TRANSPORT";

/// The calls of one caller for one collection: retries until there is a final answer.
#[derive(Debug)]
pub struct Entry {
    pub id: i64,
    pub request_id: Option<Uuid>,
    pub attempts: Vec<Attempt>,
}

#[derive(Debug)]
pub struct Attempt {
    pub begun: Instant,
    pub ended: Instant,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Ok,
    NotFound,
    /// With this reason.
    Failed(String),
}

/// From before the service was sent SIGKILL until its process was gone.
pub type Killed = (Instant, Instant);

/// What the database holds of a range of ids.
pub struct Rows {
    remaining: BTreeSet<i64>,
    tombstones: BTreeMap<i64, Tombstone>,
    queued: BTreeSet<i64>,
    /// How many entries each collection has.
    entries: BTreeMap<i64, i64>,
}

struct Tombstone {
    destroyed_at: DateTime<Utc>,
    request_id: Option<Uuid>,
}

/// Where the ledger and the database differ.
#[derive(Debug, Default)]
pub struct Differences {
    /// Acknowledged, but not destroyed.
    pub lost: Vec<String>,
    /// Anything else that must not be.
    pub wrong: Vec<String>,
}

impl Entry {
    pub fn was_told(&self, answer: &Answer) -> bool {
        self.attempts.iter().any(|attempt| attempt.answer == *answer)
    }

    /// Whether an attempt ended without an outcome for the caller.
    fn has_unknown(&self, killed: Option<Killed>) -> bool {
        let is_unknown = |attempt: &Attempt| {
            let was_killed = killed.is_some_and(|(from, to)| attempt.begun < to && attempt.ended > from);
            was_killed || attempt.ended - attempt.begun >= DEADLINE_SPENT
        };
        self.attempts.iter().filter(|attempt| matches!(attempt.answer, Answer::Failed(_))).any(is_unknown)
    }
}

/// How many entries each collection has at first.
pub const ENTRIES: &str = "CASE WHEN id % 100 = 0 THEN 60 ELSE id % 3 END";

const fn entries_at_first(id: i64) -> i64 {
    if id % 100 == 0 { 60 } else { id % 3 }
}

impl Rows {
    /// The queue before the entries: a purge may run.
    pub async fn read(connection: &DatabaseConnection, ids: &RangeInclusive<i64>) -> Self {
        let rows = async |columns_from: &str| -> Vec<QueryResult> {
            let query = format!("SELECT {columns_from} BETWEEN {} AND {}", ids.start(), ids.end());
            let query = Statement::from_string(connection.get_database_backend(), query);
            connection.query_all_raw(query).await.unwrap()
        };
        let id = |row: &QueryResult| row.try_get::<i64>("", "id").unwrap();
        let tombstone = |row: &QueryResult| {
            let destroyed_at = row.try_get("", "destroyed_at").unwrap();
            (id(row), Tombstone { destroyed_at, request_id: row.try_get("", "request_id").unwrap() })
        };
        let tombstones = rows("id, destroyed_at, request_id FROM destroyed_collections WHERE id").await;
        let queued = rows("id FROM purge_queue WHERE id").await;
        let mut entries = BTreeMap::new();
        for row in rows("collection_id AS id FROM collection_entries WHERE collection_id").await {
            *entries.entry(id(&row)).or_default() += 1;
        }
        Self {
            remaining: rows("id FROM collections WHERE id").await.iter().map(id).collect(),
            tombstones: tombstones.iter().map(tombstone).collect(),
            queued: queued.iter().map(id).collect(),
            entries,
        }
    }

    /// Destroyed collections that have left the queue.
    pub fn purged(&self) -> usize {
        self.tombstones.keys().filter(|id| !self.queued.contains(id)).count()
    }

    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    /// Destroys that were committed before the fault, and acknowledged only after it: their outcome was unknown in between.
    pub fn recovered(&self, entries: &[Entry], down_at: DateTime<Utc>, right_at: Instant) -> usize {
        let is_late = |attempt: &Attempt| attempt.answer == Answer::Ok && attempt.ended > right_at;
        let is_early = |id| self.tombstones.get(id).is_some_and(|tombstone| tombstone.destroyed_at < down_at);
        entries.iter().filter(|entry| entry.attempts.iter().any(is_late) && is_early(&entry.id)).count()
    }

    /// Compares the database with the answers that the callers of these ids got.
    pub fn compare(
        &self,
        ids: RangeInclusive<i64>,
        entries: &[Entry],
        killed: Option<Killed>,
    ) -> Differences {
        let mut differences = Differences::default();
        let mut called: BTreeMap<i64, Vec<&Entry>> = BTreeMap::new();
        for entry in entries {
            called.entry(entry.id).or_default().push(entry);
        }
        for id in ids {
            let entries = called.get(&id).map_or(&[][..], Vec::as_slice);
            let is_told = entries.iter().any(|entry| entry.was_told(&Answer::Ok));
            let is_destroyed = self.tombstones.contains_key(&id) && !self.remaining.contains(&id);
            if is_told && !is_destroyed {
                differences.lost.push(describe(&"acknowledged, but not destroyed", id, entries));
            }
            for wrong in self.wrong(id, entries, killed) {
                differences.wrong.push(describe(&wrong, id, entries));
            }
        }
        differences
    }

    fn wrong(&self, id: i64, entries: &[&Entry], killed: Option<Killed>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut expect = |holds: bool, otherwise: &str| {
            if !holds {
                wrong.push(otherwise.to_owned());
            }
        };
        let tombstone = self.tombstones.get(&id);
        let is_standing = self.remaining.contains(&id);
        expect(is_standing != tombstone.is_some(), "has both a row and a tombstone, or neither");
        let entries_left = self.entries.get(&id).copied().unwrap_or_default();
        if tombstone.is_none() {
            expect(!self.queued.contains(&id), "is queued for purging, but not destroyed");
            expect(entries_left == entries_at_first(id), "stands, and not all of its entries");
        } else if !self.queued.contains(&id) {
            expect(entries_left == 0, "has entries, and is not queued for purging");
        }
        if entries.is_empty() {
            expect(is_standing, "destroyed without a request");
        }
        let told_ok = entries.iter().filter(|entry| entry.was_told(&Answer::Ok)).count();
        expect(told_ok <= 1, "acknowledged to two callers");
        let is_excused = entries.iter().any(|entry| entry.has_unknown(killed));
        expect(tombstone.is_none() || told_ok > 0 || is_excused, "destroyed, and acknowledged to no caller");
        for entry in entries {
            let was_own = entry.request_id.is_some()
                && tombstone.is_some_and(|tombstone| tombstone.request_id == entry.request_id);
            let is_ok = entry.was_told(&Answer::Ok);
            if entry.was_told(&Answer::NotFound) {
                expect(tombstone.is_some(), "NOT_FOUND, though it stands");
                expect(!was_own, "NOT_FOUND for the request that destroyed it");
            } else {
                expect(is_ok, "no final answer");
            }
            expect(!is_ok || entry.request_id.is_none() || was_own, "acknowledged to another request");
            for attempt in &entry.attempts {
                let Answer::Failed(reason) = &attempt.answer else { continue };
                let is_expected =
                    EXPECTED.contains(&reason.as_str()) || reason == TRANSPORT && killed.is_some();
                expect(is_expected, "unexpected failure");
            }
        }
        wrong
    }
}

fn describe(what: &dyn fmt::Display, id: i64, entries: &[&Entry]) -> String {
    use fmt::Write;
    let mut text = format!("custom-{id}: {what}");
    for entry in entries {
        let with = if entry.request_id.is_some() { "with" } else { "without" };
        write!(text, "; caller {with} request id was answered").unwrap();
        for attempt in &entry.attempts {
            write!(text, " {:?} after {:?}", attempt.answer, attempt.ended - attempt.begun).unwrap();
        }
    }
    text
}
