//! The key file and the secrets that it seals: read, changed under a running service, never shown.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use collections_service::{
    config::{DatabaseUrl, net::RELOAD_INTERVAL},
    domain::{Clock, CredentialDirectory, Entropy, Secret},
    rest::TransportPolicy,
    server::Rest,
    store::{CredentialCache, Credentials, KeyRing, KeyRingError},
};
use nix::sys::signal::Signal;

use super::{
    errors::form,
    support::{
        Backend, CONSUMER, OWNER, PATH, TOKEN, TestDatabase, form_now,
        oauth::Signer,
        program::{Program, path, run},
        send, user, wait_until, write_private,
    },
};

fn line(id: &str) -> String {
    KeyRing::generate_line(id, &Entropy::default()).to_string()
}

#[test]
fn only_a_valid_key_file_is_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let (first, second) = (line("first"), line("second"));
    write_private(&file, &first);
    let ring = KeyRing::read(&file, Entropy::default()).unwrap();
    assert!(!ring.reload().unwrap());
    // The same text in another file is no change.
    write_private(&file, &first);
    assert!(!ring.reload().unwrap());
    write_private(&file, &format!("# to come\n\n{second}{first}"));
    assert!(ring.reload().unwrap());
    assert_eq!(ring.current(), "second");
    let half = second.get(..30).unwrap();
    let long = "#".repeat(8 * 1024 + 1);
    for (bad, why) in [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("nonsense", "line 1: expected"),
        (&format!("{first}{half}"), "line 2: expected"),
        (&format!("{first}{first}"), "line 2: this key id stands there twice"),
        ("a:AAAA\n", "line 1: expected"),
        (&format!("a:{}\n", "A".repeat(48)), "line 1: expected"),
        (&format!("a b{first}"), "line 1: expected"),
        (&long, "longer than 8192 bytes"),
    ] {
        write_private(&file, bad);
        let error = ring.reload().unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains(half), "{bad}: {error}");
        assert_eq!(ring.current(), "second");
    }
    fs::remove_file(&file).unwrap();
    assert!(matches!(ring.reload(), Err(KeyRingError::Unreadable(_))));
    write_private(&file, &first);
    assert!(ring.reload().unwrap() && ring.current() == "first");
}

#[tokio::test]
async fn a_world_readable_key_file_is_rejected() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    // As Kubernetes mounts it.
    let (data, mounted) = (database.folder.path().join("..data"), database.folder.path().join("mounted"));
    fs::create_dir(&data).unwrap();
    fs::rename(database.folder.path().join("key"), data.join("key")).unwrap();
    symlink("..data/key", &mounted).unwrap();
    let read = || KeyRing::read(&mounted, Entropy::default());
    for mode in [0o400, 0o600, 0o440, 0o640] {
        fs::set_permissions(&mounted, Permissions::from_mode(mode)).unwrap();
        read().unwrap_or_else(|error| panic!("{mode:o}: {error}"));
    }
    let ring = read().unwrap();
    for mode in [0o604, 0o644, 0o602, 0o666, 0o777] {
        fs::set_permissions(&mounted, Permissions::from_mode(mode)).unwrap();
        assert!(matches!(read(), Err(KeyRingError::Exposed)), "{mode:o}");
        assert!(matches!(ring.reload(), Err(KeyRingError::Exposed)), "{mode:o}");
    }
    for command in
        [&["serve"][..], &["credentials", "rotate-key"], &["credentials", "create-app", "--name", "x"]]
    {
        let with = ["--database-url", &database.url, "--credentials-key-file", path(&mounted)];
        let (code, _, errors) = run(&[command, &with].concat(), &[]).await;
        assert!(
            code == 2 && errors.contains("--credentials-key-file") && errors.contains("chmod o="),
            "{errors}"
        );
    }
}

/// A secret belongs to its row.
#[tokio::test]
async fn debug_output_has_no_secret() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let key = fs::read_to_string(database.folder.path().join("key")).unwrap();
    let app = database.credentials.create_app("an app").await.unwrap();
    let issued = database.credentials.issue_token(&app.consumer_key, user(OWNER), true).await.unwrap();
    let secrets = [
        key.trim().split_once(':').unwrap().1,
        app.secret.expose(),
        issued.secret.expose(),
        CONSUMER.1,
        TOKEN.1,
        "pa55word",
    ];
    let cache = CredentialCache::new(database.credentials.clone());
    let found = cache.find(CONSUMER.0, Some(TOKEN.0)).await.unwrap();
    assert_eq!(found.token.as_ref().unwrap().secret.expose(), TOKEN.1);
    let rest = Rest {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        transport: TransportPolicy::default(),
        public_origins: Vec::new(),
        rate_limit: None,
        keys: database.keys.clone(),
    };
    let redis = Secret::from("redis://:pa55word@h".to_owned());
    let url = DatabaseUrl::from("postgres://u:pa55word@h/db".to_owned());
    let shown: Vec<&dyn std::fmt::Debug> = vec![
        &app,
        &issued,
        &app.secret,
        &found,
        &database.keys,
        &database.credentials,
        &cache,
        &rest,
        &url,
        &redis,
        &database.store,
    ];
    for value in shown {
        for text in [format!("{value:?}"), format!("{value:#?}")] {
            for secret in secrets {
                assert!(!text.contains(secret), "{text}");
                // Nor as bytes.
                assert!(
                    !text.contains(&format!("{:?}", &secret.as_bytes()[..4]).replace(['[', ']'], "")),
                    "{text}"
                );
            }
        }
    }
    assert_eq!(format!("{:?}", app.secret), "[redacted]");
}

