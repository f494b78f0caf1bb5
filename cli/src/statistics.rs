//! How sure a comparison is: the median of paired ratios and its interval.
//!
//! The interval is a 95 % bootstrap interval by the percentile method: the
//! rounds are drawn again with replacement [`RESAMPLES`] times, and the 2.5th
//! and 97.5th percentile of the medians of those draws bound it. The draws come
//! from SplitMix64 with a fixed seed, so the same rounds give the same interval.
//! With five rounds or fewer it spans from the smallest ratio to the largest
//! (five rounds: the true median is in it 15 times of 16).

use serde::Serialize;

/// Times the rounds are drawn again.
pub const RESAMPLES: usize = 10_000;
/// Fewer rounds than these never name a winner: three rounds of two equal
/// subjects all point the same way once in four comparisons, five once in sixteen.
pub const ROUNDS_TO_JUDGE: usize = 5;

const SEED: u64 = 0x766d_616c_6162;

/// A ratio to the baseline over all rounds. Unknown parts are `None`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Median of the rounds' ratios.
    pub median: Option<f64>,
    /// 2.5th percentile of the resampled medians; `None` with fewer than two rounds.
    pub low: Option<f64>,
    /// 97.5th percentile of the resampled medians; `None` with fewer than two rounds.
    pub high: Option<f64>,
    /// Rounds that it is of.
    pub rounds: usize,
}

impl Ratio {
    /// Of the rounds in which both measurements exist.
    pub fn of_pairs(pairs: impl Iterator<Item = (Option<f64>, Option<f64>)>) -> Ratio {
        let mut ratios: Vec<f64> = pairs
            .filter_map(|(subject, baseline)| Some(subject? / baseline?))
            .filter(|ratio| ratio.is_finite())
            .collect();
        if ratios.is_empty() {
            return Ratio { median: None, low: None, high: None, rounds: 0 };
        }
        let interval = (ratios.len() > 1).then(|| bootstrap_median(&ratios));
        Ratio {
            rounds: ratios.len(),
            median: Some(median(&mut ratios)),
            low: interval.map(|i| i.0),
            high: interval.map(|i| i.1),
        }
    }

    /// Above 1, below 1, or neither: only when the whole interval is.
    pub fn direction(&self) -> Option<std::cmp::Ordering> {
        match (self.low?, self.high?) {
            (low, _) if low > 1.0 => Some(std::cmp::Ordering::Greater),
            (_, high) if high < 1.0 => Some(std::cmp::Ordering::Less),
            _ => None,
        }
    }

    /// More rounds that would likely leave 1 out of the interval, if the median
    /// stays: an interval's width falls with the root of their number. `None` if
    /// 1 is out already, or no number would do.
    pub fn more_rounds(&self) -> Option<usize> {
        let (median, low, high) = (self.median?.ln(), self.low?.ln(), self.high?.ln());
        if self.direction().is_some() || median == 0.0 {
            return None;
        }
        // To the end of the interval that lies beyond 1.
        let reach = if median > 0.0 { median - low } else { high - median };
        let rounds = self.rounds as f64 * (reach / median).powi(2);
        rounds.is_finite().then(|| (rounds.ceil() as usize).saturating_sub(self.rounds).max(1))
    }
}

/// The median; the mean of the middle two of an even number.
///
/// # Panics
/// If there are no values.
pub fn median(values: &mut [f64]) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] }
}

/// The percentile-method interval of the median.
fn bootstrap_median(values: &[f64]) -> (f64, f64) {
    let mut state = SEED;
    let mut draw = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for value in &mut draw {
                *value = values[below(&mut state, values.len())];
            }
            median(&mut draw)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    (medians[tail], medians[RESAMPLES - 1 - tail])
}

