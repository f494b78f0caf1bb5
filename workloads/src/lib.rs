//! vmalab's stress workloads, and the runner that drives, measures and
//! verifies them.
//!
//! [`run`] takes a [`StressConfig`] and gives a [`StressReport`]; a
//! [`Control`] stops and watches it. Nothing here prints.

#![deny(unsafe_code)]

#[cfg(feature = "races")]
mod adversary;
mod config;
mod control;
mod ctx;
mod error;
mod measure;
mod pace;
mod pin;
mod report;
mod rng;
mod run;
mod runner;
mod shared;
mod shootdowns;
mod slices;
mod target;
mod trace;
mod verify;
mod workload;

pub use config::{Backend, DEFAULT_DURATION, Delivery, Lock, Rwsem, StressConfig, UnknownName};
pub use control::{Control, Progress, Stage};
pub use error::RunError;
pub use report::{
    AbortReasons, AdversaryReport, AttributionReport, Cdf, DelaysReport, Distribution, FaultOutcomes, FloorReport,
    HostCallsReport, MmapLockReport, PhaseReport, RcuReport, SlabReport, StressReport, VerifyReport, Violation,
    VmaLockReport,
};
#[cfg(feature = "conflicts")]
pub use run::record_accesses;
pub use run::{run, run_recorded};
pub use slices::{Slice, SlicesReport};
#[cfg(feature = "conflicts")]
pub use target::recorded::Operation;
pub use trace::timeline::{TIMELINE_EVENTS, Timeline};
pub use workload::{WorkloadInfo, find, list};

#[cfg(test)]
mod tests;
