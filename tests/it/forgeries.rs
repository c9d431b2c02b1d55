//! Bearer tokens that must be rejected: the tables that `jwt` sends.

use base64::{Engine, prelude::*};
use collections_service::{config, domain::DestroyError};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::support::{
    NOW, OWNER,
    jwt::{AUDIENCE, ISSUER, Key, claims, claims_with, hs256, unsigned},
};

use DestroyError::{TokenInvalid, UserContextRequired, WriteAccessRequired};

/// The keys of an issuer, and one that was not published.
pub struct Keys {
    pub rsa: Key,
    pub ec: Key,
    pub ed: Key,
    /// It has the id of another.
    pub stranger: Key,
}

impl Keys {
    pub fn new() -> Self {
        Self {
            rsa: Key::new("rsa", Algorithm::RS256),
            ec: Key::new("ec", Algorithm::ES256),
            ed: Key::new("ed", Algorithm::EdDSA),
            stranger: Key::new("ec", Algorithm::ES256),
        }
    }

    pub fn published(&self) -> [&Key; 3] {
        [&self.rsa, &self.ec, &self.ed]
    }

    /// Tokens whose header or signature is wrong.
    pub fn forged(&self) -> Vec<(String, String)> {
        let good = claims().to_string();
        let mut forged = Vec::new();
        let mut add = |why: &str, token: String| forged.push((why.to_owned(), token));
        for none in ["none", "None", "NONE", "nOnE", ""] {
            let header = json!({"alg": none, "typ": "JWT", "kid": "ec"}).to_string();
            add("alg none, no signature", format!("{}.", unsigned(&header, &good)));
            add("alg none, a signature", self.ec.sign(&header, &good));
        }
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64_STANDARD.encode(&self.rsa.public_der)
        );
        let n = self.rsa.jwk["n"].as_str().unwrap();
        let modulus = BASE64_URL_SAFE_NO_PAD.decode(n).unwrap();
        for secret in
            [&self.rsa.public_der[..], pem.as_bytes(), pem.trim().as_bytes(), &modulus, n.as_bytes()]
        {
            let header = json!({"alg": "HS256", "typ": "JWT", "kid": "rsa"}).to_string();
            add("HS256 with the public key", hs256(&header, &good, secret));
        }
        for (alg, kid) in
            [("RS256", "ec"), ("ES256", "rsa"), ("ES384", "ec"), ("EdDSA", "ec"), ("PS256", "rsa")]
        {
            let header = json!({"alg": alg, "kid": kid}).to_string();
            add("the algorithm is not the key's", self.ec.sign(&header, &good));
        }
        let pss = Key::new("rsa", Algorithm::PS256);
        add("PS256 with a key that is for RS256", pss.token(&claims()));
        add("a stranger's key under a known id", self.stranger.token(&claims()));
        let own = json!({"alg": "ES256", "kid": "ec", "jwk": self.stranger.jwk, "jku": "https://localhost/"});
        add("a key of its own", self.stranger.sign(&own.to_string(), &good));
        for header in [
            json!({"alg": "ES256", "kid": "unknown"}),
            json!({"alg": "ES256", "kid": ""}),
            json!({"alg": "ES256", "kid": 7}),
            json!({"alg": "ES256", "kid": null}),
            json!({"alg": "ES256"}),
            json!({"kid": "ec"}),
            json!({"alg": ["ES256"], "kid": "ec"}),
            json!({"alg": "es256", "kid": "ec"}),
            json!({"alg": "ES256", "kid": "ec", "crit": ["exp"]}),
            json!({"alg": "ES256", "kid": "ec", "crit": []}),
            json!({"alg": "ES256", "kid": "ec", "crit": null}),
            json!({"alg": "ES256", "kid": "ec", "crit": ["b64"], "b64": false}),
            json!({"alg": "ES256", "kid": "ec", "typ": "logout+jwt"}),
            json!({"alg": "ES256", "kid": "ec", "typ": "application/secevent+JWT"}),
            json!({"alg": "ES512", "kid": "ec"}),
            json!({"alg": "Ed25519", "kid": "ec"}),
            json!({"alg": "Ed448", "kid": "ec"}),
            json!({"alg": "ES256", "kid": "ec", "typ": 7}),
            json!([]),
        ] {
            add("a header", self.ec.sign(&header.to_string(), &good));
        }
        for header in [
            r#"{"alg":"ES256","alg":"ES256","kid":"ec"}"#,
            r#"{"alg":"ES256","kid":"ec","kid":"ec"}"#,
            r#"{"alg":"ES256","kid":"ec","\u006bid":"rsa"}"#,
            r#"{"alg":"ES256","kid":"ec"} x"#,
            "",
        ] {
            add("a header's text", self.ec.sign(header, &good));
        }
        forged
    }

    /// Tokens that are none.
    pub fn broken(&self) -> Vec<(String, String)> {
        let token = self.ec.token(&claims());
        let parts: Vec<&str> = token.split('.').collect();
        let first = |length: usize| token.chars().take(length).collect::<String>();
        let last = token.chars().last().unwrap();
        // A signature of 64 bytes leaves four bits of its last letter over.
        let stray = char::from(last as u8 + 1);
        let huge = claims_with("padding", json!("x".repeat(config::identity::JWT_LIMIT)));
        let mut broken: Vec<String> = vec![
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            "...".to_owned(),
            "a.b.c".to_owned(),
            "\u{fffd}".repeat(3),
            parts[..2].join("."),
            format!("{}..{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{token}."),
            format!("{token}.{}", parts[2]),
            format!("{token}="),
            format!("{}{stray}", first(token.len() - 1)),
            token.replacen(&first(40), &format!("{} ", first(40)), 1),
            format!("{token}, {token}"),
            token.replacen('.', "=.", 1),
            self.ec.token(&huge),
            "x".repeat(12_000),
            "[".repeat(4_000),
            format!("{}.e.e", BASE64_URL_SAFE_NO_PAD.encode("[".repeat(4_000))),
        ];
        broken.extend((1..token.len()).step_by(17).map(first));
        broken.into_iter().map(|token| ("no token".to_owned(), token)).collect()
    }

    /// Tokens whose claims are wrong, with what they are answered.
    pub fn refused(&self) -> Vec<(String, String, DestroyError)> {
        let mut refused = Vec::new();
        for (name, value, expected) in wrong_claims() {
            let why = format!("{name}: {value:?}");
            refused.push((why, self.ec.token(&claims_with(name, value)), expected));
        }
        for claims in [
            claims().to_string().replacen('{', r#"{"sub":"783214","#, 1),
            claims().to_string().replacen('{', r#"{"\u0073ub":"783214","#, 1),
            claims().to_string().replacen('{', r#"{"exp":1,"#, 1),
            claims().to_string().replacen('{', r#"{"aud":"x","#, 1),
            claims().to_string().replacen('{', r#"{"iss":"x","#, 1),
            claims().to_string().replacen('{', r#"{"scope":"x","#, 1),
            format!("{} x", claims()),
            format!("[{}]", claims()),
            "{}".to_owned(),
            String::new(),
            claims().to_string().replacen(&(NOW + 300).to_string(), "1e999", 1),
        ] {
            refused.push((claims.clone(), self.ec.token_of(&claims), TokenInvalid));
        }
        // Tokens for other purposes, which the same issuer signs with the same key.
        for (name, value) in [
            ("cnf", json!({"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"})),
            ("cnf", json!({"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"})),
            ("cnf", json!({})),
            ("cnf", json!(null)),
            ("events", json!({"http://schemas.openid.net/event/backchannel-logout": {}})),
            ("events", json!({})),
            ("events", json!(null)),
        ] {
            refused.push((format!("{name} {value}"), self.ec.token(&claims_with(name, value)), TokenInvalid));
        }
        let mut expired = claims_with("exp", json!(NOW - 100));
        expired["iss"] = json!("https://other.example");
        refused.push(("expired, and another's".to_owned(), self.ec.token(&expired), TokenInvalid));
        let mut either = claims_with("scp", json!(["collections.read"]));
        refused.push(("two scopes, one narrower".to_owned(), self.ec.token(&either), WriteAccessRequired));
        (either["scp"], either["scope"]) = (json!(["collections.write"]), json!(""));
        refused.push(("two scopes, one empty".to_owned(), self.ec.token(&either), WriteAccessRequired));
        let mut without_subject = claims_with("sub", None);
        without_subject["scope"] = json!("read");
        for name in ["azp", "client_id"] {
            let client = self.ec.token(&claims_with(name, json!(OWNER.to_string())));
            refused.push((format!("an application's own, by {name}"), client, UserContextRequired));
        }
        refused.push((
            "no subject, and no write scope".to_owned(),
            self.ec.token(&without_subject),
            UserContextRequired,
        ));
        refused
    }
}

type WrongClaim = (&'static str, Option<Value>, DestroyError);

fn wrong_claims() -> Vec<WrongClaim> {
    let mut wrong: Vec<WrongClaim> = vec![
        ("exp", Some(json!(NOW - 31)), TokenInvalid),
        ("exp", Some(json!(NOW - 30)), TokenInvalid),
        ("exp", Some(json!(-1)), TokenInvalid),
        ("exp", Some(json!(1.5)), TokenInvalid),
    ];
    let mut add = |name, values: &[Value], expected| {
        wrong.extend(values.iter().map(|value| (name, Some(value.clone()), expected)));
    };
    add("exp", &[json!("9999999999"), json!(null), json!([NOW + 300])], TokenInvalid);
    add("nbf", &[json!(NOW + 31), json!(NOW as f64 + 30.5), json!("0"), json!(null)], TokenInvalid);
    let slash = format!("{ISSUER}/");
    add("iss", &[json!(slash), json!("HTTPS://ISSUER.EXAMPLE"), json!([ISSUER]), json!("")], TokenInvalid);
    let slash = format!("{AUDIENCE}/");
    add("aud", &[json!("x"), json!(""), json!([]), json!(["x", slash]), json!([7]), json!({})], TokenInvalid);
    let no_users =
        ["abc", "", "0", "-1", "007", "+1", " 1", "1 ", "1.0", "1e3", "0x1", "9223372036854775808"];
    add("sub", &no_users.map(Value::from), UserContextRequired);
    add("sub", &[json!("\u{661}"), json!("119476949\u{0}")], UserContextRequired);
    add("sub", &[json!(OWNER), json!(null), json!(["1"])], TokenInvalid);
    for name in ["scope", "scp"] {
        add(name, &[json!(null), json!(7), json!(true), json!({}), json!([7])], TokenInvalid);
        let narrow =
            ["", " ", "collections.read", "collections.writes", "Collections.Write", "a,collections.write"];
        add(name, &narrow.map(Value::from), WriteAccessRequired);
        add(name, &[json!([]), json!(["collections.read"])], WriteAccessRequired);
    }
    for (name, expected) in
        [("exp", TokenInvalid), ("iss", TokenInvalid), ("aud", TokenInvalid), ("sub", UserContextRequired)]
    {
        wrong.push((name, None, expected));
    }
    wrong
}
