//! The command line as an operator meets it: what it refuses, says and exits with.

use std::time::Duration;

use collections_service::{domain::Entropy, store::KeyRing};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sea_orm::ConnectionTrait;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::support::{
    Backend, CONSUMER, TestDatabase,
    program::{Program, command, path, run},
    write_private,
};

#[tokio::test]
async fn serve_rejects_unsafe_and_incomplete_flags() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let key = database.folder.path().join("key");
    let (key, url) = (path(&key), database.url.as_str());
    for (arguments, named) in [
        (&["--database-url", url][..], "--credentials-key-file"),
        (
            &["--database-url", url, "--credentials-key-file", key, "--batches-in-flight", "7"],
            "--database-connections",
        ),
        (&["--database-url", url, "--rest-addr", "off"], "--insecure-identity"),
        (
            &["--database-url", url, "--rest-addr", "off", "--insecure-identity", "--grpc-addr", "0.0.0.0:0"],
            "--insecure-identity",
        ),
        (
            &[
                "--database-url",
                url,
                "--rest-addr",
                "off",
                "--insecure-identity",
                "--credentials-key-file",
                key,
            ],
            "--credentials-key-file",
        ),
        (
            &[
                "--database-url",
                url,
                "--rest-addr",
                "off",
                "--insecure-identity",
                "--public-origin",
                "https://a",
            ],
            "--public-origin",
        ),
        (&["--database-url", url, "--credentials-key-file", "/nowhere"], "--credentials-key-file"),
        (
            &["--database-url", url, "--credentials-key-file", key, "--public-origin", "https://a/b"],
            "--public-origin",
        ),
        (
            &["--database-url", url, "--credentials-key-file", key, "--public-origin", "https://a:99999"],
            "--public-origin",
        ),
        (&["--database-url", "mysql://x", "--credentials-key-file", key], "--database-url"),
        (&["--database-url", "postgres://u:p@localhost/x", "--credentials-key-file", key], "--database-url"),
        (&["--database-url", url, "--credentials-key-file", key, "--rest-addr", "nowhere"], "--rest-addr"),
        (&["--database-url", url, "--credentials-key-file", key, "--max-in-flight", "0"], "--max-in-flight"),
        (&["--credentials-key-file", key], "--database-url"),
        (&["--unknown"], "--unknown"),
    ] {
        let (code, _, errors) = run(&[&["serve"], arguments].concat(), &[]).await;
        assert_eq!(code, 2, "{arguments:?}: {errors}");
        assert!(errors.contains(named), "{arguments:?} does not name {named}: {errors}");
        assert!(!errors.contains("u:p@"), "a password is shown: {errors}");
    }
    for wrong in [
        "mysql://u:secret@h/db",
        "secret",
        "sqlite:",
        "sqlite::memory:",
        "postgres://u:sec#secret@h/db",
        "postgres://u:1#secret@h/db",
        "postgres://u:secret@h:port/db",
        "postgres://u:secret@[h/db",
        "postgres://u:secret@h/db?sslmode=secure",
        "postgres://u@h/db?sslmod=verify-full&pasword=secret",
        "postgres://u:12?secret@h/db",
    ] {
        let (code, _, errors) =
            run(&["serve", "--credentials-key-file", key], &[("COLLECTIONS_DATABASE_URL", wrong)]).await;
        assert!(code == 2 && errors.contains("--database-url") && !errors.contains("secret"), "{errors}");
    }
    let bad = database.folder.path().join("bad");
    write_private(&bad, "key:c2hvcnQ=\n");
    let (code, _, errors) =
        run(&["serve", "--database-url", url, "--credentials-key-file", path(&bad)], &[]).await;
    assert!(code == 2 && errors.contains("line 1") && !errors.contains("c2hvcnQ"), "{errors}");
}

