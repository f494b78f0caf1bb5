//! vmalab's stress workloads, and the runner that drives, measures and
//! verifies them.
//!
//! [`run`] takes a [`StressConfig`] and gives a [`StressReport`]; a
//! [`Control`] stops and watches it. Nothing here prints.

#![deny(unsafe_code)]

mod config;
mod control;
mod error;
mod report;
mod workload;

pub use config::{Backend, DEFAULT_DURATION, Delivery, Lock, StressConfig, UnknownName};
pub use control::{Control, Progress, Stage};
pub use error::RunError;
pub use report::{
    AbortReasons, Distribution, FaultOutcomes, HostCallsReport, MmapLockReport, RcuReport, SlabReport, StressReport,
    VerifyReport, Violation, VmaLockReport,
};
pub use workload::{WorkloadInfo, find, list};

/// Runs one workload to its end and says what was found. A violation is in the
/// report, not an error.
///
/// # Errors
/// [`RunError`]: the configuration, the machine, or the run itself.
pub fn run(config: &StressConfig, _control: &Control) -> Result<StressReport, RunError> {
    Err(RunError::Internal(format!("{} is not built yet", config.workload)))
}
