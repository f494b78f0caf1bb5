//! [`Snapshot`]: the queries. All of them are async-signal-safe and wait for
//! nothing.

use super::node::{NodeRef, rank};
use super::{Entry, gap};
use crate::addr::{PageRange, VirtAddr};
use crate::sync::track;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A position in the tree, kept: the mutant of R8.
#[cfg(any(feature = "races", loom, shuttle))]
#[derive(Clone, Copy)]
pub(crate) struct Position(Option<NonNull<super::node::Node>>);

/// One state of a [`VmaTree`](super::VmaTree), unchanged for `'g`.
pub struct Snapshot<'g, T> {
    pub(super) root: Option<NodeRef<'g>>,
    _entries: PhantomData<NonNull<T>>,
}

impl<T> Clone for Snapshot<'_, T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Snapshot<'_, T> {}

impl<T> fmt::Debug for Snapshot<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'g, T> Snapshot<'g, T> {
    #[inline]
    pub(super) fn new(root: Option<NodeRef<'g>>) -> Snapshot<'g, T> {
        Snapshot { root, _entries: PhantomData }
    }

    /// Where the walk begins, free of the section it is good for.
    #[cfg(any(feature = "races", loom, shuttle))]
    pub(crate) fn position(&self) -> Position {
        Position(self.root.map(NodeRef::as_ptr))
    }

    /// The state that `position` was taken from.
    ///
    /// # Safety
    /// The section in which it was taken has not ended.
    #[cfg(any(feature = "races", loom, shuttle))]
    pub(crate) unsafe fn at(&self, position: Position) -> Snapshot<'g, T> {
        // SAFETY: the caller's promise.
        Snapshot::new(position.0.map(|root| unsafe { NodeRef::new(root) }))
    }

    /// What `addr` is mapped to (`vma_lookup`). The fast path of a fault.
    #[inline]
    pub fn lookup(&self, addr: VirtAddr) -> Option<NonNull<T>> {
        let (leaf, i) = self.find(addr)?;
        track::read(&raw const leaf.leaf().ptrs[i]);
        NonNull::new(leaf.leaf().ptrs[i].cast())
    }

    /// The entry that holds `addr`.
    #[inline]
    pub fn entry_at(&self, addr: VirtAddr) -> Option<Entry<T>> {
        let (leaf, i) = self.find(addr)?;
        Some(leaf.entry(i).cast())
    }

    /// The leaf and the index in it of the entry that holds `addr`.
    #[inline]
    fn find(&self, addr: VirtAddr) -> Option<(NodeRef<'g>, usize)> {
        // No entry holds the last byte: its end would not be a number.
        let addr = addr.get().min(usize::MAX - 1);
        let mut node = self.root?;
        while node.level() > 0 {
            let child = node.child(rank(&node.get().inner().starts, addr));
            if node.level() == 1 {
                child.prefetch_entries();
            }
            node = child;
        }
        let leaf = node.get().leaf();
        let i = rank(&leaf.starts, addr);
        track::read(&raw const leaf.ends[i]);
        (leaf.starts[i] <= addr && addr < leaf.ends[i]).then_some((node, i))
    }

    /// The first entry that ends after `addr` (`find_vma`): the one that holds
    /// it or else the next one above.
    pub fn next(&self, addr: VirtAddr) -> Option<Entry<T>> {
        let (leaf, i) = self.find_next(addr)?;
        Some(leaf.entry(i).cast())
    }

    fn find_next(&self, addr: VirtAddr) -> Option<(NodeRef<'g>, usize)> {
        let addr = addr.get();
        let passed = |ends: &[usize]| ends.iter().take_while(|&&end| end <= addr).count();
        let mut node = self.root.filter(|root| root.end() > addr)?;
        while node.level() > 0 {
            // The last child ends where the node does, after `addr`.
            node = node.child(passed(&node.inner().ends[..node.len() - 1]));
        }
        Some((node, passed(&node.leaf().ends[..node.len() - 1])))
    }

    /// The last entry that starts before `addr` (`find_vma_prev`).
    pub fn prev(&self, addr: VirtAddr) -> Option<Entry<T>> {
        let below = addr.get().checked_sub(1)?.min(usize::MAX - 1);
        let mut node = self.root?;
        while node.level() > 0 {
            node = node.child(rank(&node.inner().starts, below));
        }
        let i = rank(&node.leaf().starts, below);
        (node.leaf().starts[i] <= below).then(|| node.entry(i).cast())
    }

    /// The entries that share a page with `range`, ascending.
    pub fn overlapping(&self, range: PageRange) -> Iter<'g, T> {
        let at = if range.is_empty() { None } else { self.find_next(range.start()) };
        Iter { snapshot: *self, at, bound: range.end().get() }
    }

    /// All entries, ascending.
    pub fn iter(&self) -> Iter<'g, T> {
        Iter { snapshot: *self, at: self.find_next(VirtAddr(0)), bound: usize::MAX }
    }

    /// Entries.
    #[inline]
    pub fn len(&self) -> usize {
        self.root.map_or(0, |root| root.entries)
    }

    /// Whether there is no entry.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Whether no page of `range` is mapped.
    pub fn is_free(&self, range: PageRange) -> bool {
        range.is_empty() || self.next(range.start()).is_none_or(|entry| entry.range.start() >= range.end())
    }

    /// The highest address at which `len` bytes are free inside `low..high`:
    /// the top end of the highest gap that is large enough
    /// (`vm_unmapped_area` with `VM_UNMAPPED_AREA_TOPDOWN`). O(log n).
    ///
    /// # Panics
    /// If `len` is 0 or one of the three is not page aligned.
    pub fn gap_top_down(&self, len: usize, low: VirtAddr, high: VirtAddr) -> Option<VirtAddr> {
        gap::Search::new(len, low, high)?.top_down(self.root).map(VirtAddr)
    }

    /// The lowest address at which `len` bytes are free inside `low..high`
    /// (`vm_unmapped_area`). O(log n).
    ///
    /// # Panics
    /// If `len` is 0 or one of the three is not page aligned.
    pub fn gap_bottom_up(&self, len: usize, low: VirtAddr, high: VirtAddr) -> Option<VirtAddr> {
        gap::Search::new(len, low, high)?.bottom_up(self.root).map(VirtAddr)
    }
}

impl<'g, T> IntoIterator for Snapshot<'g, T> {
    type Item = Entry<T>;
    type IntoIter = Iter<'g, T>;
    fn into_iter(self) -> Iter<'g, T> {
        self.iter()
    }
}

/// Entries of one [`Snapshot`], ascending.
pub struct Iter<'g, T> {
    snapshot: Snapshot<'g, T>,
    /// The leaf and the index of the entry to come.
    at: Option<(NodeRef<'g>, usize)>,
    /// Entries that start here or later are not meant.
    bound: usize,
}

impl<T> Iterator for Iter<'_, T> {
    type Item = Entry<T>;

    #[inline]
    fn next(&mut self) -> Option<Entry<T>> {
        let (leaf, i) = self.at?;
        let entry = leaf.entry(i);
        if entry.range.start().get() >= self.bound {
            self.at = None;
            return None;
        }
        // Leaves do not know their neighbours (a neighbour's copy would have to
        // be made known to them): from the end of one, walk down again.
        self.at = if i + 1 < leaf.len() { Some((leaf, i + 1)) } else { self.snapshot.find_next(entry.range.end()) };
        Some(entry.cast())
    }
}

impl<T> std::iter::FusedIterator for Iter<'_, T> {}

impl<T> fmt::Debug for Iter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("bound", &VirtAddr(self.bound)).finish_non_exhaustive()
    }
}
