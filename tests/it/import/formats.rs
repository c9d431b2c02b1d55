//! What a line may hold, and how the input may come.

use std::io::Write;

use super::{
    super::{
        destroy::on_both,
        support::{Backend, OWNER},
    },
    ImportFixture, exists, line, summary,
};

on_both!(every_field_is_stored, a_second_import_finds_everything, a_long_line_is_imported_whole);

mod cases {
    use super::*;

    pub async fn every_field_is_stored(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        let full = r#"{"id":"custom-9223372036854775807","owner_id":"9223372036854775807","name":"ä \"name\" 'of' {1,NULL}",
            "description":"two\nlines","url":"https://example.org/?a=b","timeline_order":"tweet_chron",
            "created_at":"2026-01-02T03:04:05.123456789+02:00","entries":[
            5,"9223372036854775807",{"tweet_id":"4"},{"tweet_id":3,"sort_index":-9,"added_at":"2020-02-29T23:59:59Z"}]}"#;
        let full = full.replace("\n            ", " ");
        let bare = r#"{"id":"custom-1","owner_id":119476949,"name":"","description":null,"url":null,"entries":null}"#;
        fixture.write("in", format!("\u{feff}{full}\r\n\n  \n{bare}"));
        let before =
            chrono::DateTime::from_timestamp(collections_service::domain::Clock::System.now().timestamp(), 0);
        assert_eq!(fixture.import(&["in"]).await, (0, summary(2, 4, 0, 0), String::new()));
        let rows = fixture.collections().await;
        let texts = r#"["ä \"name\" 'of' {1,NULL}"), Some("two\nlines"), Some("https://example.org/?a=b"), Some("tweet_chron")]"#;
        let texts = texts.replacen("[", "[Some(", 1);
        assert_eq!(
            rows[1],
            format!("9223372036854775807 of 9223372036854775807 {texts} 2026-01-02T01:04:05.123456Z")
        );
        let bare = format!("1 of {OWNER} [Some(\"\"), None, None, Some(\"curation_reverse_chron\")] ");
        let created_at = rows[0].strip_prefix(&bare).unwrap_or_else(|| panic!("{rows:?}"));
        assert!(created_at.parse::<chrono::DateTime<chrono::Utc>>().unwrap() >= before.unwrap());
        let created = "2026-01-02T01:04:05.123456Z";
        let id = i64::MAX;
        assert_eq!(
            fixture.entries().await,
            [
                format!("{id}: 3 at -9 2020-02-29T23:59:59Z"),
                format!("{id}: 5 at 0 {created}"),
                format!("{id}: {id} at 1 {created}"),
                format!("{id}: 4 at 2 {created}"),
            ]
        );
        assert_eq!(fixture.unfinished().await, []);
        assert!(!exists(&fixture.path("in.rejects.ndjson")));
    }

    pub async fn a_second_import_finds_everything(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        let lines: String = (1..=2500).map(|id| line(id, 3)).collect();
        fixture.write("in", &lines);
        assert_eq!(fixture.import(&["in"]).await.1, summary(2500, 7500, 0, 0));
        let rows = (fixture.collections().await, fixture.entries().await);
        // Also where the time is not given, and the id comes twice.
        let again = lines.replace("\"created_at\":\"2026-01-02T03:04:05Z\",", "") + &line(1, 3);
        fixture.write("in", again);
        assert_eq!(fixture.import(&["in"]).await, (0, summary(0, 0, 2501, 0), String::new()));
        assert_eq!((fixture.collections().await, fixture.entries().await), rows);
    }

    pub async fn a_long_line_is_imported_whole(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        fixture.write("in", [line(1, 2), line(2, 60_001), line(3, 2)].concat());
        assert_eq!(fixture.import(&["in"]).await, (0, summary(3, 60_005, 0, 0), String::new()));
        assert_eq!(fixture.entries().await.len(), 60_005);
        assert_eq!(fixture.import(&["in"]).await, (0, summary(0, 0, 3, 0), String::new()));
    }
}

#[tokio::test]
async fn compressed_input_and_standard_input_are_read() {
    let lines: String = (1..=3000).map(|id| line(id, 2)).collect();
    let (first, second) = lines.split_at(lines.find("{\"id\":\"custom-2000\"").unwrap());
    let gz = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zst = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
    // Of several members or frames, as `cat` makes them.
    for (name, content) in [
        ("in.ndjson", lines.clone().into_bytes()),
        ("in.ndjson.gz", [gz(first), gz(second)].concat()),
        ("in.ndjson.zst", [zst(first), zst(second)].concat()),
    ] {
        let fixture = ImportFixture::new(Backend::Sqlite).await;
        fixture.write(name, content);
        assert_eq!(fixture.import(&[name]).await, (0, summary(3000, 6000, 0, 0), String::new()), "{name}");
        assert_eq!(fixture.collections().await.len(), 3000);
    }
    for arguments in [&["-"][..], &[]] {
        let fixture = ImportFixture::new(Backend::Sqlite).await;
        let ended = fixture.import_from(arguments, format!("{lines}x\n").as_bytes()).await;
        assert_eq!((ended.0, ended.1), (1, summary(3000, 6000, 0, 1)));
        assert_eq!(fixture.rejects("stdin.rejects.ndjson").len(), 1);
    }
}

/// Missing files, folders, and files whose content does not match their name.
#[tokio::test]
async fn an_input_that_cannot_be_read_is_named() {
    let fixture = ImportFixture::new(Backend::Sqlite).await;
    fixture.write("plain.gz", line(1, 1));
    for (arguments, code, named) in [
        (&["absent"][..], 2, "error: absent: No such file"),
        (&["."], 2, "error: .: is a directory"),
        (&["plain.gz"], 2, "error: plain.gz: invalid gzip header"),
        (&["plain.gz", "--rejects", "plain.gz"], 2, "plain.gz"),
        (&["key", "--rejects", "key"], 2, "this is the input"),
        (&["key", "--rejects", "no/folder"], 2, "--rejects: no/folder"),
        (&["key", "--rejects", "/dev/null"], 2, "--rejects: /dev/null: not a regular file"),
        (&["key", "--name", ""], 2, "--name"),
        (&["key", "--dry-run", "--resume"], 2, "--resume"),
    ] {
        let ended = fixture.import(arguments).await;
        assert!(ended.0 == code && ended.2.contains(named), "{arguments:?}: {ended:?}");
    }
    assert!(exists(&fixture.path("plain.gz")) && exists(&fixture.path("key")));
}
