//! Memory under userfaultfd and the one ioctl that serves a fault on it: the
//! whole mechanism, without a region, a registry, statistics or an address
//! space.

use crate::calls::PAGES;
use crate::memory::Memory;
use crate::{Reason, Touch};
use linux_raw_sys::general as raw;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use vmalab::addr::PAGE_SIZE;
use vmalab_fault_handler::uffd::{Privilege, Uffd, feature};

/// Not through `vmalab_fault_handler::uffd`, which counts its calls.
mod ioctls {
    use linux_raw_sys::general::{
        uffdio_continue, uffdio_copy, uffdio_move, uffdio_range, uffdio_register, uffdio_zeropage,
    };
    const TYPE: u8 = 0xAA;
    nix::ioctl_readwrite!(register, TYPE, 0, uffdio_register);
    nix::ioctl_read!(unregister, TYPE, 1, uffdio_range);
    nix::ioctl_readwrite!(copy, TYPE, 3, uffdio_copy);
    nix::ioctl_readwrite!(zeropage, TYPE, 4, uffdio_zeropage);
    nix::ioctl_readwrite!(move_pages, TYPE, 5, uffdio_move);
    nix::ioctl_readwrite!(resume, TYPE, 7, uffdio_continue);
}

/// How a page is made present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// UFFDIO_ZEROPAGE.
    ZeroPage,
    /// UFFDIO_COPY of zeros.
    Copy,
    /// UFFDIO_MOVE of a page that waits elsewhere (Linux 6.8).
    Move,
    /// UFFDIO_CONTINUE of a page of a memfd (Linux 5.14).
    Continue,
}

/// Who is told of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    Signal,
    Queue,
}

/// What serves a fault. Shared with a signal handler or a handler thread, and
/// async-signal-safe.
pub struct Job {
    uffd: Uffd,
    install: Install,
    base: usize,
    end: usize,
    /// Installed by one ioctl; a power of two.
    bytes: usize,
    /// COPY: where zeros are. MOVE: what lies there is brought to `base`.
    source: usize,
    /// Why the ioctl failed, or 0.
    failed: AtomicI32,
}

/// EAGAIN in a row after which something else must be wrong.
const TRIES: u32 = 1_000;

impl Job {
    /// Whether the address is this job's.
    #[inline]
    pub fn owns(&self, addr: usize) -> bool {
        (self.base..self.end).contains(&addr)
    }

    /// Makes the page of `addr` and its companions present. If that fails, the
    /// memory is no longer registered, so that the access passes all the same.
    #[inline]
    pub fn serve(&self, addr: usize) {
        let offset = (addr - self.base) & !(self.bytes - 1);
        for _ in 0..TRIES {
            match self.install(offset) {
                Ok(_) => return,
                Err(Errno::EAGAIN) => {}
                Err(errno) => return self.give_up(errno),
            }
        }
        self.give_up(Errno::EAGAIN);
    }

    #[inline]
    fn install(&self, offset: usize) -> nix::Result<i32> {
        let fd = self.uffd.as_fd().as_raw_fd();
        let (dst, len) = ((self.base + offset) as u64, self.bytes as u64);
        let range = raw::uffdio_range { start: dst, len };
        // SAFETY, all: the structure is what the ioctl reads and writes. Pages
        // appear in memory of this job's own, whose accesses are volatile.
        match self.install {
            Install::ZeroPage => {
                let mut arg = raw::uffdio_zeropage { range, mode: 0, zeropage: 0 };
                // SAFETY: as above.
                unsafe { ioctls::zeropage(fd, &mut arg) }
            }
            Install::Copy => {
                let mut arg = raw::uffdio_copy { dst, src: self.source as u64, len, mode: 0, copy: 0 };
                // SAFETY: as above; the source is mapped, initialised memory.
                unsafe { ioctls::copy(fd, &mut arg) }
            }
            Install::Move => {
                let src = (self.source + offset) as u64;
                // SAFETY: as above; the pages at the source are nobody else's.
                unsafe { ioctls::move_pages(fd, &mut raw::uffdio_move { dst, src, len, mode: 0, move_: 0 }) }
            }
            Install::Continue => {
                // SAFETY: as above.
                unsafe { ioctls::resume(fd, &mut raw::uffdio_continue { range, mode: 0, mapped: 0 }) }
            }
        }
    }

    /// Ends the registration; who waits for a page is woken and finds plain memory.
    #[cold]
    pub fn give_up(&self, errno: Errno) {
        // Relaxed: read by the thread whose access goes on after this, or in a loop.
        self.failed.store(errno as i32, Ordering::Relaxed);
        let mut range = raw::uffdio_range { start: self.base as u64, len: (self.end - self.base) as u64 };
        // SAFETY: the structure is what the ioctl reads.
        let _ = unsafe { ioctls::unregister(self.uffd.as_fd().as_raw_fd(), &mut range) };
    }

