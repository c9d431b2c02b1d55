//! The edge cases of OAuth 1.0a that the API's own library was tested with, and their neighbours: one table, over the
//! REST listener, signed by a signer that shares no code with the program. What is accepted destroys nothing:
//! the collection does not exist.

mod origins;
mod parameters;

use origins::{Addressed, OWN, PUBLIC, PUBLIC_ORIGINS};
use parameters::{IN_A_FORM, PARAMETERS, Signed};

use super::{
    rest::raw,
    support::{
        App, Backend, CONSUMER, NOW, PATH, TOKEN, TestDatabase,
        oauth::{Signer, escape, in_form, in_header},
    },
};

/// The HTTP status and the 1.1 code of an answer.
type Expected = (u16, u16);

const ACCEPTED: Expected = (404, 34);
const MISSING: Expected = (400, 215);
const INVALID: Expected = (401, 32);
const ID: &str = "id=custom-9";
const FORM: Option<&str> = Some("application/x-www-form-urlencoded");
/// So many that some of their signatures hold each letter that the two alphabets write differently.
const NONCES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const PLACES: [Place; 3] = [Place::Header, Place::Query, Place::Form];

/// Where a part of a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header,
    Query,
    Form,
}

/// One request and its answer.
#[derive(Clone, Debug)]
struct Case {
    about: String,
    target: Vec<u8>,
    host: String,
    /// Each an `Authorization` header.
    authorization: Vec<String>,
    content_type: Option<&'static str>,
    body: Vec<u8>,
    expected: Expected,
}

impl Case {
    /// The id in the query, nothing else.
    fn new(about: impl Into<String>, host: &str, expected: Expected) -> Self {
        let (about, host, target) = (about.into(), host.to_owned(), format!("{PATH}?{ID}").into_bytes());
        Self {
            about,
            target,
            host,
            authorization: Vec::new(),
            content_type: FORM,
            body: Vec::new(),
            expected,
        }
    }

    /// With this in that place.
    fn with(mut self, place: Place, text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        match place {
            Place::Header => self.authorization.push(String::from_utf8(text.to_vec()).unwrap()),
            Place::Query => self.target.extend([b"&", text].concat()),
            Place::Form if self.body.is_empty() => self.body.extend(text),
            Place::Form => self.body.extend([b"&", text].concat()),
        }
        self
    }

    /// With these OAuth parameters in that place.
    fn oauth(self, place: Place, pairs: &[(String, String)]) -> Self {
        let text = if place == Place::Header { in_header(pairs) } else { in_form(pairs) };
        self.with(place, text)
    }

    fn request(&self) -> Vec<u8> {
        let mut head =
            format!("host: {}\r\nconnection: close\r\ncontent-length: {}", self.host, self.body.len());
        for value in &self.authorization {
            head.push_str(&format!("\r\nAUTHORIZATION: {value}"));
        }
        if let Some(media_type) = self.content_type {
            head.push_str(&format!("\r\ncontent-type: {media_type}"));
        }
        [b"POST ", self.target.as_slice(), b" HTTP/1.1\r\n", head.as_bytes(), b"\r\n\r\n", &self.body]
            .concat()
    }

    /// What is wrong with the answer.
    async fn fault(&self, app: &App) -> Option<String> {
        let answer = raw(app, self.request()).await;
        let (status, code) = self.expected;
        let right = answer.starts_with(&format!("HTTP/1.1 {status} "))
            && answer.contains(&format!("{{\"code\":{code},"))
            // An unknown path is a 404 with this code too, but there no user was authenticated.
            && answer.contains("x-access-level: read-write") == (self.expected == ACCEPTED);
        (!right).then(|| format!("{}: expected {:?}\n{answer}", self.about, self.expected))
    }
}

fn url(host: &str) -> String {
    format!("http://{host}{PATH}")
}

/// These and the id.
fn and_id(parameters: Signed) -> Vec<(&'static [u8], &'static [u8])> {
    [parameters, &[(b"id", b"custom-9")]].concat()
}

