//! The memory that decoded requests may hold, over all connections.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use http::Request;
use hyper::body::{Body, Frame, SizeHint};

use super::source::Source;
use crate::config;

/// Limits the bytes of requests in flight: of all together, and of each client network. A compressed header block of a few
/// bytes can stand for many kilobytes, so a limit on the number of requests does not limit memory.
#[derive(Debug)]
pub struct RequestBudget {
    limit: usize,
    used: AtomicUsize,
    clients: Mutex<HashMap<IpAddr, Weak<ClientBudget>>>,
}

/// The share of one client network, or of one connection of a proxy.
#[derive(Debug)]
pub struct ClientBudget {
    /// None for a proxy.
    network: Option<IpAddr>,
    limit: usize,
    used: AtomicUsize,
    budget: Arc<RequestBudget>,
}

/// The bytes of one request, until this is dropped.
#[derive(Debug)]
pub struct RequestCharge {
    bytes: usize,
    client: Arc<ClientBudget>,
}

/// A response's body, which holds a charge for its stream and its task: a peer that does not read it keeps both. That ends
/// when the connection is closed, which is idle then and so the first to be evicted; its age ends it at the latest.
#[derive(Debug)]
pub struct ChargedBody<B> {
    body: B,
    _charge: Option<RequestCharge>,
}

impl RequestBudget {
    /// `limit` is in bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), clients: Mutex::default() })
    }

    /// Returns the share of a connection's source. A proxy may use the whole budget.
    pub fn client(self: &Arc<Self>, source: Source) -> Arc<ClientBudget> {
        let share = |network, limit| {
            Arc::new(ClientBudget { network, limit, used: AtomicUsize::new(0), budget: self.clone() })
        };
        let Source::Client(network) = source else { return share(None, self.limit) };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&network).and_then(Weak::upgrade) {
            return client;
        }
        let client = share(Some(network), self.limit / config::net::REQUEST_MEMORY_CLIENT_SHARE);
        clients.insert(network, Arc::downgrade(&client));
        client
    }
}

