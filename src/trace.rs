//! Trace points: named places in the fault path, the locks and the operations
//! where others may look on.
//!
//! A trace point has two readers, both absent as a rule:
//!
//! - a USDT probe of provider `vmalab`, for `perf`, `bpftrace` and the like;
//! - the *hook* of this process, which the stress runner's attribution and
//!   timeline hang on. It is called only on threads that are *followed*
//!   ([`follow`]).
//!
//! With neither it is a load of a thread-local, a load of the probes' semaphore
//! and a branch that is not taken; everything else is out of line.
//!
//! The core has no clock: what time it is, is the hook's affair. Trace points
//! are reached inside signal handlers, so a hook must be async-signal-safe.
//! docs/profiling.md tells how to use both.
//!
//! In model builds there are none: no executor should see them.

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $probe:ident,)*) => {
        /// What happened; the two numbers that come with it are told at each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Event { $($(#[$doc])* $name,)* }

        impl Event {
            /// All of them, in order.
            pub const ALL: &'static [Event] = &[$(Event::$name,)*];
        }

        /// The USDT probe of an event. Each in one place, out of line: a probe
        /// in inlined code would leave notes of copies that the linker drops.
        #[cfg(not(any(loom, shuttle)))]
        fn usdt(event: Event, a: u64, b: u64) {
            match event {
                // `probe::probe_lazy!` with a semaphore of our own, shared by all.
                $(Event::$name => { ::probe::sdt!([sym "{}" LISTENERS], vmalab, $probe, a, b,); })*
            }
        }
    };
}

events! {
    /// A fault has reached the process: first thing in the SIGBUS handler, or
    /// in a handler thread that has read its message. (address, 0)
    FaultDelivered = fault_delivered,
    /// The fault path begins (`do_user_addr_fault`). (address, [`access`])
    FaultEntry = fault_entry,
    /// The tree was walked. (address, VMA or 0)
    Lookup = lookup,
    /// A fault holds its VMA, by the VMA's own lock or the mmap lock.
    /// (VMA, 1 if by the mmap lock)
    Lock = lock,
    /// A fault gives its VMA back. (VMA, 1 if by the mmap lock)
    Unlock = unlock,
    /// A fault could not have its VMA's own lock. (address, [`Abort`] as a number)
    ///
    /// [`Abort`]: crate::lock::Abort
    Abort = abort,
    /// A fault turns to the mmap lock. (address, 0)
    Fallback = fallback,
    /// A page is about to be made present. (page, 0)
    Install = install,
    /// ... and was, or could not be. (page, 1 if it is there)
    InstallReturn = install_return,
    /// The fault path has ended. (address, [`outcome`])
    FaultReturn = fault_return,
    /// The mmap lock is not free: its acquisition waits. (lock, 1 to write)
    MmapLockWait = mmap_lock_start_locking,
    /// The mmap lock was taken. (lock, 1 to write)
    MmapLockAcquired = mmap_lock_acquire_returned,
    /// The mmap lock, held for writing, is held for reading from now on. (lock, 0)
    MmapLockDowngraded = mmap_lock_downgraded,
    /// The mmap lock is about to be released. (lock, 1 to write)
    MmapLockReleased = mmap_lock_released,
    /// A mutator asks for a VMA's write lock, and waits for its readers.
    /// (VMA, its first address)
    VmaStartWrite = vma_start_write,
    /// ... and has it, or has given up. Released with the mmap lock. (VMA, 1 if it has it)
    VmaWriteLocked = vma_write_locked,
    /// A VMA object is given a new life. (VMA, number of its last address space)
    Reuse = reuse,
    /// `mmap` begins. (address, length)
    Mmap = mmap,
    /// ... and ends. (0, 0)
    MmapReturn = mmap_return,
    /// `munmap` begins. (address, length)
    Munmap = munmap,
    /// ... and ends. (0, 0)
    MunmapReturn = munmap_return,
    /// `mprotect` begins. (address, length)
    Mprotect = mprotect,
    /// ... and ends. (0, 0)
    MprotectReturn = mprotect_return,
    /// `mremap` begins. (old address, old length)
    Mremap = mremap,
    /// ... and ends. (0, 0)
    MremapReturn = mremap_return,
    /// `madvise` begins. (address, length)
    Madvise = madvise,
    /// ... and ends. (0, 0)
    MadviseReturn = madvise_return,
    /// `fork` begins. (first address, length of the address space)
    Fork = fork,
    /// ... and ends. (0, 0)
    ForkReturn = fork_return,
    /// The calling thread is followed from now on ([`follow_thread`]); never in
    /// a signal handler. (0, 0)
    Thread = thread,
}

