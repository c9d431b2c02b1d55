//! `serve` with a JWKS: its flags, the refreshes of a running service, and what it logs of them.

use std::time::Duration;

use collections_service::{config, domain::Clock, jwks::JwksSource};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::Instant,
};

use super::pair;
use crate::{
    errors::form,
    support::{
        App, Backend, PATH, TestDatabase,
        jwt::{AUDIENCE, Endpoint, ISSUER, Key, claims, claims_with, file, jwks, jwt_settings},
        program::{Program, command, path, run},
        send, wait_until, write_private,
    },
};

/// The running loop, for a URL that answers late and for a file that is swapped.
#[tokio::test]
async fn a_service_refreshes_its_keys() {
    let (old, new) = pair();
    let endpoint = Endpoint::start(&[&old]).await;
    endpoint.change(|reply| reply.status = 503);
    let start = async |source: JwksSource| {
        let jwt = Some(jwt_settings(source));
        App::start_with(TestDatabase::new(Backend::Sqlite).await, |settings| settings.jwt = jwt).await
    };
    let app = start(endpoint.source()).await;
    let send = async |app: &App, key: &Key| {
        let authorization = format!("Bearer {}", key.token(&claims()));
        app.send(form(PATH, &authorization, "id=custom-9")).await.0
    };
    assert_eq!(send(&app, &old).await, 503);
    endpoint.change(|reply| reply.status = 200);
    wait_until("the old key is accepted", async || send(&app, &old).await == 404).await;
    // A drain ends the loop, which would else try again every few seconds.
    endpoint.change(|reply| reply.status = 503);
    let mut failing = start(endpoint.source()).await;
    assert!(failing.running.take().unwrap().drain().await);
    let fetches = endpoint.fetches();

    // As Kubernetes swaps the files of a mount: a link to a folder is put over the link to another.
    let folder = tempfile::tempdir().unwrap();
    let mount = |name: &str, text: &str| {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("jwks.json"), text).unwrap();
        std::os::unix::fs::symlink(name, folder.path().join("next")).unwrap();
        std::fs::rename(folder.path().join("next"), folder.path().join("data")).unwrap();
    };
    mount("first", &jwks(&[&old]));
    let source = JwksSource::new(path(&folder.path().join("data/jwks.json")), None).unwrap();
    let app = start(source).await;
    assert_eq!((send(&app, &old).await, send(&app, &new).await), (404, 401));
    mount("second", &jwks(&[&new]));
    let begun = Instant::now();
    wait_until("the new key is accepted", async || send(&app, &new).await == 404).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(send(&app, &old).await, 401);
    mount("third", "{");
    // The file is read meanwhile; a failure changes nothing that a test in the same process can see.
    tokio::time::sleep(config::jwks::FILE_INTERVAL * 3 / 2).await;
    assert_eq!(send(&app, &new).await, 404);
    mount("fourth", &jwks(&[&old]));
    wait_until("the old key is accepted again", async || send(&app, &old).await == 404).await;
    assert_eq!(endpoint.fetches(), fetches);
}

#[tokio::test]
async fn serve_rejects_incomplete_issuer_flags() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let (key, _) = pair();
    drop(file(database.folder.path(), &[&key]));
    let in_folder = |name: &str| database.folder.path().join(name).to_str().unwrap().to_owned();
    let (good, bad, ca) = (in_folder("jwks.json"), in_folder("bad"), in_folder("ca"));
    std::fs::write(&bad, "{}").unwrap();
    std::fs::write(&ca, "no PEM").unwrap();
    let (issuer, audience) = (["--jwt-issuer", ISSUER], ["--jwt-audience", AUDIENCE]);
    let url = "https://issuer.example/keys";
    for (arguments, named) in [
        (vec!["--jwks", &good], "--jwt-issuer"),
        ([&["--jwks", good.as_str()], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str()], &audience[..]].concat(), "--jwt-issuer"),
        (issuer.to_vec(), "--jwt-issuer"),
        (audience.to_vec(), "--jwt-audience"),
        (vec!["--jwks-ca", &ca], "--jwks-ca"),
        ([&["--jwks", good.as_str(), "--jwt-issuer", ""], &audience[..]].concat(), "--jwt-issuer"),
        ([&["--jwks", good.as_str(), "--jwt-audience", ""], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str(), "--jwt-issuer", " https://a"], &audience[..]].concat(), "--jwt-issuer"),
        ([&["--jwks", good.as_str(), "--jwt-issuer", "https://a\n"], &audience[..]].concat(), "--jwt-issuer"),
        ([&["--jwks", good.as_str(), "--jwt-audience", "a, b"], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str(), "--jwt-audience", "a b"], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", good.as_str(), "--jwt-audience", "a\u{a0}"], &issuer[..]].concat(), "--jwt-audience"),
        ([&["--jwks", "/nowhere"], &issuer[..], &audience].concat(), "--jwks: /nowhere"),
        ([&["--jwks", bad.as_str()], &issuer[..], &audience].concat(), "--jwks"),
        ([&["--jwks", "http://issuer.example/"], &issuer[..], &audience].concat(), "--jwks"),
        ([&["--jwks", good.as_str(), "--jwks-ca", &ca], &issuer[..], &audience].concat(), "--jwks-ca"),
        ([&["--jwks", url, "--jwks-ca", &ca], &issuer[..], &audience].concat(), "--jwks-ca"),
        ([&["--jwks", url, "--jwks-ca", "/nowhere"], &issuer[..], &audience].concat(), "--jwks-ca"),
    ] {
        let key_file = in_folder("key");
        let serve = ["serve", "--database-url", &database.url, "--credentials-key-file", &key_file];
        let (code, _, errors) = run(&[&serve[..], &arguments].concat(), &[]).await;
        assert!(code == 2 && errors.contains(&format!("{named}: ")), "{arguments:?}: {code} {errors}");
    }
}

