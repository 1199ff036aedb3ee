//! Counter-based random numbers: each sequence depends on the seed and a key only, not on the thread or earlier draws.

use resnet_model::random::{STEP, mix};

/// A sequence of random numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Creates the sequence for `key`, e.g. purpose, epoch and sample.
    pub fn new(seed: u64, key: &[u64]) -> Random {
        let fold = |state: u64, part: &u64| mix(state.wrapping_add(STEP) ^ mix(part.wrapping_add(STEP)));
        Random(key.iter().fold(mix(seed.wrapping_add(STEP)), fold))
    }

    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Returns a uniform number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a uniform number in [`low`, `high`).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Returns a uniform integer in 0..`n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Returns `true` with probability `p`.
    pub fn happens(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Returns a standard normal number.
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// Samples the beta distribution with both parameters `alpha` > 0 (Jöhnk's method).
    pub fn beta(&mut self, alpha: f64) -> f64 {
        if alpha > 1.0 {
            let (a, b) = (self.gamma(alpha), self.gamma(alpha));
            return a / (a + b);
        }
        loop {
            let (a, b) = (self.uniform().powf(1.0 / alpha), self.uniform().powf(1.0 / alpha));
            if a + b > 0.0 && a + b <= 1.0 {
                return a / (a + b);
            }
            // For a tiny alpha, both powers round to 0; the result is 0 or 1.
            if a + b == 0.0 {
                return self.below(2) as f64;
            }
        }
    }

    /// Samples the gamma distribution with shape `alpha` > 1 (Marsaglia and Tsang's method).
    fn gamma(&mut self, alpha: f64) -> f64 {
        let d = alpha - 1.0 / 3.0;
        loop {
            let x = self.normal();
            let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Returns a random permutation of 0..`n`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_depend_on_the_key() {
        let first = |seed, key: &[u64]| Random::new(seed, key).bits();
        assert_eq!(first(1, &[2, 3]), first(1, &[2, 3]));
        let all =
            [first(1, &[2, 3]), first(1, &[3, 2]), first(2, &[2, 3]), first(1, &[2]), first(1, &[2, 3, 0])];
        assert!((0..5).all(|i| (0..i).all(|j| all[i] != all[j])));
    }

    #[test]
    fn distributions_have_the_right_moments() {
        let mut random = Random::new(7, &[]);
        let mut check = |what: &str, draw: &mut dyn FnMut(&mut Random) -> f64, mean: f64, var: f64| {
            let values: Vec<f64> = (0..20_000).map(|_| draw(&mut random)).collect();
            let m = values.iter().sum::<f64>() / values.len() as f64;
            let v = values.iter().map(|x| (x - m).powi(2)).sum::<f64>() / values.len() as f64;
            assert!((m - mean).abs() < 0.03 && (v - var).abs() < 0.03, "{what}: mean {m}, variance {v}");
        };
        check("uniform", &mut |r| r.uniform(), 0.5, 1.0 / 12.0);
        check("normal", &mut |r| r.normal(), 0.0, 1.0);
        check("beta 0.2", &mut |r| r.beta(0.2), 0.5, 0.25 / 1.4);
        check("beta 1", &mut |r| r.beta(1.0), 0.5, 0.25 / 3.0);
        check("beta 3", &mut |r| r.beta(3.0), 0.5, 0.25 / 7.0);
        check("below", &mut |r| r.below(2) as f64, 0.5, 0.25);
        let mut order = random.permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
