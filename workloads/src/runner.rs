//! Drives one workload over given targets: threads, warm-up, limits, the
//! first failure, measurements, the check at rest. Knows nothing of how
//! targets are made ([`crate::run`] does) or reported.

use crate::control::{Control, Stage};
use crate::ctx::{Ctx, Fail, Role};
use crate::measure::{BUCKETS, Recorder, p99};
use crate::report::{AdversaryReport, Violation};
use crate::shared::{Phase, Plan, Rendezvous, Shared};
use crate::shootdowns;
use crate::slices::{Done, Place, Sampler, SlicesReport};
use crate::target::{SlabUse, Target};
use crate::verify::log::{Event, Log};
use crate::workload::{Threads, Visit, Workload};
use crate::{RunError, WorkloadInfo, pin, trace, workload};
use crossbeam::channel::{Receiver, Sender, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmalab::rcu;
use vmalab::stats::{Counter, Snapshot};

/// Between two looks at the clock and the stop flag.
const TICK: Duration = Duration::from_millis(50);

/// Events told with a violation.
const EVENTS: usize = 48;

/// What a run gave.
pub(crate) struct Driven {
    pub(crate) recorder: Recorder,
    /// Calls that mutators made, of the recorder's.
    pub(crate) mutator_calls: u64,
    pub(crate) seconds: f64,
    pub(crate) interrupted: bool,
    /// The core's counters during the measured part.
    pub(crate) counters: Snapshot,
    /// What the slab held before the address spaces were dropped.
    pub(crate) slab: Option<SlabUse>,
    /// Of the first address space.
    pub(crate) userfaultfds: Option<usize>,
    pub(crate) rcu_before: rcu::Stats,
    pub(crate) rcu_after: rcu::Stats,
    /// TLB shootdowns of the whole machine.
    pub(crate) shootdowns: Option<u64>,
    pub(crate) checked: u64,
    pub(crate) unchecked_state: u64,
    /// All, the first first.
    pub(crate) violations: Vec<Violation>,
    /// Of the measured part, if there was one.
    pub(crate) slices: Option<SlicesReport>,
    /// `None` without the adversary.
    pub(crate) adversary: Option<AdversaryReport>,
}

/// What a thread leaves behind.
struct Finished {
    worker: usize,
    recorder: Recorder,
    log: Log,
    result: Result<(), Fail>,
    /// Clock reading.
    ended: u64,
}

/// Runs `workload` over `targets` until its limit, the control's stop or the
/// first violation. `patience`: how long a thread may take to notice the end.
pub(crate) fn drive<T: Target>(
    info: &WorkloadInfo,
    targets: Vec<T>,
    plan: Plan,
    control: &Control,
    patience: Duration,
) -> Result<Driven, RunError> {
    struct Make<'a, T>(&'a Shared<T>);
    impl<T: Target> Visit for Make<'_, T> {
        type Out = Result<Arc<dyn Threads<T>>, Fail>;
        fn visit<W: Workload>(self) -> Self::Out {
            Ok(Arc::new(W::new(self.0)?))
        }
    }
    control.enter(Stage::SetUp);
    let span = tracing::info_span!("set_up").entered();
    let shared = Arc::new(Shared::new(targets, plan));
    let work = workload::with_type(info, Make(&shared)).map_err(failure_at_set_up)?;
    let mut crew = Crew::hire(&shared, &work)?;

    let mut watch = Watch::new(&shared, control);
    drop(span);
    let (began, measured) = if shared.phase() == Phase::WarmUp {
        let span = tracing::info_span!("warm_up").entered();
        watch.start(Stage::WarmUp);
        crew.gate.wait(|| true);
        crew.watch_until(Some(shared.plan.warmup), &mut watch, patience);
        drop(span);
        watch.start(Stage::Measure);
        (shared.clock.raw(), shared.begin_measuring())
    } else {
        watch.start(Stage::Measure);
        let began = shared.clock.raw();
        crew.gate.wait(|| true);
        (began, true)
    };
    watch.sampler = measured.then(|| watch.sampler());
    let span = tracing::info_span!("measure").entered();
    let interrupted = control.stopped() || crew.watch_until(shared.plan.duration, &mut watch, patience);
    shared.stop();
    let slices = watch.sampler.take().map(|sampler| sampler.finish(watch.done()));

    // Whoever did not move for so long will hardly do so now.
    let missing = crew.collect(if watch.stalled { patience / 6 } else { patience });
    let counters = Snapshot::take().since(&watch.before);
    let rcu_after = rcu::stats();
    let shootdowns = shootdowns::total().zip(watch.shootdowns_before).map(|(after, before)| after - before);
    drop(span);
    control.enter(Stage::TearDown);
    let _span = tracing::info_span!("tear_down").entered();

    let (mut violations, error) = crew.failures(&missing);
    if let (true, Some(error)) = (violations.is_empty(), error) {
        return Err(error);
    }
    if violations.is_empty() {
        violations.extend(validate(&shared));
    }
    let mut recorder = Recorder::new();
    crew.finished.iter().filter(|_| measured).for_each(|thread| recorder.merge(&thread.recorder));
    let calls = |thread: &Finished| thread.recorder.ops.iter().map(|op| op.len()).sum::<u64>();
    let mutators = crew.finished.iter().filter(|thread| measured && thread.worker >= shared.plan.threads);
    let mutator_calls = mutators.map(calls).sum();
    let last = crew.finished.iter().map(|thread| thread.ended).max().unwrap_or(began);
    Ok(Driven {
        recorder,
        mutator_calls,
        seconds: if measured { shared.clock.delta_as_nanos(began, last) as f64 / 1e9 } else { 0.0 },
        interrupted,
        counters,
        slab: shared.targets[0].slab(),
        userfaultfds: shared.targets[0].userfaultfds(),
        rcu_before: watch.rcu_before,
        rcu_after,
        shootdowns,
        checked: shared.live.iter().map(|live| live.checked.load(Ordering::Relaxed)).sum(),
        unchecked_state: shared.live.iter().map(|live| live.unchecked_state.load(Ordering::Relaxed)).sum(),
        violations,
        slices,
        adversary: None,
    })
}

