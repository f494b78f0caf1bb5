//! Addresses: [`VirtAddr`], [`PageRange`] and page arithmetic.
//!
//! Interfaces of this crate take these types, never a bare `usize`, so that a
//! length is not mistaken for an address and an unaligned range cannot reach
//! the tree.

use std::fmt;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: usize = 12;
/// Bytes in a page; the only page size vmalab serves.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// User space ends here: 47 bits (`TASK_SIZE_MAX`, but for its last page).
pub(crate) const ADDRESSES_END: usize = 1 << 47;

/// An address inside (or beside) an address space. Any byte, not only page starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct VirtAddr(pub usize);

impl VirtAddr {
    /// The address as a number.
    #[inline]
    pub const fn get(self) -> usize {
        self.0
    }

    /// The start of the page that holds this address.
    #[inline]
    pub const fn page(self) -> VirtAddr {
        VirtAddr(self.0 & !(PAGE_SIZE - 1))
    }

    /// From the page that holds this address to the end of its aligned block of
    /// `pages` pages, a power of two.
    #[inline]
    pub(crate) fn block_from(self, pages: usize) -> PageRange {
        PageRange::new(self.page(), VirtAddr(self.0 | (pages * PAGE_SIZE - 1)).page() + PAGE_SIZE)
    }

    /// Whether this is the first byte of a page.
    #[inline]
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl std::ops::Add<usize> for VirtAddr {
    type Output = VirtAddr;
    #[inline]
    fn add(self, bytes: usize) -> VirtAddr {
        VirtAddr(self.0 + bytes)
    }
}

impl std::ops::Sub<VirtAddr> for VirtAddr {
    type Output = usize;
    #[inline]
    fn sub(self, other: VirtAddr) -> usize {
        self.0 - other.0
    }
}

/// `len` rounded up to whole pages, or `None` where that wraps (`PAGE_ALIGN`).
#[inline]
pub const fn page_align_up(len: usize) -> Option<usize> {
    match len.checked_add(PAGE_SIZE - 1) {
        Some(n) => Some(n & !(PAGE_SIZE - 1)),
        None => None,
    }
}

/// A range of whole pages, `start..end`.
///
/// # Invariants
/// `start` and `end` are page aligned and `start <= end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageRange {
    start: VirtAddr,
    end: VirtAddr,
}

impl PageRange {
    /// The pages from `start` up to, not including, `end`.
    ///
    /// # Panics
    /// If an end is not page aligned or they are out of order.
    #[inline]
    #[track_caller]
    pub const fn new(start: VirtAddr, end: VirtAddr) -> PageRange {
        assert!(start.is_page_aligned() && end.is_page_aligned() && start.0 <= end.0);
        PageRange { start, end }
    }

    /// The `bytes` bytes from `start`.
    ///
    /// # Panics
    /// If either is not page aligned, or the sum wraps.
    #[inline]
    #[track_caller]
    pub const fn sized(start: VirtAddr, bytes: usize) -> PageRange {
        match start.0.checked_add(bytes) {
            Some(end) => PageRange::new(start, VirtAddr(end)),
            None => panic!("page range wraps"),
        }
    }

    /// First byte.
    #[inline]
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// First byte after the range.
    #[inline]
    pub const fn end(self) -> VirtAddr {
        self.end
    }

    /// Length in bytes.
    #[inline]
    pub const fn bytes(self) -> usize {
        self.end.0 - self.start.0
    }

    /// Length in pages.
    #[inline]
    pub const fn pages(self) -> usize {
        self.bytes() >> PAGE_SHIFT
    }

    /// Whether the range holds no page.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `addr` lies in the range.
    #[inline]
    pub const fn contains(self, addr: VirtAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }

    /// Whether all of `other` lies in the range.
    #[inline]
    pub const fn covers(self, other: PageRange) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two ranges share a page.
    #[inline]
    pub const fn overlaps(self, other: PageRange) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// The pages that both ranges hold (empty, at some address, if none).
    #[inline]
    pub fn intersect(self, other: PageRange) -> PageRange {
        let start = self.start.max(other.start);
        PageRange { start, end: self.end.min(other.end).max(start) }
    }

    /// The start address of each page.
    pub fn iter_pages(self) -> impl DoubleEndedIterator<Item = VirtAddr> + use<> {
        (self.start.0 >> PAGE_SHIFT..self.end.0 >> PAGE_SHIFT).map(|n| VirtAddr(n << PAGE_SHIFT))
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn alignment_wraps_to_none() {
        assert_eq!(page_align_up(0), Some(0));
        assert_eq!(page_align_up(1), Some(PAGE_SIZE));
        assert_eq!(page_align_up(usize::MAX), None);
        assert_eq!(page_align_up(usize::MAX - PAGE_SIZE + 1), Some(usize::MAX - PAGE_SIZE + 1));
    }

    #[test]
    fn intersection_is_empty_or_shared() {
        let r = |a: usize, b: usize| PageRange::new(VirtAddr(a << 12), VirtAddr(b << 12));
        assert_eq!(r(1, 5).intersect(r(3, 9)), r(3, 5));
        assert!(r(1, 2).intersect(r(5, 6)).is_empty());
        assert!(!r(1, 2).overlaps(r(2, 3)));
        assert_eq!(r(1, 4).iter_pages().count(), 3);
    }
}
