//! State that all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use axum::http::HeaderValue;

use crate::config::Config;
use crate::error::ApiError;
use crate::executor::Executor;
use crate::metrics::Metrics;
use crate::model::{Answer, Input, ServedModel};
use crate::registry::Registry;

/// State that all requests share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    pub(crate) registry: Registry,
    pub(crate) executor: Arc<Executor>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    shutting_down: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
}

impl App {
    /// Starts the worker threads for the models of `registry`.
    ///
    /// # Errors
    ///
    /// The system's error if a thread cannot be started.
    pub fn new(registry: Registry, config: Config) -> std::io::Result<App> {
        let metrics = Arc::new(Metrics::new());
        let executor = Arc::new(Executor::new(&config, metrics.clone())?);
        Ok(App {
            registry,
            executor,
            metrics,
            config: Arc::new(config),
            shutting_down: Arc::default(),
            requests: Arc::default(),
        })
    }

    /// Runs the images of one request; a bad image fails its own entry only.
    ///
    /// # Errors
    ///
    /// Those of admission, which concern the request as a whole.
    pub(crate) async fn infer_all(
        &self,
        model: &Arc<ServedModel>,
        inputs: Vec<Input>,
        taps: &[String],
        deadline: Option<Instant>,
    ) -> Result<Vec<Result<Answer, ApiError>>, ApiError> {
        let pending = self.executor.submit(model, inputs, taps, deadline);
        let pending = pending.inspect_err(|error| self.metrics.failed(model.name(), error))?;
        let mut answers = Vec::with_capacity(pending.len());
        for one in pending {
            answers.push(one.await.unwrap_or(Err(ApiError::ShuttingDown)));
        }
        Ok(answers)
    }

    /// Withdraws readiness; requests are still answered.
    pub(crate) fn begin_shutdown(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
    }

    /// An id for a request that came without one, unique within this process.
    pub(crate) fn next_request_id(&self) -> HeaderValue {
        HeaderValue::from(self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Metrics in the text format.
    pub(crate) fn encode_metrics(&self) -> Result<String, std::fmt::Error> {
        self.metrics.images(self.executor.in_flight(), self.executor.queued());
        self.metrics.encode()
    }

    /// Checks that all models are ready.
    ///
    /// # Errors
    ///
    /// [`ApiError::NotReady`] with the first model that is not.
    pub(crate) fn check_ready(&self) -> Result<(), ApiError> {
        if self.shutting_down.load(Ordering::Relaxed) {
            return Err(ApiError::ShuttingDown);
        }
        if self.registry.is_ready() {
            return Ok(());
        }
        for (name, _) in self.registry.list() {
            self.registry.get(Some(&name))?;
        }
        Err(ApiError::NotReady { name: "default".into(), reason: "no model is loaded".into() })
    }
}
