//! Finds the frames in the bytes of an HTTP/2 connection.

/// What every HTTP/2 client sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The bytes of a frame before its payload: length (3), type, flags and stream (4).
const HEAD: usize = 9;
/// The same, and the payload of RST_STREAM: an error code.
const RESET: usize = HEAD + 4;
pub const DATA: u8 = 0;
pub const RST_STREAM: u8 = 3;

/// Follows one direction of a connection.
#[derive(Debug)]
pub struct FrameScanner(Position);

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    /// The bytes of the payload.
    pub length: u32,
    /// The error code of RST_STREAM; 0 in other frames.
    pub error: u32,
}

/// Where in the byte stream the next byte belongs.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// In the client's preface, after so many bytes of it.
    Preface(usize),
    /// Before the first byte of a server.
    Start,
    /// In the head of a frame: the bytes of it so far, and their number.
    Head([u8; RESET], usize),
    /// In a payload that has so many bytes left.
    Payload(usize),
    /// In a connection of another protocol, which has no frames.
    Other,
}

impl FrameScanner {
    /// For the bytes that a client sends.
    pub const fn of_client() -> Self {
        Self(Position::Preface(0))
    }

    /// For the bytes that a server sends.
    pub const fn of_server() -> Self {
        Self(Position::Start)
    }

    /// Calls `found` for each frame whose head ends in these bytes.
    pub fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame)) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.0 {
                Position::Other => return,
                // Every response of HTTP/1 begins with its name, and no frame is as large as that letter would mean.
                Position::Start => self.0 = if byte == b'H' { Position::Other } else { Position::HEAD },
                Position::Preface(length) => {
                    let next = *length + 1;
                    self.0 = match PREFACE.get(*length) == Some(&byte) {
                        true if next == PREFACE.len() => Position::HEAD,
                        true => Position::Preface(next),
                        false => Position::Other,
                    };
                    bytes = rest;
                }
                Position::Payload(left) => {
                    let length = bytes.len().min(*left);
                    bytes = bytes.get(length..).unwrap_or_default();
                    *left -= length;
                    if *left == 0 {
                        self.0 = Position::HEAD;
                    }
                }
                Position::Head(head, length) => {
                    if *length == 0
                        && let Some((whole, rest)) = bytes.split_first_chunk::<HEAD>()
                        && let [high, middle, low, kind, ..] = *whole
                        && kind != RST_STREAM
                    {
                        let length = u32::from_be_bytes([0, high, middle, low]);
                        self.0 = Position::after_head(length);
                        found(Frame { kind, length, error: 0 });
                        bytes = rest;
                        continue;
                    }
                    if let Some(slot) = head.get_mut(*length) {
                        *slot = byte;
                    }
                    *length += 1;
                    bytes = rest;
                    if let Some((frame, left)) = whole_head(head, *length) {
                        self.0 = Position::after_head(left);
                        found(frame);
                    }
                }
            }
        }
    }
}

/// The frame once its head is whole, with the bytes left of its payload.
fn whole_head(head: &[u8; RESET], length: usize) -> Option<(Frame, u32)> {
    let [high, middle, low, kind, _flags, _, _, _, _, error @ ..] = *head;
    let payload = u32::from_be_bytes([0, high, middle, low]);
    match (length, kind, payload) {
        (RESET, ..) => Some((Frame { kind, length: payload, error: u32::from_be_bytes(error) }, 0)),
        // A reset of another length is malformed, and ends the connection.
        (HEAD, RST_STREAM, 4) => None,
        (HEAD, ..) => Some((Frame { kind, length: payload, error: 0 }, payload)),
        _ => None,
    }
}

impl Position {
    const HEAD: Self = Self::Head([0; RESET], 0);

    const fn after_head(length: u32) -> Self {
        if length == 0 { Self::HEAD } else { Self::Payload(length as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, 0, 0, 0, 0, 1][..], &vec![9; usize::from(length)]].concat()
    }

    fn found(mut scanner: FrameScanner, pieces: &mut dyn Iterator<Item = &[u8]>) -> Vec<(u8, u32, u32)> {
        let mut found = Vec::new();
        pieces.for_each(|piece| scanner.scan(piece, |it| found.push((it.kind, it.length, it.error))));
        found
    }

    #[test]
    fn frames_are_found_however_they_are_split() {
        let reset = [0, 0, 4, RST_STREAM, 0, 0, 0, 0, 1, 0, 0, 0, 8];
        let frames = [frame(1, 200), frame(DATA, 5), reset.to_vec(), frame(DATA, 0), frame(4, 0)].concat();
        let expected = [(1, 200, 0), (DATA, 5, 0), (RST_STREAM, 4, 8), (DATA, 0, 0), (4, 0, 0)];
        let received = [&PREFACE[..], &frames].concat();
        for size in 1..=received.len() {
            assert_eq!(found(FrameScanner::of_client(), &mut received.chunks(size)), expected, "{size}");
            assert_eq!(found(FrameScanner::of_server(), &mut frames.chunks(size)), expected, "{size}");
        }
    }

    #[test]
    fn http_1_has_no_frames() {
        let request = [&b"PRI * HTTP/1.1\r\n\r\n"[..], &frame(1, 2)].concat();
        assert_eq!(found(FrameScanner::of_client(), &mut request.chunks(7)), []);
        let response = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &frame(1, 2)].concat();
        assert_eq!(found(FrameScanner::of_server(), &mut response.chunks(7)), []);
    }
}