/// The reason of a failed start is the last line of the log, in the log's format. The log of a server is JSON by default.
#[tokio::test]
async fn errors_have_the_format_of_the_log() {
    for (arguments, variables, message) in [
        (&["serve"][..], &[][..], "the following required arguments were not provided: --database-url <URL>"),
        (&["gateway", "--bogus"], &[], "unexpected argument '--bogus' found"),
        (&["serve"], &[("COLLECTIONS_MISSPELT", "x")], "unknown environment variable COLLECTIONS_MISSPELT"),
        (
            &["serve", "--log", "off"],
            &[("COLLECTIONS_DATABASE_URL", "x")],
            "--credentials-key-file: is required",
        ),
        (&["verify", "--log-format", "json"], &[], "the following required arguments were not provided"),
        (&["inspect", "0"], &[("COLLECTIONS_LOG_FORMAT", "json")], "invalid value '0' for '<ID>'"),
    ] {
        let (code, printed, errors) = run(arguments, variables).await;
        assert_eq!((code, printed.as_str(), errors.lines().count()), (2, "", 1), "{errors}");
        let line: serde_json::Value = serde_json::from_str(&errors).unwrap();
        assert!(line["message"].as_str().unwrap().starts_with(message), "{line}");
        assert_eq!((&line["level"], &line["target"]), (&"ERROR".into(), &"collections_service::cli".into()));
        assert!(line["timestamp"].is_string());
    }
    for (arguments, variables) in [
        (&["serve", "--log-format", "pretty"][..], &[][..]),
        (&["serve"], &[("COLLECTIONS_LOG_FORMAT", "pretty")]),
        (&["migrate", "up"], &[]),
    ] {
        let (code, _, errors) = run(arguments, variables).await;
        assert!(code == 2 && errors.starts_with("error: the following required"), "{errors}");
    }
}

#[tokio::test]
async fn an_error_that_cannot_be_written_does_not_delay_the_end() {
    use std::io::Write;
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
    writer.write_all(&vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
    let mut child = command(&["serve"]).stderr(writer).spawn().unwrap();
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[tokio::test]
async fn serve_warns_where_no_grpc_caller_can_be_identified() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    for (program, warnings) in
        [(Program::serve_strictly(&database, &[]).await, 1), (Program::serve(&database, &[]).await, 0)]
    {
        program.signal(Signal::SIGTERM);
        let (_, log) = program.ended(Duration::from_secs(10)).await;
        let found = log.iter().filter(|line| line.contains("WARN") && line.contains("no gRPC caller can be"));
        assert_eq!(found.count(), warnings, "{log:?}");
    }
}

/// The commit is that of the sources, or nothing where they are not in a repository.
#[tokio::test]
async fn the_version_names_the_commit() {
    let (code, version, _) = run(&["--version"], &[]).await;
    let package = concat!("collections-service ", env!("CARGO_PKG_VERSION"));
    let commit = version.trim_end().strip_prefix(package).unwrap_or_else(|| panic!("{version}"));
    let is_commit = |text: &str| text.len() >= 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let named = commit.strip_prefix(" (").and_then(|text| text.strip_suffix(')'));
    assert!(code == 0 && (commit.is_empty() || named.is_some_and(is_commit)), "{version}");
    let is_repository = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.git")).exists();
    assert!(!is_repository || named.is_some(), "{version}");
    assert_eq!(run(&["serve", "--version"], &[]).await.1, version.replacen("service", "service-serve", 1));
}

#[tokio::test]
async fn variables_are_read_and_unknown_ones_rejected() {
    let (code, _, errors) = run(&["migrate", "status"], &[("COLLECTIONS_DATABASE_ULR", "x")]).await;
    assert!(code == 2 && errors.contains("COLLECTIONS_DATABASE_ULR"), "{errors}");
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
    // Cargo sets the variables of the build for the programs that it runs.
    let variables = [("COLLECTIONS_DATABASE_URL", url.as_str()), ("COLLECTIONS_REVISION", "x")];
    let (code, _, errors) = run(&["migrate", "up"], &variables).await;
    assert_eq!(code, 0, "{errors}");
    assert_eq!(run(&["--help"], &[]).await.0, 0);
    assert_eq!(run(&[], &[]).await.0, 2);
}

/// As Compose files and Helm charts leave them.
#[tokio::test]
async fn empty_variables_count_as_not_set() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
    let empty = [("COLLECTIONS_LOG", ""), ("COLLECTIONS_LOG_FORMAT", ""), ("COLLECTIONS_MISSPELT", "")];
    let variables = [&empty[..], &[("COLLECTIONS_DATABASE_URL", &url)]].concat();
    let (code, _, errors) = run(&["migrate", "up"], &variables).await;
    assert_eq!(code, 0, "{errors}");
    let (_, help, _) = run(&["serve", "--help"], &[]).await;
    let words = help.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
    let variables: Vec<_> =
        words.filter(|word| word.starts_with("COLLECTIONS_")).map(|name| (name, "")).collect();
    assert!(variables.len() > 20, "{help}");
    let (code, _, errors) = run(&["serve"], &variables).await;
    assert!(code == 2 && errors.contains("required") && errors.contains("--database-url"), "{errors}");
    let with_defaults = ["serve", "--database-url", &url, "--rest-addr", "off"];
    let (code, _, errors) = run(&with_defaults, &variables).await;
    assert!(code == 2 && errors.contains("\"--trusted-peer, --jwks"), "{errors}");
    // Here an empty name means the process as a whole.
    let name = ("COLLECTIONS_HEALTHCHECK_SERVICE", "");
    let (_, help, _) = run(&["healthcheck", "--help"], &[name]).await;
    assert!(help.contains("COLLECTIONS_HEALTHCHECK_SERVICE=]"), "{help}");
}

