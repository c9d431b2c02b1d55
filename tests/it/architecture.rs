//! The rooms: who may name what.

mod circles;

use std::{collections::BTreeSet, fs, path::Path};

/// A room, and the others that it may import. `main` and `lib` only put them together.
const ROOMS: [(&str, &[&str]); 16] = [
    (
        "cli",
        &[
            "config",
            "domain",
            "identity",
            "jobs",
            "jwks",
            "net",
            "rate_limit",
            "rest",
            "server",
            "store",
            "telemetry",
            "upstream",
        ],
    ),
    ("collections", &["config", "domain", "identity", "store", "telemetry"]),
    ("config", &[]),
    ("domain", &[]),
    ("grpc", &["collections", "config", "domain", "identity", "net", "proto", "rate_limit", "telemetry"]),
    ("identity", &["config", "domain"]),
    ("jobs", &["config", "store", "telemetry"]),
    ("jwks", &["config", "domain", "identity"]),
    ("net", &["config", "domain", "identity", "telemetry"]),
    ("proto", &["config"]),
    ("rate_limit", &["config", "domain", "telemetry"]),
    ("rest", &["collections", "config", "domain", "identity", "net", "rate_limit", "telemetry"]),
    (
        "server",
        &[
            "collections",
            "config",
            "domain",
            "grpc",
            "identity",
            "jobs",
            "jwks",
            "net",
            "rate_limit",
            "rest",
            "store",
            "telemetry",
            "upstream",
        ],
    ),
    ("store", &["config", "domain", "telemetry"]),
    ("telemetry", &["config", "domain"]),
    ("upstream", &["collections", "config", "domain", "net", "proto", "telemetry"]),
];

/// A word, and the rooms that may hold it.
const WORDS: [(&str, &[&str]); 10] = [
    ("sea_orm::", &["store"]),
    ("sqlx::", &["store"]),
    ("axum", &["rest", "server"]),
    // telemetry: what opentelemetry-otlp re-exports.
    ("tonic", &["grpc", "proto", "server", "telemetry", "upstream", "cli"]),
    ("tonic::transport", &[]),
    ("tonic::server", &["grpc"]),
    ("tonic::service", &[]),
    ("_server::", &["grpc"]),
    ("AuthenticatedUser {", &["identity"]),
    (".destroy(Destroy {", &["collections"]),
];

/// Every file of `src/`: its room, its name, its lines of code.
fn sources(folder: &Path, found: &mut Vec<(String, String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
            let name = name.display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.lines().count() <= 400, "{name} is over 400 lines");
            let code: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            let room = name.split(['/', '.']).next().unwrap().to_owned();
            found.push((room, name, code.join("\n")));
        }
    }
}

/// The rooms that a file imports, as `crate::room` or within `crate::{…}`.
fn imports(code: &str) -> BTreeSet<&str> {
    fn word(path: &str) -> &str {
        path.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap()
    }
    let mut rooms = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            rooms.insert(word(path));
            continue;
        };
        let mut depth = 1;
        for piece in group.split_inclusive(['{', '}', ',']) {
            if depth == 1 {
                rooms.insert(word(piece.trim_start()));
            }
            depth += i32::from(piece.ends_with('{')) - i32::from(piece.ends_with('}'));
            if depth == 0 {
                break;
            }
        }
    }
    rooms.remove("");
    rooms
}

#[test]
fn imports_are_read() {
    let code = "use crate::{\n    config,\n    domain::{Clock, Secret},\n    store::Store,\n};\nuse crate::rest; crate::grpc::x()";
    let read: Vec<_> = imports(code).into_iter().collect();
    assert_eq!(read, ["config", "domain", "grpc", "rest", "store"]);
}

fn all_sources() -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    found
}

#[test]
fn each_room_imports_only_the_rooms_that_it_may() {
    let found = all_sources();
    let rooms: BTreeSet<_> = found.iter().map(|(room, ..)| room.as_str()).collect();
    let known = ROOMS.iter().map(|(room, _)| *room).chain(["lib", "main"]).collect();
    assert_eq!(rooms, known, "a room without its rule");
    for (room, file, code) in &found {
        let allowed = ROOMS.iter().find(|(name, _)| name == room).map(|(_, allowed)| *allowed);
        for import in imports(code) {
            let own = import == room;
            assert!(
                own || allowed.is_none_or(|allowed| allowed.contains(&import)),
                "{file} imports {import}"
            );
        }
        for (word, rooms) in WORDS {
            assert!(!code.contains(word) || rooms.contains(&room.as_str()), "{file} names {word}");
        }
    }
}
