//! Progress of a long command, on standard error: a bar on a terminal, a line every ten seconds elsewhere.

use std::{
    fmt::Display,
    io::{self, Write},
    time::Duration,
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::config;

pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
    reported: Instant,
}

impl Progress {
    /// Of a known amount of work, in any unit, or of an unknown one.
    pub fn begin(total: Option<u64>) -> Self {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let template = if total.is_some() { "{bar:30} {percent:>3}% {msg}" } else { "{spinner} {msg}" };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
        let now = Instant::now();
        Self { bar: bar.with_style(style), begun: now, reported: now }
    }

    /// Shows the amount of work done, and this text.
    pub fn report(&mut self, done: u64, text: impl Display) {
        self.bar.set_position(done);
        let is_due = self.reported.elapsed() >= config::PROGRESS_INTERVAL;
        if self.bar.is_hidden() && !is_due {
            return;
        }
        let left = self.left(done).map(|left| format!(", {} left", HumanDuration(left)));
        let line = format!("{text}{}", left.unwrap_or_default());
        if !self.bar.is_hidden() {
            self.bar.set_message(line);
            self.bar.tick();
        } else {
            self.reported = Instant::now();
            // A closed standard error does not end the command.
            drop(writeln!(io::stderr(), "{line}"));
        }
    }

    /// The time that the rest will take at the rate so far.
    fn left(&self, done: u64) -> Option<Duration> {
        let total = self.bar.length().filter(|_| done > 0)?;
        Some(self.begun.elapsed().mul_f64(total.saturating_sub(done) as f64 / done as f64))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // The command's last line is what stays on the screen.
        self.bar.finish_and_clear();
    }
}
