//! [`run`]: from a configuration to targets, and from what the runner found to
//! a report.

use crate::config::{Backend, Delivery, Lock, StressConfig};
use crate::measure::Recorder;
use crate::pin;
use crate::report::{
    self, AbortReasons, Cdf, Distribution, FaultOutcomes, HostCallsReport, MmapLockReport, RcuReport, SlabReport,
    StressReport, VerifyReport, VmaLockReport,
};
use crate::runner::{self, Driven};
use crate::shared::Plan;
use crate::target::faults::Faults;
use crate::target::native::Native;
#[cfg(feature = "conflicts")]
use crate::target::recorded::{Operation, Recorded, Tape};
use crate::target::soft::Soft;
use crate::target::{SlabUse, Target};
use crate::trace::{self, timeline, timeline::Timeline};
use crate::verify::WORKERS_MAX;
use crate::workload::{self, Visit, Workload, WorkloadInfo};
use crate::{Control, RunError, measure};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmalab::addr::PAGE_SIZE;
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::pager::AnyPager;
use vmalab::stats::{self, Counter, Snapshot, Wait};

/// How long a thread may take to notice the end of the run before it counts as
/// hung (O5). Longer than any single round of any workload.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pages that one fault may make present.
const FAULT_AROUND_MAX: u32 = 64;

/// Smallest region that is made if none is asked for.
const REGION_MIN_BYTES: usize = 64 << 20;

/// Runs one workload to its end and says what was found. A violation is in the
/// report, not an error. Counters belong to the process: one run at a time,
/// later callers wait.
///
/// # Errors
/// [`RunError`]: the configuration, the machine, or the run itself.
pub fn run(config: &StressConfig, control: &Control) -> Result<StressReport, RunError> {
    let checked = Checked::of(config)?;
    let _turn = one_at_a_time();
    checked.run(config, control)
}

/// [`run`], and the timeline of its last `events` trace points of each thread.
///
/// # Errors
/// As [`run`]; natively there is nothing to record.
pub fn run_recorded(
    config: &StressConfig,
    control: &Control,
    events: usize,
) -> Result<(StressReport, Timeline), RunError> {
    let checked = Checked::of(config)?;
    if config.backend == Backend::Native {
        return usage("a timeline shows vmalab's locks and faults; --backend native has none".to_owned());
    }
    let _turn = one_at_a_time();
    timeline::start(events);
    let result = checked.run(config, control);
    let timeline = Timeline::take();
    Ok((result?, timeline))
}

/// Counters, clock and trace points belong to the process.
pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one workload in software delivery and returns what the core touched in
/// its first `most` calls and accesses, in about the order in which they ended.
/// The run ends when it has them. `--delivery` and `--verify` have no say.
///
/// # Errors
/// As [`run`]; a violation too.
#[cfg(feature = "conflicts")]
pub fn record_accesses(config: &StressConfig, most: usize) -> Result<Vec<Operation>, RunError> {
    let config = StressConfig { delivery: Delivery::Software, verify: false, ..config.clone() };
    let checked = Checked::of(&config)?;
    vmalab::mmap_lock::set_rwsem(config.rwsem.of_core());
    match config.lock {
        Lock::Mmap => checked.recorded::<MmapOnly>(most),
        Lock::Rcu => checked.recorded::<Rcu>(most),
        Lock::TypeSafe => checked.recorded::<TypeSafe>(most),
        Lock::RefCount => checked.recorded::<RefCount>(most),
    }
}

/// Gives the core a clock, for waits.
fn start_clock() {
    fn now_ns() -> u64 {
        let clock = trace::clock();
        clock.delta_as_nanos(0, clock.raw())
    }
    trace::install();
    stats::set_clock(now_ns);
}

/// A configuration that makes sense.
struct Checked {
    info: &'static WorkloadInfo,
    plan: Plan,
    region_bytes: usize,
}

fn usage<V>(text: String) -> Result<V, RunError> {
    Err(RunError::Usage(text))
}

impl Checked {
    fn run(&self, config: &StressConfig, control: &Control) -> Result<StressReport, RunError> {
        let (lock, delivery) = (config.lock.name(), config.delivery.name());
        let _span = tracing::info_span!("run", workload = self.info.name, lock, delivery).entered();
        start_clock();
        #[cfg(feature = "races")]
        let _rules = crate::adversary::Rules::set(config.mutant, config.seed);
        let driven = match config.backend {
            Backend::Native => self.drive(vec![Native::new(self.region_bytes)], control),
            Backend::Emulated => {
                vmalab::mmap_lock::set_rwsem(config.rwsem.of_core());
                self.emulated(config, control)
            }
        }?;
        Ok(self.report(config, driven))
    }

