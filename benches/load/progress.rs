//! How far the benchmark is, on standard error: drawn on a terminal, a line now and then anywhere else.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// How often there is a line where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);

pub struct Progress {
    bar: ProgressBar,
    each: Duration,
    begun: Instant,
    said: Instant,
}

impl Progress {
    /// Of so many measurements in all, which take about so long each.
    pub fn begin(measurements: usize, each: Duration) -> Self {
        let bar = ProgressBar::new(measurements as u64);
        let style = ProgressStyle::with_template("{bar:30} {msg}").expect("the template is right");
        let now = Instant::now();
        Self { bar: bar.with_style(style), each, begun: now, said: now }
    }

    /// What is measured next.
    pub fn say(&mut self, next: &str) {
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let each = if done == 0 { self.each } else { self.begun.elapsed().div_f64(done as f64) };
        let left = (each.as_secs_f64() * (all - done) as f64 / 60.0).ceil();
        let how_far = format!("{done} of {all}, about {left} min left: {next}");
        if self.bar.is_hidden() && self.said.elapsed() >= INTERVAL {
            self.said = Instant::now();
            eprintln!("{how_far}");
        }
        self.bar.set_message(how_far);
        self.bar.tick();
    }

    pub fn done(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
