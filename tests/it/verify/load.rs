//! `verify` next to a service that destroys and purges.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
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
    batches::asked,
    destroy::on_both,
    support::{Backend, Ground, OWNER},
};

on_both!(a_verification_next_to_destroys_and_purges_finds_nothing, a_fix_next_to_them_changes_nothing);

/// Collections, each put in, destroyed and purged while others are.
const COLLECTIONS: i64 = 400;
const AT_ONCE: i64 = 4;

/// Reads everything again and again until the load has ended, and once more. Returns the passes.
async fn verify_repeatedly(store: &Store, has_ended: &AtomicBool) -> usize {
    let mut passes = 0;
    loop {
        let is_last = has_ended.load(Ordering::Acquire);
        let mut position = Some(VerifyPosition::default());
        while let Some(here) = position {
            let chunk = store.verify_chunk(here).await.unwrap();
            assert_eq!(chunk.found, [], "pass {passes}, {:?}", chunk.phase);
            position = chunk.next;
        }
        passes += 1;
        if is_last {
            return passes;
        }
    }
}

/// Puts in, destroys and purges collections; `has_ended` then.
async fn load(ground: &Ground, has_ended: &AtomicBool) {
    let next = AtomicI64::new(1);
    let worker = async || {
        loop {
            let id = next.fetch_add(1, Ordering::Relaxed);
            if id > COLLECTIONS {
                return;
            }
            ground.put(id, OWNER).await;
            ground.store.destroy(asked(id)).await.unwrap();
        }
    };
    let destroying = async {
        futures_util::future::join_all((0..AT_ONCE).map(|_| worker())).await;
        has_ended.store(true, Ordering::Release);
    };
    let purging = async {
        let mut purger = ground.store.purger(PurgeLimits::background(10));
        while !has_ended.load(Ordering::Acquire) {
            purger.step().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    join(destroying, purging).await;
}

mod cases {
    use super::*;

    pub async fn a_verification_next_to_destroys_and_purges_finds_nothing(backend: Backend) {
        let ground = Ground::new(backend).await;
        let url = ground.url.clone().into();
        let reader = Store::open(&url, ground.clock.clone(), Entropy::default()).await.unwrap();
        let has_ended = AtomicBool::new(false);
        let (passes, ()) = join(verify_repeatedly(&reader, &has_ended), load(&ground, &has_ended)).await;
        assert!(passes > 10, "{passes} passes");
        let (code, object) = verify(&ground, &[]).await;
        assert_eq!((code, object["checked"]["tombstones"].as_i64()), (0, Some(COLLECTIONS)));
        assert!(config::verify::CHUNK_ROWS > 2 * COLLECTIONS.unsigned_abs(), "a pass is one step a phase");
    }

    pub async fn a_fix_next_to_them_changes_nothing(backend: Backend) {
        let ground = Ground::new(backend).await;
        let has_ended = AtomicBool::new(false);
        let fixing = async {
            while !has_ended.load(Ordering::Acquire) {
                let (code, object) = verify(&ground, &["--fix"]).await;
                assert_eq!((code, &object["found"]), (0, &serde_json::json!(0)), "{object}");
            }
        };
        join(fixing, load(&ground, &has_ended)).await;
        assert_eq!(verify(&ground, &[]).await.0, 0);
    }
}
