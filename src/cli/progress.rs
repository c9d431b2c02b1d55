//! How far a long command is, on standard error: drawn on a terminal, a line now and then anywhere else.

use std::{
    fmt::Display,
    io::{self, Write},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::config;

pub struct Progress {
    bar: ProgressBar,
    said: Instant,
}

impl Progress {
    pub fn begin() -> Self {
        let bar = ProgressBar::new_spinner();
        // It ends without a trace: what is left on the screen is the command's last line.
        Self { bar: bar.with_style(ProgressStyle::default_spinner()), said: Instant::now() }
    }

    pub fn say(&mut self, how_far: impl Display) {
        if !self.bar.is_hidden() {
            self.bar.set_message(how_far.to_string());
            self.bar.tick();
        } else if self.said.elapsed() >= config::PROGRESS_INTERVAL {
            self.said = Instant::now();
            // Where nobody listens, nobody misses it.
            drop(writeln!(io::stderr(), "{how_far}"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
