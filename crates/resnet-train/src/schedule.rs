//! The learning rate over time.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::require;

/// The learning rate over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// The highest learning rate.
    pub rate: f64,
    /// How it falls.
    pub shape: Shape,
    /// The share of all steps in which it rises from 0 in a line; not for `one_cycle`, which rises by itself.
    pub warm_up: f64,
    /// The last rate as a share of the highest.
    pub last: f64,
    /// For `step`: the shares of all steps at which the rate falls.
    pub steps: Vec<f64>,
    /// For `step`: what the rate is multiplied by.
    pub factor: f64,
}

/// How a learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Not at all.
    Constant,
    /// By `factor` at each of `steps`.
    Step,
    /// Along half a cosine.
    Cosine,
    /// Up along half a cosine for three tenths of the steps, from 1/25, and down along another.
    OneCycle,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            rate: 0.1,
            shape: Shape::Cosine,
            warm_up: 0.05,
            last: 0.0,
            steps: vec![0.33, 0.67, 0.9],
            factor: 0.1,
        }
    }
}

/// From `from` to `to` along half a cosine, `at` in 0..=1.
fn cosine(from: f64, to: f64, at: f64) -> f64 {
    to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * at).cos())
}

impl Schedule {
    /// Refuses values that make no sense.
    pub(crate) fn validate(&self) -> Result<()> {
        let rate = self.rate > 0.0 && self.rate.is_finite();
        require("schedule.rate", self.rate, "more than 0", rate)?;
        require("schedule.warm_up", self.warm_up, "0 to 1", (0.0..=1.0).contains(&self.warm_up))?;
        require("schedule.last", self.last, "0 to 1", (0.0..=1.0).contains(&self.last))?;
        require("schedule.factor", self.factor, "0 to 1", (0.0..=1.0).contains(&self.factor))?;
        let steps = self.steps.iter().all(|s| (0.0..=1.0).contains(s));
        require("schedule.steps", format!("{:?}", self.steps), "numbers from 0 to 1", steps)
    }

    /// The rate of step `step` of `steps`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let (at, all) = (step as f64, steps.max(1) as f64);
        if self.shape == Shape::OneCycle {
            let top = (0.3 * all).max(1.0);
            return match at < top {
                true => cosine(self.rate / 25.0, self.rate, at / top),
                false => {
                    cosine(self.rate, self.rate * self.last, ((at - top) / (all - top).max(1.0)).min(1.0))
                }
            };
        }
        let warm = (self.warm_up * all).floor();
        if at < warm {
            return self.rate * (at + 1.0) / warm;
        }
        match self.shape {
            Shape::Constant | Shape::OneCycle => self.rate,
            Shape::Cosine => {
                cosine(self.rate, self.rate * self.last, ((at - warm) / (all - warm).max(1.0)).min(1.0))
            }
            Shape::Step => {
                let passed = self.steps.iter().filter(|share| at >= (**share * all).round()).count();
                self.rate * self.factor.powi(passed as i32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall() {
        let base = Schedule { rate: 1.0, warm_up: 0.1, ..Schedule::default() };
        let check = |schedule: &Schedule, expected: &[(u64, f64)]| {
            for &(step, rate) in expected {
                let found = schedule.at(step, 100);
                assert!((found - rate).abs() < 1e-9, "{schedule:?} at {step}: {found}, expected {rate}");
            }
        };
        check(&base, &[(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0)]);
        check(&Schedule { shape: Shape::Constant, ..base.clone() }, &[(4, 0.5), (99, 1.0)]);
        let step = Schedule { shape: Shape::Step, warm_up: 0.0, steps: vec![0.5, 0.75], ..base.clone() };
        check(&step, &[(0, 1.0), (49, 1.0), (50, 0.1), (75, 0.01)]);
        let cycle = Schedule { shape: Shape::OneCycle, last: 0.2, ..base };
        check(&cycle, &[(0, 0.04), (30, 1.0), (65, 0.6), (100, 0.2)]);
    }
}