/// Operations: the event that begins them, the one that ends them, the call's name.
pub const OPERATIONS: [(Event, Event, &str); 6] = [
    (Event::Mmap, Event::MmapReturn, "mmap"),
    (Event::Munmap, Event::MunmapReturn, "munmap"),
    (Event::Mprotect, Event::MprotectReturn, "mprotect"),
    (Event::Mremap, Event::MremapReturn, "mremap"),
    (Event::Madvise, Event::MadviseReturn, "madvise"),
    (Event::Fork, Event::ForkReturn, "fork"),
];

/// Called at every trace point of followed threads: the event and its two numbers.
pub type Hook = fn(Event, u64, u64);

/// The second number of [`Event::FaultEntry`]: bit 0, a store; bit 1, the page
/// is present.
#[inline(always)]
pub const fn access(access: crate::fault::Access) -> u64 {
    access.write as u64 | (access.present as u64) << 1
}

/// The second number of [`Event::FaultReturn`]: 0, the access is repeated; 1,
/// SIGSEGV with SEGV_MAPERR; 2, with SEGV_ACCERR; 3, SIGBUS.
#[inline(always)]
pub const fn outcome(outcome: crate::fault::Outcome) -> u64 {
    use crate::fault::{Outcome, Signal};
    match outcome {
        Outcome::Done => 0,
        Outcome::Signal(Signal::MapErr) => 1,
        Outcome::Signal(Signal::AccErr) => 2,
        Outcome::Signal(Signal::Bus) => 3,
    }
}

#[cfg(not(any(loom, shuttle)))]
mod host {
    use super::{Event, Hook, LISTENERS, usdt};
    use crate::sync::plain::{AtomicUsize, Ordering};
    use std::cell::Cell;

    /// The hook, or 0.
    static HOOK: AtomicUsize = AtomicUsize::new(0);

    thread_local! {
        /// Const-initialised and without destructor: async-signal-safe.
        static FOLLOWED: Cell<bool> = const { Cell::new(false) };
    }

    /// Has `hook` called at every trace point of every followed thread, inside
    /// signal handlers too: it must be async-signal-safe and must not touch a
    /// region. `None`: nobody is called any more (who is inside may still be).
    pub fn set_hook(hook: Option<Hook>) {
        // Release: pairs with the Acquire in `tell`, for what the hook needs.
        HOOK.store(hook.map_or(0, |hook| hook as usize), Ordering::Release);
    }

    /// Follows the calling thread from now on, or no more. Threads begin
    /// unfollowed.
    #[inline]
    pub fn follow(on: bool) {
        FOLLOWED.set(on);
    }

    /// Follows the calling thread, if there is a hook, and lets the hook prepare
    /// for it. Not in a signal handler.
    pub fn follow_thread() {
        if HOOK.load(Ordering::Relaxed) != 0 {
            FOLLOWED.set(true);
            tell(Event::Thread, 0, 0);
        }
    }