impl ClientBudget {
    /// Charges the request; none where it would exceed a limit.
    pub fn charge<B>(self: &Arc<Self>, request: &Request<B>) -> Option<RequestCharge> {
        let bytes = request_bytes(request);
        if !take(&self.used, bytes, self.limit) {
            return None;
        }
        if !take(&self.budget.used, bytes, self.budget.limit) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(RequestCharge { bytes, client: self.clone() })
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl<B> ChargedBody<B> {
    /// Gives back what was charged for the method, URI and headers of the request: the call is finished.
    pub fn new(body: B, charge: Option<RequestCharge>) -> Self {
        Self { body, _charge: charge.map(|charge| charge.reduce_to(config::net::REQUEST_OVERHEAD)) }
    }
}

impl<B: Body + Unpin> Body for ChargedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl RequestCharge {
    /// Gives back all but `bytes`.
    fn reduce_to(mut self, bytes: usize) -> Self {
        let left = self.bytes.min(bytes);
        self.client.give_back(self.bytes - left);
        self.bytes = left;
        self
    }
}

impl Drop for RequestCharge {
    fn drop(&mut self) {
        self.client.give_back(self.bytes);
    }
}

impl Drop for ClientBudget {
    fn drop(&mut self) {
        let Some(network) = &self.network else { return };
        let mut clients = self.budget.clients.lock().unwrap_or_else(PoisonError::into_inner);
        // A new connection of the network may have replaced it already.
        if clients.get(network).is_some_and(|client| client.strong_count() == 0) {
            clients.remove(network);
        }
    }
}

fn request_bytes<B>(request: &Request<B>) -> usize {
    let uri = request.uri();
    let line = request.method().as_str().len()
        + uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    let fields: usize = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + config::net::HEADER_OVERHEAD)
        .sum();
    config::net::REQUEST_OVERHEAD + line + fields
}

/// Adds to the counter unless that would exceed the limit.
fn take(used: &AtomicUsize, bytes: usize, limit: usize) -> bool {
    if used.fetch_add(bytes, Ordering::Relaxed) + bytes <= limit {
        return true;
    }
    used.fetch_sub(bytes, Ordering::Relaxed);
    false
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use std::sync::atomic::Ordering;

    use http::Request;

    use super::{ChargedBody, RequestBudget, Source};
    use crate::config::net::{HEADER_OVERHEAD, REQUEST_MEMORY_CLIENT_SHARE, REQUEST_OVERHEAD};

    #[test]
    fn a_client_has_a_share_and_gets_it_back() {
        let request = Request::get("/a").header("x-a", "b").body(()).expect("a request");
        let bytes = REQUEST_OVERHEAD + "GET/a".len() + HEADER_OVERHEAD + "x-ab".len();
        let budget = RequestBudget::new(bytes * 2 * REQUEST_MEMORY_CLIENT_SHARE);
        let client = |text: &str| budget.client(Source::of(text.parse().expect("an address"), &[]));
        let (one, other) = (client("2001:db8::1"), client("2001:db8::2"));
        let first = one.charge(&request).expect("room");
        let second = other.charge(&request).expect("room");
        assert!(one.charge(&request).is_none(), "the network has its share");
        let elsewhere = client("192.0.2.1").charge(&request).expect("room for others");
        drop(ChargedBody::new((), Some(first)));
        let third = one.charge(&request).expect("room again");
        drop((one, other, second, elsewhere, third));
        assert!(budget.clients.lock().expect("no panic").is_empty());
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn every_part_of_a_request_is_charged() {
        let charged = |method: &str, uri: &str| {
            let budget = RequestBudget::new(1 << 20);
            let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            let client = budget.client(Source::Client([192, 0, 2, 1].into()));
            client.charge(&request).expect("room").bytes
        };
        let plain = charged("GET", "/a");
        assert_eq!(charged("PROPFIND", "/a"), plain + 5);
        assert_eq!(charged("GET", "/a?b=c"), plain + 4);
        assert_eq!(charged("GET", "http://example.org:80/a"), plain + 14);
    }

    #[test]
    fn a_response_that_is_not_read_holds_no_headers() {
        let budget = RequestBudget::new(1 << 20);
        let client = budget.client(Source::Client([192, 0, 2, 1].into()));
        let request = Request::get("/a?b=c").header("x-a", "b".repeat(8192)).body(()).expect("a request");
        let response = ChargedBody::new((), client.charge(&request));
        let used = [&client.used, &budget.used].map(|used| used.load(Ordering::Relaxed));
        assert_eq!(used, [REQUEST_OVERHEAD; 2]);
        drop(response);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_proxy_may_use_the_whole_budget() {
        let request = Request::get("/").body(()).expect("a request");
        let budget = RequestBudget::new((REQUEST_OVERHEAD + "GET/".len()) * 3);
        let (one, other) = (budget.client(Source::Proxy), budget.client(Source::Proxy));
        let charges = [&one, &one, &other, &other].map(|connection| connection.charge(&request));
        let charged: Vec<_> = charges.iter().map(Option::is_some).collect();
        assert_eq!(charged, [true, true, true, false]);
        assert!(budget.clients.lock().expect("no panic").is_empty());
    }

    #[test]
    fn all_clients_together_have_a_limit() {
        let request = Request::get("/").body(()).expect("a request");
        let budget = RequestBudget::new((REQUEST_OVERHEAD + "GET/".len()) * REQUEST_MEMORY_CLIENT_SHARE);
        let charges: Vec<_> = (1..=5_u8)
            .map(|number| budget.client(Source::Client([192, 0, 2, number].into())).charge(&request))
            .collect();
        let charged: Vec<_> = charges.iter().map(Option::is_some).collect();
        assert_eq!(charged, [true, true, true, true, false]);
    }
}
