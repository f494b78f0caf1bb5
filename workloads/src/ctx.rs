//! [`Ctx`]: one thread of a run, and the only way for a workload to reach an
//! address space: every call and access is counted, timed and (with
//! `--verify`) logged here.

use crate::RunError;
use crate::measure::{Op, Recorder, bump};
use crate::pace::Pace;
use crate::report::Violation;
use crate::rng::Rng;
use crate::shared::{Phase, Shared};
use crate::target::Target;
use crate::trace::attribution::{Sampler, Watch};
use crate::verify::log::{Ended, Event, Log};
use std::sync::Arc;
use vmalab::Errno;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;
use vmalab::mm::{MapFlags, Mapping, Prot, RemapFlags};
use vmalab::stats::{self, Counter};

/// Why a thread ends before its time.
pub(crate) enum Fail {
    /// The run is over.
    Stop,
    /// An oracle was violated.
    Violation(Box<Violation>),
    /// A call failed that must not.
    Error(String),
    /// This machine or user cannot do it, or not any more.
    Unsupported(String),
}

/// What workload code returns.
pub(crate) type Flow<V = ()> = Result<V, Fail>;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It faults (`--threads`).
    Fault,
    /// It maps and unmaps (`--mutators`).
    Mutator,
}

/// Readable and writable.
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Private anonymous memory, wherever there is room.
pub(crate) const ANON: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);

/// One thread of a run.
pub(crate) struct Ctx<T> {
    pub(crate) shared: Arc<Shared<T>>,
    pub(crate) role: Role,
    /// Number within its role, from 0.
    pub(crate) index: usize,
    /// Number among all threads, fault threads first.
    pub(crate) worker: usize,
    /// The address space that is this thread's own.
    pub(crate) mm: usize,
    pub(crate) rng: Rng,
    pub(crate) verify: bool,
    pub(crate) recorder: Recorder,
    pub(crate) log: Log,
    sampler: Sampler,
    /// A mutator's, with `--mutator-rate`.
    pace: Option<Pace>,
    measuring: bool,
    values: u64,
}

impl<T: Target> Ctx<T> {
    pub(crate) fn new(shared: Arc<Shared<T>>, worker: usize) -> Ctx<T> {
        let threads = shared.plan.threads;
        let (role, index) = if worker < threads { (Role::Fault, worker) } else { (Role::Mutator, worker - threads) };
        Ctx {
            role,
            index,
            worker,
            mm: index % shared.plan.address_spaces,
            rng: Rng::of_thread(shared.plan.seed, worker),
            verify: shared.plan.verify,
            recorder: Recorder::new(),
            log: Log::default(),
            sampler: Sampler::new(worker),
            pace: shared.plan.mutator_rate.filter(|_| role == Role::Mutator).map(Pace::new),
            measuring: shared.plan.warmup.is_zero(),
            values: (worker as u64) << 40,
            shared,
        }
    }

    /// Name in messages.
    pub(crate) fn name(&self) -> String {
        match self.role {
            Role::Fault => format!("fault-{}", self.index),
            Role::Mutator => format!("mutator-{}", self.index),
        }
    }

    /// To be asked at the head of each round: whether there is another.
    pub(crate) fn go(&mut self) -> bool {
        if let Some(pace) = &mut self.pace {
            pace.keep(|| self.shared.phase() == Phase::Stop);
        }
        match self.shared.phase() {
            Phase::Stop => return false,
            Phase::Measure if !self.measuring => {
                self.recorder.reset();
                self.measuring = true;
            }
            _ => {}
        }
        true
    }

    /// Waits for all fault threads. With `leave`, all may be told to stop here.
    pub(crate) fn meet(&mut self, leave: bool) -> Flow {
        let shared = Arc::clone(&self.shared);
        if !shared.meeting.wait(|| !leave || shared.phase() != Phase::Stop) {
            return Err(Fail::Stop);
        }
        // Those who may not leave here do so at a later meeting.
        let _ = self.go();
        Ok(())
    }

    /// This thread's part of its address space.
    pub(crate) fn area(&self) -> PageRange {
        self.shared.area(self.mm, self.worker)
    }

