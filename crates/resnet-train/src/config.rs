//! All settings of a run: a TOML file, and what a resumed run must agree with.

use std::path::Path;

use resnet_model::network::Statistics;
use resnet_model::parameters::Trainable;
use serde::{Deserialize, Serialize};

use crate::augment::Augment;
use crate::loss::Loss;
use crate::optim::Optimizer;
use crate::schedule::Schedule;
use crate::{Error, Result};

/// The settings of a run. Every field has a default; unknown ones are refused.
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
    /// Chooses all random numbers.
    pub seed: u64,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per batch, of each worker.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: usize,
    /// What is trained: `all`, `head`, or a tap such as `layer3` from which on.
    pub train: String,
    /// Whether batch norms keep their running statistics.
    pub freeze_statistics: bool,
    /// Whether batch norms take their statistics over the batches of all workers.
    #[serde(skip_serializing_if = "is_false")]
    pub sync_bn: bool,
    /// The share of images of each class that are held out, if the dataset has no split of its own.
    pub held_out: f64,
    /// The largest share of images that may be unreadable.
    pub unreadable: f64,
    /// The largest norm of all gradients together; longer ones are shortened.
    pub clip: Option<f64>,
    /// The decay of the averaged parameters, which are then evaluated and saved; e.g. 0.9998.
    pub ema: Option<f64>,
    /// Epochs without a better result after which training stops.
    pub patience: Option<usize>,
    /// Which epoch's network is the result.
    #[serde(skip_serializing_if = "Keep::is_best")]
    pub keep: Keep,
    /// Steps after which the state is saved, besides the end of each epoch.
    pub save_every: Option<u64>,
    /// The probability that a feature before the last layer is left out in training.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// The probability that the last block's branch is left out in training; that of earlier ones is smaller in
    /// proportion (stochastic depth).
    #[serde(skip_serializing_if = "is_zero")]
    pub drop_path: f64,
    /// How images are varied.
    pub augment: Augment,
    /// What is minimised.
    pub loss: Loss,
    /// How parameters move.
    pub optimizer: Optimizer,
    /// The learning rate over time.
    pub schedule: Schedule,
}

/// Which epoch's network is the result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The one with most held-out images right. Its share of them is flattered by the choice.
    Best,
    /// The last, so that the held-out images choose nothing and measure honestly.
    Last,
}

impl Keep {
    /// Like [`is_zero`].
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
            accumulate: 1,
            train: "all".into(),
            freeze_statistics: false,
            sync_bn: false,
            held_out: 0.1,
            unreadable: 0.01,
            clip: None,
            ema: None,
            patience: None,
            keep: Keep::Best,
            save_every: None,
            dropout: 0.0,
            drop_path: 0.0,
            augment: Augment::default(),
            loss: Loss::default(),
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
        }
    }
}

/// Refuses a setting for which `fine` does not hold.
pub(crate) fn require(
    name: &'static str,
    found: impl ToString,
    expected: &'static str,
    fine: bool,
) -> Result<()> {
    if fine { Ok(()) } else { Err(Error::Setting { name, found: found.to_string(), expected }) }
}

impl Config {
    /// Reads a TOML text. Errors: its syntax, unknown fields, values that make no sense.
    pub fn from_toml(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|e| Error::Syntax(e.to_string()))?;
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

    /// Refuses values that make no sense.
    pub fn validate(&self) -> Result<()> {
        let share = |x: f64| (0.0..1.0).contains(&x);
        let decay = |x: Option<f64>| x.is_none_or(share);
        let shown = |x: Option<f64>| x.map_or("none".into(), |x| x.to_string());
        require("epochs", self.epochs, "1 to 100000", (1..=100_000).contains(&self.epochs))?;
        require("batch_size", self.batch_size, "1 to 65536", (1..=65_536).contains(&self.batch_size))?;
        require("accumulate", self.accumulate, "1 to 65536", (1..=65_536).contains(&self.accumulate))?;
        require("held_out", self.held_out, "0 to less than 1", share(self.held_out))?;
        require("unreadable", self.unreadable, "0 to less than 1", share(self.unreadable))?;
        require("dropout", self.dropout, "0 to less than 1", share(self.dropout))?;
        require("drop_path", self.drop_path, "0 to less than 1", share(self.drop_path))?;
        require("ema", shown(self.ema), "0 to less than 1", decay(self.ema))?;
        let positive = self.clip.is_none_or(|clip| clip > 0.0 && clip.is_finite());
        require("clip", shown(self.clip), "more than 0", positive)?;
        require("patience", 0, "1 or more", self.patience != Some(0))?;
        require("save_every", 0, "1 or more", self.save_every != Some(0))?;
        self.augment.validate()?;
        self.loss.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()
    }

    /// The part of the network that is trained.
    pub fn trained(&self) -> Trainable {
        match self.train.as_str() {
            "all" => Trainable::All,
            "head" => Trainable::Head,
            tap => Trainable::From(tap.to_owned()),
        }
    }

    /// The statistics of trained batch norms.
    pub fn statistics(&self) -> Statistics {
        if self.freeze_statistics { Statistics::Running } else { Statistics::default() }
    }
}

/// Settings that are off are not written, so that runs saved before there were any can be resumed.
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The settings in which `there` and `here` differ, each as `name: there A, here B`.
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
            _ if a != b => out.push(format!("{path}: there {a}, here {b}")),
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
    fn settings_are_checked() {
        let check = |text: &str, message: &str| {
            let error = Config::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        };
        check("epochs = 0", "setting `epochs` is 0, expected 1 to 100000");
        check("dropout = 1.0", "setting `dropout` is 1, expected 0 to less than 1");
        check("drop_path = -0.1", "setting `drop_path` is -0.1");
        check("clip = -1.0", "setting `clip` is -1");
        check("[loss]\nsmoothing = 1.5", "setting `loss.smoothing` is 1.5");
        check("[optimizer]\nkind = \"sgd\"\nrate = 1", "rate");
        check("[schedule]\nrate = nan", "setting `schedule.rate` is NaN");
        check("epochs = ", "configuration: ");
        assert_eq!(Config::from_toml("").unwrap(), Config::default());
        let json = serde_json::to_string(&Config::default()).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), Config::default());
    }

    #[test]
    fn differences_are_named() {
        let here = serde_json::to_value(Config::default()).unwrap();
        let there =
            serde_json::to_value(Config::from_toml("epochs = 3\n[schedule]\nrate = 0.5\n").unwrap()).unwrap();
        assert_eq!(
            differences(&there, &here),
            ["epochs: there 3, here 10", "schedule.rate: there 0.5, here 0.1"]
        );
        assert!(differences(&here, &here).is_empty());
    }
}
