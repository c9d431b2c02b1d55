//! The body of a request. It is read to its end before the response is sent: libcurl 7.88 drops an HTTP/2 response that is
//! followed by RST_STREAM(NO_ERROR), and over HTTP/1.1 a connection with unread data is reset.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header, request::Parts};
use tokio::{sync::Semaphore, time::timeout};

use super::Outcome;
use crate::{
    config::calls,
    domain::{DestroyError, EdgeError},
    net::body::{self, BodyError},
};

/// Reads the body of a request that is processed.
///
/// # Errors
/// The response to a body that is too large, is broken off, or for which there is no place.
pub async fn read(parts: &Parts, mut body: Body, large_bodies: &Semaphore) -> Result<Bytes, Outcome> {
    const TOO_LARGE: Outcome = Outcome::Refused(EdgeError::BodyTooLarge);
    if announced_length(&parts.headers).is_some_and(|length| length > calls::BODY_LIMIT as u64) {
        discard(parts, body).await;
        return Err(TOO_LARGE);
    }
    let mut whole = BytesMut::new();
    let read = match body::read_into(&mut body, &mut whole, calls::SMALL_BODY).await {
        Err(BodyError::TooLarge) => {
            let Ok(_place) = large_bodies.try_acquire() else {
                discard(parts, body).await;
                return Err(Outcome::Failed(DestroyError::Overloaded));
            };
            body::read_into(&mut body, &mut whole, calls::BODY_LIMIT).await
        }
        small => small,
    };
    match read {
        Ok(()) => Ok(whole.freeze()),
        Err(BodyError::TooLarge) => {
            drop(whole);
            discard(parts, body).await;
            Err(TOO_LARGE)
        }
        // The client is hardly there to receive the response.
        Err(BodyError::Incomplete) => Err(Outcome::Failed(DestroyError::DeadlineExceeded)),
    }
}

/// Reads and drops the body of a request that is refused, unless the client waits for `100 Continue` before it sends one.
pub async fn discard(parts: &Parts, mut body: Body) {
    let waits = parts.version < Version::HTTP_2 && parts.headers.contains_key(header::EXPECT);
    if waits || announced_length(&parts.headers).is_some_and(|length| length > calls::DISCARD_LIMIT) {
        return;
    }
    let mut left = calls::DISCARD_LIMIT;
    // In steps, each with a timeout of its own.
    while left > 0 {
        let step = body::discard(&mut body, calls::DISCARD_STEP);
        match timeout(calls::DISCARD_TIMEOUT, step).await {
            Ok(false) => left = left.saturating_sub(calls::DISCARD_STEP),
            Ok(true) | Err(_) => return,
        }
    }
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
