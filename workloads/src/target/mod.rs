//! [`Target`]: one address space as a workload sees it. A type parameter of
//! everything that runs, so that an access costs no dynamic call.
//!
//! * [`soft::Soft`]: vmalab over the software `Mmu`; an access is a direct call.
//! * [`faults::Faults`]: vmalab over userfaultfd; an access is a real one.
//! * [`native::Native`]: the host's own address space.
//! * `recorded::Recorded` (feature `conflicts`): `Soft`, recorded.
//! * `adverse::Adverse` (feature `races`): one of the above under the adversary.
//! * `fake::Fake` (tests): a correct model in memory, and wrong ones.

#[cfg(feature = "races")]
pub(crate) mod adverse;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod faults;
pub(crate) mod native;
#[cfg(feature = "conflicts")]
pub(crate) mod recorded;
#[cfg(test)]
pub(crate) mod sabotaged;
pub(crate) mod soft;

use crate::RunError;
use std::sync::Arc;
use vmalab::Errno;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Prot, RemapFlags};
use vmalab::pager::Stamp;
use vmalab::slab::Slab;

/// What the slab of a lock scheme holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlabUse {
    pub(crate) slabs: u64,
    pub(crate) object_bytes: u64,
}

impl SlabUse {
    fn of<T>(slab: &Slab<T>) -> SlabUse {
        let stats = slab.stats();
        SlabUse { slabs: stats.pages as u64, object_bytes: stats.object_bytes as u64 }
    }
}

/// One address space. Calls have the meaning of the system calls they are named after.
pub(crate) trait Target: Send + Sync + 'static {
    /// Whether its faults count in [`vmalab::stats`].
    const COUNTS: bool = true;

    /// `mmap(2)`, private and anonymous. `addr` 0: anywhere.
    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno>;

    /// `munmap(2)`.
    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno>;

    /// `mprotect(2)`.
    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno>;

    /// `mremap(2)`.
    fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno>;

    /// A file of `bytes` zeros that every address space of the run can map.
    fn new_file(&self, bytes: usize) -> Result<Arc<File>, Errno>;

    /// `mmap(2)` of a file, shared, from its start on, where there is room.
    fn map_file(&self, len: usize, prot: Prot, file: &Arc<File>) -> Result<Mapping, Errno>;

    /// `msync(2)`, MS_SYNC.
    fn msync(&self, addr: usize, len: usize) -> Result<(), Errno>;

    /// `fork(2)` of the address space.
    fn fork(&self) -> Result<Self, RunError>
    where
        Self: Sized;

    /// Every mapping, as of one moment.
    fn maps(&self) -> Vec<MapsEntry>;

    /// The mapping that holds `addr` (PROCMAP_QUERY).
    fn query(&self, addr: VirtAddr) -> Option<MapsEntry>;

    /// A load of the word at `addr`, a multiple of 8. Natively only of memory
    /// that is mapped readable: a signal would end the process.
    fn load(&self, addr: VirtAddr) -> Result<u64, Signal>;

    /// A store; natively only to memory that is mapped writable.
    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal>;

    /// The stamp at the start of `page`, word by word: while the page is
    /// replaced its words may be of different stamps.
    fn stamp(&self, page: VirtAddr) -> Result<Stamp, Signal> {
        let mut bytes = [0; 24];
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.load(page + 8 * i)?.to_ne_bytes());
        }
        Ok(Stamp::from_bytes(&bytes))
    }

    /// Whether a forbidden access is answered with an error and pages carry
    /// stamps (if the run verifies). Not so natively.
    fn checked(&self) -> bool {
        true
    }

    /// The addresses that a workload may choose from.
    fn range(&self) -> PageRange;

    /// The number that stamps carry as `mm_id`.
    fn id(&self) -> u64;

    /// The slab that its VMAs come from.
    fn slab(&self) -> Option<SlabUse> {
        None
    }

    /// How many userfaultfds it has.
    fn userfaultfds(&self) -> Option<usize> {
        None
    }

    /// Checks what must hold at rest. Panics if it does not.
    fn validate(&self);
}
