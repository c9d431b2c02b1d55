//! Lines that are not imported: each with its number, its reason and its text, and nothing of it in the database.

use super::{
    super::{
        destroy::on_both,
        support::{App, Backend, OWNER, destroy},
    },
    ImportFixture, exists, line, summary,
};

on_both!(
    each_bad_line_has_its_reason,
    ids_in_use_are_rejects,
    too_many_rejects_stop_it,
    a_dry_run_writes_nothing
);

/// A line, and the reason to reject it.
const BAD: [(&[u8], &str); 31] = [
    (b"{", "not valid JSON: EOF while parsing an object (column 1)"),
    (b"[1]", "expected a JSON object, not an array"),
    (br#" ["custom-9", 7, "n", null, null, null, null, [1]]"#, "expected a JSON object, not an array"),
    (b"\xff", "the line is not UTF-8 after 0 bytes"),
    (b"{\"id\":\"custom-9\",\"owner_id\":1,\"name\":\"a\xffb\"}", "the line is not UTF-8 after 39 bytes"),
    (br#"{"owner_id":1,"name":"a"}"#, "missing field `id` (column 25)"),
    (br#"{"id":"custom-9","name":"a"}"#, "missing field `owner_id` (column 28)"),
    (br#"{"id":"custom-9","owner_id":1}"#, "missing field `name` (column 30)"),
    (br#"{"id":"custom-9","owner_id":1,"name":null}"#, "invalid type: null, expected a string (column 41)"),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","nmae":1}"#,
        "unknown field `nmae`, expected one of `id`, `owner_id`, `name`, `description`, `url`, `timeline_order`, \
         `created_at`, `entries` (column 47)",
    ),
    (br#"{"id":"custom-9","id":"custom-9","owner_id":1,"name":"a"}"#, "duplicate field `id` (column 21)"),
    (br#"{"id":"custom-9","owner_id":1,"name":"a"} {}"#, "not valid JSON: trailing characters (column 43)"),
    (br#"{"id":"","owner_id":1,"name":"a"}"#, "the id is empty (column 8)"),
    (br#"{"id":9,"owner_id":1,"name":"a"}"#, "invalid type: integer `9`, expected a string (column 7)"),
    (
        br#"{"id":"custom-0","owner_id":1,"name":"a"}"#,
        "the id is not `custom-` and a decimal in 1..=9223372036854775807 (column 16)",
    ),
    (
        br#"{"id":"custom-9223372036854775808","owner_id":1,"name":"a"}"#,
        "the id is not `custom-` and a decimal in 1..=9223372036854775807 (column 34)",
    ),
    (
        br#"{"id":"custom-9","owner_id":0,"name":"a"}"#,
        "expected a decimal in 1..=9223372036854775807 (column 29)",
    ),
    (
        br#"{"id":"custom-9","owner_id":-1,"name":"a"}"#,
        "expected a decimal in 1..=9223372036854775807 (column 30)",
    ),
    (
        br#"{"id":"custom-9","owner_id":"007","name":"a"}"#,
        "expected a decimal in 1..=9223372036854775807 (column 33)",
    ),
    (
        br#"{"id":"custom-9","owner_id":1.0,"name":"a"}"#,
        "invalid type: floating point `1.0`, expected a decimal in 1..=9223372036854775807, as a number or a string \
         (column 31)",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a\u0000"}"#,
        "name contains U+0000, which PostgreSQL does not store",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","description":"\u0000"}"#,
        "description contains U+0000, which PostgreSQL does not store",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","url":"\u0000"}"#,
        "url contains U+0000, which PostgreSQL does not store",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","timeline_order":"chron"}"#,
        "timeline_order is none of curation_reverse_chron, tweet_chron, tweet_reverse_chron",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","created_at":"2026-02-30T00:00:00Z"}"#,
        "expected a time like 2026-11-27T14:05:09Z (RFC 3339) (column 77)",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","created_at":"0000-01-01T00:00:00Z"}"#,
        "expected a time like 2026-11-27T14:05:09Z (RFC 3339) (column 77)",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","entries":[5,"6",{"tweet_id":"5"}]}"#,
        "tweet 5 is in the entries more than once",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","entries":[9223372036854775808]}"#,
        "expected a decimal in 1..=9223372036854775807 (column 71)",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","entries":[null]}"#,
        "invalid type: null, expected a tweet id or an object with a tweet_id (column 56)",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","entries":[{"tweet_id":1,"sort_idx":1}]}"#,
        "unknown field `sort_idx`, expected one of `tweet_id`, `sort_index`, `added_at` (column 76)",
    ),
    (
        br#"{"id":"custom-9","owner_id":1,"name":"a","entries":[{"tweet_id":1,"added_at":1}]}"#,
        "invalid type: integer `1`, expected a string (column 78)",
    ),
];

mod cases {
    use super::*;

    pub async fn each_bad_line_has_its_reason(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        let mut input = Vec::new();
        for (id, (bad, _)) in (101..).zip(BAD) {
            input.extend_from_slice(bad);
            input.extend_from_slice(format!("\n{}", line(id, 1)).as_bytes());
        }
        // Longer than a line may be.
        input.extend_from_slice(b"{\"id\":\"custom-9\",\"name\":\"");
        input.resize(input.len() + 32 * 1024 * 1024, b'x');
        input.extend_from_slice(format!("\"}}\n{}", line(200, 1)).as_bytes());
        fixture.write("in", &input);
        let count = BAD.len() as u64;
        let (code, printed, errors) = fixture.import(&["in"]).await;
        assert_eq!((code, printed), (1, summary(count + 1, count + 1, 0, count + 1)));
        let expected = format!(
            "error: {} lines were rejected; they are in in.rejects.ndjson with the reasons\n",
            count + 1
        );
        assert_eq!(errors, expected);
        let rejects = fixture.rejects("in.rejects.ndjson");
        for ((number, (bad, reason)), reject) in (1..).step_by(2).zip(BAD).zip(&rejects) {
            assert_eq!(*reject, (number, reason.to_owned(), String::from_utf8_lossy(bad).into_owned()));
        }
        let (number, reason, text) = rejects.last().unwrap();
        assert_eq!((*number, reason.as_str()), (2 * count + 1, "the line is longer than 32 MiB"));
        assert!(text.starts_with("{\"id\":\"custom-9\"") && text.len() == 4096, "{}", text.len());
        let file = std::fs::read_to_string(fixture.path("in.rejects.ndjson")).unwrap();
        assert!(file.ends_with("\"truncated\":true}\n") && file.matches("truncated").count() == 1);
        assert_eq!(fixture.collections().await.len() as u64, count + 1);
        assert_eq!(fixture.unfinished().await, []);
        // Corrected, the lines can be imported from the texts of the rejects file; a good file leaves none.
        fixture.write("in", line(9, 1));
        assert_eq!(fixture.import(&["in"]).await, (0, summary(1, 1, 0, 0), String::new()));
        assert!(!exists(&fixture.path("in.rejects.ndjson")));
    }

    pub async fn ids_in_use_are_rejects(backend: Backend) {
        let app = App::start(backend).await;
        let fixture = ImportFixture { database: app.database };
        let stored = r#"{"id":"custom-1","owner_id":7,"name":"a","description":"b","created_at":"2026-01-02T03:04:05Z","entries":[1,2]}"#;
        fixture.write("in", stored);
        assert_eq!(fixture.import(&["in"]).await.0, 0);
        fixture.database.put(2, OWNER).await;
        let mut rpc = super::super::super::support::rpc(&app.grpc);
        destroy(&mut rpc, OWNER, "custom-2", "").await.unwrap();
        fixture.execute("INSERT INTO collection_entries VALUES (3, 1, 0, '2026-01-02T03:04:05+00:00')").await;
        let differs = |fields: &str| format!("the collection exists and differs in: {fields}");
        let orphans = "entries without a collection are stored under this id; `collections-service verify --fix` removes them";
        let cases = [
            (stored.to_owned(), None),
            (stored.replace(",\"created_at\":\"2026-01-02T03:04:05Z\"", ""), None),
            (
                stored.replace(
                    "[1,2]",
                    "[{\"tweet_id\":2,\"sort_index\":1},{\"tweet_id\":1,\"sort_index\":0}]",
                ),
                None,
            ),
            (stored.replace("[1,2]", "[{\"tweet_id\":1,\"added_at\":\"2026-01-02T03:04:05Z\"},2]"), None),
            (stored.replace(":7,", ":8,"), Some(differs("owner_id"))),
            (stored.replace("\"a\"", "\"A\""), Some(differs("name"))),
            (stored.replace(",\"description\":\"b\"", ""), Some(differs("description"))),
            (stored.replace("\"b\"", "\"b\",\"url\":\"u\""), Some(differs("url"))),
            (
                stored.replace("\"b\"", "\"b\",\"timeline_order\":\"tweet_chron\""),
                Some(differs("timeline_order")),
            ),
            (stored.replace("04:05", "04:06"), Some(differs("created_at"))),
            (stored.replace("[1,2]", "[1]"), Some(differs("entries"))),
            (stored.replace("[1,2]", "[]"), Some(differs("entries"))),
            (stored.replace("[1,2]", "[1,2,3]"), Some(differs("entries"))),
            (stored.replace("[1,2]", "[2,1]"), Some(differs("entries"))),
            (stored.replace("[1,2]", "[1,3]"), Some(differs("entries"))),
            (
                stored.replace("[1,2]", "[{\"tweet_id\":1,\"added_at\":\"2026-01-02T03:04:06Z\"},2]"),
                Some(differs("entries")),
            ),
            (stored.replace(":7,", ":8,").replace("[1,2]", "[1]"), Some(differs("owner_id, entries"))),
            (stored.replace("custom-1", "custom-2"), Some("the collection was destroyed".to_owned())),
            (stored.replace("custom-1", "custom-3"), Some(orphans.to_owned())),
        ];
        let before = (fixture.collections().await, fixture.entries().await);
        let input: String = cases.iter().map(|(line, _)| format!("{line}\n")).collect();
        fixture.write("in", &input);
        for (arguments, file) in
            [(&["in", "--dry-run"][..], "in.dry-run.rejects.ndjson"), (&["in"], "in.rejects.ndjson")]
        {
            let (code, printed, _) = fixture.import(arguments).await;
            let counted = summary(0, 0, 4, 15);
            let expected =
                if arguments.len() == 2 { counted.replace("imported", "would import") } else { counted };
            assert_eq!((code, printed), (1, expected));
            let expected: Vec<_> = (1..)
                .zip(&cases)
                .filter_map(|(number, (line, reason))| Some((number, reason.clone()?, line.clone())))
                .collect();
            assert_eq!(fixture.rejects(file), expected);
        }
        assert_eq!((fixture.collections().await, fixture.entries().await), before);
    }

    pub async fn too_many_rejects_stop_it(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        let good = |from: u64| (from..from + 1500).map(|id| line(id, 1)).collect::<String>();
        fixture.write("in", format!("x\n{}y\n{}z\n", good(1), good(2001)));
        let (code, printed, errors) = fixture.import(&["in", "--max-rejects", "1"]).await;
        assert_eq!((code, printed.as_str()), (1, ""));
        let expected = "error: more than 1 lines were rejected; see in.rejects.ndjson; after line 2000: imported 1998 \
                    collections with 1998 entries, 0 existed already, 2 rejected; this stays, and a higher \
                    --max-rejects and --resume continue\n";
        assert_eq!(errors, expected);
        assert_eq!(fixture.unfinished().await, [("in".to_owned(), 2000)]);
        assert_eq!(fixture.collections().await.len(), 1998);
        let (code, printed, _) = fixture.import(&["in", "--max-rejects", "3", "--resume"]).await;
        assert_eq!((code, printed), (1, summary(3000, 3000, 0, 3)));
        let lines: Vec<_> = fixture.rejects("in.rejects.ndjson").into_iter().map(|reject| reject.0).collect();
        assert_eq!(lines, [1, 1502, 3003]);
        assert_eq!(fixture.unfinished().await, []);
    }

    pub async fn a_dry_run_writes_nothing(backend: Backend) {
        let fixture = ImportFixture::new(backend).await;
        fixture.write("in", [line(1, 2), "x\n".to_owned(), line(2, 3)].concat());
        let (code, printed, errors) = fixture.import(&["in", "--dry-run"]).await;
        let counted = summary(2, 5, 0, 1).replace("imported", "would import");
        assert_eq!((code, printed), (1, counted));
        assert!(errors.contains("in.dry-run.rejects.ndjson"), "{errors}");
        assert_eq!(fixture.rejects("in.dry-run.rejects.ndjson").len(), 1);
        assert!(!exists(&fixture.path("in.rejects.ndjson")));
        assert_eq!(fixture.collections().await, [] as [String; 0]);
        assert_eq!(fixture.entries().await, [] as [String; 0]);
        assert_eq!(fixture.unfinished().await, []);
    }
}

#[tokio::test]
async fn an_import_that_cannot_begin_leaves_no_file() {
    let fixture = ImportFixture::new(Backend::Sqlite).await;
    fixture.write("in", line(1, 1));
    let mut command = fixture.command(&["in"]);
    let output =
        command.env("COLLECTIONS_DATABASE_URL", "sqlite:no/such/folder/database").output().await.unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert!(!exists(&fixture.path("in.rejects.ndjson")));
    fixture
        .execute(
            "INSERT INTO imports SELECT 'in', x'00000000000040008000000000000001', 'another', \
        '2026-01-02T03:04:05+00:00', '2026-01-02T03:04:05+00:00', 1, 1, 1, 0, 0, 0, 0",
        )
        .await;
    assert_eq!(fixture.import(&["in", "--resume"]).await.0, 1);
    assert!(!exists(&fixture.path("in.rejects.ndjson")));
}
