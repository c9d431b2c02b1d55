//! OAuth 1.0a: the API's published examples and recorded requests verify, and nothing that was changed does.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::AtomicI64},
};

use collections_service::{
    domain::{
        AccessToken, Application, Clock, CredentialDirectory, DestroyFailure, DirectoryError, Found, Secret,
    },
    identity::{
        AuthenticatedUser,
        oauth1::{Origin, Parameters, Request, Verifier},
    },
};

use super::{
    recorded::recorded,
    support::{CONSUMER, OWNER, PATH, TOKEN, oauth::escape, user},
};

/// The documentation's application and token, and nothing else.
pub struct Documentation;

impl CredentialDirectory for Documentation {
    fn find<'a>(
        &'a self,
        consumer_key: &'a str,
        token: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Found, DirectoryError>> + Send + 'a>> {
        let secret = |text: &str| Secret::from(text.to_owned());
        let application = Application { secret: secret(CONSUMER.1), suspended: false };
        let access = AccessToken {
            consumer_key: CONSUMER.0.to_owned(),
            user: user(OWNER),
            secret: secret(TOKEN.1),
            write: true,
            revoked: false,
        };
        let found = Found {
            application: (consumer_key == CONSUMER.0).then(|| Arc::new(application)),
            token: (token == Some(TOKEN.0)).then(|| Arc::new(access)),
        };
        Box::pin(async move { Ok(found) })
    }
}

fn verifier(origin: &str, now: i64) -> Verifier {
    let clock = Clock::Set(Arc::new(AtomicI64::new(now)));
    Verifier::new(Arc::new(Documentation), vec![origin.parse().unwrap()], clock)
}

/// A request taken apart: everything that is signed, decoded.
#[derive(Clone, Debug)]
struct Signed {
    method: Vec<u8>,
    path: Vec<u8>,
    origin: Vec<u8>,
    header: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    query: Vec<(Vec<u8>, Vec<u8>)>,
    form: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Signed {
    fn encoded(pairs: &[(Vec<u8>, Vec<u8>)], quote: &str, separator: &str) -> String {
        let pairs =
            pairs.iter().map(|(name, value)| format!("{}={quote}{}{quote}", escape(name), escape(value)));
        pairs.collect::<Vec<_>>().join(separator)
    }

    /// `None` where the change leaves no request that could be sent: an origin or a method that is no text.
    async fn verify(&self, now: i64) -> Option<Result<AuthenticatedUser, DestroyFailure>> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let (method, path, origin) = (text(&self.method)?, text(&self.path)?, text(&self.origin)?);
        let origin: Origin = origin.parse().ok()?;
        let header = self.header.as_ref().map(|pairs| Self::encoded(pairs, "\"", ", "));
        let (query, form) = (Self::encoded(&self.query, "", "&"), Self::encoded(&self.form, "", "&"));
        let (query, form) = (Parameters::decode(query.as_bytes()), Parameters::decode(form.as_bytes()));
        let request = Request {
            method: &method,
            path: &path,
            header: header.as_deref(),
            query: &query,
            form: &form,
            origin: None,
        };
        Some(verifier(origin.as_str(), now).verify(request).await)
    }

    /// Every part that is signed.
    fn parts(&mut self) -> Vec<&mut Vec<u8>> {
        let pairs = self.header.iter_mut().flatten().chain(&mut self.query).chain(&mut self.form);
        let mut parts: Vec<_> = pairs.flat_map(|(name, value)| [name, value]).collect();
        parts.extend([&mut self.method, &mut self.path, &mut self.origin]);
        parts
    }
}

/// Names and values of `a=b&c=d`, with `%` undone.
fn pairs(encoded: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decode = |text: &str| percent_encoding::percent_decode_str(text.trim_matches('"')).collect();
    let halves = encoded.split(['&', ',']).filter_map(|pair| pair.trim().split_once('='));
    halves.map(|(name, value)| (decode(name), decode(value))).collect()
}

#[tokio::test]
async fn no_bit_of_a_recorded_request_can_be_changed() {
    for request in recorded() {
        let signed = Signed {
            method: b"POST".to_vec(),
            path: PATH.as_bytes().to_vec(),
            origin: request.origin.as_bytes().to_vec(),
            header: request.authorization.as_ref().map(|header| pairs(header.trim_start_matches("OAuth "))),
            query: pairs(&request.query),
            form: pairs(&request.body),
        };
        let verified = signed.verify(request.timestamp).await.unwrap();
        assert_eq!(verified.unwrap().user(), user(OWNER), "{}", request.client);
        let sizes: Vec<usize> = signed.clone().parts().iter().map(|part| part.len()).collect();
        let mut refused = 0;
        for (part, size) in sizes.into_iter().enumerate() {
            for bit in 0..size * 8 {
                let mut changed = signed.clone();
                changed.parts()[part][bit / 8] ^= 1 << (bit % 8);
                // The one part whose letter case has no meaning.
                let same_origin = changed.origin.eq_ignore_ascii_case(&signed.origin);
                match changed.verify(request.timestamp).await {
                    Some(Ok(_)) => assert!(changed.origin != signed.origin && same_origin, "{changed:?}"),
                    Some(Err(_)) => refused += 1,
                    None => {}
                }
            }
        }
        assert!(refused > 2000, "{}: only {refused} changes were tried", request.client);
    }
}

#[tokio::test]
async fn published_examples_verify() {
    let update = "/1.1/statuses/update.json";
    let status = "include_entities=true&status=Hello+Ladies+%2B+Gentlemen%2C+a+signed+OAuth+request%21";
    let id = "id=custom-390882285743898624";
    for (origin, path, form, signature) in [
        ("https://api.twitter.com", update, status, "hCtSmYh%2BiHYCEqBWrE7C7hYmtUk%3D"),
        ("https://api.x.com", update, status, "Ls93hJiZbQ3akF3HF3x1Bz8%2FzU4%3D"),
        ("https://api.twitter.com", PATH, id, "NWrN9mWWA4A8KHq0wO%2B%2F3w4QPFk%3D"),
        ("https://api.x.com", PATH, id, "yRIU9tmObYy3Cb%2FjSEO3zoz%2Bvwg%3D"),
    ] {
        let header = format!(
            "oauth_consumer_key=\"{}\", oauth_nonce=\"kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg\", \
             oauth_signature=\"{signature}\", oauth_signature_method=\"HMAC-SHA1\", oauth_timestamp=\"1318622958\", \
             oauth_token=\"{}\", oauth_version=\"1.0\"",
            CONSUMER.0, TOKEN.0
        );
        let (query, form) = (Parameters::default(), Parameters::decode(form.as_bytes()));
        let request =
            Request { method: "POST", path, header: Some(&header), query: &query, form: &form, origin: None };
        let user = verifier(origin, 1_318_622_958).verify(request).await;
        assert!(user.is_ok(), "{origin}{path}: {user:?}");
    }
}
