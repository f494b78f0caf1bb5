//! How far a run looks, and how that is told to a race's own process.

use crate::race::Executor;
use std::time::Duration;

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Runs of the script (faults), schedules (shuttle), or at most so many (loom).
    pub iterations: u64,
    /// shuttle's seed.
    pub seed: u64,
    /// loom: at most so many preemptions in a schedule.
    pub preemptions: usize,
    /// Models: at most so long.
    pub duration: Duration,
}

impl Bounds {
    /// What is enough for every entry of the catalogue under `executor`.
    pub fn of(executor: Executor) -> Bounds {
        let (iterations, seconds) = match executor {
            Executor::Faults => (3, 60),
            Executor::Shuttle => (20_000, 600),
            Executor::Loom => (u64::MAX, 60),
        };
        Bounds { iterations, seed: 1, preemptions: 2, duration: Duration::from_secs(seconds) }
    }

    /// `ITERATIONS SEED PREEMPTIONS SECONDS`.
    pub fn to_args(self) -> [String; 4] {
        let seconds = self.duration.as_secs_f64();
        [self.iterations.to_string(), self.seed.to_string(), self.preemptions.to_string(), seconds.to_string()]
    }

    /// From those; what is missing is as in [`Bounds::of`] a loom run, once.
    ///
    /// # Errors
    /// Which argument is not a number.
    pub fn from_args(args: &[String]) -> Result<Bounds, String> {
        fn number<T: std::str::FromStr>(args: &[String], i: usize, default: T) -> Result<T, String> {
            args.get(i).map_or(Ok(default), |text| text.parse().map_err(|_| format!("'{text}' is not a number")))
        }
        let default = Bounds::of(Executor::Loom);
        let seconds = number(args, 3, default.duration.as_secs_f64())?;
        Ok(Bounds {
            iterations: number(args, 0, 1)?,
            seed: number(args, 1, default.seed)?,
            preemptions: number(args, 2, default.preemptions)?,
            duration: Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_there_and_back() {
        for &executor in Executor::ALL {
            let bounds = Bounds { duration: Duration::from_millis(1500), seed: 7, ..Bounds::of(executor) };
            assert_eq!(Bounds::from_args(&bounds.to_args()), Ok(bounds));
        }
        assert_eq!(Bounds::from_args(&[]).unwrap().iterations, 1);
        assert!(Bounds::from_args(&["many".to_string()]).is_err());
        assert!(Bounds::from_args(&["1", "1", "2", "-3"].map(String::from)).is_err());
    }
}
