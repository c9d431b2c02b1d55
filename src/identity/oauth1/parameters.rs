//! Request parameters: decoded for reading, normalized for signing.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

use crate::config;

/// RFC 5849, 3.6: letters, digits and these four stay as they are.
pub const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const FORM: &str = "application/x-www-form-urlencoded";

/// Decoded names and values in their order, borrowed where nothing was escaped. Bytes, because a client may send
/// what is no UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters<'a>(Vec<(Text<'a>, Text<'a>)>);

/// A name or a value.
type Text<'a> = Cow<'a, [u8]>;

impl<'a> Parameters<'a> {
    /// Reads a query or a form-urlencoded body, no further than one parameter over [`config::identity::PARAMETER_LIMIT`]. `+` is
    /// a space; a `%` that begins no escape stands for itself, as in every browser.
    #[must_use]
    pub fn decode(encoded: &'a [u8]) -> Self {
        let pairs = encoded.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .take(config::identity::PARAMETER_LIMIT + 1)
                .map(|pair| {
                    let mut halves = pair.splitn(2, |byte| *byte == b'=');
                    let mut half = || form_decode(halves.next().unwrap_or_default());
                    (half(), half())
                })
                .collect(),
        )
    }

    /// Adds a percent-encoded parameter, in which `+` is a plus.
    pub fn push_encoded(&mut self, name: &'a [u8], value: &'a [u8]) {
        self.0.push((unescape(name), unescape(value)));
    }

    /// Returns whether there are more than the limit: each costs far more memory than it has bytes.
    #[must_use]
    pub fn are_too_many(&self) -> bool {
        self.0.len() > config::identity::PARAMETER_LIMIT
    }

    /// Returns every value of a parameter.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(key, _)| **key == *name.as_bytes()).map(|(_, value)| &**value)
    }

    /// Returns whether any parameter has OAuth's prefix.
    #[must_use]
    pub fn has_oauth(&self) -> bool {
        self.0.iter().any(|(name, _)| name.starts_with(b"oauth_"))
    }

    /// Removes those that do not have OAuth's prefix.
    #[must_use]
    pub fn only_oauth(mut self) -> Self {
        self.0.retain(|(name, _)| name.starts_with(b"oauth_"));
        self
    }

    /// Returns the parameters of all these sources but the signature itself, encoded, sorted by name and then by value.
    pub fn normalized<'s>(sources: &[&'s Parameters<'_>]) -> Vec<(Cow<'s, str>, Cow<'s, str>)> {
        let encode = |text: &'s [u8]| percent_encode(text, ENCODED).into();
        let mut encoded = Vec::with_capacity(sources.iter().map(|source| source.0.len()).sum());
        let signed =
            sources.iter().flat_map(|source| &source.0).filter(|(name, _)| **name != *b"oauth_signature");
        encoded.extend(signed.map(|(name, value)| (encode(name), encode(value))));
        encoded.sort_unstable();
        encoded
    }
}

/// Returns whether a body with this `Content-Type` is a form. As in the 1.1 API, the value only has to begin with the media
/// type, in any letter case.
#[must_use]
pub fn is_form(content_type: &str) -> bool {
    content_type.get(..FORM.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(FORM))
}

/// Undoes percent-encoding. Most texts have no escape, which is quicker to find out than to decode them.
fn unescape(encoded: &[u8]) -> Text<'_> {
    if encoded.contains(&b'%') { percent_decode(encoded).into() } else { Cow::Borrowed(encoded) }
}

fn form_decode(encoded: &[u8]) -> Text<'_> {
    if !encoded.contains(&b'+') {
        return unescape(encoded);
    }
    let spaced: Vec<u8> = encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}
