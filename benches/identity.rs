//! What the verification of a request costs, by what is wrong with it: whether a stranger can find out from the time whether
//! a token exists, or how much of a signature is right. Ratios within one run, since a machine's times vary. And what the
//! verification of a bearer token costs, and how much of that on the thread that serves.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a benchmark")]

use std::{
    hint::black_box,
    os::unix::fs::PermissionsExt,
    sync::{Arc, atomic::AtomicI64},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use collections_service::{
    domain::{Clock, CredentialDirectory, DestroyError, Entropy, Secret, UserId},
    identity::{
        jwt,
        oauth1::{Origin, Parameters, Request, Verifier, sign},
    },
    jwks::{Jwks, JwksSource},
    store::{CredentialCache, Credentials, KeyRing, Store},
};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use rcgen::KeyPair;
use tokio::{runtime::Runtime, time::Instant};

const NOW: i64 = 1_795_461_500;
const PATH: &str = "/1.1/collections/destroy.json";
const ORIGINS: [&str; 2] = ["https://api.twitter.com", "https://api.x.com"];
/// Each case is measured once a round, and compared with the first one of that round.
const ROUNDS: usize = 401;
const VERIFICATIONS: u32 = 100;
const LOOK_UPS: usize = 2001;
/// Tokens that are verified one after the other, and tokens that are verified at once.
const TOKENS: u32 = 5000;
const TOKENS_AT_ONCE: usize = 64;

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
    bearer_tokens(&runtime, folder.path());
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

/// Valid and forged tokens, one after the other and many at once.
fn bearer_tokens(runtime: &Runtime, folder: &std::path::Path) {
    println!("\nbearer tokens, {TOKENS} in a row, and as many with {TOKENS_AT_ONCE} at once\n");
    println!(
        "| token | µs each in a row | of that on the serving thread | µs each at once | of that on the serving thread |"
    );
    println!("|---|---|---|---|---|");
    for (algorithm, kind) in [
        (Algorithm::ES256, &rcgen::PKCS_ECDSA_P256_SHA256),
        (Algorithm::ES384, &rcgen::PKCS_ECDSA_P384_SHA384),
        (Algorithm::RS256, &rcgen::PKCS_RSA_SHA256),
    ] {
        let der = KeyPair::generate_for(kind).unwrap().serialize_der();
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_der(&der[26..]),
            _ => EncodingKey::from_ec_der(&der),
        };
        let jwk = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
        let file = folder.join("jwks.json");
        std::fs::write(&file, serde_json::json!({"keys": [jwk]}).to_string()).unwrap();
        let source = JwksSource::new(file.to_str().unwrap(), None).unwrap();
        let clock = Clock::Set(Arc::new(AtomicI64::new(NOW)));
        let keys = runtime.block_on(Jwks::open(source, clock.clone())).unwrap();
        let verifier = jwt::Verifier::new(Arc::new(keys), "issuer", &["audience".to_owned()], clock);
        let claims = serde_json::json!({"iss": "issuer", "aud": "audience", "sub": "1", "exp": NOW + 60});
        let encode = |text: String| BASE64_URL_SAFE_NO_PAD.encode(text);
        let header = serde_json::json!({"alg": format!("{algorithm:?}")});
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = |text: &str| crypto::sign(text.as_bytes(), &key, algorithm).unwrap();
        let valid: Arc<str> = format!("{signed}.{}", signature(&signed)).into();
        let forged: Arc<str> = format!("{signed}.{}", signature("something else")).into();
        for (name, token, is_valid) in [("valid", valid, true), ("forged", forged, false)] {
            let (each, serving) = timed(|| {
                for _ in 0..TOKENS {
                    let verified = runtime.block_on(verifier.verify(black_box(&token)));
                    assert_eq!(verified.is_ok(), is_valid);
                }
            });
            let (each_at_once, serving_at_once) = timed(|| {
                runtime.block_on(async {
                    let mut tasks = tokio::task::JoinSet::new();
                    for _ in 0..TOKENS_AT_ONCE {
                        let (verifier, token) = (verifier.clone(), token.clone());
                        tasks.spawn(async move {
                            for _ in 0..TOKENS as usize / TOKENS_AT_ONCE {
                                assert_eq!(verifier.verify(&token).await.is_ok(), is_valid);
                            }
                        });
                    }
                    tasks.join_all().await;
                });
            });
            println!(
                "| {algorithm:?}, {name} | {each:.1} | {serving:.1} | {each_at_once:.1} | {serving_at_once:.1} |"
            );
        }
    }
}

/// Microseconds that each of [`TOKENS`] verifications took, and those in which this thread ran.
fn timed(work: impl FnOnce()) -> (f64, f64) {
    let ran = || -> f64 {
        let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        statistics.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e3
    };
    let (start, ran_before) = (Instant::now(), ran());
    work();
    let each = |micros: f64| micros / f64::from(TOKENS);
    (each(start.elapsed().as_secs_f64() * 1e6), each(ran() - ran_before))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
