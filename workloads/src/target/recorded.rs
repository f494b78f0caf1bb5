//! [`Recorded`]: a software target whose calls and accesses are recorded, with
//! the feature `conflicts` only.
//!
//! The threads take turns, call by call: so which of them touches a line after
//! which does not depend on how many CPUs there are, nor on who else uses them.

use super::soft::Soft;
use super::{SlabUse, Target};
use crate::RunError;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vmalab::Errno;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;
use vmalab::lock::LockScheme;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Prot, RemapFlags};
use vmalab::pager::Stamp;
use vmalab::stats::{self, Counter};
use vmalab::sync::record::{self, Access};

/// One call or access of a workload, and what the core touched in it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The thread, by a number that no other has.
    pub thread: u64,
    /// `mmap`, `munmap`, ...; `fault`, or `access` if it did not fault.
    pub name: &'static str,
    /// In order.
    pub accesses: Vec<Access>,
}

/// Longest wait for another thread's turn: who is blocked, or has ended, takes
/// none, but on a busy machine a thread may not run for a while.
const TURN_MAX: Duration = Duration::from_millis(50);
/// Turns that a thread takes without another wait after one in vain; twice as
/// many after the next.
const TURNS_ALONE: u32 = 32;

/// What the targets of a run record on, until it is full.
pub(crate) struct Tape {
    operations: Mutex<Vec<Operation>>,
    most: usize,
    /// The thread that recorded last.
    last: AtomicU64,
}

impl Tape {
    pub(crate) fn new(most: usize) -> Arc<Tape> {
        Arc::new(Tape { operations: Mutex::default(), most, last: AtomicU64::new(u64::MAX) })
    }

    fn operations(&self) -> MutexGuard<'_, Vec<Operation>> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, name: &'static str, accesses: Vec<Access>) {
        let thread = thread();
        self.take_turns(thread);
        let mut operations = self.operations();
        if operations.len() < self.most {
            operations.push(Operation { thread, name, accesses });
        }
        // Relaxed, as above: a hint.
        self.last.store(thread, Ordering::Relaxed);
    }

    /// Waits until another thread has recorded something since this one did.
    fn take_turns(&self, thread: u64) {
        thread_local! {
            /// Turns left without a wait, and how many there will be after the next one in vain.
            static ALONE: Cell<(u32, u32)> = const { Cell::new((0, TURNS_ALONE)) };
        }
        let (left, next) = ALONE.get();
        if left > 0 {
            return ALONE.set((left - 1, next));
        }
        let began = Instant::now();
        while self.last.load(Ordering::Relaxed) == thread {
            if began.elapsed() > TURN_MAX {
                return ALONE.set((next, next.saturating_mul(2)));
            }
            std::thread::yield_now();
        }
        ALONE.set((0, TURNS_ALONE));
    }

    pub(crate) fn is_full(&self) -> bool {
        self.operations().len() == self.most
    }

    pub(crate) fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut *self.operations())
    }
}

/// A [`Soft`] that records.
pub(crate) struct Recorded<S: LockScheme> {
    inner: Soft<S>,
    tape: Arc<Tape>,
}

fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

impl<S: LockScheme> Recorded<S> {
    pub(crate) fn new(inner: Soft<S>, tape: &Arc<Tape>) -> Recorded<S> {
        Recorded { inner, tape: Arc::clone(tape) }
    }

    fn note<R>(&self, name: &'static str, call: impl FnOnce(&Soft<S>) -> R) -> R {
        let (result, accesses) = record::operation(|| call(&self.inner));
        self.tape.push(name, accesses);
        result
    }

    /// A load or a store: what it is turns out when it is done.
    fn access<R>(&self, access: impl FnOnce(&Soft<S>) -> R) -> R {
        let before = stats::of_this_thread(Counter::Fault);
        let (result, accesses) = record::operation(|| access(&self.inner));
        let name = if stats::of_this_thread(Counter::Fault) == before { "access" } else { "fault" };
        self.tape.push(name, accesses);
        result
    }
}

impl<S: LockScheme> Target for Recorded<S> {
    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        self.note("mmap", |inner| inner.map(addr, len, prot, flags))
    }

    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.note("munmap", |inner| inner.munmap(addr, len))
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        self.note("mprotect", |inner| inner.mprotect(addr, len, prot))
    }

    fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno> {
        self.note("mremap", |inner| inner.mremap(addr, old_len, new_len, flags, new_addr))
    }

    fn new_file(&self, bytes: usize) -> Result<Arc<File>, Errno> {
        self.inner.new_file(bytes)
    }

    fn map_file(&self, len: usize, prot: Prot, file: &Arc<File>) -> Result<Mapping, Errno> {
        self.note("mmap", |inner| inner.map_file(len, prot, file))
    }

    fn msync(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.note("msync", |inner| inner.msync(addr, len))
    }

    fn fork(&self) -> Result<Recorded<S>, RunError> {
        let child = self.note("fork", Target::fork)?;
        Ok(Recorded::new(child, &self.tape))
    }

    fn maps(&self) -> Vec<MapsEntry> {
        self.note("maps", Target::maps)
    }

    fn query(&self, addr: VirtAddr) -> Option<MapsEntry> {
        self.note("query", |inner| inner.query(addr))
    }

    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        self.access(|inner| inner.load(addr))
    }

    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        self.access(|inner| inner.store(addr, value))
    }

    fn stamp(&self, page: VirtAddr) -> Result<Stamp, Signal> {
        self.access(|inner| inner.stamp(page))
    }

    fn range(&self) -> PageRange {
        self.inner.range()
    }

    fn id(&self) -> u64 {
        self.inner.id()
    }

    fn slab(&self) -> Option<SlabUse> {
        self.inner.slab()
    }

    fn userfaultfds(&self) -> Option<usize> {
        self.inner.userfaultfds()
    }

    fn validate(&self) {
        self.inner.validate();
    }
}