fn in_parameters(host: &str) -> Vec<Case> {
    let everywhere = PARAMETERS.iter().flat_map(|(sent, read, unread)| {
        [Place::Query, Place::Form].map(|place| (sent.as_bytes(), place, *read, *unread))
    });
    let in_a_form = IN_A_FORM.iter().map(|(sent, read, unread)| (*sent, Place::Form, *read, *unread));
    let mut cases = Vec::new();
    for (sent, place, read, unread) in everywhere.chain(in_a_form) {
        for (signed, expected) in [(read, ACCEPTED), (unread, INVALID)] {
            let oauth = Signer::owner().sign(&url(host), &and_id(signed));
            for oauth_place in PLACES {
                let sent_text = String::from_utf8_lossy(sent);
                let about = format!("{sent_text:?} in {place:?} as {signed:?}, OAuth in {oauth_place:?}");
                cases.push(Case::new(about, host, expected).with(place, sent).oauth(oauth_place, &oauth));
            }
        }
    }
    cases
}

/// Values of the OAuth parameters, in each place.
fn claims(host: &str) -> Vec<Case> {
    let owner = Signer::owner;
    let more = |name, value| (format!("{name} {value:?}"), Signer { more: vec![(name, value)], ..owner() });
    let versions = [("1.0", true), ("1.0a", true), ("1.0A", true)]
        .into_iter()
        .chain(["", "1", "1.1", "2.0", "1.0b", "v1.0"].map(|version| (version, false)));
    let unknown = ["oauth_callback", "oauth_verifier", "oauth_body_hash", "oauth_", "oauth_Token"];
    let timestamps = [
        ("+1795461500", ACCEPTED),
        ("0001795461500", ACCEPTED),
        ("-1", (401, 135)),
        ("9223372036854775807", (401, 135)),
        ("-9223372036854775808", (401, 135)),
        ("9223372036854775808", MISSING),
        ("18446744073709551616", MISSING),
        ("1795461500.0", MISSING),
        ("1795461500 1", MISSING),
        ("now", MISSING),
        ("+", MISSING),
        ("", MISSING),
    ];
    let methods = [
        ("HMAC-SHA256", ACCEPTED),
        ("PLAINTEXT", INVALID),
        ("RSA-SHA1", INVALID),
        ("HMAC-SHA512", INVALID),
        ("hmac-sha1", INVALID),
        ("", MISSING),
    ];
    let token = |token: &str| {
        let token = Some((token.to_owned(), TOKEN.1.to_owned()));
        (format!("{token:?}"), Signer { token, ..owner() })
    };
    let decoyed = Signer {
        token: Some(("unknown".to_owned(), "0".repeat(44))),
        consumer: (CONSUMER.0.to_owned(), "0".repeat(50)),
        ..owner()
    };
    let judged = |good: bool| if good { ACCEPTED } else { INVALID };
    let mut signers = vec![
        (("the window's begin".to_owned(), Signer { timestamp: NOW - 300, ..owner() }), ACCEPTED),
        (("the window's end".to_owned(), Signer { timestamp: NOW + 300, ..owner() }), ACCEPTED),
        (("before it".to_owned(), Signer { timestamp: NOW - 301, ..owner() }), (401, 135)),
        (("after it".to_owned(), Signer { timestamp: NOW + 301, ..owner() }), (401, 135)),
        (("no token".to_owned(), Signer { token: None, ..owner() }), (403, 220)),
        (more("oauth_token", ""), INVALID),
        (
            ("an empty token".to_owned(), Signer { more: vec![("oauth_token", "")], token: None, ..owner() }),
            (403, 220),
        ),
        (token("this is no token"), (401, 89)),
        (token(&format!("{}x", TOKEN.0)), (401, 89)),
        (token(&TOKEN.0.to_uppercase()), (401, 89)),
        // The secrets that are used in place of those of an unknown application or token authenticate no request.
        (("decoys".to_owned(), decoyed), (401, 89)),
        (more("oauth_consumer_key", "x"), (401, 416)),
        (more("oauth_consumer_key", ""), MISSING),
        (more("oauth_nonce", ""), MISSING),
        (more("oauth_nonce", "\u{F8} +&=\"%"), ACCEPTED),
    ];
    signers.extend(versions.map(|(version, good)| (more("oauth_version", version), judged(good))));
    signers.extend(unknown.map(|name| (more(name, "b c+d"), ACCEPTED)));
    signers.extend(timestamps.map(|(text, expected)| (more("oauth_timestamp", text), expected)));
    signers.extend(
        methods.map(|(method, expected)| ((method.to_owned(), Signer { method, ..owner() }), expected)),
    );
    let sent = signers.iter().flat_map(|((about, signer), expected)| {
        let oauth = signer.sign(&url(host), &and_id(&[]));
        PLACES.map(|place| Case::new(format!("{about} in {place:?}"), host, *expected).oauth(place, &oauth))
    });
    sent.collect()
}

