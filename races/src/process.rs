//! The parent's side of a run: a process of its own for each, because a mutant
//! may hang, or die in a signal handler.

use crate::race::{Executor, Lock, Race};
use crate::{Bounds, CANNOT, Outcome, Violation};
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a model may take beyond its bound in time, and a scripted run at all.
const SLACK: Duration = Duration::from_secs(60);
/// Longest that one run of a script may take, on a machine that is busy.
const SCRIPT: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(2);

/// One entry under one lock, with its mutant or without.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The entry.
    pub race: &'static Race,
    /// The lock.
    pub lock: Lock,
    /// Whether its check is left out.
    pub mutant: bool,
    /// Who decides which thread runs when.
    pub executor: Executor,
    /// How far to look.
    pub bounds: Bounds,
}

/// What came of a [`Job`].
#[derive(Clone, Debug)]
pub struct Run {
    /// What was run.
    pub job: Job,
    /// What its process told.
    pub outcome: Outcome,
    /// From the start of the process to its end.
    pub elapsed: Duration,
}

impl Job {
    /// The last arguments of the process: what [`child_main`](crate::child_main) takes.
    pub fn to_args(&self) -> Vec<String> {
        let kind = if self.mutant { "mutant" } else { "complete" };
        let job = [self.race.name, self.lock.name(), kind].map(str::to_string);
        job.into_iter().chain(self.bounds.to_args()).collect()
    }

    /// Runs it in a process that `command` starts, with [`Job::to_args`] added.
    /// `go_on` is asked all the time; its no kills the process: `None`.
    ///
    /// # Errors
    /// As [`in_child`].
    pub fn run(&self, mut command: Command, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Run>, String> {
        let patience = match self.executor {
            Executor::Faults => {
                SLACK + SCRIPT.saturating_mul(u32::try_from(self.bounds.iterations).unwrap_or(u32::MAX))
            }
            Executor::Shuttle | Executor::Loom => self.bounds.duration + SLACK,
        };
        let began = Instant::now();
        let outcome = in_child(command.args(self.to_args()), patience, go_on)?;
        Ok(outcome.map(|outcome| Run { job: *self, outcome, elapsed: began.elapsed() }))
    }
}

impl Run {
    /// Whether it is as it must be: a mutant caught by an oracle that its entry
    /// foresees, or no violation of the complete code.
    pub fn passed(&self) -> bool {
        match &self.outcome.violation {
            Some(violation) => self.job.mutant && self.job.race.foresees(&violation.oracle),
            None => !self.job.mutant,
        }
    }
}

/// Runs `command`, which is to end in [`child_main`](crate::child_main), and
/// waits for what it tells. One that does not end is killed: a violation of O5.
/// `go_on` is asked all the time; its no kills the process: `None`.
///
/// # Errors
/// What the child said if it could not do it (status [`CANNOT`]) or was given
/// bad arguments, or why it could not be started.
pub fn in_child(
    command: &mut Command,
    patience: Duration,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Outcome>, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start {} for the race: {error}", command.get_program().display()))?;
    // Read while it runs: a full pipe would stop it.
    let out = read_all(child.stdout.take().expect("piped"));
    let err = read_all(child.stderr.take().expect("piped"));
    let began = Instant::now();
    let status = loop {
        // First: Ctrl-C on a terminal also ends the child.
        let stop = !go_on();
        if stop || began.elapsed() > patience {
            let _ = child.kill();
            let _ = child.wait();
            let killed = || ended_badly("O5", "the run did not end and was killed".to_string(), began);
            return Ok((!stop).then(killed));
        }
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(TICK),
            Err(error) => return Err(format!("cannot wait for the race's process: {error}")),
        }
    };
    let told = |reader: JoinHandle<String>| reader.join().unwrap_or_default().trim().to_string();
    judge(status, &told(out), &told(err), began).map(|outcome| go_on().then_some(outcome))
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn judge(status: ExitStatus, out: &str, err: &str, began: Instant) -> Result<Outcome, String> {
    if let Some(outcome) = out.lines().last().and_then(|line| serde_json::from_str(line).ok()) {
        return Ok(outcome);
    }
    match status.code() {
        Some(CANNOT) => Err(err.to_string()),
        Some(0 | 2) => Err(format!("the race's process told nothing: {err}")),
        _ => Ok(ended_badly(
            "O6",
            format!("the run ended with {status}: {}", err.lines().next().unwrap_or_default()),
            began,
        )),
    }
}

fn ended_badly(oracle: &str, what: String, began: Instant) -> Outcome {
    Outcome {
        iterations: 1,
        violation: Some(Violation { oracle: oracle.to_string(), what }),
        ns_to_catch: Some(began.elapsed().as_nanos() as u64),
        interleaving: Vec::new(),
        time_ran_out: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, patience: u64, mut go_on: impl FnMut() -> bool) -> Result<Option<Outcome>, String> {
        in_child(Command::new("sh").args(["-c", script]), Duration::from_millis(patience), &mut go_on)
    }

    fn oracle(outcome: &Outcome) -> &str {
        &outcome.violation.as_ref().expect("a violation").oracle
    }

    #[test]
    fn every_end_of_a_process_is_judged() {
        let told = Outcome { iterations: 5, ..Outcome::default() };
        let line = serde_json::to_string(&told).unwrap();
        assert_eq!(sh(&format!("echo noise; echo '{line}'"), 60_000, || true), Ok(Some(told)));
        assert_eq!(oracle(&sh("kill -SEGV $$", 60_000, || true).unwrap().unwrap()), "O6");
        assert_eq!(oracle(&sh("exec sleep 60", 50, || true).unwrap().unwrap()), "O5");
        assert_eq!(sh("exec sleep 60", 60_000, || false), Ok(None));
        assert_eq!(sh("echo no rights >&2; exit 3", 60_000, || true), Err("no rights".to_string()));
        assert!(sh("echo what >&2; exit 2", 60_000, || true).unwrap_err().contains("what"));
        assert!(in_child(&mut Command::new("/nonexistent"), SLACK, &mut || true).is_err());
    }

    #[test]
    fn a_child_may_say_more_than_a_pipe_holds() {
        let script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; head -c 1000000 /dev/zero | tr '\\0' x; exit 3";
        assert!(sh(script, 60_000, || true).unwrap_err().len() == 1_000_000);
    }
}
