//! The formats of `/metrics`, and which one a request accepts.

/// A text format that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// Version 0.0.4 of Prometheus' own format.
    Plain,
    /// With exemplars.
    OpenMetrics,
}

/// How much a request wants each format, by the quality values of its `accept` header.
#[derive(Default)]
struct Weights {
    plain: f32,
    openmetrics: f32,
}

impl MetricsFormat {
    /// The format that an `accept` header prefers: OpenMetrics where it is named and nothing is preferred to it.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let mut weights = Weights::default();
        for range in accept.split(',') {
            weights.add(range);
        }
        let Weights { plain, openmetrics } = weights;
        if openmetrics > 0.0 && openmetrics >= plain { Self::OpenMetrics } else { Self::Plain }
    }

    /// The `content-type` of the response.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A quality value; one that is not from 0 to 1 counts as 0.
fn quality_of(text: &str) -> f32 {
    text.parse().ok().filter(|quality| (0.0..=1.0).contains(quality)).unwrap_or(0.0)
}

impl Weights {
    /// Adds a media range, such as `application/openmetrics-text;version=1.0.0;q=0.5`.
    fn add(&mut self, range: &str) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let (mut quality, mut version) = (1.0, None);
        for parameter in parts {
            let Some((name, value)) = parameter.split_once('=') else { continue };
            match name.trim() {
                name if name.eq_ignore_ascii_case("q") => quality = quality_of(value.trim()),
                name if name.eq_ignore_ascii_case("version") => {
                    version = Some(value.trim().trim_matches('"'))
                }
                _ => {}
            }
        }
        let weight = if media.eq_ignore_ascii_case("application/openmetrics-text") {
            // The version that is written.
            if version.is_some_and(|version| version != "1.0.0") {
                return;
            }
            &mut self.openmetrics
        } else if ["text/plain", "text/*", "*/*"].iter().any(|plain| media.eq_ignore_ascii_case(plain)) {
            &mut self.plain
        } else {
            return;
        };
        *weight = weight.max(quality);
    }
}

#[cfg(test)]
mod tests {
    use super::MetricsFormat::{self, OpenMetrics, Plain};

    #[test]
    fn the_format_with_the_highest_quality_value_is_chosen() {
        for (accept, format) in [
            ("", Plain),
            ("*/*", Plain),
            ("text/html", Plain),
            ("text/plain", Plain),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"", OpenMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", OpenMetrics),
            ("application/openmetrics-text; version=2.0.0", Plain),
            ("application/openmetrics-text, */*", OpenMetrics),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.6", Plain),
            ("application/openmetrics-text;q=0.6, text/plain;q=0.5", OpenMetrics),
            ("application/openmetrics-text;q=0, */*;q=0.1", Plain),
            ("application/openmetrics-text;q=x", Plain),
            // Prometheus 2 and 3.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
        ] {
            assert_eq!(MetricsFormat::accepted(accept), format, "{accept}");
        }
    }
}
