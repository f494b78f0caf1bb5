//! What to run: [`StressConfig`] and the names of its choices.
//!
//! Filled in by the command (or a test) and given to [`run`](crate::run), which
//! checks it as a whole.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Declares an enum whose values have names on the command line and in JSON.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident as $what:literal { $($(#[$vdoc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $type { $($(#[$vdoc])* #[serde(rename = $name)] $variant,)* }

        impl $type {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [$type] = &[$($type::$variant,)*];

            /// The name on the command line and in JSON.
            pub const fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<$type, UnknownName> {
                $type::ALL.iter().copied().find(|value| value.name() == name).ok_or_else(|| UnknownName {
                    what: $what,
                    name: name.to_owned(),
                    known: $type::ALL.iter().map(|value| value.name()).collect(),
                })
            }
        }
    };
}

named! {
    /// How a fault gets a stable VMA (`--lock`).
    Lock as "lock" {
        /// The mmap lock for reading, as up to Linux 6.3: the baseline.
        Mmap = "mmap",
        /// Per-VMA locks, VMAs freed after a grace period: Linux 6.4.
        Rcu = "rcu",
        /// Per-VMA locks in a type-safe slab: the seed.
        TypeSafe = "typesafe",
        /// Per-VMA reference counts in a type-safe slab: Linux 6.15 and later.
        RefCount = "refcount",
    }
}

named! {
    /// Whose address space the workload runs in (`--backend`).
    Backend as "backend" {
        /// vmalab's own.
        Emulated = "emulated",
        /// The host's mmap, munmap and mprotect.
        Native = "native",
    }
}

named! {
    /// The algorithm of the mmap lock (`--rwsem`).
    Rwsem as "rwsem" {
        /// Our own.
        Futex = "futex",
        /// The kernel's rwsem.
        Kernel = "kernel",
        /// `std::sync::RwLock`.
        Std = "std",
        /// `parking_lot::RawRwLock`.
        ParkingLot = "parking_lot",
    }
}

impl Rwsem {
    /// As the core names it.
    pub(crate) fn of_core(self) -> vmalab::mmap_lock::Rwsem {
        match self {
            Rwsem::Futex => vmalab::mmap_lock::Rwsem::Futex,
            Rwsem::Kernel => vmalab::mmap_lock::Rwsem::Kernel,
            Rwsem::Std => vmalab::mmap_lock::Rwsem::Std,
            Rwsem::ParkingLot => vmalab::mmap_lock::Rwsem::ParkingLot,
        }
    }
}

named! {
    /// How a fault reaches vmalab (`--delivery`).
    Delivery as "delivery" {
        /// SIGBUS on the faulting thread.
        Sigbus = "sigbus",
        /// userfaultfd's queue, read by handler threads.
        Queue = "queue",
        /// No fault at all: each access is a direct call.
        Software = "software",
    }
}

/// A name that is none of the choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: Vec<&'static str>,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {} `{}` (choose {})", self.what, self.name, self.known.join(", "))
    }
}

impl std::error::Error for UnknownName {}

