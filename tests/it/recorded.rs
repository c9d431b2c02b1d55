//! What unmodified clients sent, as far as it is signed or decides what is.

use super::support::{CONSUMER, PATH, TOKEN};

/// A request on the wire.
pub struct Recorded {
    pub client: &'static str,
    /// The origin it was signed for.
    pub origin: &'static str,
    pub timestamp: i64,
    pub query: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    pub content_type: Option<&'static str>,
    pub body: String,
}

/// Where a client puts the OAuth parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Query,
    Form,
}

const API: &str = "https://api.twitter.com";
const FORM: Option<&str> = Some("application/x-www-form-urlencoded");
const FORM_UTF8: Option<&str> = Some("application/x-www-form-urlencoded;charset=utf-8");
const ID: &str = "id=custom-390882285743898624";

/// Client, where it puts OAuth and the id, its media type, timestamp, nonce, version, signature (encoded).
type Row = (&'static str, Place, Place, Option<&'static str>, i64, &'static str, &'static str, &'static str);

const ROWS: [Row; 9] = [
    (
        "npm oauth",
        Place::Header,
        Place::Form,
        FORM,
        1_795_461_483,
        "HmcHQEHPBhOhMAOGKQILCzaauu20zwMM",
        "1.0A",
        "5a0pukAvtfMTXCfll5PkoY1bcT4%3D",
    ),
    (
        "npm twit",
        Place::Header,
        Place::Query,
        Some("application/json"),
        1_795_461_475,
        "0999819a568d41798e782c4aebbe86b0",
        "1.0",
        "QWa2jXPTN0v1t0PM5ikkxNHOhLQ%3D",
    ),
    (
        "Perl Twitter::API",
        Place::Header,
        Place::Form,
        FORM_UTF8,
        1_795_461_630,
        "192dfe5305de386bb75ebbc3f8d8eecd7c5be6e7",
        "1.0",
        "%2BuHeOI401eHFRum0mEfu6CePXJc%3D",
    ),
    (
        "Perl Twitter::API on port 8080",
        Place::Header,
        Place::Form,
        FORM_UTF8,
        1_795_461_638,
        "3b96273ffd6b6b7d5994eb91c4252edc7eeeedcc",
        "1.0",
        "2q%2FbsQgCm5Z4CqsWbfLo0OVfP3s%3D",
    ),
    (
        "Python TwitterAPI",
        Place::Header,
        Place::Form,
        FORM,
        1_795_461_404,
        "33628172142709780381795461404",
        "1.0",
        "TpThXd%2Brjt3SZaFHpfjFkGm%2B9xs%3D",
    ),
    (
        "Python requests-oauthlib, id in the query",
        Place::Header,
        Place::Query,
        None,
        1_795_461_407,
        "128076963360395288061795461407",
        "1.0",
        "Ci0Lif8mSRbX%2Bz6VBs4oZ99BHto%3D",
    ),
    (
        "Python requests-oauthlib, signed in the body",
        Place::Form,
        Place::Form,
        FORM,
        1_795_461_407,
        "26169699606582798991795461407",
        "1.0",
        "TUNubPRYvGF7RM1qOEdTFxRM5yM%3D",
    ),
    (
        "Python requests-oauthlib, signed in the query",
        Place::Query,
        Place::Query,
        None,
        1_795_461_407,
        "184113455216075128431795461407",
        "1.0",
        "i03H%2FafY56eO1XgeVoyviHL8V%2BE%3D",
    ),
    (
        "Python twitter",
        Place::Form,
        Place::Form,
        FORM,
        1_795_461_408,
        "16803872961420282005",
        "1.0",
        "4BfwtTIsv%2Fl8AtOPbertKC8QeKI%3D",
    ),
];

pub fn recorded() -> Vec<Recorded> {
    ROWS.into_iter().map(request).collect()
}

fn request(row: Row) -> Recorded {
    let (client, oauth, id, content_type, timestamp, nonce, version, signature) = row;
    let timestamp_text = timestamp.to_string();
    let fields = [
        ("oauth_nonce", nonce),
        ("oauth_timestamp", &timestamp_text),
        ("oauth_version", version),
        ("oauth_signature_method", "HMAC-SHA1"),
        ("oauth_consumer_key", CONSUMER.0),
        ("oauth_token", TOKEN.0),
        ("oauth_signature", signature),
    ];
    let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let quoted: Vec<String> = fields.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    // npm oauth writes no space after the comma.
    let comma = if client == "npm oauth" { "," } else { ", " };
    let at = |place: Place| {
        let id = (id == place).then(|| ID.to_owned());
        let oauth = (oauth == place).then(|| pairs.join("&"));
        [id, oauth].into_iter().flatten().collect::<Vec<_>>().join("&")
    };
    Recorded {
        client,
        origin: if client.ends_with("8080") { "http://127.0.0.1:8080" } else { API },
        timestamp,
        query: at(Place::Query),
        authorization: (oauth == Place::Header).then(|| format!("OAuth {}", quoted.join(comma))),
        content_type,
        body: at(Place::Form),
    }
}

impl Recorded {
    /// What stands on the request line.
    pub fn target(&self) -> String {
        if self.query.is_empty() { PATH.to_owned() } else { format!("{PATH}?{}", self.query) }
    }
}
