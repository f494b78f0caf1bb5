//! An address space (stub while interfaces settle).
use crate::addr::{PageRange, VirtAddr};
use crate::fault::{Access, Outcome, ServeFault, Signal};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use nix::errno::Errno;

bitflags::bitflags! {
    /// PROT_* of `mmap` and `mprotect`, with Linux's values. Unknown bits are kept
    /// ([`Prot::from_bits_retain`]): the calls judge them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Prot: u32 {
        /// PROT_READ
        const READ = 1;
        /// PROT_WRITE
        const WRITE = 2;
        /// PROT_EXEC
        const EXEC = 4;
        /// PROT_SEM: accepted and ignored.
        const SEM = 8;
        /// PROT_GROWSDOWN
        const GROWSDOWN = 0x0100_0000;
        /// PROT_GROWSUP
        const GROWSUP = 0x0200_0000;
    }
}
bitflags::bitflags! {
    /// MAP_* of `mmap`, with Linux's values (x86-64). Unknown bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MapFlags: u32 {
        /// MAP_SHARED
        const SHARED = 0x01;
        /// MAP_PRIVATE
        const PRIVATE = 0x02;
        /// MAP_FIXED
        const FIXED = 0x10;
        /// MAP_ANONYMOUS
        const ANONYMOUS = 0x20;
        /// MAP_GROWSDOWN
        const GROWSDOWN = 0x0100;
        /// MAP_LOCKED
        const LOCKED = 0x2000;
        /// MAP_NORESERVE
        const NORESERVE = 0x4000;
        /// MAP_POPULATE
        const POPULATE = 0x8000;
        /// MAP_STACK
        const STACK = 0x2_0000;
        /// MAP_FIXED_NOREPLACE
        const FIXED_NOREPLACE = 0x10_0000;
    }
}

/// What a checked access met: no signal is raised, nobody is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessError {
    /// First byte that could not be accessed (the bytes before it were).
    pub addr: VirtAddr,
    /// The signal that a plain access would have earned.
    pub signal: Signal,
}

/// A fresh mapping, as [`Mm::map`] tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it is.
    pub addr: VirtAddr,
    /// The incarnation that the VMA around it got from this call. Every page
    /// filled for it from now on carries this number or a higher one; what was
    /// there before carries a lower one.
    pub incarnation: u64,
}

/// One line of the maps listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapsEntry {
    /// Addresses.
    pub range: PageRange,
    /// Protection.
    pub prot: Prot,
}

/// An address space (`mm_struct`).
pub struct Mm<S: LockScheme, M: Mmu, P: Pager> {
    mmu: M,
    pager: P,
    _s: std::marker::PhantomData<S>,
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// An empty address space over `mmu`.
    pub fn new(mmu: M, pager: P) -> Self {
        Mm { mmu, pager, _s: std::marker::PhantomData }
    }
    /// The hardware below.
    pub fn mmu(&self) -> &M {
        &self.mmu
    }
    /// Where pages come from.
    pub fn pager(&self) -> &P {
        &self.pager
    }
    /// Process-wide number of this address space, never 0, never reused.
    pub fn id(&self) -> u64 {
        todo!()
    }
    /// `mmap(2)`. `addr` 0 = no hint.
    pub fn mmap(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<VirtAddr, Errno> {
        Ok(self.map(addr, len, prot, flags)?.addr)
    }
    /// `mmap(2)`, telling the incarnation as well.
    pub fn map(&self, _addr: usize, _len: usize, _prot: Prot, _flags: MapFlags) -> Result<Mapping, Errno> {
        todo!()
    }
    /// `munmap(2)`.
    pub fn munmap(&self, _addr: usize, _len: usize) -> Result<(), Errno> {
        todo!()
    }
    /// `mprotect(2)`.
    pub fn mprotect(&self, _addr: usize, _len: usize, _prot: Prot) -> Result<(), Errno> {
        todo!()
    }
    /// Checked load of any number of bytes.
    pub fn read(&self, _addr: VirtAddr, _buf: &mut [u8]) -> Result<(), AccessError> {
        todo!()
    }
    /// Checked store of any number of bytes.
    pub fn write(&self, _addr: VirtAddr, _buf: &[u8]) -> Result<(), AccessError> {
        todo!()
    }
    /// The mappings, in ascending order, at one moment.
    pub fn maps(&self) -> Vec<MapsEntry> {
        todo!()
    }
    /// Checks every invariant that holds at rest (O4 and the tree's own). Call with no operation running.
    ///
    /// # Panics
    /// If one is broken; the message says which.
    pub fn validate(&self) {
        todo!()
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> ServeFault for Mm<S, M, P> {
    fn serve_fault(&self, _addr: VirtAddr, _access: Access) -> Outcome {
        todo!()
    }
}
