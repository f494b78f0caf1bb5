//! From what was typed to what is run: [`StressConfig`]s, or why not.

use crate::args::{BackendArg, CompareArgs, DeliveryArg, ProfileArgs, RunArgs, RwsemArg, StressArgs};
use crate::failure::Failure;
use crate::names::unknown;
use crate::units;
#[cfg(feature = "races")]
use vmalab::races::Mutant;
use vmalab_workloads::{Backend, Delivery, Lock, Rwsem, StressConfig};

/// Most addresses that a run may reserve. A process has 128T, and beside each
/// region lies its twin.
const MOST_ADDRESSES: u64 = 32 << 40;
const PAGE_SIZE: u64 = 4096;

/// The line for what has a name but no code yet.
pub fn not_in_this_build(what: &str) -> Failure {
    Failure::cannot(format!("{what} is not in this build yet; 'vmalab --help' lists what is"))
}

/// What `stress` runs.
pub fn stress(args: &StressArgs) -> Result<StressConfig, Failure> {
    single("stress", &args.run, args.lock.as_deref(), args.backend)
}

/// What `profile` runs.
pub fn profile(args: &ProfileArgs) -> Result<StressConfig, Failure> {
    single("profile", &args.run, args.lock.as_deref(), args.backend)
}

fn single(command: &str, run: &RunArgs, lock_name: Option<&str>, backend: BackendArg) -> Result<StressConfig, Failure> {
    let mut config = shared(command, run)?;
    if let Some(name) = lock_name {
        config.lock = lock(name)?;
    }
    config.backend = match backend {
        BackendArg::Emulated => Backend::Emulated,
        BackendArg::Native => {
            check_native(&config.workload)?;
            Backend::Native
        }
    };
    Ok(config)
}

/// A subject of `compare`: its name and what it runs in each round.
#[derive(Debug)]
pub struct Subject {
    /// A lock, or `native`.
    pub name: String,
    /// Its run.
    pub config: StressConfig,
}

/// The subjects of `compare` and which of them is the baseline.
#[derive(Debug)]
pub struct Comparison {
    /// At least two, all different.
    pub subjects: Vec<Subject>,
    /// Position of the baseline in `subjects`.
    pub baseline: usize,
}

/// What `compare` runs.
pub fn compare(args: &CompareArgs) -> Result<Comparison, Failure> {
    if args.backend == BackendArg::Native {
        return Err(Failure::usage(
            "compare runs locks, and the host as the subject 'native': try --locks mmap,typesafe,native",
        ));
    }
    let config = StressConfig { pin: !args.run.no_pin, ..shared("compare", &args.run)? };
    let names = subject_names(args);
    let mut subjects: Vec<Subject> = Vec::new();
    for name in &names {
        if subjects.iter().any(|subject| subject.name == *name) {
            return Err(Failure::usage(format!("'{name}' is named twice: name each subject once")));
        }
        subjects.push(subject(&config, name)?);
    }
    if subjects.len() < 2 {
        return Err(Failure::usage(format!(
            "'{}' is the only subject: name one more, for example --locks mmap,typesafe",
            names.join(",")
        )));
    }
    let baseline = args.baseline.as_deref().unwrap_or("mmap");
    let baseline = names.iter().position(|name| name == baseline).unwrap_or(0);
    Ok(Comparison { subjects, baseline })
}

/// The subjects as named, the baseline among them.
fn subject_names(args: &CompareArgs) -> Vec<String> {
    let baseline = args.baseline.clone();
    let mut names = match &args.lock {
        Some(lock) => vec![baseline.clone().unwrap_or_else(|| "mmap".to_owned()), lock.clone()],
        None if args.locks.is_empty() => Lock::ALL.iter().map(|lock| lock.name().to_owned()).collect(),
        None => args.locks.iter().map(|name| name.trim().to_owned()).collect(),
    };
    if let Some(baseline) = baseline.filter(|baseline| !names.contains(baseline)) {
        names.insert(0, baseline);
    }
    names
}

fn subject(config: &StressConfig, name: &str) -> Result<Subject, Failure> {
    let mut config = config.clone();
    if name == Backend::Native.name() {
        check_native(&config.workload)?;
        config.backend = Backend::Native;
    } else {
        config.lock = lock(name)?;
    }
    Ok(Subject { name: name.to_owned(), config })
}

