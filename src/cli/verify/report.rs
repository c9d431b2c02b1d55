//! What `verify` found, in bounded memory.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    config::verify,
    store::{Inconsistency, VerifyChunk, VerifyPhase},
};

#[derive(Default)]
pub struct Report {
    purge_rows: u64,
    event_rows: u64,
    tombstones: u64,
    entries: u64,
    /// Ids that have entries.
    collections: u64,
    findings: BTreeMap<Inconsistency, Finding>,
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

impl Report {
    /// Counts the rows of a chunk.
    pub const fn count(&mut self, chunk: &VerifyChunk) {
        match chunk.phase {
            VerifyPhase::PurgeQueue => self.purge_rows += chunk.rows,
            VerifyPhase::EventOutbox => self.event_rows += chunk.rows,
            VerifyPhase::Tombstones => self.tombstones += chunk.rows,
            VerifyPhase::Entries => {
                self.entries += chunk.rows;
                self.collections += chunk.ids;
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
        format!("{}: {found} findings so far, {fixed} of them fixed, which stay so", self.checked())
    }

    fn checked(&self) -> String {
        format!(
            "checked {} collections with {} entries, {} tombstones, {} rows of queues",
            self.collections,
            self.entries,
            self.tombstones,
            self.purge_rows + self.event_rows
        )
    }

    /// The findings of each kind, and a last line.
    pub fn in_text(&self, fix: bool) -> String {
        let mut text = String::new();
        for (kind, finding) in KINDS.iter().filter_map(|kind| self.findings.get_key_value(kind)) {
            text.push_str(&format!("{} {}", finding.found, title(*kind)));
            if finding.fixed > 0 {
                text.push_str(&format!(", {} of them fixed", finding.fixed));
            }
            for id in &finding.named {
                text.push_str(&format!("\n  custom-{id}"));
            }
            let unnamed = finding.found.saturating_sub(finding.named.len() as u64);
            if unnamed > 0 {
                text.push_str(&format!("\n  and {unnamed} more"));
            }
            text.push_str(&format!("\n  what to do: {}\n", advice(*kind)));
        }
        let (found, fixed) = (self.found(), self.fixed());
        let result = match found {
            0 => "nothing found".to_owned(),
            _ if fix => format!("{found} findings, {fixed} of them fixed"),
            _ => format!("{found} findings"),
        };
        text + &format!("{}: {result}", self.checked())
    }

    pub fn in_json(&self) -> String {
        let findings = KINDS.iter().map(|kind| {
            let finding = self.findings.get(kind);
            let ids = finding.map_or(&[][..], |finding| finding.named.as_slice());
            json!({
                "kind": name(*kind),
                "found": finding.map_or(0, |finding| finding.found),
                "fixed": finding.map_or(0, |finding| finding.fixed),
                "ids": ids.iter().map(|id| format!("custom-{id}")).collect::<Vec<_>>(),
            })
        });
        json!({
            "checked": {
                "collections_with_entries": self.collections,
                "entries": self.entries,
                "tombstones": self.tombstones,
                "purge_queue": self.purge_rows,
                "event_outbox": self.event_rows,
            },
            "findings": findings.collect::<Vec<_>>(),
            "found": self.found(),
            "fixed": self.fixed(),
        })
        .to_string()
    }
}
