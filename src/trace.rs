//! Trace points: named places in the fault path, the locks and the operations
//! where others may look on.
//!
//! A trace point has two readers, both absent as a rule:
//!
//! - a USDT probe of provider `vmalab`, for `perf`, `bpftrace` and the like: a
//!   NOP and a note in the binary;
//! - the *hook* of this process, which the stress runner's attribution and
//!   timeline hang on. It is called only on threads that are *followed*
//!   ([`follow`]): one load of a thread-local and a branch that is not taken.
//!
//! The core has no clock: what time it is, is the hook's affair. Trace points
//! are reached inside signal handlers, so a hook must be async-signal-safe.
//! docs/profiling.md tells how to use both.
//!
//! In model builds there are none: no executor should see them.

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened; the two numbers that come with it are told at each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Event { $($(#[$doc])* $name,)* }

        impl Event {
            /// All of them, in order.
            pub const ALL: &'static [Event] = &[$(Event::$name,)*];
        }
    };
}

events! {
    /// A fault has reached the process: first thing in the SIGBUS handler, or
    /// in a handler thread that has read its message. (address, 0)
    FaultDelivered,
    /// The fault path begins (`do_user_addr_fault`). (address, [`access`])
    FaultEntry,
    /// The tree was walked. (address, VMA or 0)
    Lookup,
    /// A fault holds its VMA, by the VMA's own lock or the mmap lock.
    /// (VMA, 1 if by the mmap lock)
    Lock,
    /// A fault gives its VMA back. (VMA, 1 if by the mmap lock)
    Unlock,
    /// A fault could not have its VMA's own lock. (address, [`Abort`] as a number)
    ///
    /// [`Abort`]: crate::lock::Abort
    Abort,
    /// A fault turns to the mmap lock. (address, 0)
    Fallback,
    /// A page is about to be made present. (page, 0)
    Install,
    /// ... and was, or could not be. (page, 1 if it is there)
    InstallReturn,
    /// The fault path has ended. (address, [`outcome`])
    FaultReturn,
    /// The mmap lock is not free: its acquisition waits
    /// (`mmap_lock_start_locking`). (lock, 1 to write)
    MmapLockWait,
    /// The mmap lock was taken (`mmap_lock_acquire_returned`). (lock, 1 to write)
    MmapLockAcquired,
    /// The mmap lock, held for writing, is held for reading from now on. (lock, 0)
    MmapLockDowngraded,
    /// The mmap lock was released (`mmap_lock_released`). (lock, 1 to write)
    MmapLockReleased,
    /// A mutator asks for a VMA's write lock, and waits for its readers
    /// (`vma_start_write`). (VMA, its first address)
    VmaStartWrite,
    /// ... and has it, or has given up. Released with the mmap lock. (VMA, 1 if it has it)
    VmaWriteLocked,
    /// A VMA object is given a new life. (VMA, number of its last address space)
    Reuse,
    /// An operation begins. ([`Op`] as a number, address)
    OpEntry,
    /// ... and ends. ([`Op`] as a number, 0)
    OpReturn,
    /// The calling thread is followed from now on ([`follow_thread`]); never in
    /// a signal handler. (0, 0)
    Thread,
}

macro_rules! ops {
    ($($name:ident = $text:literal,)*) => {
        /// Operations, by the call they are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Op { $($name,)* }

        impl Op {
            /// All of them, in order.
            pub const ALL: &'static [Op] = &[$(Op::$name,)*];

            /// The call's name.
            pub const fn name(self) -> &'static str {
                match self { $(Op::$name => $text,)* }
            }
        }
    };
}

ops! {
    Mmap = "mmap",
    Munmap = "munmap",
    Mprotect = "mprotect",
    Mremap = "mremap",
    Madvise = "madvise",
    Fork = "fork",
}

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
    use super::{Event, Hook};
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

    /// Tells the hook.
    #[inline(always)]
    pub fn hit(event: Event, a: u64, b: u64) {
        if FOLLOWED.get() {
            tell(event, a, b);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell(event: Event, a: u64, b: u64) {
        // Acquire: pairs with the Release in `set_hook`.
        let hook = HOOK.load(Ordering::Acquire);
        if hook != 0 {
            // SAFETY: only `set_hook` stores here, and it stores a `Hook`.
            let hook: Hook = unsafe { std::mem::transmute(hook) };
            hook(event, a, b);
        }
    }
}

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

/// A trace point: `trace!(Event, usdt_name, a, b)`.
#[cfg(not(any(loom, shuttle)))]
macro_rules! trace {
    ($event:ident, $probe:ident, $a:expr, $b:expr) => {{
        let (a, b): (u64, u64) = ($a, $b);
        ::probe::probe!(vmalab, $probe, a, b);
        $crate::trace::hit($crate::trace::Event::$event, a, b);
    }};
}

#[cfg(any(loom, shuttle))]
macro_rules! trace {
    ($event:ident, $probe:ident, $a:expr, $b:expr) => {{
        let _: (u64, u64) = ($a, $b);
    }};
}

pub(crate) use trace;

/// The address of something, as a number that tells it from others.
#[inline(always)]
pub(crate) fn id_of<T>(of: *const T) -> u64 {
    of.addr() as u64
}

/// A fault was delivered to the process; for the crate that does so.
#[inline(always)]
pub fn fault_delivered(addr: crate::addr::VirtAddr) {
    trace!(FaultDelivered, fault_delivered, addr.get() as u64, 0);
}

/// An operation from here to the end of the scope.
pub(crate) struct Operation(Op);

impl Operation {
    #[inline(always)]
    pub(crate) fn begin(op: Op, addr: usize, len: usize) -> Operation {
        let _ = len;
        #[cfg(not(any(loom, shuttle)))]
        match op {
            Op::Mmap => ::probe::probe!(vmalab, mmap, addr, len),
            Op::Munmap => ::probe::probe!(vmalab, munmap, addr, len),
            _ => {}
        }
        hit(Event::OpEntry, op as u64, addr as u64);
        Operation(op)
    }
}

impl Drop for Operation {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(not(any(loom, shuttle)))]
        match self.0 {
            Op::Mmap => ::probe::probe!(vmalab, mmap_return),
            Op::Munmap => ::probe::probe!(vmalab, munmap_return),
            _ => {}
        }
        hit(Event::OpReturn, self.0 as u64, 0);
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
            assert_eq!(unmap.first(), Some(&OpEntry));
            assert_eq!(unmap.last(), Some(&OpReturn));
            let locking: Vec<Event> = unmap.into_iter().filter(|e| !matches!(e, OpEntry | OpReturn)).collect();
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
