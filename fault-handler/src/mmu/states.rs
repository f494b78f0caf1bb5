//! What is where (`presence`), and what was freed lazily. For mutators only.

use super::{UffdMmu, drop_pages};
use crate::hidden::PageBits;
use crate::region::Region;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::mmu::MmuError;

/// Pages that are looked at in one go: a bit each, on the stack.
const CHUNK: usize = 1 << 14;

/// One bit for each page of a chunk.
struct Chunk([u64; CHUNK / 64]);

impl Chunk {
    fn set(&mut self, from: usize, to: usize) {
        for bit in from..to {
            self.0[bit / 64] |= 1 << (bit % 64);
        }
    }

    fn next(&self, from: usize, to: usize, set: bool) -> usize {
        let wanted = |bit: &usize| (self.0[bit / 64] >> (bit % 64) & 1 == 1) == set;
        (from..to).find(wanted).unwrap_or(to)
    }
}

/// The bitmaps of populated pages that are not present.
fn absent_states(region: &Region) -> [&PageBits; 2] {
    [&region.pages.hidden, &region.pages.inherited]
}

/// Whether nothing but zeros is in `pages`, which are present, in the region or in
/// its twin, until the calling mutator removes them.
fn is_zero(pages: PageRange) -> bool {
    let words = pages.bytes() / size_of::<AtomicU64>();
    let start: *const AtomicU64 = std::ptr::with_exposed_provenance(pages.start().get());
    // SAFETY: present pages of ours, aligned; others may store to them meanwhile.
    let words = unsafe { std::slice::from_raw_parts(start, words) };
    words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
}

impl UffdMmu {
    /// See `presence`.
    pub(super) fn populated(&self, range: PageRange, mut run: impl FnMut(PageRange)) {
        let region = &*self.region;
        let (first, last) = region.bits(range);
        if absent_states(region).iter().all(|bits| bits.is_empty()) {
            return self.present(range, run);
        }
        for start in (first..last).step_by(CHUNK) {
            let end = (start + CHUNK).min(last);
            let mut chunk = Chunk([0; CHUNK / 64]);
            // Before the present ones: faults only make pages present, so a
            // page that is not seen here any more is seen there.
            for bits in absent_states(region) {
                bits.runs(start, end).for_each(|(a, b)| chunk.set(a - start, b - start));
            }
            self.present(region.pages_of((start, end)), |run| {
                let (a, b) = region.bits(run);
                chunk.set(a - start, b - start);
            });
            let mut at = 0;
            loop {
                let from = chunk.next(at, end - start, true);
                if from == end - start {
                    break;
                }
                at = chunk.next(from, end - start, false);
                run(region.pages_of((start + from, start + at)));
            }
        }
    }

    /// Calls `run` with each run of present pages.
    pub(super) fn present(&self, range: PageRange, mut run: impl FnMut(PageRange)) {
        let Ok(()) = self.region.presence().runs(range, |found| {
            run(found);
            Ok::<(), Infallible>(())
        });
    }

    /// See `has_contents`.
    pub(super) fn holds_anything(&self, range: PageRange) -> bool {
        let region = &*self.region;
        let mut found = false;
        self.present(range, |run| found = found || !is_zero(run));
        let (first, last) = region.bits(range);
        found || region.pages.hidden.runs(first, last).any(|run| !is_zero(region.twin_of(region.pages_of(run))))
    }

    /// Permits stores to the present pages of `range`, but for those whose
    /// stores must be noticed: the fault path does these, one by one.
    pub(super) fn allow_writes(&self, range: PageRange) -> Result<(), MmuError> {
        let region = &*self.region;
        let (first, last) = region.bits(range);
        let (lazy, files) = (&region.pages.lazy, &region.pages.files);
        let gaps = lazy.gaps(first, last).flat_map(|(a, b)| files.gaps(a, b));
        gaps.map(|gap| region.pages_of(gap)).try_for_each(|gap| self.set_protection(gap, false))
    }

    /// See `lazy_free`. Where pages cannot be protected they are left alone:
    /// nobody is promised that they go.
    pub(super) fn mark_lazy(&self, range: PageRange) {
        if self.set_protection(range, true).is_err() {
            return;
        }
        let region = &*self.region;
        self.populated(range, |run| {
            let (a, b) = region.bits(run);
            region.pages.lazy.set(a, b);
        });
    }

    /// See `reclaim`.
    pub(super) fn drop_lazy(&self, range: PageRange) {
        let region = &*self.region;
        let (first, last) = region.bits(range);
        for run in region.pages.lazy.runs(first, last) {
            self.drop_contents(region.pages_of(run));
        }
    }

    /// See `drop_own`. Where stores are not permitted a page of zeros stands for
    /// the zero page, which cannot be installed protected.
    pub(super) fn drop_all_but_zero_pages(&self, range: PageRange) {
        let region = &*self.region;
        let mut own: Vec<PageRange> = Vec::new();
        let mut look = |at: PageRange, pages: PageRange| {
            let _: Result<(), Infallible> = region.presence().own(at, |run| {
                let in_region = |page: VirtAddr| pages.start() + (page - at.start());
                let one = |page: VirtAddr| PageRange::sized(page, PAGE_SIZE);
                let filled =
                    run.iter_pages().filter(|&page| !is_zero(one(page)) || region.presence().written(one(page)));
                own.extend(filled.map(|page| PageRange::sized(in_region(page), PAGE_SIZE)));
                Ok(())
            });
        };
        look(range, range);
        let (first, last) = region.bits(range);
        for run in region.pages.hidden.runs(first, last) {
            let pages = region.pages_of(run);
            look(region.twin_of(pages), pages);
        }
        own.into_iter().for_each(|run| self.drop_contents(run));
    }

    /// Removes contents, wherever they are, and the marks of lazy freeing.
    pub(super) fn drop_contents(&self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let region = &*self.region;
        region.assert_released(range);
        drop_pages(range);
        let (first, last) = region.bits(range);
        if !region.pages.lazy.is_empty() {
            region.pages.lazy.clear(first, last, |_, _| {});
        }
        region.disinherit(first, last);
        if region.pages.hidden.is_empty() {
            return;
        }
        // The hidden pages' span in one call: a call costs a TLB shootdown.
        let (mut from, mut to) = (usize::MAX, 0);
        region.pages.hidden.clear(first, last, |a, b| {
            from = from.min(a);
            to = to.max(b);
        });
        if from < to {
            drop_pages(region.twin_of(region.pages_of((from, to))));
        }
    }
}
