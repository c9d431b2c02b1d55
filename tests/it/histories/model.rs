//! The rows that the database must have, and the result that each operation must return.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use collections_service::{
    domain::{CollectionId, DestroyError, Destroyed, UserId},
    store::{
        Applied, CollectionToImport, Destroy, EntryToImport, ImportOutcome, Inconsistency, NewCollection,
        OwnerMismatch, Purged, Refusal, Tombstone,
    },
};

use crate::support::user;

pub type Time = DateTime<Utc>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    pub owner: i64,
    pub name: String,
    pub created_at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub sort_index: i64,
    pub added_at: Time,
}

/// The contents of all tables that the operations write. A backup is a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub collections: BTreeMap<i64, Collection>,
    /// By collection and tweet.
    pub entries: BTreeMap<(i64, i64), Entry>,
    pub tombstones: BTreeMap<i64, Tombstone>,
    pub purge_queue: BTreeMap<i64, Time>,
    pub event_outbox: BTreeMap<i64, Time>,
    /// The unfinished imports: when each began, and how many lines it has read.
    pub imports: BTreeMap<String, (Time, i64)>,
}

impl Tables {
    pub fn has_entries(&self, id: i64) -> bool {
        self.entries.range((id, i64::MIN)..=(id, i64::MAX)).next().is_some()
    }

    /// Of the collection, live or destroyed.
    pub fn owner(&self, id: i64) -> Option<UserId> {
        let live = self.collections.get(&id).map(|live| user(live.owner));
        live.or(self.tombstones.get(&id).map(|tombstone| tombstone.owner))
    }

    fn is_known(&self, id: i64) -> bool {
        self.collections.contains_key(&id) || self.tombstones.contains_key(&id)
    }

    /// Whether entries are stored under an id that has neither a collection nor a tombstone.
    pub fn has_orphans(&self, id: i64) -> bool {
        !self.is_known(id) && self.has_entries(id)
    }

    /// What is live under this id, as a line of an import that is identical to it.
    pub fn line_of(&self, number: i64) -> Option<CollectionToImport> {
        let live = self.collections.get(&number)?;
        let entries = self.entries.range((number, i64::MIN)..=(number, i64::MAX));
        let entries = entries.map(|((_, tweet_id), entry)| EntryToImport {
            tweet_id: *tweet_id,
            sort_index: entry.sort_index,
            added_at: Some(entry.added_at),
        });
        Some(CollectionToImport {
            id: CollectionId::new(number).unwrap(),
            owner: user(live.owner),
            name: live.name.clone(),
            description: None,
            url: None,
            timeline_order: "curation_reverse_chron",
            created_at: Some(live.created_at),
            entries: entries.collect(),
        })
    }

    /// `false` where the id is in use or was destroyed.
    pub fn insert(&mut self, new: &NewCollection, now: Time) -> bool {
        let id = new.id.get();
        if self.is_known(id) {
            return false;
        }
        let collection = Collection { owner: new.owner.get(), name: new.name.clone(), created_at: now };
        self.collections.insert(id, collection);
        for (sort_index, tweet) in (0..).zip(&new.entries) {
            self.entries.insert((id, *tweet), Entry { sort_index, added_at: now });
        }
        true
    }

    pub fn import(&mut self, line: &CollectionToImport, now: Time) -> ImportOutcome {
        let id = line.id.get();
        if self.tombstones.contains_key(&id) {
            return ImportOutcome::Refused(Refusal::Destroyed);
        }
        if self.has_orphans(id) {
            return ImportOutcome::Refused(Refusal::Orphans);
        }
        if let Some(live) = self.collections.get(&id) {
            let differing = self.differing(live, line);
            return match differing.as_slice() {
                [] => ImportOutcome::Existing,
                fields => ImportOutcome::Refused(Refusal::Differs(fields.join(", "))),
            };
        }
        let created_at = line.created_at.unwrap_or(now);
        let collection = Collection { owner: line.owner.get(), name: line.name.clone(), created_at };
        self.collections.insert(id, collection);
        for entry in &line.entries {
            let added_at = entry.added_at.unwrap_or(created_at);
            self.entries.insert((id, entry.tweet_id), Entry { sort_index: entry.sort_index, added_at });
        }
        ImportOutcome::Imported
    }

