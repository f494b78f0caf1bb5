//! Random mutations of a tree, and every query after each, against a plain
//! list.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::fmt;
use std::num::NonZero;
use std::ptr::NonNull;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::rcu;
use vmalab::tree::{Entry, Reclaim, Snapshot, VmaTree};

/// Pages of the domain: enough single ones for a tree of three levels.
const PAGES: usize = 2048;
const STEPS_MAX: usize = 48;
/// The last page that an entry may hold: the end of the next would not be a number.
const LAST: usize = usize::MAX / PAGE_SIZE;

#[derive(Arbitrary)]
struct Input {
    /// The domain ends at the end of all addresses, else starts at 0.
    at_the_top: bool,
    after_grace_periods: bool,
    steps: Vec<(Change, Look)>,
}

/// One `replace`. The span is grown so that no entry straddles its ends.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Change {
    /// One entry.
    Insert {
        page: u16,
        pages: u8,
    },
    /// What the n-th entry covers, taken out.
    Remove {
        nth: u16,
    },
    /// The n-th entry, in two parts.
    Split {
        nth: u16,
        at: u8,
    },
    /// Two neighbours as one entry.
    Join {
        nth: u16,
    },
    Clear {
        page: u16,
        pages: u16,
    },
    /// Many entries of `longest` pages or fewer, each after a gap if `gaps` says so.
    Fill {
        page: u16,
        pages: u16,
        longest: u8,
        gaps: u8,
    },
}

/// Where the queries look.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Look {
    byte: u16,
    offset: u16,
    low: u16,
    pages: u16,
    len: u8,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, reclaim) = (self.first(), self.reclaim());
        writeln!(f, "VmaTree::new({reclaim:?}), {PAGES} pages from page {first:#x}")?;
        let mut list = List { first, ..List::default() };
        for (step, &(change, look)) in self.steps.iter().take(STEPS_MAX).enumerate() {
            let (span, new) = list.plan(change);
            let show: Vec<_> = new.iter().map(|e| e.range).collect();
            writeln!(f, "{step:3}: replace({span:?}, {show:?}), then {look:?}")?;
            list.replace(span, &new);
        }
        Ok(())
    }
}

impl Input {
    fn first(&self) -> usize {
        if self.at_the_top { LAST - PAGES } else { 0 }
    }

    fn reclaim(&self) -> Reclaim {
        if self.after_grace_periods { Reclaim::AfterGracePeriod } else { Reclaim::AtOnce }
    }
}

/// The model: the entries, ascending.
#[derive(Default)]
struct List {
    /// First page of the domain.
    first: usize,
    entries: Vec<Entry<u64>>,
    made: usize,
}

impl List {
    fn addr(&self, page: usize) -> VirtAddr {
        VirtAddr((self.first + page) * PAGE_SIZE)
    }

    fn pages(&self, start: usize, end: usize) -> PageRange {
        PageRange::new(self.addr(start), self.addr(end))
    }

    /// A new entry. What it points to is a number: trees never follow.
    fn entry(&mut self, range: PageRange) -> Entry<u64> {
        self.made += 1;
        Entry { range, ptr: NonNull::without_provenance(NonZero::new(self.made).expect("from 1")) }
    }

    fn bounded(&self, page: u16, pages: usize) -> PageRange {
        let start = page as usize % PAGES;
        self.pages(start, (start + pages).min(PAGES))
    }

    fn nth(&self, nth: u16) -> Option<usize> {
        (nth as usize).checked_rem(self.entries.len())
    }

    /// The arguments of `replace`.
    fn plan(&mut self, change: Change) -> (PageRange, Vec<Entry<u64>>) {
        let nothing = (self.pages(0, 0), Vec::new());
        match change {
            Change::Insert { page, pages } => {
                let range = self.bounded(page, 1 + pages as usize % 16);
                (self.grown(range), vec![self.entry(range)])
            }
            Change::Remove { nth } => self.nth(nth).map_or(nothing, |i| (self.entries[i].range, Vec::new())),
            Change::Split { nth, at } => {
                let Some(i) = self.nth(nth) else { return nothing };
                let range = self.entries[i].range;
                let mid = range.start() + (at as usize % range.pages()) * PAGE_SIZE;
                let parts = [PageRange::new(range.start(), mid), PageRange::new(mid, range.end())];
                (range, parts.into_iter().filter(|p| !p.is_empty()).map(|p| self.entry(p)).collect())
            }
            Change::Join { nth } => {
                let Some(i) = self.nth(nth) else { return nothing };
                let last = self.entries[(i + 1).min(self.entries.len() - 1)];
                let range = PageRange::new(self.entries[i].range.start(), last.range.end());
                (range, vec![self.entry(range)])
            }
            Change::Clear { page, pages } => (self.grown(self.bounded(page, pages as usize % (PAGES + 1))), Vec::new()),
            Change::Fill { page, pages, longest, gaps } => {
                let span = self.grown(self.bounded(page, pages as usize % (PAGES + 1)));
                let (mut at, mut new) = (span.start(), Vec::new());
                for n in 0.. {
                    let gap = if gaps >> (n % 8) & 1 == 1 { (1 + n % 3) * PAGE_SIZE } else { 0 };
                    if gap >= span.end() - at {
                        break;
                    }
                    at = at + gap;
                    let bytes = (1 + n % (1 + longest as usize % 4)) * PAGE_SIZE;
                    let end = span.end().min(at + bytes.min(span.end() - at));
                    new.push(self.entry(PageRange::new(at, end)));
                    at = end;
                }
                (span, new)
            }
        }
    }

