//! Runs a history: each operation on the database and on the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use collections_service::{
    domain::{CollectionId, DestroyError, Destroyed, RequestId, UserId},
    store::{
        Applied, CollectionToImport, Destroy, EntryToImport, ImportOutcome, ImportProgress, Inconsistency,
        NewCollection, PurgeLimits, Purged, Tombstone, VerifyPosition,
    },
};
use proptest::test_runner::TestCaseError;
use tokio::time::Instant;

use super::{
    Call, History, Line, Operation,
    database::Database,
    model::{Tables, Time},
};
use crate::{
    batches::{destroy_concurrently, outcome_of},
    support::user,
};

/// Of an import.
const NAME: &str = "histories";
/// Most steps until the queue is empty: more would be a purge that does not end.
const STEPS: usize = 200;

/// The model, what was saved of it, and the database that it is of.
struct Player<'a> {
    database: &'a mut Database,
    model: Tables,
    /// The first is that of the empty database.
    backups: Vec<Tables>,
    exports: Vec<Vec<Tombstone>>,
    /// What was answered to be destroyed, by id and owner, whether or not a restore has lost it since.
    acknowledged: BTreeSet<(i64, i64)>,
}

pub async fn run(database: &mut Database, history: &History) -> Result<(), TestCaseError> {
    database.clear().await;
    let mut player = Player {
        database,
        model: Tables::default(),
        backups: vec![Tables::default()],
        exports: Vec::new(),
        acknowledged: BTreeSet::new(),
    };
    for (number, operation) in (1..).zip(&history.operations) {
        player.run(operation).await.map_err(|error| at(&format!("operation {number}"), error))?;
    }
    player.drill(history.restored).await.map_err(|error| at("the restore drill", error))
}

fn at(place: &str, error: TestCaseError) -> TestCaseError {
    match error {
        TestCaseError::Fail(why) => TestCaseError::fail(format!("{place}: {why}")),
        rejected => rejected,
    }
}

