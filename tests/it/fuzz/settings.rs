//! Ids, the key file, origins.

use std::{collections::HashSet, os::unix::fs::FileExt};

use collections_service::{
    domain::{CollectionId, Entropy, RequestId, UserId},
    identity::oauth1::Origin,
    store::{KeyRing, KeyRingError},
};
use proptest::{collection::vec, prelude::*, sample::select};
use tempfile::NamedTempFile;

use super::{Change, Checked, fuzz, pieced, raw_text};

// Ids.

const IDS: &[&str] = &[
    "custom-",
    "custom-",
    "Custom-",
    "-",
    "+",
    "0",
    "1",
    "9",
    "9223372036854775807",
    "9223372036854775808",
    " ",
    "\n",
    "\0",
    "\u{661}",
    "urn:uuid:",
    "{",
    "}",
    "7c9e6679",
    "-7425",
    "-40de",
    "-944b",
    "-e07fc1f90ae7",
    "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "7C9E6679742540DE944BE07FC1F90AE7",
];

fn ids() -> impl Strategy<Value = String> {
    let near =
        prop_oneof![any::<i64>(), -3..3_i64, i64::MAX - 3..=i64::MAX].prop_map(|number| number.to_string());
    let uuid = any::<u128>().prop_map(|bits| uuid::Uuid::from_u128(bits).to_string());
    let valid = prop_oneof![near, uuid, Just("9223372036854775807".to_owned())];
    let changed =
        (select(["custom-", "", "urn:uuid:"].as_slice()), valid, proptest::option::of(Change::any()))
            .prop_map(|(begin, valid, change)| {
                let mut bytes = format!("{begin}{valid}").into_bytes();
                if let Some(change) = change {
                    change.apply(&mut bytes);
                }
                String::from_utf8_lossy(&bytes).into_owned()
            });
    prop_oneof![1 => raw_text(), 2 => pieced(IDS, 6), 4 => changed]
}

fn check_id(text: String) -> Checked {
    // What an `i64` writes, and nothing else.
    let number =
        |text: &str| text.parse::<i64>().ok().filter(|number| *number > 0 && number.to_string() == text);
    let collection: Option<CollectionId> = text.parse().ok();
    prop_assert_eq!(collection.map(CollectionId::get), text.strip_prefix("custom-").and_then(number));
    prop_assert!(collection.is_none_or(|id| id.to_string() == text));
    let user: Option<UserId> = text.parse().ok();
    prop_assert_eq!(user.map(UserId::get), number(&text));
    prop_assert!(user.is_none_or(|id| id.to_string() == text));
    if let Ok(id) = text.parse::<RequestId>() {
        prop_assert_eq!(id.to_string().parse(), Ok(id));
        let text = text.to_lowercase();
        let bare = text.trim_start_matches("urn:uuid:").trim_start_matches('{').trim_end_matches('}');
        prop_assert_eq!(bare.replace('-', ""), id.to_string().replace('-', ""));
    }
    Ok(())
}

#[test]
fn id() {
    fuzz("id", ids, check_id);
}

// The key file.

const KEY_FILE: &[&str] = &[
    "first",
    "second",
    "-_.",
    ":",
    ":",
    "\n",
    "\n",
    "\r\n",
    "#",
    " ",
    "\t",
    "=",
    "AAAA",
    "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE",
    "\nfirst:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n",
    "\nthird: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n",
];

fn key_files() -> impl Strategy<Value = Vec<u8>> {
    let valid = vec((select(["a", "b.1", "c-_", "d"].as_slice()), any::<[u8; 32]>()), 1..4);
    let changed = (valid, proptest::option::of(Change::any())).prop_map(|(keys, change)| {
        let line = |(id, key): (&str, [u8; 32])| {
            KeyRing::generate_line(id, &Entropy::new(move |bytes| bytes.copy_from_slice(&key)))
        };
        let mut bytes = keys.into_iter().flat_map(|key| line(key).as_bytes().to_vec()).collect();
        if let Some(change) = change {
            change.apply(&mut bytes);
        }
        bytes
    });
    prop_oneof![1 => vec(any::<u8>(), 0..96), 2 => pieced(KEY_FILE, 16).prop_map(String::into_bytes), 2 => changed]
}

thread_local! {
    /// Written over and over: to truncate it would have the file system write it to the disk each time.
    static KEY_FILE_ON_DISK: NamedTempFile = NamedTempFile::new().unwrap();
}

