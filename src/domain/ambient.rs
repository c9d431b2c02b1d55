//! Time and randomness, which tests can set. Nothing else may read the ambient ones (see `.clippy.toml`).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use chrono::{DateTime, Utc};
use zeroize::Zeroizing;

/// The wall clock.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// One that stands at these Unix seconds until it is set.
    Set(Arc<AtomicI64>),
}

impl Clock {
    /// The time now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn now(&self) -> DateTime<Utc> {
        match self {
            Self::System => Utc::now(),
            Self::Set(seconds) => {
                DateTime::from_timestamp(seconds.load(Ordering::Relaxed), 0).unwrap_or(DateTime::UNIX_EPOCH)
            }
        }
    }
}

/// A source of random bytes, fit for keys: the operating system's unless a test gives another.
#[derive(Clone)]
pub struct Entropy(Arc<Fill>);

/// Fills a buffer with random bytes.
type Fill = dyn Fn(&mut [u8]) + Send + Sync;

impl Entropy {
    /// A source of one's own, for tests.
    pub fn new(fill: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(fill))
    }

    /// Fills the buffer with random bytes.
    pub fn fill(&self, bytes: &mut [u8]) {
        (self.0)(bytes);
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// `N` random bytes as lower-case hex, fit for a secret: no piece of it is left elsewhere in memory.
    #[must_use]
    pub fn hex<const N: usize>(&self) -> String {
        let bytes = Zeroizing::new(self.bytes::<N>());
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        let mut hex = String::with_capacity(2 * N);
        hex.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
        hex
    }
}

impl Default for Entropy {
    #[expect(
        clippy::panic,
        clippy::disallowed_methods,
        reason = "without the operating system's generator no secret can be made safely"
    )]
    fn default() -> Self {
        Self::new(|bytes| {
            if let Err(error) = getrandom::fill(bytes) {
                panic!("the operating system gives no random bytes: {error}");
            }
        })
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}