fn failure_at_set_up(fail: Fail) -> RunError {
    RunError::Internal(match fail {
        Fail::Stop => "stopped during set-up".to_owned(),
        Fail::Violation(violation) => violation.to_string(),
        Fail::Error(text) => text,
        Fail::Unsupported(text) => return RunError::Unsupported(text),
    })
}

/// The threads of a run.
struct Crew {
    gate: Arc<Rendezvous>,
    threads: Vec<Option<JoinHandle<()>>>,
    names: Vec<String>,
    done: Receiver<Finished>,
    finished: Vec<Finished>,
}

impl Crew {
    /// Starts them; they wait at the gate.
    fn hire<T: Target>(shared: &Arc<Shared<T>>, work: &Arc<dyn Threads<T>>) -> Result<Crew, RunError> {
        let workers = shared.plan.workers();
        let (sender, done) = unbounded();
        let gate = Arc::new(Rendezvous::new(workers + 1));
        let mut crew = Crew { gate, threads: Vec::new(), names: Vec::new(), done, finished: Vec::new() };
        for worker in 0..workers {
            let ctx = Ctx::new(Arc::clone(shared), worker);
            let (work, gate, sender) = (Arc::clone(work), Arc::clone(&crew.gate), sender.clone());
            crew.names.push(ctx.name());
            match std::thread::Builder::new().name(ctx.name()).spawn(move || thread(ctx, &*work, &gate, &sender)) {
                Ok(thread) => crew.threads.push(Some(thread)),
                Err(error) => {
                    shared.abort();
                    crew.gate.abort();
                    return Err(RunError::Unsupported(format!(
                        "cannot start thread {} of {workers}: {error}; ask for fewer threads or raise `ulimit -u`",
                        worker + 1
                    )));
                }
            }
        }
        Ok(crew)
    }

    /// Until `limit` is over, the run stops by itself, nobody moves any more
    /// for a third of `patience`, or the control stops it (then `true`).
    fn watch_until<T: Target>(
        &mut self,
        limit: Option<Duration>,
        watch: &mut Watch<'_, T>,
        patience: Duration,
    ) -> bool {
        let began = Instant::now();
        while watch.shared.phase() != Phase::Stop {
            if watch.control.stopped() {
                return true;
            }
            let left = limit.map_or(TICK, |limit| limit.saturating_sub(began.elapsed()));
            if left.is_zero() {
                return false;
            }
            if let Ok(finished) = self.done.recv_timeout(left.min(TICK)) {
                self.finished.push(finished);
            }
            watch.look();
            if watch.stalls(patience / 3) {
                return false;
            }
        }
        false
    }

    /// Waits for all threads; returns those that did not come. A thread that
    /// hangs is left behind with what it holds: the run must end all the same.
    fn collect(&mut self, patience: Duration) -> Vec<usize> {
        let deadline = Instant::now() + patience;
        while self.finished.len() < self.threads.len() {
            match self.done.recv_deadline(deadline) {
                Ok(finished) => self.finished.push(finished),
                Err(_) => break,
            }
        }
        for finished in &self.finished {
            if let Some(thread) = self.threads[finished.worker].take() {
                thread.join().expect("a thread that has reported catches its panics");
            }
        }
        (0..self.threads.len()).filter(|&worker| self.threads[worker].is_some()).collect()
    }

