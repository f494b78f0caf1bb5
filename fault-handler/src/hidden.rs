//! [`PageBits`]: one bit for each page of a region, in memory that the host
//! provides as it is touched.

use nix::errno::Errno;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const WORD_BITS: usize = 64;

/// A bitmap with a count of the bits set.
///
/// Setting and clearing of one bit must be ordered by a lock of the caller
/// (the VMA lock); reading needs nothing.
pub struct PageBits {
    words: NonNull<AtomicU64>,
    len: usize,
    /// Bits set.
    count: AtomicUsize,
}

// SAFETY: the words are atomics in memory that lives as long as this object.
unsafe impl Send for PageBits {}
// SAFETY: as above.
unsafe impl Sync for PageBits {}

impl PageBits {
    /// `bits` bits, all clear.
    ///
    /// # Errors
    /// The host's, if it cannot reserve the memory.
    pub fn new(bits: usize) -> Result<PageBits, Errno> {
        let len = bits.div_ceil(WORD_BITS).max(1);
        // SAFETY: a new mapping where the kernel likes.
        let words = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len * size_of::<AtomicU64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if words == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let words = NonNull::new(words.cast()).ok_or(Errno::ENOMEM)?;
        Ok(PageBits { words, len, count: AtomicUsize::new(0) })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `len` words, zero at first, and is unmapped
        // only when this object goes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }

    /// Whether no bit is set.
    ///
    /// Relaxed is enough for a thread that is ordered behind the setting of the
    /// bit it cares for: every later value of the counter includes that bit.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Bits set.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether a bit is set.
    #[inline]
    pub fn get(&self, bit: usize) -> bool {
        // Acquire: pairs with the Release in `set` and `clear`.
        self.words()[bit / WORD_BITS].load(Ordering::Acquire) & (1 << (bit % WORD_BITS)) != 0
    }

    /// Sets bits `from..to`.
    pub fn set(&self, from: usize, to: usize) {
        for (word, mask) in masks(from, to) {
            // Release: pairs with the Acquire in `get`: who sees the bit sees
            // the page gone from the region.
            let old = self.words()[word].fetch_or(mask, Ordering::Release);
            self.count.fetch_add((mask & !old).count_ones() as usize, Ordering::Relaxed);
        }
    }

    /// Clears bits `from..to`; calls `was_set` with each run of bits that were set.
    pub fn clear(&self, from: usize, to: usize, mut was_set: impl FnMut(usize, usize)) {
        for (word, mask) in masks(from, to) {
            if self.words()[word].load(Ordering::Relaxed) & mask == 0 {
                continue;
            }
            // Release: pairs with the Acquire in `get`: who sees the bit clear
            // sees the page where it belongs.
            let mut set = self.words()[word].fetch_and(!mask, Ordering::Release) & mask;
            self.count.fetch_sub(set.count_ones() as usize, Ordering::Relaxed);
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

impl Drop for PageBits {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this size; nobody refers to it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.len * size_of::<AtomicU64>()) };
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
}
