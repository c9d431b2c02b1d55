//! Texts from outside, made fit for a line of the log.

use std::fmt::Write;

use crate::config::identity::EXCERPT_LIMIT;

/// Quotes a text for the log: cut at [`EXCERPT_LIMIT`] bytes, with quotes, control characters and characters that are not
/// displayed escaped.
#[must_use]
pub fn excerpt(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len().min(EXCERPT_LIMIT) + "\"\"…".len());
    quoted.push('"');
    for letter in text.chars() {
        let escaped = letter.escape_debug();
        let size: usize = escaped.clone().map(char::len_utf8).sum();
        if quoted.len() + size > EXCERPT_LIMIT {
            quoted.push('…');
            break;
        }
        quoted.extend(escaped);
    }
    quoted.push('"');
    quoted
}

/// Joins the excerpts of the first `limit` texts, and counts the others.
#[must_use]
pub fn excerpts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>, limit: usize) -> String {
    let mut texts = texts.into_iter();
    let shown: Vec<String> = texts.by_ref().take(limit).map(|text| excerpt(text.as_ref())).collect();
    let mut joined = shown.join(", ");
    let omitted = texts.count();
    if omitted > 0 {
        // Writing to a string cannot fail.
        let _written = write!(joined, " and {omitted} more");
    }
    joined
}