    /// The violations, with everyone's events, and the first other error.
    fn failures(&self, missing: &[usize]) -> (Vec<Violation>, Option<RunError>) {
        let mut violations = Vec::new();
        let mut error = None;
        for finished in &self.finished {
            match &finished.result {
                Err(Fail::Violation(violation)) => {
                    let mut violation = (**violation).clone();
                    violation.events = self.events_before(finished);
                    violations.push(violation);
                }
                Err(Fail::Error(text)) => error = error.or(Some(RunError::Internal(text.clone()))),
                Err(Fail::Unsupported(text)) => error = error.or(Some(RunError::Unsupported(text.clone()))),
                Ok(()) | Err(Fail::Stop) => {}
            }
        }
        if !missing.is_empty() && violations.is_empty() {
            let names: Vec<&str> = missing.iter().map(|&worker| self.names[worker].as_str()).collect();
            let because = error.take().map_or(String::new(), |error| format!(" after: {error}"));
            violations.push(at_rest(
                "O5",
                format!("did not come to an end: {}{because}", names.join(", ")),
                &names.join(", "),
            ));
        }
        (violations, error)
    }

    /// The last events of all threads, up to when this one met its violation.
    fn events_before(&self, finished: &Finished) -> Vec<String> {
        let until = finished.log.events().last().map_or(0, |event| event.ns);
        let mut events: Vec<(&str, &Event)> = self
            .finished
            .iter()
            .flat_map(|thread| thread.log.events().map(|event| (self.names[thread.worker].as_str(), event)))
            .filter(|(_, event)| event.ns <= until)
            .collect();
        events.sort_by_key(|(_, event)| event.ns);
        let skip = events.len().saturating_sub(EVENTS);
        events[skip..].iter().map(|(name, event)| format!("{name:<10} {}", event.line())).collect()
    }
}

/// A thread's whole life.
fn thread<T: Target>(mut ctx: Ctx<T>, work: &dyn Threads<T>, gate: &Rendezvous, done: &Sender<Finished>) {
    vmalab::thread::announce();
    trace::enter_worker(ctx.name());
    // Relaxed: the gate passes it on.
    ctx.shared.live[ctx.worker].tid.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
    let pinned = ctx.shared.plan.cpu_of(ctx.worker).map_or(Ok(()), pin::to);
    #[cfg(feature = "races")]
    vmalab::races::adversary::enter_thread(ctx.worker as u64);
    if !gate.wait(|| true) {
        return;
    }
    let result = catch_unwind(AssertUnwindSafe(|| match (pinned, ctx.role) {
        (Err(error), _) => Err(Fail::Unsupported(error.to_string())),
        (_, Role::Fault) => work.fault_thread(&mut ctx),
        (_, Role::Mutator) => work.mutator(&mut ctx),
    }));
    let result = match result {
        Ok(Err(Fail::Stop)) => Ok(()),
        Ok(result) => result,
        Err(panic) => Err(Fail::Error(format!("{} panicked: {}", ctx.name(), panic_text(&*panic)))),
    };
    if result.is_err() {
        ctx.shared.abort();
    }
    let ended = ctx.shared.clock.raw();
    trace::leave_worker();
    let Ctx { worker, recorder, log, shared, .. } = ctx;
    // Before the report: whoever has it may drop the address spaces.
    drop(shared);
    // Fails if the runner has given this thread up.
    let _ = done.send(Finished { worker, recorder, log, result, ended });
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)")
}

/// O4: what must hold at rest, address space by address space.
fn validate<T: Target>(shared: &Shared<T>) -> Option<Violation> {
    shared.targets.iter().enumerate().find_map(|(mm, target)| {
        let panic = catch_unwind(AssertUnwindSafe(|| target.validate())).err()?;
        let mut violation = at_rest("O4", format!("at rest: {}", panic_text(&*panic)), "runner");
        violation.address = format!("{:#x}", target.range().start());
        violation.address_space = mm as u32;
        Some(violation)
    })
}

fn at_rest(oracle: &str, message: String, thread: &str) -> Violation {
    Violation {
        oracle: oracle.to_owned(),
        message,
        address: "0x0".to_owned(),
        address_space: 0,
        incarnation_expected: None,
        incarnation_seen: None,
        events: Vec::new(),
        thread: thread.to_owned(),
    }
}

