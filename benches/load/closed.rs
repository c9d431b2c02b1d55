//! The closed loop over HTTP/2: many callers on few connections, each asking again as soon as it has its answer.

use std::{cell::RefCell, rc::Rc};

use tokio::{task::JoinSet, time::Instant};

use crate::{
    Result, Window,
    http2::{self, Answered, Answers, Head, Receiver, Sender},
    measure::{Answer, Gauge, Measured},
    usage::Processes,
};

/// Callers of one connection: fewer than the streams that the service allows on one.
pub const CALLERS: usize = 64;

/// What is only in this call; the buffers are used again.
#[derive(Debug, Default)]
pub struct Call {
    /// More headers, as HPACK has them.
    pub more: Vec<u8>,
    pub body: Vec<u8>,
}

/// What the callers of one connection ask for.
pub trait Calls: 'static {
    const ANSWERS: Answers;
    fn callers(&self) -> usize;
    /// What every call has.
    fn head(&self) -> &Head;
    /// Puts the caller's next call into the buffers, which are empty, unless there is none.
    fn next(&mut self, caller: usize, call: &mut Call) -> bool;
    fn read(&mut self, answer: &Answered) -> Answer;
}

/// All callers at once, for the window. Also tells how many good answers there were in all.
pub async fn measure<C: Calls>(
    address: &str,
    calls: Vec<C>,
    window: Window,
    processes: &Processes,
) -> Result<(Measured, u64)> {
    let gauge = Rc::new(Gauge::new());
    let callers = connect(address, calls).await?;
    gauge.start(window);
    let (cpu, ()) = tokio::try_join!(gauge.watch(processes), drive(callers, &gauge))?;
    Ok((gauge.measured(cpu)?, gauge.totals()?.0))
}

/// Connections with what goes over each.
pub type Callers<C> = Vec<(RefCell<Sender>, Receiver, C)>;

pub async fn connect<C: Calls>(address: &str, calls: Vec<C>) -> Result<Callers<C>> {
    let mut callers = Vec::new();
    for calls in calls {
        let (sender, receiver) = http2::connect(address, C::ANSWERS).await?;
        callers.push((sender, receiver, calls));
    }
    Ok(callers)
}

/// Lets them call until it is over, or nobody has anything left to ask for, and waits for the last answers.
pub async fn drive<C: Calls>(callers: Callers<C>, gauge: &Rc<Gauge>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for (sender, receiver, calls) in callers {
        let gauge = gauge.clone();
        // An error is text from here on, for a task's outcome must be fit for other threads.
        let task =
            async move { converse(sender, receiver, calls, gauge).await.map_err(|error| error.to_string()) };
        tasks.spawn_local(task);
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn converse<C: Calls>(
    sender: RefCell<Sender>,
    mut receiver: Receiver,
    mut calls: C,
    gauge: Rc<Gauge>,
) -> Result<()> {
    let (mut call, mut finished) = (Call::default(), Vec::new());
    let mut ask = |calls: &mut C, caller: usize, now: Instant| {
        call.more.clear();
        call.body.clear();
        if calls.next(caller, &mut call) {
            sender.borrow_mut().call(caller, now, calls.head(), &call.more, &call.body)
        } else {
            gauge.end(now);
            Ok(())
        }
    };
    let now = Instant::now();
    for caller in 0..calls.callers() {
        ask(&mut calls, caller, now)?;
    }
    sender.borrow_mut().flush()?;
    while sender.borrow().in_flight() > 0 {
        receiver.receive(&sender, &mut finished).await?;
        let now = Instant::now();
        for answer in finished.drain(..) {
            gauge.count(calls.read(&answer), answer.sent, now);
            if !gauge.is_over(now) {
                ask(&mut calls, answer.caller, now)?;
            }
        }
        sender.borrow_mut().flush()?;
    }
    Ok(())
}
