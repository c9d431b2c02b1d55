//! What `verify` found, in bounded memory.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::{
    config::verify,
    domain::CollectionId,
    store::{Inconsistency, VerifyChunk, VerifyPhase},
};

#[derive(Default)]
pub struct Report {
    purge_rows: u64,
    event_rows: u64,
    tombstones: u64,
    entries: u64,
    /// Ids that have entries.
    ids: u64,
    findings: BTreeMap<Inconsistency, Finding>,
    /// Since when the oldest row of the purge queue waits; `None` where the queue is empty.
    pub oldest_purge: Option<DateTime<Utc>>,
}

/// All ids of one kind.
#[derive(Default)]
struct Finding {
    found: u64,
    fixed: u64,
    /// The first of them.
    named: Vec<i64>,
    /// The entries of one collection may be read by two steps.
    last_found: Option<i64>,
    last_fixed: Option<i64>,
}

/// In the order of the report. In JSON each is there, also without a finding.
const KINDS: [Inconsistency; 5] = [
    Inconsistency::OrphanEntries,
    Inconsistency::PurgedWithEntries,
    Inconsistency::LiveAndDestroyed,
    Inconsistency::PurgeWithoutTombstone,
    Inconsistency::EventWithoutTombstone,
];

/// Its name in JSON.
const fn name(kind: Inconsistency) -> &'static str {
    match kind {
        Inconsistency::OrphanEntries => "orphan_entries",
        Inconsistency::PurgedWithEntries => "purged_with_entries",
        Inconsistency::LiveAndDestroyed => "live_and_destroyed",
        Inconsistency::PurgeWithoutTombstone => "purge_without_tombstone",
        Inconsistency::EventWithoutTombstone => "event_without_tombstone",
    }
}

const fn title(kind: Inconsistency) -> &'static str {
    match kind {
        Inconsistency::OrphanEntries => "ids with entries, without collection and without tombstone",
        Inconsistency::PurgedWithEntries => "destroyed ids with entries that are not queued for purging",
        Inconsistency::LiveAndDestroyed => "ids that are both live and destroyed",
        Inconsistency::PurgeWithoutTombstone => "rows of purge_queue without tombstone",
        Inconsistency::EventWithoutTombstone => "rows of event_outbox without tombstone",
    }
}

const fn advice(kind: Inconsistency) -> &'static str {
    match kind {
        Inconsistency::OrphanEntries => {
            "find the program that adds entries without locking the collection's row; `verify --fix` deletes them"
        }
        Inconsistency::PurgedWithEntries => {
            "find the program that adds entries without locking the collection's row; `verify --fix` queues the purge again"
        }
        Inconsistency::LiveAndDestroyed => {
            "if a backup was restored: `tombstones export` and `tombstones apply` destroy them again; `inspect` shows each"
        }
        Inconsistency::PurgeWithoutTombstone | Inconsistency::EventWithoutTombstone => {
            "such a row was written by hand or restored without its tombstone; `verify --fix` deletes it"
        }
    }
}

/// A row that was written by hand may have a number that is no valid id. It is shown without the prefix.
fn display_id(number: i64) -> String {
    CollectionId::new(number).map_or_else(|| number.to_string(), |id| id.to_string())
}

/// The number and the noun in its singular or plural.
pub fn counted(number: u64, singular: &str, plural: &str) -> String {
    format!("{number} {}", if number == 1 { singular } else { plural })
}

impl Report {
    /// Counts the rows of a chunk.
    pub const fn count(&mut self, chunk: &VerifyChunk) {
        match chunk.phase {
            VerifyPhase::PurgeQueue => self.purge_rows += chunk.rows,
            VerifyPhase::EventOutbox => self.event_rows += chunk.rows,
            VerifyPhase::Tombstones => self.tombstones += chunk.rows,
            VerifyPhase::Entries => {
                self.entries += chunk.rows;
                self.ids += chunk.ids;
            }
        }
    }

    /// The rows of a phase that were counted.
    pub const fn rows(&self, phase: VerifyPhase) -> u64 {
        match phase {
            VerifyPhase::PurgeQueue => self.purge_rows,
            VerifyPhase::EventOutbox => self.event_rows,
            VerifyPhase::Tombstones => self.tombstones,
            VerifyPhase::Entries => self.entries,
        }
    }

