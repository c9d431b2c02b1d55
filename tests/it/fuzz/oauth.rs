//! OAuth: the `Authorization` header, signed requests, queries and forms.

use std::sync::{Arc, atomic::AtomicI64};

use collections_service::{
    config::identity::PARAMETER_LIMIT,
    domain::{Clock, DestroyError, UserId},
    identity::oauth1::{Origin, Parameters, Request, Scheme, Verifier},
};
use proptest::{collection::vec, prelude::*, sample::select};
use tokio::runtime::Runtime;

use super::{
    super::{
        signatures::Documentation,
        support::{
            CONSUMER, NOW, PATH, TOKEN,
            oauth::{Signer, escape, in_form, in_header},
        },
    },
    Change, Checked, error_of, fuzz, pieced, raw_text,
};

// The Authorization header: no request is authenticated without a signature.

const HEADER: &[&str] = &[
    "OAuth ",
    "oauth",
    "Bearer ",
    "Basic ",
    "oauth_consumer_key",
    "oauth_token",
    "oauth_nonce",
    "oauth_timestamp",
    "oauth_signature",
    "oauth_signature_method",
    "oauth_version",
    "oauth_x",
    "oauth%5Fnonce",
    "realm",
    "=",
    "=",
    "=",
    "\"",
    "\"",
    ",",
    ", ",
    "\t",
    " ",
    "1795461500",
    "HMAC-SHA1",
    "HMAC-SHA256",
    "PLAINTEXT",
    "1.0",
    "%",
    "%2B",
    "%00",
    "+",
    "&",
    CONSUMER.0,
    TOKEN.0,
    "AAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAA%3D",
];

/// A header that is well-formed and complete as often as not: only its signature is wrong.
fn header_fields() -> impl Strategy<Value = String> {
    let value = |usual: &'static str| prop_oneof![9 => Just(usual.to_owned()), 1 => pieced(HEADER, 4)];
    let quote = || select(["\"", "\"", "\"", ""].as_slice());
    let fields = (
        value(CONSUMER.0),
        value(TOKEN.0),
        value("n0nce"),
        value("1795461500"),
        value("AAAAAAAAAAAAAAAAAAAAAAAAAAA%3D"),
        value("HMAC-SHA1"),
        value("1.0"),
    );
    let between = select([", ", ",", "\t,", ",,", " "].as_slice());
    (fields, quote(), between, select(["OAuth ", "oauth\t", "OAUTH realm=\"x\", "].as_slice())).prop_map(
        |((key, token, nonce, timestamp, signature, method, version), quote, between, begin)| {
            let fields = [
                ("consumer_key", key),
                ("token", token),
                ("nonce", nonce),
                ("timestamp", timestamp),
                ("signature", signature),
                ("signature_method", method),
                ("version", version),
            ];
            let fields = fields.map(|(name, value)| format!("oauth_{name}={quote}{value}{quote}"));
            format!("{begin}{}", fields.join(between))
        },
    )
}

fn headers() -> impl Strategy<Value = String> {
    prop_oneof![1 => raw_text(), 2 => pieced(HEADER, 40), 2 => header_fields()]
}

fn check_header(text: String) -> Checked {
    let inner = match Scheme::of(&text) {
        Scheme::OAuth(inner) | Scheme::Bearer(inner) => inner,
        Scheme::Unknown => return Ok(()),
    };
    prop_assert!(text.contains(inner));
    let verified = verify(&Sent { header: Some(inner.to_owned()), ..Sent::default() });
    let error = verified.err();
    let known = [
        DestroyError::CredentialsMissing,
        DestroyError::CredentialsInvalid,
        DestroyError::TokenInvalid,
        DestroyError::TimestampOutOfBounds,
        DestroyError::ApplicationInvalid,
    ];
    prop_assert!(error.is_some_and(|error| known.contains(&error)), "{error:?}");
    Ok(())
}

