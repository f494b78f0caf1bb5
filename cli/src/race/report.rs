//! What `vmalab race` says: JSON, and a report for people.

use crate::failure::status;
use crate::table::{WIDTH, facts};
use crate::units::{count, nanoseconds};
use serde::Serialize;
use vmalab::races::Oracle;
use vmalab_races::process::{Job, Run};
use vmalab_races::{Executor, Race};

/// Width of the names at the left.
const NAMES: u16 = 13;

/// What `--json` writes.
#[derive(Serialize)]
pub struct Report {
    schema: u32,
    command: &'static str,
    name: &'static str,
    title: &'static str,
    mutant: bool,
    /// Of the check that is left out.
    mutant_name: &'static str,
    executor: &'static str,
    seed: u64,
    /// Of all locks together.
    iterations: u64,
    /// Mutant: whether under every lock. Complete code: whether anything was, under any.
    caught: Option<bool>,
    /// As it must be: a mutant caught, or the complete code without a violation.
    passed: Option<bool>,
    /// What noticed, or, if nothing did, what watched.
    oracle: String,
    /// Of the lock that took longest.
    ns_to_catch: Option<u64>,
    /// Of the first lock with a violation, or of the first.
    interleaving: Vec<String>,
    interrupted: bool,
    locks: Vec<LockReport>,
    #[serde(skip)]
    job: Job,
    #[serde(skip)]
    planned: usize,
}

/// What came of one lock.
#[derive(Serialize)]
struct LockReport {
    lock: &'static str,
    iterations: u64,
    caught: bool,
    passed: bool,
    oracle: Option<String>,
    violation: Option<String>,
    ns_to_catch: Option<u64>,
    interleaving: Vec<String>,
    seconds: f64,
    time_ran_out: bool,
}

impl Report {
    /// Of the runs that were made of `jobs`, of which there is at least one.
    pub fn new(jobs: &[Job], runs: Vec<Run>, seed: u64, interrupted: bool) -> Report {
        let job = jobs[0];
        let locks: Vec<LockReport> = runs.into_iter().map(LockReport::of).collect();
        let decisive = locks.iter().find(|lock| lock.caught).or(locks.first());
        let caught = |lock: &LockReport| lock.caught;
        let caught = if job.mutant { locks.iter().all(caught) } else { locks.iter().any(caught) };
        Report {
            schema: 1,
            command: "race",
            name: job.race.name,
            title: job.race.title,
            mutant: job.mutant,
            mutant_name: job.race.mutant.name(),
            executor: job.executor.name(),
            seed,
            iterations: locks.iter().map(|lock| lock.iterations).sum(),
            caught: (!locks.is_empty()).then_some(caught),
            passed: (!locks.is_empty()).then_some(caught == job.mutant),
            oracle: decisive.and_then(|l| l.oracle.clone()).unwrap_or_else(|| job.race.oracle.name().to_owned()),
            ns_to_catch: locks.iter().filter_map(|lock| lock.ns_to_catch).max(),
            interleaving: decisive.map_or_else(|| script(job.race), |lock| lock.interleaving.clone()),
            interrupted,
            locks,
            job,
            planned: jobs.len(),
        }
    }

