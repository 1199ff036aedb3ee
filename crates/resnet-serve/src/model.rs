//! A model that is served: checkpoint description, engine, and one image's way through both.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use resnet_image::decode;
use resnet_model::classifier::{self, Score};
use resnet_model::engine::{Engine, EngineOptions, Output};
use resnet_model::{Checkpoint, Meta, Prediction};

use crate::error::ApiError;
use crate::routes::oip::Stats;

/// Tap of the pooled features `[N, C]`.
pub const FEATURES: &str = "pooled";
/// Tap of the logits `[N, K]`.
pub const LOGITS: &str = "logits";

/// A compiled checkpoint under a name.
#[derive(Debug)]
pub struct ServedModel {
    name: String,
    meta: Meta,
    engine: Engine,
    stats: Stats,
}

/// One image of a request.
#[derive(Debug, Clone)]
pub enum Input {
    /// An encoded image file, preprocessed as the checkpoint specifies.
    Encoded(Bytes),
    /// Normalized pixels.
    Tensor {
        /// `[C, H, W]`.
        dims: [usize; 3],
        /// C × H × W values.
        values: Vec<f32>,
    },
}

/// An image ready for the network.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// `[C, H, W]`.
    pub dims: [usize; 3],
    pub values: Vec<f32>,
    pub times: Times,
    /// `[width, height]` in pixels of the decoded image; `None` for a tensor.
    pub size: Option<[u32; 2]>,
}

/// Durations of the stages of one image.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Decoding of the image file.
    pub decode: Duration,
    /// Resizing, cropping and normalization.
    pub preprocess: Duration,
    /// Waiting for a worker thread, before decoding and before the computation.
    pub queue: Duration,
    /// The network.
    pub compute: Duration,
}

/// Result of one image.
#[derive(Debug)]
pub struct Answer {
    /// Requested outputs `[1, …]`, in the order of the request.
    pub outputs: Vec<Output>,
    /// Durations of the stages.
    pub times: Times,
    /// `[width, height]` in pixels of the decoded image; `None` for a tensor.
    pub size: Option<[u32; 2]>,
}

impl ServedModel {
    /// Compiles `checkpoint` for `threads` threads under `name`.
    ///
    /// # Errors
    ///
    /// Those of [`Engine::new`], and names that are not 1 to 128 letters, digits, `-`, `_` and `.`, or begin with `.`.
    pub fn new(name: &str, checkpoint: &Checkpoint, threads: usize) -> Result<ServedModel, ApiError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(plain) {
            return Err(ApiError::Invalid(format!(
                "invalid model name `{}`: expected 1 to 128 letters, digits, `-`, `_` or `.`",
                resnet_model::escape(name)
            )));
        }
        let options = EngineOptions { threads, ..EngineOptions::default() };
        let engine = Engine::new(checkpoint, options).map_err(|e| ApiError::Internal(e.to_string()))?;
        Ok(ServedModel {
            name: name.to_owned(),
            meta: checkpoint.meta().clone(),
            engine,
            stats: Stats::default(),
        })
    }

    /// Name under which the model is served.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Description of the checkpoint.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The compiled network.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Counts and durations of the model's inferences.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Name of the tap that holds the pooled features `[N, C]`.
    ///
    /// # Errors
    ///
    /// [`ApiError::Unsupported`] if the network ends without global pooling.
    pub fn features_tap(&self) -> Result<&str, ApiError> {
        let unsupported = || ApiError::Unsupported { model: self.name.clone(), what: "features".into() };
        self.engine.graph().tap(FEATURES).map(|tap| tap.name.as_str()).map_err(|_| unsupported())
    }

    /// Number of classes.
    ///
    /// # Errors
    ///
    /// [`ApiError::Unsupported`] if the network has no classification head.
    pub fn classes(&self) -> Result<usize, ApiError> {
        let unsupported =
            || ApiError::Unsupported { model: self.name.clone(), what: "classification".into() };
        self.meta.arch.classes().ok_or_else(unsupported)
    }

    /// The `k` best classes of one image's logits `[K]`, best first.
    ///
    /// # Errors
    ///
    /// [`ApiError::Internal`] if the network returned NaN.
    pub fn top_k(&self, logits: &[f32], k: usize, score: Score) -> Result<Vec<Prediction>, ApiError> {
        if logits.iter().any(|x| x.is_nan()) {
            return Err(ApiError::Internal("the network returned NaN".into()));
        }
        Ok(classifier::top_k(logits, k, score, &self.meta.labels))
    }

    /// Runs the network once on zeros, so that the first request finds memory and code warm.
    ///
    /// # Errors
    ///
    /// [`ApiError::Internal`] if the network cannot run.
    pub fn warm_up(&self) -> Result<(), ApiError> {
        let [height, width] = self.meta.preprocess.crop;
        let dims = [self.meta.arch.in_channels(), height, width];
        let values = vec![0.0; dims.iter().product()];
        let zeros = Prepared { dims, values, times: Times::default(), size: None };
        let tap = if self.classes().is_ok() { LOGITS } else { FEATURES };
        for all in [true, false] {
            self.compute(&zeros, &[tap.to_owned()], all)?;
        }
        Ok(())
    }

    /// Decodes and preprocesses one image.
    pub(crate) fn prepare(&self, input: Input) -> Result<Prepared, ApiError> {
        match input {
            Input::Tensor { dims, values } => {
                let channels = self.meta.arch.in_channels();
                if dims[0] != channels || dims.iter().product::<usize>() != values.len() {
                    return Err(ApiError::Invalid(format!(
                        "input has shape {dims:?} and {} values, expected [{channels}, H, W]",
                        values.len()
                    )));
                }
                Ok(Prepared { dims, values, times: Times::default(), size: None })
            }
            Input::Encoded(bytes) => {
                let start = Instant::now();
                let image = decode::decode(&bytes).map_err(|e| ApiError::Image(e.to_string()))?;
                drop(bytes);
                let decoded = Instant::now();
                let values =
                    self.meta.preprocess.apply(&image).map_err(|e| ApiError::Image(e.to_string()))?;
                let times =
                    Times { decode: decoded - start, preprocess: decoded.elapsed(), ..Times::default() };
                let [height, width] = self.meta.preprocess.crop;
                let dims = [self.meta.arch.in_channels(), height, width];
                Ok(Prepared { dims, values, times, size: Some([image.width(), image.height()]) })
            }
        }
    }

    /// Runs the network on one image, with all threads of the engine or on the calling thread only.
    pub(crate) fn compute(
        &self,
        image: &Prepared,
        taps: &[String],
        all: bool,
    ) -> Result<Vec<Output>, ApiError> {
        let [c, h, w] = image.dims;
        let taps: Vec<&str> = taps.iter().map(String::as_str).collect();
        let dims = [1, c, h, w];
        let outputs = match all {
            true => self.engine.run(&image.values, dims, &taps),
            false => self.engine.run_single_threaded(&image.values, dims, &taps),
        };
        outputs.map_err(|e| match e {
            resnet_model::Error::UnknownTap { .. }
            | resnet_model::Error::TooSmall { .. }
            | resnet_model::Error::Misfit { .. }
            | resnet_model::Error::Input { .. } => ApiError::Invalid(e.to_string()),
            e => ApiError::Internal(e.to_string()),
        })
    }
}
