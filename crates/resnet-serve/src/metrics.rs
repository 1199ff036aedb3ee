//! Prometheus metrics. Labels are bounded: model names are those that are served, error kinds are a closed list.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
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

/// Metrics of the server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
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
            images: Family::default(),
            failures: Family::default(),
            decode: seconds(),
            preprocess: seconds(),
            queue: seconds(),
            compute: seconds(),
            registry: Registry::default(),
        };
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
