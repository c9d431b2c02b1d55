//! Commits whose acknowledgement is lost: the service reads the outcome, and answers every caller with it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use collections_service::domain::Destroyed;

use super::{
    batches::{destroy_of, tombstones},
    faults::front,
    support::{Backend, OWNER, TestDatabase, connect, relay::lose_answers},
};

/// Calls, and how many of them are in flight at one time.
const CALLS: i64 = 200;
const CALLERS: i64 = 8;

/// Every second answer to a destroy, which the server sends after the commit.
fn every_second_destroy(cuts: Arc<AtomicU32>) -> impl Fn(&[u8]) -> bool {
    let answers = AtomicU32::new(0);
    move |answer| {
        // CommandComplete of one SELECT, behind a row of nothing but the letter d: a batch that destroyed.
        let destroyed = answer.windows(9).any(|part| part == b"SELECT 1\0")
            && answer.windows(4).any(|part| part == b"\0\0\0\x01" || part == b"dddd")
            && answer.contains(&b'd');
        let is_lost = destroyed && answers.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        cuts.fetch_add(u32::from(is_lost), Ordering::Relaxed);
        is_lost
    }
}

#[tokio::test]
async fn a_lost_acknowledgement_is_answered_with_what_happened() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=CALLS {
        database.put(id, OWNER).await;
    }
    let ((listener, through, server), cuts) = (front(&database.url).await, Arc::new(AtomicU32::new(0)));
    tokio::spawn(lose_answers(listener, server, every_second_destroy(cuts.clone())));
    let store = connect(&through, collections_service::store::Capacity::of(4), &database.clock).await;
    let caller = |first: i64| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            for id in (first..=CALLS).step_by(usize::try_from(CALLERS).unwrap()) {
                outcomes.push((id, store.destroy(destroy_of(id)).await));
            }
            outcomes
        })
    };
    let callers: Vec<_> = (1..=CALLERS).map(caller).collect();
    let mut destroyed = BTreeSet::new();
    for caller in callers {
        let outcomes = tokio::time::timeout(Duration::from_secs(60), caller).await.unwrap().unwrap();
        for (id, outcome) in outcomes {
            assert_eq!(outcome, Ok(Destroyed::Now), "custom-{id}");
            assert!(destroyed.insert(id), "custom-{id} was destroyed twice");
        }
    }
    assert!(cuts.load(Ordering::Relaxed) >= 5, "{cuts:?} answers were lost");
    assert_eq!(tombstones(&database).await, CALLS);
    assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
}
