//! [`TouchedSpan`]: where in a VMA pages may be present.

use crate::addr::{PAGE_SHIFT, PageRange, VirtAddr};
use crate::sync::{AtomicU64, Ordering, const_fn};

/// A span is kept in chunks of 64 KiB: what the first fault in it, and none of
/// the next, has to write.
const CHUNK_SHIFT: usize = 16;
/// Pages of a chunk.
pub(super) const CHUNK_PAGES: usize = 1 << (CHUNK_SHIFT - PAGE_SHIFT);

/// One stretch outside which no page of a VMA is present: what is unmapped or
/// protected there costs no host call. Two mappings, of which one was never
/// touched, can become one VMA and part again.
///
/// Faults extend it under the VMA's read lock, before they make a page present;
/// who holds the VMA's write lock finds it settled.
pub(super) struct TouchedSpan {
    /// First chunk in the lower half, the one after the last in the upper; 0: none.
    chunks: AtomicU64,
}

/// The chunks that hold `pages`, as [`TouchedSpan`] keeps them.
#[inline]
fn chunks_of(pages: PageRange) -> u64 {
    if pages.is_empty() {
        return 0;
    }
    let first = pages.start().get() >> CHUNK_SHIFT;
    let last = (pages.end().get() - 1) >> CHUNK_SHIFT;
    debug_assert!(last < u32::MAX as usize, "{pages:?} is beyond 48 bits");
    (last as u64 + 1) << 32 | first as u64
}

/// First chunk, and the one after the last.
#[inline]
fn ends(chunks: u64) -> (u32, u32) {
    (chunks as u32, (chunks >> 32) as u32)
}

impl TouchedSpan {
    const_fn! {
    pub(super) const fn new() -> TouchedSpan {
        TouchedSpan { chunks: AtomicU64::new(0) }
    }
    }

    // Relaxed, all of it: the VMA's lock orders them, as its other fields.

    /// The whole span, which may reach out of the VMA.
    pub(super) fn get(&self) -> PageRange {
        let (first, end) = ends(self.chunks.load(Ordering::Relaxed));
        let at = |chunk: u32| VirtAddr((chunk as usize) << CHUNK_SHIFT);
        PageRange::new(at(first), at(end))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.load(Ordering::Relaxed) == 0
    }

    /// The owner's: what was there is forgotten.
    pub(super) fn set(&self, pages: PageRange) {
        self.chunks.store(chunks_of(pages), Ordering::Relaxed);
    }

    /// Whether it covers the chunk that holds `page`.
    #[inline]
    pub(super) fn has_chunk_of(&self, page: VirtAddr) -> bool {
        let (first, end) = ends(self.chunks.load(Ordering::Relaxed));
        let chunk = page.get() >> CHUNK_SHIFT;
        (first as usize) <= chunk && chunk < end as usize
    }

    /// Pages in `pages`, which is not empty, may be present from now on. Writes
    /// once a chunk at most.
    #[inline(never)]
    pub(super) fn extend(&self, pages: PageRange) {
        debug_assert!(!pages.is_empty());
        let (first, end) = ends(chunks_of(pages));
        let mut now = self.chunks.load(Ordering::Relaxed);
        loop {
            let (now_first, now_end) = ends(now);
            if now_first <= first && end <= now_end {
                return;
            }
            let hull = match now {
                0 => (first, end),
                _ => (now_first.min(first), now_end.max(end)),
            };
            let wider = u64::from(hull.1) << 32 | u64::from(hull.0);
            // Other faults extend it, too.
            match self.chunks.compare_exchange_weak(now, wider, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => now = other,
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const CHUNK: usize = 1 << CHUNK_SHIFT;

    fn bytes(start: usize, end: usize) -> PageRange {
        PageRange::new(VirtAddr(start), VirtAddr(end))
    }

    #[test]
    fn a_span_covers_what_it_was_told_and_little_more() {
        let span = TouchedSpan::new();
        assert!(span.is_empty() && span.get().is_empty());
        span.extend(bytes(5 * CHUNK + 4096, 5 * CHUNK + 8192));
        assert_eq!(span.get(), bytes(5 * CHUNK, 6 * CHUNK));
        span.extend(bytes(5 * CHUNK, 6 * CHUNK));
        assert_eq!(span.get(), bytes(5 * CHUNK, 6 * CHUNK));
        span.extend(bytes(8 * CHUNK - 4096, 8 * CHUNK + 4096));
        assert_eq!(span.get(), bytes(5 * CHUNK, 9 * CHUNK));
        span.extend(bytes(0, 4096));
        assert_eq!(span.get(), bytes(0, 9 * CHUNK), "from the first chunk of all");
        span.set(PageRange::default());
        assert!(span.is_empty());
        // The last page of 47 bits.
        span.extend(bytes((1 << 47) - 4096, 1 << 47));
        assert_eq!(span.get(), bytes((1 << 47) - CHUNK, 1 << 47));
    }

    #[test]
    fn nothing_is_lost_where_many_extend_it() {
        let span = TouchedSpan::new();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let span = &span;
                scope.spawn(move || {
                    for n in 0..10_000 {
                        let chunk = if thread == 0 { 20_000 + n } else { 19_999 - n };
                        span.extend(bytes(chunk * CHUNK, chunk * CHUNK + 4096));
                        assert!(span.get().covers(bytes(chunk * CHUNK, (chunk + 1) * CHUNK)));
                    }
                });
            }
        });
        assert_eq!(span.get(), bytes(10_000 * CHUNK, 30_000 * CHUNK));
    }
}
