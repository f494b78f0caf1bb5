//! [`Soft`]: an [`Mm`] whose accesses are direct calls (`software` delivery).

use super::{SlabUse, Target};
use crate::RunError;
use std::sync::Arc;
use vmalab::Errno;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::{File, Inode};
use vmalab::lock::LockScheme;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Mm, Prot, RemapFlags};
use vmalab::mmu::soft::{self, SoftMmu};
use vmalab::mmu::{Mmu, MmuError};
use vmalab::pager::{AnyPager, Stamp};

/// An address space over [`SoftMmu`], reached through `Mm::read` and `Mm::write`.
pub(crate) struct Soft<S: LockScheme>(Mm<S, SoftMmu, AnyPager>);

impl<S: LockScheme> Soft<S> {
    /// The same with so many pages made present by each fault.
    pub(crate) fn fault_around(self, pages: usize) -> Self {
        self.0.set_fault_around(pages);
        self
    }

    /// An empty one.
    pub(crate) fn new(bytes: usize, pager: AnyPager) -> Result<Soft<S>, RunError> {
        Soft::at(soft::BASE, bytes, pager)
    }

    /// The same from address `base`: addresses are but numbers here.
    pub(crate) fn at(base: VirtAddr, bytes: usize, pager: AnyPager) -> Result<Soft<S>, RunError> {
        match SoftMmu::at(base, bytes) {
            Ok(mmu) => Ok(Soft(Mm::new(mmu, pager))),
            Err(error) => Err(no_room(bytes, error)),
        }
    }
}

fn no_room(bytes: usize, error: MmuError) -> RunError {
    RunError::Unsupported(format!(
        "no room for an address space of {bytes} bytes ({error:?}): ask for less with --region, or fewer address spaces"
    ))
}

impl<S: LockScheme> Target for Soft<S> {
    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        self.0.map(addr, len, prot, flags)
    }

    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.0.munmap(addr, len)
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        self.0.mprotect(addr, len, prot)
    }

    fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno> {
        self.0.mremap(addr, old_len, new_len, flags, new_addr)
    }

    fn new_file(&self, bytes: usize) -> Result<Arc<File>, Errno> {
        let store = self.0.mmu().shmem(bytes as u64)?;
        Ok(File::open(Inode::new(store, bytes as u64), true, true))
    }

    fn map_file(&self, len: usize, prot: Prot, file: &Arc<File>) -> Result<Mapping, Errno> {
        let addr = self.0.mmap_file(0, len, prot, MapFlags::SHARED, file, 0)?;
        Ok(Mapping { addr, incarnation: 0 })
    }

    fn msync(&self, addr: usize, len: usize) -> Result<(), Errno> {
        const MS_SYNC: u32 = 4;
        self.0.msync(addr, len, MS_SYNC)
    }

    fn fork(&self) -> Result<Soft<S>, RunError> {
        let range = self.range();
        let mmu = SoftMmu::at(range.start(), range.bytes()).map_err(|error| no_room(range.bytes(), error))?;
        self.0.fork(mmu).map(Soft).map_err(|errno| RunError::Internal(format!("fork: {errno}")))
    }

    fn maps(&self) -> Vec<MapsEntry> {
        self.0.maps()
    }

    fn query(&self, addr: VirtAddr) -> Option<MapsEntry> {
        self.0.query(addr)
    }

    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        let mut word = [0; 8];
        self.0.read(addr, &mut word).map_err(|error| error.signal)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        self.0.write(addr, &value.to_ne_bytes()).map_err(|error| error.signal)
    }

    fn stamp(&self, page: VirtAddr) -> Result<Stamp, Signal> {
        let mut bytes = [0; 24];
        self.0.read(page, &mut bytes).map_err(|error| error.signal)?;
        Ok(Stamp::from_bytes(&bytes))
    }

    fn range(&self) -> PageRange {
        self.0.mmu().range()
    }

    fn id(&self) -> u64 {
        self.0.id()
    }

    fn slab(&self) -> Option<SlabUse> {
        Some(SlabUse::of(S::slab()))
    }

    fn validate(&self) {
        self.0.validate();
    }
}
