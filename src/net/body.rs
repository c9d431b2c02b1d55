//! Request bodies in one buffer, however they are split into frames.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;

/// Why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// It is longer than the limit. The rest is still to be read.
    TooLarge,
    /// The stream or the connection ended before the body did.
    Incomplete,
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// The body is too large, or did not arrive completely.
pub async fn read<B>(body: &mut B, limit: usize) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let Some(frame) = body.frame().await else { return Ok(Bytes::new()) };
    let first = frame.map_err(|_broken| BodyError::Incomplete)?.into_data().unwrap_or_default();
    // Most bodies are one piece, which needs no copy.
    if Pin::new(&mut *body).is_end_stream() && first.len() <= limit {
        return Ok(first);
    }
    let mut whole = BytesMut::from(first);
    read_into(body, &mut whole, limit).await?;
    Ok(whole.freeze())
}

/// Reads what is left of a body into `whole`, which may hold `limit` bytes then. Pieces are copied together: each on its own
/// would keep the whole read buffer of its connection in memory.
///
/// # Errors
/// As [`read`]. Of a body that is too large, `whole` has what was received so far.
pub async fn read_into<B>(body: &mut B, whole: &mut BytesMut, limit: usize) -> Result<(), BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    while whole.len() <= limit {
        let Some(frame) = body.frame().await else { return Ok(()) };
        if let Ok(data) = frame.map_err(|_broken| BodyError::Incomplete)?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Err(BodyError::TooLarge)
}

/// Reads and drops at least `limit` bytes of a body, or all of it. Returns whether it has ended.
pub async fn discard<B>(body: &mut B, limit: u64) -> bool
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut discarded = 0;
    while discarded < limit {
        let Some(Ok(frame)) = body.frame().await else { return true };
        discarded += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    false
}
