//! One line of the input: a collection in JSON.

use std::fmt;

use chrono::{DateTime, Datelike, Utc};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    domain::{CollectionId, UserId},
    store::{CollectionToImport, EntryToImport},
};

/// The orders of the API, the default first.
const TIMELINE_ORDERS: [&str; 3] = ["curation_reverse_chron", "tweet_chron", "tweet_reverse_chron"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(deserialize_with = "collection_id")]
    id: CollectionId,
    owner_id: PositiveId,
    name: String,
    description: Option<String>,
    url: Option<String>,
    timeline_order: Option<String>,
    created_at: Option<Time>,
    entries: Option<Vec<Entry>>,
}

/// An entry as an object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FullEntry {
    tweet_id: PositiveId,
    sort_index: Option<i64>,
    added_at: Option<Time>,
}

struct Entry {
    tweet_id: i64,
    sort_index: Option<i64>,
    added_at: Option<DateTime<Utc>>,
}

/// A number in `1..=i64::MAX`, or a text of its decimal digits.
struct PositiveId(i64);

struct Time(DateTime<Utc>);

/// Reads a collection.
///
/// # Errors
/// The reason to reject the line.
pub fn parse(text: &[u8]) -> Result<CollectionToImport, String> {
    let text = std::str::from_utf8(text)
        .map_err(|error| format!("the line is not UTF-8 after {} bytes", error.valid_up_to()))?;
    // serde would take the elements of an array for the fields, by their order.
    if text.trim_start().starts_with('[') {
        return Err("expected a JSON object, not an array".to_owned());
    }
    let line: Line = serde_json::from_str(text).map_err(|error| reason(&error))?;
    let texts =
        [("name", Some(&line.name)), ("description", line.description.as_ref()), ("url", line.url.as_ref())];
    for (field, value) in texts {
        if value.is_some_and(|value| value.contains('\0')) {
            return Err(format!("{field} contains U+0000, which PostgreSQL does not store"));
        }
    }
    let timeline_order = match line.timeline_order {
        None => Some(TIMELINE_ORDERS[0]),
        Some(order) => TIMELINE_ORDERS.into_iter().find(|known| *known == order),
    };
    let timeline_order =
        timeline_order.ok_or_else(|| format!("timeline_order is none of {}", TIMELINE_ORDERS.join(", ")))?;
    let entries = line.entries.unwrap_or_default();
    if let Some(tweet_id) = repeated(&entries) {
        return Err(format!("tweet {tweet_id} is in the entries more than once"));
    }
    let entries = (0..).zip(entries).map(|(position, entry)| EntryToImport {
        tweet_id: entry.tweet_id,
        sort_index: entry.sort_index.unwrap_or(position),
        added_at: entry.added_at,
    });
    Ok(CollectionToImport {
        id: line.id,
        owner: UserId::new(line.owner_id.0).ok_or("owner_id is out of range")?,
        name: line.name,
        description: line.description,
        url: line.url,
        timeline_order,
        created_at: line.created_at.map(|time| time.0),
        entries: entries.collect(),
    })
}

/// Serde's message. There is one line, so only the column says where.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    if error.is_data() {
        return format!("{message} (column {})", error.column());
    }
    format!("not valid JSON: {message} (column {})", error.column())
}

fn repeated(entries: &[Entry]) -> Option<i64> {
    let mut ids: Vec<i64> = entries.iter().map(|entry| entry.tweet_id).collect();
    ids.sort_unstable();
    let pair = ids.array_windows().find(|[one, next]| one == next);
    pair.map(|[id, _]| *id)
}

fn collection_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CollectionId, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

impl PositiveId {
    fn new<E: Error>(number: Option<i64>) -> Result<Self, E> {
        let number = number.filter(|number| *number > 0);
        number.map(Self).ok_or_else(|| E::custom("expected a decimal in 1..=9223372036854775807"))
    }

    /// The canonical decimal alone, as for ids everywhere: no sign, no leading zero.
    fn of_text<E: Error>(text: &str) -> Result<Self, E> {
        Self::new(text.parse::<UserId>().ok().map(UserId::get))
    }
}

impl<'de> Deserialize<'de> for PositiveId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = PositiveId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal in 1..=9223372036854775807, as a number or a string")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<PositiveId, E> {
                PositiveId::new(number.try_into().ok())
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<PositiveId, E> {
                PositiveId::new(Some(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PositiveId, E> {
                PositiveId::of_text(text)
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tweet id or an object with a tweet_id")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Entry, E> {
                PositiveId::new(number.try_into().ok()).map(Entry::bare)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Entry, E> {
                PositiveId::new(Some(number)).map(Entry::bare)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
                PositiveId::of_text(text).map(Entry::bare)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                let full = FullEntry::deserialize(MapAccessDeserializer::new(map))?;
                let added_at = full.added_at.map(|time| time.0);
                Ok(Entry { tweet_id: full.tweet_id.0, sort_index: full.sort_index, added_at })
            }
        }
        deserializer.deserialize_any(EntryVisitor)
    }
}

impl Entry {
    fn bare(id: PositiveId) -> Self {
        Self { tweet_id: id.0, sort_index: None, added_at: None }
    }
}

impl<'de> Deserialize<'de> for Time {
    /// To the microsecond, which is what PostgreSQL stores.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text)
            .ok()
            .and_then(|time| DateTime::from_timestamp_micros(time.timestamp_micros()));
        let time = time.filter(|time| (1..=9999).contains(&time.year()));
        time.map(Self).ok_or_else(|| D::Error::custom("expected a time like 2026-11-27T14:05:09Z (RFC 3339)"))
    }
}
