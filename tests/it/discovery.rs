//! Health and reflection: how probes and grpcurl find their way.

use collections_service::proto::DestroyRequest;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message;
use prost_types::FileDescriptorProto;
use tonic::{Code, body::Body};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::support::{App, Backend};

const SERVICE: &str = "collections.v1.CollectionsService";

fn http() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

#[tokio::test]
async fn both_listeners_serve_health() {
    let app = App::start(Backend::Sqlite).await;
    let admin = format!("http://{}", app.running.as_ref().unwrap().admin);
    for origin in [&app.grpc, &admin] {
        let mut client = HealthClient::with_origin(http(), origin.parse().unwrap());
        for service in ["", SERVICE] {
            let request = HealthCheckRequest { service: service.to_owned() };
            assert_eq!(client.check(request).await.unwrap().get_ref().status, 1, "{origin} {service}");
        }
        let unknown = HealthCheckRequest { service: "x".to_owned() };
        assert_eq!(client.check(unknown).await.unwrap_err().code(), Code::NotFound);
    }
}

/// The file that declares the service, by one version of the reflection protocol.
macro_rules! reflected {
    ($version:ident, $origin:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::with_origin(http(), $origin.parse().unwrap());
        let ask = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let questions = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol(SERVICE.to_owned())),
        ];
        let mut answers =
            client.server_reflection_info(tokio_stream::iter(questions)).await.unwrap().into_inner();
        let mut next = async || answers.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = next().await else { panic!("no list") };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        let MessageResponse::FileDescriptorResponse(files) = next().await else { panic!("no file") };
        (names, files.file_descriptor_proto)
    }};
}

#[tokio::test]
async fn reflection_describes_the_service_to_old_and_new_clients() {
    let app = App::start(Backend::Sqlite).await;
    for (names, files) in [reflected!(v1, app.grpc), reflected!(v1alpha, app.grpc)] {
        assert!(names.iter().any(|name| name == SERVICE), "{names:?}");
        assert!(names.iter().any(|name| name == "grpc.health.v1.Health"), "{names:?}");
        let file = FileDescriptorProto::decode(files[0].as_slice()).unwrap();
        assert_eq!(file.service[0].method[0].name(), "Destroy");
        assert!(file.message_type.iter().any(|message| message.name() == "DestroyRequest"));
    }
}

#[tokio::test]
async fn a_message_that_does_not_decode_is_an_invalid_argument() {
    let app = App::start(Backend::Sqlite).await;
    // Field 1 as a number where a text belongs.
    let bad: http::Request<Body> = {
        let message = [8_u8, 1];
        let frame = [&[0, 0, 0, 0, 2][..], &message].concat();
        assert!(DestroyRequest::decode(&message[..]).is_err());
        http::Request::post(format!("{}/{SERVICE}/Destroy", app.grpc))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-user-id", "1")
            .body(Body::new(http_body_util::Full::from(frame)))
            .unwrap()
    };
    let answer = http().request(bad).await.unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(
        (status.code(), super::support::reason(&status).as_str()),
        (Code::InvalidArgument, "ID_INVALID")
    );
}