#[test]
fn header() {
    fuzz("header", headers, check_header);
}

// A signed request: no change to what is signed is accepted.

/// Names and values.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A request on the wire.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sent {
    method: String,
    path: String,
    origin: String,
    /// What stands behind the scheme.
    header: Option<String>,
    query: Vec<u8>,
    form: Vec<u8>,
}

thread_local! {
    static VERIFIER: (Runtime, Verifier) = {
        let clock = Clock::Set(Arc::new(AtomicI64::new(NOW)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        (runtime, Verifier::new(Arc::new(Documentation), Vec::new(), clock))
    };
}

fn verify(sent: &Sent) -> Result<UserId, DestroyError> {
    let (query, form) = (Parameters::decode(&sent.query), Parameters::decode(&sent.form));
    let origin: Option<Origin> = sent.origin.parse().ok();
    let request = Request {
        method: &sent.method,
        path: &sent.path,
        header: sent.header.as_deref(),
        query: &query,
        form: &form,
        origin: origin.as_ref(),
    };
    let verified = VERIFIER.with(|(runtime, verifier)| runtime.block_on(verifier.verify(request)));
    verified.map(|user| user.user()).map_err(error_of)
}

/// The parameters of the request, read in the simplest way that is right for this signer.
fn meaning(sent: &Sent) -> ([String; 3], Pairs) {
    let mut parameters: Vec<_> =
        [&sent.query, &sent.form].into_iter().flat_map(|text| form_pairs(text)).collect();
    for (name, value) in &mut parameters {
        if name == b"oauth_signature" {
            *value = canonical_signature(value);
        }
    }
    for field in sent.header.iter().flat_map(|header| header.split(',')) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        let decode = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
        let name = decode(name.trim());
        if name.starts_with(b"oauth_") {
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let mut value = decode(quoted.unwrap_or(value).trim());
            if name == b"oauth_signature" {
                value = canonical_signature(&value);
            }
            parameters.push((name, value));
        }
    }
    parameters.sort();
    let origin = sent.origin.to_ascii_lowercase();
    ([sent.method.clone(), sent.path.clone(), origin.trim_end_matches(":443").to_owned()], parameters)
}

/// A signature without white space and in the standard alphabet of base64.
fn canonical_signature(value: &[u8]) -> Vec<u8> {
    let letters = value.iter().filter(|letter| !letter.is_ascii_whitespace());
    let standard = |letter: &u8| match letter {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    };
    letters.map(standard).collect()
}

/// A form, decoded byte by byte.
fn form_pairs(text: &[u8]) -> Pairs {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let decode = |text: &[u8]| {
        let (mut decoded, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let escape = (text[at], digit(text.get(at + 1)), digit(text.get(at + 2)));
            let (byte, size) = match escape {
                (b'%', Some(high), Some(low)) => (u8::try_from(high * 16 + low).unwrap(), 3),
                (b'+', ..) => (b' ', 1),
                (byte, ..) => (byte, 1),
            };
            decoded.push(byte);
            at += size;
        }
        decoded
    };
    text.split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let middle = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            (decode(&pair[..middle]), decode(pair.get(middle + 1..).unwrap_or_default()))
        })
        .collect()
}

/// Names and values, where OAuth stands, which part is changed, and how.
type SignedInput = (Pairs, Pairs, u8, bool, usize, Change);

fn signed_requests() -> impl Strategy<Value = SignedInput> {
    let text = || {
        prop_oneof![
            vec(any::<u8>(), 0..6),
            select(["a", "id", "", "+", "%41"].as_slice()).prop_map(Into::into)
        ]
    };
    let parameters = || vec((text(), text()), 0..4);
    (parameters(), parameters(), 0_u8..3, any::<bool>(), 0_usize..8, Change::any())
}