    /// Whether all went well so far.
    pub fn check(&self) -> Result<(), Reason> {
        let name = match self.install {
            Install::ZeroPage => "UFFDIO_ZEROPAGE",
            Install::Copy => "UFFDIO_COPY",
            Install::Move => "UFFDIO_MOVE",
            Install::Continue => "UFFDIO_CONTINUE",
        };
        match self.failed.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(Reason::call(name, Errno::from_raw(errno))),
        }
    }

    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }
}

/// One thread's memory and what serves it.
pub struct Bare {
    // Closed before the memory is unmapped; no access is in flight then.
    pub job: Job,
    memory: Memory,
    source: Option<Memory>,
    pages: usize,
}

impl Bare {
    /// `pages`: installed by one ioctl.
    pub fn new(install: Install, pages: usize, notify: Notify) -> Result<Bare, Reason> {
        Bare::for_threads(1, install, pages, notify)
    }

    /// Memory for several threads, under one userfaultfd.
    pub fn for_threads(threads: usize, install: Install, pages: usize, notify: Notify) -> Result<Bare, Reason> {
        assert!(pages.is_power_of_two() && PAGES.is_multiple_of(pages));
        // One batch more, which a pass leaves alone: see the queue's end.
        let all = threads * PAGES + pages;
        let needed = if install == Install::Continue { u64::from(raw::UFFD_FEATURE_MINOR_SHMEM) } else { 0 }
            | if install == Install::Move { feature::MOVE } else { 0 }
            | if notify == Notify::Signal { feature::SIGBUS } else { 0 };
        let uffd = Uffd::open(Privilege::User, needed, 0).map_err(|error| Reason(error.to_string()))?;
        let (memory, source) = match install {
            Install::Continue => {
                let file = file(all)?;
                let filled = Memory::shared(all, file.as_fd())?;
                (Memory::shared(all, file.as_fd())?, Some(filled))
            }
            Install::Move => (Memory::anonymous(all)?, Some(Memory::anonymous(all)?)),
            Install::Copy => (Memory::anonymous(all)?, Some(Memory::anonymous(pages)?)),
            Install::ZeroPage => (Memory::anonymous(all)?, None),
        };
        if let Some(source) = &source {
            (0..source.bytes() / PAGE_SIZE).for_each(|page| source.touch(page, Touch::Store));
        }
        register(&uffd, &memory, install)?;
        let job = Job {
            uffd,
            install,
            base: memory.base(),
            end: memory.base() + memory.bytes(),
            bytes: pages * PAGE_SIZE,
            source: source.as_ref().map_or(0, Memory::base),
            failed: AtomicI32::new(0),
        };
        Ok(Bare { job, memory, source, pages })
    }

    /// Touches all pages of a batch. Only the first touch faults.
    #[inline]
    pub fn touch_batch(&self, first: usize, how: Touch) {
        (first..first + self.pages).for_each(|page| self.memory.touch(page, how));
    }

    /// The first pages of all batches of a pass.
    pub fn batches(&self) -> impl Iterator<Item = usize> + use<> {
        (0..PAGES).step_by(self.pages)
    }

    /// Address of the first page.
    pub fn base(&self) -> usize {
        self.memory.base()
    }

    /// Pages of a batch.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Makes everything that a pass touched absent again, and what it moved
    /// present where it came from.
    pub fn reset(&self) -> Result<(), Reason> {
        self.reset_from(0)
    }

    /// The same for the pass that begins at page `first`.
    pub fn reset_from(&self, first: usize) -> Result<(), Reason> {
        self.memory.drop_pages(first, PAGES)?;
        if let (Install::Move, Some(source)) = (self.job.install, &self.source) {
            (first..first + PAGES).for_each(|page| source.touch(page, Touch::Store));
        }
        Ok(())
    }
}

fn register(uffd: &Uffd, memory: &Memory, install: Install) -> Result<(), Reason> {
    let mode =
        if install == Install::Continue { raw::UFFDIO_REGISTER_MODE_MINOR } else { raw::UFFDIO_REGISTER_MODE_MISSING };
    let range = raw::uffdio_range { start: memory.base() as u64, len: memory.bytes() as u64 };
    let mut arg = raw::uffdio_register { range, mode: u64::from(mode), ioctls: 0 };
    // SAFETY: the structure is what the ioctl reads and writes; the memory is
    // ours, and whoever touches it from now on serves its faults.
    let result = unsafe { ioctls::register(uffd.as_fd().as_raw_fd(), &mut arg) };
    result.map(drop).map_err(|errno| Reason::call("UFFDIO_REGISTER", errno))
}

/// A file in memory.
fn file(pages: usize) -> Result<OwnedFd, Reason> {
    // SAFETY: a name that ends in a zero byte; the descriptor is new and ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"vmalab-limits".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(Reason::last("memfd_create"));
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: takes no pointers.
    let result = unsafe { libc::ftruncate(file.as_raw_fd(), (pages * PAGE_SIZE) as libc::off_t) };
    Errno::result(result).map_err(|errno| Reason::call("ftruncate", errno))?;
    Ok(file)
}
