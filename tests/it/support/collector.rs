//! A collector that keeps the spans it receives.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Notify,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, codec::CompressionEncoding, metadata::MetadataMap};

use super::pki::{Authority, Leaf};

/// One span, as the tests compare it.
#[derive(Clone, Debug)]
pub struct Received {
    /// Attributes of the process.
    pub resource: BTreeMap<String, String>,
    pub trace: String,
    pub id: String,
    /// Empty where there is none.
    pub parent: String,
    pub state: String,
    pub name: String,
    pub kind: SpanKind,
    pub attributes: BTreeMap<String, String>,
    /// The spans that it links to.
    pub links: Vec<String>,
    pub is_error: bool,
    pub nanoseconds: (u64, u64),
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Spans {
    received: Arc<Mutex<(Vec<Received>, Vec<MetadataMap>)>>,
    arrived: Arc<Notify>,
}

pub struct Collector {
    pub url: String,
    pub spans: Spans,
    accepting: JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn on(listener: TcpListener) -> Self {
        Self::accept(listener, None)
    }

    /// Over TLS, for clients with a certificate of this authority.
    pub async fn start_tls(authority: &Authority, leaf: &Leaf) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::accept(listener, Some(TlsAcceptor::from(Arc::new(tls))))
    }

    fn accept(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let spans = Spans::default();
        let shared = spans.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (spans, tls) = (shared.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, spans).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, spans).await,
                            Err(error) => eprintln!("handshake with the collector: {error}"),
                        },
                    }
                });
            }
        });
        Self { url, spans, accepting }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, spans: Spans) {
    let server = TraceServiceServer::new(spans).accept_compressed(CompressionEncoding::Gzip);
    // A connection that the client breaks ends in an error.
    let _ended = Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(server))
        .await;
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        {
            let mut received = self.received.lock().unwrap();
            received.1.push(metadata);
            for of_resource in request.resource_spans {
                let resource = texts(&of_resource.resource.unwrap_or_default().attributes);
                let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
                received.0.extend(spans.map(|span| Received::new(resource.clone(), &span)));
            }
        }
        self.arrived.notify_waiters();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Spans {
    pub fn all(&self) -> Vec<Received> {
        self.received.lock().unwrap().0.clone()
    }

    /// The metadata of each export.
    pub fn exports(&self) -> Vec<MetadataMap> {
        self.received.lock().unwrap().1.clone()
    }

    /// Waits until there are so many.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        let arrived = async {
            loop {
                let next = self.arrived.notified();
                if self.all().len() >= count {
                    return;
                }
                next.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), arrived).await;
        waited.unwrap_or_else(|_| panic!("not {count}: {:#?}", self.all()));
        self.all()
    }
}

impl Received {
    fn new(resource: BTreeMap<String, String>, span: &Span) -> Self {
        Self {
            resource,
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            state: span.trace_state.clone(),
            name: span.name.clone(),
            kind: span.kind(),
            attributes: texts(&span.attributes),
            links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
            is_error: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
            nanoseconds: (span.start_time_unix_nano, span.end_time_unix_nano),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |attribute: &KeyValue| attribute.value.as_ref()?.value.as_ref().map(text);
    let pairs = attributes.iter().map(|pair| (pair.key.clone(), value(pair).unwrap_or_default()));
    pairs.collect()
}