/// The variables of a Service that is called `collections-redis`, for example.
#[tokio::test]
async fn service_links_of_kubernetes_get_a_hint() {
    for name in ["COLLECTIONS_SERVICE_HOST", "COLLECTIONS_REDIS_SERVICE_HOST", "COLLECTIONS_PORT_50051_TCP"] {
        let (code, _, errors) = run(&["migrate", "status"], &[(name, "10.0.0.1")]).await;
        assert!(
            code == 2 && errors.contains(name) && errors.contains("enableServiceLinks: false"),
            "{errors}"
        );
    }
    let (_, _, errors) = run(&["migrate", "status"], &[("COLLECTIONS_DATABASE_ULR", "x")]).await;
    assert!(!errors.contains("enableServiceLinks"), "{errors}");
}

#[tokio::test]
async fn unreadable_arguments_and_full_outputs_are_errors() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Stdio};
    let database = TestDatabase::new(Backend::Sqlite).await;
    let mut no_text = command(&["credentials", "create-app", "--name"]);
    let output = no_text.arg(OsStr::from_bytes(b"\xff")).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // The word is a command only in its own place.
    assert_eq!(run(&["credentials", "create-app", "--name", "healthcheck"], &[]).await.0, 2);
    assert_eq!(run(&["healthcheck", "--bogus"], &[]).await.0, 1);
    assert_eq!(run(&["--log", "debug", "healthcheck", "--bogus"], &[]).await.0, 1);
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let key = database.folder.path().join("key");
    let with = ["--database-url", &database.url, "--credentials-key-file", path(&key), "--name", "x"];
    let mut unwritable = command(&[&["credentials", "create-app"][..], &with].concat());
    let child = unwritable.stdout(full()).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && errors.contains("its secret is lost"), "{errors}");
    let status = command(&["migrate", "up"]).stderr(full()).status().await.unwrap();
    assert_eq!(status.code(), Some(2));
}

#[tokio::test]
async fn a_schema_is_made_once_and_checked() {
    for postgres in [None, Some(super::support::fresh_postgres().await)] {
        let folder = tempfile::tempdir().unwrap();
        let url =
            postgres.unwrap_or_else(|| format!("sqlite:{}?mode=rwc", folder.path().join("db").display()));
        let with = [("COLLECTIONS_DATABASE_URL", url.as_str())];
        let (code, listed, errors) = run(&["migrate", "status"], &with).await;
        assert!(
            code == 1 && listed.starts_with("missing  m20") && errors.contains("migrate up"),
            "{listed}{errors}"
        );
        let serve = ["serve", "--rest-addr", "off", "--insecure-identity", "--grpc-addr", "127.0.0.1:0"];
        // A version that fails leaves nothing behind that would stop the next try.
        let admin = sea_orm::Database::connect(&url).await.unwrap();
        admin.execute_unprepared("CREATE TABLE oauth_access_tokens (x int)").await.unwrap();
        assert_eq!(run(&["migrate", "up"], &with).await.0, 1);
        admin.execute_unprepared("DROP TABLE oauth_access_tokens").await.unwrap();
        let (code, made, errors) = run(&["migrate", "up"], &with).await;
        assert!(
            code == 0 && made.contains("applied  m20") && made.ends_with("the schema is complete\n"),
            "{made}{errors}"
        );
        let (code, again, _) = run(&["migrate", "up"], &with).await;
        assert_eq!((code, again.as_str()), (0, "already up to date\n"));
        assert_eq!(run(&["migrate", "status"], &with).await.0, 0);
        let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_x', 0)";
        admin.execute_unprepared(newer).await.unwrap();
        let (code, _, errors) = run(&serve, &with).await;
        assert!(code == 1 && errors.contains("newer"), "{errors}");
    }
}

