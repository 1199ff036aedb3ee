//! Learning rate schedules.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::require;

/// A learning rate schedule over the steps of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Peak learning rate; default: [`Config::default_lr`](crate::Config::default_lr).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Decay after the warmup.
    pub kind: ScheduleKind,
    /// Fraction of all steps in which the learning rate rises linearly from 0; ignored by `one_cycle`, which has its own.
    pub warmup: f64,
    /// Final learning rate as a fraction of the peak, for `cosine` and `one_cycle`.
    pub end_factor: f64,
    /// For `step`: fractions of all steps at which the learning rate drops.
    pub milestones: Vec<f64>,
    /// For `step`: factor at each milestone.
    pub gamma: f64,
}

/// Decay of the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// No decay.
    Constant,
    /// By `gamma` at each milestone (PyTorch's `MultiStepLR`).
    Step,
    /// Half a cosine (PyTorch's `CosineAnnealingLR`).
    Cosine,
    /// From 1/25 of the peak up along half a cosine for 30 % of the steps, then down along another (PyTorch's
    /// `OneCycleLR`).
    OneCycle,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            lr: None,
            kind: ScheduleKind::Cosine,
            warmup: 0.05,
            end_factor: 0.0,
            milestones: vec![0.33, 0.67, 0.9],
            gamma: 0.1,
        }
    }
}

/// Interpolates from `from` to `to` along half a cosine, `at` in 0..=1.
fn cosine(from: f64, to: f64, at: f64) -> f64 {
    to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * at).cos())
}

impl Schedule {
    /// Returns an error if a value is invalid.
    pub(crate) fn validate(&self) -> Result<()> {
        let lr = self.lr.unwrap_or(1.0);
        require("schedule.lr", lr, "more than 0", lr > 0.0 && lr.is_finite())?;
        require("schedule.warmup", self.warmup, "0 to 1", (0.0..=1.0).contains(&self.warmup))?;
        require("schedule.end_factor", self.end_factor, "0 to 1", (0.0..=1.0).contains(&self.end_factor))?;
        require("schedule.gamma", self.gamma, "0 to 1", (0.0..=1.0).contains(&self.gamma))?;
        let valid = self.milestones.iter().all(|s| (0.0..=1.0).contains(s));
        require("schedule.milestones", format!("{:?}", self.milestones), "numbers from 0 to 1", valid)
    }

    /// Returns the learning rate of step `step` (from 0) of `steps`, relative to 1 if `lr` is not set.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let peak = self.lr.unwrap_or(1.0);
        let (at, all) = (step as f64, steps.max(1) as f64);
        if self.kind == ScheduleKind::OneCycle {
            let top = (0.3 * all).max(1.0);
            return match at < top {
                true => cosine(peak / 25.0, peak, at / top),
                false => cosine(peak, peak * self.end_factor, ((at - top) / (all - top).max(1.0)).min(1.0)),
            };
        }
        let warmup = (self.warmup * all).floor();
        if at < warmup {
            return peak * (at + 1.0) / warmup;
        }
        match self.kind {
            ScheduleKind::Constant | ScheduleKind::OneCycle => peak,
            ScheduleKind::Cosine => {
                cosine(peak, peak * self.end_factor, ((at - warmup) / (all - warmup).max(1.0)).min(1.0))
            }
            ScheduleKind::Step => {
                let passed =
                    self.milestones.iter().filter(|milestone| at >= (**milestone * all).round()).count();
                peak * self.gamma.powi(passed as i32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rates_follow_the_schedule() {
        let base = Schedule { lr: Some(1.0), warmup: 0.1, ..Schedule::default() };
        let check = |schedule: &Schedule, expected: &[(u64, f64)]| {
            for &(step, lr) in expected {
                let found = schedule.at(step, 100);
                assert!((found - lr).abs() < 1e-9, "{schedule:?} at {step}: {found}, expected {lr}");
            }
        };
        check(&base, &[(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0)]);
        check(&Schedule { kind: ScheduleKind::Constant, ..base.clone() }, &[(4, 0.5), (99, 1.0)]);
        let step =
            Schedule { kind: ScheduleKind::Step, warmup: 0.0, milestones: vec![0.5, 0.75], ..base.clone() };
        check(&step, &[(0, 1.0), (49, 1.0), (50, 0.1), (75, 0.01)]);
        let cycle = Schedule { kind: ScheduleKind::OneCycle, end_factor: 0.2, ..base };
        check(&cycle, &[(0, 0.04), (30, 1.0), (65, 0.6), (100, 0.2)]);
    }
}