/// One run of one workload.
#[derive(Clone, Debug)]
pub struct StressConfig {
    /// Name of the workload, one of [`list`](crate::list).
    pub workload: String,
    /// `--lock`.
    pub lock: Lock,
    /// `--rwsem`; of no meaning natively.
    pub rwsem: Rwsem,
    /// `--backend`.
    pub backend: Backend,
    /// `--delivery`; of no meaning natively.
    pub delivery: Delivery,
    /// `--handlers`: threads that serve the queue, per address space, in
    /// [`Delivery::Queue`].
    pub handlers: u32,
    /// `--threads`: threads that fault. At least 1.
    pub threads: u32,
    /// `--mutators`: threads that only map, protect and unmap. `None`: as many
    /// as the workload has by itself ([`WorkloadInfo::mutators`](crate::WorkloadInfo)):
    /// one where mutators are part of it, none where each thread maps for
    /// itself. There a number adds threads that map and unmap on the side.
    pub mutators: Option<u32>,
    /// `--mutator-rate`: calls a second that each mutator makes at most. `None`:
    /// as many as it can. With a limit that both locks reach, what faults gain by
    /// a lock is not spent by mutators that gain as well.
    pub mutator_rate: Option<u32>,
    /// `--address-spaces`. A workload may need more
    /// ([`WorkloadInfo::min_address_spaces`](crate::WorkloadInfo)) and then gets them; the
    /// report says how many there were.
    pub address_spaces: u32,
    /// `--duration`, without the warm-up. `None` and no `ops`: five seconds.
    pub duration: Option<Duration>,
    /// `--ops`: stop after this many calls of mmap, munmap and mprotect
    /// by all threads together, without the warm-up's. With both, whichever comes first.
    pub ops: Option<u64>,
    /// `--warmup`: run so long before measuring; checked but not counted.
    pub warmup: Duration,
    /// `--seed` of every thread's stream of choices.
    pub seed: u64,
    /// `--verify`: check every access.
    pub verify: bool,
    /// `--region`: bytes of each address space. `None`: what the workload needs.
    pub region: Option<u64>,
    /// `--fault-around`: pages made present by one fault: a power of two up to 64.
    pub fault_around: u32,
    /// `--ready-pages`: zeroed pages kept ready for fault-around of stores. 0: none.
    pub ready_pages: u32,
    /// `--pin`: each thread stays on one CPU, the fault threads first and then
    /// the mutators on the CPUs in turn.
    pub pin: bool,
    /// `--adversary`: forced reuse, poison on free, random delays. Only in
    /// builds with the feature `races`.
    pub adversary: bool,
    /// `--mutant`: the check that is left out.
    #[cfg(feature = "races")]
    pub mutant: Option<vmalab::races::Mutant>,
}

impl StressConfig {
    /// The defaults, for a workload.
    pub fn new(workload: impl Into<String>) -> StressConfig {
        StressConfig { workload: workload.into(), ..StressConfig::default() }
    }

    /// When the measured part ends, with the default filled in.
    pub fn effective_duration(&self) -> Option<Duration> {
        match (self.duration, self.ops) {
            (None, None) => Some(DEFAULT_DURATION),
            (duration, _) => duration,
        }
    }
}

/// How long a run takes if nothing else is said.
pub const DEFAULT_DURATION: Duration = Duration::from_secs(5);

impl Default for StressConfig {
    fn default() -> StressConfig {
        StressConfig {
            workload: "page-fault".to_owned(),
            lock: Lock::TypeSafe,
            rwsem: Rwsem::Futex,
            backend: Backend::Emulated,
            delivery: Delivery::Sigbus,
            handlers: 1,
            threads: 2,
            mutators: None,
            mutator_rate: None,
            address_spaces: 1,
            duration: None,
            ops: None,
            warmup: Duration::from_millis(500),
            seed: 1,
            verify: false,
            region: None,
            fault_around: 1,
            ready_pages: 0,
            pin: false,
            adversary: false,
            #[cfg(feature = "races")]
            mutant: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_both_ways() {
        for &lock in Lock::ALL {
            assert_eq!(lock.to_string().parse::<Lock>().unwrap(), lock);
        }
        for &delivery in Delivery::ALL {
            assert_eq!(delivery.name().parse::<Delivery>().unwrap(), delivery);
        }
        let error = "spin".parse::<Lock>().unwrap_err();
        assert_eq!(error.to_string(), "unknown lock `spin` (choose mmap, rcu, typesafe, refcount)");
    }

    #[test]
    fn a_run_without_a_limit_takes_five_seconds() {
        let mut config = StressConfig::new("local");
        assert_eq!(config.effective_duration(), Some(DEFAULT_DURATION));
        config.ops = Some(10);
        assert_eq!(config.effective_duration(), None);
    }
}