/// How the header may be written.
fn headers(host: &str) -> Vec<Case> {
    let good = Signer::owner().sign(&url(host), &and_id(&[]));
    let text = in_header(&good);
    let sha256 =
        in_header(&Signer { method: "HMAC-SHA256", ..Signer::owner() }.sign(&url(host), &and_id(&[])));
    let signature = &good.last().unwrap().1;
    let bare = percent_encoding::percent_decode_str(signature).decode_utf8().unwrap();
    let other = signature.replacen(|_: char| true, if signature.starts_with('A') { "B" } else { "A" }, 1);
    let (first, rest) = bare.split_at(9);
    let begin = |more: &str| text.replacen("OAuth ", &format!("OAuth {more}"), 1);
    let mut cases = vec![
        (text.clone(), ACCEPTED),
        (text.replace('"', ""), ACCEPTED),
        (text.replacen('"', "", 4), ACCEPTED),
        (text.replacen("OAuth", "oAUTH", 1), ACCEPTED),
        (text.replacen("OAuth ", "OAuth\t", 1), ACCEPTED),
        (text.replacen("OAuth ", " \tOAuth \t ", 1), ACCEPTED),
        (format!("{text} \t"), ACCEPTED),
        (text.replace(", ", ","), ACCEPTED),
        (text.replace(", ", " \t,\t "), ACCEPTED),
        (text.replace('=', "\t= "), ACCEPTED),
        (text.replace("\"n0nce\"", "\"\tn0nce \""), ACCEPTED),
        (text.replace('"', "").replace(", ", "\t,\t"), ACCEPTED),
        (text.replace("n0nce", "%6e%30%6Ece"), ACCEPTED),
        (text.replace("oauth_nonce", "oauth%5Fnonce"), ACCEPTED),
        (text.replace(signature, &bare), ACCEPTED),
        (text.replace('"', "").replace(signature, &bare), ACCEPTED),
        // White space in and around a signature is dropped.
        (text.replace(signature, &format!(" {bare}\t")), ACCEPTED),
        (text.replace(signature, &format!("%0D%0A {signature}%20%09")), ACCEPTED),
        (text.replace(signature, &format!("{first} %0A{}", escape(rest))), ACCEPTED),
        // Empty elements of the list, and keys that are not OAuth's.
        (begin(", ,"), ACCEPTED),
        (format!("{},", text.replace(", ", ",,\t,")), ACCEPTED),
        (begin("realm=\"http://x/?a=b, c\", "), ACCEPTED),
        (begin("realm=\"\","), ACCEPTED),
        (begin("realm=x,stray=y, OAuth_nonce=\"z\","), ACCEPTED),
        (format!("{text}, realm=\"x\", realm=\"y\""), ACCEPTED),
        // What is signed cannot be added to, relabelled, taken from or written so that two would read it differently.
        (begin("oauth_callback=\"oob\", "), INVALID),
        (begin("oauth%5Fcallback=\"oob\", "), INVALID),
        (sha256.replace("SHA256", "SHA1"), INVALID),
        (text.replace("HMAC-SHA1", "HMAC-SHA256"), INVALID),
        (text.replace("HMAC-SHA1", "PLAINTEXT"), INVALID),
        (text.replace(signature, ""), MISSING),
        (text.replace(signature, "%20"), INVALID),
        (text.replace(signature, "x"), INVALID),
        (text.replace(signature, bare.trim_end_matches('=')), INVALID),
        (text.replace(signature, &format!("{bare}=")), INVALID),
        (text.replace(signature, &format!("{bare}{bare}")), INVALID),
        (text.replace(signature, &format!("%00{bare}")), INVALID),
        (text.replace(signature, &format!("%C2%A0{bare}")), INVALID),
        (text.replace(signature, &format!("*{bare}")), INVALID),
        (text.replace(signature, &other), INVALID),
        (text.replacen("oauth_nonce=\"", "oauth_nonce=\"x\"", 1), INVALID),
        (text.trim_end_matches('"').to_owned(), INVALID),
        (begin("stray, "), INVALID),
        (begin("=\"\", "), INVALID),
        (text.replacen(", ", " ", 1), INVALID),
        (text.replace("oauth_", "OAUTH_"), MISSING),
        ("OAuth".to_owned(), MISSING),
        ("OAuth ".to_owned(), MISSING),
        ("OAuth realm=\"x\"".to_owned(), MISSING),
        (text.replacen("OAuth ", "OAuth2 ", 1), MISSING),
        (text.replacen("OAuth ", "", 1), MISSING),
        ("Basic eDp5".to_owned(), MISSING),
        (String::new(), MISSING),
    ];
    for left_out in 0..good.len() {
        let (mut rest, mut twice) = (good.clone(), good.clone());
        rest.remove(left_out);
        twice.push(good[left_out].clone());
        // Without its token the request is an application's, signed with a secret too many.
        let expected = if good[left_out].0 == "oauth_token" { INVALID } else { MISSING };
        cases.push((in_header(&rest), expected));
        cases.push((in_header(&twice), INVALID));
    }
    let mut cases: Vec<Case> = cases
        .into_iter()
        .map(|(header, expected)| Case::new(&header, host, expected).with(Place::Header, header))
        .collect();
    let twice =
        Case::new("two headers", host, INVALID).oauth(Place::Header, &good).oauth(Place::Header, &good);
    cases.push(twice);
    for other in ["BLARG", "Basic eDp5", "OAuth", "OAuth realm=\"x\"", ""] {
        for place in [Place::Query, Place::Form] {
            let about = format!("{other:?} with OAuth parameters in {place:?}");
            cases.push(Case::new(about, host, ACCEPTED).with(Place::Header, other).oauth(place, &good));
        }
    }
    cases.push(
        Case::new("Bearer too", host, INVALID).with(Place::Header, "Bearer x").oauth(Place::Query, &good),
    );
    cases
}

