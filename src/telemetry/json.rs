//! Log lines as JSON. tracing-subscriber's own format reads a span's fields back and writes all of them anew for each
//! that is recorded later; with five of those a call, that cost more than the rest of the call.

use std::fmt::{self, Debug, Write};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// The fields of a span as members of an object, without its braces: what is recorded later is put behind.
#[derive(Clone, Copy, Debug)]
pub struct JsonFields;

/// A line: timestamp, level, the event's fields, target, and the fields of the span it happened in.
#[derive(Clone, Copy, Debug)]
pub struct JsonLine;

/// Writes members with commas between.
struct Members<'a> {
    writer: Writer<'a>,
    is_first: bool,
    written: fmt::Result,
}

/// Writes what may stand between the quotes of a JSON string.
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl<'w> FormatFields<'w> for JsonFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut members = Members { writer, is_first: true, written: Ok(()) };
        fields.record(&mut members);
        members.written
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let is_first = current.fields.is_empty();
        let mut members = Members { writer: current.as_writer(), is_first, written: Ok(()) };
        fields.record(&mut members);
        members.written
    }
}

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        for piece in ["\",\"level\":\"", event.metadata().level().as_str(), "\""] {
            writer.write_str(piece)?;
        }
        let mut members = Members { writer: writer.by_ref(), is_first: false, written: Ok(()) };
        event.record(&mut members);
        members.written?;
        for piece in [",\"target\":\"", event.metadata().target(), "\""] {
            writer.write_str(piece)?;
        }
        let span = event.parent().and_then(|id| context.span(id)).or_else(|| context.lookup_current());
        if let Some(span) = span {
            writer.write_str(",\"span\":{")?;
            if let Some(fields) = span.extensions().get::<FormattedFields<JsonFields>>()
                && !fields.is_empty()
            {
                writer.write_str(fields.as_str())?;
                writer.write_str(",")?;
            }
            for piece in ["\"name\":\"", span.name(), "\"}"] {
                writer.write_str(piece)?;
            }
        }
        writer.write_str("}\n")
    }
}

impl Members<'_> {
    fn member(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        // Where in somebody's source a record of the `log` crate was made is of no use to an operator.
        if self.written.is_err() || field.name().starts_with("log.") && field.name() != "log.target" {
            return;
        }
        let quote = if self.is_first { "\"" } else { ",\"" };
        self.is_first = false;
        let (name, writer) = (field.name(), &mut self.writer);
        self.written = [quote, name.strip_prefix("r#").unwrap_or(name), "\":"]
            .iter()
            .try_for_each(|piece| writer.write_str(piece))
            .and_then(|()| write(writer));
    }

    fn text(&mut self, field: &Field, write: impl FnOnce(&mut Escaped<'_, '_>) -> fmt::Result) {
        self.member(field, |writer| {
            writer.write_str("\"")?;
            write(&mut Escaped(writer))?;
            writer.write_str("\"")
        });
    }
}

impl Visit for Members<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has neither infinities nor NaN.
        if value.is_finite() {
            self.member(field, |writer| write!(writer, "{value}"));
        } else {
            self.member(field, |writer| writer.write_str("null"));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |writer| write!(writer, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |writer| write!(writer, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |writer| write!(writer, "{value}"));
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

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.bytes().position(is_special) {
            let (plain, special) = rest.split_at_checked(at).ok_or(fmt::Error)?;
            self.0.write_str(plain)?;
            let mut letters = special.chars();
            match letters.next() {
                Some('\n') => self.0.write_str("\\n")?,
                Some(quoted @ ('"' | '\\')) => write!(self.0, "\\{quoted}")?,
                Some(control) => write!(self.0, "\\u{:04x}", u32::from(control))?,
                None => {}
            }
            rest = letters.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::{JsonFields, JsonLine};

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

    #[test]
    fn a_line_is_one_json_object() -> Result<(), Box<dyn std::error::Error>> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields)
            .event_format(JsonLine)
            .with_writer(move || writer.clone())
            .finish();
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
