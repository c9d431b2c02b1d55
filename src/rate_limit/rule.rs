//! How many requests are allowed in which time.

use std::{fmt, str::FromStr, time::Duration};

/// The number of requests that a key may make in each window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Requests.
    pub limit: u32,
    /// The window's length, in whole seconds, at least one.
    pub window: Duration,
}

/// A text that is not a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected <requests>/<window>, such as 300/15m (s, m and h are units), or 0 for no limit")]
pub struct RuleError;

/// A period of time. Windows are aligned to the epoch, so that all gateways agree on them without communication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub number: u64,
    /// The start of the next window, in Unix seconds.
    pub reset: u64,
}

impl Rule {
    /// The window of this time, in Unix seconds.
    #[must_use]
    pub const fn window_at(&self, now: u64) -> Window {
        let length = if self.window.as_secs() == 0 { 1 } else { self.window.as_secs() };
        let number = now / length;
        Window { number, reset: (number + 1).saturating_mul(length) }
    }

    /// Whether requests are limited.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.limit > 0
    }
}

impl Default for Rule {
    /// The 1.1 API's window, and its most common limit.
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
