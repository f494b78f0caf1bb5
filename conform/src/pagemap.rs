//! `/proc/self/pagemap`: what the page table has. No allocation.

use crate::PAGE;

/// The page is in memory, or swapped out; a guard is the latter.
pub const IN_PAGE_TABLE: u64 = 1 << 63 | 1 << 62;
/// A guard (Linux 6.15 and later).
pub const GUARD: u64 = 1 << 58;
/// A page of a file, or of shared memory.
pub const FILE_OR_SHARED: u64 = 1 << 61;

/// Sets the bit of each of the `pages` pages from `start` on whose entry is as
/// `wanted`. `fd` is the file, `scratch` memory for eight bytes a page.
pub fn read(fd: i32, scratch: &mut [u8], start: usize, pages: usize, bits: &mut [u64], wanted: impl Fn(u64) -> bool) {
    let bytes = pages * size_of::<u64>();
    assert!(bytes <= scratch.len());
    let at = (start / PAGE * size_of::<u64>()) as i64;
    // SAFETY: the scratch memory has room, as asserted.
    let got = unsafe { libc::pread(fd, scratch.as_mut_ptr().cast(), bytes, at) };
    let entries = scratch[..got.max(0) as usize].chunks_exact(size_of::<u64>());
    for (page, entry) in entries.enumerate() {
        if wanted(u64::from_ne_bytes(entry.try_into().expect("eight bytes"))) {
            bits[page / 64] |= 1 << (page % 64);
        }
    }
}
