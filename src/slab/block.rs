//! Blocks: where a slab that has grown large gets its pages from.
//!
//! The kernel's slabs lie in its direct map, which huge pages map: an object
//! costs no walk through page tables of its own. Objects of a large address
//! space are spread over hundreds of megabytes, and each look at one would miss
//! the TLB. So these pages lie 64 to a block of 2 MiB, which the host backs with a
//! huge page if it has one (`MADV_HUGEPAGE`).
//!
//! A page that is given back leaves its memory to the system (`MADV_DONTNEED`);
//! its addresses stay, for any slab. Their number is that of the most pages ever
//! in use at once.

use super::{PageHead, PagePtr, SLAB_BYTES};
use crate::sync::{Mutex, statics};
use nix::sys::mman::{MmapAdvise, madvise};
use std::alloc::{Layout, alloc};
use std::ffi::c_void;
use std::ptr::NonNull;

/// A huge page of x86.
const BLOCK_BYTES: usize = 2 << 20;

statics! {
    /// Pages of blocks that are not in use.
    static BLANK: Mutex<Vec<PagePtr>> = Mutex::new(Vec::new());
}

/// Memory for one slab page, which may hold anything. `None` when the system has none.
pub(super) fn take() -> Option<NonNull<PageHead>> {
    const LAYOUT: Layout = match Layout::from_size_align(BLOCK_BYTES, BLOCK_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("block layout"),
    };
    let mut blank = BLANK.lock().expect("blank pages");
    if blank.is_empty() {
        // SAFETY: the layout is not empty.
        let block = NonNull::new(unsafe { alloc(LAYOUT) })?;
        // SAFETY: the block is ours. Where there are no huge pages it stays as it is.
        let _ = unsafe { madvise(block.cast::<c_void>(), BLOCK_BYTES, MmapAdvise::MADV_HUGEPAGE) };
        // SAFETY: all within the block. The lowest comes last, to be taken first.
        blank
            .extend((0..BLOCK_BYTES).step_by(SLAB_BYTES).rev().map(|at| PagePtr(unsafe { block.byte_add(at).cast() })));
    }
    blank.pop().map(|PagePtr(page)| page)
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
    BLANK.lock().expect("blank pages").push(PagePtr(page));
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_unless_it_is_poisoned() {
        let resident = |page: NonNull<PageHead>| {
            let mut there = [0u8; SLAB_BYTES / 4096];
            // SAFETY: a block's addresses stay; one byte for each page.
            let result = unsafe { libc::mincore(page.as_ptr().cast(), SLAB_BYTES, there.as_mut_ptr()) };
            assert_eq!(result, 0);
            there.iter().any(|there| there & 1 != 0)
        };
        // Twice as many as another test could take from us before we look.
        let pages = [(); 2 * BLOCK_BYTES / SLAB_BYTES].map(|()| take().unwrap());
        for page in pages {
            // SAFETY: ours.
            unsafe { page.as_ptr().cast::<u8>().write_bytes(1, SLAB_BYTES) };
            assert!(resident(page));
        }
        // SAFETY: ours, and given back once.
        pages.iter().for_each(|page| unsafe { give_back(*page, false) });
        let gone = pages.iter().filter(|page| !resident(**page)).count();
        assert!(gone >= pages.len() / 2, "{gone} of {}", pages.len());
        let page = take().unwrap();
        // SAFETY: ours, then given back once.
        unsafe {
            page.as_ptr().cast::<u8>().write_bytes(1, SLAB_BYTES);
            give_back(page, true);
        }
        assert!(resident(page));
    }
}
