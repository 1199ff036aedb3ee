//! Settings of a run, read from TOML, and their comparison on resuming.

use std::path::Path;

use resnet_model::network::Statistics;
use resnet_model::parameters::Trainable;
use serde::{Deserialize, Serialize};

use crate::augment::Augment;
use crate::error::require;
use crate::loss::Loss;
use crate::optim::{OptimizerConfig, OptimizerKind};
use crate::schedule::Schedule;
use crate::{Error, Result};

/// Settings of a run. Every field has a default; unknown fields are rejected.
///
/// ```
/// use resnet_train::Config;
/// let config = Config::from_toml("epochs = 5\n[optimizer]\nkind = \"adamw\"\n")?;
/// assert_eq!(config.epochs, 5);
/// assert!(Config::from_toml("epoch = 5").unwrap_err().to_string().contains("unknown field `epoch`"));
/// # Ok::<(), resnet_train::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per batch and process.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one step.
    pub grad_accum_steps: usize,
    /// Trainable part: `all`, `head`, or a tap such as `layer3`, which and all later layers are trained.
    pub train: String,
    /// If `true`, batch norms use and keep their running statistics.
    pub freeze_bn: bool,
    /// If `true`, batch norm statistics are computed over the batches of all processes.
    #[serde(skip_serializing_if = "is_false")]
    pub sync_bn: bool,
    /// Fraction of each class used for validation, if the dataset has no split.
    pub val_fraction: f64,
    /// Maximum fraction of images that may be unreadable, in training and validation each.
    pub max_unreadable: f64,
    /// Maximum L2 norm of all gradients; larger gradients are scaled down (`clip_grad_norm_`).
    pub clip_grad: Option<f64>,
    /// Decay of the exponential moving average of the parameters, which is then evaluated and saved; e.g. 0.9998.
    pub ema_decay: Option<f64>,
    /// Epochs without improvement after which training stops early.
    pub patience: Option<usize>,
    /// Epoch whose network is the result.
    #[serde(skip_serializing_if = "Keep::is_best")]
    pub keep: Keep,
    /// Steps between saved states, in addition to the end of each epoch.
    pub save_every: Option<u64>,
    /// Dropout probability before the last layer.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// Drop-path probability of the last block; it rises linearly with depth (stochastic depth).
    #[serde(skip_serializing_if = "is_zero")]
    pub drop_path: f64,
    /// Augmentation of training images.
    pub augment: Augment,
    /// Loss function.
    pub loss: Loss,
    /// Optimizer.
    pub optimizer: OptimizerConfig,
    /// Learning rate schedule.
    pub schedule: Schedule,
}

/// Epoch whose network is the result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The epoch with the best validation accuracy, which is optimistically biased by this choice.
    Best,
    /// The last epoch, so that the validation accuracy is unbiased.
    Last,
}

impl Keep {
    /// Serde predicate like [`is_zero`].
    fn is_best(&self) -> bool {
        *self == Keep::Best
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            seed: 0,
            epochs: 10,
            batch_size: 32,
            grad_accum_steps: 1,
            train: "all".into(),
            freeze_bn: false,
            sync_bn: false,
            val_fraction: 0.1,
            max_unreadable: 0.01,
            clip_grad: None,
            ema_decay: None,
            patience: None,
            keep: Keep::Best,
            save_every: None,
            dropout: 0.0,
            drop_path: 0.0,
            augment: Augment::default(),
            loss: Loss::default(),
            optimizer: OptimizerConfig::default(),
            schedule: Schedule::default(),
        }
    }
}

/// Earlier names of settings, and their names now.
const RENAMED: [(&str, &str); 14] = [
    ("accumulate", "grad_accum_steps"),
    ("clip", "clip_grad"),
    ("ema", "ema_decay"),
    ("erase", "random_erasing"),
    ("factor", "gamma"),
    ("flip", "hflip"),
    ("freeze_statistics", "freeze_bn"),
    ("held_out", "val_fraction"),
    ("last", "end_factor"),
    ("rand_operations", "rand_num_ops"),
    ("rate", "lr"),
    ("shift", "translate"),
    ("smoothing", "label_smoothing"),
    ("warm_up", "warmup"),
];

impl Config {
    /// Parses TOML.
    ///
    /// # Errors
    /// Invalid syntax, unknown fields, invalid values.
    pub fn from_toml(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|error| {
            let mut message = error.to_string();
            let unknown = |old: &str| message.contains(&format!("unknown field `{old}`"));
            if let Some((old, new)) = RENAMED.into_iter().find(|(old, _)| unknown(old)) {
                message = format!("{}\n`{old}` is now called `{new}`", message.trim_end());
            }
            Error::Syntax(message)
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a TOML file of at most 1 MiB.
    pub fn open(path: &Path) -> Result<Config> {
        const MAX: u64 = 1 << 20;
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX), &mut text)
            .map_err(Error::io(path))?;
        Config::from_toml(&text)
    }

