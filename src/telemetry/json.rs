//! Log lines as JSON. tracing-subscriber's own format reads a span's fields back and writes all of them anew for each
//! that is recorded later; with five of those a call, that cost more than the rest of the call. Its layer takes every piece
//! through a writer and a buffer of its own: another twentieth of a call.

use std::{
    fmt::{self, Debug, Write as _},
    io::Write as _,
    sync::{Mutex, PoisonError},
};

use chrono::{DateTime, Utc};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    fmt::MakeWriter,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use crate::domain::Clock;

/// Writes each event as a line: timestamp, level, the event's fields, target, and the fields of the span it happened in.
#[derive(Debug)]
pub struct JsonLines<W> {
    writer: W,
    /// The last second that a line was written in, and its text. Most of a timestamp is the same for thousands of lines.
    second: Mutex<(i64, String)>,
}

/// The fields of a span as members of an object, without its braces: what is recorded later is put behind.
struct SpanFields(String);

/// Writes members with commas between.
struct Members<'a> {
    text: &'a mut String,
    is_first: bool,
}

/// Writes what may stand between the quotes of a JSON string.
struct Escaped<'a>(&'a mut String);

/// Of most spans, and of most lines, so that no text has to grow.
const USUAL_SPAN: usize = 384;
const USUAL_LINE: usize = 768;

impl<W> JsonLines<W> {
    pub const fn new(writer: W) -> Self {
        Self { writer, second: Mutex::new((i64::MIN, String::new())) }
    }

    /// To the microsecond, in UTC.
    fn write_time(&self, now: DateTime<Utc>, line: &mut String) {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0 != now.timestamp() {
            *second = (now.timestamp(), now.format("%Y-%m-%dT%H:%M:%S.").to_string());
        }
        line.push_str(&second.1);
        let _infallible = write!(line, "{:06}Z", now.timestamp_subsec_micros());
    }
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut text = String::with_capacity(USUAL_SPAN);
        attributes.record(&mut Members { text: &mut text, is_first: true });
        span.extensions_mut().insert(SpanFields(text));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(text)) = span.extensions_mut().get_mut() {
            let is_first = text.is_empty();
            values.record(&mut Members { text, is_first });
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = String::with_capacity(USUAL_LINE);
        line.push_str("{\"timestamp\":\"");
        self.write_time(Clock::System.now(), &mut line);
        line.extend(["\",\"level\":\"", event.metadata().level().as_str(), "\""]);
        event.record(&mut Members { text: &mut line, is_first: false });
        line.extend([",\"target\":\"", event.metadata().target(), "\""]);
        if let Some(span) = context.event_span(event) {
            write_span(&span, &mut line);
        }
        line.push_str("}\n");
        // The log may be lost; a call must not.
        drop(self.writer.make_writer_for(event.metadata()).write_all(line.as_bytes()));
    }
}

fn write_span<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>, line: &mut String) {
    line.push_str(",\"span\":{");
    if let Some(SpanFields(text)) = span.extensions().get()
        && !text.is_empty()
    {
        line.extend([text, ","]);
    }
    line.extend(["\"name\":\"", span.name(), "\"}"]);
}

impl Members<'_> {
    fn member(&mut self, field: &Field, write: impl FnOnce(&mut String)) {
        let name = field.name();
        // Where in somebody's source a record of the `log` crate was made is of no use to an operator.
        if name.starts_with("log.") && name != "log.target" {
            return;
        }
        let quote = if self.is_first { "\"" } else { ",\"" };
        self.is_first = false;
        self.text.extend([quote, name.strip_prefix("r#").unwrap_or(name), "\":"]);
        write(self.text);
    }

    /// What is JSON as it is shown: a number, `true`, `null`.
    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.member(field, |text| {
            let _infallible = write!(text, "{value}");
        });
    }

    fn text(&mut self, field: &Field, write: impl FnOnce(&mut Escaped<'_>) -> fmt::Result) {
        self.member(field, |text| {
            text.push('"');
            // It ends early where a value cannot say what it is.
            let _written = write(&mut Escaped(text));
            text.push('"');
        });
    }
}

