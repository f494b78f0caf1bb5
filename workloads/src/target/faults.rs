//! [`Faults`]: an address space over userfaultfd, whose accesses are real loads
//! and stores (`sigbus` and `queue` delivery). The only file that knows the
//! names of the fault handler's crate.
#![allow(unsafe_code)]

use super::{SlabUse, Target};
use crate::RunError;
use std::sync::Arc;
use vmalab::Errno;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::{File, Inode};
use vmalab::lock::LockScheme;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Prot, RemapFlags};
use vmalab::mmu::Mmu;
use vmalab::pager::AnyPager;
use vmalab_fault_handler::{AddressSpace, Delivery, access};

/// An address space with real page faults.
pub(crate) struct Faults<S: LockScheme> {
    space: AddressSpace<S>,
    range: PageRange,
}

impl<S: LockScheme> Faults<S> {
    /// The same with so many pages made present by each fault.
    pub(crate) fn fault_around(self, pages: usize) -> Self {
        self.space.set_fault_around(pages);
        self
    }

    /// An empty one. `handlers`: threads of `queue` delivery; `None`: `sigbus`.
    /// `ready`: zeroed pages kept ready.
    pub(crate) fn new(
        bytes: usize,
        handlers: Option<usize>,
        pager: AnyPager,
        ready: usize,
    ) -> Result<Faults<S>, RunError> {
        let delivery = match handlers {
            None => Delivery::Sigbus,
            Some(handlers) => Delivery::Queue { handlers, polling: false },
        };
        let space = AddressSpace::builder().region(bytes).delivery(delivery).ready_pages(ready).pager(pager).build();
        let space = space.map_err(|error| RunError::Unsupported(error.to_string()))?;
        let range = space.mm().mmu().range();
        Ok(Faults { space, range })
    }

    /// The address as the access routines take it.
    #[inline]
    fn inside(&self, addr: VirtAddr) -> usize {
        assert!(self.range.contains(addr) && addr.get().is_multiple_of(8));
        addr.get()
    }
}

impl<S: LockScheme> Target for Faults<S> {
    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        self.space.mm().map(addr, len, prot, flags)
    }

    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.space.mm().munmap(addr, len)
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        self.space.mm().mprotect(addr, len, prot)
    }

    fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno> {
        self.space.mm().mremap(addr, old_len, new_len, flags, new_addr)
    }

    fn new_file(&self, bytes: usize) -> Result<Arc<File>, Errno> {
        let store = self.space.mm().mmu().shmem(bytes as u64)?;
        Ok(File::open(Inode::new(store, bytes as u64), true, true))
    }

    fn map_file(&self, len: usize, prot: Prot, file: &Arc<File>) -> Result<Mapping, Errno> {
        let addr = self.space.mm().mmap_file(0, len, prot, MapFlags::SHARED, file, 0)?;
        Ok(Mapping { addr, incarnation: 0 })
    }

    fn msync(&self, addr: usize, len: usize) -> Result<(), Errno> {
        const MS_SYNC: u32 = 4;
        self.space.mm().msync(addr, len, MS_SYNC)
    }

    fn fork(&self) -> Result<Faults<S>, RunError> {
        // Memory, descriptors, threads or rights: nothing that a lock does wrong.
        let space = self.space.fork().map_err(|error| RunError::Unsupported(format!("fork: {error}")))?;
        let range = space.mm().mmu().range();
        Ok(Faults { space, range })
    }

    fn maps(&self) -> Vec<MapsEntry> {
        self.space.mm().maps()
    }

    fn query(&self, addr: VirtAddr) -> Option<MapsEntry> {
        self.space.mm().query(addr)
    }

    #[inline]
    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        // SAFETY: inside the region that `space` serves as long as it lives, and
        // the threads of a run do not block SIGBUS. No reference into the region
        // is ever made.
        unsafe { access::load_u64(self.inside(addr)) }
    }

    #[inline]
    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        // SAFETY: as in `load`.
        unsafe { access::store_u64(self.inside(addr), value) }
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn id(&self) -> u64 {
        self.space.mm().id()
    }

    fn slab(&self) -> Option<SlabUse> {
        Some(SlabUse::of(S::slab()))
    }

    fn userfaultfds(&self) -> Option<usize> {
        Some(self.space.mmu().region().uffd().count())
    }

    fn validate(&self) {
        self.space.mm().validate();
    }
}
