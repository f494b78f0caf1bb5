//! [`PageBits`]: one bit for each page of a region: hidden, guarded, and so on.

use crate::zeroed::Zeroed;
use nix::errno::Errno;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const WORD_BITS: usize = 64;

/// A bitmap with a count of the bits set.
///
/// Setting and clearing of one bit must be ordered by a lock of the caller
/// (the VMA lock); reading needs nothing.
#[repr(C)]
pub struct PageBits {
    /// Bits set.
    count: AtomicUsize,
    words: Zeroed<AtomicU64>,
}

impl PageBits {
    /// `bits` bits, all clear.
    ///
    /// # Errors
    /// The host's, if it cannot reserve the memory.
    pub fn new(bits: usize) -> Result<PageBits, Errno> {
        Ok(PageBits { words: Zeroed::new(bits.div_ceil(WORD_BITS))?, count: AtomicUsize::new(0) })
    }

    /// Whether no bit is set.
    ///
    /// Relaxed is enough for a thread that is ordered behind the setting of the
    /// bit it cares for: every later value of the counter includes that bit.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// The same for who is about to free this object: every `clear` that made
    /// it so has ended, as the count is the last thing it touches.
    pub fn is_empty_at_last(&self) -> bool {
        // Acquire: pairs with the Release in `clear`.
        self.count.load(Ordering::Acquire) == 0
    }

    /// Bits set.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether a bit is set.
    #[inline]
    pub fn get(&self, bit: usize) -> bool {
        // Acquire: pairs with the Release in `set` and `clear`.
        self.words[bit / WORD_BITS].load(Ordering::Acquire) & (1 << (bit % WORD_BITS)) != 0
    }

    /// The first bit from `from` on, below `to`, that is `set`.
    fn next(&self, from: usize, to: usize, set: bool) -> Option<usize> {
        masks(from, to).find_map(|(word, mask)| {
            // Acquire: as in `get`.
            let bits = self.words[word].load(Ordering::Acquire);
            let found = if set { bits & mask } else { !bits & mask };
            (found != 0).then(|| word * WORD_BITS + found.trailing_zeros() as usize)
        })
    }

    /// The runs of set bits in `from..to`, ascending and as long as they are.
    /// Costs one load where no bit is set at all.
    pub fn runs(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut at = if self.is_empty() { to } else { from };
        std::iter::from_fn(move || {
            let start = self.next(at, to, true)?;
            at = self.next(start, to, false).unwrap_or(to);
            Some((start, at))
        })
    }

    /// The runs of clear bits in `from..to`, likewise.
    pub fn gaps(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let (mut at, none) = (from, self.is_empty());
        std::iter::from_fn(move || {
            let start = if none { Some(at).filter(|&at| at < to) } else { self.next(at, to, false) }?;
            at = if none { to } else { self.next(start, to, true).unwrap_or(to) };
            Some((start, at))
        })
    }

    /// Sets bits `from..to`.
    pub fn set(&self, from: usize, to: usize) {
        for (word, mask) in masks(from, to) {
            // Release: pairs with the Acquire in `get`: who sees the bit sees
            // the page gone from the region.
            let old = self.words[word].fetch_or(mask, Ordering::Release);
            self.count.fetch_add((mask & !old).count_ones() as usize, Ordering::Relaxed);
        }
    }

    /// Clears bits `from..to`; calls `was_set` with each run of bits that were set.
    pub fn clear(&self, from: usize, to: usize, mut was_set: impl FnMut(usize, usize)) {
        for (word, mask) in masks(from, to) {
            if self.words[word].load(Ordering::Relaxed) & mask == 0 {
                continue;
            }
            // Release: pairs with the Acquire in `get`: who sees the bit clear
            // sees the page where it belongs.
            let mut set = self.words[word].fetch_and(!mask, Ordering::Release) & mask;
            // Release: pairs with the Acquire in `is_empty_at_last`.
            self.count.fetch_sub(set.count_ones() as usize, Ordering::Release);
            while set != 0 {
                let start = set.trailing_zeros();
                let run = (set >> start).trailing_ones();
                let bit = word * WORD_BITS + start as usize;
                was_set(bit, bit + run as usize);
                let done = start + run;
                set = if done == u64::BITS { 0 } else { set >> done << done };
            }
        }
    }
}

/// The words that `from..to` touches, each with the bits of it that belong.
fn masks(from: usize, to: usize) -> impl Iterator<Item = (usize, u64)> {
    let last = if from < to { (to - 1) / WORD_BITS + 1 } else { from / WORD_BITS };
    (from / WORD_BITS..last).map(move |word| {
        let low = from.saturating_sub(word * WORD_BITS);
        let high = (to - word * WORD_BITS).min(WORD_BITS);
        let upto = |bits: usize| if bits == WORD_BITS { u64::MAX } else { (1 << bits) - 1 };
        (word, upto(high) & !upto(low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_words_are_set_and_cleared() {
        let bits = PageBits::new(300).unwrap();
        assert!(bits.is_empty());
        bits.set(60, 200);
        bits.set(100, 130);
        bits.set(5, 5);
        assert_eq!(bits.count(), 140);
        assert!(!bits.get(59) && bits.get(60) && bits.get(199) && !bits.get(200));
        bits.clear(70, 71, |from, to| assert_eq!((from, to), (70, 71)));
        let mut runs = Vec::new();
        bits.clear(0, 300, |from, to| runs.push((from, to)));
        assert_eq!(runs, [(60, 64), (64, 70), (71, 128), (128, 192), (192, 200)]);
        assert!(bits.is_empty());
    }

    #[test]
    fn runs_are_found_whole() {
        let bits = PageBits::new(300).unwrap();
        bits.set(3, 4);
        bits.set(60, 200);
        bits.set(299, 300);
        let runs = |from, to| bits.runs(from, to).collect::<Vec<_>>();
        assert_eq!(runs(0, 300), [(3, 4), (60, 200), (299, 300)]);
        assert_eq!(runs(3, 61), [(3, 4), (60, 61)]);
        assert_eq!(runs(64, 128), [(64, 128)]);
        assert_eq!(runs(200, 299), []);
        assert_eq!(runs(7, 7), []);
        let gaps: Vec<_> = bits.gaps(0, 300).collect();
        assert_eq!(gaps, [(0, 3), (4, 60), (200, 299)]);
        assert_eq!(bits.gaps(60, 200).count(), 0);
    }
}