impl Player<'_> {
    /// One operation. Then the database has the rows of the model.
    async fn run(&mut self, operation: &Operation) -> Result<(), TestCaseError> {
        let now = self.database.tick();
        match operation {
            Operation::Insert { id, owner, entries } => self.insert(*id, *owner, *entries, now).await?,
            Operation::Import { lines, is_finished } => self.import(lines, *is_finished, now).await?,
            Operation::Destroy(calls) => {
                let calls = calls.iter().map(|call| self.call(call)).collect();
                self.destroy(calls, now).await?;
            }
            Operation::Retry { id, user } => self.retry(*id, *user, now).await?,
            Operation::AddEntry { id, tweet } => {
                if self.model.add_entry(*id, *tweet, now) {
                    self.database.add_entry(*id, *tweet, now).await;
                }
            }
            Operation::PurgeStep { batch } => {
                self.purge_step(*batch).await?;
            }
            Operation::Purge => self.purge().await?,
            Operation::Export => self.export().await?,
            Operation::Apply { export, batch } => {
                if let Some(export) = from_latest(&self.exports, *export).cloned() {
                    self.apply(&export, *batch).await?;
                    self.apply(&export, *batch).await?;
                }
            }
            Operation::BackUp => {
                self.database.back_up(self.backups.len()).await;
                self.backups.push(self.model.clone());
            }
            Operation::Restore { backup } => self.restore(*backup).await,
            Operation::Restart => self.database.restart().await,
            Operation::Verify => self.verify().await?,
            Operation::Fix => self.fix(now).await?,
        }
        same(&self.database.tables().await, &self.model, "the rows")
    }

    async fn insert(&mut self, id: i64, owner: i64, entries: i64, now: Time) -> Result<(), TestCaseError> {
        if self.model.has_orphans(id) {
            // Only an import checks for them.
            return Ok(());
        }
        let entries = (1..=entries).collect();
        let new =
            NewCollection { id: CollectionId::new(id).unwrap(), owner: user(owner), name: name(0), entries };
        let is_inserted = self.database.store.insert_collection(new.clone()).await.map_err(failed)?;
        same(&is_inserted, &self.model.insert(&new, now), "the insert")
    }

    async fn import(&mut self, lines: &[Line], is_finished: bool, now: Time) -> Result<(), TestCaseError> {
        let lines: Vec<CollectionToImport> = lines.iter().map(|line| self.line(line, now)).collect();
        let lines: Vec<&CollectionToImport> = lines.iter().collect();
        let checked = self.database.store.check_import(&lines).await.map_err(failed)?;
        let (started_at, before) = *self.model.imports.entry(NAME.to_owned()).or_insert((now, 0));
        let expected: Vec<ImportOutcome> =
            lines.iter().map(|line| self.model.import(line, started_at)).collect();
        same(&checked, &expected, "the check of the import")?;
        let mut import = self.database.store.begin_import(NAME, "head", true).await.map_err(failed)?;
        let after = before + i64::try_from(lines.len()).unwrap();
        let mut outcomes = Vec::new();
        let record = |progress: &ImportProgress, batch: &[ImportOutcome]| {
            outcomes = batch.to_vec();
            let line = after.unsigned_abs();
            Ok(ImportProgress { line, byte_offset: line, ..*progress })
        };
        import.run(&lines, record).await.map_err(failed)?;
        same(&outcomes, &expected, "the import")?;
        if is_finished {
            import.finish().await.map_err(failed)?;
            self.model.imports.remove(NAME);
        } else {
            self.model.imports.insert(NAME.to_owned(), (started_at, after));
        }
        Ok(())
    }

    fn line(&self, line: &Line, now: Time) -> CollectionToImport {
        let identical = line.is_identical.then(|| self.model.line_of(line.id)).flatten();
        let time = line.is_dated.then(|| now - Duration::from_secs(1000));
        let entries = 1..=line.entries;
        identical.unwrap_or_else(|| CollectionToImport {
            id: CollectionId::new(line.id).unwrap(),
            owner: user(line.owner),
            name: name(line.name),
            description: None,
            url: None,
            timeline_order: "curation_reverse_chron",
            created_at: time,
            entries: entries
                .map(|tweet| EntryToImport { tweet_id: tweet, sort_index: tweet - 1, added_at: None })
                .collect(),
        })
    }

    fn call(&self, call: &Call) -> Destroy {
        let request = u128::from(call.request) | 0x4000_8000_0000_0000_0000;
        Destroy {
            id: CollectionId::new(call.id).unwrap(),
            user: self.user(call.user, call.id),
            request_id: (call.request > 0).then(|| RequestId::from(uuid::Uuid::from_u128(request))),
            caller: call.has_caller.then(|| "mtls:orders".to_owned()),
            deadline: deadline(),
            span: None,
        }
    }

    fn user(&self, number: i64, id: i64) -> UserId {
        if number > 0 { user(number) } else { self.model.owner(id).unwrap_or_else(|| user(1)) }
    }

    async fn destroy(&mut self, calls: Vec<Destroy>, now: Time) -> Result<(), TestCaseError> {
        let answers = destroy_concurrently(&self.database.store, calls.iter().cloned()).await;
        let expected: Vec<_> = calls.iter().map(|call| self.model.destroy(call, now)).collect();
        same(&answers, &expected, "the destroy")?;
        self.note_request_ids(&calls, &answers).await?;
        let destroyed = calls.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
        self.acknowledged.extend(destroyed.map(|(call, _)| (call.id.get(), call.user.get())));
        Ok(())
    }

    /// Those that the service generated.
    async fn note_request_ids(
        &mut self,
        calls: &[Destroy],
        answers: &[Result<Destroyed, DestroyError>],
    ) -> Result<(), TestCaseError> {
        for (call, answer) in calls.iter().zip(answers) {
            if *answer != Ok(Destroyed::Now) || call.request_id.is_some() {
                continue;
            }
            let inspected = self.database.store.inspect(call.id).await.map_err(failed)?;
            let generated = inspected.destroyed.and_then(|tombstone| tombstone.request_id);
            let version = generated.map(|generated| generated.get_version_num());
            same(&version, &Some(4), "the version of the generated request id")?;
            if let Some(tombstone) = self.model.tombstones.get_mut(&call.id.get()) {
                tombstone.request_id = generated.map(RequestId::from);
            }
        }
        Ok(())
    }

    async fn retry(&mut self, id: i64, user: i64, now: Time) -> Result<(), TestCaseError> {
        let Some(tombstone) = self.model.tombstones.get(&id) else { return Ok(()) };
        let retry = Destroy {
            id: tombstone.id,
            user: self.user(user, id),
            request_id: tombstone.request_id,
            caller: None,
            deadline: deadline(),
            span: None,
        };
        let is_owner = tombstone.owner == retry.user;
        let answer = if is_owner { Ok(Destroyed::Before) } else { Err(DestroyError::NotFound) };
        same(&self.model.clone().destroy(&retry, now), &answer, "the model's own retry")?;
        self.destroy(vec![retry], now).await
    }

    /// One step. Which of the queued entries it erases is not predicted.
    async fn purge_step(&mut self, batch: u32) -> Result<Purged, TestCaseError> {
        let (mut purger, batch) = match self.database.purger.take() {
            Some(purger) => purger,
            None => (self.database.store.purger(PurgeLimits::once(batch)), batch),
        };
        let purged = purger.step().await.map_err(failed)?;
        self.database.purger = Some((purger, batch));
        let after = self.database.tables().await;
        self.model.check_step(&after, &purged, batch).map_err(TestCaseError::fail)?;
        same(&purged.wait, &None, "a step of the purge")?;
        self.model = after;
        Ok(purged)
    }

    async fn purge(&mut self) -> Result<(), TestCaseError> {
        let mut expected = self.model.clone();
        let sums = expected.purge();
        let mut steps = (0, 0);
        for _ in 0..STEPS {
            let backlog = self.database.store.purge_backlog(None).await.map_err(failed)?;
            let queued = i64::try_from(self.model.purge_queue.len()).unwrap();
            same(&(backlog.purgeable, backlog.blocked), &(queued, 0), "the backlog")?;
            if queued == 0 {
                break;
            }
            let purged = self.purge_step(3).await?;
            steps = (steps.0 + purged.entries, steps.1 + purged.collections);
        }
        same(&steps, &sums, "the purge")?;
        same(&self.model, &expected, "the rows after the purge")
    }

    async fn export(&mut self) -> Result<(), TestCaseError> {
        let (mut export, mut last): (Vec<Tombstone>, _) = (Vec::new(), None);
        loop {
            let chunk = self.database.store.tombstones_after(last, 2).await.map_err(failed)?;
            let Some(tombstone) = chunk.last() else { break };
            last = Some(tombstone.id);
            export.extend(chunk);
        }
        let expected: Vec<Tombstone> = self.model.tombstones.values().cloned().collect();
        same(&export, &expected, "the export")?;
        self.exports.push(export);
        Ok(())
    }

    async fn apply(&mut self, export: &[Tombstone], batch: usize) -> Result<(), TestCaseError> {
        for batch in export.chunks(batch) {
            let applied: Applied = self.database.store.apply_tombstones(batch).await.map_err(failed)?;
            same(&applied, &self.model.apply(batch), "the application")?;
        }
        Ok(())
    }

    async fn restore(&mut self, backup: usize) {
        let number = self.backups.len() - 1 - backup % self.backups.len();
        self.database.restore(number).await;
        self.model = self.backups[number].clone();
    }

    async fn verify(&mut self) -> Result<(), TestCaseError> {
        let mut found: BTreeMap<Inconsistency, BTreeSet<i64>> = BTreeMap::new();
        let mut position = Some(VerifyPosition::default());
        while let Some(next) = position {
            let chunk = self.database.store.verify_chunk(next).await.map_err(failed)?;
            for (kind, ids) in chunk.found {
                found.entry(kind).or_default().extend(ids);
            }
            position = chunk.next;
        }
        same(&found, &self.model.findings(), "the findings")
    }

    async fn fix(&mut self, now: Time) -> Result<(), TestCaseError> {
        for (kind, ids) in self.model.findings() {
            let ids: Vec<i64> = ids.into_iter().collect();
            let done = self.database.store.fix(kind, &ids).await.map_err(failed)?;
            same(&done, &ids.len(), "the repair")?;
        }
        self.model.fix(now);
        self.verify().await
    }

    /// What `deploy/RESTORE.md` describes, and what must hold after it.
    async fn drill(&mut self, backup: usize) -> Result<(), TestCaseError> {
        self.run(&Operation::Export).await?;
        self.run(&Operation::Restore { backup }).await?;
        let restored = self.model.clone();
        for export in 0..self.exports.len() {
            self.run(&Operation::Apply { export, batch: 2 }).await?;
        }
        // The next application queues what another program writes under a purged id.
        self.run(&Operation::Purge).await?;
        if let Some(id) = self.model.tombstones.keys().next().copied() {
            self.run(&Operation::AddEntry { id, tweet: i64::MAX }).await?;
        }
        self.run(&Operation::Apply { export: 0, batch: 2 }).await?;
        self.run(&Operation::Purge).await?;
        self.run(&Operation::Fix).await?;
        let tables = self.database.tables().await;
        let exported: Vec<Tombstone> = self.exports.iter().flatten().cloned().collect();
        for tombstone in &exported {
            let (id, owner) = (tombstone.id.get(), tombstone.owner.get());
            let is_acknowledged = self.acknowledged.contains(&(id, owner));
            same(&is_acknowledged, &true, "the acknowledgement of an exported destroy")?;
            let is_live = tables.collections.get(&id).is_some_and(|live| live.owner == owner);
            same(&is_live, &false, &format!("{id} is live"))?;
        }
        for tombstone in from_latest(&self.exports, 0).cloned().unwrap_or_default() {
            let id = tombstone.id.get();
            if restored.collections.get(&id).is_some_and(|live| live.owner != tombstone.owner.get()) {
                // Another owner's, of before or after. It is reported, and stays.
                continue;
            }
            let existing = restored.tombstones.get(&id).cloned().unwrap_or(tombstone);
            same(&tables.tombstones.get(&id), &Some(&existing), "the tombstone")?;
            self.check_destroyed(&existing).await?;
        }
        self.run(&Operation::Purge).await?;
        self.run(&Operation::Verify).await?;
        let tables = self.database.tables().await;
        let erased = tables.entries.keys().all(|(id, _)| tables.collections.contains_key(id));
        same(&erased, &true, "the entries that are left are of live collections")
    }

    /// A retry succeeds, another call does not, and the id stays unusable.
    async fn check_destroyed(&mut self, tombstone: &Tombstone) -> Result<(), TestCaseError> {
        let (id, owner) = (tombstone.id.get(), tombstone.owner.get());
        let calls = |request_id| Destroy {
            id: tombstone.id,
            user: tombstone.owner,
            request_id,
            caller: None,
            deadline: deadline(),
            span: None,
        };
        let store = &self.database.store;
        let answers =
            (outcome_of(store, calls(tombstone.request_id)).await, outcome_of(store, calls(None)).await);
        let expected = (Ok(Destroyed::Before), Err(DestroyError::NotFound));
        same(&answers, &expected, &format!("destroys of {id} again"))?;
        self.run(&Operation::Insert { id, owner, entries: 1 }).await?;
        let line = Line { id, is_identical: false, owner, name: 0, is_dated: false, entries: 1 };
        self.run(&Operation::Import { lines: vec![line], is_finished: true }).await?;
        let is_live = self.database.tables().await.collections.contains_key(&id);
        same(&is_live, &false, &format!("{id} is live again"))
    }
}

/// Counted from the last one, round and round.
fn from_latest<T>(items: &[T], number: usize) -> Option<&T> {
    items.iter().rev().nth(number % items.len().max(1))
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn name(number: u8) -> String {
    format!("name {number}")
}

fn failed(error: impl std::error::Error) -> TestCaseError {
    TestCaseError::fail(format!("the operation failed: {error}"))
}

fn same<T: PartialEq + Debug>(found: &T, expected: &T, what: &str) -> Result<(), TestCaseError> {
    if found == expected {
        return Ok(());
    }
    Err(TestCaseError::fail(format!("{what}: found {found:#?}\nexpected {expected:#?}")))
}
