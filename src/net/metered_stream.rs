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

use super::{connection_table::ConnectionState, event_counter::EventCounter, frame_meter::FrameMeter};
use crate::config;

/// Reads a limited number of bytes in a turn, so that one connection does not hold up the others, and fails when the peer
/// floods the connection with frames.
#[derive(Debug)]
pub struct MeteredStream<IO> {
    io: IO,
    meter: FrameMeter,
    turn: ReadTurn,
    connection: Arc<ConnectionState>,
    floods: Arc<EventCounter>,
}

/// The bytes read since the connection's task was last polled.
#[derive(Clone, Debug, Default)]
pub struct ReadTurn(Arc<AtomicUsize>);

impl<IO> MeteredStream<IO> {
    /// `floods` counts the connections that are closed for their frames.
    pub fn new(io: IO, connection: Arc<ConnectionState>, floods: Arc<EventCounter>) -> (Self, ReadTurn) {
        let turn = ReadTurn::default();
        (Self { io, meter: FrameMeter::new(), turn: turn.clone(), connection, floods }, turn)
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
            this.floods.record();
            return Poll::Ready(Err(io::Error::other(error)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for MeteredStream<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, buffers)
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
