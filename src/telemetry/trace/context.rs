//! The W3C trace context: the headers `traceparent` and `tracestate`.

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::config::traces;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// The context that is sent with a call.
#[derive(Clone, Debug)]
pub struct TraceHeaders {
    traceparent: HeaderValue,
    tracestate: Option<HeaderValue>,
}

impl TraceHeaders {
    pub(super) fn of(context: &SpanContext) -> Self {
        let flags = context.trace_flags() & TraceFlags::SAMPLED;
        let text = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
        let state = context.trace_state().header();
        Self {
            // Digits and hyphens are a header value.
            traceparent: HeaderValue::try_from(text).unwrap_or_else(|_error| HeaderValue::from_static("")),
            tracestate: HeaderValue::try_from(state).ok().filter(|state| !state.is_empty()),
        }
    }

    /// Adds them to a request.
    pub fn insert_into(self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.traceparent);
        if let Some(state) = self.tracestate {
            headers.insert(TRACESTATE, state);
        }
    }
}

/// The context that a caller sent. `None` where it is missing or malformed: then the call begins a trace.
pub fn of_headers(headers: &HeaderMap) -> Option<SpanContext> {
    let parent = parent_of(headers)?;
    let (trace, span, flags) = (parent.trace_id(), parent.span_id(), parent.trace_flags());
    Some(SpanContext::new(trace, span, flags, true, state_of(headers)))
}

/// The same without the `tracestate`.
pub fn parent_of(headers: &HeaderMap) -> Option<SpanContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = parents.next()?;
    if parents.next().is_some() {
        return None;
    }
    let (trace, span, flags) = parse(parent.to_str().ok()?)?;
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

/// Several headers are one list. A list that is malformed or too long is dropped, and does not invalidate the parent.
fn state_of(headers: &HeaderMap) -> TraceState {
    let values = headers.get_all(TRACESTATE);
    if values.iter().map(HeaderValue::len).sum::<usize>() > traces::STATE_LIMIT {
        return TraceState::NONE;
    }
    let texts = values.iter().filter_map(|value| value.to_str().ok());
    let list: Vec<&str> = texts.flat_map(|text| text.split(',')).map(str::trim).collect();
    let list: Vec<&str> = list.into_iter().filter(|member| !member.is_empty()).collect();
    list.join(",").parse().unwrap_or_default()
}

/// `<version>-<trace id>-<span id>-<flags>`, in lower-case hex. Versions after 00 may have more behind them.
fn parse(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut parts = text.splitn(5, '-');
    let mut hex =
        |length: usize| parts.next().filter(|part| part.len() == length && part.bytes().all(is_lower_hex));
    let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    Some((TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags))
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::{TRACEPARENT, TRACESTATE, TraceHeaders, of_headers};

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(parents: &[&str], states: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, values) in [(TRACEPARENT, parents), (TRACESTATE, states)] {
            for value in values {
                headers.append(name, HeaderValue::from_str(value).expect("a value"));
            }
        }
        headers
    }

    #[test]
    fn reads_a_valid_context() {
        for (text, is_sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-00"), false),
            (format!("00-{TRACE}-{SPAN}-02"), false),
            (format!("00-{TRACE}-{SPAN}-ff"), true),
            (format!("01-{TRACE}-{SPAN}-01-more"), true),
            (format!("cc-{TRACE}-{SPAN}-01-"), true),
        ] {
            let context = of_headers(&headers(&[&text], &[])).expect(&text);
            assert_eq!(context.trace_id().to_string(), TRACE);
            assert_eq!(context.span_id().to_string(), SPAN);
            assert!(context.is_remote() && context.is_sampled() == is_sampled, "{text}");
        }
    }

    #[test]
    fn rejects_a_malformed_context() {
        for text in [
            "",
            "x",
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("00-{TRACE}-{SPAN}-01-"),
            &format!("00-{TRACE}-{SPAN}-01-more"),
            &format!("00-{TRACE}-{SPAN}"),
            &format!("00-{TRACE}-{SPAN}-1"),
            &format!("0-{TRACE}-{SPAN}-01"),
            &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            &format!("00-{TRACE}-{SPAN}-0A"),
            &format!("00-{}-{SPAN}-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("00-{}-{SPAN}-01", TRACE.replace('4', "+")),
            &format!(" 00-{TRACE}-{SPAN}-01"),
        ] {
            assert!(of_headers(&headers(&[text], &[])).is_none(), "{text}");
        }
        let valid = format!("00-{TRACE}-{SPAN}-01");
        assert!(of_headers(&headers(&[&valid, &valid], &[])).is_none(), "two of them");
        assert!(of_headers(&headers(&[], &["a=b"])).is_none(), "none");
    }

    #[test]
    fn forwards_the_state_of_a_valid_context() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        for (states, forwarded) in [
            (&["a=b,c=d"][..], Some("a=b,c=d")),
            (&["a=b", "c=d"], Some("a=b,c=d")),
            (&["a=b , , c=d"], Some("a=b,c=d")),
            (&["no list"], None),
            (&[&format!("a={0},c={0}", "b".repeat(200)), &format!("d={}", "b".repeat(200))], None),
            (&[], None),
        ] {
            let context = of_headers(&headers(&[&parent], states)).expect("a context");
            let mut sent = HeaderMap::new();
            TraceHeaders::of(&context).insert_into(&mut sent);
            assert_eq!(sent.get(TRACEPARENT).map(HeaderValue::as_bytes), Some(parent.as_bytes()));
            assert_eq!(sent.get(TRACESTATE).map(HeaderValue::as_bytes), forwarded.map(str::as_bytes));
        }
    }
}
