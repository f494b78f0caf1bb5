//! System calls and the host's own faults.

use crate::crew::{Probe, Samples};
use crate::memory::Memory;
use crate::{Reason, Touch};
use nix::errno::Errno;
use std::hint::black_box;
use std::ptr;
use vmalab::addr::PAGE_SIZE;

/// Pages that one pass over memory touches: two megabytes, so that they are
/// used again while the host still has them.
pub const PAGES: usize = 512;

/// Calls in one sample of what takes less than a microsecond.
const SHORT: u64 = 16;

/// Samples in one pass of calls.
const CALLS: usize = 128;

/// A system call that does nothing.
pub struct Getppid;

impl Probe for Getppid {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        for _ in 0..CALLS {
            samples.time(SHORT, || {
                for _ in 0..SHORT {
                    // SAFETY: takes nothing, changes nothing.
                    black_box(unsafe { libc::getppid() });
                }
            });
        }
        Ok(())
    }
}

/// `membarrier(2)`, private and expedited: interrupts every CPU that runs a
/// thread of the process. It is what vmalab's grace periods begin with.
pub struct Membarrier;

fn membarrier(command: libc::c_int) -> Result<(), Reason> {
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    Errno::result(result).map(drop).map_err(|errno| Reason::call("membarrier", errno))
}

impl Membarrier {
    pub fn new() -> Result<Membarrier, Reason> {
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)?;
        Ok(Membarrier)
    }
}

impl Probe for Membarrier {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        (0..CALLS).try_for_each(|_| samples.time(1, || membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)))
    }
}

/// First touches of anonymous memory that the host serves.
pub struct NativeFault {
    memory: Memory,
    touch: Touch,
}

impl NativeFault {
    pub fn new(touch: Touch) -> Result<NativeFault, Reason> {
        Ok(NativeFault { memory: Memory::anonymous(PAGES)?, touch })
    }
}

impl Probe for NativeFault {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        for page in 0..PAGES {
            samples.time(1, || self.memory.touch(page, self.touch));
        }
        self.memory.drop_pages(0, PAGES)
    }
}

/// mmap and munmap of one page, untouched.
pub struct MmapMunmap;

impl Probe for MmapMunmap {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        let map_and_unmap = || {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping where the kernel likes, and its end.
            unsafe {
                let base = libc::mmap(ptr::null_mut(), PAGE_SIZE, prot, flags, -1, 0);
                if base == libc::MAP_FAILED {
                    return Err(Reason::last("mmap"));
                }
                libc::munmap(base, PAGE_SIZE);
            }
            Ok(())
        };
        (0..CALLS).try_for_each(|_| samples.time(1, map_and_unmap))
    }
}

/// MADV_DONTNEED of present pages, so many in a call.
pub struct DontNeed {
    memory: Memory,
    pages: usize,
}

impl DontNeed {
    pub fn new(pages: usize) -> Result<DontNeed, Reason> {
        Ok(DontNeed { memory: Memory::anonymous(PAGES)?, pages })
    }
}

impl Probe for DontNeed {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        (0..PAGES).for_each(|page| self.memory.touch(page, Touch::Store));
        let per = self.pages as u64;
        (0..PAGES)
            .step_by(self.pages)
            .try_for_each(|first| samples.time(per, || self.memory.drop_pages(first, self.pages)))
    }
}
