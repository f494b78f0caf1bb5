//! Host memory to measure on: mapped when made, unmapped when dropped.

use crate::{Reason, Touch};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use vmalab::addr::PAGE_SIZE;

/// Whole pages of readable and writable memory, of small pages only.
///
/// # Invariants
/// `base` is a mapping of `pages` pages that nobody else knows of.
pub struct Memory {
    base: *mut u8,
    pages: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only
// accessed page by page through volatile accesses.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Anonymous and private.
    pub fn anonymous(pages: usize) -> Result<Memory, Reason> {
        Memory::map(pages, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Anonymous, not to be accessed.
    pub fn forbidden(pages: usize) -> Result<Memory, Reason> {
        Memory::map(pages, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// A shared mapping of a file.
    pub fn shared(pages: usize, file: BorrowedFd<'_>) -> Result<Memory, Reason> {
        Memory::map(pages, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(pages: usize, prot: i32, flags: i32, file: i32) -> Result<Memory, Reason> {
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE_SIZE, prot, flags, file, 0) };
        if base == libc::MAP_FAILED {
            return Err(Reason::last("mmap"));
        }
        let memory = Memory { base: base.cast(), pages };
        // Fails only where the kernel has no transparent huge pages.
        // SAFETY: our own mapping.
        unsafe { libc::madvise(base, pages * PAGE_SIZE, libc::MADV_NOHUGEPAGE) };
        Ok(memory)
    }

    pub fn base(&self) -> usize {
        self.base.addr()
    }

    pub fn bytes(&self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// Touches one page, and whoever serves its fault makes it present.
    #[inline]
    pub fn touch(&self, page: usize, how: Touch) {
        assert!(page < self.pages);
        // SAFETY: inside the mapping; nothing but such touches uses the bytes.
        unsafe {
            let byte = self.base.add(page * PAGE_SIZE);
            match how {
                Touch::Load => drop(ptr::read_volatile(byte)),
                Touch::Store => ptr::write_volatile(byte, 1),
            }
        }
    }

    /// Makes `pages` pages from `first` on absent.
    #[inline]
    pub fn drop_pages(&self, first: usize, pages: usize) -> Result<(), Reason> {
        assert!(first + pages <= self.pages);
        // SAFETY: inside our own mapping, whose contents nobody wants.
        let result =
            unsafe { libc::madvise(self.base.add(first * PAGE_SIZE).cast(), pages * PAGE_SIZE, libc::MADV_DONTNEED) };
        Errno::result(result).map(drop).map_err(|errno| Reason::call("MADV_DONTNEED", errno))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and its owner is gone.
        unsafe { libc::munmap(self.base.cast(), self.bytes()) };
    }
}
