//! As much of HTTP/2's client side as a benchmark needs. It shares the machine with the service it measures, so what
//! it spends is missing there: a whole client spends as much on a call as the service does.
//!
//! One connection carries many callers in one task. Whatever came in one read is answered by one write.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use loona_hpack::Decoder;
use tokio::{
    io::AsyncReadExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Instant,
};

use crate::Result;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// PADDED and PRIORITY, which hyper does not use.
const UNUSED: u8 = 0x28;
/// HPACK's first free index behind its static table.
const DYNAMIC: usize = 62;
/// What we let the server send: no benchmark gets that far.
const OUR_WINDOW: u32 = (1 << 31) - 65_536;

/// The side that asks. Whoever asks and whoever reads share it within one thread.
pub struct Sender {
    stream: OwnedWriteHalf,
    output: Vec<u8>,
    next: u32,
    /// Bytes that the server still lets us send.
    window: i64,
    settled: bool,
    first_head_sent: bool,
    open: Vec<Open>,
    blocks: Blocks,
}

/// The server's header blocks, in the order in which they come.
struct Blocks {
    answers: Answers,
    decoder: Decoder<'static>,
    /// Blocks that only point into HPACK's table, and what they mean for as long as it does not change: most answers are
    /// the same few bytes.
    known: HashMap<Vec<u8>, Rc<Fields>>,
}

/// What a connection's answers are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// The server may put their headers into HPACK's table, as it does for every real client.
    Alike,
    /// Each has headers of its own, and to decode them all would cost more than everything else here. So the server gets
    /// no table, and they stay encoded.
    Unique,
}

/// The fields of a header block, or of trailers.
#[derive(Debug)]
pub enum Fields {
    Decoded(Vec<(String, String)>),
    Encoded(Vec<u8>),
}

/// The side that reads the answers.
pub struct Receiver {
    stream: OwnedReadHalf,
    input: Vec<u8>,
}

/// A call that waits for its answer.
struct Open {
    stream: u32,
    caller: usize,
    sent: Instant,
    head: Option<Rc<Fields>>,
    body: Vec<u8>,
}

/// A call with its answer.
pub struct Answered {
    pub caller: usize,
    pub sent: Instant,
    pub head: Rc<Fields>,
    pub body: Vec<u8>,
    /// The last fields: the head's where there was nothing behind it.
    pub trailers: Rc<Fields>,
}

/// The headers of a request that are the same for every call. The first request on a connection puts them into HPACK's
/// table, the others point there, as every real client does.
pub struct Head {
    first: Vec<u8>,
    then: Vec<u8>,
}

impl Head {
    pub fn post(headers: &[(&str, &str)]) -> Self {
        // `:method: POST` and `:scheme: http` are in the static table.
        let (mut first, mut then) = (vec![0x83, 0x86], vec![0x83, 0x86]);
        for (number, (name, value)) in headers.iter().enumerate() {
            first.push(0x40);
            text(name, &mut first);
            text(value, &mut first);
            integer(0x80, 7, DYNAMIC + headers.len() - 1 - number, &mut then);
        }
        Self { first, then }
    }
}

/// A header that is another one in every request, for HPACK not to keep.
pub fn unique_header(name: &str, value: &str, block: &mut Vec<u8>) {
    block.push(0x10);
    text(name, block);
    text(value, block);
}

fn text(text: &str, block: &mut Vec<u8>) {
    integer(0, 7, text.len(), block);
    block.extend_from_slice(text.as_bytes());
}

