//! Random owners, ids and interleavings against a reference model: whatever happens at once, every collection is
//! destroyed by its owner or not at all, and every caller gets an answer that agrees with the database.

use std::{collections::BTreeMap, sync::OnceLock};

use proptest::prelude::*;
use tokio::runtime::Runtime;
use tonic::Code;

use super::support::{App, Backend, destroy, user};

/// Users 1 to 3 and collections 0 to 3, so that calls meet often.
#[derive(Clone, Copy, Debug)]
struct Call {
    user: i64,
    collection: usize,
    /// 0 stands for none.
    request: u8,
}

/// Waves of calls that are sent at once; a wave begins when the one before is answered.
#[derive(Clone, Debug)]
struct Scenario {
    owners: Vec<i64>,
    waves: Vec<Vec<Call>>,
}

/// The state of a collection in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Alive,
    /// With the request id of the call that destroyed it.
    Gone(u8),
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let call = (1..=3_i64, 0..4_usize, prop_oneof![2 => Just(0), 1 => 1..=2_u8])
        .prop_map(|(user, collection, request)| Call { user, collection, request });
    let waves = prop::collection::vec(prop::collection::vec(call, 1..12), 1..4);
    (prop::collection::vec(1..=3_i64, 4), waves).prop_map(|(owners, waves)| Scenario { owners, waves })
}

/// Checks the answers to the calls of one wave on one collection, and gives its state after them.
fn expected_state(owner: i64, before: State, calls: &[(Call, Code)]) -> Result<State, TestCaseError> {
    let (own, foreign): (Vec<_>, Vec<_>) = calls.iter().copied().partition(|(call, _)| call.user == owner);
    let after = match before {
        State::Gone(_) => before,
        State::Alive if own.is_empty() => before,
        State::Alive => {
            let winner = own.iter().find(|(_, code)| *code == Code::Ok);
            prop_assert!(winner.is_some(), "the owner called and no call destroyed it: {calls:?}");
            State::Gone(winner.map_or(0, |(call, _)| call.request))
        }
    };
    for (_, code) in foreign {
        match (before, after) {
            (State::Alive, State::Alive) => prop_assert_eq!(code, Code::PermissionDenied),
            (State::Gone(_), _) => prop_assert_eq!(code, Code::NotFound),
            _ => prop_assert!(matches!(code, Code::PermissionDenied | Code::NotFound), "{:?}", code),
        }
    }
    let State::Gone(request) = after else { return Ok(after) };
    let mut winners = 0;
    for (call, code) in own {
        let repeats = request != 0 && call.request == request;
        let wins = before == State::Alive && request == 0 && call.request == 0 && code == Code::Ok;
        winners += usize::from(wins);
        let expected = if repeats || wins { Code::Ok } else { Code::NotFound };
        prop_assert_eq!(code, expected, "{:?} after {:?}", call, after);
    }
    prop_assert!(winners <= 1, "two won: {calls:?}");
    Ok(after)
}

async fn run_scenario(app: &App, scenario: Scenario) -> Result<(), TestCaseError> {
    let base = fresh_ids();
    let ids: Vec<i64> = (0..4).map(|index| base + index).collect();
    let mut states = Vec::new();
    for (id, owner) in ids.iter().zip(&scenario.owners) {
        app.put(*id, *owner).await;
        states.push(State::Alive);
    }
    for wave in scenario.waves {
        let sent: Vec<_> = wave
            .into_iter()
            .map(|call| {
                let (mut rpc, id) = (app.rpc(), format!("custom-{}", ids[call.collection]));
                let request = match call.request {
                    0 => String::new(),
                    number => format!("00000000-0000-4000-8000-00000000000{number}"),
                };
                tokio::spawn(async move {
                    let answer = destroy(&mut rpc, call.user, &id, &request).await;
                    (call, answer.map_or_else(|status| status.code(), |_| Code::Ok))
                })
            })
            .collect();
        let mut answers: BTreeMap<usize, Vec<(Call, Code)>> = BTreeMap::new();
        for answer in sent {
            let (call, code) = answer.await.unwrap();
            answers.entry(call.collection).or_default().push((call, code));
        }
        for (collection, calls) in answers {
            states[collection] = expected_state(scenario.owners[collection], states[collection], &calls)?;
        }
    }
    for ((id, owner), state) in ids.iter().zip(&scenario.owners).zip(states) {
        let stands = app.database.store.collections_of(user(*owner), 100_000).await.unwrap();
        let stands = stands.iter().any(|standing| standing.get() == *id);
        prop_assert_eq!(stands, state == State::Alive, "custom-{}", id);
    }
    Ok(())
}

/// The first of four ids that no scenario had before.
fn fresh_ids() -> i64 {
    use std::sync::atomic::{AtomicI64, Ordering};
    static NEXT: AtomicI64 = AtomicI64::new(1);
    NEXT.fetch_add(4, Ordering::Relaxed)
}

fn check(backend: Backend) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Runtime::new().unwrap());
    let app = runtime.block_on(App::start(backend));
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner.run(&scenarios(), |scenario| runtime.block_on(run_scenario(&app, scenario))).unwrap();
}

#[test]
fn outcomes_match_the_model_on_sqlite() {
    check(Backend::Sqlite);
}

#[test]
fn outcomes_match_the_model_on_postgres() {
    check(Backend::Postgres);
}