/// Some workloads touch on purpose what is not mapped: the host would kill them.
fn check_native(workload: &str) -> Result<(), Failure> {
    if vmalab_workloads::find(workload).is_some_and(|workload| workload.native) {
        return Ok(());
    }
    let native = vmalab_workloads::list().iter().filter(|workload| workload.native);
    let names: Vec<&str> = native.map(|workload| workload.name).collect();
    Err(Failure::usage(format!("'{workload}' cannot run natively; these can: {}", names.join(", "))))
}

/// The lock of that name.
pub fn lock(name: &str) -> Result<Lock, Failure> {
    if let Ok(lock) = name.parse() {
        return Ok(lock);
    }
    let known: Vec<&str> = Lock::ALL.iter().map(|lock| lock.name()).collect();
    Err(unknown("lock", name, &known))
}

/// What `stress` and `compare` (`command`) share.
fn shared(command: &str, args: &RunArgs) -> Result<StressConfig, Failure> {
    let workloads: Vec<&str> = vmalab_workloads::list().iter().map(|workload| workload.name).collect();
    if !workloads.contains(&args.workload.as_str()) {
        return Err(unknown("workload", &args.workload, &workloads));
    }
    if args.adversary && cfg!(not(feature = "races")) {
        return Err(Failure::cannot(format!(
            "--adversary is not in this build: run 'cargo run --release --features races -- {command} {} --adversary'",
            args.workload
        )));
    }
    let delivery = match args.delivery {
        DeliveryArg::Sigbus => Delivery::Sigbus,
        DeliveryArg::Queue => Delivery::Queue,
        DeliveryArg::Software => Delivery::Software,
    };
    if args.handlers.is_some() && delivery != Delivery::Queue {
        return Err(Failure::usage(format!(
            "--handlers is for the handler threads of '--delivery queue'; {delivery} delivery has none"
        )));
    }
    if let Some(region) = args.region {
        check_region(region, args.address_spaces)?;
    }
    let rwsem = match args.rwsem {
        None | Some(RwsemArg::Futex) => Rwsem::Futex,
        Some(RwsemArg::Kernel) => Rwsem::Kernel,
        Some(RwsemArg::Std) => Rwsem::Std,
        Some(RwsemArg::ParkingLot) => Rwsem::ParkingLot,
    };
    let defaults = StressConfig::new(&args.workload);
    Ok(StressConfig {
        rwsem,
        delivery,
        handlers: args.handlers.unwrap_or(defaults.handlers),
        threads: args.threads,
        mutators: args.mutators,
        mutator_rate: args.mutator_rate,
        address_spaces: args.address_spaces,
        duration: args.duration,
        ops: args.ops,
        warmup: args.warmup.unwrap_or(defaults.warmup),
        seed: args.seed,
        verify: args.verify,
        region: args.region,
        fault_around: args.fault_around.unwrap_or(defaults.fault_around),
        ready_pages: args.ready_pages.unwrap_or(defaults.ready_pages),
        pin: args.pin,
        adversary: args.adversary,
        #[cfg(feature = "races")]
        mutant: args.mutant.as_deref().map(mutant).transpose()?,
        ..defaults
    })
}

#[cfg(feature = "races")]
fn mutant(name: &str) -> Result<Mutant, Failure> {
    let found = Mutant::ALL.iter().copied().find(|mutant| mutant.name().eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let known: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        unknown("mutant", name, &known)
    })
}

fn check_region(region: u64, address_spaces: u32) -> Result<(), Failure> {
    if region == 0 || !region.is_multiple_of(PAGE_SIZE) {
        return Err(Failure::usage(format!("--region {region} is not a whole number of 4K pages: try --region 64M")));
    }
    let most = MOST_ADDRESSES / u64::from(address_spaces);
    if region > most {
        let most = 1_u64 << most.ilog2();
        let each = if address_spaces == 1 { String::new() } else { format!(" for each of {address_spaces}") };
        return Err(Failure::usage(format!(
            "--region {} is more than a process has addresses for: take {} or less{each}",
            units::size(region),
            units::size(most),
        )));
    }
    Ok(())
}
