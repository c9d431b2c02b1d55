//! The `Authorization` header.

use super::parameters::Parameters;

/// The scheme of an `Authorization` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme<'a> {
    /// With the parameters after it.
    OAuth(&'a str),
    /// With the token after it.
    Bearer(&'a str),
    /// Any other.
    Unknown,
}

impl<'a> Scheme<'a> {
    /// Splits off the scheme, whose case does not matter.
    #[must_use]
    pub fn of(header: &'a str) -> Self {
        let header = header.trim();
        let (scheme, rest) = header.split_once([' ', '\t']).unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("oauth") {
            Self::OAuth(rest)
        } else if scheme.eq_ignore_ascii_case("bearer") {
            Self::Bearer(rest.trim())
        } else {
            Self::Unknown
        }
    }
}

/// What may stand between parameters. Empty elements of a list mean nothing (RFC 9110, 5.6.1.2).
const BETWEEN: [char; 3] = [',', ' ', '\t'];

/// Parses the `oauth_*` parameters after the scheme: `key=value` or `key="value"`, separated by commas. Others, such as
/// `realm`, are not signed and are left out. `None` when the text has another form.
pub fn parse(text: &str) -> Option<Parameters<'_>> {
    let mut parameters = Parameters::default();
    let mut rest = text.trim_matches(BETWEEN);
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        let key = key.trim();
        if key.is_empty() || key.contains(['"', ',', ' ']) {
            return None;
        }
        parameters.push_encoded(key.as_bytes(), value.trim().as_bytes());
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start_matches(BETWEEN),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(parameters.only_oauth())
}
