//! `deploy/IMPORT.md`: its commands run as written, and its grants suffice.

use collections_service::domain::Entropy;
use tokio::process::Command;

use super::{super::support::Backend, ImportFixture, line, summary};

const DOCUMENT: &str = include_str!("../../../deploy/IMPORT.md");

#[tokio::test]
async fn the_documented_commands_work() {
    let fixture = ImportFixture::new(Backend::Sqlite).await;
    let script = DOCUMENT.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_collections-service")).parent().unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-euc", script])
        .current_dir(fixture.database.folder.path())
        .env("PATH", format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()))
        .env("COLLECTIONS_DATABASE_URL", &fixture.database.url);
    let output = command.output().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    let imported = summary(2, 3, 0, 0);
    assert!(DOCUMENT.contains(imported.trim()), "{imported}");
    let existing = summary(0, 0, 2, 0);
    let expected = [imported.replace("imported", "would import"), imported, existing.clone(), existing];
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.concat(), "{errors}");
    let json = DOCUMENT.split("```json\n").nth(1).unwrap().lines().next().unwrap();
    fixture.write("example", json);
    let (_, _, errors) = fixture.import(&["example"]).await;
    assert_eq!(
        fixture.rejects("example.rejects.ndjson")[0].1,
        "the collection exists and differs in: name, entries",
        "{errors}"
    );
}

#[tokio::test]
async fn every_flag_is_documented() {
    let (_, help, _) = super::super::support::program::run(&["import", "--help"], &[]).await;
    let flags = help.split([' ', '=', ']', '\n', '<']).filter(|word| word.starts_with("--"));
    let known = ["--help", "--version", "--database-url", "--log", "--log-format"];
    let missing: Vec<_> =
        flags.filter(|flag| !known.contains(flag) && !DOCUMENT.contains(&format!("| `{flag}` |"))).collect();
    assert_eq!(missing, [] as [&str; 0]);
}

#[tokio::test]
async fn the_documented_grants_suffice() {
    let mut fixture = ImportFixture::new(Backend::Postgres).await;
    let role = format!("r{}", Entropy::default().hex::<8>());
    fixture
        .execute(&format!(
            "CREATE ROLE {role} LOGIN;
         GRANT SELECT ON seaql_migrations, destroyed_collections TO {role};
         GRANT SELECT, INSERT, DELETE ON collections TO {role};
         GRANT SELECT, INSERT ON collection_entries TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON imports TO {role}"
        ))
        .await;
    fixture.database.url = fixture.database.url.replace("//tests@", &format!("//{role}@"));
    fixture.write("in", [line(1, 2), line(2, 2)].concat());
    assert_eq!(fixture.import(&["in"]).await, (0, summary(2, 4, 0, 0), String::new()));
    assert_eq!(fixture.import(&["in", "--resume"]).await, (0, summary(0, 0, 2, 0), String::new()));
}
