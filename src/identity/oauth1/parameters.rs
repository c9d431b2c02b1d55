//! Request parameters: decoded for reading, normalized for signing.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

use crate::config;

/// RFC 5849, 3.6: letters, digits and these four stay as they are.
pub const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Decoded names and values in the order they came. Bytes, because a client may send what is no UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(Vec<u8>, Vec<u8>)>);

impl Parameters {
    /// Reads a query or a form-urlencoded body, no further than one parameter over [`config::PARAMETER_LIMIT`]. `+` is
    /// a space; a `%` that begins no escape stands for itself, as in every browser.
    #[must_use]
    pub fn decode(encoded: &[u8]) -> Self {
        let pairs = encoded.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .take(config::PARAMETER_LIMIT + 1)
                .map(|pair| {
                    let mut halves = pair.splitn(2, |byte| *byte == b'=');
                    let mut half = || form_decode(halves.next().unwrap_or_default());
                    (half(), half())
                })
                .collect(),
        )
    }

    /// Adds a percent-encoded parameter, in which `+` is a plus.
    pub fn push_encoded(&mut self, name: &[u8], value: &[u8]) {
        self.0.push((percent_decode(name).collect(), percent_decode(value).collect()));
    }

    /// Whether there are more than anybody needs: each costs far more memory than it has bytes.
    #[must_use]
    pub fn are_too_many(&self) -> bool {
        self.0.len() > config::PARAMETER_LIMIT
    }

    /// Every value of a parameter.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(key, _)| key == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Whether any parameter with OAuth's prefix is among them.
    #[must_use]
    pub fn has_oauth(&self) -> bool {
        self.0.iter().any(|(name, _)| name.starts_with(b"oauth_"))
    }

    /// Without those that do not have OAuth's prefix.
    #[must_use]
    pub fn only_oauth(mut self) -> Self {
        self.0.retain(|(name, _)| name.starts_with(b"oauth_"));
        self
    }

    /// The parameters of all these sources but the signature itself, encoded, sorted by name and then by value.
    pub fn normalized(sources: &[&Self]) -> String {
        let mut encoded: Vec<(String, String)> = sources
            .iter()
            .flat_map(|source| &source.0)
            .filter(|(name, _)| name != b"oauth_signature")
            .map(|(name, value)| {
                (percent_encode(name, ENCODED).to_string(), percent_encode(value, ENCODED).to_string())
            })
            .collect();
        encoded.sort_unstable();
        let pairs: Vec<String> = encoded.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("&")
    }
}

fn form_decode(encoded: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect()
}
