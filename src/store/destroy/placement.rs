//! Which destroys should share a statement on a distributed engine: those whose rows are on one node.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, FromQueryResult, Statement};

use crate::{config::store, domain::CollectionId};

/// The groups of ids that a database's own catalogs define. A batch never mixes groups. That is a matter of speed alone:
/// a batch that spans nodes is still atomic, because the engine commits it in two phases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The lowest hash of each range, ascending, and the group of the range. One group has one range.
    ranges: Vec<(i32, usize)>,
    groups: usize,
}

/// A range of `hashint8(id)` and the node group that holds it, as Citus lists them.
#[derive(Debug, FromQueryResult)]
struct Shard {
    lowest: i32,
    node: i32,
}

const IS_CITUS: &str = "SELECT to_regclass('pg_catalog.pg_dist_shard') IS NOT NULL AS present";

/// Empty where `collections` is not distributed.
const SHARDS: &str = "\
SELECT shard.shardminvalue::int AS lowest, min(placement.groupid) AS node
FROM pg_dist_shard AS shard JOIN pg_dist_placement AS placement USING (shardid)
WHERE shard.logicalrelid = 'collections'::regclass AND shard.shardminvalue IS NOT NULL AND placement.shardstate = 1
GROUP BY shard.shardminvalue::int ORDER BY 1";

impl Default for Placement {
    fn default() -> Self {
        Self { ranges: vec![(i32::MIN, 0)], groups: 1 }
    }
}

impl Placement {
    /// The groups for these ranges: each with its lowest hash and its node. A node keeps its group while the set of nodes
    /// stays the same.
    fn of(shards: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let shards: Vec<_> = shards.into_iter().collect();
        if shards.is_empty() {
            return Self::default();
        }
        let mut groups: BTreeMap<i32, usize> = shards.iter().map(|(_, node)| (*node, 0)).collect();
        for (place, group) in groups.values_mut().enumerate() {
            *group = place % store::GROUPS;
        }
        let mut ranges: Vec<_> = shards
            .into_iter()
            .map(|(lowest, node)| (lowest, groups.get(&node).copied().unwrap_or_default()))
            .collect();
        ranges.sort_unstable();
        Self { ranges, groups: groups.len().min(store::GROUPS) }
    }

    /// Reads it from the database's catalogs: one group on plain PostgreSQL.
    pub async fn read(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let present = Statement::from_string(DbBackend::Postgres, IS_CITUS);
        let present = db.query_one_raw(present).await?.map(|row| row.try_get::<bool>("", "present"));
        if !present.transpose()?.unwrap_or_default() {
            return Ok(Self::default());
        }
        let shards = Statement::from_string(DbBackend::Postgres, SHARDS);
        let shards = Shard::find_by_statement(shards).all(db).await?;
        Ok(Self::of(shards.into_iter().map(|shard| (shard.lowest, shard.node))))
    }

    pub const fn groups(&self) -> usize {
        self.groups
    }

    /// Whether the engine is a distributed one.
    pub const fn is_distributed(&self) -> bool {
        self.ranges.len() > 1 || self.groups > 1
    }

    pub fn group_of(&self, id: CollectionId) -> usize {
        self.group_of_hash(hashint8(id.get()))
    }

    fn group_of_hash(&self, hash: i32) -> usize {
        let after = self.ranges.partition_point(|(lowest, _)| *lowest <= hash);
        self.ranges.get(after.saturating_sub(1)).map_or(0, |(_, group)| *group)
    }

    /// A negative number, which no id is, whose row would belong to the group.
    pub fn rehearsal_id(&self, group: usize, random: u64) -> i64 {
        self.id_in(group, random, -1)
    }

    /// An id of the group, whether a collection has it or not.
    pub fn probe_id(&self, group: usize, random: u64) -> i64 {
        self.id_in(group, random, 1)
    }

    fn id_in(&self, group: usize, random: u64, sign: i64) -> i64 {
        let first = (random >> 1).cast_signed();
        let ids = (0..10_000).map(|step| sign * first.saturating_sub(step).max(1));
        let wanted = |id: &i64| self.group_of_hash(hashint8(*id)) == group;
        // A group without a range has none.
        ids.into_iter().find(wanted).unwrap_or(sign)
    }
}

/// PostgreSQL's hash of a `bigint`, by which Citus distributes rows: Bob Jenkins's final mix over the folded halves
/// (`hash_uint32` in `src/common/hashfn.c`).
#[must_use]
pub const fn hashint8(number: i64) -> i32 {
    let (low, high) = (number as u32, (number >> 32) as u32);
    let key = low ^ if number >= 0 { high } else { !high };
    const START: u32 = 0x9e37_79b9_u32.wrapping_add(4).wrapping_add(3_923_095);
    let (mut a, mut b, mut c) = (START.wrapping_add(key), START, START);
    c ^= b;
    c = c.wrapping_sub(b.rotate_left(14));
    a ^= c;
    a = a.wrapping_sub(c.rotate_left(11));
    b ^= a;
    b = b.wrapping_sub(a.rotate_left(25));
    c ^= b;
    c = c.wrapping_sub(b.rotate_left(16));
    a ^= c;
    a = a.wrapping_sub(c.rotate_left(4));
    b ^= a;
    b = b.wrapping_sub(a.rotate_left(14));
    c ^= b;
    c = c.wrapping_sub(b.rotate_left(24));
    c.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::Placement;

    #[test]
    fn a_hash_belongs_to_the_range_below_it() {
        let placement = Placement::of([(0, 7), (i32::MIN, 3), (1000, 3)]);
        assert_eq!(placement.groups(), 2);
        for (hash, group) in [(i32::MIN, 0), (-1, 0), (0, 1), (999, 1), (1000, 0), (i32::MAX, 0)] {
            assert_eq!(placement.group_of_hash(hash), group, "{hash}");
        }
        assert_eq!(Placement::default().group_of_hash(5), 0);
        let placement = Placement::of([(0, 7), (i32::MIN, 3)]);
        for group in [0, 1] {
            for random in [u64::MAX, 1 << 40] {
                let (rehearsed, probed) =
                    (placement.rehearsal_id(group, random), placement.probe_id(group, random));
                assert!(rehearsed < 0 && placement.group_of_hash(super::hashint8(rehearsed)) == group);
                assert!(probed > 0 && placement.group_of_hash(super::hashint8(probed)) == group);
            }
        }
    }
}