/// The URL-safe alphabet of base64 is accepted in a signature, alone and mixed with the standard one.
fn url_safe_signatures(host: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for nonce in NONCES {
        let signer = Signer { more: vec![("oauth_nonce", nonce)], ..Signer::owner() };
        let mut oauth = signer.sign(&url(host), &and_id(&[]));
        let (_, escaped) = oauth.pop().unwrap();
        let standard = percent_encoding::percent_decode_str(&escaped).decode_utf8().unwrap();
        for signature in [
            standard.replace('+', "-").replace('/', "_"),
            standard.replace('+', "-"),
            standard.replacen('/', "_", 1),
        ] {
            for place in PLACES {
                let name = "oauth_signature".to_owned();
                let signed = [&oauth[..], &[(name, escape(&signature))]].concat();
                let about = format!("{signature} in {place:?}");
                cases.push(Case::new(about, host, ACCEPTED).oauth(place, &signed));
            }
        }
    }
    cases
}

/// All the OAuth parameters stand in one place.
fn places(host: &str) -> Vec<Case> {
    let good = Signer::owner().sign(&url(host), &and_id(&[]));
    let more = Signer { more: vec![("oauth_callback", "oob")], ..Signer::owner() };
    let stray = more.sign(&url(host), &and_id(&[]));
    let mut cases = Vec::new();
    for (one, other) in PLACES.iter().flat_map(|one| PLACES.map(|other| (*one, other))) {
        if one == other {
            continue;
        }
        let both = |about: &str, here: &[(String, String)], there: &[(String, String)]| {
            let about = format!("{about} in {one:?} and {other:?}");
            Case::new(about, host, INVALID).oauth(one, here).oauth(other, there)
        };
        cases.push(both("everything", &good, &good));
        for split in 1..good.len() {
            cases.push(both(&format!("split before {}", good[split].0), &good[..split], &good[split..]));
        }
        let (callback, rest): (Vec<_>, Vec<_>) =
            stray.iter().cloned().partition(|(name, _)| name == "oauth_callback");
        cases.push(both("a signed stray", &rest, &callback));
    }
    cases
}

