//! Reads the input on a thread of its own: head, lines, batches.

use std::{
    collections::HashSet,
    io::{self, BufRead, Chain, Cursor, Read},
    path::PathBuf,
};

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::line::parse;
use crate::{
    cli::input::{Consumed, Input},
    config::import,
    store::CollectionToImport,
};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An input whose head has been read.
pub struct Reader {
    input: Chain<Cursor<Vec<u8>>, Input>,
    consumed: Consumed,
    /// Of the file as it is stored, where it is a regular one.
    pub size: Option<u64>,
    pub head_sha256: String,
    byte_offset: u64,
    line: u64,
}

/// Lines that go to the database together.
#[derive(Default)]
pub struct Batch {
    /// Those that are not empty.
    pub lines: Vec<Line>,
    /// Where the next batch begins.
    pub byte_offset: u64,
    pub line: u64,
    /// What has been read of the source, compressed where it is.
    pub consumed: u64,
}

pub struct Line {
    pub number: u64,
    pub text: Vec<u8>,
    /// Only the start of the text is kept.
    pub is_truncated: bool,
    pub collection: Result<CollectionToImport, String>,
}

/// Why the input could not be continued where it had been left.
#[derive(Debug, thiserror::Error)]
pub enum PositionError {
    #[error("the input ends before the byte at which the unfinished import of this name stopped")]
    Shorter,
    #[error("no line begins at the byte at which the unfinished import of this name stopped")]
    OtherLines,
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// The sizes of a batch so far.
#[derive(Default)]
struct Sizes {
    rows: usize,
    bytes: usize,
}

impl Reader {
    /// Opens the input and reads its head.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let mut input = Input::open(path.as_deref())?;
        let head = input.read_head(import::HEAD as u64)?;
        let hash = Sha256::digest(&head);
        let head_sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let (consumed, size) = (input.consumed(), input.size());
        let input = Cursor::new(head).chain(input);
        Ok(Self { input, consumed, size, head_sha256, byte_offset: 0, line: 0 })
    }

    /// Goes to the start of a line, which this many lines precede.
    pub fn skip_to(&mut self, byte_offset: u64, line: u64) -> Result<(), PositionError> {
        if byte_offset == 0 {
            return Ok(());
        }
        let (head, input) = self.input.get_mut();
        let in_head = (byte_offset - 1).min(head.get_ref().len() as u64);
        head.set_position(in_head);
        let beyond = byte_offset - 1 - in_head;
        if beyond > 0 {
            input.skip(beyond).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => PositionError::Shorter,
                _ => error.into(),
            })?;
        }
        let mut before = [0];
        match self.input.read(&mut before)? {
            0 => return Err(PositionError::Shorter),
            // The last line may have no end.
            _ if before != *b"\n" && !self.input.fill_buf()?.is_empty() => {
                return Err(PositionError::OtherLines);
            }
            _ => {}
        }
        (self.byte_offset, self.line) = (byte_offset, line);
        Ok(())
    }

    /// The count of bytes that have been read of the source, compressed where it is.
    pub fn consumed(&self) -> Consumed {
        self.consumed.clone()
    }

    /// Sends batch after batch until the input ends or fails, or nothing receives them.
    pub fn run(mut self, batches: &mpsc::Sender<io::Result<Batch>>) {
        let mut next = None;
        loop {
            let mut batch = Batch::default();
            let is_more = self.fill(&mut batch, &mut next);
            // What was read before a failure counts.
            if batch.line > 0 && batches.blocking_send(Ok(batch)).is_err() {
                return;
            }
            match is_more {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return drop(batches.blocking_send(Err(error))),
            }
        }
    }

    /// Reads a batch, and returns whether there may be another. A line with an id that the batch has already is left in
    /// `next`.
    fn fill(&mut self, batch: &mut Batch, next: &mut Option<Line>) -> io::Result<bool> {
        let (mut sizes, mut ids) = (Sizes::default(), HashSet::new());
        while !sizes.is_full(batch) {
            let line = if next.is_some() {
                next.take()
            } else {
                let Some(line) = self.line()? else { return Ok(false) };
                line
            };
            if let Some(line) = line {
                if line.collection.as_ref().is_ok_and(|new| !ids.insert(new.id)) {
                    *next = Some(line);
                    return Ok(true);
                }
                sizes.add(&line);
                batch.lines.push(line);
            }
            batch.byte_offset = self.byte_offset;
            batch.line = self.line;
            batch.consumed = self.consumed.get();
        }
        Ok(true)
    }

    /// Reads a line: none at the end of the input, and none in it where it is empty.
    fn line(&mut self) -> io::Result<Option<Option<Line>>> {
        let mut text = Vec::new();
        let limit = import::LINE_LIMIT as u64 + 1;
        let mut length = self.input.by_ref().take(limit).read_until(b'\n', &mut text)? as u64;
        if length == 0 {
            return Ok(None);
        }
        let is_truncated = length == limit && text.last() != Some(&b'\n');
        if is_truncated {
            text.truncate(import::TRUNCATED_LINE);
            text.shrink_to_fit();
            length += self.input.skip_until(b'\n')? as u64;
        }
        let is_first = self.byte_offset == 0;
        self.byte_offset += length;
        self.line += 1;
        for end in b"\n\r" {
            text.pop_if(|last| last == end);
        }
        if is_first && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
        if text.trim_ascii().is_empty() && !is_truncated {
            return Ok(Some(None));
        }
        let collection = if is_truncated {
            Err(format!("the line is longer than {} MiB", import::LINE_LIMIT / (1024 * 1024)))
        } else {
            parse(&text)
        };
        Ok(Some(Some(Line { number: self.line, text, is_truncated, collection })))
    }
}

impl Sizes {
    fn add(&mut self, line: &Line) {
        self.rows += line.collection.as_ref().map_or(0, |new| 1 + new.entries.len());
        self.bytes += line.text.len();
    }

    fn is_full(&self, batch: &Batch) -> bool {
        batch.lines.len() >= import::BATCH_LINES
            || self.rows >= import::BATCH_ROWS
            || self.bytes >= import::BATCH_BYTES
    }
}
