//! `verify` next to a service that destroys and purges.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use collections_service::{
    config,
    domain::Entropy,
    store::{PurgeLimits, Store, VerifyPosition},
};
use futures_util::future::join;

use super::verify;
use crate::{
    batches::destroy_of,
    destroy::on_both,
    support::{Backend, OWNER, TestDatabase},
};

on_both!(a_verification_next_to_destroys_and_purges_finds_nothing, a_fix_changes_nothing_in_flight);

/// Collections, each put in, destroyed and purged while others are, at the least. There are more of them, up to `MOST`, until
/// everything was read once meanwhile.
const COLLECTIONS: i64 = 400;
const MOST: i64 = 4000;
const AT_ONCE: i64 = 4;

/// What goes on at the same time.
#[derive(Default)]
struct Progress {
    destroyed: AtomicI64,
    purged_entries: AtomicU64,
    /// Verifications that began after the first purge and ended before the last destroy.
    passes: AtomicUsize,
    has_ended: AtomicBool,
}

impl Progress {
    fn has_purged(&self) -> bool {
        self.purged_entries.load(Ordering::Acquire) > 0
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Runs the verification again and again until the load has ended, and once more.
    async fn repeat(&self, verification: impl AsyncFn()) {
        loop {
            let (is_begun, is_last) = (self.has_purged(), self.has_ended());
            verification().await;
            if is_begun && !self.has_ended() {
                self.passes.fetch_add(1, Ordering::AcqRel);
            }
            if is_last {
                return;
            }
        }
    }

    /// Puts in, destroys and purges collections.
    async fn load(&self, database: &TestDatabase) {
        let next = AtomicI64::new(1);
        let worker = async || {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id > MOST || id > COLLECTIONS && self.passes.load(Ordering::Acquire) > 0 {
                    return;
                }
                database.put(id, OWNER).await;
                database.store.destroy(destroy_of(id)).await.unwrap();
                self.destroyed.fetch_add(1, Ordering::AcqRel);
            }
        };
        let destroying = async {
            futures_util::future::join_all((0..AT_ONCE).map(|_| worker())).await;
            self.has_ended.store(true, Ordering::Release);
        };
        let purging = async {
            let mut purger = database.store.purger(PurgeLimits::background(10));
            while !self.has_ended() {
                let purged = purger.step().await.unwrap();
                self.purged_entries.fetch_add(purged.entries, Ordering::AcqRel);
                // As between the batches of a service.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        join(destroying, purging).await;
    }

    /// Afterwards.
    async fn assert_verified(&self, database: &TestDatabase) {
        assert!(self.passes.load(Ordering::Acquire) > 0, "nothing was verified during the load");
        let (code, object) = verify(database, &[]).await;
        let destroyed = self.destroyed.load(Ordering::Acquire);
        assert_eq!((code, object["checked"]["tombstones"].as_i64()), (0, Some(destroyed)));
    }
}

/// Reads everything once.
async fn read_all(store: &Store) {
    let mut position = Some(VerifyPosition::default());
    while let Some(here) = position {
        let chunk = store.verify_chunk(here).await.unwrap();
        assert_eq!(chunk.found, [], "{:?}", chunk.phase);
        position = chunk.next;
    }
}

mod cases {
    use super::*;

    pub async fn a_verification_next_to_destroys_and_purges_finds_nothing(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let url = database.url.clone().into();
        let reader = Store::open(&url, database.clock.clone(), Entropy::default()).await.unwrap();
        let progress = Progress::default();
        join(progress.repeat(async || read_all(&reader).await), progress.load(&database)).await;
        progress.assert_verified(&database).await;
        const { assert!(config::verify::CHUNK_ROWS > 2 * MOST, "a pass is one step a phase") };
    }

    pub async fn a_fix_changes_nothing_in_flight(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let progress = Progress::default();
        let fix = async || {
            let (code, object) = verify(&database, &["--fix"]).await;
            assert_eq!((code, &object["found"]), (0, &serde_json::json!(0)), "{object}");
        };
        join(progress.repeat(fix), progress.load(&database)).await;
        progress.assert_verified(&database).await;
    }
}
