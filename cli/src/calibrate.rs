//! Which rwsem serves the lock `mmap` best here: a short run of each, before
//! the rounds of `compare`. A weak baseline would flatter everything else.

use crate::drive::Driver;
use crate::failure::{Failure, status};
use crate::statistics::median;
use crate::units::rate;
use std::collections::BTreeMap;
use std::time::Duration;
use vmalab_workloads::{Backend, Lock, Rwsem, StressConfig, StressReport};

/// Runs of each: the median of three bears one bad run.
const ROUNDS: usize = 3;

/// What was found.
#[derive(Debug)]
pub struct Calibration {
    /// The best.
    pub rwsem: Rwsem,
    /// Faults (or calls) a second of each.
    pub per_s: BTreeMap<&'static str, f64>,
    /// `faults/s` or `calls/s`.
    pub unit: &'static str,
}

/// Whether a run's figures depend on the rwsem first of all.
pub fn is_for(config: &StressConfig) -> bool {
    config.backend == Backend::Emulated && config.lock == Lock::Mmap
}

/// Runs `config` with each rwsem in turn. `None` if Ctrl-C came.
pub fn calibrate(config: &StressConfig, driver: &Driver) -> Result<Option<Calibration>, Failure> {
    let whole = config.effective_duration().unwrap_or(Duration::from_secs(2));
    let duration = (whole / 10).clamp(Duration::from_millis(50), Duration::from_millis(400));
    let short = StressConfig {
        duration: Some(duration),
        ops: None,
        warmup: config.warmup.min(Duration::from_millis(50)),
        ..config.clone()
    };
    let mut reports: Vec<(Rwsem, StressReport)> = Vec::new();
    for _ in 0..ROUNDS {
        for &rwsem in Rwsem::ALL {
            let report = driver.run(&StressConfig { rwsem, ..short.clone() }, &format!("rwsem {rwsem}"))?;
            if !report.passed() {
                crate::stress::outcome(&[&report], false);
                return Err(Failure::with_status(status::VIOLATION, format!("a violation on rwsem {rwsem}")));
            }
            if driver.interrupted() {
                return Ok(None);
            }
            reports.push((rwsem, report));
        }
    }
    Ok(Some(best(&reports)))
}

fn best(reports: &[(Rwsem, StressReport)]) -> Calibration {
    let faults = reports.iter().all(|(_, report)| report.faults.is_some_and(|faults| faults > 0));
    let value = |report: &StressReport| if faults { report.faults_per_s.unwrap_or(0.0) } else { report.ops_per_s };
    let middle = |rwsem: Rwsem| {
        let mut values: Vec<f64> = reports.iter().filter(|(of, _)| *of == rwsem).map(|(_, r)| value(r)).collect();
        median(&mut values)
    };
    let medians: Vec<(Rwsem, f64)> = Rwsem::ALL.iter().map(|&rwsem| (rwsem, middle(rwsem))).collect();
    let best = medians.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are some");
    Calibration {
        rwsem: best.0,
        per_s: medians.iter().map(|&(rwsem, per_s)| (rwsem.name(), per_s)).collect(),
        unit: if faults { "faults/s" } else { "calls/s" },
    }
}

impl Calibration {
    /// For people.
    pub fn text(&self) -> String {
        let each: Vec<String> =
            Rwsem::ALL.iter().map(|rwsem| format!("{rwsem} {}", rate(self.per_s[rwsem.name()]))).collect();
        format!(
            "rwsem {}: the best for lock mmap in short runs of each\n  {} {}\n",
            self.rwsem,
            each.join(", "),
            self.unit
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::tests::sample;

    #[test]
    fn the_best_median_wins() {
        let run = |rwsem, per_s| (rwsem, sample("mmap", per_s));
        let reports: Vec<_> = [(Rwsem::Futex, 9.0), (Rwsem::Kernel, 8.0), (Rwsem::Std, 1.0), (Rwsem::ParkingLot, 2.0)]
            .into_iter()
            .chain([(Rwsem::Futex, 6.0), (Rwsem::Kernel, 8.0), (Rwsem::Std, 1.0), (Rwsem::ParkingLot, 2.0)])
            .chain([(Rwsem::Futex, 2.0), (Rwsem::Kernel, 8.0), (Rwsem::Std, 90.0), (Rwsem::ParkingLot, 2.0)])
            .map(|(rwsem, per_s)| run(rwsem, per_s))
            .collect();
        let found = best(&reports);
        assert_eq!((found.rwsem, found.per_s["futex"], found.unit), (Rwsem::Kernel, 6.0, "faults/s"));
        assert!(found.text().lines().all(|line| line.chars().count() <= 80), "{}", found.text());
    }
}
