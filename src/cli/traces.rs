//! Traces: flags of the commands that serve, and OpenTelemetry's own variables, which the flags take precedence over.

use std::{env, fmt, fs, str::FromStr, time::Duration};

use super::{Exit, heading::TRACES};
use crate::{
    config::traces,
    domain::{Entropy, Secret},
    telemetry::{CollectorTls, ExportLimits, OtlpEndpoint, SampleRatio, Sampling, TraceSettings, Traces},
};

/// The flags of commands that serve.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    /// The collector that traces are sent to over OTLP/gRPC: http://<host>:<port> or https://<host>:<port>
    ///
    /// Without it, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT is used; without any, there are no traces.
    #[arg(long, value_name = "URL", env = "COLLECTIONS_OTLP_ENDPOINT", hide_env_values = true, help_heading = TRACES)]
    otlp_endpoint: Option<Secret>,
    /// The share of traces that are recorded, from 0 to 1, where the caller has not decided
    ///
    /// Without it, OTEL_TRACES_SAMPLER is used, or else 0.01.
    #[arg(long, value_name = "RATIO", env = "COLLECTIONS_OTLP_SAMPLE", help_heading = TRACES)]
    otlp_sample: Option<SampleRatio>,
}

impl TraceArgs {
    /// Starts traces where a collector is given. `service` is the default of `service.name`.
    ///
    /// # Errors
    /// A variable has no valid value, or traces cannot be exported.
    pub fn start(&self, service: &'static str, entropy: &Entropy) -> Result<Traces, Exit> {
        if variable("OTEL_SDK_DISABLED")?.is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            if self.otlp_endpoint.is_some() {
                tracing::warn!("--otlp-endpoint: there are no traces, because OTEL_SDK_DISABLED is true");
            }
            return Ok(Traces::default());
        }
        let Some((source, endpoint)) = self.endpoint()? else {
            return match self.otlp_sample {
                Some(_) => refuse("--otlp-sample", "has no effect without --otlp-endpoint"),
                None => Ok(Traces::default()),
            };
        };
        let settings = TraceSettings {
            tls: if endpoint.is_tls() { collector_tls()? } else { CollectorTls::default() },
            endpoint,
            sampling: self.sampling()?,
            limits: limits()?,
            service,
            instance: entropy.hex::<16>(),
        };
        Traces::export(settings).map_err(|error| Exit::Usage(format!("{source}: {error}")))
    }

    /// The collector, and the flag or variable that names it.
    fn endpoint(&self) -> Result<Option<(&'static str, OtlpEndpoint)>, Exit> {
        const FLAG: &str = "--otlp-endpoint";
        if let Some(endpoint) = &self.otlp_endpoint {
            // Not by clap, whose message would show a password.
            return Ok(Some((FLAG, parse(FLAG, endpoint.expose())?)));
        }
        let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let Some((name, endpoint)) = first_of(&names)? else { return Ok(None) };
        if variable("OTEL_TRACES_EXPORTER")?.is_some_and(|exporter| exporter != "otlp") {
            return Ok(None);
        }
        // The endpoint is that of another protocol.
        let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        if let Some((name, protocol)) = first_of(&protocols)?
            && protocol != "grpc"
        {
            return refuse(
                name,
                "only grpc is supported; give --otlp-endpoint, or OTEL_TRACES_EXPORTER=none",
            );
        }
        Ok(Some((name, parse(name, &endpoint)?)))
    }

    fn sampling(&self) -> Result<Sampling, Exit> {
        const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
        if let Some(ratio) = self.otlp_sample {
            return Ok(Sampling { ratio, follows_parent: true });
        }
        let Some(sampler) = variable(SAMPLER)? else { return sampling(traces::SAMPLE_RATIO, true) };
        let by_parent = sampler.strip_prefix("parentbased_");
        let follows_parent = by_parent.is_some();
        match by_parent.unwrap_or(&sampler) {
            "always_on" => sampling(1.0, follows_parent),
            "always_off" => sampling(0.0, follows_parent),
            "traceidratio" => match first_of(&["OTEL_TRACES_SAMPLER_ARG"])? {
                Some((name, text)) => Ok(Sampling { ratio: parse(name, &text)?, follows_parent }),
                None => sampling(1.0, follows_parent),
            },
            _ => refuse(
                SAMPLER,
                "expected always_on, always_off or traceidratio, or one of them after parentbased_; or give --otlp-sample",
            ),
        }
    }
}

fn sampling(ratio: f64, follows_parent: bool) -> Result<Sampling, Exit> {
    let ratio = SampleRatio::new(ratio).ok_or_else(|| Exit::failed("the ratio is not from 0 to 1"))?;
    Ok(Sampling { ratio, follows_parent })
}

/// The limits, with those of the environment.
fn limits() -> Result<ExportLimits, Exit> {
    let defaults = ExportLimits::default();
    let queue = number("OTEL_BSP_MAX_QUEUE_SIZE")?.unwrap_or(defaults.queue);
    let batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")?.unwrap_or(defaults.batch).min(queue);
    let milliseconds = |name| Ok::<_, Exit>(number(name)?.map(Duration::from_millis));
    Ok(ExportLimits {
        queue,
        batch,
        interval: milliseconds("OTEL_BSP_SCHEDULE_DELAY")?.unwrap_or(defaults.interval),
        timeout: milliseconds("OTEL_BSP_EXPORT_TIMEOUT")?.unwrap_or(defaults.timeout),
    })
}

/// The files that the environment names for TLS to the collector.
fn collector_tls() -> Result<CollectorTls, Exit> {
    let authorities = file(&["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"])?;
    let certificate =
        file(&["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"])?;
    let key = file(&["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"])?;
    if certificate.is_some() != key.is_some() {
        return refuse(
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            "is needed together with OTEL_EXPORTER_OTLP_CLIENT_KEY",
        );
    }
    Ok(CollectorTls { authorities, identity: certificate.zip(key) })
}

fn file(names: &[&'static str]) -> Result<Option<Vec<u8>>, Exit> {
    let Some((name, path)) = first_of(names)? else { return Ok(None) };
    fs::read(&path).map(Some).map_err(|error| Exit::Usage(format!("{name} {path}: {error}")))
}

/// A positive number.
fn number<T: FromStr + PartialOrd + Default>(name: &'static str) -> Result<Option<T>, Exit> {
    let Some(text) = variable(name)? else { return Ok(None) };
    match text.parse() {
        Ok(number) if number > T::default() => Ok(Some(number)),
        _ => refuse(name, "expected a positive number"),
    }
}

/// The first of these variables that is set.
fn first_of(names: &[&'static str]) -> Result<Option<(&'static str, String)>, Exit> {
    for name in names {
        if let Some(text) = variable(name)? {
            return Ok(Some((name, text)));
        }
    }
    Ok(None)
}

/// An empty variable counts as not set.
fn variable(name: &'static str) -> Result<Option<String>, Exit> {
    match env::var_os(name).map(std::ffi::OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(Err(_)) => refuse(name, "is not UTF-8"),
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(name: &'static str, text: &str) -> Result<T, Exit> {
    text.parse().map_err(|error| Exit::Usage(format!("{name}: {error}")))
}

fn refuse<T>(name: &'static str, problem: &str) -> Result<T, Exit> {
    Err(Exit::Usage(format!("{name}: {problem}")))
}
