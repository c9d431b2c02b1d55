//! Two processes of the service on one database, whose callers all want the same ids at about the same time.

use std::{cell::RefCell, rc::Rc};

use tokio::time::Instant;

use crate::{
    Result,
    closed::{self, CALLERS, Call, Calls},
    data::Data,
    grpc::{Reader, Refusal, destroy, destroy_head},
    http2::{Answered, Answers, Head},
    ids::{Rows, Spread},
    measure::{Answer, Gauge},
    usage::Usage,
};

/// What came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Contested {
    pub ids: i64,
    /// Destroys a second, by both together.
    pub rate: f64,
    /// Of the good answers.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Ids for which there was not exactly one good answer: none.
    pub wrong: usize,
    /// What PostgreSQL's log says of deadlocks: nothing.
    pub deadlocks: usize,
}

/// The callers of one process.
struct Rivals {
    head: Head,
    rows: Vec<Rows>,
    /// What each caller asked for last.
    asked: Vec<i64>,
    /// How often each id was destroyed.
    destroyed: Rc<RefCell<Vec<u8>>>,
    reader: Reader,
}

impl Calls for Rivals {
    const ANSWERS: Answers = Answers::Alike;

    fn callers(&self) -> usize {
        self.rows.len()
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn next(&mut self, caller: usize, call: &mut Call) -> bool {
        let Some(row) = self.rows[caller].next() else { return false };
        self.asked[caller] = row.id;
        destroy(row, call);
        true
    }

    fn read(&mut self, answer: &Answered) -> Answer {
        let verdict = self.reader.read(answer);
        if verdict == Answer::Good {
            let id = usize::try_from(self.asked[answer.caller]).expect("ids are positive");
            self.destroyed.borrow_mut()[id] += 1;
        }
        verdict
    }
}

/// Lets both ask for each id once. The second process's callers are in the reverse order, so that the same ids come to the
/// two in another order.
pub async fn measure(
    addresses: [&str; 2],
    data: &Data,
    calls: usize,
    log: impl Fn() -> Result<String>,
) -> Result<Contested> {
    let spread = Spread::over(data.table, CALLERS, calls);
    data.reset().await?;
    let destroyed = Rc::new(RefCell::new(vec![0; usize::try_from(data.table.rows)? + 1]));
    let mut callers = Vec::new();
    for (address, reversed) in addresses.into_iter().zip([false, true]) {
        let mut rows = spread.all();
        if reversed {
            rows.reverse();
        }
        let rivals = Rivals {
            head: destroy_head(address),
            asked: vec![0; rows.len()],
            rows,
            destroyed: destroyed.clone(),
            reader: Reader::expecting(Refusal::NotFound),
        };
        callers.extend(closed::connect(address, vec![rivals]).await?);
    }
    let (gauge, begun) = (Rc::new(Gauge::new()), Instant::now());
    closed::drive(callers, &gauge).await?;
    let measured = gauge.measured_in(begun.elapsed(), Usage::default());
    let (good, _) = gauge.totals()?;
    let tombstones = data.tombstones().await?;
    if good != tombstones {
        return Err(format!("two processes: {good} destroyed, and {tombstones} tombstones").into());
    }
    let destroyed = destroyed.borrow();
    let times = spread.all().into_iter().flatten().map(|row| destroyed[row.id as usize]);
    let wrong = times.filter(|times| *times != 1).count();
    let deadlocks = log()?.lines().filter(|line| line.contains("deadlock")).count();
    let (rate, p50_ms, p99_ms) = (measured.rate, measured.p50_ms, measured.p99_ms);
    Ok(Contested { ids: spread.calls(), rate, p50_ms, p99_ms, wrong, deadlocks })
}