/// Renews the control's figures.
struct Watch<'a, T> {
    shared: &'a Shared<T>,
    control: &'a Control,
    before: Snapshot,
    rcu_before: rcu::Stats,
    shootdowns_before: Option<u64>,
    touches_before: u64,
    ops_before: u64,
    latencies: Vec<u64>,
    /// While the measured part runs.
    sampler: Option<Sampler>,
    next: Instant,
    /// All that has been done, and since when it has been no more than that.
    moved: (u64, Instant),
    /// Nobody has moved for too long.
    stalled: bool,
}

impl<'a, T: Target> Watch<'a, T> {
    fn new(shared: &'a Shared<T>, control: &'a Control) -> Watch<'a, T> {
        Watch {
            shared,
            control,
            before: Snapshot::take(),
            rcu_before: rcu::stats(),
            shootdowns_before: shootdowns::total(),
            touches_before: 0,
            ops_before: 0,
            latencies: vec![0; BUCKETS],
            sampler: None,
            next: Instant::now(),
            moved: (0, Instant::now()),
            stalled: false,
        }
    }

    /// Whether no thread has done anything for `patience`: a deadlock (O5)
    /// should not take the rest of a long run.
    fn stalls(&mut self, patience: Duration) -> bool {
        let relaxed = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let done = self.sum(|live| relaxed(&live.ops) + relaxed(&live.first_touches) + relaxed(&live.checked));
        if done != self.moved.0 {
            self.moved = (done, Instant::now());
        }
        // Before the first step threads may take their time.
        self.stalled = done > 0 && self.moved.1.elapsed() > patience;
        self.stalled
    }

    fn sum(&self, of: impl Fn(&crate::measure::Live) -> u64) -> u64 {
        self.shared.live.iter().map(|live| of(live)).sum()
    }

    /// Figures are of this stage from now on.
    fn start(&mut self, stage: Stage) {
        self.control.enter(stage);
        self.before = Snapshot::take();
        self.rcu_before = rcu::stats();
        self.shootdowns_before = shootdowns::total();
        self.touches_before = self.sum(|live| live.first_touches.load(Ordering::Relaxed));
        self.ops_before = self.sum(|live| live.ops.load(Ordering::Relaxed));
    }

    /// What the threads have done so far.
    fn done(&self) -> Done {
        let relaxed = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let touches = self.sum(|live| relaxed(&live.first_touches));
        Done {
            faults: if T::COUNTS { Snapshot::take().get(Counter::Fault) } else { touches },
            ops: self.sum(|live| relaxed(&live.ops)),
            by_thread: self.shared.live.iter().map(|live| relaxed(&live.first_touches) + relaxed(&live.ops)).collect(),
        }
    }

    /// Begins to cut the run into slices.
    fn sampler(&self) -> Sampler {
        let (plan, live) = (&self.shared.plan, &self.shared.live);
        let place = |worker: usize| Place { tid: live[worker].tid.load(Ordering::Relaxed), cpu: plan.cpu_of(worker) };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Sampler::start((0..plan.workers()).map(place).collect(), cpus, self.done())
    }

    fn look(&mut self) {
        if let Some(mut sampler) = self.sampler.take() {
            sampler.look(|| self.done());
            self.sampler = Some(sampler);
        }
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + 2 * TICK;
        let (faults, fallbacks) = if T::COUNTS {
            let diff = Snapshot::take().since(&self.before);
            (diff.get(Counter::Fault), diff.vma_lock_abort() + diff.get(Counter::VmaLockRetry))
        } else {
            (self.sum(|live| live.first_touches.load(Ordering::Relaxed)) - self.touches_before, 0)
        };
        let latencies: Vec<u64> =
            (0..BUCKETS).map(|bucket| self.sum(|live| live.latencies[bucket].load(Ordering::Relaxed))).collect();
        let recent: Vec<u64> = latencies.iter().zip(&self.latencies).map(|(new, old)| new - old).collect();
        self.latencies = latencies;
        let ops = self.sum(|live| live.ops.load(Ordering::Relaxed)) - self.ops_before;
        let checked = self.sum(|live| live.checked.load(Ordering::Relaxed));
        self.control.faults.store(faults, Ordering::Relaxed);
        self.control.fallbacks.store(fallbacks, Ordering::Relaxed);
        self.control.ops.store(ops, Ordering::Relaxed);
        self.control.p99.store(p99(&recent).unwrap_or(0), Ordering::Relaxed);
        self.control.checked.store(checked, Ordering::Relaxed);
    }
}