impl Visit for Members<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has neither infinities nor NaN.
        if value.is_finite() {
            self.bare(field, value);
        } else {
            self.bare(field, "null");
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, |text| text.write_str(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, |text| write!(text, "{value:?}"));
    }
}

/// Whether JSON wants it escaped. No byte of a longer UTF-8 sequence is.
const fn is_special(byte: u8) -> bool {
    byte < b' ' || matches!(byte, b'"' | b'\\')
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.bytes().position(is_special) {
            let (plain, special) = rest.split_at_checked(at).ok_or(fmt::Error)?;
            self.0.push_str(plain);
            let mut letters = special.chars();
            match letters.next() {
                Some('\n') => self.0.push_str("\\n"),
                Some(quoted @ ('"' | '\\')) => self.0.extend(['\\', quoted]),
                Some(control) => write!(self.0, "\\u{:04x}", u32::from(control))?,
                None => {}
            }
            rest = letters.as_str();
        }
        self.0.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fmt, io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::prelude::*;

    use super::{Clock, JsonLines};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::ErrorKind::Other)?.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Cannot say what it is.
    struct Speechless;

    impl fmt::Display for Speechless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"half")?;
            Err(fmt::Error)
        }
    }

    #[test]
    fn a_value_that_fails_costs_nothing_else() -> Result<(), Box<dyn std::error::Error>> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(JsonLines::new(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("call", early = %Speechless, late = tracing::field::Empty);
            span.record("late", tracing::field::display(Speechless));
            span.in_scope(|| tracing::warn!(now = %Speechless, count = 1, "inside"));
            tracing::info!("outside");
        });
        let bytes = lines.0.lock().map_err(|_| "poisoned")?.clone();
        let text = String::from_utf8(bytes)?;
        let parsed: Vec<serde_json::Value> =
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let [inside, outside] = &parsed[..] else { return Err(text.into()) };
        let half = "\"half";
        let span = serde_json::json!({"early": half, "late": half, "name": "call"});
        assert_eq!((inside.get("now"), inside.get("span")), (Some(&half.into()), Some(&span)), "{text}");
        assert_eq!((inside.get("count"), inside.get("level")), (Some(&1.into()), Some(&"WARN".into())));
        assert_eq!(outside.get("span"), None, "{text}");
        for line in &parsed {
            let time = line.get("timestamp").and_then(serde_json::Value::as_str).ok_or("no timestamp")?;
            let age = Clock::System.now() - chrono::DateTime::parse_from_rfc3339(time)?.to_utc();
            assert!((0..60).contains(&age.num_seconds()), "{time}");
        }
        Ok(())
    }

    #[test]
    fn a_line_is_one_json_object() -> Result<(), Box<dyn std::error::Error>> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(JsonLines::new(move || writer.clone()));
        let nasty = "a \"quote\", a \\, a\ttab,\na line, \u{7f}\u{0}, ä and 😀";
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(
                "call",
                early = nasty,
                late = tracing::field::Empty,
                never = tracing::field::Empty
            );
            span.record("late", tracing::field::display(nasty));
            let _entered = span.enter();
            tracing::info!(count = 3_u64, below = -3, half = 0.5, nan = f64::NAN, yes = true, text = ?nasty, r#type = 1, "{nasty}");
        });
        let bytes = lines.0.lock().map_err(|_| "poisoned")?.clone();
        let text = String::from_utf8(bytes)?;
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text)?;
        let span = serde_json::json!({"early": nasty, "late": nasty, "name": "call"});
        assert_eq!(line.get("span"), Some(&span));
        let expected = serde_json::json!({
            "count": 3, "below": -3, "half": 0.5, "nan": null, "yes": true, "text": format!("{nasty:?}"), "type": 1,
            "message": nasty, "level": "INFO", "target": module_path!(),
        });
        for (name, value) in expected.as_object().into_iter().flatten() {
            assert_eq!(line.get(name), Some(value), "{name}");
        }
        Ok(())
    }
}
