//! [`VmaFlags`]: `vm_flags`, with Linux's names and values.

use crate::mm::{MapFlags, Prot};
use crate::mmu::PageAccess;

bitflags::bitflags! {
    /// What a mapping permits and how it behaves (`vm_flags`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct VmaFlags: u64 {
        /// VM_READ
        const READ = 0x1;
        /// VM_WRITE
        const WRITE = 0x2;
        /// VM_EXEC
        const EXEC = 0x4;
        /// VM_SHARED: stores reach the file.
        const SHARED = 0x8;
        /// VM_MAYREAD: mprotect may add READ.
        const MAYREAD = 0x10;
        /// VM_MAYWRITE
        const MAYWRITE = 0x20;
        /// VM_MAYEXEC
        const MAYEXEC = 0x40;
        /// VM_MAYSHARE: a MAP_SHARED mapping, even one that can never be written.
        const MAYSHARE = 0x80;
        /// VM_GROWSDOWN: a stack, see `src/mm/grow.rs`.
        const GROWSDOWN = 0x100;
        /// VM_LOCKED: pages are made present and not given up.
        const LOCKED = 0x2000;
        /// VM_SEQ_READ
        const SEQ_READ = 0x8000;
        /// VM_RAND_READ
        const RAND_READ = 0x1_0000;
        /// VM_DONTCOPY: a forked child does not get it.
        const DONTCOPY = 0x2_0000;
        /// VM_LOCKONFAULT: LOCKED, but pages come as they are touched.
        const LOCKONFAULT = 0x8_0000;
        /// VM_ACCOUNT: counts towards the commit limit.
        const ACCOUNT = 0x10_0000;
        /// VM_NORESERVE
        const NORESERVE = 0x20_0000;
        /// VM_SYNC: MAP_SYNC was asked for; without effect.
        const SYNC = 0x80_0000;
        /// VM_WIPEONFORK: a forked child finds zeros.
        const WIPEONFORK = 0x0200_0000;
        /// VM_DONTDUMP
        const DONTDUMP = 0x0400_0000;
        /// VM_HUGEPAGE: kept, and without effect: pages are small here.
        const HUGEPAGE = 0x2000_0000;
        /// VM_NOHUGEPAGE (MAP_STACK sets it).
        const NOHUGEPAGE = 0x4000_0000;
        /// VM_MERGEABLE: kept, and without effect: nothing merges pages here.
        const MERGEABLE = 0x8000_0000;
        /// VM_DROPPABLE: pages may be dropped at any time.
        const DROPPABLE = 1 << 40;
        /// VM_SEALED: neither range nor protection may change any more.
        const SEALED = 1 << 42;
    }
}

impl VmaFlags {
    /// VM_ACCESS_FLAGS
    pub const ACCESS: VmaFlags = VmaFlags::READ.union(VmaFlags::WRITE).union(VmaFlags::EXEC);
    /// VM_LOCKED_MASK
    pub const LOCK: VmaFlags = VmaFlags::LOCKED.union(VmaFlags::LOCKONFAULT);
    /// MAYREAD, MAYWRITE and MAYEXEC.
    pub const MAY: VmaFlags = VmaFlags::MAYREAD.union(VmaFlags::MAYWRITE).union(VmaFlags::MAYEXEC);

    /// READ, WRITE and EXEC of a `prot` argument; other bits are ignored (`calc_vm_prot_bits`).
    pub fn from_prot(prot: Prot) -> VmaFlags {
        VmaFlags::from_bits_truncate(prot.bits() as u64) & VmaFlags::ACCESS
    }

    /// The flags that `prot` and `flags` ask for, whatever is mapped
    /// (`calc_vm_prot_bits`, `calc_vm_flag_bits`).
    pub fn asked_for(prot: Prot, flags: MapFlags) -> VmaFlags {
        let mut vm = VmaFlags::from_prot(prot) | VmaFlags::MAY;
        if flags.contains(MapFlags::GROWSDOWN) {
            vm |= VmaFlags::GROWSDOWN;
        }
        if flags.contains(MapFlags::LOCKED) {
            vm |= VmaFlags::LOCKED;
        }
        if flags.contains(MapFlags::SYNC) {
            vm |= VmaFlags::SYNC;
        }
        if flags.contains(MapFlags::STACK) {
            vm |= VmaFlags::NOHUGEPAGE;
        }
        if flags.contains(MapFlags::NORESERVE) {
            vm |= VmaFlags::NORESERVE;
        }
        vm
    }

    /// The flags of a new private anonymous mapping (`do_mmap`).
    pub fn for_mmap(prot: Prot, flags: MapFlags) -> VmaFlags {
        VmaFlags::asked_for(prot, flags).accounted()
    }

    /// With ACCOUNT if a new mapping of this kind is charged
    /// (`accountable_mapping`).
    pub(crate) fn accounted(self) -> VmaFlags {
        let charged = self & (VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::NORESERVE) == VmaFlags::WRITE;
        if charged { self | VmaFlags::ACCOUNT } else { self }
    }

    /// Whether it counts as data (`is_data_mapping`): RLIMIT_DATA.
    pub fn is_data(self) -> bool {
        self & (VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::GROWSDOWN) == VmaFlags::WRITE
    }

    /// READ, WRITE and EXEC as a `prot` argument.
    pub fn prot(self) -> Prot {
        Prot::from_bits_retain((self & VmaFlags::ACCESS).bits() as u32)
    }

    /// What the hardware is told. On x86-64 a page that permits anything can be read.
    pub fn page_access(self) -> PageAccess {
        if self.contains(VmaFlags::WRITE) {
            PageAccess::ReadWrite
        } else if self.intersects(VmaFlags::ACCESS) {
            PageAccess::Read
        } else {
            PageAccess::None
        }
    }
}