/// A number below `n`, from SplitMix64 (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", OOPSLA 2014).
fn below(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((u128::from(z) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering;

    fn of(ratios: &[f64]) -> Ratio {
        Ratio::of_pairs(ratios.iter().map(|&r| (Some(r), Some(1.0))))
    }

    #[test]
    fn median_of_odd_and_even() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut [7.0]), 7.0);
    }

    #[test]
    fn equal_rounds_have_a_point_for_an_interval() {
        assert_eq!(of(&[1.5; 7]), Ratio { median: Some(1.5), low: Some(1.5), high: Some(1.5), rounds: 7 });
        assert_eq!(of(&[1.5; 7]).direction(), Some(Ordering::Greater));
        assert_eq!(of(&[0.5; 7]).direction(), Some(Ordering::Less));
        assert_eq!(of(&[1.0; 7]).direction(), None);
    }

    #[test]
    fn few_rounds_span_from_smallest_to_largest() {
        let ratio = of(&[1.1, 0.9, 1.3, 1.2, 1.4]);
        assert_eq!(ratio, Ratio { median: Some(1.2), low: Some(0.9), high: Some(1.4), rounds: 5 });
        assert_eq!(ratio.direction(), None, "one round went the other way");
    }

    #[test]
    fn one_round_has_no_interval_and_none_has_nothing() {
        assert_eq!(of(&[1.2]), Ratio { median: Some(1.2), low: None, high: None, rounds: 1 });
        assert_eq!(of(&[1.2]).direction(), None);
        assert_eq!(of(&[]).median, None);
    }

    #[test]
    fn missing_and_zero_measurements_are_left_out() {
        let pairs = [(Some(2.0), Some(1.0)), (None, Some(1.0)), (Some(1.0), None), (Some(1.0), Some(0.0))];
        assert_eq!(Ratio::of_pairs(pairs.into_iter()).median, Some(2.0));
    }

    #[test]
    fn the_interval_is_that_of_order_statistics() {
        // For n = 25 the exact 95 % interval of the median runs from the 8th to
        // the 18th value (binomial); the bootstrap must land within one of it.
        let values: Vec<f64> = (1..=25).map(f64::from).collect();
        let (low, high) = bootstrap_median(&values);
        assert!((7.0..=9.0).contains(&low), "{low}");
        assert!((17.0..=19.0).contains(&high), "{high}");
    }

    #[test]
    fn covers_the_true_median_about_as_often_as_it_says() {
        let mut state = 42;
        let trials = 60;
        let covered = (0..trials)
            .filter(|_| {
                let sample: Vec<f64> = (0..15).map(|_| below(&mut state, 1_000_001) as f64).collect();
                let (low, high) = bootstrap_median(&sample);
                (low..=high).contains(&500_000.0)
            })
            .count();
        assert!(covered * 100 >= trials * 85, "{covered} of {trials}");
    }

    #[test]
    fn an_interval_twice_too_wide_needs_four_times_the_rounds() {
        let ratio = |median: f64, low: f64, high: f64| Ratio {
            median: Some(median),
            low: Some(low),
            high: Some(high),
            rounds: 5,
        };
        // In logarithms: 0.1 from 1, and 0.2 down to the low end.
        assert_eq!(ratio(0.1_f64.exp(), (-0.1_f64).exp(), 2.0).more_rounds(), Some(15));
        assert_eq!(ratio((-0.1_f64).exp(), 0.5, 0.1_f64.exp()).more_rounds(), Some(15));
        assert_eq!(ratio(1.0, 0.9, 1.1).more_rounds(), None, "no number would do");
        assert_eq!(ratio(1.2, 1.1, 1.3).more_rounds(), None, "enough as it is");
        assert_eq!(ratio(1.2, 1.0, 1.3).more_rounds(), Some(1), "at the very edge");
    }

    #[test]
    fn same_rounds_same_interval() {
        let values = [1.0, 1.1, 0.8, 1.3, 0.95, 1.07, 1.2];
        assert_eq!(of(&values), of(&values));
    }
}
