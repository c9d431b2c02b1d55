//! A connection's byte stream with limits on what a peer may send.

use std::{
    future, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    connection_table::ConnectionState,
    event_counter::ConnectionEvents,
    frame_meter::FrameMeter,
    frame_scanner::{FrameScanner, RST_STREAM},
};
use crate::config;

/// Reads a limited number of bytes in a turn, so that one connection does not hold up the others, and fails when the peer
/// floods the connection with frames.
#[derive(Debug)]
pub struct MeteredStream<IO> {
    io: IO,
    meter: FrameMeter,
    turn: ReadTurn,
    connection: Arc<ConnectionState>,
    events: Arc<ConnectionEvents>,
    sent: FrameScanner,
}

/// The bytes read since the connection's task was last polled.
#[derive(Clone, Debug, Default)]
pub struct ReadTurn(Arc<AtomicUsize>);

/// HTTP/2's error code for what violates the protocol.
const PROTOCOL_ERROR: u32 = 1;

impl<IO> MeteredStream<IO> {
    pub fn new(io: IO, connection: Arc<ConnectionState>, events: Arc<ConnectionEvents>) -> (Self, ReadTurn) {
        let turn = ReadTurn::default();
        let (meter, sent) = (FrameMeter::new(), FrameScanner::of_server());
        (Self { io, meter, turn: turn.clone(), connection, events, sent }, turn)
    }

    /// Counts the requests that h2 resets before they reach a service.
    fn count_resets(&mut self, sent: &[u8]) {
        self.sent.scan(sent, |frame| {
            if frame.kind == RST_STREAM && frame.error == PROTOCOL_ERROR {
                self.events.malformed.record();
            }
        });
    }
}

impl ReadTurn {
    /// Runs the future that reads the stream. Each time it is polled, a turn begins.
    pub async fn run<F: Future>(&self, mut reader: Pin<&mut F>) -> F::Output {
        future::poll_fn(|context| {
            self.0.store(0, Ordering::Relaxed);
            reader.as_mut().poll(context)
        })
        .await
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for MeteredStream<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn.0.load(Ordering::Relaxed) >= config::net::READ_TURN {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        this.turn.0.fetch_add(read.len(), Ordering::Relaxed);
        if let Err(error) = this.meter.record(read, this.connection.take_completed()) {
            this.events.floods.record();
            return Poll::Ready(Err(io::Error::other(error)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for MeteredStream<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(context, bytes))?;
        this.count_resets(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(context, buffers))?;
        let mut left = written;
        for buffer in buffers {
            let length = left.min(buffer.len());
            this.count_resets(buffer.get(..length).unwrap_or_default());
            left -= length;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
