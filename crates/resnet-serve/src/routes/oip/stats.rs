//! Statistics of one model in Triton's shape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::model::Times;
use crate::routes::oip::VERSION;

/// Counts and total durations of a model's inferences.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    success: Total,
    fail: Total,
    queue: Total,
    input: Total,
    infer: Total,
    last_ms: AtomicU64,
}

/// A number of events and their total duration in nanoseconds.
#[derive(Debug, Default)]
struct Total {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Total {
    fn add(&self, ns: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn json(&self) -> Value {
        json!({"count": self.count(), "ns": self.ns.load(Ordering::Relaxed)})
    }
}

impl Stats {
    /// Counts one image.
    pub(crate) fn add(&self, times: &Times) {
        let ns = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let input = times.decode + times.preprocess;
        self.success.add(ns(times.queue + input + times.compute));
        self.queue.add(ns(times.queue));
        self.input.add(ns(input));
        self.infer.add(ns(times.compute));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Counts one failed image.
    pub(crate) fn add_failure(&self) {
        self.fail.add(0);
    }

    pub(super) fn json(&self, name: &str) -> Value {
        let count = self.success.count();
        json!({
            "name": name,
            "version": VERSION,
            "last_inference": self.last_ms.load(Ordering::Relaxed),
            "inference_count": count,
            "execution_count": count,
            "inference_stats": {
                "success": self.success.json(),
                "fail": self.fail.json(),
                "queue": self.queue.json(),
                "compute_input": self.input.json(),
                "compute_infer": self.infer.json(),
                "compute_output": Total::default().json(),
            },
            "batch_stats": [],
        })
    }
}