    /// Returns an error if a value is invalid.
    pub fn validate(&self) -> Result<()> {
        let fraction = |x: f64| (0.0..1.0).contains(&x);
        let shown = |x: Option<f64>| x.map_or("none".into(), |x| x.to_string());
        require("epochs", self.epochs, "1 to 100000", (1..=100_000).contains(&self.epochs))?;
        require("batch_size", self.batch_size, "1 to 65536", (1..=65_536).contains(&self.batch_size))?;
        require(
            "grad_accum_steps",
            self.grad_accum_steps,
            "1 to 65536",
            (1..=65_536).contains(&self.grad_accum_steps),
        )?;
        require("val_fraction", self.val_fraction, "0 to less than 1", fraction(self.val_fraction))?;
        require("max_unreadable", self.max_unreadable, "0 to less than 1", fraction(self.max_unreadable))?;
        require("dropout", self.dropout, "0 to less than 1", fraction(self.dropout))?;
        require("drop_path", self.drop_path, "0 to less than 1", fraction(self.drop_path))?;
        require("ema_decay", shown(self.ema_decay), "0 to less than 1", self.ema_decay.is_none_or(fraction))?;
        let positive = self.clip_grad.is_none_or(|clip| clip > 0.0 && clip.is_finite());
        require("clip_grad", shown(self.clip_grad), "more than 0", positive)?;
        require("patience", 0, "1 or more", self.patience != Some(0))?;
        require("save_every", 0, "1 or more", self.save_every != Some(0))?;
        self.augment.validate()?;
        self.loss.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()
    }

    /// Returns the peak learning rate for a schedule that sets none: lower for `pretrained` weights, where it grows with the
    /// total batch size over `world_size` processes (0.005 for SGD and 32 images).
    pub fn default_lr(&self, pretrained: bool, world_size: usize) -> f64 {
        let base = match self.optimizer.kind {
            OptimizerKind::Sgd => 0.1,
            OptimizerKind::AdamW => 1e-3,
            OptimizerKind::Lamb => 5e-3,
        };
        let images = self.batch_size * self.grad_accum_steps * world_size;
        if pretrained { (base * images as f64 / 640.0).min(base) } else { base }
    }

    /// Returns the trainable part of the network.
    pub fn trained(&self) -> Trainable {
        match self.train.as_str() {
            "all" => Trainable::All,
            "head" => Trainable::Head,
            tap => Trainable::From(tap.to_owned()),
        }
    }

    /// Returns the source of batch norm statistics in training.
    pub fn statistics(&self) -> Statistics {
        if self.freeze_bn { Statistics::Running } else { Statistics::default() }
    }
}

/// Serde predicate: settings that are off are not written.
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// Returns the settings that differ, each as `name: A in the run, B now`.
pub(crate) fn differences(there: &serde_json::Value, here: &serde_json::Value) -> Vec<String> {
    fn walk(path: &str, a: &serde_json::Value, b: &serde_json::Value, out: &mut Vec<String>) {
        use serde_json::Value::{Null, Object};
        match (a, b) {
            (Object(x), Object(y)) => {
                let extra = y.keys().filter(|key| !x.contains_key(*key));
                for key in x.keys().chain(extra) {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, x.get(key).unwrap_or(&Null), y.get(key).unwrap_or(&Null), out);
                }
            }
            _ if a != b => out.push(format!("{path}: {a} in the run, {b} now")),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk("", there, here, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_settings_are_rejected() {
        let check = |text: &str, message: &str| {
            let error = Config::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        };
        check("epochs = 0", "setting `epochs` is 0, expected 1 to 100000");
        check("dropout = 1.0", "setting `dropout` is 1, expected 0 to less than 1");
        check("drop_path = -0.1", "setting `drop_path` is -0.1");
        check("clip_grad = -1.0", "setting `clip_grad` is -1");
        check("[loss]\nlabel_smoothing = 1.5", "setting `loss.label_smoothing` is 1.5");
        check("[optimizer]\nkind = \"sgd\"\nrate = 1", "rate");
        check("[schedule]\nlr = nan", "setting `schedule.lr` is NaN");
        check("epochs = ", "configuration: ");
        assert_eq!(Config::from_toml("").unwrap(), Config::default());
        let json = serde_json::to_string(&Config::default()).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), Config::default());
    }

    #[test]
    fn default_learning_rates_depend_on_weights_and_batch_size() {
        let sgd = Config::default();
        assert_eq!(
            [sgd.default_lr(false, 1), sgd.default_lr(true, 1), sgd.default_lr(true, 2)],
            [0.1, 0.005, 0.01]
        );
        let mut adamw = Config { batch_size: 4096, ..Config::default() };
        adamw.optimizer.kind = OptimizerKind::AdamW;
        assert_eq!([adamw.default_lr(false, 1), adamw.default_lr(true, 1)], [1e-3, 1e-3]);
    }

    #[test]
    fn differences_are_named() {
        let here = serde_json::to_value(Config::default()).unwrap();
        let there =
            serde_json::to_value(Config::from_toml("epochs = 3\n[schedule]\nlr = 0.5\n").unwrap()).unwrap();
        assert_eq!(
            differences(&there, &here),
            ["epochs: 3 in the run, 10 now", "schedule.lr: 0.5 in the run, null now"]
        );
        assert!(differences(&here, &here).is_empty());
    }
}
