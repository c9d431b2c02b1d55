//! The body of a request. It is read to its end before the response is sent: libcurl 7.88 drops an HTTP/2 response that is
//! followed by RST_STREAM(NO_ERROR), and over HTTP/1.1 a connection with unread data is reset.

use std::net::IpAddr;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header, request::Parts};
use tokio::time::timeout;

use super::Outcome;
use crate::{
    collections::Admission,
    config::calls,
    domain::{DestroyError, EdgeError},
    net::body::{self, BodyError},
};

/// A body that has not been read yet, or not to its end.
pub struct RequestBody {
    body: Body,
    announced: Option<u64>,
    /// Whether the client sends nothing before it has received `100 Continue`.
    waits_to_continue: bool,
}

impl RequestBody {
    pub fn new(parts: &Parts, body: Body) -> Self {
        let waits_to_continue = parts.version < Version::HTTP_2 && parts.headers.contains_key(header::EXPECT);
        Self { body, announced: announced_length(&parts.headers), waits_to_continue }
    }

    /// Reads it whole. `large` has the places for bodies over [`calls::SMALL_BODY`].
    ///
    /// # Errors
    /// The outcome of a request whose body is too large, is incomplete, or for which there is no place.
    pub async fn read(&mut self, large: &Admission, client: Option<IpAddr>) -> Result<Bytes, Outcome> {
        const TOO_LARGE: Outcome = Outcome::Refused(EdgeError::BodyTooLarge);
        if self.announced.is_some_and(|length| length > calls::BODY_LIMIT as u64) {
            return Err(TOO_LARGE);
        }
        self.waits_to_continue = false;
        // Of the size that it needs: a buffer that grows doubles.
        let expected = self.announced.unwrap_or_default().min(calls::SMALL_BODY as u64);
        let mut whole = BytesMut::with_capacity(usize::try_from(expected).unwrap_or_default());
        let read = match body::read_into(&mut self.body, &mut whole, calls::SMALL_BODY).await {
            Err(BodyError::TooLarge) => {
                let Ok(_place) = large.enter(client) else {
                    return Err(Outcome::Failed(DestroyError::Overloaded));
                };
                body::read_into(&mut self.body, &mut whole, calls::BODY_LIMIT).await
            }
            small => small,
        };
        match read {
            Ok(()) => Ok(whole.freeze()),
            Err(BodyError::TooLarge) => Err(TOO_LARGE),
            Err(BodyError::Incomplete) => Err(Outcome::Cancelled),
        }
    }

    /// Reads and drops what is left of it, within [`calls::DISCARD_LIMIT`] and [`calls::DISCARD_TIMEOUT`]. A client that waits
    /// for `100 Continue` sends nothing, and one that sends nothing for [`calls::DISCARD_IDLE_TIMEOUT`] is not waited for.
    pub async fn discard(&mut self) {
        if self.waits_to_continue || self.announced.is_some_and(|length| length > calls::DISCARD_LIMIT) {
            return;
        }
        let discarded = async {
            for _ in 0..calls::DISCARD_LIMIT / calls::DISCARD_STEP {
                let step = body::discard(&mut self.body, calls::DISCARD_STEP);
                match timeout(calls::DISCARD_IDLE_TIMEOUT, step).await {
                    Ok(false) => {}
                    Ok(true) | Err(_) => return,
                }
            }
        };
        let _elapsed = timeout(calls::DISCARD_TIMEOUT, discarded).await;
    }
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
