//! Prometheus metrics. Labels are bounded: model names are those that are served, error kinds are a closed list.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::error::ApiError;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByModel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByReason {
    model: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByRoute {
    method: String,
    route: String,
    status: u16,
}

/// Metrics of the server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<ByRoute, Counter>,
    request_seconds: Histogram,
    requests_in_progress: Gauge,
    images_in_flight: Gauge,
    images_queued: Gauge,
    images: Family<ByModel, Counter>,
    failures: Family<ByReason, Counter>,
    decode: Histogram,
    preprocess: Histogram,
    queue: Histogram,
    compute: Histogram,
}

/// Buckets in seconds from 0.5 ms to 16 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("resnet");
        let metrics = Metrics {
            requests: Family::default(),
            request_seconds: seconds(),
            requests_in_progress: Gauge::default(),
            images_in_flight: Gauge::default(),
            images_queued: Gauge::default(),
            images: Family::default(),
            failures: Family::default(),
            decode: seconds(),
            preprocess: seconds(),
            queue: seconds(),
            compute: seconds(),
            registry: Registry::default(),
        };
        registry.register("http_requests", "HTTP requests answered", metrics.requests.clone());
        let help = "Time from the headers of a request to its response";
        registry.register("http_request_seconds", help, metrics.request_seconds.clone());
        let in_progress = metrics.requests_in_progress.clone();
        registry.register("http_requests_in_progress", "HTTP requests in progress", in_progress);
        let in_flight = metrics.images_in_flight.clone();
        registry.register("images_in_flight", "Images admitted and not yet answered", in_flight);
        let queued = metrics.images_queued.clone();
        registry.register("images_queued", "Images that wait for a worker thread", queued);
        registry.register("images", "Images answered", metrics.images.clone());
        registry.register("failures", "Images or requests that failed", metrics.failures.clone());
        registry.register("decode_seconds", "Decoding of an image file", metrics.decode.clone());
        registry.register("preprocess_seconds", "Resize, crop and normalization", metrics.preprocess.clone());
        registry.register("queue_seconds", "Waiting for a worker thread", metrics.queue.clone());
        registry.register("inference_seconds", "Computation of the network", metrics.compute.clone());
        Metrics { registry, ..metrics }
    }

    pub(crate) fn decoded(&self, decode: Duration, preprocess: Duration) {
        self.decode.observe(decode.as_secs_f64());
        self.preprocess.observe(preprocess.as_secs_f64());
    }

    pub(crate) fn computed(&self, model: &str, queue: Duration, compute: Duration) {
        self.queue.observe(queue.as_secs_f64());
        self.compute.observe(compute.as_secs_f64());
        self.images.get_or_create(&ByModel { model: model.to_owned() }).inc();
    }

    pub(crate) fn failed(&self, model: &str, error: &ApiError) {
        self.count_failure(model, error.kind());
    }

    pub(crate) fn cancelled(&self, model: &str) {
        self.count_failure(model, "cancelled");
    }

    fn count_failure(&self, model: &str, reason: &'static str) {
        self.failures.get_or_create(&ByReason { model: model.to_owned(), reason }).inc();
    }

    /// Counts a request as in progress until the returned guard is dropped.
    pub(crate) fn begin_request(&self) -> RequestGuard {
        self.requests_in_progress.inc();
        RequestGuard(self.requests_in_progress.clone())
    }

    pub(crate) fn request(&self, method: &str, route: &str, status: u16, time: Duration) {
        // Methods come from clients; any but the usual ones share a label.
        let method =
            if matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "OPTIONS") { method } else { "other" };
        let labels = ByRoute { method: method.to_owned(), route: route.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.observe(time.as_secs_f64());
    }

    /// Sets the gauges of the executor.
    pub(crate) fn images(&self, in_flight: usize, queued: usize) {
        self.images_in_flight.set(in_flight as i64);
        self.images_queued.set(queued as i64);
    }

    /// Text exposition format of all metrics.
    ///
    /// # Errors
    ///
    /// A formatting error of the encoder.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A request in progress.
#[derive(Debug)]
pub(crate) struct RequestGuard(Gauge);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
