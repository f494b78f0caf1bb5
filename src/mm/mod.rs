//! Address spaces: [`Mm`] and the operations on it, one file each.
//!
//! Every operation has the same shape. It takes the mmap lock for writing;
//! finds the VMAs it concerns; lays out how they will be
//! ([`vma::plan`](crate::vma::plan)); allocates what that needs; write-locks
//! and drains what it changes; changes pages where that must come first;
//! publishes VMAs and tree in one step; and releases the mmap lock, which
//! releases all VMA write locks at once. Up to the publication a failure
//! leaves everything as it was (I14).
//!
//! | file | calls |
//! |---|---|
//! | `mmap.rs`, `place.rs` | `mmap`, and where it puts things |
//! | `munmap.rs`, `brk.rs` | `munmap`, `brk` |
//! | `modify.rs`, `mprotect.rs`, `mlock.rs`, `mseal.rs`, `madvise.rs` | changes of flags, and what each is about |
//! | `mremap.rs` | `mremap` |
//! | `msync.rs`, `mincore.rs`, `maps.rs`, `populate.rs` | what changes no mapping |
//! | `fork.rs`, `grow.rs` | `fork`, stack growth |
//! | `anon.rs`, `limits.rs` | `anon_vma`; limits, and the kernel release that is shown |
//!
//! Errors and their order are those of Linux 6.18 (kernel lineage §4), and
//! `vmalab conform` compares them with the host's; `docs/semantics.md` has the
//! table.
//! The address space runs from the region's first byte (which stands for
//! `mmap_min_addr`) to its end (`TASK_SIZE`).

mod anon;
mod brk;
mod core;
mod count;
mod fork;
mod grow;
mod limits;
mod madvise;
mod maps;
mod mincore;
mod mlock;
#[allow(clippy::module_inception, reason = "the file of the mmap call")]
mod mmap;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod modify;
mod mprotect;
mod mremap;
mod mseal;
mod msync;
mod munmap;
mod place;
mod populate;
#[cfg(all(test, shuttle))]
mod stress;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub(crate) use self::core::MmapWrite;
pub use self::core::{MAP_COUNT_MAX, MmCore};
pub use grow::{STACK_BYTES_MAX, STACK_GUARD_PAGES};
pub use limits::{Kernel, Limits};
pub use madvise::Advice;
pub use maps::MapsEntry;
pub use mremap::RemapFlags;

use crate::addr::{ADDRESSES_END, PAGE_SIZE, PageRange, VirtAddr};
use crate::fault::{Access, Outcome, ServeFault, Signal};
use crate::lock::LockScheme;
use crate::mmu::{AccessOp, Mmu, Trap};
use crate::pager::Pager;

bitflags::bitflags! {
    /// PROT_* of `mmap` and `mprotect`, with Linux's values. Unknown bits are
    /// kept ([`Prot::from_bits_retain`]): the calls judge them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Prot: u32 {
        /// PROT_NONE
        const NONE = 0;
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
    /// MAP_* of `mmap`, with Linux's values (x86-64). Unknown bits are kept, and
    /// ignored as the kernel does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MapFlags: u32 {
        /// MAP_SHARED
        const SHARED = 0x01;
        /// MAP_PRIVATE
        const PRIVATE = 0x02;
        /// MAP_SHARED_VALIDATE: like SHARED, and unknown flags are an error. Files only.
        const SHARED_VALIDATE = 0x03;
        /// MAP_DROPPABLE: memory that may be dropped, and is not inherited.
        const DROPPABLE = 0x08;
        /// MAP_FIXED
        const FIXED = 0x10;
        /// MAP_ANONYMOUS
        const ANONYMOUS = 0x20;
        /// MAP_32BIT: between 1 and 2 GiB.
        const MAP_32BIT = 0x40;
        /// MAP_GROWSDOWN: faults just below extend the mapping (`src/mm/grow.rs`).
        const GROWSDOWN = 0x0100;
        /// MAP_LOCKED
        const LOCKED = 0x2000;
        /// MAP_NORESERVE
        const NORESERVE = 0x4000;
        /// MAP_POPULATE
        const POPULATE = 0x8000;
        /// MAP_NONBLOCK: with POPULATE, nothing is populated.
        const NONBLOCK = 0x1_0000;
        /// MAP_STACK
        const STACK = 0x2_0000;
        /// MAP_HUGETLB: not emulated, EOPNOTSUPP.
        const HUGETLB = 0x4_0000;
        /// MAP_SYNC: without effect, except that it keeps mappings from merging.
        const SYNC = 0x8_0000;
        /// MAP_FIXED_NOREPLACE
        const FIXED_NOREPLACE = 0x10_0000;
    }
}

