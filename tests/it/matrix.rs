//! The authorization matrix: every way to connect, to name a user and to bring a token, in each combination.

use std::time::Duration;

use collections_service::{net::ClientAuth, proto::DestroyRequest};
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::{
    support::{
        App, Backend, OTHER, OWNER, TestDatabase, grpc_of,
        jwt::{Key, claims, claims_with, file, hs256, jwt_settings, unsigned},
        pki::{Authority, For, TlsRpc, rpc_at},
        reason,
    },
    tls::{SERVICE, server_tls},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    NoTls,
    NoCertificate,
    UnknownAuthority,
    Expired,
    Listed,
    Unlisted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    NoUser,
    Owner,
    Twice,
    NoNumber,
    Zero,
    Negative,
    Overflow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    None,
    Good,
    Expired,
    WrongIssuer,
    WrongAudience,
    AlgNone,
    Hs256,
    UnknownKid,
    OtherUser,
}

/// Longer than the service takes for any answer.
const PATIENCE: Duration = Duration::from_secs(20);

const CONNECTIONS: [Connection; 6] = [
    Connection::NoTls,
    Connection::NoCertificate,
    Connection::UnknownAuthority,
    Connection::Expired,
    Connection::Listed,
    Connection::Unlisted,
];
const NAMED: [Named; 7] = [
    Named::NoUser,
    Named::Owner,
    Named::Twice,
    Named::NoNumber,
    Named::Zero,
    Named::Negative,
    Named::Overflow,
];
const TOKENS: [Token; 9] = [
    Token::None,
    Token::Good,
    Token::Expired,
    Token::WrongIssuer,
    Token::WrongAudience,
    Token::AlgNone,
    Token::Hs256,
    Token::UnknownKid,
    Token::OtherUser,
];

/// What a cell is answered: a reason, `OK`, or nothing at all where no connection comes about.
fn expected(connection: Connection, named: Named, token: Token) -> &'static str {
    match connection {
        Connection::NoTls | Connection::UnknownAuthority | Connection::Expired => return "",
        Connection::Unlisted => return "CALLER_NOT_ALLOWED",
        Connection::NoCertificate | Connection::Listed => {}
    }
    match (named, token) {
        (Named::Twice | Named::NoNumber | Named::Zero | Named::Negative | Named::Overflow, _) => {
            "CREDENTIALS_INVALID"
        }
        (
            _,
            Token::Expired
            | Token::WrongIssuer
            | Token::WrongAudience
            | Token::AlgNone
            | Token::Hs256
            | Token::UnknownKid,
        ) => "TOKEN_INVALID",
        (_, Token::Good) => "OK",
        (Named::Owner, Token::OtherUser) => "CREDENTIALS_INVALID",
        (Named::NoUser, Token::OtherUser) => "NOT_OWNER",
        (Named::Owner, Token::None) if connection == Connection::Listed => "OK",
        (Named::NoUser, Token::None) if connection == Connection::Listed => "USER_CONTEXT_REQUIRED",
        (Named::Owner | Named::NoUser, Token::None) => "CREDENTIALS_MISSING",
    }
}

impl Named {
    fn values(self) -> Vec<String> {
        let owner = OWNER.to_string();
        match self {
            Self::NoUser => vec![],
            Self::Owner => vec![owner],
            Self::Twice => vec![owner.clone(), owner],
            Self::NoNumber => vec!["owner".to_owned()],
            Self::Zero => vec!["0".to_owned()],
            Self::Negative => vec![format!("-{owner}")],
            Self::Overflow => vec!["9223372036854775808".to_owned()],
        }
    }
}

impl Token {
    fn text(self, key: &Key) -> Option<String> {
        let good = claims().to_string();
        let header = |alg: &str, kid: &str| json!({"alg": alg, "typ": "JWT", "kid": kid}).to_string();
        Some(match self {
            Self::None => return None,
            Self::Good => key.token(&claims()),
            Self::Expired => key.token(&claims_with("exp", json!(1))),
            Self::WrongIssuer => key.token(&claims_with("iss", json!("https://else.example"))),
            Self::WrongAudience => key.token(&claims_with("aud", json!("https://else.example"))),
            Self::AlgNone => format!("{}.", unsigned(&header("none", &key.kid), &good)),
            Self::Hs256 => hs256(&header("HS256", &key.kid), &good, &key.public_der),
            Self::UnknownKid => key.sign(&header("RS256", "unknown"), &good),
            Self::OtherUser => key.token(&claims_with("sub", json!(OTHER.to_string()))),
        })
    }
}

async fn call(rpc: &mut TlsRpc, named: Named, token: Option<&str>, id: i64) -> String {
    let mut request =
        tonic::Request::new(DestroyRequest { id: format!("custom-{id}"), request_id: String::new() });
    for value in named.values() {
        request.metadata_mut().append("x-user-id", value.parse().unwrap());
    }
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    // Where no connection comes about, a client may also wait for one for ever.
    let Ok(answer) = tokio::time::timeout(PATIENCE, rpc.destroy(request)).await else { return String::new() };
    match answer {
        Ok(_) => "OK".to_owned(),
        Err(status) if status.details().is_empty() => String::new(),
        Err(status) => {
            let row = collections_service::domain::DestroyError::from_reason(&reason(&status)).unwrap().row();
            let code = format!("{:?}", status.code());
            assert_eq!((code, status.message()), (format!("{:?}", row.grpc), row.grpc_message));
            reason(&status)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_combination_gets_the_specified_answer() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let key = Key::new("k", Algorithm::RS256);
    let database = TestDatabase::new(Backend::Sqlite).await;
    let tls = server_tls(database.folder.path(), &ours);
    assert!(matches!(tls.clients, ClientAuth::Optional(_)));
    let jwks = file(database.folder.path(), &[&key]);
    let app = App::start_with(database, |settings| {
        let grpc = grpc_of(settings);
        grpc.tls = Some(tls);
        grpc.insecure_identity = false;
        grpc.trusted_peers = [SERVICE.parse().unwrap()].into_iter().collect();
        settings.jwt = Some(jwt_settings(jwks));
    })
    .await;
    let mut remaining = Vec::new();
    let mut id = 0;
    for connection in CONNECTIONS {
        let leaf = match connection {
            Connection::NoTls | Connection::NoCertificate => None,
            Connection::UnknownAuthority => Some(theirs.issue(&[SERVICE], For::Client)),
            Connection::Expired => Some(ours.issue(&[SERVICE], For::ExpiredClient)),
            Connection::Listed => Some(ours.issue(&[SERVICE], For::Client)),
            Connection::Unlisted => Some(ours.issue(&["spiffe://example.org/else"], For::Client)),
        };
        let scheme = if connection == Connection::NoTls { "http" } else { "https" };
        let rpc = rpc_at(&app.grpc.replace("http", scheme), &ours, leaf.as_ref());
        for named in NAMED {
            for token in TOKENS {
                id += 1;
                app.put(id, OWNER).await;
                let text = token.text(&key);
                let answer = call(&mut rpc.clone(), named, text.as_deref(), id).await;
                assert_eq!(answer, expected(connection, named, token), "{connection:?} {named:?} {token:?}");
                if answer != "OK" {
                    remaining.push(id);
                }
                assert_eq!(app.owned_by(OWNER).await, remaining, "{connection:?} {named:?} {token:?}");
            }
        }
    }
    assert_eq!((id, id - i64::try_from(remaining.len()).unwrap()), (378, 5));
}