/// What holds keys wipes them when it is dropped. This does not compile where it does not.
#[test]
fn types_that_hold_keys_are_zeroized() {
    fn wipes<T: zeroize::ZeroizeOnDrop>() {}
    wipes::<aes_gcm::Aes256Gcm>();
    // What an HMAC is made of.
    wipes::<sha1::Sha1>();
    wipes::<sha2::Sha256>();
    wipes::<zeroize::Zeroizing<String>>();
}

/// A folder that Kubernetes mounts: the file is a link into `..data`, which is swapped as a whole.
struct Mount {
    folder: PathBuf,
    version: u32,
}

impl Mount {
    fn put(&mut self, text: &str) {
        self.version += 1;
        let data = format!("..{}", self.version);
        fs::create_dir(self.folder.join(&data)).unwrap();
        let file = self.folder.join(&data).join("key");
        write_private(&file, text);
        fs::set_permissions(&file, Permissions::from_mode(0o440)).unwrap();
        symlink(&data, self.folder.join("..tmp")).unwrap();
        fs::rename(self.folder.join("..tmp"), self.folder.join("..data")).unwrap();
    }
}

/// Seals with this key file, and asks the service with a pair of an application and a token that it has never seen, for a
/// collection or for one that does not exist.
struct Client<'a> {
    database: &'a TestDatabase,
    rest: &'a str,
    secrets: Vec<String>,
}

impl Client<'_> {
    /// An application and its token.
    async fn pair(&mut self, key_file: &Path) -> Signer {
        let ring = Arc::new(KeyRing::read(key_file, Entropy::default()).unwrap());
        let credentials = Credentials::new(self.database.store.clone(), ring);
        let app = credentials.create_app("x").await.unwrap();
        let issued = credentials.issue_token(&app.consumer_key, user(OWNER), true).await.unwrap();
        let secret = |secret: &Secret| secret.expose().to_owned();
        let (app_secret, token_secret) = (secret(&app.secret), secret(&issued.secret));
        self.secrets.extend([app_secret.clone(), token_secret.clone()]);
        Signer {
            consumer: (app.consumer_key, app_secret),
            token: Some((issued.token, token_secret)),
            ..Signer::owner()
        }
    }

    async fn ask(&self, signer: &Signer, id: &str) -> u16 {
        let signer = Signer { timestamp: Clock::System.now().timestamp(), ..signer.clone() };
        let header = signer.header(&format!("{}{PATH}", self.rest), &[("id", id)]);
        send(self.rest, form(PATH, &header, &format!("id={id}"))).await.0
    }

    /// Asks with new pairs, which no cache holds, until the answer is this one.
    async fn until(&mut self, key_file: &Path, status: u16) {
        wait_until(&format!("the status is {status} under {}", key_file.display()), async || {
            let pair = self.pair(key_file).await;
            self.ask(&pair, "custom-999").await == status
        })
        .await;
    }
}

