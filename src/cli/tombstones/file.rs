//! The file of tombstones: a line of JSON for each, ordered by id, and a trailing line with their count and the SHA-256
//! of all bytes before it, which detects a file that was cut or changed.

use std::{
    fmt,
    io::{self, BufRead, Read, Write},
    ops::RangeInclusive,
};

use chrono::{DateTime, Datelike, SecondsFormat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    config::tombstones::LINE_LIMIT,
    domain::{CollectionId, RequestId},
    store::Tombstone,
};

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    owner_id: String,
    /// RFC 3339, with as many digits of the second as the database holds.
    destroyed_at: String,
    request_id: Option<String>,
    caller: Option<String>,
}

/// The trailing line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrailingLine {
    count: u64,
    sha256: String,
}

/// The start of the trailing line, and of no other line.
const TRAILING_LINE: &[u8] = b"{\"count\":";

/// The years that RFC 3339 can represent and PostgreSQL accepts.
const YEARS: RangeInclusive<i32> = 1..=9999;

/// How a file ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With a trailing line that matches.
    Complete,
    /// Within a line, which was not read.
    Cut { line: u64 },
    /// Without a trailing line.
    WithoutTrailingLine,
    /// With a trailing line that states another number of lines.
    OtherCount { stated: u64, found: u64 },
    /// With a trailing line that states another hash.
    OtherHash,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("line {number}: {fault}")]
    Line { number: u64, fault: LineFault },
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum LineFault {
    #[error("not a valid tombstone object: {0}")]
    Json(#[from] serde_json::Error),
    #[error("expected a JSON object, not an array")]
    Array,
    #[error("{0}")]
    Value(String),
    #[error("its id is not greater than the one before")]
    Order,
    #[error("longer than {LINE_LIMIT} bytes")]
    TooLong,
    #[error("unexpected line after the trailing line")]
    AfterTrailingLine,
}

/// Writes tombstones.
pub struct Writer<W> {
    output: W,
    hash: Sha256,
    count: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(output: W) -> Self {
        Self { output, hash: Sha256::new(), count: 0 }
    }

    pub fn write(&mut self, tombstone: &Tombstone) -> io::Result<()> {
        let line = json(&Line::from(tombstone))?;
        if line.len() > LINE_LIMIT {
            let fault = format!("the tombstone of {} has a caller that is too long to export", tombstone.id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
        }
        self.hash.update(&line);
        self.output.write_all(&line)?;
        self.count += 1;
        Ok(())
    }

    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Writes the trailing line, and returns the number of tombstones.
    pub fn finish(mut self) -> io::Result<u64> {
        let trailing = TrailingLine { count: self.count, sha256: hex(self.hash) };
        self.output.write_all(&json(&trailing)?)?;
        self.output.flush()?;
        Ok(self.count)
    }
}

fn json(line: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl From<&Tombstone> for Line {
    fn from(tombstone: &Tombstone) -> Self {
        Self {
            id: tombstone.id.to_string(),
            owner_id: tombstone.owner.to_string(),
            destroyed_at: tombstone.destroyed_at.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            request_id: tombstone.request_id.map(|request_id| request_id.to_string()),
            caller: tombstone.caller.clone(),
        }
    }
}

/// Reads tombstones, and checks each line and the whole.
pub struct Reader<R> {
    input: R,
    line: Vec<u8>,
    /// Lines that were read.
    number: u64,
    count: u64,
    hash: Sha256,
    last: Option<CollectionId>,
    end: Option<End>,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    pub count: u64,
    /// Of the tombstones' lines.
    pub sha256: String,
    pub end: End,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0, count: 0, hash: Sha256::new(), last: None, end: None }
    }

    /// The next tombstone, or none at the end of the file.
    pub fn next(&mut self) -> Result<Option<Tombstone>, FileError> {
        while self.read_line()? {
            if self.end.is_some() {
                return Err(self.fault(LineFault::AfterTrailingLine));
            }
            let is_whole = self.line.ends_with(b"\n");
            let read = if self.line.starts_with(TRAILING_LINE) {
                self.read_end().map(|()| None)
            } else {
                self.read_tombstone().map(Some)
            };
            match read {
                Ok(Some(tombstone)) => return Ok(Some(tombstone)),
                Ok(None) => {}
                Err(LineFault::Json(_)) if !is_whole => self.end = Some(End::Cut { line: self.number }),
                Err(fault) => return Err(self.fault(fault)),
            }
        }
        Ok(None)
    }

    /// Up to `most` tombstones, none at the end of the file.
    pub fn next_batch(&mut self, most: usize) -> Result<Vec<Tombstone>, FileError> {
        let mut batch = Vec::with_capacity(most);
        while batch.len() < most {
            match self.next()? {
                Some(tombstone) => batch.push(tombstone),
                None => break,
            }
        }
        Ok(batch)
    }

    /// Tombstones that were read.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// What the file holds, once its end was read.
    pub fn contents(self) -> Contents {
        let end = self.end.unwrap_or(End::WithoutTrailingLine);
        Contents { count: self.count, sha256: hex(self.hash), end }
    }

    /// False at the end of the file.
    fn read_line(&mut self) -> Result<bool, FileError> {
        self.line.clear();
        let limit = LINE_LIMIT as u64 + 1;
        self.input.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(false);
        }
        self.number += 1;
        if self.line.len() > LINE_LIMIT {
            return Err(self.fault(LineFault::TooLong));
        }
        Ok(true)
    }

    fn read_tombstone(&mut self) -> Result<Tombstone, LineFault> {
        // serde would take the elements of an array for the fields, by their order.
        if self.line.trim_ascii_start().starts_with(b"[") {
            return Err(LineFault::Array);
        }
        let tombstone = serde_json::from_slice::<Line>(&self.line)?.parse()?;
        if self.last.is_some_and(|last| last >= tombstone.id) {
            return Err(LineFault::Order);
        }
        self.last = Some(tombstone.id);
        self.hash.update(&self.line);
        self.count += 1;
        Ok(tombstone)
    }

    fn read_end(&mut self) -> Result<(), LineFault> {
        let stated: TrailingLine = serde_json::from_slice(&self.line)?;
        self.end = Some(if stated.count != self.count {
            End::OtherCount { stated: stated.count, found: self.count }
        } else if stated.sha256 != hex(self.hash.clone()) {
            End::OtherHash
        } else {
            End::Complete
        });
        Ok(())
    }

    const fn fault(&self, fault: LineFault) -> FileError {
        FileError::Line { number: self.number, fault }
    }
}

