//! `vmalab race`: one entry of the race catalogue.
//!
//! Every run has a process of its own, for a mutant may hang or crash: this
//! binary again for the executor `faults`, the model's build of `race-child`
//! for the others.

use crate::args::{ExecutorArg, RaceArgs, RaceChildArgs};
use crate::checkout::Build;
use crate::failure::{Failure, status};
use crate::interrupt::Interrupt;
use crate::names::unknown;
use crate::output::Json;
use indicatif::{ProgressBar, ProgressStyle};
use report::Report;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Command;
use vmalab_races::process::{Job, Run};
use vmalab_races::{Bounds, CATALOGUE, Executor, Lock, Race};

mod report;

/// The hidden command that [`child`] serves.
const CHILD: &str = "race-child";

/// Runs it.
pub fn run(args: &RaceArgs) -> Result<u8, Failure> {
    let jobs = plan(args)?;
    check_build(args, &jobs[0])?;
    let json = Json::open(args.json.as_deref())?;
    let interrupt = Interrupt::install()?;
    let mut runs = Vec::new();
    if let Some(program) = program(jobs[0].executor, &interrupt)? {
        for job in &jobs {
            match run_one(job, &program, &interrupt)? {
                Some(run) => runs.push(run),
                None => break,
            }
        }
    }
    let report = Report::new(&jobs, runs, args.seed, interrupt.came());
    json.write(&report, || report.text())?;
    Ok(report.status())
}

/// A race's own process.
pub fn child(args: &RaceChildArgs) -> Result<u8, Failure> {
    vmalab_races::child_main(&args.args).map_err(Failure::usage)?;
    Ok(status::DONE)
}

/// What is to be run: a job for each lock.
fn plan(args: &RaceArgs) -> Result<Vec<Job>, Failure> {
    let Some(race) = vmalab_races::find(&args.name) else {
        let names: Vec<&str> = CATALOGUE.iter().map(|race| race.name).collect();
        return Err(unknown("race", &args.name, &names));
    };
    let executor = executor(args, race)?;
    let locks = locks(args, race)?;
    let bounds = bounds(args, race, executor)?;
    Ok(locks.into_iter().map(|lock| Job { race, lock, mutant: args.mutant, executor, bounds }).collect())
}

fn executor(args: &RaceArgs, race: &Race) -> Result<Executor, Failure> {
    let executor = match args.executor {
        None if race.executors.contains(&Executor::Faults) => Executor::Faults,
        None => race.executors[0],
        Some(ExecutorArg::Faults) => Executor::Faults,
        Some(ExecutorArg::Shuttle) => Executor::Shuttle,
        Some(ExecutorArg::Loom) => Executor::Loom,
    };
    if race.executors.contains(&executor) {
        return Ok(executor);
    }
    let listed: Vec<&str> = race.executors.iter().map(|executor| executor.name()).collect();
    Err(Failure::usage(format!("'{}' cannot be shown by {executor}; these can: {}", race.name, listed.join(", "))))
}

fn locks(args: &RaceArgs, race: &Race) -> Result<Vec<Lock>, Failure> {
    let Some(name) = &args.lock else { return Ok(race.locks.to_vec()) };
    let Ok(lock) = name.parse::<Lock>() else {
        let known: Vec<&str> = Lock::ALL.iter().map(|lock| lock.name()).collect();
        return Err(unknown("lock", name, &known));
    };
    if race.has_lock(lock) {
        return Ok(vec![lock]);
    }
    let listed: Vec<&str> = race.locks.iter().map(|lock| lock.name()).collect();
    Err(Failure::usage(format!("'{}' has no check to leave out on {lock}; it has on {}", race.name, listed.join(", "))))
}

fn bounds(args: &RaceArgs, race: &Race, executor: Executor) -> Result<Bounds, Failure> {
    if args.preemptions.is_some() && executor != Executor::Loom {
        return Err(Failure::usage(format!("--preemptions is for '--executor loom'; {executor} has no such bound")));
    }
    if args.duration.is_some() && executor == Executor::Faults {
        return Err(Failure::usage("--duration is for '--executor loom' and 'shuttle'; faults takes --iterations"));
    }
    let defaults = Bounds::of(race, executor);
    Ok(Bounds {
        iterations: args.iterations.unwrap_or(defaults.iterations),
        seed: args.seed,
        preemptions: args.preemptions.map_or(defaults.preemptions, usize::from),
        duration: args.duration.unwrap_or(defaults.duration),
    })
}

/// Schedule points and mutants are in a build with the feature `races`, and in
/// the models' builds, which must be asked for by name.
fn check_build(args: &RaceArgs, job: &Job) -> Result<(), Failure> {
    let own_build = job.executor != Executor::Faults;
    if vmalab::races::ENABLED || own_build && (args.executor.is_some() || !args.mutant) {
        return Ok(());
    }
    let missing = if args.mutant { "no mutants" } else { "no schedule points to hold real threads at" };
    let mut command = format!("cargo run --release --features races -- race {}", args.name);
    if args.mutant {
        command += " --mutant";
    }
    Err(Failure::cannot(format!("this build has {missing}; run '{command}'")))
}

/// What is started for each run, with its first arguments. `None`: interrupted.
fn program(executor: Executor, interrupt: &Interrupt) -> Result<Option<(PathBuf, Option<&'static str>)>, Failure> {
    if executor != Executor::Faults {
        return Ok(model(executor).make(interrupt)?.map(|built| (built.program, None)));
    }
    let this = std::env::current_exe().map_err(|e| Failure::cannot(format!("cannot find this program's file: {e}")))?;
    Ok(Some((this, Some(CHILD))))
}

/// The build of a model.
fn model(executor: Executor) -> Build {
    Build {
        what: format!("'--executor {executor}'"),
        script: "scripts/models.sh",
        argument: executor.name(),
        program: format!("target/{executor}/release/race-child"),
    }
}

/// One run; `None` if Ctrl-C came.
fn run_one(
    job: &Job,
    (program, first): &(PathBuf, Option<&'static str>),
    interrupt: &Interrupt,
) -> Result<Option<Run>, Failure> {
    let mut command = Command::new(program);
    command.args(first);
    let bar = progress_bar(job);
    let run = job.run(command, &mut || {
        if let Some(bar) = &bar {
            bar.tick();
        }
        !interrupt.came()
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    run.map_err(|reason| Failure::cannot(format!("{reason} ('vmalab doctor' checks this machine)")))
}

fn progress_bar(job: &Job) -> Option<ProgressBar> {
    let style = ProgressStyle::with_template("{prefix} {spinner} {elapsed}").expect("the template is valid");
    let prefix = format!("{} on {}, {}", job.race.name, job.lock, job.executor);
    let terminal = std::io::stderr().is_terminal();
    terminal.then(|| ProgressBar::new_spinner().with_style(style).with_prefix(prefix))
}
