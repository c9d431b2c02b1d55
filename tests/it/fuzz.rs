//! Whatever arrives from outside: nothing panics, nothing hangs, and what is accepted is what it should be.
//!
//! A target is a function that judges one input, a strategy that makes such inputs, and a test that brings them together
//! by [`fuzz`]. `FUZZ_CASES` sets the number of inputs of each target.

mod oauth;
mod settings;
mod tokens;

use std::{cell::RefCell, io::Write, sync::mpsc, thread, time::Duration};

use collections_service::domain::{DestroyError, DestroyFailure};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};
use tokio::time::Instant;

/// The number of inputs of a target where `FUZZ_CASES` is not set.
const DEFAULT_CASES: u32 = 2000;
/// The longest that one case may take, on a machine that has much else to do.
const CASE_BOUND: Duration = Duration::from_secs(5);
/// The longest that a target may be silent before it counts as hung.
const SILENCE_BOUND: Duration = Duration::from_secs(60);

type Checked = Result<(), TestCaseError>;

/// Runs a target on its inputs, and reports the progress of long runs.
fn fuzz<S: Strategy + 'static>(name: &'static str, inputs: fn() -> S, target: fn(S::Value) -> Checked) {
    let cases = std::env::var("FUZZ_CASES").map_or(DEFAULT_CASES, |cases| cases.parse().unwrap());
    let (progress, news) = mpsc::channel();
    let fed = thread::spawn(move || {
        let config =
            Config { cases, failure_persistence: None, max_shrink_iters: 10_000, ..Config::default() };
        // Cases done, and the slowest of them.
        let seen = RefCell::new((0, Duration::ZERO));
        let outcome = TestRunner::new(config).run(&inputs(), |input| {
            let start = Instant::now();
            target(input)?;
            let took = start.elapsed();
            prop_assert!(took < CASE_BOUND, "took {took:?}");
            let (done, slowest) = &mut *seen.borrow_mut();
            (*done, *slowest) = (*done + 1, took.max(*slowest));
            if *done % 1000 == 0 {
                // The receiver is gone once the test has failed.
                let _unheard = progress.send((*done, *slowest));
            }
            Ok(())
        });
        outcome.map_err(|error| error.to_string())
    });
    let start = Instant::now();
    loop {
        match news.recv_timeout(SILENCE_BOUND) {
            Ok((done, slowest)) if done % 50_000 == 0 => {
                let spent = start.elapsed().as_secs_f64();
                let left = spent / f64::from(done) * f64::from(cases.saturating_sub(done));
                // Not captured by the test harness, so that the progress is visible during the run.
                let line = format!(
                    "{name}: {done} of {cases}, slowest {slowest:?}, {spent:.0} s spent, {left:.0} s left\n"
                );
                std::io::stderr().write_all(line.as_bytes()).unwrap();
            }
            Ok(_) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name} hangs"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(error) = fed.join().unwrap() {
        panic!("{name}: {error}");
    }
}

/// Returns the error of a refusal, whose cause is one line of bounded length, whatever was sent.
fn error_of(failure: DestroyFailure) -> DestroyError {
    let cause = failure.cause.as_deref().expect("a cause");
    assert!(!cause.is_empty() && cause.len() < 2048, "{cause}");
    assert!(
        !cause.contains(|letter: char| letter.is_control() || ('\u{2028}'..='\u{202e}').contains(&letter)),
        "{cause}"
    );
    failure.error
}

/// A text made of these pieces, with now and then something else.
fn pieced(pieces: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => select(pieces).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => (0_u8..128).prop_map(|byte| char::from(byte).to_string()),
    ];
    vec(piece, 0..most).prop_map(|pieces| pieces.concat())
}

/// Any bytes, as the text they may be.
fn raw_text() -> impl Strategy<Value = String> {
    vec(any::<u8>(), 0..96).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// One change to some bytes.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Repeat(Index, Index),
    Cut(Index),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let byte = || prop_oneof![any::<u8>(), select(b" \t,=\"&%+:/@?#;0aA~.-_\0\n\xF8".as_slice())];
        prop_oneof![
            4 => (any::<Index>(), 0_u8..8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            4 => (any::<Index>(), byte()).prop_map(|(at, byte)| Self::Set(at, byte)),
            4 => (any::<Index>(), byte()).prop_map(|(at, byte)| Self::Insert(at, byte)),
            4 => any::<Index>().prop_map(Self::Remove),
            1 => any::<(Index, Index)>().prop_map(|(from, to)| Self::Repeat(from, to)),
            1 => any::<Index>().prop_map(Self::Cut),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        let size = bytes.len();
        let place = |index: &Index| index.index(size + 1);
        match self {
            Self::Insert(at, byte) => bytes.insert(place(at), *byte),
            Self::Repeat(from, to) => {
                let (from, to) = (place(from).min(place(to)), place(from).max(place(to)));
                let again = bytes[from..to].to_vec();
                bytes.splice(to..to, again);
            }
            Self::Cut(at) => bytes.truncate(place(at)),
            _ if size == 0 => {}
            Self::Flip(at, bit) => bytes[at.index(size)] ^= 1 << bit,
            Self::Set(at, byte) => bytes[at.index(size)] = *byte,
            Self::Remove(at) => drop(bytes.remove(at.index(size))),
        }
    }
}
