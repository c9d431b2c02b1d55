//! The export of spans: a queue, and a thread with a runtime of its own, so that neither the encoding of spans nor a slow
//! collector takes time from the calls.

use std::{
    collections::VecDeque,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use opentelemetry_otlp::{
    SpanExporter as OtlpExporter, WithExportConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig, Identity},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Notify, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{OtlpEndpoint, TraceError};
use crate::config::traces;

/// The limits of the export.
#[derive(Clone, Copy, Debug)]
pub struct ExportLimits {
    /// Spans that wait; further ones are dropped.
    pub queue: usize,
    /// Spans in one export.
    pub batch: usize,
    /// How long a span waits for others.
    pub interval: Duration,
    /// The longest that one export may take.
    pub timeout: Duration,
}

impl Default for ExportLimits {
    fn default() -> Self {
        Self {
            queue: traces::SPAN_QUEUE,
            batch: traces::SPAN_BATCH,
            interval: traces::EXPORT_INTERVAL,
            timeout: traces::EXPORT_TIMEOUT,
        }
    }
}

/// What a TLS connection to the collector uses, as PEM.
#[derive(Debug, Default)]
pub struct CollectorTls {
    /// The authorities that sign the collector's certificate; without them, those that browsers trust.
    pub authorities: Option<Vec<u8>>,
    /// The certificate chain that authenticates this process to the collector, and its private key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl CollectorTls {
    fn config(self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new();
        let config = match self.authorities {
            Some(authorities) => config.ca_certificate(Certificate::from_pem(authorities)),
            None => config.with_enabled_roots(),
        };
        match self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        }
    }
}

/// The thread that exports. It ends when this is dropped.
#[derive(Debug)]
pub struct Exporting {
    /// Sends the deadline of the last exports, and receives their end.
    stop: Mutex<Option<(oneshot::Sender<Instant>, oneshot::Receiver<()>)>>,
}

/// Spans that have ended and wait.
#[derive(Debug)]
struct Queue {
    limits: ExportLimits,
    spans: Mutex<VecDeque<SpanData>>,
    /// A whole batch waits. Notified for each batch and not for each span, because waking a thread costs more than a span.
    is_due: Notify,
    dropped: AtomicU64,
}

/// Puts ended spans into the queue.
#[derive(Debug)]
pub struct QueueProcessor(Arc<Queue>);

impl Exporting {
    /// # Errors
    /// The exporter's settings cannot be used, or the thread cannot be started.
    pub fn start(
        endpoint: &OtlpEndpoint,
        tls: CollectorTls,
        limits: ExportLimits,
        resource: &Resource,
    ) -> Result<(Self, QueueProcessor), TraceError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let exporter = {
            // The connection's tasks run there.
            let _entered = runtime.enter();
            let mut exporter = OtlpExporter::builder().with_tonic().with_endpoint(endpoint.to_string());
            if endpoint.is_tls() {
                exporter = exporter.with_tls_config(tls.config());
            }
            let mut exporter = exporter.build()?;
            exporter.set_resource(resource);
            exporter
        };
        let queue = Arc::new(Queue {
            limits,
            spans: Mutex::default(),
            is_due: Notify::new(),
            dropped: AtomicU64::new(0),
        });
        let (stop, stopping) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let worker = Worker { exporter, queue: queue.clone(), report: Report::new(queue.clone()) };
        thread::Builder::new()
            .name("traces".to_owned())
            .spawn(move || work(&runtime, worker, stopping, ended))?;
        Ok((Self { stop: Mutex::new(Some((stop, end))) }, QueueProcessor(queue)))
    }

    /// Exports what waits, until the deadline.
    pub async fn shut_down(&self, deadline: Instant) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((stop, end)) = stop else { return };
        if stop.send(deadline).is_ok() {
            let _ended = timeout_at(deadline + traces::FLUSH_GRACE, end).await;
        }
    }
}

fn work(runtime: &Runtime, worker: Worker, stopping: oneshot::Receiver<Instant>, ended: oneshot::Sender<()>) {
    runtime.block_on(worker.run(stopping));
    // Nothing waits for it where the start has failed.
    let _waiting = ended.send(());
}

impl Queue {
    fn push(&self, span: SpanData) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() >= self.limits.queue {
            drop(spans);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        spans.push_back(span);
        let is_due = spans.len() == self.limits.batch;
        drop(spans);
        if is_due {
            self.is_due.notify_one();
        }
    }

    /// Up to a batch of the spans that have waited longest.
    fn take(&self) -> Vec<SpanData> {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let count = spans.len().min(self.limits.batch);
        spans.drain(..count).collect()
    }
}

impl SpanProcessor for QueueProcessor {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.push(span);
    }

    /// Spans are exported by the thread alone.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Exports one batch after the other.
