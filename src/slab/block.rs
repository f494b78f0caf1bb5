//! Blocks: where a slab that has grown large gets its pages from.
//!
//! The kernel's slabs lie in its direct map, which huge pages map: an object
//! costs no walk through page tables of its own. Objects of a large address
//! space are spread over hundreds of megabytes, and each look at one would miss
//! the TLB. So these pages lie 64 to a block of 2 MiB, which the host backs with a
//! huge page if it has one (`MADV_HUGEPAGE`).
//!
//! A page that is given back leaves its memory to the system (`MADV_DONTNEED`),
//! which breaks the huge page up; a block of which all pages were given back is
//! unmapped, so that the next one can be a huge page again.

use super::{PageHead, PagePtr, SLAB_BYTES};
use crate::sync::{Mutex, statics};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// A huge page of x86.
const BLOCK_BYTES: usize = 2 << 20;
const _: () = assert!(BLOCK_BYTES / SLAB_BYTES == 64, "a word has a bit for each page of a block");
const ALL_BLANK: u64 = u64::MAX;

/// A block some of whose pages are not in use.
struct Block {
    start: PagePtr,
    /// A bit for each page that is not in use; never 0.
    blank: u64,
}

statics! {
    /// By address.
    static BLOCKS: Mutex<BTreeMap<usize, Block>> = Mutex::new(BTreeMap::new());
}

/// Memory for one slab page, which may hold anything. `None` when the system has none.
pub(super) fn take() -> Option<NonNull<PageHead>> {
    let mut blocks = BLOCKS.lock().expect("blocks");
    if blocks.is_empty() {
        let start = map()?;
        blocks.insert(start.addr().get(), Block { start: PagePtr(start.cast()), blank: ALL_BLANK });
    }
    let mut first = blocks.first_entry()?;
    let Block { start: PagePtr(start), blank } = first.get_mut();
    // SAFETY: within the block.
    let page = unsafe { start.byte_add(blank.trailing_zeros() as usize * SLAB_BYTES) };
    *blank &= *blank - 1;
    if *blank == 0 {
        first.remove();
    }
    Some(page)
}

/// A new block. Where there are no huge pages it has small ones.
fn map() -> Option<NonNull<c_void>> {
    let twice = NonZeroUsize::new(2 * BLOCK_BYTES)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes; then what of it is not the block.
    unsafe {
        let mapped = mmap_anonymous(None, twice, access, MapFlags::MAP_PRIVATE).ok()?;
        // Below the address at which the host began, for the next to lie beside it.
        let before = BLOCK_BYTES - mapped.addr().get() % BLOCK_BYTES;
        let start = mapped.byte_add(before);
        for (end, bytes) in [(mapped, before), (start.byte_add(BLOCK_BYTES), BLOCK_BYTES - before)] {
            // Should the host refuse, a few addresses are lost.
            let _ = if bytes > 0 { munmap(end, bytes) } else { Ok(()) };
        }
        let _ = madvise(start, BLOCK_BYTES, MmapAdvise::MADV_HUGEPAGE);
        Some(start)
    }
}

/// Gives a page from [`take`] back; with `poisoned` what is in it stays, to be seen
/// by whoever should not look.
///
/// # Safety
/// Nobody can reach the page any more.
pub(super) unsafe fn give_back(page: NonNull<PageHead>, poisoned: bool) {
    if !poisoned {
        // SAFETY: the page is ours. Should the host refuse, its memory waits for the next user.
        let _ = unsafe { madvise(page.cast::<c_void>(), SLAB_BYTES, MmapAdvise::MADV_DONTNEED) };
    }
    let offset = page.addr().get() % BLOCK_BYTES;
    // SAFETY: the block's start, as blocks lie at multiples of their size.
    let start = PagePtr(unsafe { page.byte_sub(offset) });
    let mut blocks = BLOCKS.lock().expect("blocks");
    let key = page.addr().get() - offset;
    let block = blocks.entry(key).or_insert(Block { start, blank: 0 });
    debug_assert_eq!(block.blank & 1 << (offset / SLAB_BYTES), 0, "a page was given back twice");
    block.blank |= 1 << (offset / SLAB_BYTES);
    let is_blank = |block: &Block| block.blank == ALL_BLANK;
    // One stays, for a slab that grows and shrinks by a page again and again.
    if is_blank(block) && !poisoned && blocks.values().filter(|block| is_blank(block)).count() > 1 {
        let gone = blocks.remove(&key).map(|block| block.start);
        drop(blocks);
        if let Some(PagePtr(start)) = gone {
            // SAFETY: nobody uses any of its pages. Should the host refuse, addresses are lost.
            let _ = unsafe { munmap(start.cast(), BLOCK_BYTES) };
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// Whether the page has memory; not if it is not even mapped.
    fn resident(page: NonNull<PageHead>) -> bool {
        let mut there = [0u8; SLAB_BYTES / 4096];
        // SAFETY: one byte for each page.
        let result = unsafe { libc::mincore(page.as_ptr().cast(), SLAB_BYTES, there.as_mut_ptr()) };
        result == 0 && there.iter().any(|there| there & 1 != 0)
    }

    fn fill(page: NonNull<PageHead>) {
        // SAFETY: the test's own page.
        unsafe { page.as_ptr().cast::<u8>().write_bytes(1, SLAB_BYTES) };
    }

    #[test]
    fn memory_goes_back_unless_it_is_poisoned() {
        // Twice as many as another test could take from us before we look.
        let pages = [(); 2 * BLOCK_BYTES / SLAB_BYTES].map(|()| take().unwrap());
        for page in pages {
            fill(page);
            assert!(resident(page));
        }
        let distinct: std::collections::HashSet<_> = pages.iter().map(|page| page.addr()).collect();
        assert_eq!(distinct.len(), pages.len());
        // Every other one, so that no block falls blank and is unmapped.
        let (stay, go): (Vec<NonNull<PageHead>>, Vec<_>) =
            pages.into_iter().partition(|page| (page.addr().get() / SLAB_BYTES).is_multiple_of(2));
        // SAFETY: ours, and given back once.
        go.iter().for_each(|page| unsafe { give_back(*page, false) });
        let gone = go.iter().filter(|page| !resident(**page)).count();
        assert!(gone >= go.len() / 2, "{gone} of {}", go.len());
        assert!(stay.iter().all(|page| resident(*page)));
        // SAFETY: as above.
        stay.iter().for_each(|page| unsafe { give_back(*page, false) });
        let page = take().unwrap();
        fill(page);
        // SAFETY: ours, then given back once.
        unsafe { give_back(page, true) };
        assert!(resident(page));
    }

    #[test]
    fn a_block_that_nobody_uses_is_unmapped() {
        let pages: Vec<_> = (0..8 * BLOCK_BYTES / SLAB_BYTES).map(|_| take().unwrap()).collect();
        // SAFETY: ours, and given back once.
        pages.iter().for_each(|page| unsafe { give_back(*page, false) });
        let mapped = |page: &&NonNull<PageHead>| {
            let mut there = [0u8; 1];
            // SAFETY: asks about one page.
            unsafe { libc::mincore(page.as_ptr().cast(), 4096, there.as_mut_ptr()) == 0 }
        };
        // One block stays, others may be in use by other tests.
        let left = pages.iter().filter(mapped).count();
        assert!(left <= pages.len() / 2, "{left} of {}", pages.len());
    }
}