/// The README's procedure, with mistakes in between, under a service that is never restarted.
async fn a_key_is_changed_under_a_running_service(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let old = fs::read_to_string(database.folder.path().join("key")).unwrap();
    let new = line("second");
    let file = |name: &str, text: &str| {
        let path = database.folder.path().join(name);
        write_private(&path, text);
        path
    };
    let old_alone = file("old", &old);
    let new_first = file("new-first", &format!("{new}{old}"));
    let mut mount = Mount { folder: database.folder.path().to_owned(), version: 0 };
    mount.put(&old);
    let mounted = database.folder.path().join("key");
    fs::remove_file(&mounted).unwrap();
    symlink("..data/key", &mounted).unwrap();
    let program = Program::serve(&database, &["--log", "trace,h2=info,hyper=info"]).await;
    let rest = program.rest.clone();
    let mut client = Client { database: &database, rest: &rest, secrets: Vec::new() };
    let mut pairs = Vec::new();
    for id in 1..=5 {
        database.put(id, OWNER).await;
        pairs.push(client.pair(&old_alone).await);
    }
    assert_eq!(client.ask(&pairs[0], "custom-1").await, 200);
    let unknown = client.pair(&new_first).await;
    assert_eq!(client.ask(&unknown, "custom-999").await, 500);

    mount.put(&format!("{old}{new}"));
    client.until(&new_first, 404).await;
    assert_eq!(client.ask(&unknown, "custom-999").await, 404);
    assert_eq!(client.ask(&pairs[1], "custom-2").await, 200);

    // Broken, and still broken in the same way: logged once.
    mount.put("second:half a k");
    program.wait_for_log(1, "not reloaded").await;
    mount.put("second:half a k");
    // The file is read again, which leaves no trace.
    tokio::time::sleep(RELOAD_INTERVAL * 3).await;
    let sealed = client.pair(&new_first).await;
    assert_eq!(client.ask(&sealed, "custom-999").await, 404);
    assert_eq!(client.ask(&pairs[2], "custom-3").await, 200);

    mount.put(&format!("{new}{old}"));
    let with = ["--log", "trace", "credentials", "rotate-key", "--credentials-key-file", path(&mounted)];
    let (code, printed, traced) = run(&with, &[("COLLECTIONS_DATABASE_URL", &database.url)]).await;
    assert!(
        code == 0 && printed.contains("no stored secret needs a key other than second"),
        "{printed}{traced}"
    );
    // Whether it has the new order yet or not.
    assert_eq!(client.ask(&pairs[3], "custom-4").await, 200);
    program.wait_for_log(2, "\"key file loaded\"").await;

    mount.put(&new);
    client.until(&old_alone, 500).await;
    assert_eq!(client.ask(&pairs[4], "custom-5").await, 200);
    assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);

    let Client { mut secrets, .. } = client;
    program.signal(Signal::SIGTERM);
    let (status, log) = program.ended(Duration::from_secs(25)).await;
    assert_eq!(status.code(), Some(0));
    let with = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((with("\"reloaded\""), with("not reloaded")), (3, 1));
    let order: Vec<_> = log.iter().filter(|line| line.contains("\"key file loaded\"")).collect();
    let ids = ["\"test, second\"", "\"second, test\"", "\"second\""];
    assert_eq!(order.len(), ids.len(), "{log:?}");
    assert!(order.iter().zip(ids).all(|(line, ids)| line.contains(ids)), "{order:?}");
    assert!(order[0].contains("\"sealing\":\"test\"") && order[1].contains("\"sealing\":\"second\""));
    let broken = log.iter().find(|line| line.contains("not reloaded")).unwrap();
    assert!(broken.contains("--credentials-key-file") && broken.contains("line 1: expected"), "{broken}");
    secrets.extend([old, new].iter().map(|line| line.trim().split_once(':').unwrap().1.to_owned()));
    secrets.extend([CONSUMER.1, TOKEN.1].map(str::to_owned));
    for secret in &secrets {
        assert!(!log.iter().any(|line| line.contains(secret)), "the service's log holds {secret}");
        assert!(!traced.contains(secret), "rotate-key's log holds {secret}");
        assert!(!printed.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_changed_under_a_running_service_on_sqlite() {
    a_key_is_changed_under_a_running_service(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_changed_under_a_running_service_on_postgres() {
    a_key_is_changed_under_a_running_service(Backend::Postgres).await;
}

/// How often these bytes stand in the memory that a process may write.
fn occurrences(pid: u32, needle: &[u8]) -> usize {
    use std::io::{Read, Seek, SeekFrom};
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    const PIECE: usize = 64 * 1024;
    let nothing = vec![0; PIECE + needle.len()];
    let mut found = 0;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next().unwrap(), fields.next().unwrap());
        if !access.starts_with("rw") {
            continue;
        }
        let ends: Vec<u64> = range.split('-').map(|end| u64::from_str_radix(end, 16).unwrap()).collect();
        let mut bytes = vec![0; usize::try_from(ends[1] - ends[0]).unwrap()];
        memory.seek(SeekFrom::Start(ends[0])).unwrap();
        // A stack's guard is no memory.
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        for begin in (0..bytes.len()).step_by(PIECE) {
            let piece = &bytes[begin..bytes.len().min(begin + PIECE + needle.len() - 1)];
            // Most of what an allocator reserves was never touched.
            if *piece != nothing[..piece.len()] {
                found += piece.windows(needle.len()).filter(|window| *window == needle).count();
            }
        }
    }
    found
}

/// A key file, and the secrets that it opens, stand in a service's memory once each: where they are needed, and no longer
/// than that. (Of a key made ready for use the compiler may leave copies on the stack.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_left_in_memory() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let old = fs::read_to_string(database.folder.path().join("key")).unwrap();
    let text = old.trim().split_once(':').unwrap().1;
    let program = Program::serve(&database, &[]).await;
    database.put(1, OWNER).await;
    assert_eq!(send(&program.rest, form_now(&program.rest, "custom-1")).await.0, 200);
    let seen = |text: &str| occurrences(program.pid(), text.as_bytes());
    assert!(seen(CONSUMER.0) > 0, "nothing was read");
    assert_eq!((seen(text), seen(CONSUMER.1), seen(TOKEN.1)), (1, 1, 1));
    let (head, tail) = text.split_at(24);
    assert_eq!((seen(head), seen(tail)), (1, 1));
    write_private(&database.folder.path().join("key"), &line("second"));
    wait_until("no key of the old file is in memory", async || seen(text) == 0).await;
}
