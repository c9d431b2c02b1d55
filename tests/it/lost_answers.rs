//! Commits whose acknowledgement is lost: the service finds out what happened, and every caller is told.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use collections_service::store::Destroyed;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    batches::{asked, tombstones},
    faults::front,
    support::{Backend, Ground, OWNER, connect},
};

/// Calls, and how many of them are in flight at one time.
const CALLS: i64 = 200;
const CALLERS: i64 = 8;

/// Passes messages on, but of every second answer to a destroy only so much that the server has committed: the connection is
/// closed instead.
async fn cut_answers(listener: TcpListener, server: String, cuts: Arc<AtomicU32>) {
    let answers = Arc::new(AtomicU32::new(0));
    while let Ok((client, _)) = listener.accept().await {
        let upstream = TcpStream::connect(&server).await.unwrap();
        let (answers, cuts) = (answers.clone(), cuts.clone());
        tokio::spawn(async move {
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), upstream.into_split());
            let forward = async { tokio::io::copy(&mut from_client, &mut to_server).await };
            let back = async {
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    let length = from_server.read(&mut buffer).await.unwrap_or(0);
                    let Some(answer) = buffer.get(..length).filter(|answer| !answer.is_empty()) else {
                        return;
                    };
                    // CommandComplete of one SELECT, behind a row of nothing but the letter d: a batch that destroyed. The
                    // server sends it after the commit.
                    let destroyed = answer.windows(9).any(|part| part == b"SELECT 1\0")
                        && answer.windows(4).any(|part| part == b"\0\0\0\x01" || part == b"dddd")
                        && answer.contains(&b'd');
                    if destroyed && answers.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
                        cuts.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    if to_client.write_all(answer).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                _ended = forward => {}
                () = back => {}
            }
        });
    }
}

#[tokio::test]
async fn a_lost_acknowledgement_is_answered_with_what_happened() {
    let ground = Ground::new(Backend::Postgres).await;
    for id in 1..=CALLS {
        ground.put(id, OWNER).await;
    }
    let ((listener, through, server), cuts) = (front(&ground.url).await, Arc::new(AtomicU32::new(0)));
    tokio::spawn(cut_answers(listener, server, cuts.clone()));
    let store = connect(&through, collections_service::store::Capacity::of(4), &ground.clock).await;
    let caller = |first: i64| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            for id in (first..=CALLS).step_by(usize::try_from(CALLERS).unwrap()) {
                outcomes.push((id, store.destroy(asked(id)).await));
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
    assert_eq!(tombstones(&ground).await, CALLS);
    assert_eq!(ground.owned_by(OWNER).await, [] as [i64; 0]);
}