/// With an issuer gRPC has callers, so `serve` starts without any other way to authenticate.
#[tokio::test]
async fn serve_accepts_an_issuer_as_the_only_authentication() {
    let folder = tempfile::tempdir().unwrap();
    drop(file(folder.path(), &[&pair().0]));
    let url = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
    let keys = folder.path().join("jwks.json");
    let jwt = ["--jwks", path(&keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let free = "127.0.0.1:0";
    let serve =
        ["serve", "--database-url", &url, "--rest-addr", "off", "--grpc-addr", free, "--admin-addr", free];
    let mut child =
        command(&[&serve[..], &jwt].concat()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    while !log.next_line().await.unwrap().expect("it ended").contains("\"serving\"") {}
}

/// A loaded JWKS is logged with the ids of its keys, and each load warns of private keys in it.
#[tokio::test]
async fn the_log_names_the_keys_in_force_and_private_ones() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let (old, new) = pair();
    let mut many: Vec<Key> =
        (0..20).map(|number| Key::new(&format!("key {number}"), Algorithm::EdDSA)).collect();
    many[3].kid = "x".repeat(1000);
    many[3].jwk["kid"] = many[3].kid.clone().into();
    drop(file(database.folder.path(), &many.iter().collect::<Vec<_>>()));
    let keys = database.folder.path().join("jwks.json");
    let more = ["--jwks", path(&keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let program = Program::serve(&database, &more).await;
    let with = |jwk: &Value, name: &str| {
        let mut jwk = jwk.clone();
        jwk[name] = json!("AAAA");
        jwk
    };
    let secret = json!({"kty": "oct", "k": "AAAA", "kid": "shared"});
    let private = json!({"keys": [with(&old.jwk, "d"), new.jwk, secret]}).to_string();
    write_private(&keys, &private);
    // The second load's lines have been written once a request with a new key is no longer refused for the key.
    let mut now = claims_with("nbf", None);
    now["exp"] = json!(Clock::System.now().timestamp() + 300);
    let token = new.token(&now);
    let token = || format!("Bearer {token}");
    let client = program.rest.clone();
    wait_until("the new key is accepted", async || {
        let form = form(PATH, &token(), "id=custom-9");
        send(&client, form).await.0 != 401
    })
    .await;
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(10)).await;
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kids = |begin: &str| -> Vec<String> {
        let named = events.iter().filter(|event| event["message"].as_str().unwrap().starts_with(begin));
        named.map(|event| event["kids"].as_str().unwrap().to_owned()).collect()
    };
    let [first, second] = &kids("jwks loaded")[..] else { panic!("{log:#?}") };
    assert!(first.starts_with("\"key 0\", \"key 1\", \"key 2\", \"xxx"), "{first}");
    assert!(first.ends_with(", \"key 15\" and 4 more") && first.len() < 500, "{first}");
    assert_eq!(second, "\"old\", \"new\"");
    assert_eq!(kids("jwks contains private keys"), ["\"old\", \"shared\""]);
    assert!(!log.iter().any(|line| line.contains("AAAA")), "{log:#?}");
}

/// One error as long as nothing changes, and one line when it is over.
#[tokio::test]
async fn the_log_has_one_line_for_each_change_of_the_jwks() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let (key, _) = pair();
    drop(file(database.folder.path(), &[&key]));
    let keys = database.folder.path().join("jwks.json");
    let more = ["--jwks", path(&keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let program = Program::serve(&database, &more).await;
    write_private(&keys, "{");
    program.wait_for_log(1, "jwks unavailable").await;
    // The file is read again, several times.
    tokio::time::sleep(config::jwks::FILE_INTERVAL * 7 / 2).await;
    write_private(&keys, &jwks(&[&key]));
    program.wait_for_log(1, "jwks available again").await;
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(10)).await;
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("\"jwks loaded\""), 1, "{log:#?}");
    assert_eq!(count("jwks unavailable; keeping the last loaded keys"), 1, "{log:#?}");
    assert_eq!(count("jwks available again"), 1, "{log:#?}");
    assert_eq!(count("private keys"), 0, "{log:#?}");
    let failed = log.iter().find(|line| line.contains("\"ERROR\"")).unwrap();
    let failed: Value = serde_json::from_str(failed).unwrap();
    let last_good = failed["last_good"].as_str().unwrap();
    assert!(last_good.len() == "2026-01-01T00:00:00Z".len() && last_good.ends_with('Z'), "{last_good}");
}

#[tokio::test]
async fn a_first_load_that_fails_is_logged_as_such() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let more = ["--jwks", "http://127.0.0.1:1/keys", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let program = Program::serve(&database, &more).await;
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(10)).await;
    let expected = "jwks unavailable; no keys were loaded; bearer tokens are answered with UNAVAILABLE";
    let lines: Vec<_> = log.iter().filter(|line| line.contains("jwks unavailable")).collect();
    assert!(matches!(lines[..], [line] if line.contains(expected)), "{log:#?}");
}