#[tokio::test]
async fn serve_rejects_keys_that_open_no_secret() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let other = database.folder.path().join("other");
    write_private(&other, &KeyRing::generate_line("test", &Entropy::default()));
    let serve = ["serve", "--database-url", &database.url, "--credentials-key-file", path(&other)];
    let (code, _, errors) = run(&serve, &[]).await;
    assert!(code == 2 && errors.contains("--credentials-key-file"), "{errors}");
    let create = ["credentials", "create-app", "--name", "x", "--database-url", &database.url];
    let (code, _, errors) =
        run(&[&create[..], &["--credentials-key-file", path(&other)]].concat(), &[]).await;
    assert!(code == 2 && errors.contains("--credentials-key-file"), "{errors}");
}

#[tokio::test]
async fn credentials_are_shown_once() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let key = database.folder.path().join("key");
    let with = [
        ("COLLECTIONS_DATABASE_URL", database.url.as_str()),
        ("COLLECTIONS_CREDENTIALS_KEY_FILE", path(&key)),
    ];
    let field = |text: &str, name: &str| -> String {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .unwrap_or_else(|| panic!("no {name}: {text}"))
            .to_owned()
    };
    let (code, app, errors) = run(&["credentials", "create-app", "--name", "mine"], &with).await;
    assert_eq!(code, 0, "{errors}");
    let consumer_key = field(&app, "consumer_key");
    let issue = ["credentials", "issue-token", "--consumer-key", &consumer_key, "--user", "7"];
    let (code, issued, errors) = run(&issue, &with).await;
    assert_eq!(code, 0, "{errors}");
    let token = field(&issued, "token");
    let (_, listed, _) = run(&["credentials", "list"], &with).await;
    assert!(
        listed.contains(&format!("token  {token}  active  read-write  user 7  application {consumer_key}")),
        "{listed}"
    );
    for secret in [field(&app, "consumer_secret"), field(&issued, "token_secret"), CONSUMER.1.to_owned()] {
        assert!(!listed.contains(&secret), "{listed}");
        for file in ["db", "db-wal"] {
            let file = std::fs::read(database.folder.path().join(file)).unwrap();
            let clear = file.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!clear, "a secret is stored in the clear");
        }
    }
    assert_eq!(run(&["credentials", "revoke-token", "--token", &token], &with[..1]).await.0, 0);
    // Who lists or revokes needs no key.
    let list = ["credentials", "list", "--database-url", with[0].1];
    let (_, listed, _) = run(&list, &[]).await;
    assert!(listed.contains(&format!("token  {token}  revoked")), "{listed}");
    for unknown in [
        &["credentials", "issue-token", "--consumer-key", "x", "--user", "7"][..],
        &["credentials", "issue-token", "--consumer-key", &consumer_key, "--user", "0"],
        &["credentials", "create-app", "--name", ""],
        &["credentials", "create-app", "--name", "x\ntoken  forged"],
    ] {
        assert_eq!(run(unknown, &with).await.0, 2, "{unknown:?}");
    }
    assert_eq!(run(&["credentials", "revoke-token", "--token", "x"], &with[..1]).await.0, 2);
}

#[tokio::test]
async fn healthcheck_exits_as_probes_do() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    let admin = program.admin.trim_start_matches("http://");
    let check = async |more: &[&str]| run(&[&["healthcheck", "--addr"], more].concat(), &[]).await.0;
    assert_eq!(check(&[admin]).await, 0);
    assert_eq!(check(&[admin, "--service", ""]).await, 0);
    assert_eq!(check(&[program.grpc.trim_start_matches("http://")]).await, 0);
    assert_eq!(check(&[&admin.replace("127.0.0.1", "localhost")]).await, 0);
    assert_eq!(check(&["nowhere"]).await, 1);
    assert_eq!(check(&["nowhere.invalid:9090"]).await, 2);
    assert_eq!(check(&["127.0.0.1:1"]).await, 2);
    assert_eq!(check(&[admin, "--service", "x"]).await, 3);
    // The code is the answer, whether or not the word can be written.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = command(&["healthcheck", "--addr", admin]).stdout(full).status().await.unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Of a host name all addresses are checked, and one of them is bound.
