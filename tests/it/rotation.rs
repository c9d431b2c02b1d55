//! `credentials rotate-key`: during other changes, interrupted, and repeated.

use std::time::Duration;

use collections_service::{
    domain::{CredentialDirectory, DirectoryError, Entropy, Secret},
    store::{CredentialCache, KeyRing, Place},
};
use nix::sys::signal::Signal;
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait,
};
use tokio::process::Child;

use super::support::{
    BLOCKED, Backend, CONSUMER, OWNER, TOKEN,
    operator::{Operator, count, signal},
    program::run,
    user, wait_for, wait_until, write_private,
};

async fn after_a_rotation_the_new_key_opens_everything(backend: Backend) {
    // Two full batches of tokens, and an empty one after them.
    let mut operator = Operator::new(backend, 198).await;
    let moved = ("moved-here", "a secret with ünicode & signs");
    let secret = Secret::from(moved.1.to_owned());
    operator.database.credentials.put_token(CONSUMER.0, user(OWNER), true, moved.0, &secret).await.unwrap();
    operator.secrets.insert(moved.0.to_owned(), moved.1.to_owned());
    let (code, printed, errors) = operator.rotate().await;
    assert_eq!((code, errors.as_str()), (0, ""), "{printed}");
    let claim = "no stored secret needs a key other than second\n";
    assert_eq!(printed, format!("re-sealed 201 secrets under key second, 0 were under it already; {claim}"));
    operator.assert_all_open("new").await;
    let old = CredentialCache::new(operator.database.credentials.clone());
    assert!(matches!(old.find(CONSUMER.0, None).await, Err(DirectoryError::Broken(_))));
    let (code, printed, _) = operator.rotate().await;
    assert_eq!(code, 0);
    assert_eq!(printed, format!("re-sealed 0 secrets under key second, 201 were under it already; {claim}"));
    // A name with a line break stays in its line.
    let forged = "UPDATE oauth_applications SET name = 'x\ntoken  forged'";
    operator.database.connection().await.execute_unprepared(forged).await.unwrap();
    let (_, listed, _) = run(&["credentials", "list", "--database-url", &operator.database.url], &[]).await;
    assert_eq!(listed.lines().count(), 201, "{listed}");
    assert!(listed.lines().all(|line| line.contains("  key second")), "{listed}");
    assert!(listed.lines().next().unwrap().ends_with("key second  x\\ntoken  forged"), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_the_new_key_opens_everything_on_sqlite() {
    after_a_rotation_the_new_key_opens_everything(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_the_new_key_opens_everything_on_postgres() {
    after_a_rotation_the_new_key_opens_everything(Backend::Postgres).await;
}

/// Until the rotation stands in the middle, waiting for what this holds.
async fn hold(operator: &Operator, rotating: &mut Option<Child>) -> DatabaseTransaction {
    let admin = operator.database.connection().await;
    if admin.get_database_backend() == DbBackend::Postgres {
        let held = admin.begin().await.unwrap();
        let lock = "SELECT 1 FROM oauth_access_tokens WHERE token = \
                    (SELECT token FROM oauth_access_tokens ORDER BY token LIMIT 1 OFFSET 250) FOR UPDATE";
        let row = held.query_all_raw(Statement::from_string(DbBackend::Postgres, lock)).await.unwrap();
        assert_eq!(row.len(), 1);
        *rotating = Some(operator.rotating());
        wait_for(&operator.database.connection().await, BLOCKED).await;
        return held;
    }
    *rotating = Some(operator.rotating());
    let immediate = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    };
    let caught = async {
        loop {
            let held = admin.begin_with_options(immediate).await.unwrap();
            if count(&held, "second").await > 0 {
                return held;
            }
            held.rollback().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), caught).await.unwrap()
}

/// Whether this signal has been sent to the process and not been delivered yet.
fn is_pending(child: &Child, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() & 1 << (signal as u32 - 1) != 0
}

/// Enough for a rotation to be caught in its middle, however busy the machine is.
const TOKENS: usize = 1500;

async fn an_interrupted_rotation_is_run_again(backend: Backend, with: Signal) {
    let operator = Operator::new(backend, TOKENS).await;
    let mut rotating = None;
    let held = hold(&operator, &mut rotating).await;
    let rotating = rotating.unwrap();
    signal(&rotating, with);
    if with == Signal::SIGTERM {
        wait_until("the signal was delivered", async || !is_pending(&rotating, with)).await;
    }
    held.rollback().await.unwrap();
    let output = rotating.wait_with_output().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    if with == Signal::SIGTERM {
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(
            errors.starts_with("error: stopped: ") && errors.contains("run rotate-key again"),
            "{errors}"
        );
    } else {
        assert_eq!(output.status.code(), None);
    }
    assert_eq!(output.stdout, b"");
    let done = operator.under("second").await;
    assert!((1..=TOKENS).contains(&done), "not in the middle: {done}");
    operator.assert_all_open("both").await;
    let (code, printed, errors) = operator.rotate().await;
    assert_eq!(code, 0, "{errors}");
    let (rest, before) = (TOKENS + 1 - done, done + 1);
    assert!(
        printed.starts_with(&format!(
            "re-sealed {rest} secrets under key second, {before} were under it already; no stored secret"
        )),
        "{printed}"
    );
    operator.assert_all_open("new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_rotation_is_run_again_on_sqlite() {
    an_interrupted_rotation_is_run_again(Backend::Sqlite, Signal::SIGKILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_rotation_is_run_again_on_postgres() {
    an_interrupted_rotation_is_run_again(Backend::Postgres, Signal::SIGKILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_rotation_is_run_again_on_sqlite() {
    an_interrupted_rotation_is_run_again(Backend::Sqlite, Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_rotation_is_run_again_on_postgres() {
    an_interrupted_rotation_is_run_again(Backend::Postgres, Signal::SIGTERM).await;
}

/// Two rotations at once, while tokens are issued with an old key file and revoked.
async fn concurrent_changes_survive_a_rotation(backend: Backend) {
    let mut operator = Operator::new(backend, 400).await;
    let revoked: Vec<String> = operator.secrets.keys().step_by(20).cloned().collect();
    let (first, second) = (operator.rotating(), operator.rotating());
    let (store, stale) = (operator.database.store.clone(), operator.database.credentials.clone());
    let revoking = tokio::spawn(async move {
        for token in &revoked {
            store.revoke_token(token).await.unwrap();
        }
        revoked
    });
    let mut issued = Vec::new();
    for _ in 0..40 {
        issued.push(stale.issue_token(CONSUMER.0, user(OWNER), true).await.unwrap());
    }
    let mut resealed = 0;
    let outputs = [first.wait_with_output().await.unwrap(), second.wait_with_output().await.unwrap()];
    let last = operator.rotate().await;
    assert_eq!(last.0, 0, "{}", last.2);
    assert!(last.1.contains("no stored secret needs a key other than second"), "{}", last.1);
    for printed in outputs.iter().flat_map(|output| [&output.stdout, &output.stderr]) {
        resealed += counted(std::str::from_utf8(printed).unwrap());
    }
    // Each secret by exactly one of them.
    assert_eq!(resealed + counted(&last.1), 1 + 401 + 40, "{outputs:?} {last:?}");
    let revoked = revoking.await.unwrap();
    operator
        .secrets
        .extend(issued.into_iter().map(|issued| (issued.token, issued.secret.expose().to_owned())));
    operator.assert_all_open("new").await;
    let (_, tokens) = operator.database.store.credentials().await.unwrap();
    assert_eq!(tokens.len(), operator.secrets.len());
    for token in tokens {
        assert_eq!(token.revoked, revoked.contains(&token.token), "{token:?}");
    }
}

/// The number before "secrets" in the output.
fn counted(output: &str) -> usize {
    let words: Vec<_> = output.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "secrets");
    at.map_or(0, |at| words[at - 1].parse().unwrap_or_else(|_| panic!("{output}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_survive_a_rotation_on_sqlite() {
    concurrent_changes_survive_a_rotation(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_survive_a_rotation_on_postgres() {
    concurrent_changes_survive_a_rotation(Backend::Postgres).await;
}

/// Another transaction writes a row between its reading and its writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_are_not_overwritten() {
    let operator = Operator::new(Backend::Postgres, 0).await;
    for change in ["key_id = 'third'", "sealed_secret = '\\x00'"] {
        let held = operator.database.connection().await.begin().await.unwrap();
        held.execute_unprepared(&format!("UPDATE oauth_applications SET {change}")).await.unwrap();
        let credentials = operator.credentials("both");
        let rotating = tokio::spawn(async move { credentials.rotate(&Place::default()).await.unwrap() });
        wait_for(&operator.database.connection().await, BLOCKED).await;
        held.commit().await.unwrap();
        let rotated = rotating.await.unwrap();
        assert_eq!((rotated.resealed, rotated.overtaken, rotated.current), (0, 1, 0));
        let kept = format!("SELECT 1 FROM oauth_applications WHERE {change}");
        wait_for(&operator.database.connection().await, &kept).await;
        let again = operator.credentials("both").rotate(&Place::default()).await.unwrap();
        assert_eq!((again.resealed, again.unopened.len()), (0, 1));
        let back = "UPDATE oauth_applications SET key_id = 'test'";
        operator.database.connection().await.execute_unprepared(back).await.unwrap();
    }
}

async fn secrets_that_do_not_open_are_listed(backend: Backend) {
    let operator = Operator::new(backend, 130).await;
    let (lost, damaged) = {
        let mut tokens = operator.secrets.keys().filter(|token| *token != TOKEN.0);
        (tokens.next().unwrap(), tokens.next_back().unwrap())
    };
    let admin = operator.database.connection().await;
    for change in [
        format!("UPDATE oauth_access_tokens SET key_id = 'gone' WHERE token = '{lost}'"),
        format!(
            "UPDATE oauth_access_tokens SET sealed_secret = (SELECT sealed_secret FROM oauth_access_tokens
             WHERE token = '{}') WHERE token = '{damaged}'",
            TOKEN.0
        ),
        // A row that no program of ours has made.
        "INSERT INTO oauth_applications SELECT 'a\nb', name, 'x\ny', sealed_secret, suspended, created_at \
         FROM oauth_applications"
            .to_owned(),
    ] {
        admin.execute_unprepared(&change).await.unwrap();
    }
    let (code, printed, errors) = operator.rotate().await;
    assert_eq!(code, 1);
    assert_eq!(printed, "re-sealed 130 secrets under key second, 0 were under it already\n");
    let named: Vec<_> = errors.lines().collect();
    let mut expected = vec![
        format!("  token {lost}, sealed under key gone: the key file has no key of this id"),
        format!(
            "  token {damaged}, sealed under key test: the key of this id does not open it: another key had that \
             id, or the row is damaged"
        ),
    ];
    expected.sort();
    assert_eq!(named[0], "error: 3 secrets do not open and stay as they are:");
    assert_eq!(named[1], "  application a\\nb, sealed under key x\\ny: the key file has no key of this id");
    let mut tokens = named[2..].to_vec();
    tokens.sort_unstable();
    assert_eq!(tokens, expected);
    // Another key under an id that is in use opens nothing; not every row is named.
    let other = KeyRing::generate_line("second", &Entropy::default());
    write_private(&operator.file("both"), &other);
    let (code, printed, errors) = operator.rotate().await;
    assert_eq!(
        (code, printed.as_str()),
        (1, "re-sealed 0 secrets under key second, 0 were under it already\n")
    );
    assert!(errors.starts_with("error: 133 secrets do not open"), "{errors}");
    assert!(errors.lines().count() == 102 && errors.ends_with("\n  and 33 more\n"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_do_not_open_are_listed_on_sqlite() {
    secrets_that_do_not_open_are_listed(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_do_not_open_are_listed_on_postgres() {
    secrets_that_do_not_open_are_listed(Backend::Postgres).await;
}

/// A role with the grants of the README for `rotate-key`, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_grants_suffice() {
    let mut operator = Operator::new(Backend::Postgres, 3).await;
    let role = format!("r{}", Entropy::default().hex::<8>());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT ON seaql_migrations TO {role};
         GRANT SELECT, UPDATE ON oauth_applications, oauth_access_tokens TO {role}"
    );
    operator.database.connection().await.execute_unprepared(&grants).await.unwrap();
    let owner = std::mem::take(&mut operator.database.url);
    operator.database.url = owner.replace("//tests@", &format!("//{role}@"));
    let (code, _, errors) = operator.rotate().await;
    assert_eq!(code, 0, "{errors}");
}

/// A database that does not answer: re-sealed secrets stay so, and the error names the next step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_database_is_reported() {
    let operator = Operator::new(Backend::Sqlite, 150).await;
    let fail = "CREATE TRIGGER fail BEFORE UPDATE ON oauth_access_tokens WHEN
                (SELECT count(*) FROM oauth_access_tokens WHERE key_id = 'second') >= 100
                BEGIN SELECT RAISE(ABORT, 'no more'); END";
    operator.database.connection().await.execute_unprepared(fail).await.unwrap();
    let (code, printed, errors) = operator.rotate().await;
    assert_eq!((code, printed.as_str()), (1, ""));
    let expected = "; 101 secrets were re-sealed and stay so; run rotate-key again\n";
    assert!(errors.starts_with("error: the database failed: ") && errors.ends_with(expected), "{errors}");
    assert_eq!(operator.under("second").await, 100);
    operator.database.connection().await.execute_unprepared("DROP TRIGGER fail").await.unwrap();
    assert_eq!(operator.rotate().await.0, 0);
    operator.assert_all_open("new").await;
}

/// What is sealed under another key behind the pass's back is found, or the claim at the end would be none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_added_behind_a_pass_are_found() {
    let operator = Operator::new(Backend::Sqlite, 5).await;
    let admin = operator.database.connection().await;
    let insert = "CREATE TRIGGER sneak AFTER UPDATE ON oauth_access_tokens
                  WHEN (SELECT count(*) FROM oauth_access_tokens WHERE token = '0') = 0
                  BEGIN INSERT INTO oauth_access_tokens SELECT '0', consumer_key, user_id, 'test', x'00',
                  write_access, created_at, expires_at, revoked_at FROM oauth_access_tokens LIMIT 1; END";
    admin.execute_unprepared(insert).await.unwrap();
    let (code, printed, errors) = operator.rotate().await;
    assert_eq!(
        (code, printed.as_str()),
        (1, "re-sealed 7 secrets under key second, 0 were under it already\n")
    );
    assert!(errors.starts_with("error: 1 secrets do not open") && errors.contains("token 0, "), "{errors}");
    // An application that comes back under its old key each time: no endless work.
    let restore = "DELETE FROM oauth_access_tokens WHERE token = '0';
                   DROP TRIGGER sneak;
                   CREATE TRIGGER back AFTER UPDATE ON oauth_applications BEGIN
                   UPDATE oauth_applications SET key_id = 'third'; END;
                   UPDATE oauth_applications SET key_id = 'second'";
    admin.execute_unprepared(restore).await.unwrap();
    let third = operator.new.replace("second:", "third:");
    write_private(&operator.file("both"), &format!("{}{third}", operator.new));
    let (code, printed, errors) = operator.rotate().await;
    assert_eq!((code, printed.as_str()), (1, ""));
    assert!(errors.starts_with("error: 4 secrets were re-sealed, and others keep being"), "{errors}");
}
