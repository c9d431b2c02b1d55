//! Random histories of one database against a model of its tables: collections are inserted, imported, destroyed and purged,
//! tombstones are exported and applied, the database is backed up and restored, and the service is restarted. After each
//! operation its result and all rows are those of the model.
//!
//! Every history ends with the restore drill: an export, the restore of a backup, the application of the export. Then no
//! collection that was destroyed is live, whatever happened before.

mod database;
mod model;
mod play;

use std::cell::RefCell;

use proptest::{
    prelude::*,
    test_runner::{TestError, TestRunner},
};
use tokio::{runtime::Runtime, time::Instant};

use super::support::Backend;
use database::Database;

/// Few of each, so that operations meet often.
const IDS: i64 = 6;
const USERS: i64 = 3;

/// Of each database, unless `TEST_HISTORIES` has a number.
const HISTORIES: u32 = 32;

#[derive(Clone, Debug)]
struct History {
    operations: Vec<Operation>,
    /// The backup that is restored at the end.
    restored: usize,
}

/// Backups and exports are counted from the latest one, round and round; the first backup is that of the empty database.
/// Where there is no export, nothing is done.
#[derive(Clone, Debug)]
enum Operation {
    Insert {
        id: i64,
        owner: i64,
        entries: i64,
    },
    /// No id twice. Continues the unfinished import where there is one.
    Import {
        lines: Vec<Line>,
        is_finished: bool,
    },
    /// Sent together; no id twice.
    Destroy(Vec<Call>),
    /// A call with the request id of the tombstone of this id.
    Retry {
        id: i64,
        /// 0 stands for the owner.
        user: i64,
    },
    /// An entry that is written against the rules.
    AddEntry {
        id: i64,
        tweet: i64,
    },
    PurgeStep {
        batch: u32,
    },
    Purge,
    Export,
    /// Twice.
    Apply {
        export: usize,
        batch: usize,
    },
    BackUp,
    Restore {
        backup: usize,
    },
    Restart,
    Verify,
    Fix,
}

#[derive(Clone, Debug)]
struct Line {
    id: i64,
    /// What is live under the id, where anything is. Then the rest is not used.
    is_identical: bool,
    owner: i64,
    name: u8,
    is_dated: bool,
    entries: i64,
}

#[derive(Clone, Debug)]
struct Call {
    id: i64,
    /// 0 stands for the owner.
    user: i64,
    /// 0 stands for none.
    request: u8,
    has_caller: bool,
}

fn histories() -> impl Strategy<Value = History> {
    (prop::collection::vec(operations(), 1..40), 0..3_usize)
        .prop_map(|(operations, restored)| History { operations, restored })
}

fn operations() -> impl Strategy<Value = Operation> {
    let (id, user, entries) = (1..=IDS, 1..=USERS, 0..5_i64);
    let caller = prop_oneof![2 => Just(0), 1 => user.clone()];
    let line = (id.clone(), any::<bool>(), user.clone(), 0..2_u8, any::<bool>(), entries.clone()).prop_map(
        |(id, is_identical, owner, name, is_dated, entries)| Line {
            id,
            is_identical,
            owner,
            name,
            is_dated,
            entries,
        },
    );
    let call = (id.clone(), caller.clone(), 0..3_u8, any::<bool>())
        .prop_map(|(id, user, request, has_caller)| Call { id, user, request, has_caller });
    prop_oneof![
        5 => (id.clone(), user.clone(), entries)
            .prop_map(|(id, owner, entries)| Operation::Insert { id, owner, entries }),
        3 => (prop::collection::vec(line, 1..4), any::<bool>()).prop_map(|(lines, is_finished)| {
            Operation::Import { lines: without_repeats(lines, |line| line.id), is_finished }
        }),
        8 => prop::collection::vec(call, 1..4).prop_map(|calls| {
            Operation::Destroy(without_repeats(calls, |call| call.id))
        }),
        2 => (id.clone(), caller).prop_map(|(id, user)| Operation::Retry { id, user }),
        3 => (id, 1..8_i64).prop_map(|(id, tweet)| Operation::AddEntry { id, tweet }),
        3 => (1..6_u32).prop_map(|batch| Operation::PurgeStep { batch }),
        2 => Just(Operation::Purge),
        2 => Just(Operation::Export),
        3 => (any::<usize>(), 1..4_usize).prop_map(|(export, batch)| Operation::Apply { export, batch }),
        3 => Just(Operation::BackUp),
        3 => any::<usize>().prop_map(|backup| Operation::Restore { backup }),
        1 => Just(Operation::Restart),
        1 => Just(Operation::Verify),
        1 => Just(Operation::Fix),
    ]
}

/// The first of each id.
fn without_repeats<T>(items: Vec<T>, id: impl Fn(&T) -> i64) -> Vec<T> {
    let mut seen = std::collections::BTreeSet::new();
    items.into_iter().filter(|item| seen.insert(id(item))).collect()
}

fn check(backend: Backend) {
    let count = std::env::var("TEST_HISTORIES").map_or(HISTORIES, |count| count.parse().unwrap());
    let config = ProptestConfig {
        cases: count,
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..ProptestConfig::default()
    };
    let runtime = Runtime::new().unwrap();
    let database = RefCell::new(runtime.block_on(Database::new(backend)));
    let (begun, played) = (Instant::now(), RefCell::new((0_usize, 0_usize)));
    let result = TestRunner::new(config).run(&histories(), |history| {
        let played_now = {
            let mut played = played.borrow_mut();
            *played = (played.0 + 1, played.1 + history.operations.len());
            *played
        };
        if played_now.0.is_multiple_of(100) {
            let (histories, operations) = played_now;
            eprintln!(
                "{backend:?}: {histories} histories, {operations} operations in {:.0?}",
                begun.elapsed()
            );
        }
        runtime.block_on(play::run(&mut database.borrow_mut(), &history))
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, history)) => panic!("{why}\nin the history {history:#?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_history_matches_the_model_on_sqlite() {
    check(Backend::Sqlite);
}

#[test]
fn every_history_matches_the_model_on_postgres() {
    check(Backend::Postgres);
}
