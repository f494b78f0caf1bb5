//! Limits of an address space, what it has used of them, and the kernel whose
//! behaviour it shows where kernels differ.

use super::Mm;
use super::core::MmCore;
use crate::addr::{PAGE_SHIFT, PageRange};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::sync::plain::{AtomicU64, Ordering};
use crate::vma::{Segment, VmaFlags};

/// Resource limits, in bytes; `u64::MAX` is none (RLIM_INFINITY).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_AS: all mappings together.
    pub address_space: u64,
    /// RLIMIT_DATA: private writable mappings and the heap.
    pub data: u64,
    /// RLIMIT_MEMLOCK: locked mappings. No limit also stands for CAP_IPC_LOCK.
    pub memlock: u64,
    /// RLIMIT_STACK: how large a stack grows.
    pub stack: u64,
}

impl Default for Limits {
    /// None, but for stacks: 8 MiB, as usual.
    fn default() -> Limits {
        Limits { address_space: u64::MAX, data: u64::MAX, memlock: u64::MAX, stack: super::STACK_BYTES_MAX as u64 }
    }
}

/// A kernel release whose behaviour is shown, where releases differ (kernel
/// lineage §4.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    /// 6 of 6.18.
    pub major: u32,
    /// 18 of 6.18.
    pub minor: u32,
}

impl Kernel {
    /// Linux 6.18: what vmalab shows unless told otherwise.
    pub const V6_18: Kernel = Kernel { major: 6, minor: 18 };

    /// From a release string such as `6.18.3-arch1` (`uname -r`).
    pub fn parse(release: &str) -> Option<Kernel> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Kernel { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }

    const fn since(self, major: u32, minor: u32) -> bool {
        self.major > major || self.major == major && self.minor >= minor
    }

    /// Large anonymous mappings are 2 MiB aligned (6.7); those of whole huge pages only (6.12).
    pub(crate) const fn aligns_huge(self, whole: bool) -> bool {
        if whole { self.since(6, 7) } else { self.since(6, 7) && !self.since(6, 12) }
    }

    /// `mremap` moves several VMAs at once, and finds errors of the source
    /// before the destination is unmapped (6.17).
    pub(crate) const fn moves_several(self) -> bool {
        self.since(6, 17)
    }

    /// Guards in file mappings (6.15).
    pub(crate) const fn guards_files(self) -> bool {
        self.since(6, 15)
    }

    /// Every `mremap` needs room for four more mappings (after 6.18).
    pub(crate) const fn remap_always_needs_room(self) -> bool {
        self.since(7, 0)
    }
}

/// The settings, and what is used. All of it changes under the mmap lock.
pub(super) struct Usage {
    address_space: AtomicU64,
    data: AtomicU64,
    memlock: AtomicU64,
    stack: AtomicU64,
    kernel: AtomicU64,
    /// `def_flags`: LOCKED and LOCKONFAULT for mappings to come (mlockall).
    def_flags: AtomicU64,
    /// `total_vm`, `data_vm`, `locked_vm`: pages.
    total_vm: AtomicU64,
    data_vm: AtomicU64,
    locked_vm: AtomicU64,
    /// Pages that the kernel goes on counting as locked though they are not: the
    /// old mapping of an MREMAP_DONTUNMAP.
    locked_still: AtomicU64,
    /// `start_brk`, `brk`.
    pub(super) start_brk: AtomicU64,
    pub(super) brk: AtomicU64,
}

/// Pages that VMAs amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    pub(super) total: u64,
    pub(super) data: u64,
    pub(super) locked: u64,
}

impl Pages {
    pub(super) fn add(&mut self, segment: &Segment) {
        let pages = segment.range.pages() as u64;
        let only = |yes| if yes { pages } else { 0 };
        self.total += pages;
        self.data += only(segment.flags.is_data());
        self.locked += only(segment.flags.contains(VmaFlags::LOCKED));
    }
}

impl Usage {
    pub(super) fn new() -> Usage {
        let limits = Limits::default();
        let zero = || AtomicU64::new(0);
        let usage = Usage {
            address_space: AtomicU64::new(limits.address_space),
            data: AtomicU64::new(limits.data),
            memlock: AtomicU64::new(limits.memlock),
            stack: AtomicU64::new(limits.stack),
            kernel: zero(),
            def_flags: zero(),
            total_vm: zero(),
            data_vm: zero(),
            locked_vm: zero(),
            locked_still: zero(),
            start_brk: zero(),
            brk: zero(),
        };
        usage.set_kernel(Kernel::V6_18);
        usage
    }

    fn set_kernel(&self, kernel: Kernel) {
        self.kernel.store(u64::from(kernel.major) << 32 | u64::from(kernel.minor), Ordering::Relaxed);
    }

    /// VMAs that amounted to `old` are now what amounts to `new`. The caller holds
    /// the mmap lock for writing, so nobody else changes the counters.
    pub(super) fn account(&self, old: Pages, new: Pages) {
        let change = |counter: &AtomicU64, old: u64, new: u64| {
            if old != new {
                let now = counter.load(Ordering::Relaxed);
                counter.store(now.wrapping_add(new.wrapping_sub(old)), Ordering::Relaxed);
            }
        };
        change(&self.total_vm, old.total, new.total);
        change(&self.data_vm, old.data, new.data);
        change(&self.locked_vm, old.locked, new.locked);
    }

    fn pages(&self) -> Pages {
        Pages {
            total: self.total_vm.load(Ordering::Relaxed),
            data: self.data_vm.load(Ordering::Relaxed),
            locked: self.locked_vm.load(Ordering::Relaxed),
        }
    }