impl Line {
    fn parse(self) -> Result<Tombstone, LineFault> {
        fn fault(field: &str, value: &str, why: impl fmt::Display) -> LineFault {
            LineFault::Value(format!("{field} `{}`: {why}", value.escape_debug()))
        }
        let id = self.id.parse().map_err(|error| fault("id", &self.id, error))?;
        let owner = self.owner_id.parse().map_err(|error| fault("owner_id", &self.owner_id, error))?;
        let destroyed_at = DateTime::parse_from_rfc3339(&self.destroyed_at)
            .map_err(|error| fault("destroyed_at", &self.destroyed_at, error))?
            .to_utc();
        if !YEARS.contains(&destroyed_at.year()) {
            return Err(fault("destroyed_at", &self.destroyed_at, "the year in UTC must be from 1 to 9999"));
        }
        let parsed = self
            .request_id
            .as_deref()
            .map(|text| text.parse::<RequestId>().map_err(|error| fault("request_id", text, error)));
        let request_id = parsed.transpose()?;
        if let Some(caller) = self.caller.as_deref().filter(|caller| caller.contains('\0')) {
            return Err(fault("caller", caller, "a zero byte cannot be stored"));
        }
        Ok(Tombstone { id, owner, destroyed_at, request_id, caller: self.caller })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("the file is complete"),
            Self::Cut { line } => write!(f, "the file was cut within line {line}"),
            Self::WithoutTrailingLine => {
                f.write_str("the file has no trailing line with the count and the hash")
            }
            Self::OtherCount { stated, found } => {
                write!(f, "the trailing line states {stated} tombstones, and the file has {found}")
            }
            Self::OtherHash => f.write_str("the trailing line states another hash: the file was changed"),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Contents, End, FileError, Reader};

    /// Two tombstones and their trailing line.
    const FILE: &str = "\
{\"id\":\"custom-1\",\"owner_id\":\"7\",\"destroyed_at\":\"2026-11-27T10:00:00Z\",\"request_id\":null,\"caller\":null}
{\"id\":\"custom-20\",\"owner_id\":\"8\",\"destroyed_at\":\"2026-11-27T10:00:00.000001Z\",\"request_id\":null,\"caller\":\"jwt:x\"}
{\"count\":2,\"sha256\":\"cd8509bcb9f308643664aaeaf217059039fa8c2c935048fc69be59cec4e86a6b\"}
";

    fn read(bytes: &[u8]) -> Result<Contents, FileError> {
        let mut reader = Reader::new(bytes);
        while reader.next()?.is_some() {}
        Ok(reader.contents())
    }

    fn is_complete(bytes: &[u8]) -> bool {
        read(bytes).is_ok_and(|contents| contents.end == End::Complete)
    }

    #[test]
    fn a_file_that_is_cut_or_changed_anywhere_is_not_complete() {
        let file = FILE.as_bytes();
        assert!(is_complete(file), "{:?}", read(file));
        // Without the last line break nothing is missing.
        for length in 0..file.len() - 1 {
            assert!(!is_complete(file.get(..length).unwrap_or_default()), "cut after {length} bytes");
        }
        let mut changed = file.to_vec();
        for position in 0..file.len() {
            for bit in 0..8 {
                let flip = |bytes: &mut Vec<u8>| {
                    bytes.get_mut(position).into_iter().for_each(|byte| *byte ^= 1 << bit);
                };
                flip(&mut changed);
                assert!(!is_complete(&changed), "bit {bit} of byte {position} changed");
                flip(&mut changed);
            }
        }
    }
}
