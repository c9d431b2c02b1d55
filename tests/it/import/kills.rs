//! SIGKILL at random moments: a resumed import has the result of an uninterrupted one.

use std::process::Stdio;

use collections_service::domain::Entropy;
use nix::sys::signal::Signal;

use super::{
    super::{
        destroy::on_both,
        support::{Backend, operator::signal},
    },
    ImportFixture, line,
};

on_both!(killed_imports_resume_to_the_same_result);

const LINES: u64 = 6_000;
/// So many kills cannot all hit the start of a process.
const LONG_RUN: u32 = 10;

/// Good lines, lines that are no JSON, repeated ids that differ, and one with many entries.
fn input() -> String {
    let line = |number: u64| match number % 50 {
        7 => format!("{number} is no collection\n"),
        13 => line(number - 5, 9),
        21 => line(number - 5, 3),
        30 if number % 1000 == 30 => line(number, 7000),
        _ => line(number, 3),
    };
    (1..=LINES).map(line).collect()
}

mod cases {
    use super::*;

    /// `TEST_IMPORT_KILLS` is the number of kills, 3 by default.
    pub async fn killed_imports_resume_to_the_same_result(backend: Backend) {
        let kills: u32 = std::env::var("TEST_IMPORT_KILLS").map_or(3, |count| count.parse().unwrap());
        let input = input();
        let arguments = ["in", "--max-rejects", "1000", "--resume"];
        let unbroken = ImportFixture::new(backend).await;
        unbroken.write("in", &input);
        let started = tokio::time::Instant::now();
        let expected = unbroken.import(&arguments).await;
        let whole = started.elapsed();
        assert_eq!(expected.0, 1, "{expected:?}");
        let rows = (unbroken.collections().await, unbroken.entries().await);
        let rejects = std::fs::read(unbroken.path("in.rejects.ndjson")).unwrap();
        let (mut killed, mut imports, mut moved) = (0, 0, 0);
        while killed < kills {
            let fixture = ImportFixture::new(backend).await;
            fixture.write("in", &input);
            let mut line = 0;
            // A process runs for at most half of the time of an uninterrupted import, so that several are killed.
            while killed < kills {
                let mut command = fixture.command(&arguments);
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                let share = f64::from(u16::from_le_bytes(Entropy::default().bytes())) / f64::from(u16::MAX);
                let ended = tokio::time::timeout(whole.mul_f64(share / 2.0), child.wait()).await;
                if let Ok(status) = ended {
                    // Lines are rejected, so that a complete import has this code too: it leaves no progress.
                    assert_eq!(status.unwrap().code(), Some(expected.0));
                    assert_eq!(fixture.unfinished().await, []);
                    break;
                }
                signal(&child, Signal::SIGKILL);
                child.wait().await.unwrap();
                killed += 1;
                let now = fixture.unfinished().await.first().map_or(0, |(_, line)| *line);
                moved += u32::from(now != line && now > 0);
                line = now;
            }
            imports += 1;
            if !fixture.unfinished().await.is_empty() || fixture.collections().await.is_empty() {
                assert_eq!(fixture.import(&arguments).await, expected);
            }
            assert_eq!(fixture.unfinished().await, []);
            assert!((fixture.collections().await, fixture.entries().await) == rows, "other rows");
            assert!(std::fs::read(fixture.path("in.rejects.ndjson")).unwrap() == rejects, "other rejects");
        }
        assert!(kills < LONG_RUN || moved > 0, "no process was killed after it had made progress");
        eprintln!(
            "{backend:?}: {killed} kills of {imports} imports of {LINES} lines, {moved} after progress, an unbroken one \
             took {} ms",
            whole.as_millis()
        );
    }
}
