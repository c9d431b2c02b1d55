//! Destroy over gRPC, on both databases.

use collections_service::proto::DestroyResponse;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tonic::Code;

use super::support::{App, Backend, OTHER, OWNER, TestDatabase, destroy, grpc_of, reason};

const UUID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

/// Makes a test of each case on each database.
macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            use crate::support::Backend;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::cases::$case(Backend::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::cases::$case(Backend::Postgres).await;
            }
        }
    )+};
}
pub(crate) use on_both;

on_both!(
    answers_each_outcome,
    concurrent_calls_have_one_winner,
    a_shared_request_id_wins_for_all,
    an_id_never_returns
);

pub use cases::race;

mod cases {
    use super::*;

    pub async fn answers_each_outcome(backend: Backend) {
        let app = App::start(backend).await;
        app.put(1, OWNER).await;
        app.put(2, OTHER).await;
        let mut rpc = app.rpc();
        let refused = destroy(&mut rpc, OWNER, "custom-2", "").await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "NOT_OWNER"));
        assert_eq!(app.owned_by(OTHER).await, [2]);
        let unknown = destroy(&mut rpc, OWNER, "custom-3", "").await.unwrap_err();
        assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "COLLECTION_NOT_FOUND"));
        assert!(destroy(&mut rpc, OWNER, "custom-1", UUID).await.unwrap().get_ref().destroyed);
        assert_eq!(app.owned_by(OWNER).await, [] as [i64; 0]);
        assert!(destroy(&mut rpc, OWNER, "custom-1", UUID).await.unwrap().get_ref().destroyed);
        assert_eq!(destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap_err().code(), Code::NotFound);
        assert_eq!(destroy(&mut rpc, OTHER, "custom-1", UUID).await.unwrap_err().code(), Code::NotFound);
    }

    pub async fn race(app: &App, request_id: &'static str) -> Vec<Code> {
        app.put(7, OWNER).await;
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let mut rpc = app.rpc();
                tokio::spawn(async move { destroy(&mut rpc, OWNER, "custom-7", request_id).await })
            })
            .collect();
        let mut codes = Vec::new();
        for call in calls {
            codes.push(call.await.unwrap().map_or_else(|status| status.code(), |_| Code::Ok));
        }
        codes
    }

    pub async fn concurrent_calls_have_one_winner(backend: Backend) {
        let app = App::start(backend).await;
        let codes = race(&app, "").await;
        assert_eq!(codes.iter().filter(|code| **code == Code::Ok).count(), 1, "{codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == Code::NotFound).count(), 63, "{codes:?}");
    }

    pub async fn a_shared_request_id_wins_for_all(backend: Backend) {
        let app = App::start(backend).await;
        let codes = race(&app, UUID).await;
        assert!(codes.iter().all(|code| *code == Code::Ok), "{codes:?}");
    }

    pub async fn an_id_never_returns(backend: Backend) {
        use collections_service::{domain::CollectionId, store::NewCollection};
        let app = App::start(backend).await;
        app.put(5, OWNER).await;
        destroy(&mut app.rpc(), OWNER, "custom-5", "").await.unwrap();
        let again = NewCollection {
            id: CollectionId::new(5).unwrap(),
            owner: super::super::support::user(OWNER),
            name: String::new(),
            entries: Vec::new(),
        };
        assert!(!app.database.store.insert_collection(again).await.unwrap());
        assert_eq!(app.owned_by(OWNER).await, [] as [i64; 0]);
    }
}

#[tokio::test]
async fn exactly_one_valid_user_is_required() {
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    for users in
        [&[][..], &["0"], &["-1"], &["+1"], &["x"], &["9223372036854775808"], &["119476949", "119476949"]]
    {
        let mut request = tonic::Request::new(collections_service::proto::DestroyRequest {
            id: "custom-1".to_owned(),
            request_id: String::new(),
        });
        for user in users {
            request.metadata_mut().append("x-user-id", user.parse().unwrap());
        }
        let refused = app.rpc().destroy(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{users:?}");
    }
    assert_eq!(app.owned_by(OWNER).await, [1]);
}

#[tokio::test]
async fn user_metadata_is_ignored_without_insecure_identity() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let app = App::start_with(database, |settings| {
        grpc_of(settings).insecure_identity = false;
    })
    .await;
    app.put(1, OWNER).await;
    let refused = destroy(&mut app.rpc(), OWNER, "custom-1", "").await.unwrap_err();
    assert_eq!(reason(&refused), "CREDENTIALS_MISSING");
    assert_eq!(app.owned_by(OWNER).await, [1]);
}

#[tokio::test]
async fn a_drain_ends_in_time_despite_a_silent_connection() {
    let mut app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    let mut rpc = app.rpc();
    destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap();
    let _silent = tokio::net::TcpStream::connect(app.grpc.trim_start_matches("http://")).await.unwrap();
    let running = app.running.take().unwrap();
    let drained = tokio::time::timeout(std::time::Duration::from_secs(6), running.drain()).await;
    assert!(drained.is_ok(), "the drain has no bound");
}

/// A message of a newer client, with fields that this service does not have.
#[derive(Clone, PartialEq, prost::Message)]
struct Padded {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bytes = "vec", tag = "100")]
    padding: Vec<u8>,
}

#[tokio::test]
async fn a_long_message_is_read() {
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    let mut request = tonic::Request::new(Padded { id: "custom-1".to_owned(), padding: vec![7; 3 * 1024] });
    request.metadata_mut().insert("x-user-id", OWNER.to_string().parse().unwrap());
    let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let mut rpc = tonic::client::Grpc::with_origin(http, app.grpc.parse().unwrap());
    rpc.ready().await.unwrap();
    let path = "/collections.v1.CollectionsService/Destroy".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<Padded, DestroyResponse>::new();
    assert!(rpc.unary(request, path, codec).await.unwrap().get_ref().destroyed);
    assert_eq!(app.owned_by(OWNER).await, [] as [i64; 0]);
}
