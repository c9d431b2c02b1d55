//! What the verification of a request costs, by what is wrong with it: whether a stranger can tell by the time whether a
//! token exists, or how much of a signature is right. Ratios within one run, since a machine's times come and go.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a benchmark")]

use std::{
    hint::black_box,
    os::unix::fs::PermissionsExt,
    sync::{Arc, atomic::AtomicI64},
};

use collections_service::{
    domain::{Clock, CredentialDirectory, DestroyError, Entropy, Secret, UserId},
    identity::oauth1::{Origin, Parameters, Request, Verifier, sign},
    store::{CredentialCache, Credentials, KeyRing, Store},
};
use tokio::{runtime::Runtime, time::Instant};

const NOW: i64 = 1_795_461_500;
const PATH: &str = "/1.1/collections/destroy.json";
const ORIGINS: [&str; 2] = ["https://api.twitter.com", "https://api.x.com"];
/// Each case is measured once a round, and compared with the first one of that round.
const ROUNDS: usize = 401;
const VERIFICATIONS: u32 = 100;
const LOOK_UPS: usize = 2001;

/// A request that is verified again and again.
struct Case {
    name: &'static str,
    /// The header after its scheme.
    header: String,
    outcome: Option<DestroyError>,
}

/// A consumer key and a token, with their secrets.
type Keys = ((String, String), (String, String));

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let entropy = Entropy::default();
    let (credentials, keys) = runtime.block_on(stored(folder.path(), &entropy));
    let origins: Vec<Origin> = ORIGINS.map(|origin| origin.parse().unwrap()).to_vec();
    let clock = Clock::Set(Arc::new(AtomicI64::new(NOW)));
    let directory = Arc::new(CredentialCache::new(credentials.clone()));
    let verifier = Verifier::new(directory, origins.clone(), clock);
    verifications(&runtime, &verifier, &cases(&keys, &origins[1]));
    look_ups(&runtime, &credentials, &keys);
}

/// A database with an application, its token, and another application.
async fn stored(folder: &std::path::Path, entropy: &Entropy) -> (Credentials, Keys) {
    let url = format!("sqlite:{}?mode=rwc", folder.join("db").display());
    let store = Store::open(&url.into(), Clock::System, Entropy::default()).await.unwrap();
    store.migrate().await.unwrap();
    let key_file = folder.join("key");
    std::fs::write(&key_file, KeyRing::generate_line("bench", entropy).as_bytes()).unwrap();
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let credentials = Credentials::new(store, Arc::new(KeyRing::read(&key_file, entropy.clone()).unwrap()));
    let app = credentials.create_app("bench").await.unwrap();
    let user = UserId::new(1).unwrap();
    let token = credentials.issue_token(&app.consumer_key, user, true).await.unwrap();
    let text = |secret: &Secret| secret.expose().to_owned();
    let (app_secret, token_secret) = (text(&app.secret), text(&token.secret));
    (credentials, ((app.consumer_key, app_secret), (token.token, token_secret)))
}

fn cases(keys: &Keys, origin: &Origin) -> Vec<Case> {
    let signed = |consumer_key: &str, token: &str| {
        let secrets = (&Secret::from(keys.0.1.clone()), &Secret::from(keys.1.1.clone()));
        let form = Parameters::decode(b"id=custom-390882285743898624");
        let header =
            sign(("POST", origin, PATH), (consumer_key, token), secrets, (NOW, "n0nce"), &form).unwrap();
        header.strip_prefix("OAuth ").unwrap().to_owned()
    };
    let ((key, _), (token, _)) = keys;
    // Of the same length: a longer one would be longer to read.
    let other = |known: &str| {
        let mut letters: Vec<char> = known.chars().collect();
        let last = letters.last_mut().unwrap();
        *last = if *last == '0' { '1' } else { '0' };
        letters.into_iter().collect::<String>()
    };
    let right = signed(key, token);
    let wrong = |index: usize| changed_signature(&right, index);
    let case = |name, header, outcome| Case { name, header, outcome };
    let invalid = Some(DestroyError::CredentialsInvalid);
    vec![
        case("known token, signature wrong in its middle byte", wrong(10), invalid),
        case("the same again: what the measurement is worth", wrong(10), invalid),
        case("known token, signature wrong in its first byte", wrong(0), invalid),
        case("known token, signature wrong in its last byte", wrong(19), invalid),
        case("known token, signature right", right.clone(), None),
        case("unknown token", signed(key, &other(token)), Some(DestroyError::TokenInvalid)),
        case("unknown application", signed(&other(key), token), Some(DestroyError::ApplicationInvalid)),
        case("both unknown", signed(&other(key), &other(token)), Some(DestroyError::TokenInvalid)),
    ]
}