struct Worker {
    exporter: OtlpExporter,
    queue: Arc<Queue>,
    report: Report,
}

impl Worker {
    /// Exports until it is stopped, then what waits, until the deadline it gets. A collector that fails then is not tried again.
    async fn run(mut self, stopping: oneshot::Receiver<Instant>) {
        let mut stopping = pin!(stopping);
        let deadline = loop {
            tokio::select! {
                deadline = stopping.as_mut() => break deadline,
                () = self.queue.is_due.notified() => {}
                () = tokio::time::sleep(self.queue.limits.interval) => {}
            }
            if let Some(deadline) = self.export_all(stopping.as_mut()).await {
                break deadline;
            }
        };
        // Without a deadline the start has failed, and no call was served.
        let deadline = deadline.unwrap_or_else(|_dropped| Instant::now());
        loop {
            let spans = self.queue.take();
            if spans.is_empty() || !self.export(spans, Some(deadline)).await {
                break;
            }
        }
        let unsent = mem::take(&mut *self.queue.spans.lock().unwrap_or_else(PoisonError::into_inner));
        self.report.failed += unsent.len() as u64;
        self.report.log_end();
    }

    /// Exports what waits. Returns the deadline when it is stopped meanwhile.
    async fn export_all(
        &mut self,
        mut stopping: Pin<&mut oneshot::Receiver<Instant>>,
    ) -> Option<Result<Instant, oneshot::error::RecvError>> {
        loop {
            let spans = self.queue.take();
            if spans.is_empty() {
                self.report.log_overflow();
                return None;
            }
            let mut export = pin!(self.export(spans, None));
            tokio::select! {
                _is_exported = export.as_mut() => {}
                deadline = stopping.as_mut() => {
                    let until = *deadline.as_ref().unwrap_or(&Instant::now());
                    let _elapsed = timeout_at(until, export).await;
                    return Some(deadline);
                }
            }
        }
    }

    /// Whether the collector has accepted them.
    async fn export(&mut self, spans: Vec<SpanData>, deadline: Option<Instant>) -> bool {
        let count = spans.len() as u64;
        // Counted first: when the deadline passes, this future is dropped.
        self.report.failed += count;
        let export = timeout(self.queue.limits.timeout, self.exporter.export(spans));
        let exported = match deadline {
            Some(deadline) => timeout_at(deadline, export).await.unwrap_or_else(Err),
            None => export.await,
        };
        let error = match exported {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_elapsed) => Some("no answer in time".to_owned()),
        };
        self.report.log_change(count, error.as_deref());
        self.report.log_overflow();
        if error.is_none() {
            self.report.failed -= count;
        }
        error.is_none()
    }
}

/// What is counted and logged: one line for each change.
#[derive(Debug)]
struct Report {
    queue: Arc<Queue>,
    /// Spans that the collector has not accepted.
    failed: u64,
    /// The spans lost before exports began to fail, while they fail.
    outage: Option<u64>,
    /// Spans for which the queue had no place, when that was last checked.
    dropped: u64,
    /// When spans were last dropped, while the beginning of that was logged and not its end.
    overflow: Option<Instant>,
}

impl Report {
    const fn new(queue: Arc<Queue>) -> Self {
        Self { queue, failed: 0, outage: None, dropped: 0, overflow: None }
    }

    fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    /// After an export of so many spans, which are counted as failed.
    fn log_change(&mut self, count: u64, error: Option<&str>) {
        let lost = self.failed - count + self.dropped();
        match (self.outage, error) {
            (None, Some(error)) => {
                self.outage = Some(lost);
                tracing::warn!(
                    error,
                    "traces cannot be exported; spans are dropped until the collector accepts them"
                );
            }
            (Some(before), None) => {
                self.outage = None;
                tracing::info!(spans_lost = lost - before, "traces are exported again");
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    fn log_overflow(&mut self) {
        let dropped = self.dropped();
        let more = dropped - self.dropped;
        self.dropped = dropped;
        // While exports fail, that is logged already.
        if more > 0 && self.outage.is_none() {
            if self.overflow.replace(Instant::now()).is_none() {
                tracing::warn!(
                    spans = more,
                    "spans dropped: the queue is full; record fewer traces, or enlarge it by OTEL_BSP_MAX_QUEUE_SIZE"
                );
            }
        } else if self.overflow.is_some_and(|last| last.elapsed() > traces::OVERFLOW_QUIET) {
            self.overflow = None;
            tracing::info!(spans_dropped = dropped, "no more spans are dropped");
        }
    }

    fn log_end(&self) {
        let dropped = self.dropped();
        if self.failed > 0 || dropped > 0 {
            tracing::warn!(spans_failed = self.failed, spans_dropped = dropped, "spans were not exported");
        }
    }
}
