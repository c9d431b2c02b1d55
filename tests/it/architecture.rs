//! The rooms: who may name what.

use std::{fs, path::Path};

/// A word, and the rooms that may hold it.
const RULES: [(&str, &[&str]); 6] = [
    ("sea_orm::", &["store"]),
    ("sqlx::", &["store"]),
    ("axum::", &["rest"]),
    ("crate::store", &["collections", "grpc", "server", "cli", "store"]),
    ("crate::collections", &["grpc"]),
    ("AuthenticatedUser {", &["identity"]),
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
            found.push((name.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_room_keeps_to_itself() {
    let mut found = Vec::new();
    sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    assert!(found.len() > 20, "the sources were not found");
    for (file, text) in found {
        let room = file.split(['/', '.']).next().unwrap().to_owned();
        assert!(text.lines().count() <= 400, "{file} is over 400 lines");
        for (word, rooms) in RULES {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let named = code.clone().any(|line| line.contains(word));
            assert!(!named || rooms.contains(&room.as_str()), "{file} names {word}");
        }
    }
}
