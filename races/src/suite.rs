//! The whole catalogue under one executor, a line for each run.

use crate::Bounds;
use crate::process::{Job, Run};
use crate::race::{Executor, Race};
use std::fmt;
use std::process::Command;
use std::time::Duration;

/// What is to be run.
pub struct Suite<'a> {
    /// Who decides which thread runs when.
    pub executor: Executor,
    /// Starts a race's process.
    pub command: &'a dyn Fn() -> Command,
    /// Only these; empty: all.
    pub names: &'a [String],
    /// How long a model may look for a violation in the complete code, if not
    /// as long as usual. (A mutant's run ends when it is caught.)
    pub duration: Option<Duration>,
}

impl Suite<'_> {
    /// Every entry that lists the executor, under each of its locks, with the
    /// mutant and without.
    pub fn jobs(&self) -> Vec<Job> {
        let chosen = |race: &&&'static Race| {
            race.executors.contains(&self.executor)
                && (self.names.is_empty() || self.names.iter().any(|name| name == race.name))
        };
        let mut jobs = Vec::new();
        for race in crate::CATALOGUE.iter().filter(chosen) {
            for &lock in race.locks {
                for mutant in [true, false] {
                    let mut bounds = Bounds::of(race, self.executor);
                    if let (false, Some(duration)) = (mutant, self.duration) {
                        bounds.duration = duration;
                    }
                    jobs.push(Job { race, lock, mutant, executor: self.executor, bounds });
                }
            }
        }
        jobs
    }

    /// Runs them one after the other and tells each as it ends. How many were
    /// not as they must be.
    ///
    /// # Errors
    /// Why a run could not be made.
    pub fn run(&self, tell: &mut dyn FnMut(&Run)) -> Result<usize, String> {
        let mut misses = 0;
        for job in self.jobs() {
            let run = job.run((self.command)(), &mut || true)?.expect("it was not told to stop");
            misses += usize::from(!run.passed());
            tell(&run);
        }
        Ok(misses)
    }
}

/// `ok   reuse-other-mm typesafe mutant ...` in one line.
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Job { race, lock, mutant, executor, .. } = self.job;
        let verdict = if self.passed() { "ok" } else { "MISS" };
        let kind = if mutant { "mutant" } else { "complete" };
        let name = crate::CATALOGUE.iter().map(|race| race.name.len()).max().unwrap_or(0);
        write!(f, "{verdict:<5}{executor:<8} {:<name$} {lock:<9}{kind:<9}", race.name)?;
        write!(f, "{:>7} {:>8} in {:>8}  ", self.outcome.iterations, unit(executor), seconds(self.elapsed))?;
        match &self.outcome.violation {
            Some(violation) if mutant && !race.foresees(&violation.oracle) => {
                write!(f, "caught by {}, not {}: {}", violation.oracle, race.oracle, violation.what)
            }
            Some(violation) if mutant => write!(f, "caught by {}", violation.oracle),
            Some(violation) => write!(f, "{}: {}", violation.oracle, violation.what),
            None if self.outcome.time_ran_out => write!(f, "no violation until the time ran out"),
            None if executor == Executor::Loom && self.outcome.iterations < self.job.bounds.iterations => {
                write!(f, "no violation, all within {} preemptions", self.job.bounds.preemptions)
            }
            None => write!(f, "no violation"),
        }
    }
}

fn unit(executor: Executor) -> &'static str {
    if executor == Executor::Faults { "runs" } else { "schedules" }
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lock, Outcome};

    fn suite<'a>(names: &'a [String], command: &'a dyn Fn() -> Command) -> Suite<'a> {
        Suite { executor: Executor::Faults, command, names, duration: None }
    }

    #[test]
    fn a_job_for_each_lock_with_the_mutant_and_without() {
        let command = || Command::new("true");
        let names = ["reuse-other-mm".to_string()];
        let jobs = suite(&names, &command).jobs();
        let told: Vec<_> = jobs.iter().map(|job| (job.lock, job.mutant)).collect();
        let expected: Vec<_> = Lock::REUSING.iter().flat_map(|&lock| [(lock, true), (lock, false)]).collect();
        assert_eq!(told, expected);
        assert!(suite(&[], &command).jobs().len() >= jobs.len());
    }

    #[test]
    fn a_mutant_that_is_not_caught_is_a_miss() {
        let names = ["reuse-other-mm".to_string()];
        let told = serde_json::to_string(&Outcome::default()).unwrap();
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo '{told}'")]);
            command
        };
        let mut lines = Vec::new();
        let misses = suite(&names, &command).run(&mut |run| lines.push(run.to_string()));
        assert_eq!(misses, Ok(Lock::REUSING.len()));
        assert!(lines[0].starts_with("MISS") && lines[1].starts_with("ok"), "{lines:?}");
    }
}