    fn differing(&self, live: &Collection, line: &CollectionToImport) -> Vec<&'static str> {
        let id = line.id.get();
        let stored = self.entries.range((id, i64::MIN)..=(id, i64::MAX)).count();
        let are_stored = line.entries.iter().all(|entry| {
            self.entries.get(&(id, entry.tweet_id)).is_some_and(|stored| {
                stored.sort_index == entry.sort_index && entry.added_at.is_none_or(|at| stored.added_at == at)
            })
        });
        let fields = [
            ("owner_id", live.owner != line.owner.get()),
            ("name", live.name != line.name),
            ("created_at", line.created_at.is_some_and(|at| live.created_at != at)),
            ("entries", stored != line.entries.len() || !are_stored),
        ];
        fields.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
    }

    /// A request id that the service generated is not known here: the tombstone has none then.
    pub fn destroy(&mut self, call: &Destroy, now: Time) -> Result<Destroyed, DestroyError> {
        let id = call.id.get();
        if let Some(live) = self.collections.get(&id) {
            if live.owner != call.user.get() {
                return Err(DestroyError::NotOwner);
            }
            self.collections.remove(&id);
            let (owner, request_id, caller) = (call.user, call.request_id, call.caller.clone());
            self.tombstones
                .insert(id, Tombstone { id: call.id, owner, destroyed_at: now, request_id, caller });
            self.purge_queue.insert(id, now);
            self.event_outbox.insert(id, now);
            return Ok(Destroyed::Now);
        }
        let is_repeated = self.tombstones.get(&id).is_some_and(|tombstone| {
            tombstone.owner == call.user
                && call.request_id.is_some()
                && tombstone.request_id == call.request_id
        });
        if is_repeated { Ok(Destroyed::Before) } else { Err(DestroyError::NotFound) }
    }

    /// What another program writes without the lock that it has to hold. `false` where the entry exists.
    pub fn add_entry(&mut self, id: i64, tweet: i64, now: Time) -> bool {
        let is_new = !self.entries.contains_key(&(id, tweet));
        if is_new {
            self.entries.insert((id, tweet), Entry { sort_index: 0, added_at: now });
        }
        is_new
    }

    pub fn apply(&mut self, batch: &[Tombstone]) -> Applied {
        let mut applied = Applied::default();
        for tombstone in batch {
            let id = tombstone.id.get();
            let in_file = tombstone.owner;
            if let Some(in_database) = self.owner(id).filter(|owner| *owner != in_file) {
                applied.mismatches.push(OwnerMismatch { id: tombstone.id, in_file, in_database });
                continue;
            }
            let is_standing = self.tombstones.contains_key(&id);
            applied.destroyed += u64::from(self.collections.contains_key(&id));
            applied.recorded += u64::from(!self.is_known(id));
            applied.existing += u64::from(is_standing);
            let is_queued = self.purge_queue.contains_key(&id);
            if !is_queued && (!is_standing || self.has_entries(id)) {
                self.purge_queue.insert(id, tombstone.destroyed_at);
                applied.queued += 1;
            }
            self.collections.remove(&id);
            self.tombstones.entry(id).or_insert_with(|| tombstone.clone());
        }
        applied
    }

    /// Checks that a step of the purge changed nothing but what it may change.
    pub fn check_step(&self, after: &Self, purged: &Purged, batch: u32) -> Result<(), String> {
        let expected =
            Self { entries: after.entries.clone(), purge_queue: after.purge_queue.clone(), ..self.clone() };
        if expected != *after {
            return Err(format!("a step of the purge wrote to other tables: {after:#?}"));
        }
        for (key, entry) in &self.entries {
            if after.entries.get(key) != Some(entry) && !self.purge_queue.contains_key(&key.0) {
                return Err(format!("the purge changed {key:?}, which is not queued"));
            }
        }
        for (id, since) in &self.purge_queue {
            match after.purge_queue.get(id) {
                None if after.has_entries(*id) => return Err(format!("{id} left the queue with entries")),
                Some(after) if after != since => return Err(format!("the age of {id} changed")),
                _ => {}
            }
        }
        let erased = self.entries.len().checked_sub(after.entries.len()).map(|erased| erased as u64);
        let finished = self.purge_queue.len().checked_sub(after.purge_queue.len()).map(|count| count as u64);
        if (erased, finished) != (Some(purged.entries), Some(purged.collections)) {
            return Err(format!("{purged:?} is stated, but {erased:?} and {finished:?} is true"));
        }
        if purged.entries > batch.into() {
            return Err(format!("{purged:?} is more than a batch of {batch}"));
        }
        Ok(())
    }

    /// Erases everything that is queued; returns the numbers of entries and of collections.
    pub fn purge(&mut self) -> (u64, u64) {
        let before = (self.entries.len() as u64, self.purge_queue.len() as u64);
        self.entries.retain(|(id, _), _| !self.purge_queue.contains_key(id));
        self.purge_queue.clear();
        (before.0 - self.entries.len() as u64, before.1)
    }

    /// What `verify` must find.
    pub fn findings(&self) -> BTreeMap<Inconsistency, BTreeSet<i64>> {
        let mut found: BTreeMap<Inconsistency, BTreeSet<i64>> = BTreeMap::new();
        for (id, _) in self.entries.keys() {
            if self.has_orphans(*id) {
                found.entry(Inconsistency::OrphanEntries).or_default().insert(*id);
            } else if self.tombstones.contains_key(id) && !self.purge_queue.contains_key(id) {
                found.entry(Inconsistency::PurgedWithEntries).or_default().insert(*id);
            }
        }
        found
    }

    /// What `verify --fix` must change.
    pub fn fix(&mut self, now: Time) {
        for (kind, ids) in self.findings() {
            match kind {
                Inconsistency::PurgedWithEntries => {
                    self.purge_queue.extend(ids.into_iter().map(|id| (id, now)))
                }
                _ => self.entries.retain(|(id, _), _| !ids.contains(id)),
            }
        }
    }
}
