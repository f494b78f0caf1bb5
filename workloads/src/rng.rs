//! SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014): each thread's stream of choices. Ours, rather than a
//! crate's, so that a seed means the same stream in every version.

/// A stream of pseudorandom numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of `thread` under `seed`: independent of how many threads there are.
    pub(crate) fn of_thread(seed: u64, thread: usize) -> Rng {
        let mut rng = Rng(seed ^ (thread as u64).wrapping_mul(0xa076_1d64_78bd_642f));
        rng.next();
        Rng(rng.next())
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. (Biased by less than bound / 2^64.)
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// `1..=2^bits`, each power of two as likely as the next.
    pub(crate) fn log_uniform(&mut self, bits: u32) -> usize {
        let top = 1usize << self.below(bits as usize + 1);
        top - self.below(top.div_ceil(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_and_differ() {
        let draw = |seed, thread| Rng::of_thread(seed, thread).next();
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
        assert_ne!(draw(1, 0), draw(2, 0));
        // SplitMix64's published first output for state 1234567.
        assert_eq!(Rng(1234567).next(), 6457827717110365317);
    }

    #[test]
    fn draws_stay_in_bounds() {
        let mut rng = Rng::of_thread(7, 3);
        let draws: Vec<usize> = (0..10_000).map(|_| rng.log_uniform(8)).collect();
        assert!(draws.iter().all(|&n| (1..=256).contains(&n)));
        assert!(draws.contains(&1) && draws.iter().any(|&n| n > 200));
        assert!((0..1000).all(|_| rng.below(3) < 3));
    }
}
