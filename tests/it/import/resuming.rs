//! Imports that end early, and go on.

use std::{
    io::Write,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt, process::Child};

use super::{
    super::{
        destroy::on_both,
        faults::front,
        support::{
            Backend, TestDatabase, cluster::Cluster, fresh_database, operator::signal, relay::lose_answers,
            wait_until,
        },
    },
    ImportFixture, ended, line, summary,
};

on_both!(
    a_signal_ends_it_between_batches,
    a_cut_input_is_an_error,
    another_input_is_not_continued,
    discarded_progress_is_reported
);

fn lines(range: std::ops::RangeInclusive<u64>) -> String {
    range.map(|id| line(id, 2)).collect()
}

/// An import from a pipe, of which this many lines are committed. It waits for more.
async fn imported_until(fixture: &ImportFixture, input: &str, count: i64) -> Child {
    let mut child =
        fixture.command(&["-", "--name", "pipe", "--resume"]).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    let expected = [("pipe".to_owned(), count)];
    wait_until("the lines are committed", async || fixture.unfinished().await == expected).await;
    child
}

mod cases {
    use super::*;

    pub async fn a_signal_ends_it_between_batches(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        let mut child = imported_until(&fixture, &lines(1..=2500), 2000).await;
        // Its input does not end.
        let _stdin = child.stdin.take();
        signal(&child, Signal::SIGTERM);
        let ended = ended(child.wait_with_output().await.unwrap());
        let expected = "error: stopped; after line 2000: imported 2000 collections with 4000 entries, 0 existed already, \
                    0 rejected; this stays, and --resume continues\n";
        assert_eq!(ended, (1, String::new(), expected.to_owned()));
        assert_eq!(fixture.collections().await.len(), 2000);
        let all = lines(1..=3000);
        let resumed = fixture.import_from(&["--name", "pipe", "--resume"], all.as_bytes()).await;
        assert_eq!(resumed, (0, summary(3000, 6000, 0, 0), String::new()));
        assert_eq!(fixture.entries().await.len(), 6000);
        assert_eq!(fixture.unfinished().await, []);
    }

    pub async fn a_cut_input_is_an_error(backend: Backend) {
        let text = lines(1..=5000);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        let gz = encoder.finish().unwrap();
        let zst = zstd::encode_all(text.as_bytes(), 1).unwrap();
        for (name, whole) in [("in.gz", gz), ("in.zst", zst)] {
            let fixture = ImportFixture::new(backend).await;
            // More than the head is left, and less than the head.
            for (part, least) in [(whole.len() / 2, 1000), (200, 0)] {
                fixture.write(name, &whole[..part]);
                let (code, printed, errors) = fixture.import(&[name, "--resume"]).await;
                // Of a cut frame nothing may be readable at all.
                assert!(code == 1 || code == 2 && least == 0, "{code} {errors}");
                assert!(printed.is_empty() && errors.starts_with(&format!("error: {name}: ")), "{errors}");
                assert!(code == 2 || errors.ends_with("--resume continues\n"), "{errors}");
                let imported = fixture.collections().await.len();
                assert!(imported >= least && imported < 5000, "{imported}");
                assert_eq!(fixture.entries().await.len(), 2 * imported);
                if least > 0 {
                    fixture.write(name, &whole);
                    let resumed = fixture.import(&[name, "--resume"]).await;
                    assert_eq!(resumed, (0, summary(5000, 10_000, 0, 0), String::new()));
                    fixture.execute("DELETE FROM collections").await;
                    fixture.execute("DELETE FROM collection_entries").await;
                }
            }
        }
    }

    pub async fn another_input_is_not_continued(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        let whole = format!("x\n{}", lines(1..=2500));
        fixture.write("in", &whole);
        assert_eq!(fixture.import(&["in", "--max-rejects", "0"]).await.0, 1);
        assert_eq!(fixture.unfinished().await, [("in".to_owned(), 1000)]);
        let refused = async |expected: &str| {
            let (code, printed, errors) = fixture.import(&["in", "--resume"]).await;
            assert_eq!((code, printed.as_str()), (1, ""));
            assert!(errors.contains(expected), "{errors}");
            assert_eq!(fixture.unfinished().await, [("in".to_owned(), 1000)]);
        };
        fixture.write("in", whole.replacen("number 1\"", "number one\"", 1));
        refused("the start of the input differs from that of the unfinished import of this name").await;
        let (first, second) = whole.split_at(whole.find("{\"id\":\"custom-900\"").unwrap());
        fixture.write("in", first);
        refused("the input ends before the byte at which the unfinished import of this name stopped").await;
        fixture.write("in", format!("{first} {second}"));
        refused("no line begins at the byte").await;
        fixture.write("in", &whole);
        let rejects = std::fs::read(fixture.path("in.rejects.ndjson")).unwrap();
        std::fs::write(fixture.path("in.rejects.ndjson"), "").unwrap();
        refused("in.rejects.ndjson: the file is shorter than the").await;
        std::fs::write(fixture.path("in.rejects.ndjson"), &rejects).unwrap();
        let (code, printed, _) = fixture.import(&["in", "--resume"]).await;
        assert_eq!((code, printed), (1, summary(2500, 5000, 0, 1)));
        assert_eq!(std::fs::read(fixture.path("in.rejects.ndjson")).unwrap(), rejects);
        // Finished: there is nothing to continue, and it begins at the start.
        assert_eq!(fixture.import(&["in", "--resume"]).await.1, summary(0, 0, 2500, 1));
    }

