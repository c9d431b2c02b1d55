//! What becomes of each table when a collection is destroyed. A test compares this list with the schema of both databases,
//! so that a new table or column cannot be added without a rule.

/// What becomes of a table's rows of a destroyed collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionRule {
    /// Deleted by the destroying statement.
    Destroyed,
    /// Erased afterwards by the purge.
    Purged,
    /// Written by the destroying statement, and deleted when the work that it stands for is done.
    Queue,
    /// Kept for ever. It holds nothing that the user wrote.
    Kept,
    /// Refers to no collection.
    Unrelated,
}

/// A table with all its columns, and their rule.
#[derive(Clone, Copy, Debug)]
pub struct TableRule {
    pub table: &'static str,
    pub columns: &'static [&'static str],
    pub rule: DeletionRule,
}

/// Every table of the schema.
pub const DELETION_RULES: [TableRule; 9] = [
    TableRule {
        table: "collections",
        columns: &["id", "owner_id", "name", "description", "url", "timeline_order", "created_at"],
        rule: DeletionRule::Destroyed,
    },
    TableRule {
        table: "collection_entries",
        columns: &["collection_id", "tweet_id", "sort_index", "added_at"],
        rule: DeletionRule::Purged,
    },
    TableRule { table: "purge_queue", columns: &["id", "since"], rule: DeletionRule::Queue },
    TableRule { table: "event_outbox", columns: &["id", "since"], rule: DeletionRule::Queue },
    TableRule {
        table: "destroyed_collections",
        columns: &["id", "owner_id", "destroyed_at", "request_id", "caller"],
        rule: DeletionRule::Kept,
    },
    TableRule {
        table: "imports",
        columns: &[
            "name",
            "run_id",
            "head_sha256",
            "started_at",
            "updated_at",
            "byte_offset",
            "line",
            "imported",
            "entries",
            "existing",
            "rejected",
            "rejects_bytes",
        ],
        rule: DeletionRule::Unrelated,
    },
    TableRule {
        table: "oauth_applications",
        columns: &["consumer_key", "name", "key_id", "sealed_secret", "suspended", "created_at"],
        rule: DeletionRule::Unrelated,
    },
    TableRule {
        table: "oauth_access_tokens",
        columns: &[
            "token",
            "consumer_key",
            "user_id",
            "key_id",
            "sealed_secret",
            "write_access",
            "created_at",
            "expires_at",
            "revoked_at",
        ],
        rule: DeletionRule::Unrelated,
    },
    TableRule {
        table: "seaql_migrations",
        columns: &["version", "applied_at"],
        rule: DeletionRule::Unrelated,
    },
];
