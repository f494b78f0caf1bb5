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
        /// VM_MAYREAD: mprotect may add READ.
        const MAYREAD = 0x10;
        /// VM_MAYWRITE
        const MAYWRITE = 0x20;
        /// VM_MAYEXEC
        const MAYEXEC = 0x40;
        /// VM_GROWSDOWN: a stack, see `src/mm/grow.rs`.
        const GROWSDOWN = 0x100;
        /// VM_ACCOUNT: counts towards the commit limit.
        const ACCOUNT = 0x10_0000;
        /// VM_NORESERVE
        const NORESERVE = 0x20_0000;
        /// VM_NOHUGEPAGE (MAP_STACK sets it).
        const NOHUGEPAGE = 0x4000_0000;
    }
}

impl VmaFlags {
    /// VM_ACCESS_FLAGS
    pub const ACCESS: VmaFlags = VmaFlags::READ.union(VmaFlags::WRITE).union(VmaFlags::EXEC);

    /// READ, WRITE and EXEC of a `prot` argument; other bits are ignored (`calc_vm_prot_bits`).
    pub fn from_prot(prot: Prot) -> VmaFlags {
        VmaFlags::from_bits_truncate(prot.bits() as u64) & VmaFlags::ACCESS
    }

    /// The flags of a new private anonymous mapping (`do_mmap`).
    pub fn for_mmap(prot: Prot, flags: MapFlags) -> VmaFlags {
        let mut vm = VmaFlags::from_prot(prot) | VmaFlags::MAYREAD | VmaFlags::MAYWRITE | VmaFlags::MAYEXEC;
        if flags.contains(MapFlags::NORESERVE) {
            vm |= VmaFlags::NORESERVE;
        }
        if flags.contains(MapFlags::GROWSDOWN) {
            vm |= VmaFlags::GROWSDOWN;
        }
        if flags.contains(MapFlags::STACK) {
            vm |= VmaFlags::NOHUGEPAGE;
        }
        // accountable_mapping(): private, writable, not NORESERVE.
        if vm & (VmaFlags::WRITE | VmaFlags::NORESERVE) == VmaFlags::WRITE {
            vm |= VmaFlags::ACCOUNT;
        }
        vm
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
