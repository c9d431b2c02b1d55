//! The rate limit of the REST edge: so many requests of one user in each window, as the 1.1 API counted them.

mod memory;
mod shared;

use std::{fmt, str::FromStr, time::Duration};

use crate::domain::{Clock, UserId};

pub use memory::Memory;
pub use shared::{RedisError, Shared};

/// So many requests of one user in each window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Requests.
    pub limit: u32,
    /// The window's length, in whole seconds, at least one.
    pub window: Duration,
}

/// A text that is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected <requests>/<window>, such as 300/15m (s, m and h are units), or 0 for no limit")]
pub struct RuleError;

/// One stretch of time. Windows are aligned to the epoch, so that all gateways agree on them without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub number: u64,
    /// When the next one begins, in Unix seconds.
    pub reset: u64,
}

/// What a user may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Whether this request may go on.
    pub granted: bool,
    pub limit: u32,
    pub remaining: u32,
    /// When the next window begins, in Unix seconds.
    pub reset: u64,
    /// How long until then, in seconds.
    pub wait: u64,
}

/// The limit, with what counts for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RateLimit {
    rule: Rule,
    clock: Clock,
    counter: Counter,
}

/// Where requests are counted.
#[derive(Clone, Debug)]
pub enum Counter {
    /// In this process alone.
    Memory(Memory),
    /// By all gateways together.
    Redis(Box<Shared>),
}

impl RateLimit {
    #[must_use]
    pub const fn new(rule: Rule, clock: Clock, counter: Counter) -> Self {
        Self { rule, clock, counter }
    }

    /// What has to be kept connected, where requests are counted in Redis.
    #[must_use]
    pub fn shared(&self) -> Option<Shared> {
        match &self.counter {
            Counter::Memory(_) => None,
            Counter::Redis(shared) => Some(Shared::clone(shared)),
        }
    }

    /// Counts a request of this user. One that is refused is not counted.
    pub async fn take(&self, user: UserId) -> Allowance {
        let now = u64::try_from(self.clock.now().timestamp()).unwrap_or_default();
        let window = self.rule.window_at(now);
        let used = match &self.counter {
            Counter::Memory(memory) => memory.take(window.number, user, self.rule.limit),
            Counter::Redis(shared) => shared.take(window.number, user, self.rule).await,
        };
        Allowance {
            granted: used.is_some(),
            limit: self.rule.limit,
            remaining: used.map_or(0, |used| self.rule.limit.saturating_sub(used)),
            reset: window.reset,
            wait: window.reset.saturating_sub(now),
        }
    }
}

impl Rule {
    /// The window that this moment (Unix seconds) is in.
    #[must_use]
    pub const fn window_at(&self, now: u64) -> Window {
        let length = if self.window.as_secs() == 0 { 1 } else { self.window.as_secs() };
        let number = now / length;
        Window { number, reset: (number + 1).saturating_mul(length) }
    }

    /// Whether anything is limited at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.limit > 0
    }
}

impl Default for Rule {
    /// The windows of the 1.1 API, and its usual number.
    fn default() -> Self {
        Self { limit: 300, window: Duration::from_secs(15 * 60) }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let decimal = |text: &str| -> Option<u32> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok())?
        };
        if text == "0" {
            return Ok(Self { limit: 0, window: Duration::from_secs(1) });
        }
        let (limit, window) = text.split_once('/').ok_or(RuleError)?;
        let limit = decimal(limit).ok_or(RuleError)?;
        let (length, unit) = window.split_at_checked(window.len().saturating_sub(1)).ok_or(RuleError)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(RuleError),
        };
        let seconds = u64::from(decimal(length).ok_or(RuleError)?) * unit;
        let day = 24 * 3600;
        if !(1..=day).contains(&seconds) {
            return Err(RuleError);
        }
        Ok(Self { limit, window: Duration::from_secs(seconds) })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window.as_secs() {
            hours if hours % 3600 == 0 => write!(f, "{}/{}h", self.limit, hours / 3600),
            minutes if minutes % 60 == 0 => write!(f, "{}/{}m", self.limit, minutes / 60),
            seconds => write!(f, "{}/{seconds}s", self.limit),
        }
    }
}
