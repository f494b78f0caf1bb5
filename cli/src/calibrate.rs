//! Which rwsem serves the lock `mmap` best here: a short run of each, before
//! the rounds of `compare`. A weak baseline would flatter everything else.

use crate::drive::Driver;
use crate::failure::{Failure, status};
use crate::statistics::median;
use crate::units::rate;
use std::collections::BTreeMap;
use std::time::Duration;
use vmalab_workloads::{Backend, Lock, Rwsem, StressConfig, StressReport};

/// Runs of each: the median of five bears two bad ones.
const ROUNDS: usize = 5;
/// Who gives this much of the best one's throughput is as good. Of several that
/// are, the first of [`Rwsem::ALL`] is taken: or two comparisons of the same
/// locks would have different baselines by chance.
const AS_GOOD: f64 = 0.9;

/// What was found.
#[derive(Debug)]
pub struct Calibration {
    /// The best, or as good.
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
    let duration = (whole / 5).clamp(Duration::from_millis(50), Duration::from_millis(400));
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
    let most = medians.iter().map(|&(_, per_s)| per_s).fold(0.0, f64::max);
    let chosen = medians.iter().find(|&&(_, per_s)| per_s >= AS_GOOD * most).expect("the best is");
    Calibration {
        rwsem: chosen.0,
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
            "rwsem {}: the best for lock mmap in short runs, or within 10 % of it\n  {} {}\n",
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

    #[test]
    fn of_those_as_good_the_first_is_taken() {
        let chosen = |per_s: [f64; 4]| {
            let reports: Vec<_> =
                Rwsem::ALL.iter().zip(per_s).map(|(&rwsem, per_s)| (rwsem, sample("mmap", per_s))).collect();
            best(&reports).rwsem
        };
        assert_eq!(chosen([8.9, 1.0, 9.1, 10.0]), Rwsem::Std);
        assert_eq!(chosen([9.0, 1.0, 9.1, 10.0]), Rwsem::Futex);
        assert_eq!(chosen([1.0, 1.0, 1.0, 10.0]), Rwsem::ParkingLot);
        let longest = Calibration { rwsem: Rwsem::ParkingLot, per_s: BTreeMap::new(), unit: "faults/s" };
        let per_s = Rwsem::ALL.iter().map(|rwsem| (rwsem.name(), 123_456.0)).collect();
        let text = Calibration { per_s, ..longest }.text();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
