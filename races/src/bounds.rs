//! How far a run looks, and how that is told to a race's own process.

use crate::race::{Executor, Race};
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
    /// What is enough for `race` under `executor`.
    pub fn of(race: &Race, executor: Executor) -> Bounds {
        let (iterations, seconds) = match executor {
            Executor::Faults => (3, 60),
            Executor::Shuttle => (race.depth.schedules, 600),
            Executor::Loom => (u64::MAX, 60),
        };
        Bounds { iterations, seed: 1, preemptions: race.depth.preemptions, duration: Duration::from_secs(seconds) }
    }

    /// `ITERATIONS SEED PREEMPTIONS SECONDS`.
    pub fn to_args(self) -> [String; 4] {
        let seconds = self.duration.as_secs_f64();
        [self.iterations.to_string(), self.seed.to_string(), self.preemptions.to_string(), seconds.to_string()]
    }

    /// From those; what is missing is as for `race` under loom, but once.
    ///
    /// # Errors
    /// Which argument is not a number.
    pub fn from_args(race: &Race, args: &[String]) -> Result<Bounds, String> {
        fn number<T: std::str::FromStr>(args: &[String], i: usize, default: T) -> Result<T, String> {
            args.get(i).map_or(Ok(default), |text| text.parse().map_err(|_| format!("'{text}' is not a number")))
        }
        let default = Bounds::of(race, Executor::Loom);
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
        let race = crate::find("reuse-other-mm").unwrap();
        for &executor in Executor::ALL {
            let bounds = Bounds { duration: Duration::from_millis(1500), seed: 7, ..Bounds::of(race, executor) };
            assert_eq!(Bounds::from_args(race, &bounds.to_args()), Ok(bounds));
        }
        assert_eq!(Bounds::from_args(race, &[]).unwrap().iterations, 1);
        assert!(Bounds::from_args(race, &["many".to_string()]).is_err());
        assert!(Bounds::from_args(race, &["1", "1", "2", "-3"].map(String::from)).is_err());
    }
}