    /// `range`, and all of every entry that it shares a page with or cuts.
    fn grown(&self, range: PageRange) -> PageRange {
        let cut = |at: VirtAddr| self.entries.iter().find(|e| e.range.start() < at && at < e.range.end());
        let start = cut(range.start()).map_or(range.start(), |e| e.range.start());
        let end = cut(range.end()).map_or(range.end(), |e| e.range.end());
        PageRange::new(start, end)
    }

    /// Returns how many entries went.
    fn replace(&mut self, span: PageRange, new: &[Entry<u64>]) -> usize {
        let before = self.entries.len();
        self.entries.retain(|e| !e.range.overlaps(span));
        let removed = before - self.entries.len();
        self.entries.extend(new);
        self.entries.sort_by_key(|e| e.range.start());
        removed
    }

    /// Free stretches that hold `len` bytes, cut to `low..high`, ascending.
    fn gaps(&self, len: usize, low: VirtAddr, high: VirtAddr) -> Vec<(VirtAddr, VirtAddr)> {
        let top = VirtAddr(usize::MAX).page();
        let starts = std::iter::once(VirtAddr(0)).chain(self.entries.iter().map(|e| e.range.end()));
        let ends = self.entries.iter().map(|e| e.range.start()).chain([top]);
        starts
            .zip(ends)
            .map(|(start, end)| (start.max(low), end.min(high)))
            .filter(|&(start, end)| start < end && end - start >= len)
            .collect()
    }

    /// Asks everything twice.
    fn compare(&self, tree: Snapshot<'_, u64>, look: Look) {
        tree.validate();
        assert_eq!((tree.len(), tree.is_empty()), (self.entries.len(), self.entries.is_empty()));
        assert!(tree.iter().eq(self.entries.iter().copied()), "iter(): {tree:?}");

        // Also beside the domain, and the last byte of all.
        let at = self.addr(look.byte as usize % (PAGES + 1)).get().saturating_add(look.offset as usize % PAGE_SIZE);
        for at in [VirtAddr(at), VirtAddr(at).page(), VirtAddr(0), VirtAddr(usize::MAX)] {
            let held = self.entries.iter().find(|e| e.range.contains(at)).copied();
            assert_eq!(tree.lookup(at), held.map(|e| e.ptr), "lookup({at:?})");
            assert_eq!(tree.entry_at(at), held, "entry_at({at:?})");
            let next = self.entries.iter().find(|e| e.range.end() > at).copied();
            assert_eq!(tree.next(at), next, "next({at:?})");
            let prev = self.entries.iter().rfind(|e| e.range.start() < at).copied();
            assert_eq!(tree.prev(at), prev, "prev({at:?})");
        }

        let range = self.bounded(look.low, look.pages as usize % (PAGES + 1));
        let hits: Vec<_> = self.entries.iter().filter(|e| e.range.overlaps(range) && !range.is_empty()).collect();
        assert!(tree.overlapping(range).eq(hits.iter().map(|&&e| e)), "overlapping({range:?})");
        assert_eq!(tree.is_free(range), hits.is_empty(), "is_free({range:?})");

        let (low, high) = (range.start(), range.end());
        let len = (1 + look.len as usize) * PAGE_SIZE;
        for (len, low, high) in
            [(len, low, high), (PAGE_SIZE, low, high), (len, VirtAddr(0), VirtAddr(usize::MAX).page())]
        {
            let gaps = self.gaps(len, low, high);
            let top = gaps.last().map(|&(_, end)| VirtAddr(end.get() - len));
            assert_eq!(tree.gap_top_down(len, low, high), top, "gap_top_down({len:#x}, {low:?}, {high:?})");
            let bottom = gaps.first().map(|&(start, _)| start);
            assert_eq!(tree.gap_bottom_up(len, low, high), bottom, "gap_bottom_up({len:#x}, {low:?}, {high:?})");
        }
    }
}

fuzz_target!(|input: Input| {
    let tree = VmaTree::<u64>::new(input.reclaim());
    let mut list = List { first: input.first(), ..List::default() };
    for &(change, look) in input.steps.iter().take(STEPS_MAX) {
        let (span, new) = list.plan(change);
        // SAFETY: one thread has the tree, and holds no snapshot now.
        let removed = unsafe { tree.replace(span, &new) };
        assert_eq!(removed, list.replace(span, &new), "replace({span:?}, {} entries)", new.len());
        // SAFETY: no mutation before the snapshot is gone.
        list.compare(unsafe { tree.snapshot_locked() }, look);
        if input.after_grace_periods {
            list.compare(tree.snapshot(&rcu::read()), look);
        }
    }
    rcu::poll();
});
