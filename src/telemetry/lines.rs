//! Lines on their way to standard error. What is logged in one turn of the runtime is written at its end, after the answers
//! of that turn and in one system call: otherwise every caller would wait for the writing of lines about others.

use std::{
    io::{self, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{runtime::Handle, task::yield_now};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::config;

static WAITING: Mutex<Vec<u8>> = Mutex::new(Vec::new());
/// The runtime has ended: nothing would write what waits.
static OVER: AtomicBool = AtomicBool::new(false);

/// Makes writers of lines.
#[derive(Debug)]
pub struct Lines;

/// The writer of a line.
#[derive(Debug)]
pub struct Line {
    /// What somebody should look at must not be lost, even if the process is killed now.
    urgent: bool,
}

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { urgent: true }
    }

    fn make_writer_for(&self, about: &Metadata<'_>) -> Line {
        Line { urgent: *about.level() <= Level::WARN || OVER.load(Ordering::Relaxed) }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let waiting = {
            let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.extend_from_slice(line);
            waiting.len()
        };
        if self.urgent || waiting > config::calls::LOG_BUFFER {
            flush();
        } else if waiting == line.len() {
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(async {
                    yield_now().await;
                    flush();
                })),
                Err(_outside) => flush(),
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what waits; from now on each line goes at once.
pub fn end() {
    OVER.store(true, Ordering::Relaxed);
    flush();
}

/// Writes what waits. The log may be lost, where standard error is gone; a call must not.
fn flush() {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    drop(io::stderr().write_all(&waiting));
    waiting.clear();
}