fn check_signed((query, form, oauth_place, sha256, part, change): SignedInput) -> Checked {
    let form_text = |pairs: &[(Vec<u8>, Vec<u8>)]| {
        let encode = |(name, value): &(Vec<u8>, Vec<u8>)| (escape(name), escape(value));
        in_form(&pairs.iter().map(encode).collect::<Vec<_>>())
    };
    let signer = Signer { method: if sha256 { "HMAC-SHA256" } else { "HMAC-SHA1" }, ..Signer::owner() };
    let oauth = signer.sign(&format!("https://api.example{PATH}"), &[query.as_slice(), &form].concat());
    let mut sent = Sent {
        method: "POST".to_owned(),
        path: PATH.to_owned(),
        origin: "https://api.example".to_owned(),
        header: (oauth_place == 0).then(|| in_header(&oauth).trim_start_matches("OAuth ").to_owned()),
        query: form_text(&query).into_bytes(),
        form: form_text(&form).into_bytes(),
    };
    match oauth_place {
        1 => sent.query.extend([b"&", in_form(&oauth).as_bytes()].concat()),
        2 => sent.form.extend([b"&", in_form(&oauth).as_bytes()].concat()),
        _ => {}
    }
    prop_assert!(verify(&sent).is_ok(), "unchanged, and refused: {sent:?}");
    let mut changed = sent.clone();
    let text = |text: &mut String| {
        let mut bytes = std::mem::take(text).into_bytes();
        change.apply(&mut bytes);
        *text = String::from_utf8_lossy(&bytes).into_owned();
    };
    match (part, &mut changed.header) {
        (0, _) => text(&mut changed.method),
        (1, _) => text(&mut changed.path),
        (2, _) => text(&mut changed.origin),
        (3, _) | (4, None) => change.apply(&mut changed.query),
        (5, _) | (_, None) => change.apply(&mut changed.form),
        (_, Some(header)) => text(header),
    }
    if verify(&changed).is_ok() {
        prop_assert_eq!(meaning(&changed), meaning(&sent), "{:?}", changed);
    }
    Ok(())
}

#[test]
fn signed_request() {
    fuzz("signed_request", signed_requests, check_signed);
}

// Queries and forms.

const FORM: &[&str] = &[
    "a",
    "b",
    "id",
    "oauth_signature",
    "oauth_x",
    "=",
    "=",
    "&",
    "&",
    "&&",
    "+",
    "%",
    "%4",
    "%41",
    "%2b",
    "%26",
    "%zz",
    "~",
    ";",
];

fn forms() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => vec(any::<u8>(), 0..96),
        4 => pieced(FORM, 40).prop_map(String::into_bytes),
        1 => pieced(FORM, 1200).prop_map(String::into_bytes),
    ]
}

fn check_form(text: Vec<u8>) -> Checked {
    let parameters = Parameters::decode(&text);
    let mut pairs = form_pairs(&text);
    prop_assert_eq!(parameters.are_too_many(), pairs.len() > PARAMETER_LIMIT);
    pairs.truncate(PARAMETER_LIMIT + 1);
    for (name, _) in &pairs {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let values: Vec<_> =
            pairs.iter().filter(|(other, _)| other == name.as_bytes()).map(|(_, value)| value).collect();
        prop_assert!(parameters.all(name).eq(values), "{name:?}");
    }
    let normalized = |parameters: &Parameters| -> Vec<(String, String)> {
        let pairs = Parameters::normalized(&[parameters]).into_iter();
        pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
    };
    pairs.retain(|(name, _)| name != b"oauth_signature");
    let mut encoded: Vec<_> = pairs.iter().map(|(name, value)| (escape(name), escape(value))).collect();
    encoded.sort();
    prop_assert_eq!(&normalized(&parameters), &encoded);
    // It means the same as the parameters that it was made from. A pair without name and value is nothing but `=`.
    prop_assert_eq!(normalized(&Parameters::decode(in_form(&encoded).as_bytes())), encoded);
    Ok(())
}

#[test]
fn form() {
    fuzz("form", forms, check_form);
}