    /// A trace point.
    #[inline(always)]
    pub fn hit(event: Event, a: u64, b: u64) {
        // Relaxed: tools come and go when they like.
        if FOLLOWED.get() | (LISTENERS.load(Ordering::Relaxed) != 0) {
            tell(event, a, b);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell(event: Event, a: u64, b: u64) {
        if LISTENERS.load(Ordering::Relaxed) != 0 {
            usdt(event, a, b);
        }
        // Acquire: pairs with the Release in `set_hook`.
        let hook = if FOLLOWED.get() { HOOK.load(Ordering::Acquire) } else { 0 };
        if hook != 0 {
            // SAFETY: only `set_hook` stores here, and it stores a `Hook`.
            let hook: Hook = unsafe { std::mem::transmute(hook) };
            hook(event, a, b);
        }
    }
}

/// The semaphore of all probes: tools raise it while they listen to one.
#[cfg(not(any(loom, shuttle)))]
#[unsafe(link_section = ".probes")]
static LISTENERS: crate::sync::plain::AtomicU16 = crate::sync::plain::AtomicU16::new(0);

#[cfg(not(any(loom, shuttle)))]
pub use host::{follow, follow_thread, hit, set_hook};

#[cfg(any(loom, shuttle))]
mod model {
    use super::{Event, Hook};

    /// A model has no hook.
    pub fn set_hook(_: Option<Hook>) {}

    /// Nothing.
    pub fn follow(_: bool) {}

    /// Nothing.
    pub fn follow_thread() {}

    /// Nothing.
    #[inline(always)]
    pub fn hit(_: Event, _: u64, _: u64) {}
}

#[cfg(any(loom, shuttle))]
pub use model::{follow, follow_thread, hit, set_hook};

/// The address of something, as a number that tells it from others.
#[inline(always)]
pub(crate) fn id_of<T>(of: *const T) -> u64 {
    of.addr() as u64
}

/// An operation, from here to the end of the scope.
pub(crate) struct Operation {
    end: Event,
}

impl Operation {
    /// `begin` and `end` are a pair of [`OPERATIONS`].
    #[inline(always)]
    pub(crate) fn begin(begin: Event, end: Event, addr: usize, len: usize) -> Operation {
        hit(begin, addr as u64, len as u64);
        Operation { end }
    }
}

impl Drop for Operation {
    #[inline(always)]
    fn drop(&mut self) {
        hit(self.end, 0, 0);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
    use crate::mm::{MapFlags, Mm, Prot};
    use crate::mmu::soft::SoftMmu;
    use crate::pager::ZeroPager;
    use std::cell::RefCell;

    thread_local! {
        static SEEN: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
    }

    /// What this thread does in `f`.
    fn events_of(f: impl FnOnce()) -> Vec<Event> {
        // The only hook of this process: other tests' threads are not followed.
        set_hook(Some(|event, _, _| SEEN.with_borrow_mut(|seen| seen.push(event))));
        follow(true);
        f();
        follow(false);
        SEEN.take()
    }

    fn a_fault_and_an_unmap<S: LockScheme>() -> (Vec<Event>, Vec<Event>) {
        let mm: Mm<S, _, _> = Mm::new(SoftMmu::new(1 << 20).unwrap(), ZeroPager);
        let anon = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
        let addr = mm.mmap(0, 1 << 14, Prot::READ | Prot::WRITE, anon).unwrap();
        // The first store to the mapping may need the mmap lock (anon_vma).
        mm.write(addr, &[1]).unwrap();
        let fault = events_of(|| mm.write(addr + 4096, &[1]).unwrap());
        let unmap = events_of(|| mm.munmap(addr.get(), 1 << 14).unwrap());
        (fault, unmap)
    }

    #[test]
    fn a_fault_and_an_operation_pass_their_points_in_order() {
        use Event::*;
        let per_vma = [FaultEntry, Lookup, Lock, Install, InstallReturn, Unlock, FaultReturn];
        for (fault, unmap) in
            [a_fault_and_an_unmap::<Rcu>(), a_fault_and_an_unmap::<TypeSafe>(), a_fault_and_an_unmap::<RefCount>()]
        {
            assert_eq!(fault, per_vma);
            assert_eq!(unmap.first(), Some(&Munmap));
            assert_eq!(unmap.last(), Some(&MunmapReturn));
            let locking: Vec<Event> = unmap.into_iter().filter(|e| !matches!(e, Munmap | MunmapReturn)).collect();
            assert_eq!(
                locking,
                [MmapLockAcquired, VmaStartWrite, VmaWriteLocked, MmapLockDowngraded, MmapLockReleased]
            );
        }
        let (fault, _) = a_fault_and_an_unmap::<MmapOnly>();
        assert_eq!(
            fault,
            [
                FaultEntry,
                Fallback,
                MmapLockAcquired,
                Lookup,
                Lock,
                Install,
                InstallReturn,
                Unlock,
                MmapLockReleased,
                FaultReturn
            ]
        );
    }
}
