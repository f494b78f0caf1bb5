//! [`Zeroed`]: a large array of atomics in memory that the host provides as it
//! is touched, zero at first.

use nix::errno::Errno;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Types of which all zero bytes are a value, and which may be shared.
///
/// # Safety
/// Zero bytes are a value of the type, and it needs no drop.
pub unsafe trait Zeroable: Sync {}

// SAFETY: an integer.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: as above.
unsafe impl Zeroable for AtomicU64 {}

/// See the module's documentation.
pub struct Zeroed<T: Zeroable> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its elements, which are shared by reference only.
unsafe impl<T: Zeroable> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroable> Sync for Zeroed<T> {}

impl<T: Zeroable> Zeroed<T> {
    /// `len` zeros (at least one).
    ///
    /// # Errors
    /// The host's, if it cannot reserve the memory.
    pub fn new(len: usize) -> Result<Zeroed<T>, Errno> {
        let len = len.max(1);
        // SAFETY: a new mapping where the kernel likes.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Zeroed { start: NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?, len })
    }
}

impl<T: Zeroable> Deref for Zeroed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` elements, zero at first, and is
        // unmapped only when this object goes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Zeroable> Drop for Zeroed<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this size; nobody refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