fn check_key_file(bytes: Vec<u8>) -> Checked {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = String::from_utf8(bytes.clone()).ok();
    let lines: Vec<&str> = text.iter().flat_map(|text| text.lines()).map(str::trim).collect();
    let keys: Vec<&str> =
        lines.iter().copied().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let is_key = |line: &&str| {
        let Some((id, key)) = line.split_once(':') else { return false };
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        (1..=64).contains(&id.len())
            && id.chars().all(plain)
            && BASE64_STANDARD.decode(key.trim()).is_ok_and(|key| key.len() == 32)
    };
    let ids: HashSet<_> = keys.iter().map(|line| line.split(':').next()).collect();
    let good = text.is_some() && !keys.is_empty() && keys.iter().all(is_key) && ids.len() == keys.len();
    let read = KEY_FILE_ON_DISK.with(|file| {
        file.as_file().write_all_at(&bytes, 0).unwrap();
        file.as_file().set_len(bytes.len() as u64).unwrap();
        KeyRing::read(file.path(), Entropy::default())
    });
    prop_assert_eq!(read.is_ok(), good);
    // An error names the line, and never its content.
    match read {
        Err(KeyRingError::Malformed(line) | KeyRingError::Repeated(line)) => {
            prop_assert!((1..=lines.len()).contains(&line), "line {line} of {}", lines.len());
        }
        Err(KeyRingError::Empty) => prop_assert!(keys.is_empty()),
        Err(KeyRingError::Unreadable(_)) => prop_assert!(text.is_none()),
        Err(error @ (KeyRingError::Exposed | KeyRingError::TooLong)) => prop_assert!(false, "{error}"),
        Ok(_) => {}
    }
    Ok(())
}

#[test]
fn key_file() {
    fuzz("key_file", key_files, check_key_file);
}

// Public origins, and the origin that a request names.

const ORIGIN: &[&str] = &[
    "http://",
    "https://",
    "HTTPS://",
    "http:",
    "ftp://",
    "//",
    "a",
    "B.example",
    "127.0.0.1",
    "[::1]",
    "[",
    "]",
    ":80",
    ":443",
    ":8080",
    ":",
    ":0",
    ":65536",
    ":00443",
    "@",
    "/",
    "?",
    "#",
    ".",
    "%41",
    "xn--",
    "\u{F8}",
    " ",
];

fn origins() -> impl Strategy<Value = String> {
    let valid =
        ["https://api.twitter.com", "http://127.0.0.1:8080", "https://[::1]:443", "HTTP://A.example:80"];
    let changed = (select(valid.to_vec()), Change::any()).prop_map(|(origin, change)| {
        let mut bytes = origin.as_bytes().to_vec();
        change.apply(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    prop_oneof![1 => raw_text(), 3 => pieced(ORIGIN, 6), 2 => changed]
}

fn check_origin(text: String) -> Checked {
    if let Ok(origin) = text.parse::<Origin>() {
        check_accepted_origin(&origin, &text)?;
    }
    if let Some(origin) = Origin::of_request("https", &text) {
        check_accepted_origin(&origin, &format!("https://{text}"))?;
    }
    Ok(())
}

fn check_accepted_origin(origin: &Origin, text: &str) -> Checked {
    let canonical = origin.as_str();
    prop_assert_eq!(canonical.parse::<Origin>(), Ok(origin.clone()), "{}", canonical);
    let (scheme, host) = canonical.split_once("://").unwrap();
    let default = if scheme == "http" { 80 } else { 443 };
    prop_assert!(["http", "https"].contains(&scheme) && !host.is_empty(), "{canonical}");
    let is_bare =
        !host.contains(['/', '?', '#', '@', ' ', '"', '\\']) && !host.ends_with(&format!(":{default}"));
    prop_assert!(is_bare, "{canonical}");
    // It stands in a header of every 401.
    prop_assert!(http::HeaderValue::from_str(canonical).is_ok(), "{canonical}");
    // Nothing is lost but letter case, the zeros before a port, and the default port.
    let text = text.to_ascii_lowercase();
    let split = canonical.rsplit_once(':').and_then(|(bare, port)| Some((bare, port.parse::<u16>().ok()?)));
    let (bare, port) = split.unwrap_or((canonical, default));
    let is_port = |rest: &str| {
        let digits = rest.strip_prefix(':').unwrap_or_default();
        digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse() == Ok(port)
    };
    prop_assert!(
        text == canonical || text.strip_prefix(bare).is_some_and(is_port),
        "{canonical} from {text}"
    );
    Ok(())
}

#[test]
fn origin() {
    fuzz("origin", origins, check_origin);
}