    fn of(config: &StressConfig) -> Result<Checked, RunError> {
        let Some(info) = workload::find(&config.workload) else {
            let names: Vec<&str> = workload::list().iter().map(|workload| workload.name).collect();
            return usage(format!("unknown workload `{}` (choose {})", config.workload, names.join(", ")));
        };
        let name = info.name;
        if config.threads == 0 {
            return usage("--threads must be at least 1".to_owned());
        }
        if config.address_spaces == 0 {
            return usage("--address-spaces must be at least 1".to_owned());
        }
        let around = config.fault_around;
        if !around.is_power_of_two() || around > FAULT_AROUND_MAX {
            return usage(format!("--fault-around {around}: a power of two up to {FAULT_AROUND_MAX} is wanted"));
        }
        if config.ready_pages > 0 && (around == 1 || config.verify) {
            return usage("--ready-pages serves --fault-around of plain zero pages: without --verify".to_owned());
        }
        let mutators = config.mutators.unwrap_or(info.mutators);
        if mutators < info.min_mutators {
            return usage(format!(
                "{name} needs --mutators {} or more: they make what its threads access",
                info.min_mutators
            ));
        }
        if config.mutator_rate.is_some() && mutators == 0 {
            return usage("--mutator-rate is for mutators, and there are none: add --mutators 1 or more".to_owned());
        }
        let workers = config.threads as usize + mutators as usize;
        if workers > WORKERS_MAX {
            return usage(format!("{workers} threads and mutators are too many: at most {WORKERS_MAX} together"));
        }
        if config.adversary {
            if cfg!(not(feature = "races")) {
                return Err(RunError::Unsupported("--adversary needs a build with the feature `races`".to_owned()));
            }
            if config.backend == Backend::Native {
                return usage("--adversary works on vmalab's own locks; --backend native has none of them".to_owned());
            }
        }
        if config.backend == Backend::Native {
            if !info.native {
                return usage(format!(
                    "{name} makes no sense with --backend native: it accesses memory that it must not, which only the \
                     emulated backend answers with an error"
                ));
            }
            if config.address_spaces != 1 {
                return usage("--backend native has one address space: the process's own".to_owned());
            }
        }
        if config.backend == Backend::Emulated && config.delivery == Delivery::Queue && config.handlers == 0 {
            return usage("--delivery queue needs --handlers 1 or more".to_owned());
        }
        let plan = Plan {
            threads: config.threads as usize,
            mutators: mutators as usize,
            mutator_rate: config.mutator_rate,
            address_spaces: config.address_spaces.max(info.min_address_spaces) as usize,
            duration: config.effective_duration(),
            ops: config.ops,
            warmup: config.warmup,
            seed: config.seed,
            verify: config.verify,
            cpus: config.pin.then(pin::cpus).transpose()?,
        };
        let region_bytes = region_bytes(config, info, &plan)?;
        Ok(Checked { info, plan, region_bytes })
    }

    fn drive<T: Target>(&self, targets: Vec<T>, control: &Control) -> Result<Driven, RunError> {
        runner::drive(self.info, targets, self.plan.clone(), control, PATIENCE)
    }

    fn emulated(&self, config: &StressConfig, control: &Control) -> Result<Driven, RunError> {
        match config.lock {
            Lock::Mmap => self.with_scheme::<MmapOnly>(config, control),
            Lock::Rcu => self.with_scheme::<Rcu>(config, control),
            Lock::TypeSafe => self.with_scheme::<TypeSafe>(config, control),
            Lock::RefCount => self.with_scheme::<RefCount>(config, control),
        }
    }

    fn with_scheme<S: LockScheme>(&self, config: &StressConfig, control: &Control) -> Result<Driven, RunError> {
        let pager = if config.verify { AnyPager::Stamped } else { AnyPager::Zero };
        let (spaces, bytes) = (0..self.plan.address_spaces, self.region_bytes);
        let (around, ready) = (config.fault_around as usize, config.ready_pages as usize);
        let faults = |handlers| -> Result<Vec<Faults<S>>, RunError> {
            let space = |_| Ok(Faults::new(bytes, handlers, pager, ready)?.fault_around(around));
            spaces.clone().map(space).collect()
        };
        match config.delivery {
            Delivery::Software => {
                let spaces: Result<Vec<_>, RunError> =
                    spaces.map(|_| Ok(Soft::<S>::new(bytes, pager)?.fault_around(around))).collect();
                self.launch::<S, _>(config, spaces?, pager, control)
            }
            Delivery::Sigbus => self.launch::<S, _>(config, faults(None)?, pager, control),
            Delivery::Queue => {
                let spaces = faults(Some(config.handlers as usize))?;
                self.launch::<S, _>(config, spaces, pager, control)
            }
        }
    }