/// HPACK's integer: what does not fit into the prefix follows in groups of seven bits.
fn integer(flags: u8, prefix: u32, value: usize, block: &mut Vec<u8>) {
    let most = (1_usize << prefix) - 1;
    if value < most {
        block.push(flags | value as u8);
        return;
    }
    block.push(flags | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        block.push(rest as u8 & 0x7f | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// Connects, and waits until the server knows our settings.
pub async fn connect(address: &str, answers: Answers) -> Result<(RefCell<Sender>, Receiver)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (reading, writing) = stream.into_split();
    let mut output = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // No pushes, and perhaps no table.
    let settings = [0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    let settings = if answers == Answers::Unique { &settings[..] } else { &settings[..6] };
    frame(SETTINGS, 0, 0, settings, &mut output);
    frame(WINDOW_UPDATE, 0, 0, &OUR_WINDOW.to_be_bytes(), &mut output);
    let sender = RefCell::new(Sender {
        stream: writing,
        output,
        next: 1,
        window: 65_535,
        settled: false,
        first_head_sent: false,
        open: Vec::new(),
        blocks: Blocks { answers, decoder: Decoder::new(), known: HashMap::new() },
    });
    sender.borrow_mut().flush()?;
    let mut receiver = Receiver { stream: reading, input: Vec::new() };
    let mut none = Vec::new();
    while !sender.borrow().settled {
        receiver.receive(&sender, &mut none).await?;
        sender.borrow_mut().flush()?;
    }
    Ok((sender, receiver))
}

impl Sender {
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Puts a call into what [`Self::flush`] sends: the head that all calls share, what only this one has, and the body.
    pub fn call(
        &mut self,
        caller: usize,
        sent: Instant,
        head: &Head,
        more: &[u8],
        body: &[u8],
    ) -> Result<()> {
        let block = if self.first_head_sent { &head.then } else { &head.first };
        self.first_head_sent = true;
        frame_head(HEADERS, END_HEADERS, self.next, block.len() + more.len(), &mut self.output);
        self.output.extend_from_slice(block);
        self.output.extend_from_slice(more);
        frame(DATA, END_STREAM, self.next, body, &mut self.output);
        self.window -= i64::try_from(body.len())?;
        if self.window < 0 {
            return Err("the server's HTTP/2 window is full".into());
        }
        self.open.push(Open { stream: self.next, caller, sent, head: None, body: Vec::new() });
        self.next += 2;
        Ok(())
    }

    /// Writes what there is to write. Streams are few and requests short: the socket's buffer always has room.
    pub fn flush(&mut self) -> Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        if self.stream.try_write(&self.output)? < self.output.len() {
            return Err("the socket's buffer is full".into());
        }
        self.output.clear();
        Ok(())
    }

    fn take(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        finished: &mut Vec<Answered>,
    ) -> Result<()> {
        match kind {
            DATA | HEADERS => {
                if flags & UNUSED != 0 || kind == HEADERS && flags & END_HEADERS == 0 {
                    return Err(format!("a frame of kind {kind} with flags {flags:#x}").into());
                }
                let place =
                    self.open.iter().position(|open| open.stream == stream).ok_or("an unknown stream")?;
                let open = &mut self.open[place];
                let fields = if kind == HEADERS {
                    let fields = self.blocks.read(payload)?;
                    open.head.get_or_insert_with(|| fields.clone());
                    Some(fields)
                } else {
                    open.body.extend_from_slice(payload);
                    None
                };
                if flags & END_STREAM != 0 {
                    let Open { caller, sent, head, body, .. } = self.open.swap_remove(place);
                    let head = head.ok_or("an answer without a head")?;
                    let trailers = fields.unwrap_or_else(|| head.clone());
                    finished.push(Answered { caller, sent, head, body, trailers });
                }
            }
            SETTINGS if flags & ACK != 0 => self.settled = true,
            SETTINGS => frame(SETTINGS, ACK, 0, &[], &mut self.output),
            PING if flags & ACK == 0 => frame(PING, ACK, 0, payload, &mut self.output),
            WINDOW_UPDATE if stream == 0 => {
                let more = payload.first_chunk::<4>().ok_or("a short WINDOW_UPDATE")?;
                self.window += i64::from(u32::from_be_bytes(*more));
            }
            RST_STREAM | GOAWAY => {
                return Err(format!("the server sent a frame of kind {kind}: {payload:?}").into());
            }
            _ => {}
        }
        Ok(())
    }
}

impl Blocks {
    fn read(&mut self, block: &[u8]) -> Result<Rc<Fields>> {
        if self.answers == Answers::Unique {
            return Ok(Rc::new(Fields::Encoded(block.to_vec())));
        }
        if let Some(fields) = self.known.get(block) {
            return Ok(fields.clone());
        }
        let fields = Rc::new(Fields::Decoded(decode(&mut self.decoder, block)?));
        // An index of one byte. Anything else may change the table.
        if block.iter().all(|byte| (0x81..0xff).contains(byte)) {
            self.known.insert(block.to_vec(), fields.clone());
        } else {
            self.known.clear();
        }
        Ok(fields)
    }
}

impl Fields {
    /// Where they are decoded.
    pub fn get(&self, name: &str) -> Option<&str> {
        let Self::Decoded(fields) = self else { return None };
        fields.iter().find(|field| field.0 == name).map(|field| field.1.as_str())
    }

    pub fn is_200(&self) -> bool {
        match self {
            Self::Decoded(_) => self.get(":status") == Some("200"),
            // In HPACK's static table, behind an announcement of the other one's size perhaps.
            Self::Encoded(block) => block.iter().find(|byte| *byte & 0xe0 != 0x20) == Some(&0x88),
        }
    }

    pub fn status(&self) -> String {
        let fields = match self {
            Self::Decoded(fields) => fields.clone(),
            // Without a table every block stands for itself.
            Self::Encoded(block) => decode(&mut Decoder::new(), block).unwrap_or_default(),
        };
        let status = fields.into_iter().find(|field| field.0 == ":status");
        status.map_or_else(|| "no status".to_owned(), |field| field.1)
    }
}

fn decode(decoder: &mut Decoder<'_>, block: &[u8]) -> Result<Vec<(String, String)>> {
    let decoded = decoder.decode(block).map_err(|error| format!("a header block: {error:?}"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(decoded.into_iter().map(|(name, value)| (text(name), text(value))).collect())
}

impl Receiver {
    /// Waits for something to read, and gives the calls which that has finished.
    pub async fn receive(&mut self, sender: &RefCell<Sender>, finished: &mut Vec<Answered>) -> Result<()> {
        self.input.reserve(64 * 1024);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err("the server closed the connection".into());
        }
        let mut sender = sender.borrow_mut();
        let mut rest = self.input.as_slice();
        while let Some((head, behind)) = rest.split_first_chunk::<9>() {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Some((payload, behind)) = behind.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            sender.take(head[3], head[4], stream, payload, finished)?;
            rest = behind;
        }
        let done = self.input.len() - rest.len();
        self.input.drain(..done);
        Ok(())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], output: &mut Vec<u8>) {
    frame_head(kind, flags, stream, payload.len(), output);
    output.extend_from_slice(payload);
}

fn frame_head(kind: u8, flags: u8, stream: u32, length: usize, output: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("frames are short").to_be_bytes();
    output.extend_from_slice(&length[1..]);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
}