/// What a checked access met: no signal is raised, nobody is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessError {
    /// The page that could not be accessed, or the first byte wanted from it;
    /// everything before was.
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

/// An address space (`mm_struct`): mappings under lock scheme `S`, pages in
/// `M`, filled by `P`.
///
/// All methods take `&self` and may be called from any thread; the mutating
/// ones serialise on the mmap lock. They must not be called from a signal
/// handler. A handler that interrupts one of them must not touch the region.
#[repr(align(64))]
pub struct Mm<S: LockScheme, M: Mmu, P: Pager> {
    // Apart: VMAs remember where their mm is, and may outlive it for a moment.
    core: count::MmOwner<S>,
    mmu: M,
    pager: P,
}

impl<S: LockScheme, M: Mmu, P: Pager> Drop for Mm<S, M, P> {
    /// Files get what was stored to shared mappings; the mappings themselves go
    /// with the core (`exit_mmap`).
    fn drop(&mut self) {
        let write = self.core.mmap_write();
        let has_file = |entry: crate::tree::Entry<crate::vma::Vma<S>>| {
            // SAFETY: in the tree, so attached, and the mmap lock is held.
            unsafe { crate::vma::VmaRef::<S>::new(entry.ptr) }.segment().file.is_some()
        };
        let mapped = write.snapshot().iter().filter(|entry| has_file(*entry)).map(|entry| entry.range);
        let files: Vec<PageRange> = mapped.collect();
        for range in files {
            let (affected, overlap) = write.affected(range);
            if let Some(touched) = write.drain(&affected[overlap]).touched_in(range) {
                self.release_files(&touched);
            }
        }
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// An empty address space over `mmu`.
    ///
    /// # Panics
    /// If the `Mmu`'s range is empty, or reaches beyond what 47 bits can name
    /// (user space on x86-64).
    pub fn new(mmu: M, pager: P) -> Self {
        assert!(!mmu.range().is_empty() && mmu.range().end().get() <= ADDRESSES_END, "a range in user space");
        // Now rather than at the first grace period: a program that only faults
        // may never have one.
        crate::rcu::set_up();
        Mm { core: count::MmOwner::new(), mmu, pager }
    }

    /// The part that the lock scheme knows.
    #[inline]
    pub fn core(&self) -> &MmCore<S> {
        &self.core
    }

    /// The hardware below.
    #[inline]
    pub fn mmu(&self) -> &M {
        &self.mmu
    }

    /// Where pages come from.
    #[inline]
    pub fn pager(&self) -> &P {
        &self.pager
    }

    /// Process-wide number of this address space, never 0, never reused.
    pub fn id(&self) -> u64 {
        self.core.id()
    }

    /// The addresses that mappings may use.
    pub fn range(&self) -> PageRange {
        self.mmu.range()
    }

    /// Mappings now.
    pub fn map_count(&self) -> usize {
        self.core.map_count()
    }

    /// Whether something is mapped at `addr`: one walk of the tree, without
    /// any lock where the scheme allows it. May be out of date at once.
    pub fn is_mapped(&self, addr: VirtAddr) -> bool {
        if S::PER_VMA {
            let section = crate::rcu::read();
            self.core.tree.snapshot(&section).lookup(addr).is_some()
        } else {
            self.core.mmap_read().snapshot().lookup(addr).is_some()
        }
    }

    /// Sets the limit on mappings (`vm.max_map_count`; 65530 at first).
    pub fn set_max_map_count(&self, max: usize) {
        self.core.set_map_count_max(max);
    }

    /// Lets one fault in private anonymous memory make up to `pages` pages
    /// present: those from the faulting one to the end of its aligned block of
    /// so many, within its mapping. Stored-to pages beside it are then not seen
    /// by a fault of their own. 1, as at first, is what Linux does.
    ///
    /// # Panics
    /// If `pages` is not a power of two, or more than 65536.
    pub fn set_fault_around(&self, pages: usize) {
        assert!(pages.is_power_of_two() && pages <= 1 << 16, "fault-around of {pages} pages");
        self.core.set_fault_around(pages);
    }

    /// Loads `buf.len()` bytes from `addr`, through faults if need be.
    ///
    /// # Errors
    /// [`AccessError`] at the first page that does not permit it; the bytes
    /// before it have been loaded.
    pub fn read(&self, addr: VirtAddr, buf: &mut [u8]) -> Result<(), AccessError> {
        let mut done = 0;
        while done < buf.len() {
            let at = self.byte(addr, done)?;
            let n = (buf.len() - done).min(PAGE_SIZE - at.get() % PAGE_SIZE);
            self.access_page(at, false, |mmu| mmu.access(at, AccessOp::Load(&mut buf[done..done + n])))?;
            done += n;
        }
        Ok(())
    }

    /// Stores `bytes` at `addr`, through faults if need be.
    ///
    /// # Errors
    /// [`AccessError`] at the first page that does not permit it; the bytes
    /// before it have been stored.
    pub fn write(&self, addr: VirtAddr, bytes: &[u8]) -> Result<(), AccessError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = self.byte(addr, done)?;
            let n = (bytes.len() - done).min(PAGE_SIZE - at.get() % PAGE_SIZE);
            self.access_page(at, true, |mmu| mmu.access(at, AccessOp::Store(&bytes[done..done + n])))?;
            done += n;
        }
        Ok(())
    }

    /// Byte `offset` after `addr`, if the address space reaches that far.
    fn byte(&self, addr: VirtAddr, offset: usize) -> Result<VirtAddr, AccessError> {
        let at = VirtAddr(addr.get().wrapping_add(offset));
        if self.range().contains(at) { Ok(at) } else { Err(AccessError { addr: at, signal: Signal::MapErr }) }
    }

    fn access_page(
        &self,
        at: VirtAddr,
        write: bool,
        mut access: impl FnMut(&M) -> Result<(), Trap>,
    ) -> Result<(), AccessError> {
        loop {
            let signal = match access(&self.mmu) {
                Ok(()) => return Ok(()),
                Err(Trap::Signal(signal)) => signal,
                Err(Trap::Fault { present }) => match self.serve_fault(at, Access { write, present }) {
                    Outcome::Done => continue,
                    Outcome::Signal(signal) => signal,
                },
            };
            return Err(AccessError { addr: at, signal });
        }
    }

    /// Checks every invariant that holds at rest (oracle O4, and the tree's
    /// own). Call while no operation or fault runs.
    ///
    /// # Panics
    /// If one is broken; the message says which.
    pub fn validate(&self) {
        self.core.validate(self.range());
        self.validate_touched();
    }

    /// No page is where no VMA knows of one: who removes pages would not find it.
    fn validate_touched(&self) {
        if self.mmu().marks_refusals() {
            return;
        }
        let read = self.core().mmap_read();
        let mut known: Vec<PageRange> = Vec::new();
        for part in read.snapshot().iter().map(|entry| read.vma(entry).touched()).filter(|part| !part.is_empty()) {
            match known.last_mut() {
                Some(last) if last.end() == part.start() => *last = PageRange::new(last.start(), part.end()),
                _ => known.push(part),
            }
        }
        self.mmu().presence(self.range(), &mut |run| {
            let next = known.partition_point(|part| part.end() <= run.start());
            assert!(known.get(next).is_some_and(|part| part.covers(run)), "pages in {run:?} that no VMA knows of");
        });
    }
}