    pub async fn discarded_progress_is_reported(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        fixture.write("in", format!("x\n{}", lines(1..=2500)));
        assert_eq!(fixture.import(&["in", "--max-rejects", "0"]).await.0, 1);
        std::fs::create_dir(fixture.path("b")).unwrap();
        fixture.write("b/in", lines(1..=2000));
        let expected = "import `in`: discarded the progress of an unfinished import at line 1000\n";
        assert_eq!(fixture.import(&["b/in"]).await, (0, summary(1001, 2002, 999, 0), expected.to_owned()));
        assert_eq!(fixture.import(&["b/in"]).await, (0, summary(0, 0, 2000, 0), String::new()));
    }
}

/// An outage that lasts ends the import; a short one does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_database_is_retried_or_reported() {
    let mut cluster = Cluster::start().await;
    let fixture =
        ImportFixture { database: TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await };
    let all = lines(1..=4000);
    let split_before = |id: u64| all.split_at(all.find(&format!("{{\"id\":\"custom-{id}\"")).unwrap());
    // For good, while it waits for more input.
    let (first, second) = split_before(1500);
    let mut child = imported_until(&fixture, first, 1000).await;
    cluster.crash();
    let mut stdin = child.stdin.take().unwrap();
    let _closed = stdin.write_all(second.as_bytes()).await;
    drop(stdin);
    let (code, printed, errors) = ended(child.wait_with_output().await.unwrap());
    assert_eq!((code, printed.as_str()), (1, ""), "{errors}");
    assert!(errors.starts_with("error: the database failed: "), "{errors}");
    assert!(errors.contains("after line 1000: ") && errors.ends_with("--resume continues\n"), "{errors}");
    cluster.start_again().await;
    // For a moment.
    let (first, second) = split_before(2500);
    let mut child = imported_until(&fixture, first, 2000).await;
    cluster.crash();
    cluster.start_again().await;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(second.as_bytes()).await.unwrap();
    drop(stdin);
    let ended = ended(child.wait_with_output().await.unwrap());
    assert_eq!(ended, (0, summary(4000, 8000, 0, 0), String::new()));
    assert_eq!(fixture.entries().await.len(), 8000);
}

/// Every second acknowledgement of a commit. The first are those of the checks before the import.
fn every_second_commit(cuts: Arc<AtomicU32>) -> impl Fn(&[u8]) -> bool {
    let commits = AtomicU32::new(0);
    move |answer| {
        let is_commit = answer.windows(7).any(|part| part == b"COMMIT\0");
        let commit = if is_commit { commits.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let is_lost = commit > 4 && commit % 2 == 1;
        cuts.fetch_add(u32::from(is_lost), Ordering::Relaxed);
        is_lost
    }
}

/// A commit whose acknowledgement is lost counts once: rows, counts and rejects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_acknowledgement_is_resolved() {
    let mut fixture = ImportFixture::new(Backend::Postgres).await;
    let ((listener, through, server), cuts) =
        (front(&fixture.database.url).await, Arc::new(AtomicU32::new(0)));
    tokio::spawn(lose_answers(listener, server, every_second_commit(cuts.clone())));
    let input: String =
        (1..=20).map(|part| format!("x\n{}", lines(part * 1000..=part * 1000 + 400))).collect();
    fixture.write("in", input);
    let direct = std::mem::replace(&mut fixture.database.url, through);
    let (code, printed, errors) = fixture.import(&["in"]).await;
    fixture.database.url = direct;
    assert_eq!((code, printed), (1, summary(20 * 401, 20 * 802, 0, 20)), "{errors}");
    assert!(cuts.load(Ordering::Relaxed) >= 3, "{cuts:?}");
    assert_eq!(fixture.collections().await.len(), 20 * 401);
    assert_eq!(fixture.entries().await.len(), 20 * 802);
    let numbers: Vec<_> = fixture.rejects("in.rejects.ndjson").into_iter().map(|reject| reject.0).collect();
    assert_eq!(numbers, (0..20).map(|part| part * 402 + 1).collect::<Vec<_>>());
    assert_eq!(fixture.unfinished().await, []);
}