/// The header with one byte of its signature changed.
fn changed_signature(header: &str, index: usize) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let (begin, signature) = header.rsplit_once("oauth_signature=\"").unwrap();
    let signature =
        percent_encoding::percent_decode_str(signature.trim_end_matches('"')).decode_utf8().unwrap();
    let mut bytes = BASE64_STANDARD.decode(signature.as_bytes()).unwrap();
    bytes[index] ^= 1;
    let escape = |text: &str| text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("{begin}oauth_signature=\"{}\"", escape(&BASE64_STANDARD.encode(bytes)))
}

/// Round by round through all cases, each round beginning with another one.
fn verifications(runtime: &Runtime, verifier: &Verifier, cases: &[Case]) {
    let (query, form) = (Parameters::default(), Parameters::decode(b"id=custom-390882285743898624"));
    let verify = |case: &Case| {
        let header = Some(black_box(case.header.as_str()));
        let request =
            Request { method: "POST", path: PATH, header, query: &query, form: &form, origin: None };
        runtime.block_on(verifier.verify(request)).map_err(|failure| failure.error)
    };
    for case in cases {
        assert_eq!(verify(case).err(), case.outcome, "{}", case.name);
    }
    let mut times = vec![Vec::new(); cases.len()];
    for round in 0..ROUNDS {
        for turn in 0..cases.len() {
            let index = (round + turn) % cases.len();
            let start = Instant::now();
            for _ in 0..VERIFICATIONS {
                let _outcome = black_box(verify(&cases[index]));
            }
            times[index].push(start.elapsed().as_secs_f64() * 1e6 / f64::from(VERIFICATIONS));
        }
    }
    println!(
        "\nverification, with the credentials or their absence in the cache, {ROUNDS} rounds of {VERIFICATIONS}\n"
    );
    println!("| request | median µs | ratio | quartiles |");
    println!("|---|---|---|---|");
    for (case, taken) in cases.iter().zip(&times) {
        let ratios = sorted(taken.iter().zip(&times[0]).map(|(taken, base)| taken / base));
        let median = sorted(taken.iter().copied())[ROUNDS / 2];
        let [low, middle, high] = [1, 2, 3].map(|quarter| ratios[ROUNDS * quarter / 4]);
        println!("| {} | {median:.2} | {middle:.3} | {low:.3} to {high:.3} |", case.name);
    }
}

/// Past the cache, to an embedded database: a known key's secret is opened besides.
fn look_ups(runtime: &Runtime, credentials: &Credentials, keys: &Keys) {
    let ((key, _), (token, _)) = keys;
    let kinds =
        [("known token", true, true), ("unknown token", true, false), ("unknown application", false, true)];
    let mut times = [const { Vec::new() }; 3];
    for round in 0..LOOK_UPS {
        for turn in 0..kinds.len() {
            let index = (round + turn) % kinds.len();
            let (_, known_key, known_token) = kinds[index];
            let cache = CredentialCache::new(credentials.clone());
            let key = if known_key { key.as_str() } else { "unknown" };
            let token = if known_token { token.as_str() } else { "unknown" };
            let start = Instant::now();
            let found = runtime.block_on(cache.find(key, Some(token))).unwrap();
            times[index].push(start.elapsed().as_secs_f64() * 1e6);
            assert_eq!((found.application.is_some(), found.token.is_some()), (known_key, known_token));
        }
    }
    let medians = times.map(|taken: Vec<f64>| sorted(taken.into_iter())[LOOK_UPS / 2]);
    println!("\nlook-up past the cache, in SQLite, {LOOK_UPS} rounds\n");
    println!("| keys | median µs | ratio |");
    println!("|---|---|---|");
    for ((name, ..), median) in kinds.iter().zip(medians) {
        println!("| {name} | {median:.2} | {:.3} |", median / medians[0]);
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