    /// A value that no thread has stored before, never 0.
    pub(crate) fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    pub(crate) fn target(&self, mm: usize) -> &T {
        &self.shared.targets[mm]
    }

    /// `mmap(2)`. An error ends the run: workloads only ask for what must work.
    pub(crate) fn map(&mut self, mm: usize, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Flow<Mapping> {
        let result = self.op(Op::Mmap, |target| target.map(addr, len, prot, flags), mm);
        let (at, ended) = match result {
            Ok(mapping) => (mapping.addr.get(), Ended::Mapped(mapping.incarnation)),
            Err(errno) => (addr, Ended::Errno(errno)),
        };
        self.done_op(Op::Mmap, mm, at, len, ended)?;
        let mapping = result.expect("errors have returned");
        if flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE) && at != addr {
            return Err(Fail::Error(format!("mmap with MAP_FIXED at {addr:#x} went to {at:#x}")));
        }
        Ok(mapping)
    }

    /// `munmap(2)`.
    pub(crate) fn munmap(&mut self, mm: usize, addr: VirtAddr, len: usize) -> Flow {
        let result = self.op(Op::Munmap, |target| target.munmap(addr.get(), len), mm);
        self.done_op(Op::Munmap, mm, addr.get(), len, ended(result))
    }

    /// `mprotect(2)`.
    pub(crate) fn mprotect(&mut self, mm: usize, addr: VirtAddr, len: usize, prot: Prot) -> Flow {
        let result = self.op(Op::Mprotect, |target| target.mprotect(addr.get(), len, prot), mm);
        self.done_op(Op::Mprotect, mm, addr.get(), len, ended(result))
    }

    /// `mremap(2)`.
    pub(crate) fn mremap(
        &mut self,
        mm: usize,
        addr: VirtAddr,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: VirtAddr,
    ) -> Flow {
        let call = |target: &T| target.mremap(addr.get(), old_len, new_len, flags, new_addr.get());
        let result = self.op(Op::Mremap, call, mm);
        self.done_op(Op::Mremap, mm, addr.get(), new_len, ended(result.map(drop)))
    }

    /// `mmap(2)` of a file, shared.
    pub(crate) fn map_file(&mut self, mm: usize, len: usize, prot: Prot, file: &Arc<File>) -> Flow<VirtAddr> {
        let result = self.op(Op::Mmap, |target| target.map_file(len, prot, file), mm).map(|mapping| mapping.addr);
        let at = result.map_or(0, VirtAddr::get);
        self.done_op(Op::Mmap, mm, at, len, ended(result.map(drop)))?;
        Ok(result.expect("errors have returned"))
    }

    /// `msync(2)`, MS_SYNC.
    pub(crate) fn msync(&mut self, mm: usize, addr: VirtAddr, len: usize) -> Flow {
        let result = self.op(Op::Msync, |target| target.msync(addr.get(), len), mm);
        self.done_op(Op::Msync, mm, addr.get(), len, ended(result))
    }

    /// `fork(2)`.
    pub(crate) fn fork(&mut self, mm: usize) -> Flow<T> {
        let result = self.op(Op::Fork, T::fork, mm);
        if self.verify {
            self.event(Op::Fork.name(), mm, 0, 0, Ended::Ok);
        }
        result.map_err(|error| match error {
            RunError::Unsupported(text) => Fail::Unsupported(text),
            other => Fail::Error(other.to_string()),
        })
    }

    #[inline]
    fn op<V>(&mut self, op: Op, call: impl FnOnce(&T) -> V, mm: usize) -> V {
        let clock = &self.shared.clock;
        let start = clock.raw();
        let result = call(&self.shared.targets[mm]);
        let ns = clock.delta_as_nanos(start, clock.raw());
        self.recorder.ops[op as usize].saturating_record(ns.max(1));
        bump(&self.shared.live[self.worker].ops);
        if let Some(pace) = &mut self.pace {
            pace.call();
        }
        if self.measuring {
            self.shared.spend_op();
        }
        result
    }

    fn done_op(&mut self, op: Op, mm: usize, addr: usize, len: usize, ended: Ended) -> Flow {
        if self.verify {
            self.event(op.name(), mm, addr, len, ended);
        }
        match ended {
            Ended::Errno(errno) => {
                Err(Fail::Error(format!("{} of {len:#x} bytes at {addr:#x} in mm {mm}: {errno}", op.name())))
            }
            _ => Ok(()),
        }
    }

