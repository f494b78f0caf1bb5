//! [`Native`]: the host's own address space, for comparison.
//!
//! Only workloads that touch nothing but what they have mapped run on it
//! (`WorkloadInfo::native`). Their fixed addresses lie far below where the
//! kernel places mappings by itself, and are claimed with
//! MAP_FIXED_NOREPLACE, so that no one else's memory is ever replaced.
#![allow(unsafe_code)]

use super::Target;
use crate::RunError;
use nix::sys::mman::{self, ProtFlags};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vmalab::Errno;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Prot, RemapFlags};

/// Where fixed addresses begin: 16 TiB, out of the way of a 47-bit address
/// space's program (0x55..) and mappings (0x7f..).
const BASE: usize = 0x1000_0000_0000;

/// The host's mmap, munmap and mprotect.
pub(crate) struct Native {
    range: PageRange,
}

impl Native {
    /// With `bytes` of fixed addresses.
    pub(crate) fn new(bytes: usize) -> Native {
        Native { range: PageRange::sized(VirtAddr(BASE), bytes) }
    }
}

fn word(addr: VirtAddr) -> &'static AtomicU64 {
    assert!(addr.get().is_multiple_of(8) && addr.get() != 0);
    // SAFETY: aligned, and mapped: workloads touch only mappings that they made
    // and have not yet unmapped (the module's contract). Words of a mapping are
    // only ever reached through this function, as atomics.
    unsafe { &*std::ptr::with_exposed_provenance(addr.get()) }
}

fn prot_flags(prot: Prot) -> ProtFlags {
    ProtFlags::from_bits_truncate(prot.bits() as i32)
}

fn pointer(addr: usize) -> Result<NonNull<std::ffi::c_void>, Errno> {
    NonNull::new(std::ptr::with_exposed_provenance_mut(addr)).ok_or(Errno::EINVAL)
}

impl Target for Native {
    const COUNTS: bool = false;

    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        assert!(!flags.contains(MapFlags::FIXED), "natively MAP_FIXED could replace memory that is not ours");
        let flags = mman::MapFlags::from_bits_truncate(flags.bits() as i32);
        let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: without MAP_FIXED the call replaces nothing.
        let start = unsafe { mman::mmap_anonymous(NonZeroUsize::new(addr), len, prot_flags(prot), flags) }?;
        Ok(Mapping { addr: VirtAddr(start.as_ptr().expose_provenance()), incarnation: 0 })
    }

    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        // SAFETY: workloads unmap only what they have mapped, and no reference
        // into it outlives an access.
        unsafe { mman::munmap(pointer(addr)?, len) }
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        // SAFETY: as for `munmap`.
        unsafe { mman::mprotect(pointer(addr)?, len, prot_flags(prot)) }
    }

    fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno> {
        let inside = self.range.contains(VirtAddr(addr)) && (new_addr == 0 || self.range.contains(VirtAddr(new_addr)));
        assert!(inside, "natively MREMAP_FIXED could replace memory that is not ours");
        let (old, new): (*mut std::ffi::c_void, *mut std::ffi::c_void) =
            (std::ptr::with_exposed_provenance_mut(addr), std::ptr::with_exposed_provenance_mut(new_addr));
        // SAFETY: workloads move only what they have mapped, inside this
        // target's fixed addresses, and no reference into it outlives an access.
        let start = unsafe { libc::mremap(old, old_len, new_len, flags.bits() as i32, new) };
        if start == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(VirtAddr(start.expose_provenance())) }
    }

    fn new_file(&self, _: usize) -> Result<Arc<File>, Errno> {
        Err(Errno::ENOSYS)
    }

    fn map_file(&self, _: usize, _: Prot, _: &Arc<File>) -> Result<Mapping, Errno> {
        Err(Errno::ENOSYS)
    }

    fn msync(&self, _: usize, _: usize) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    fn fork(&self) -> Result<Native, RunError> {
        Err(RunError::Unsupported("the host's own address space is not forked".to_owned()))
    }

    fn maps(&self) -> Vec<MapsEntry> {
        Vec::new()
    }

    fn query(&self, _: VirtAddr) -> Option<MapsEntry> {
        None
    }

    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        Ok(word(addr).load(Ordering::Relaxed))
    }

    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        word(addr).store(value, Ordering::Relaxed);
        Ok(())
    }

    fn checked(&self) -> bool {
        false
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn id(&self) -> u64 {
        0
    }

    fn validate(&self) {}
}

impl Drop for Native {
    fn drop(&mut self) {
        // Mappings at fixed addresses that a stopped thread has left behind.
        // SAFETY: only this target's mappings lie there, and nobody uses them any more.
        let _ = unsafe { pointer(BASE).and_then(|start| mman::munmap(start, self.range.bytes())) };
    }
}
