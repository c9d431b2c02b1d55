//! What the HTTP/2 frames of a connection cost, apart from the calls that they belong to.

use std::time::Duration;

use tokio::time::Instant;

use super::frame_scanner::{DATA, Frame, FrameScanner, RST_STREAM};
use crate::config::net;

/// Counts the frames that a peer sends, and finds out when they are too many for the calls that it makes: a flood of
/// WINDOW_UPDATE, PING, SETTINGS or PRIORITY, of tiny DATA, or of requests that are reset at once. A leaky bucket: frames
/// fill it, completed calls and time empty it.
#[derive(Debug)]
pub struct FrameMeter {
    scanner: FrameScanner,
    level: u32,
    emptied: Instant,
}

/// The time in which one frame leaks.
const FRAME_INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / net::FRAMES_PER_SECOND as u64);

/// The peer has sent too many frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many HTTP/2 frames for the calls made")]
pub struct TooManyFrames;

impl FrameMeter {
    pub fn new() -> Self {
        Self { scanner: FrameScanner::of_client(), level: 0, emptied: Instant::now() }
    }

    /// Counts the frames in these bytes, after `completed` further calls.
    ///
    /// # Errors
    /// The bucket is full.
    pub fn record(&mut self, bytes: &[u8], completed: u32) -> Result<(), TooManyFrames> {
        let mut level = self.level.saturating_sub(completed.saturating_mul(net::FRAMES_PER_CALL));
        self.scanner.scan(bytes, |frame| level = level.saturating_add(cost(frame)));
        self.level = level;
        if self.level <= net::FRAME_BURST {
            return Ok(());
        }
        // The time is taken only here: few connections ever reach this.
        let leaked = self.emptied.elapsed().as_nanos() / FRAME_INTERVAL.as_nanos();
        let leaked = u32::try_from(leaked).unwrap_or(u32::MAX);
        // Not to the present: the time that was too short for another frame counts the next time.
        self.emptied += FRAME_INTERVAL * leaked;
        self.level = self.level.saturating_sub(leaked);
        if self.level <= net::FRAME_BURST { Ok(()) } else { Err(TooManyFrames) }
    }
}

/// What a frame costs, in frames of the smallest kind.
const fn cost(frame: Frame) -> u32 {
    match frame.kind {
        // Flow control bounds the bytes of bodies, and not the number of frames.
        DATA if frame.length >= net::FRAME_BYTES => 0,
        DATA => 1,
        // More than a completed call allows: it makes work, and lets the peer exceed the limit of streams.
        RST_STREAM => net::FRAMES_PER_CALL + 2,
        _ => 1 + frame.length / net::FRAME_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const HEADERS: u8 = 1;
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
    async fn frames_cost_what_they_make_of_work() {
        assert_eq!(meter_after(&[frame(HEADERS, 200), frame(DATA, 5), frame(DATA, 0)].concat()).level, 3);
        assert_eq!(meter_after(&[0, 1, 0, DATA, 0, 0, 0, 0, 1]).level, 0);
        assert_eq!(meter_after(&[0, 2, 0, HEADERS, 4, 0, 0, 0, 1]).level, 3);
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

    /// Each step of 4 ms allows 1.6 frames, and five steps eight.
    #[tokio::test(start_paused = true)]
    async fn parts_of_a_frame_are_leaked_too() {
        let mut meter = meter_after(&frame(PING, 8).repeat(net::FRAME_BURST as usize));
        for frames in [1, 2, 1, 2, 2].repeat(20) {
            tokio::time::advance(Duration::from_millis(4)).await;
            assert_eq!(meter.record(&frame(PING, 8).repeat(frames), 0), Ok(()));
        }
        assert_eq!(meter.record(&frame(PING, 8), 0), Err(TooManyFrames));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_reset_at_once_are_a_flood_even_if_they_complete() {
        let pair = [frame(HEADERS, 100), frame(RST_STREAM, 4)].concat();
        let mut meter = meter_after(&[]);
        let ended = (0..2 * net::FRAME_BURST).find(|_| meter.record(&pair, 1).is_err());
        assert!(ended.is_some());
    }
}