#[tokio::test]
async fn addresses_may_be_host_names() {
    let folder = tempfile::tempdir().unwrap();
    let (_child, printed) = dev(folder.path(), ["localhost:0"; 3]).await;
    let admin = printed.split_once("Health is on ").unwrap().1.split(',').next().unwrap();
    let port = admin.rsplit_once(':').unwrap().1;
    assert_eq!(run(&["healthcheck", "--addr", &format!("localhost:{port}")], &[]).await.0, 0);
    let serve = ["serve", "--database-url", "sqlite:none", "--insecure-identity", "--rest-addr", "off"];
    for (flag, address) in [
        ("--grpc-addr", "nowhere.invalid:0"),
        ("--admin-addr", "nowhere.invalid:0"),
        ("--grpc-addr", "localhost"),
        ("--grpc-addr", "localhost:1#"),
    ] {
        let (code, _, errors) = run(&[&serve[..], &[flag, address]].concat(), &[]).await;
        assert!(code == 2 && errors.contains(flag) && errors.contains(address), "{errors}");
    }
}

/// The end of a terminal session, or an operator who expects that it reloads files.
#[tokio::test]
async fn sighup_ends_no_server() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let program = Program::serve(&database, &[]).await;
    program.signal(Signal::SIGHUP);
    program.wait_until_ready().await;
    program.signal(Signal::SIGTERM);
    let (status, log) = program.ended(Duration::from_secs(9)).await;
    assert_eq!(status.code(), Some(0), "{log:?}");
    assert_eq!(log.iter().filter(|line| line.contains("SIGHUP ignored")).count(), 1, "{log:?}");

    let folder = tempfile::tempdir().unwrap();
    let (mut child, _) = dev(folder.path(), ["127.0.0.1:0"; 3]).await;
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        kill(Pid::from_raw(child.id().unwrap().cast_signed()), signal).unwrap();
    }
    let status = tokio::time::timeout(Duration::from_secs(9), child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// `dev` on these ports until its last line; the process and all that it printed.
async fn dev(folder: &std::path::Path, ports: [&str; 3]) -> (tokio::process::Child, String) {
    let [grpc, rest, admin] = ports;
    let arguments =
        ["dev", "--data-dir", path(folder), "--grpc-addr", grpc, "--rest-addr", rest, "--admin-addr", admin];
    let mut child = command(&arguments).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut printed = String::new();
    let read = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            printed.push_str(&line);
            printed.push('\n');
            if line == "ready" {
                return;
            }
        }
        panic!("dev ended early: {printed}");
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.unwrap();
    (child, printed)
}

#[tokio::test]
async fn dev_names_an_address_in_use() {
    let folder = tempfile::Builder::new().prefix("a folder? 100%25 é").tempdir().unwrap();
    let free = "127.0.0.1:0";
    let (_child, printed) = dev(folder.path(), [free; 3]).await;
    let taken = printed.split_once("}' ").unwrap().1.split_whitespace().next().unwrap().to_owned();
    let again = ["dev", "--data-dir", path(folder.path()), "--grpc-addr", &taken];
    let (code, _, errors) = run(&again, &[]).await;
    assert_eq!(code, 1);
    assert!(
        errors.contains(&taken) && errors.contains("another `dev`") && errors.contains("--grpc-addr"),
        "{errors}"
    );
    // The same folder on other ports serves the same data.
    let (_other, second) = dev(folder.path(), [free; 3]).await;
    let user = |printed: &str| printed.lines().find(|line| line.starts_with("User ")).unwrap().to_owned();
    assert_eq!(user(&printed), user(&second));
    let (code, _, errors) =
        run(&["dev", "--data-dir", path(folder.path()), "--rest-addr", "0.0.0.0:0"], &[]).await;
    assert!(code == 2 && errors.contains("--rest-addr"), "{errors}");
}
