//! The process, as client libraries of Prometheus report it: read from `/proc` for each response, left out where there is none.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use crate::telemetry::dropped_lines;

/// Registers what is read for each response, and the build.
pub fn register(registry: &mut Registry) {
    let revision = env!("COLLECTIONS_REVISION");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("revision", revision)]);
    registry.register(
        "collections_build",
        "The version of the program and the commit that it was built from",
        build,
    );
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

/// What `/proc/self/stat` has of the process.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: u64,
    /// After the machine started.
    start_seconds: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut counter = |name: &str, help: &str, value: f64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = Stat::parse(&read("/proc/self/stat"), clock_ticks_per_second(), page_size());
        counter(
            "collections_log_lines_dropped",
            "Log lines dropped because standard error was not read.",
            dropped_lines() as f64,
        )?;
        if let Some(stat) = &stat {
            counter("process_cpu_seconds", "CPU time used by the process.", stat.cpu_seconds)?;
        }
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        if let Some(stat) = stat {
            gauge(
                "process_resident_memory_bytes",
                "Memory of the process in RAM.",
                stat.resident_bytes as f64,
            )?;
            gauge(
                "process_virtual_memory_bytes",
                "Address space of the process.",
                stat.virtual_bytes as f64,
            )?;
            gauge("process_threads", "Threads of the process.", stat.threads as f64)?;
            if let Some(booted) = boot_time(&read("/proc/stat")) {
                let started = booted as f64 + stat.start_seconds;
                gauge("process_start_time_seconds", "Unix time at which the process started.", started)?;
            }
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // The folder that is being read is one of them.
            let open = files.count().saturating_sub(1);
            gauge("process_open_fds", "File descriptors that are open.", open as f64)?;
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge("process_max_fds", "File descriptors that may be open.", limit as f64)?;
        }
        Ok(())
    }
}

impl Stat {
    /// Fields are counted from the third, which follows the program's name: that may hold spaces and brackets.
    fn parse(text: &str, ticks: u64, page: usize) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |in_ticks: u64| in_ticks as f64 / ticks as f64;
        Some(Self {
            cpu_seconds: seconds(field(14)? + field(15)?),
            threads: field(20)?,
            start_seconds: seconds(field(22)?),
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.saturating_mul(page as u64),
        })
    }
}

/// When the machine started, in Unix seconds.
fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Stat, boot_time};

    #[test]
    fn the_files_of_proc_are_read() {
        let text = "42 (a ) name) S 1 42 42 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 3 0 12345 104857600 2048 18446744073709551615 1 1";
        let stat = Stat {
            cpu_seconds: 2.0,
            threads: 3,
            start_seconds: 123.45,
            virtual_bytes: 104_857_600,
            resident_bytes: 8_388_608,
        };
        assert_eq!(Stat::parse(text, 100, 4096), Some(stat));
        assert_eq!(Stat::parse("", 100, 4096), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\nprocesses 5\n"), Some(1_700_000_000));
    }
}
