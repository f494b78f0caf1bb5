//! Plans: which VMAs there will be after an operation, and which of the old
//! objects become them. Pure: no lock, no tree, no objects.
//!
//! An operation lays out the affected stretch of the address space from left
//! to right in a [`Layout`]: pieces of old VMAs as they are, and pieces that
//! it changes or adds. The layout merges as the kernel does (`vma_merge_*`,
//! kernel lineage §4.8): a changed piece with its left neighbour, with its
//! right, or with both; pieces that the operation does not change are never
//! merged with each other.

use super::VmaFlags;
use crate::addr::{PAGE_SHIFT, PageRange};
use crate::file::FileRef;
use smallvec::SmallVec;

/// Marks an [`anon_vma`](Segment::anon_vma) that came from a forked parent's:
/// its chain is not singular (`vma_is_fork_child`), and it is not given on.
pub const INHERITED: u64 = 1 << 63;

/// What a VMA is, apart from being an object. All of it is settled while the
/// mmap lock is held for writing (`anon_vma` too: setting it takes the mmap lock).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The addresses.
    pub range: PageRange,
    /// `vm_flags`.
    pub flags: VmaFlags,
    /// Identity of its anonymous pages, 0 before the first write fault; with
    /// [`INHERITED`] if a forked parent had one.
    pub anon_vma: u64,
    /// What it maps, in pages: the offset in the file; for anonymous memory
    /// the address at which it was first touched (`vm_pgoff`).
    pub pgoff: u64,
    /// The file, none for private anonymous memory.
    pub file: Option<FileRef>,
}

impl Segment {
    /// A private anonymous mapping that nobody has touched.
    pub fn unfaulted(range: PageRange, flags: VmaFlags) -> Segment {
        Segment { range, flags, anon_vma: 0, pgoff: (range.start().get() >> PAGE_SHIFT) as u64, file: None }
    }

    /// The part of the segment that lies in `range`.
    pub fn part(&self, range: PageRange) -> Segment {
        let range = self.range.intersect(range);
        let pgoff = if range.is_empty() { 0 } else { self.pgoff_at(range) };
        Segment { range, pgoff, ..*self }
    }

    /// The offset of the first page of `range`, a part of the segment.
    pub(crate) fn pgoff_at(&self, range: PageRange) -> u64 {
        self.pgoff.wrapping_add(((range.start() - self.range.start()) >> PAGE_SHIFT) as u64)
    }

    /// Whether it is private anonymous memory (`vma_is_anonymous`).
    pub fn is_anonymous(&self) -> bool {
        self.file.is_none()
    }

    /// Whether `right`, which follows, can become one VMA with `self`
    /// (`can_vma_merge_left`, `can_vma_merge_right`).
    pub fn can_merge(&self, right: &Segment) -> bool {
        self.range.end() == right.range.start()
            && self.flags == right.flags
            && self.file == right.file
            && self.pgoff.wrapping_add(self.range.pages() as u64) == right.pgoff
            && anon_vmas_agree(self.anon_vma, right.anon_vma)
    }

    fn absorb(&mut self, right: &Segment) {
        self.range = PageRange::new(self.range.start(), right.range.end());
        self.anon_vma = self.anon_vma.max(right.anon_vma);
    }
}

/// Whether two neighbours can share one identity (`is_mergeable_anon_vma`): one
/// that has none takes the other's, unless that was inherited.
fn anon_vmas_agree(a: u64, b: u64) -> bool {
    a == b || (a == 0 && b & INHERITED == 0) || (b == 0 && a & INHERITED == 0)
}

/// A VMA of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What it will be.
    pub segment: Segment,
    /// The old VMA whose object it becomes, by its place; `None`: a new object.
    pub object: Option<usize>,
    /// It holds a piece that the operation added.
    pub fresh: bool,
    /// It was put together from several: its incarnation is renewed, so that
    /// it is higher than that of each part.
    pub merged: bool,
    /// It ends in a changed piece, which may merge with what follows.
    open: bool,
    /// It begins in another VMA's piece: its object stays in further merges.
    extended: bool,
}

/// VMAs laid out so far, from left to right.
#[derive(Default, Debug)]
pub struct Layout {
    planned: SmallVec<[Planned; 4]>,
    /// Places of old VMAs whose object is already spoken for.
    used: SmallVec<[usize; 4]>,
}

impl Layout {
    /// An empty layout.
    pub fn new() -> Layout {
        Layout::default()
    }

    /// The result.
    pub fn planned(&self) -> &[Planned] {
        &self.planned
    }

    /// Appends a piece of old VMA number `old` that the operation does not
    /// change. Its object goes to the first piece of it that asks.
    pub fn keep(&mut self, old: usize, segment: Segment) {
        if segment.range.is_empty() {
            return;
        }
        if let Some(last) = self.planned.last_mut()
            && last.open
            && last.segment.can_merge(&segment)
        // A changed piece does not merge back into its own VMA's rest: that
        // rest has other flags, or it would not have been changed.
        {
            last.segment.absorb(&segment);
            last.merged = true;
            last.open = false;
            if !last.extended && !self.used.contains(&old) {
                // Right neighbour only: it is extended downwards.
                if let Some(own) = last.object {
                    self.used.retain(|o| *o != own);
                }
                last.object = Some(old);
                self.used.push(old);
            }
            return;
        }
        self.push(segment, Some(old), false, false);
    }