    /// A store that is expected to fault: its latency is `fault_ns`.
    #[inline]
    pub(crate) fn first_store(&mut self, mm: usize, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        let (start, watch) = self.begin(addr);
        let result = self.shared.targets[mm].store(addr, value);
        let ns = self.end(start, watch);
        self.record_fault(ns);
        self.log_access("store", mm, addr, result.map(|()| value));
        result
    }

    /// A load that may fault. Timed if it did and succeeded, as far as this
    /// thread can tell: in `queue` delivery it is not this thread that counts.
    #[inline]
    pub(crate) fn load(&mut self, mm: usize, addr: VirtAddr) -> Result<u64, Signal> {
        let result = self.maybe_fault(mm, addr, |target| target.load(addr));
        self.log_access("load", mm, addr, result);
        result
    }

    /// A store that may fault, as [`load`](Ctx::load).
    #[inline]
    pub(crate) fn store(&mut self, mm: usize, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        let result = self.maybe_fault(mm, addr, |target| target.store(addr, value));
        self.log_access("store", mm, addr, result.map(|()| value));
        result
    }

    #[inline]
    fn maybe_fault<V>(
        &mut self,
        mm: usize,
        addr: VirtAddr,
        access: impl FnOnce(&T) -> Result<V, Signal>,
    ) -> Result<V, Signal> {
        let faults = stats::of_this_thread(Counter::Fault);
        let (start, watch) = self.begin(addr);
        let result = access(&self.shared.targets[mm]);
        let faulted = result.is_ok() && stats::of_this_thread(Counter::Fault) != faults;
        let ns = if faulted || watch.is_some() { self.end(start, watch) } else { 0 };
        if faulted {
            self.record_fault(ns);
        } else {
            self.recorder.touches += 1;
        }
        result
    }

    /// The clock reading before an access; some are watched more closely.
    #[inline]
    fn begin(&mut self, addr: VirtAddr) -> (u64, Option<Watch>) {
        let clock = &self.shared.clock;
        if T::COUNTS { self.sampler.begin(clock, addr) } else { (clock.raw(), None) }
    }

    /// After the access: how many nanoseconds it took.
    #[inline]
    fn end(&mut self, start: u64, watch: Option<Watch>) -> u64 {
        let clock = &self.shared.clock;
        let end = clock.raw();
        if let Some(watch) = watch {
            watch.end(end, &mut self.recorder.attribution);
        }
        clock.delta_as_nanos(start, end)
    }

    fn record_fault(&mut self, ns: u64) {
        self.recorder.touches += 1;
        self.recorder.first_touches += 1;
        self.recorder.faults.saturating_record(ns.max(1));
        let live = &self.shared.live[self.worker];
        bump(&live.first_touches);
        live.latency(ns);
    }

    #[inline]
    fn log_access(&mut self, what: &'static str, mm: usize, addr: VirtAddr, result: Result<u64, Signal>) {
        if self.verify {
            let ended = match result {
                Ok(value) => Ended::Value(value),
                Err(signal) => Ended::Signal(signal),
            };
            self.event(what, mm, addr.get(), 0, ended);
        }
    }

    /// Adds to the thread's log.
    pub(crate) fn event(&mut self, what: &'static str, mm: usize, addr: usize, len: usize, ended: Ended) {
        let clock = &self.shared.clock;
        let ns = clock.delta_as_nanos(self.shared.started, clock.raw());
        self.log.push(Event { ns, what, mm, addr, len, ended });
    }

    /// Counts one checked access.
    pub(crate) fn checked(&self) {
        bump(&self.shared.live[self.worker].checked);
    }

    /// Counts one whose outcome could not be checked.
    pub(crate) fn unchecked_state(&self) {
        bump(&self.shared.live[self.worker].unchecked_state);
    }
}

fn ended(result: Result<(), Errno>) -> Ended {
    match result {
        Ok(()) => Ended::Ok,
        Err(errno) => Ended::Errno(errno),
    }
}
