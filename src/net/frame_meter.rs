//! What the HTTP/2 frames of a connection cost, apart from the calls that they belong to.

use tokio::time::Instant;

use crate::config::net;

/// What every HTTP/2 client sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
/// The bytes of a frame before its payload: length (3), type, flags and stream (4).
const HEAD: usize = 9;

/// Counts the frames that a peer sends, and finds out when they are too many for the calls that it makes: a flood of
/// WINDOW_UPDATE, PING, SETTINGS or PRIORITY, of tiny DATA, or of requests that are reset at once. A leaky bucket: frames
/// fill it, completed calls and time empty it.
#[derive(Debug)]
pub struct FrameMeter {
    position: Position,
    level: u32,
    emptied: Instant,
}

/// The peer has sent too many frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many HTTP/2 frames for the calls made")]
pub struct TooManyFrames;

/// Where in the byte stream the next byte belongs.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// In the preface, after so many bytes of it.
    Preface(usize),
    /// In the head of a frame: the bytes of it so far, and their number.
    Head([u8; HEAD], usize),
    /// In a payload that has so many bytes left.
    Payload(usize),
    /// In a connection of another protocol, which has no frames.
    Other,
}

impl FrameMeter {
    pub fn new() -> Self {
        Self { position: Position::Preface(0), level: 0, emptied: Instant::now() }
    }

    /// Counts the frames that begin in these bytes, after `completed` further calls.
    ///
    /// # Errors
    /// The bucket is full.
    pub fn record(&mut self, bytes: &[u8], completed: u32) -> Result<(), TooManyFrames> {
        self.level = self.level.saturating_sub(completed.saturating_mul(net::FRAMES_PER_CALL));
        self.scan(bytes);
        if self.level <= net::FRAME_BURST {
            return Ok(());
        }
        // The time is taken only here: few connections ever reach this.
        let seconds = self.emptied.elapsed().as_secs_f64();
        self.emptied = Instant::now();
        // A cast from a float saturates.
        self.level = self.level.saturating_sub((seconds * f64::from(net::FRAMES_PER_SECOND)) as u32);
        if self.level <= net::FRAME_BURST { Ok(()) } else { Err(TooManyFrames) }
    }

    fn scan(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.position {
                Position::Other => return,
                Position::Preface(length) => {
                    self.position = match *length + 1 {
                        PREFACE_LENGTH if PREFACE.get(*length) == Some(&byte) => Position::head(),
                        next if PREFACE.get(*length) == Some(&byte) => Position::Preface(next),
                        _ => Position::Other,
                    };
                    bytes = rest;
                }
                Position::Payload(left) => {
                    let length = bytes.len().min(*left);
                    bytes = bytes.get(length..).unwrap_or_default();
                    *left -= length;
                    if *left == 0 {
                        self.position = Position::head();
                    }
                }
                Position::Head(_, 0) if bytes.len() >= HEAD => {
                    if let Some((head, rest)) = bytes.split_first_chunk() {
                        self.begin_frame(*head);
                        bytes = rest;
                    }
                }
                Position::Head(head, length) => {
                    if let Some(slot) = head.get_mut(*length) {
                        *slot = byte;
                    }
                    *length += 1;
                    bytes = rest;
                    if *length == HEAD {
                        let head = *head;
                        self.begin_frame(head);
                    }
                }
            }
        }
    }

    fn begin_frame(&mut self, head: [u8; HEAD]) {
        let [high, middle, low, kind, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        self.level = self.level.saturating_add(cost(kind, length));
        self.position = if length == 0 { Position::head() } else { Position::Payload(length as usize) };
    }
}

const PREFACE_LENGTH: usize = PREFACE.len();

impl Position {
    const fn head() -> Self {
        Self::Head([0; HEAD], 0)
    }
}

/// What a frame costs, in frames of the smallest kind.
const fn cost(kind: u8, length: u32) -> u32 {
    match kind {
        // Flow control bounds the bytes of bodies, and not the number of frames.
        DATA if length >= net::FRAME_BYTES => 0,
        DATA => 1,
        // More than a completed call is worth: it makes work, and lets the peer exceed the limit of streams.
        RST_STREAM => net::FRAMES_PER_CALL + 2,
        _ => 1 + length / net::FRAME_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, 0, 0, 0, 0, 1][..], &vec![9; usize::from(length)]].concat()
    }

    fn meter_after(bytes: &[u8]) -> FrameMeter {
        let mut meter = FrameMeter::new();
        assert_eq!(meter.record(PREFACE, 0), Ok(()));
        assert_eq!(meter.record(bytes, 0), Ok(()));
        meter
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_counted_however_they_are_split() {
        let bytes = [frame(1, 200), frame(DATA, 5), frame(DATA, 0), frame(PING, 8), frame(4, 0)].concat();
        assert_eq!(meter_after(&bytes).level, 5);
        for size in 1..bytes.len() {
            let mut meter = FrameMeter::new();
            for piece in [&PREFACE[..], &bytes].concat().chunks(size) {
                assert_eq!(meter.record(piece, 0), Ok(()));
            }
            assert_eq!(meter.level, 5, "{size} bytes at a time");
        }
        // A large DATA frame, and a large HEADERS frame.
        assert_eq!(meter_after(&[0, 1, 0, DATA, 0, 0, 0, 0, 1]).level, 0);
        assert_eq!(meter_after(&[0, 2, 0, 1, 4, 0, 0, 0, 1]).level, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_an_error_until_calls_or_time_make_up_for_it() {
        let burst = frame(PING, 8).repeat(net::FRAME_BURST as usize);
        let one = frame(PING, 8);
        assert_eq!(meter_after(&burst).record(&one, 0), Err(TooManyFrames));
        assert_eq!(meter_after(&burst).record(&one, 1), Ok(()));
        let mut meter = meter_after(&burst);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(meter.record(&one, 0), Ok(()));
        assert_eq!(meter.record(&burst, 0), Err(TooManyFrames));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_reset_at_once_are_a_flood_even_if_they_complete() {
        let pair = [frame(1, 100), frame(RST_STREAM, 4)].concat();
        let mut meter = meter_after(&[]);
        let ended = (0..2 * net::FRAME_BURST).find(|_| meter.record(&pair, 1).is_err());
        assert!(ended.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn http_1_has_no_frames() {
        let mut meter = FrameMeter::new();
        for _ in 0..2 * net::FRAME_BURST {
            assert_eq!(meter.record(b"POST / HTTP/1.1\r\n\r\n", 0), Ok(()));
        }
    }
}
