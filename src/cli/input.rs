//! The input of a command: a file, compressed or not, or standard input.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;

use crate::config::import::READ_BUFFER;

/// Decompressed bytes, and a count of what has been read of the source.
pub struct Input {
    source: Source,
    consumed: Consumed,
    /// Of the file as it is stored, where it is a regular one.
    size: Option<u64>,
    /// What the next read fails with.
    failure: Option<io::Error>,
}

enum Source {
    /// Of a regular file.
    Plain(BufReader<Counted<File>>),
    Stream(Box<dyn BufRead + Send>),
}

/// How many bytes of the source, compressed where it is, have been read. Cheap to clone.
#[derive(Clone, Default)]
pub struct Consumed(Arc<AtomicU64>);

struct Counted<R> {
    inner: R,
    consumed: Consumed,
}

impl Input {
    /// Opens a file, which is decompressed where its name ends with `.gz` or `.zst`, or standard input for `-` and none.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let consumed = Consumed::default();
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            let counted = Counted { inner: io::stdin(), consumed: consumed.clone() };
            let reader = BufReader::with_capacity(READ_BUFFER, counted);
            return Ok(Self {
                source: Source::Stream(Box::new(reader)),
                consumed,
                size: None,
                failure: None,
            });
        };
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let size = metadata.is_file().then_some(metadata.len());
        let counted = Counted { inner: file, consumed: consumed.clone() };
        let reader = BufReader::with_capacity(READ_BUFFER, counted);
        let source = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => {
                Source::Stream(Box::new(BufReader::with_capacity(READ_BUFFER, MultiGzDecoder::new(reader))))
            }
            Some("zst") => {
                let decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
                Source::Stream(Box::new(BufReader::with_capacity(READ_BUFFER, decoder)))
            }
            _ if metadata.is_file() => Source::Plain(reader),
            _ => Source::Stream(Box::new(reader)),
        };
        Ok(Self { source, consumed, size, failure: None })
    }

    /// Reads the first bytes, at most so many. A failure after some of them is kept for the next read.
    pub fn read_head(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        match self.by_ref().take(limit).read_to_end(&mut head) {
            Err(error) if head.is_empty() => return Err(error),
            Err(error) => self.failure = Some(error),
            Ok(_length) => {}
        }
        Ok(head)
    }

    pub fn size(&self) -> Option<u64> {
        self.size
    }

    pub fn consumed(&self) -> Consumed {
        self.consumed.clone()
    }

    fn check(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Passes over this many decompressed bytes: at once in a file that is not compressed, by reading them elsewhere.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.check()?;
        let skipped = match &mut self.source {
            Source::Plain(reader) => {
                let place = reader.stream_position()?.saturating_add(bytes);
                reader.seek(SeekFrom::Start(place))?;
                return Ok(());
            }
            Source::Stream(reader) => io::copy(&mut reader.take(bytes), &mut io::sink())?,
        };
        if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        match &mut self.source {
            Source::Plain(reader) => reader.read(buffer),
            Source::Stream(reader) => reader.read(buffer),
        }
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check()?;
        match &mut self.source {
            Source::Plain(reader) => reader.fill_buf(),
            Source::Stream(reader) => reader.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        match &mut self.source {
            Source::Plain(reader) => reader.consume(amount),
            Source::Stream(reader) => reader.consume(amount),
        }
    }
}

impl Consumed {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.consumed.0.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: Seek> Seek for Counted<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = self.inner.seek(to)?;
        self.consumed.0.store(place, Ordering::Relaxed);
        Ok(place)
    }
}