    #[cfg(feature = "conflicts")]
    fn recorded<S: LockScheme>(&self, most: usize) -> Result<Vec<Operation>, RunError> {
        let (tape, control) = (Tape::new(most), Control::new());
        let space = |_| Ok(Recorded::new(Soft::<S>::new(self.region_bytes, AnyPager::Zero)?, &tape));
        let spaces: Result<Vec<_>, RunError> = (0..self.plan.address_spaces).map(space).collect();
        let spaces = spaces?;
        let driven = std::thread::scope(|scope| {
            let run = scope.spawn(|| self.drive(spaces, &control));
            while !run.is_finished() {
                if tape.is_full() {
                    control.stop();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        match driven.violations.first() {
            Some(violation) => Err(RunError::Internal(violation.message.clone())),
            None => Ok(tape.take()),
        }
    }

    /// With the adversary, if it was asked for.
    #[cfg_attr(
        not(feature = "races"),
        allow(clippy::extra_unused_type_parameters, reason = "the adversary's twins have the same scheme")
    )]
    fn launch<S: LockScheme, T: Target>(
        &self,
        config: &StressConfig,
        targets: Vec<T>,
        pager: AnyPager,
        control: &Control,
    ) -> Result<Driven, RunError> {
        #[cfg(feature = "races")]
        if config.adversary {
            return crate::adversary::drive::<S, T>(targets, pager, config.seed, |targets| {
                self.drive(targets, control)
            });
        }
        let _ = (config, pager);
        self.drive(targets, control)
    }

    fn report(&self, config: &StressConfig, driven: Driven) -> StressReport {
        let emulated = config.backend == Backend::Emulated;
        let Driven { recorder, seconds, interrupted, counters, violations, .. } = &driven;
        let per_second = |count: u64| if *seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let faults = if emulated { counters.get(Counter::Fault) } else { recorder.first_touches };
        let pages = if emulated { counters.get(Counter::PageInstalled) } else { recorder.first_touches };
        let ops: BTreeMap<String, u64> =
            measure::Op::ALL.iter().map(|&op| (op.name().to_owned(), recorder.ops[op as usize].len())).collect();
        let op_ns = measure::Op::ALL
            .iter()
            .filter_map(|&op| Some((op.name().to_owned(), Distribution::of(&recorder.ops[op as usize])?)));
        let native = "native".to_owned();
        StressReport {
            schema: 1,
            command: "stress".to_owned(),
            workload: self.info.name.to_owned(),
            lock: if emulated { config.lock.to_string() } else { native.clone() },
            rwsem: emulated.then(|| config.rwsem.to_string()),
            backend: config.backend.to_string(),
            delivery: if emulated { config.delivery.to_string() } else { native },
            handlers: (emulated && config.delivery == Delivery::Queue).then_some(config.handlers),
            threads: self.plan.threads as u32,
            mutators: self.plan.mutators as u32,
            mutator_rate: self.plan.mutator_rate,
            address_spaces: self.plan.address_spaces as u32,
            region_bytes: self.region_bytes as u64,
            userfaultfds: driven.userfaultfds.map(|count| count as u32),
            seed: config.seed,
            seconds: *seconds,
            interrupted: *interrupted,
            faults: Some(faults),
            faults_per_s: Some(per_second(faults)),
            pages: Some(pages),
            touches: recorder.touches,
            fault_ns: Distribution::of(&recorder.faults),
            cdf_ns: cdfs(recorder),
            pinned: config.pin,
            slices: driven.slices.clone(),
            floor: None,
            attribution: recorder.attribution.report(),
            ops_per_s: per_second(ops.values().sum()),
            mutator_ops_per_s: (self.plan.mutators > 0).then(|| per_second(driven.mutator_calls)),
            ops,
            op_ns: op_ns.collect(),
            vma_lock: emulated.then(|| vma_lock(counters)),
            mmap_lock: emulated.then(|| mmap_lock(counters)),
            slab: emulated.then(|| slab(counters, driven.slab)),
            host_calls: emulated.then(|| host_calls(counters)),
            tlb_shootdowns: driven.shootdowns,
            rcu: emulated.then(|| RcuReport {
                grace_periods: driven.rcu_after.grace_periods - driven.rcu_before.grace_periods,
                backlog: driven.rcu_after.backlog as u64,
            }),
            fault_outcomes: emulated.then(|| FaultOutcomes {
                exists: counters.get(Counter::PageExists),
                segv: counters.get(Counter::FaultSegv),
                bus: counters.get(Counter::FaultBus),
            }),
            adversary: driven.adversary.clone(),
            // A hung thread or a broken invariant at rest is told without --verify too.
            verify: (config.verify || !violations.is_empty()).then(|| VerifyReport {
                checked: driven.checked,
                unchecked_state: driven.unchecked_state,
                violations: violations.len() as u64,
                first: violations.first().cloned(),
            }),
        }
    }
}

/// The region's size: as asked for, if the workload fits, or twice its need.
fn region_bytes(config: &StressConfig, info: &WorkloadInfo, plan: &Plan) -> Result<usize, RunError> {
    struct Need<'a>(&'a Plan);
    impl Visit for Need<'_> {
        type Out = usize;
        fn visit<W: Workload>(self) -> usize {
            W::region_bytes(self.0)
        }
    }
    let need = workload::with_type(info, Need(plan));
    match config.region {
        None => Ok((2 * need).next_power_of_two().max(REGION_MIN_BYTES)),
        Some(asked) => {
            let bytes = usize::try_from(asked).unwrap_or(usize::MAX) & !(PAGE_SIZE - 1);
            if bytes < need {
                return usage(format!("--region {asked} is too small: {} needs {need} bytes here", info.name));
            }
            Ok(bytes)
        }
    }
}

