//! What one batch does.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};

use super::{CollectionToImport, EntryToImport, ImportError, ImportOutcome, Refusal, statements};
use crate::{config::import, domain::CollectionId};

/// What the database stores under the ids of a batch.
#[derive(Default)]
struct BatchState {
    destroyed: HashSet<CollectionId>,
    live: HashSet<CollectionId>,
    /// Ids with entries and without a collection or a tombstone.
    orphans: HashSet<CollectionId>,
}

/// Inserts the new collections with their entries. `now` is the time of those without a time.
///
/// The insert of a collection waits for a destroy of the same id in flight, and only a statement begun after that wait can
/// see the tombstone that the destroy wrote; so tombstones are read again after the insert.
pub async fn import_batch(
    transaction: &DatabaseTransaction,
    batch: &[&CollectionToImport],
    now: DateTime<Utc>,
) -> Result<Vec<ImportOutcome>, ImportError> {
    let mut state = BatchState::read(transaction, batch).await?;
    let fresh: Vec<_> = batch.iter().copied().filter(|new| !state.has(new.id)).collect();
    let mut inserted = statements::insert_collections(transaction, &fresh, now).await?;
    let destroyed = statements::destroyed(transaction, &ids(&inserted)).await?;
    if !destroyed.is_empty() {
        statements::delete_collections(transaction, &ids(&destroyed)).await?;
        inserted.retain(|id| !destroyed.contains(id));
    }
    // A concurrent import inserted the others.
    let others = fresh.iter().map(|new| new.id).filter(|id| !inserted.contains(id));
    state.live.extend(others.filter(|id| !destroyed.contains(id)));
    state.destroyed.extend(destroyed);
    let differing = compare(transaction, batch, &state).await?;
    let entries = fresh.iter().filter(|new| inserted.contains(&new.id)).flat_map(|new| {
        let created_at = new.created_at.unwrap_or(now);
        new.entries.iter().map(move |entry| (new.id, *entry, entry.added_at.unwrap_or(created_at)))
    });
    insert_entries(transaction, entries).await?;
    Ok(batch.iter().map(|new| state.outcome(new.id, &differing)).collect())
}

/// Returns what [`import_batch`] would do, and writes nothing.
pub async fn check_batch(
    connection: &impl ConnectionTrait,
    batch: &[&CollectionToImport],
) -> Result<Vec<ImportOutcome>, ImportError> {
    let state = BatchState::read(connection, batch).await?;
    let differing = compare(connection, batch, &state).await?;
    Ok(batch.iter().map(|new| state.outcome(new.id, &differing)).collect())
}

impl BatchState {
    async fn read(connection: &impl ConnectionTrait, batch: &[&CollectionToImport]) -> Result<Self, DbErr> {
        let asked: Vec<_> = batch.iter().map(|new| new.id.get()).collect();
        let live = statements::live(connection, &asked).await?;
        let destroyed = statements::destroyed(connection, &asked).await?;
        let mut state = Self { destroyed, live, orphans: HashSet::new() };
        let unknown: Vec<_> = batch.iter().filter(|new| !state.has(new.id)).map(|new| new.id.get()).collect();
        let with_entries = statements::with_entries(connection, &unknown).await?;
        // Each statement has a snapshot of its own: a concurrent import may have committed the entries together with their
        // collection since the first one. A destroy deletes the row and writes the tombstone at once, so tombstones are
        // read after the rows.
        state.live.extend(statements::live(connection, &ids(&with_entries)).await?);
        state.destroyed.extend(statements::destroyed(connection, &ids(&with_entries)).await?);
        state.orphans = with_entries.into_iter().filter(|id| !state.has(*id)).collect();
        Ok(state)
    }

    fn has(&self, id: CollectionId) -> bool {
        self.destroyed.contains(&id) || self.live.contains(&id) || self.orphans.contains(&id)
    }

    /// A tombstone takes precedence over a row that exists in spite of it.
    fn outcome(&self, id: CollectionId, differing: &HashMap<CollectionId, String>) -> ImportOutcome {
        if self.destroyed.contains(&id) {
            return ImportOutcome::Refused(Refusal::Destroyed);
        }
        if self.orphans.contains(&id) {
            return ImportOutcome::Refused(Refusal::Orphans);
        }
        match differing.get(&id) {
            Some(fields) => ImportOutcome::Refused(Refusal::Differs(fields.clone())),
            None if self.live.contains(&id) => ImportOutcome::Existing,
            None => ImportOutcome::Imported,
        }
    }
}

/// The live collections of the batch that are not identical, with the names of the fields that differ.
async fn compare(
    connection: &impl ConnectionTrait,
    batch: &[&CollectionToImport],
    state: &BatchState,
) -> Result<HashMap<CollectionId, String>, ImportError> {
    let is_live = |id| state.live.contains(&id) && !state.destroyed.contains(&id);
    let existing: Vec<_> = batch.iter().copied().filter(|new| is_live(new.id)).collect();
    if existing.is_empty() {
        return Ok(HashMap::new());
    }
    let mut differing = statements::compare_collections(connection, &existing).await?;
    if differing.len() != existing.len() {
        // One was destroyed since it was found.
        return Err(ImportError::Changed);
    }
    let asked: Vec<_> = existing.iter().map(|new| new.id.get()).collect();
    let stored = statements::count_entries(connection, &asked).await?;
    let mut matching: HashMap<CollectionId, i64> = HashMap::new();
    let mut entries = existing.iter().flat_map(|new| new.entries.iter().map(|entry| (new.id, *entry)));
    while let Some(chunk) = next_chunk(&mut entries) {
        for (id, count) in statements::count_matching(connection, &chunk).await? {
            *matching.entry(id).or_default() += count;
        }
    }
    for new in existing {
        let count = i64::try_from(new.entries.len()).unwrap_or(i64::MAX);
        let of = |counts: &HashMap<CollectionId, i64>| counts.get(&new.id).copied().unwrap_or_default();
        let fields = differing.entry(new.id).or_default();
        if of(&stored) != count || of(&matching) != count {
            let comma = if fields.is_empty() { "" } else { ", " };
            fields.push_str(comma);
            fields.push_str("entries");
        }
    }
    differing.retain(|_, fields| !fields.is_empty());
    Ok(differing)
}

async fn insert_entries(
    transaction: &DatabaseTransaction,
    mut entries: impl Iterator<Item = (CollectionId, EntryToImport, DateTime<Utc>)>,
) -> Result<(), DbErr> {
    while let Some(chunk) = next_chunk(&mut entries) {
        let inserted = statements::insert_entries(transaction, &chunk).await?;
        if inserted != chunk.len() as u64 {
            return Err(DbErr::Type(format!("{inserted} of {} entries were inserted", chunk.len())));
        }
    }
    Ok(())
}

fn next_chunk<T>(items: &mut impl Iterator<Item = T>) -> Option<Vec<T>> {
    let chunk: Vec<T> = items.take(import::STATEMENT_ROWS).collect();
    if chunk.is_empty() { None } else { Some(chunk) }
}

fn ids(of: &HashSet<CollectionId>) -> Vec<i64> {
    of.iter().map(|id| id.get()).collect()
}
