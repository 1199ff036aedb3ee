//! Winograd transforms for several sets of interpolation points.

use crate::simd::Simd;

/// One-dimensional algorithm that computes M outputs of a 3-tap filter with A products: `y = Aᵀ[(G·g) ⊙ (Bᵀ·d)]`.
pub(crate) trait Points<const A: usize, const M: usize>: Copy + Send + Sync {
    /// Stride of the convolution. M outputs depend on A inputs for every algorithm here.
    const STRIDE: usize;

    /// Filter transform.
    const G: [[f64; 3]; A];

    /// Returns a bit mask of the products that the first `outputs` outputs of a tile need. A tile that extends beyond
    /// the output uses a smaller algorithm with a subset of the points and the same weights.
    fn needed(outputs: usize) -> u32;

    /// Input transform `Bᵀ·d` of A contiguous inputs. If `outputs < M`, only the values of the needed products are
    /// valid.
    fn input<S: Simd>(s: S, d: [S::V; A], outputs: usize) -> [S::V; A];

    /// Output transform `Aᵀ·m` of A products to M contiguous outputs, of which the first `outputs` are valid.
    fn output<S: Simd>(s: S, m: [S::V; A], outputs: usize) -> [S::V; M];

    /// Returns the number of products along an axis of `outputs` outputs.
    fn products(outputs: usize) -> f64 {
        let rest = match outputs % M {
            0 => 0,
            rest => Self::needed(rest).count_ones(),
        };
        (outputs / M) as f64 * A as f64 + f64::from(rest)
    }
}

/// F(2, 3) with the points 0, ±1, ∞.
#[derive(Clone, Copy)]
pub(crate) struct F2;

impl Points<4, 2> for F2 {
    const STRIDE: usize = 1;

    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    /// One output needs the points 0, ±1.
    #[inline(always)]
    fn needed(outputs: usize) -> u32 {
        if outputs == 1 { 0b0111 } else { 0b1111 }
    }

    #[inline(always)]
    fn input<S: Simd>(s: S, d: [S::V; 4], _: usize) -> [S::V; 4] {
        [s.sub(d[0], d[2]), s.add(d[1], d[2]), s.sub(d[2], d[1]), s.sub(d[3], d[1])]
    }

    #[inline(always)]
    fn output<S: Simd>(s: S, m: [S::V; 4], _: usize) -> [S::V; 2] {
        [s.add(m[0], s.add(m[1], m[2])), s.add(s.sub(m[1], m[2]), m[3])]
    }
}

/// F(4, 3) with the points 0, ±5/8, ±3/2, ∞, whose error is half that of the usual 0, ±1, ±2, ∞.
#[derive(Clone, Copy)]
pub(crate) struct F4;

/// Inner and outer point; their squares and cubes are exact in `f32`.
const P: f64 = 5.0 / 8.0;
const Q: f64 = 3.0 / 2.0;

impl Points<6, 4> for F4 {
    const STRIDE: usize = 1;

    const G: [[f64; 3]; 6] = {
        let (zero, p, q) =
            (1.0 / (P * P * Q * Q), 0.5 / (P * P * (P * P - Q * Q)), 0.5 / (Q * Q * (Q * Q - P * P)));
        [
            [zero, 0.0, 0.0],
            [p, p * P, p * P * P],
            [p, -p * P, p * P * P],
            [q, q * Q, q * Q * Q],
            [q, -q * Q, q * Q * Q],
            [0.0, 0.0, 1.0],
        ]
    };

    /// Three outputs need all points but ∞, F(3, 3); two need 0, ±5/8, ∞, F(2, 3); one needs 0, ±5/8.
    #[inline(always)]
    fn needed(outputs: usize) -> u32 {
        match outputs {
            1 => 0b000111,
            2 => 0b100111,
            3 => 0b011111,
            _ => 0b111111,
        }
    }

    #[inline(always)]
    fn input<S: Simd>(s: S, d: [S::V; 6], outputs: usize) -> [S::V; 6] {
        let k = |x: f64| s.splat(x as f32);
        if outputs <= 2 {
            let zero = s.mul_add(d[0], k(P * P * Q * Q), s.mul(d[2], k(-Q * Q)));
            let (even, odd) = (s.mul(d[2], k(P * P - Q * Q)), s.mul(d[1], k(P * (P * P - Q * Q))));
            let none = s.splat(0.0);
            return [zero, s.add(even, odd), s.sub(even, odd), none, none, s.mul_add(d[1], k(-P * P), d[3])];
        }
        let (product, sum) = (k(P * P * Q * Q), k(-(P * P + Q * Q)));
        let ends = |a, b, c| s.mul_add(a, product, s.mul_add(b, sum, c));
        let pair = |point: f64, other: f64| {
            let even = s.mul_add(d[2], k(-other * other), d[4]);
            let odd = s.mul_add(d[1], k(-other * other), d[3]);
            [s.mul_add(odd, k(point), even), s.mul_add(odd, k(-point), even)]
        };
        let ([p, minus_p], [q, minus_q]) = (pair(P, Q), pair(Q, P));
        [ends(d[0], d[2], d[4]), p, minus_p, q, minus_q, ends(d[1], d[3], d[5])]
    }

    #[inline(always)]
    fn output<S: Simd>(s: S, m: [S::V; 6], outputs: usize) -> [S::V; 4] {
        let k = |x: f64| s.splat(x as f32);
        let (p_even, p_odd) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
        if outputs <= 2 {
            let none = s.splat(0.0);
            return [s.add(m[0], p_even), s.mul_add(p_odd, k(P), m[5]), none, none];
        }
        let (q_even, q_odd) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
        [
            s.add(m[0], s.add(p_even, q_even)),
            s.mul_add(p_odd, k(P), s.mul(q_odd, k(Q))),
            s.mul_add(p_even, k(P * P), s.mul(q_even, k(Q * Q))),
            s.mul_add(p_odd, k(P * P * P), s.mul_add(q_odd, k(Q * Q * Q), m[5])),
        ]
    }
}

/// Two outputs with stride 2 and five products instead of six: F(2, 2) with the points 0, 1, ∞ for the outer taps on
/// even inputs, and plain products for the middle tap on odd inputs.
#[derive(Clone, Copy)]
pub(crate) struct S2;

impl Points<5, 2> for S2 {
    const STRIDE: usize = 2;

    const G: [[f64; 3]; 5] =
        [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]];

    #[inline(always)]
    fn needed(outputs: usize) -> u32 {
        if outputs == 1 { 0b01011 } else { 0b11111 }
    }

    #[inline(always)]
    fn input<S: Simd>(s: S, d: [S::V; 5], _: usize) -> [S::V; 5] {
        [s.sub(d[0], d[2]), d[2], s.sub(d[4], d[2]), d[1], d[3]]
    }

    #[inline(always)]
    fn output<S: Simd>(s: S, m: [S::V; 5], _: usize) -> [S::V; 2] {
        [s.add(s.add(m[0], m[1]), m[3]), s.add(s.add(m[1], m[2]), m[4])]
    }
}
