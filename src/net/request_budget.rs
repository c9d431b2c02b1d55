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

use crate::{config, identity::client_network};

/// Limits the bytes of requests in flight: of all together, and of each client network. A compressed header block of a few
/// bytes can stand for many kilobytes, so a limit on the number of requests does not limit memory.
#[derive(Debug)]
pub struct RequestBudget {
    limit: usize,
    used: AtomicUsize,
    clients: Mutex<HashMap<IpAddr, Weak<ClientBudget>>>,
}

/// The share of one client network.
#[derive(Debug)]
pub struct ClientBudget {
    network: IpAddr,
    used: AtomicUsize,
    budget: Arc<RequestBudget>,
}

/// The bytes of one request, until this is dropped.
#[derive(Debug)]
pub struct RequestCharge {
    bytes: usize,
    client: Arc<ClientBudget>,
}

/// A response's body, which holds the charge of its request.
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

    /// Returns the share of the network of this address.
    pub fn client(self: &Arc<Self>, address: IpAddr) -> Arc<ClientBudget> {
        let network = client_network(address);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&network).and_then(Weak::upgrade) {
            return client;
        }
        let client = Arc::new(ClientBudget { network, used: AtomicUsize::new(0), budget: self.clone() });
        clients.insert(network, Arc::downgrade(&client));
        client
    }
}

impl ClientBudget {
    /// Charges the request; none where it would exceed a limit.
    pub fn charge<B>(self: &Arc<Self>, request: &Request<B>) -> Option<RequestCharge> {
        let bytes = request_bytes(request);
        if !take(&self.used, bytes, self.budget.limit / config::net::REQUEST_MEMORY_CLIENT_SHARE) {
            return None;
        }
        if !take(&self.budget.used, bytes, self.budget.limit) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(RequestCharge { bytes, client: self.clone() })
    }
}

impl<B> ChargedBody<B> {
    pub const fn new(body: B, charge: Option<RequestCharge>) -> Self {
        Self { body, _charge: charge }
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

impl Drop for RequestCharge {
    fn drop(&mut self) {
        self.client.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.client.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for ClientBudget {
    fn drop(&mut self) {
        let mut clients = self.budget.clients.lock().unwrap_or_else(PoisonError::into_inner);
        // A new connection of the network may have replaced it already.
        if clients.get(&self.network).is_some_and(|client| client.strong_count() == 0) {
            clients.remove(&self.network);
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
    use std::net::IpAddr;

    use http::Request;

    use super::{ChargedBody, RequestBudget};
    use crate::config::net::{HEADER_OVERHEAD, REQUEST_MEMORY_CLIENT_SHARE, REQUEST_OVERHEAD};

    #[test]
    fn a_client_has_a_share_and_gets_it_back() {
        let request = Request::get("/a").header("x-a", "b").body(()).expect("a request");
        let bytes = REQUEST_OVERHEAD + "GET/a".len() + HEADER_OVERHEAD + "x-ab".len();
        let budget = RequestBudget::new(bytes * 2 * REQUEST_MEMORY_CLIENT_SHARE);
        let client = |text: &str| budget.client(text.parse::<IpAddr>().expect("an address"));
        let (one, other) = (client("2001:db8::1"), client("2001:db8::2"));
        let first = one.charge(&request).expect("room");
        let second = other.charge(&request).expect("room");
        assert!(one.charge(&request).is_none(), "the network has its share");
        let elsewhere = client("192.0.2.1").charge(&request).expect("room for others");
        drop(ChargedBody::new((), Some(first)));
        let third = one.charge(&request).expect("room again");
        drop((one, other, second, elsewhere, third));
        assert!(budget.clients.lock().expect("no panic").is_empty());
        assert_eq!(budget.used.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[test]
    fn every_part_of_a_request_is_charged() {
        let charged = |method: &str, uri: &str| {
            let budget = RequestBudget::new(1 << 20);
            let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            let client = budget.client([192, 0, 2, 1].into());
            client.charge(&request).expect("room").bytes
        };
        let plain = charged("GET", "/a");
        assert_eq!(charged("PROPFIND", "/a"), plain + 5);
        assert_eq!(charged("GET", "/a?b=c"), plain + 4);
        assert_eq!(charged("GET", "http://example.org:80/a"), plain + 14);
    }

    #[test]
    fn all_clients_together_have_a_limit() {
        let request = Request::get("/").body(()).expect("a request");
        let budget = RequestBudget::new((REQUEST_OVERHEAD + "GET/".len()) * REQUEST_MEMORY_CLIENT_SHARE);
        let charges: Vec<_> =
            (1..=5_u8).map(|number| budget.client([192, 0, 2, number].into()).charge(&request)).collect();
        let charged: Vec<_> = charges.iter().map(Option::is_some).collect();
        assert_eq!(charged, [true, true, true, true, false]);
    }
}