fn cdfs(recorder: &Recorder) -> BTreeMap<String, Cdf> {
    let mmap = measure::Op::Mmap;
    let of = [("fault", &recorder.faults), (mmap.name(), &recorder.ops[mmap as usize])];
    of.into_iter().filter(|(_, all)| !all.is_empty()).map(|(name, all)| (name.to_owned(), report::cdf(all))).collect()
}

fn vma_lock(counters: &Snapshot) -> VmaLockReport {
    VmaLockReport {
        success: counters.get(Counter::VmaLockSuccess),
        abort: counters.vma_lock_abort(),
        retry: counters.get(Counter::VmaLockRetry),
        miss: counters.get(Counter::VmaLockMiss),
        abort_reasons: AbortReasons {
            no_vma: counters.get(Counter::AbortNoVma),
            write_locked_early: counters.get(Counter::AbortWriteLockedEarly),
            contended: counters.get(Counter::AbortContended),
            write_locked_late: counters.get(Counter::AbortWriteLockedLate),
            other_mm: counters.get(Counter::AbortOtherMm),
            other_range: counters.get(Counter::AbortOtherRange),
            miss_limit: counters.get(Counter::AbortMissLimit),
        },
    }
}

fn mmap_lock(counters: &Snapshot) -> MmapLockReport {
    let waits = |wait| {
        let mut histogram = measure::histogram();
        counters.waits(wait).for_each(|(ns, times)| histogram.saturating_record_n(ns.max(1), times));
        Distribution::of(&histogram)
    };
    MmapLockReport {
        read: counters.get(Counter::MmapLockRead),
        write: counters.get(Counter::MmapLockWrite),
        read_wait_ns: waits(Wait::MmapRead),
        write_wait_ns: waits(Wait::MmapWrite),
    }
}

fn slab(counters: &Snapshot, used: Option<SlabUse>) -> SlabReport {
    SlabReport {
        allocated: counters.get(Counter::VmaAllocated),
        reused: counters.get(Counter::VmaReused),
        reused_other_mm: counters.get(Counter::VmaReusedOtherMm),
        slabs: used.map(|used| used.slabs),
        object_bytes: used.map(|used| used.object_bytes),
    }
}

fn host_calls(counters: &Snapshot) -> HostCallsReport {
    HostCallsReport {
        mmap: counters.get(Counter::HostMmap),
        munmap: counters.get(Counter::HostMunmap),
        mprotect: counters.get(Counter::HostMprotect),
        mremap: counters.get(Counter::HostMremap),
        madvise: counters.get(Counter::HostMadvise),
        uffd: counters.get(Counter::HostUffd),
    }
}