    /// For a forked child: the settings, and the heap moved by `delta`.
    pub(super) fn inherit(&self, parent: &Usage, delta: u64) {
        let copy = |to: &AtomicU64, from: &AtomicU64| to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        copy(&self.address_space, &parent.address_space);
        copy(&self.data, &parent.data);
        copy(&self.memlock, &parent.memlock);
        copy(&self.stack, &parent.stack);
        copy(&self.kernel, &parent.kernel);
        for (to, from) in [(&self.start_brk, &parent.start_brk), (&self.brk, &parent.brk)] {
            let at = from.load(Ordering::Relaxed);
            to.store(if at == 0 { 0 } else { at.wrapping_add(delta) }, Ordering::Relaxed);
        }
    }
}

impl<S: LockScheme> MmCore<S> {
    /// The limits.
    pub(crate) fn limits(&self) -> Limits {
        let get = |limit: &AtomicU64| limit.load(Ordering::Relaxed);
        let usage = &self.usage;
        Limits {
            address_space: get(&usage.address_space),
            data: get(&usage.data),
            memlock: get(&usage.memlock),
            stack: get(&usage.stack),
        }
    }

    /// Whose behaviour is shown.
    pub(crate) fn kernel(&self) -> Kernel {
        let kernel = self.usage.kernel.load(Ordering::Relaxed);
        Kernel { major: (kernel >> 32) as u32, minor: kernel as u32 }
    }

    /// What mappings to come are locked by.
    pub(super) fn def_flags(&self) -> VmaFlags {
        VmaFlags::from_bits_retain(self.usage.def_flags.load(Ordering::Relaxed))
    }

    pub(super) fn set_def_flags(&self, flags: VmaFlags) {
        self.usage.def_flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// `total_vm`, in pages.
    pub(super) fn total_vm(&self) -> u64 {
        self.usage.pages().total
    }

    /// `locked_vm`, in pages.
    pub(super) fn locked_vm(&self) -> u64 {
        self.usage.pages().locked + self.usage.locked_still.load(Ordering::Relaxed)
    }

    /// `pages` are not locked any more, and go on being counted.
    pub(super) fn still_counts_locked(&self, pages: u64) {
        self.usage.locked_still.fetch_add(pages, Ordering::Relaxed);
    }

    /// Whether `pages` pages more (a difference, which may be negative) of a
    /// kind are within the limits (`may_expand_vm`).
    pub(super) fn may_expand_vm(&self, flags: VmaFlags, pages: u64) -> bool {
        self.may_expand_vm_beside(0, flags, pages)
    }

    /// The same when `data` pages, mapped already, count as data beside those
    /// that do: an operation on several VMAs accounts for all at its end.
    pub(super) fn may_expand_vm_beside(&self, data: u64, flags: VmaFlags, pages: u64) -> bool {
        let (limits, used) = (self.limits(), self.usage.pages());
        if used.total.wrapping_add(pages) > limits.address_space >> PAGE_SHIFT {
            return false;
        }
        !flags.is_data() || used.data.wrapping_add(data).wrapping_add(pages) <= limits.data >> PAGE_SHIFT
    }

    /// Whether anything may be locked at all (`can_do_mlock`).
    pub(super) fn can_do_mlock(&self) -> bool {
        self.limits().memlock != 0
    }

    /// Pages that may be locked; `None`: no limit.
    pub(super) fn memlock_pages(&self) -> Option<u64> {
        let memlock = self.limits().memlock;
        (memlock != u64::MAX).then_some(memlock >> PAGE_SHIFT)
    }

    /// Whether `bytes` more may be mapped with `flags` (`mlock_future_ok`).
    pub(super) fn mlock_future_ok(&self, flags: VmaFlags, bytes: usize) -> bool {
        let more = (bytes >> PAGE_SHIFT) as u64;
        !flags.contains(VmaFlags::LOCKED) || self.memlock_pages().is_none_or(|max| self.locked_vm() + more <= max)
    }

    /// Checks that what is counted is what is there.
    pub(super) fn validate_usage(&self, segments: impl Iterator<Item = Segment>) {
        let mut pages = Pages::default();
        segments.for_each(|segment| pages.add(&segment));
        assert_eq!(self.usage.pages(), pages, "total_vm, data_vm or locked_vm is off");
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// The limits on what may be mapped.
    pub fn limits(&self) -> Limits {
        self.core().limits()
    }

    /// Sets the limits (`setrlimit`). What is mapped already stays.
    pub fn set_limits(&self, limits: Limits) {
        let usage = &self.core().usage;
        usage.address_space.store(limits.address_space, Ordering::Relaxed);
        usage.data.store(limits.data, Ordering::Relaxed);
        usage.memlock.store(limits.memlock, Ordering::Relaxed);
        usage.stack.store(limits.stack, Ordering::Relaxed);
    }

    /// Shows the behaviour of `kernel` from now on, where releases differ.
    pub fn set_kernel(&self, kernel: Kernel) {
        self.core().usage.set_kernel(kernel);
    }

    /// Stretches of `range` whose pages are populated: present, or kept out of
    /// sight (PROT_NONE). As `/proc/PID/pagemap` would tell.
    pub fn populated(&self, range: PageRange) -> Vec<PageRange> {
        let mut runs = Vec::new();
        self.mmu().presence(range.intersect(self.range()), &mut |run| runs.push(run));
        runs
    }
}