    /// Adds findings, whose ids ascend from call to call.
    pub fn add(&mut self, kind: Inconsistency, ids: &[i64]) {
        let finding = self.findings.entry(kind).or_default();
        for id in ids {
            if finding.last_found != Some(*id) {
                finding.found += 1;
                if finding.named.len() < verify::NAMED {
                    finding.named.push(*id);
                }
            }
            finding.last_found = Some(*id);
        }
    }

    /// Adds repairs of findings, in the same order.
    pub fn add_fixed(&mut self, kind: Inconsistency, ids: &[i64]) {
        let finding = self.findings.entry(kind).or_default();
        for id in ids {
            finding.fixed += u64::from(finding.last_fixed != Some(*id));
            finding.last_fixed = Some(*id);
        }
    }

    pub fn found(&self) -> u64 {
        self.findings.values().map(|finding| finding.found).sum()
    }

    pub fn fixed(&self) -> u64 {
        self.findings.values().map(|finding| finding.fixed).sum()
    }

    /// For a command that did not read everything.
    pub fn until_now(&self) -> String {
        let (found, fixed) = (self.found(), self.fixed());
        let found = counted(found, "finding", "findings");
        format!("{}: {found} so far, {fixed} fixed; repairs are kept", self.checked())
    }

    fn checked(&self) -> String {
        format!(
            "checked {} under {}, {}, {} of queues",
            counted(self.entries, "entry", "entries"),
            counted(self.ids, "id", "ids"),
            counted(self.tombstones, "tombstone", "tombstones"),
            counted(self.purge_rows + self.event_rows, "row", "rows"),
        )
    }

    /// How much was found and repaired.
    pub fn result(&self, fix: bool) -> String {
        let found = counted(self.found(), "finding", "findings");
        match self.found() {
            0 => "nothing found".to_owned(),
            _ if fix => format!("{found}, {} fixed", self.fixed()),
            _ => found,
        }
    }

    /// The findings of each kind, the age of the purge queue, and a last line.
    pub fn in_text(&self, fix: bool) -> String {
        let mut text = String::new();
        for (kind, finding) in KINDS.iter().filter_map(|kind| self.findings.get_key_value(kind)) {
            text.push_str(&format!("{}: {}", title(*kind), finding.found));
            if finding.fixed > 0 {
                text.push_str(&format!(", {} fixed", finding.fixed));
            }
            for id in &finding.named {
                text.push_str(&format!("\n  {}", display_id(*id)));
            }
            let unnamed = finding.found.saturating_sub(finding.named.len() as u64);
            if unnamed > 0 {
                text.push_str(&format!("\n  and {unnamed} more"));
            }
            text.push_str(&format!("\n  what to do: {}\n", advice(*kind)));
        }
        if let Some(since) = self.oldest_purge {
            text.push_str(&format!("oldest row of the purge queue: {}\n", since.to_rfc3339()));
        }
        text + &format!("{}: {}", self.checked(), self.result(fix))
    }

    pub fn in_json(&self) -> String {
        let findings = KINDS.iter().map(|kind| {
            let finding = self.findings.get(kind);
            let ids = finding.map_or(&[][..], |finding| finding.named.as_slice());
            json!({
                "kind": name(*kind),
                "found": finding.map_or(0, |finding| finding.found),
                "fixed": finding.map_or(0, |finding| finding.fixed),
                "ids": ids.iter().map(|id| display_id(*id)).collect::<Vec<_>>(),
                "advice": advice(*kind),
            })
        });
        json!({
            "checked": {
                "collections_with_entries": self.ids,
                "entries": self.entries,
                "tombstones": self.tombstones,
                "purge_queue": self.purge_rows,
                "event_outbox": self.event_rows,
            },
            "purge_queue_oldest": self.oldest_purge.map(|since| since.to_rfc3339()),
            "findings": findings.collect::<Vec<_>>(),
            "found": self.found(),
            "fixed": self.fixed(),
        })
        .to_string()
    }
}