    /// Appends a piece that the operation changes (a piece of old VMA number
    /// `old`) or adds (`None`), merging it to the left.
    pub fn change(&mut self, old: Option<usize>, segment: Segment) {
        if segment.range.is_empty() {
            return;
        }
        if let Some(last) = self.planned.last_mut()
            && last.segment.can_merge(&segment)
        {
            last.segment.absorb(&segment);
            last.merged = true;
            last.open = true;
            last.extended = true;
            last.fresh |= old.is_none();
            return;
        }
        self.push(segment, old, true, old.is_none());
    }

    /// Appends a new piece that only its left neighbour may take in (`just_expand`).
    pub fn extend(&mut self, segment: Segment) {
        self.change(None, segment);
        if let Some(last) = self.planned.last_mut() {
            last.open = false;
        }
    }

    /// Appends a new piece that merges with nothing (a forked child's).
    pub fn add(&mut self, segment: Segment) {
        self.push(segment, None, false, false);
    }

    fn push(&mut self, segment: Segment, old: Option<usize>, open: bool, fresh: bool) {
        let object = old.filter(|old| !self.used.contains(old));
        self.used.extend(object);
        self.planned.push(Planned { segment, object, fresh, merged: false, open, extended: false });
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::addr::VirtAddr;

    fn seg(start: usize, end: usize, writable: bool, anon_vma: u64) -> Segment {
        let flags = if writable { VmaFlags::READ | VmaFlags::WRITE } else { VmaFlags::READ };
        let range = PageRange::new(VirtAddr(start << 12), VirtAddr(end << 12));
        Segment { anon_vma, ..Segment::unfaulted(range, flags) }
    }

    fn objects(layout: &Layout) -> Vec<(usize, usize, Option<usize>)> {
        let pages = |s: &Segment| (s.range.start().get() >> 12, s.range.end().get() >> 12);
        layout.planned().iter().map(|p| (pages(&p.segment).0, pages(&p.segment).1, p.object)).collect()
    }

    #[test]
    fn a_new_mapping_extends_left_absorbs_right_or_extends_right_down() {
        let mut both = Layout::new();
        both.keep(0, seg(0, 2, true, 0));
        both.change(None, seg(2, 3, true, 0));
        both.keep(1, seg(3, 5, true, 0));
        assert_eq!(objects(&both), [(0, 5, Some(0))]);
        let mut right = Layout::new();
        right.keep(0, seg(0, 2, false, 0));
        right.change(None, seg(2, 3, true, 0));
        right.keep(1, seg(3, 5, true, 0));
        assert_eq!(objects(&right), [(0, 2, Some(0)), (2, 5, Some(1))]);
        let mut none = Layout::new();
        none.change(None, seg(2, 3, true, 0));
        assert_eq!(objects(&none), [(2, 3, None)]);
    }

    #[test]
    fn a_fill_between_different_anon_vmas_merges_left_only() {
        let mut layout = Layout::new();
        layout.keep(0, seg(0, 2, true, 7));
        layout.change(None, seg(2, 3, true, 0));
        layout.keep(1, seg(3, 5, true, 8));
        assert_eq!(objects(&layout), [(0, 3, Some(0)), (3, 5, Some(1))]);
    }

    #[test]
    fn what_was_inherited_is_not_given_on() {
        let child = seg(0, 2, true, 7 | INHERITED);
        assert!(
            !child.can_merge(&seg(2, 3, true, 0)) && !seg(0, 2, true, 0).can_merge(&seg(2, 3, true, INHERITED | 7))
        );
        assert!(child.can_merge(&seg(2, 3, true, 7 | INHERITED)));
    }

    #[test]
    fn pages_must_continue() {
        let moved = Segment { pgoff: 9, ..seg(2, 3, true, 0) };
        assert!(!seg(0, 2, true, 0).can_merge(&moved));
        assert_eq!(moved.part(PageRange::new(VirtAddr(2 << 12), VirtAddr(3 << 12))).pgoff, 9);
        assert_eq!(seg(0, 4, true, 0).part(PageRange::new(VirtAddr(2 << 12), VirtAddr(9 << 12))).pgoff, 2);
    }

    #[test]
    fn protecting_the_middle_splits_in_three_with_one_old_object() {
        let mut layout = Layout::new();
        layout.keep(0, seg(0, 1, true, 0));
        layout.change(Some(0), seg(1, 2, false, 0));
        layout.keep(0, seg(2, 3, true, 0));
        assert_eq!(objects(&layout), [(0, 1, Some(0)), (1, 2, None), (2, 3, None)]);
    }

    #[test]
    fn protecting_back_merges_three_into_the_first() {
        let mut layout = Layout::new();
        layout.keep(0, seg(0, 1, true, 0));
        layout.change(Some(1), seg(1, 2, true, 0));
        layout.keep(2, seg(2, 3, true, 0));
        assert_eq!(objects(&layout), [(0, 3, Some(0))]);
    }

    #[test]
    fn what_was_not_changed_is_not_merged() {
        let mut layout = Layout::new();
        layout.keep(0, seg(0, 1, true, 0));
        layout.keep(1, seg(1, 2, true, 0));
        assert_eq!(layout.planned().len(), 2);
    }

    #[test]
    fn a_tail_that_joins_the_right_neighbour_leaves_the_head_its_object() {
        let mut layout = Layout::new();
        layout.keep(0, seg(0, 1, true, 0));
        layout.change(Some(0), seg(1, 2, false, 0));
        layout.keep(1, seg(2, 3, false, 0));
        assert_eq!(objects(&layout), [(0, 1, Some(0)), (1, 3, Some(1))]);
    }
}