/// Which bodies are signed, and read.
fn bodies(host: &str) -> Vec<Case> {
    const FORMS: [Option<&str>; 6] = [
        FORM,
        Some("APPLICATION/X-Www-Form-Urlencoded"),
        Some("application/x-www-form-urlencoded; charset=UTF-8"),
        Some("application/x-www-form-urlencoded\t;charset=x"),
        Some("application/x-www-form-urlencoded, application/json"),
        Some("Application/X-WWW-Form-URLEncoded-not"),
    ];
    const OTHERS: [Option<&str>; 7] = [
        None,
        Some(""),
        Some("application/json"),
        Some("text/plain"),
        Some("multipart/form-data; boundary=x"),
        Some("application/x-www-form-urlencode"),
        Some("x-application/x-www-form-urlencoded"),
    ];
    let with_body = Signer::owner().sign(&url(host), &and_id(&[(b"a", b"1")]));
    let without = Signer::owner().sign(&url(host), &and_id(&[]));
    let mut cases = Vec::new();
    for (media_type, is_form) in
        FORMS.map(|form| (form, true)).into_iter().chain(OTHERS.map(|other| (other, false)))
    {
        for (oauth, with) in [(&with_body, true), (&without, false)] {
            let expected = if with == is_form { ACCEPTED } else { INVALID };
            let about = format!("{media_type:?}, its body signed: {with}");
            let case = Case::new(about, host, expected).with(Place::Form, "a=1").oauth(Place::Header, oauth);
            cases.push(Case { content_type: media_type, ..case });
        }
        let expected = if is_form { ACCEPTED } else { MISSING };
        let case = Case::new(format!("OAuth in {media_type:?}"), host, expected).oauth(Place::Form, &without);
        cases.push(Case { content_type: media_type, ..case });
    }
    cases
}

fn addressed(rows: &[Addressed]) -> Vec<Case> {
    let case = |(begin, host, origin, expected): &Addressed| {
        let about = format!("{begin:?}, host {host:?}, signed for {origin:?}");
        let mut case = Case::new(about, host, *expected);
        case.target = [begin.as_bytes(), &case.target].concat();
        case.oauth(Place::Header, &Signer::owner().sign(&format!("{origin}{PATH}"), &and_id(&[])))
    };
    rows.iter().map(case).collect()
}

#[tokio::test]
async fn edge_cases() {
    let own = App::start(Backend::Sqlite).await;
    let public = App::start_with(TestDatabase::new(Backend::Sqlite).await, |settings| {
        let origins = PUBLIC_ORIGINS.map(|origin| origin.parse().unwrap());
        settings.rest.as_mut().unwrap().public_origins = origins.to_vec();
    })
    .await;
    let host = own.rest.trim_start_matches("http://");
    let groups =
        [in_parameters, claims, headers, url_safe_signatures, places, bodies].map(|group| group(host));
    let mut cases: Vec<(&App, Case)> = groups.into_iter().flatten().map(|case| (&own, case)).collect();
    cases.extend(addressed(&OWN).into_iter().map(|case| (&own, case)));
    cases.extend(addressed(&PUBLIC).into_iter().map(|case| (&public, case)));
    let mut faults = Vec::new();
    for (app, case) in &cases {
        faults.extend(case.fault(app).await);
    }
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n\n"));
    assert!(cases.len() > 600, "only {} cases", cases.len());
}