    /// The exit status, and on standard error what went wrong.
    pub fn status(&self) -> u8 {
        for lock in self.locks.iter().filter(|lock| !lock.passed) {
            let on = format!("{} on {}", self.name, lock.lock);
            match (&lock.oracle, &lock.violation) {
                (Some(oracle), Some(what)) => eprintln!("error: violation in {on}: {oracle}: {what}"),
                _ => eprintln!("error: the mutant {} of {on} was not caught", self.mutant_name),
            }
        }
        if self.passed == Some(false) {
            status::VIOLATION
        } else if self.interrupted {
            status::INTERRUPTED
        } else {
            status::DONE
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let race = self.job.race;
        let fact = |name: &str, fact: String| (name.to_owned(), fact);
        let code = match self.mutant {
            true => format!("the mutant {}: without that check", self.mutant_name),
            false => "the complete code".to_owned(),
        };
        let told =
            if self.job.executor == Executor::Faults && !self.locks.is_empty() { "interleaving" } else { "script" };
        let mut rows = vec![
            fact("story", first_sentences(race.story, 2)),
            fact("from", race.source.to_owned()),
            fact("check", race.check.to_owned()),
            fact("code", code),
            fact("executor", self.executor()),
            fact(told, numbered(&self.interleaving)),
        ];
        for (i, lock) in self.locks.iter().enumerate() {
            let mut text = self.result(lock);
            if i > 0 && lock.interleaving != self.interleaving {
                text = format!("{text}\nhere the interleaving was\n{}", numbered(&lock.interleaving));
            }
            rows.push(fact(lock.lock, text));
        }
        rows.push(fact("verdict", self.verdict()));
        format!("{}\n{}", heading(race), facts(NAMES, rows))
    }

    fn executor(&self) -> String {
        let preemptions = self.job.bounds.preemptions;
        match self.job.executor {
            Executor::Faults => "faults: real threads, real page faults, held at schedule points".to_owned(),
            Executor::Shuttle => {
                format!("shuttle: schedules by chance, seed {}; one of them may go as the script", self.seed)
            }
            Executor::Loom => format!("loom: all schedules with at most {preemptions} preemptions; the script is one"),
        }
    }

    fn result(&self, lock: &LockReport) -> String {
        let done = match self.job.executor {
            Executor::Faults if lock.iterations == 1 => "1 run".to_owned(),
            Executor::Faults => format!("{} runs", count(lock.iterations)),
            Executor::Shuttle | Executor::Loom => format!("{} schedules", count(lock.iterations)),
        };
        let Some((oracle, what)) = lock.oracle.as_ref().zip(lock.violation.as_ref()) else {
            let all = self.job.executor == Executor::Loom && lock.iterations < self.job.bounds.iterations;
            let seconds = nanoseconds(lock.seconds * 1e9);
            return match lock.time_ran_out {
                true => format!("no violation in {done}; not all: the time of {seconds} ran out (--duration)"),
                false if all => format!("no violation in {done}, which are all, {seconds}"),
                false => format!("no violation in {done}, {seconds}"),
            };
        };
        let title = Oracle::ALL.iter().find(|o| o.name() == oracle).map_or("", |o| o.title());
        let time = lock.ns_to_catch.map_or_else(String::new, |ns| format!(" after {}", nanoseconds(ns as f64)));
        let expected = self.job.race.oracle.name();
        let other = if self.mutant && !self.job.race.foresees(oracle) {
            format!("\n(foreseen: {expected})")
        } else {
            String::new()
        };
        format!("{oracle} ({title}) noticed in {done}{time}:\n{what}{other}")
    }

    fn verdict(&self) -> String {
        let of_locks: Vec<&str> = self.locks.iter().filter(|lock| !lock.passed).map(|lock| lock.lock).collect();
        let every = if self.locks.len() == 1 { self.locks[0].lock } else { "every lock" };
        let verdict = match (self.mutant, of_locks.is_empty()) {
            _ if self.locks.is_empty() => "none: nothing was run to its end".to_owned(),
            (true, true) => format!("the mutant is caught on {every}"),
            (true, false) => format!("THE MUTANT IS NOT CAUGHT on {}", of_locks.join(", ")),
            (false, true) => format!("the complete code passes on {every}"),
            (false, false) => format!("VIOLATION in the complete code on {}", of_locks.join(", ")),
        };
        match self.interrupted {
            true => {
                format!("{verdict} (interrupted after {} of {} locks, partial results)", self.locks.len(), self.planned)
            }
            false => verdict,
        }
    }
}

impl LockReport {
    fn of(run: Run) -> LockReport {
        let passed = run.passed();
        let outcome = run.outcome;
        let told = if outcome.interleaving.is_empty() { script(run.job.race) } else { outcome.interleaving };
        let (oracle, violation) = outcome.violation.map(|violation| (violation.oracle, violation.what)).unzip();
        LockReport {
            lock: run.job.lock.name(),
            iterations: outcome.iterations,
            // By an oracle that the entry does not foresee something else was found.
            caught: if run.job.mutant { passed } else { violation.is_some() },
            passed,
            oracle,
            violation,
            ns_to_catch: outcome.ns_to_catch,
            interleaving: told,
            seconds: run.elapsed.as_secs_f64(),
            time_ran_out: outcome.time_ran_out,
        }
    }
}

/// The script in words.
fn script(race: &Race) -> Vec<String> {
    race.script.iter().map(|step| race.tell(step)).collect()
}

fn numbered(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().enumerate().map(|(i, line)| format!("{}. {line}", i + 1)).collect();
    lines.join("\n")
}

/// Name and title, wrapped.
fn heading(race: &Race) -> String {
    let mut line = String::new();
    let mut lines = Vec::new();
    for word in format!("{}: {}", race.name, race.title).split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > usize::from(WIDTH) {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.join("\n") + "\n"
}

/// The first sentences of a text.
fn first_sentences(text: &str, sentences: usize) -> String {
    let ends = text.match_indices(". ").filter(|(i, _)| text[i + 2..].starts_with(char::is_uppercase));
    let end = ends.map(|(i, _)| i + 1).nth(sentences - 1).unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use vmalab_races::{Bounds, Lock, Outcome, Violation};

    fn report(mutant: bool, executor: Executor, violations: &[Option<&str>], interrupted: bool) -> Report {
        let race = vmalab_races::find("reuse-other-mm").unwrap();
        let jobs: Vec<Job> = Lock::REUSING
            .iter()
            .map(|&lock| Job { race, lock, mutant, executor, bounds: Bounds::of(race, executor) })
            .collect();
        let run = |(job, violation): (&Job, &Option<&str>)| {
            let violation = violation.map(Violation::from_message);
            let ns_to_catch = violation.is_some().then_some(3_100_000);
            let outcome = Outcome { iterations: 3, violation, ns_to_catch, ..Outcome::default() };
            Run { job: *job, outcome, elapsed: Duration::from_millis(4) }
        };
        let runs = jobs.iter().zip(violations).map(run).collect();
        Report::new(&jobs, runs, 1, interrupted)
    }

    #[test]
    fn a_mutant_must_be_caught_on_every_lock() {
        let seen = Some("O2: page 1 is present where nothing is mapped");
        let all = report(true, Executor::Faults, &[seen, seen], false);
        assert_eq!((all.caught, all.status()), (Some(true), status::DONE));
        assert!(all.text().contains("the mutant is caught on every lock"), "{}", all.text());
        assert!(all.text().contains("O2 (no orphan) noticed in 3 runs after 3.10 ms"), "{}", all.text());
        let one = report(true, Executor::Faults, &[None, seen], false);
        assert_eq!((one.caught, one.status(), one.oracle.as_str()), (Some(false), status::VIOLATION, "O2"));
        assert!(one.text().contains("NOT CAUGHT on typesafe\n"), "{}", one.text());
        let other = report(true, Executor::Faults, &[Some("O6: the run ended"), seen], false).text();
        assert!(other.contains("(foreseen: O2)"), "{other}");
    }

    #[test]
    fn the_complete_code_must_pass_on_every_lock() {
        let none = report(false, Executor::Loom, &[None, None], false);
        assert_eq!((none.caught, none.status(), none.ns_to_catch), (Some(false), status::DONE, None));
        assert!(none.text().contains("no violation in 3 schedules, which are all"), "{}", none.text());
        let one = report(false, Executor::Loom, &[None, Some("O3: seen")], false);
        assert_eq!((one.caught, one.status(), one.oracle.as_str()), (Some(true), status::VIOLATION, "O3"));
        assert!(one.text().contains("VIOLATION in the complete code on refcount\n"), "{}", one.text());
    }

    #[test]
    fn what_was_interrupted_says_so() {
        let some = report(false, Executor::Shuttle, &[None], true);
        assert_eq!(some.status(), status::INTERRUPTED);
        let text = some.text().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("interrupted after 1 of 2 locks, partial results"), "{text}");
        let none = report(true, Executor::Shuttle, &[], true);
        assert_eq!((none.status(), none.caught, none.iterations), (status::INTERRUPTED, None, 0));
        assert!(none.text().contains("nothing was run"), "{}", none.text());
    }

    #[test]
    fn reports_fit_80_columns() {
        for executor in [Executor::Faults, Executor::Shuttle, Executor::Loom] {
            let text = report(true, executor, &[None, Some("O2: page 1")], false).text();
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            assert!(text.contains("1. fault: runs until H1"), "{text}");
        }
    }

    #[test]
    fn sentences() {
        assert_eq!(first_sentences("One. Two, e.g. here. Three.", 2), "One. Two, e.g. here.");
        assert_eq!(first_sentences("One.", 2), "One.");
    }
}
