//! The URL of the collector and the share of traces, as an operator gives them.

use std::{fmt, str::FromStr};

use http::Uri;

/// `http://<host>:<port>` or `https://<host>:<port>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(String);

/// A text that is not the URL of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected http://<host>:<port> or https://<host>:<port>, without user, path, query or fragment")]
pub struct OtlpEndpointError;

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRatio(f64);

/// A text that is not a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number from 0 to 1")]
pub struct SampleRatioError;

impl OtlpEndpoint {
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl FromStr for OtlpEndpoint {
    type Err = OtlpEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_error| OtlpEndpointError)?;
        let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or(OtlpEndpointError)?;
        // `Uri` drops a fragment and adds a path. Nothing may be dropped.
        let length = scheme.len() + "://".len() + authority.as_str().len();
        let is_whole = text.strip_suffix('/').unwrap_or(text).len() == length;
        let rest = authority.as_str().strip_prefix(authority.host()).ok_or(OtlpEndpointError)?;
        let is_port =
            |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
        let has_port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        if !is_whole || !has_port || authority.host().is_empty() || !["http", "https"].contains(&scheme) {
            return Err(OtlpEndpointError);
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SampleRatio {
    /// `None` where it is not from 0 to 1.
    #[must_use]
    pub fn new(ratio: f64) -> Option<Self> {
        (0.0..=1.0).contains(&ratio).then_some(Self(ratio))
    }

    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for SampleRatio {
    type Err = SampleRatioError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(Self::new).ok_or(SampleRatioError)
    }
}

#[cfg(test)]
mod tests {
    use super::{OtlpEndpoint, SampleRatio};

    #[test]
    fn an_endpoint_has_a_scheme_and_no_path() {
        for text in ["http://collector:4317", "https://otlp.example.com", "http://[::1]:4317/"] {
            assert!(text.parse::<OtlpEndpoint>().is_ok(), "{text}");
        }
        for text in [
            "",
            "collector:4317",
            "grpc://collector:4317",
            "http://collector:4318/v1/traces",
            "http://user:password@collector:4317",
            "http://collector:4317?a",
            "http://collector:4317#a",
            "http://collector:+4317",
            "http://collector:",
            "http://collector:99999",
            "http://:4317",
        ] {
            assert!(text.parse::<OtlpEndpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_ratio_is_from_0_to_1() {
        for text in ["0", "1", "0.01", "1e-3"] {
            assert!(text.parse::<SampleRatio>().is_ok(), "{text}");
        }
        for text in ["", "-0.1", "1.1", "NaN", "inf", "1%"] {
            assert!(text.parse::<SampleRatio>().is_err(), "{text}");
        }
    }
}
