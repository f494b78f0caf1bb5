//! `vmalab conflicts`: the cache lines that operations share with a write.
//!
//! Recording is done by `conflicts-record`, a build of its own
//! ([`crate::checkout`]); what the model compares with is measured by this one.

use crate::args::ConflictsArgs;
use crate::checkout::{Build, Built};
use crate::drive::Driver;
use crate::failure::{Failure, status};
use crate::interrupt::Interrupt;
use crate::names::unknown;
use crate::output::Json;
use crate::plan;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::Duration;
use vmalab_conflicts::op::Op;
use vmalab_conflicts::report::{Pair, PairsRequest, Recording, WorkloadRequest};
use vmalab_conflicts::{Answer, Request};
use vmalab_workloads::Lock;

mod predict;
mod text;

/// What is recorded.
enum What {
    /// Pairs; of a single one the lines are told too.
    Pairs(Vec<(Op, Op)>),
    /// The threads of a workload.
    Workload(String),
}

/// Runs it.
pub fn run(args: &ConflictsArgs) -> Result<u8, Failure> {
    let what = what(args)?;
    let locks = locks(args, &what)?;
    let request = request(args, &what, &locks);
    let json = Json::open(args.json.as_deref())?;
    let driver = Driver::new()?;
    let Some(answer) = record(&request, driver.interrupt())? else { return Ok(status::INTERRUPTED) };
    match answer {
        Answer::Pairs(pairs) => {
            json.write(&pairs_object(args, &pairs), || text::pairs(&pairs))?;
            Ok(status::DONE)
        }
        Answer::Workload(recordings) => workload(args, &recordings, json, &driver),
    }
}

fn workload(args: &ConflictsArgs, recordings: &[Recording], json: Json, driver: &Driver) -> Result<u8, Failure> {
    let name = args.what.first().map_or(predict::WORKLOAD, String::as_str);
    let prediction = match &args.model {
        Some(cores) => predict::run(args, name, *cores, recordings, driver)?,
        None => None,
    };
    let object = json!({
        "schema": 1, "command": "conflicts", "workload": name, "seed": args.seed, "threads": args.threads,
        "mutators": args.mutators, "address_spaces": args.address_spaces,
        "recordings": recordings, "model": prediction,
    });
    json.write(&object, || match &prediction {
        Some(prediction) => prediction.text(name),
        None => recordings.iter().map(|recording| text::recording(name, recording)).collect::<Vec<_>>().join("\n"),
    })?;
    Ok(if driver.interrupted() { status::INTERRUPTED } else { status::DONE })
}

fn pairs_object(args: &ConflictsArgs, pairs: &[Pair]) -> Value {
    json!({
        "schema": 1, "command": "conflicts", "seed": args.seed, "repetitions": args.repetitions, "pairs": pairs,
    })
}

fn what(args: &ConflictsArgs) -> Result<What, Failure> {
    let op = |name: &str| {
        Op::find(name).ok_or_else(|| {
            let known: Vec<&str> = Op::ALL.iter().map(|op| op.name()).collect();
            Failure::usage(format!("unknown operation '{name}': choose two of {}", known.join(", ")))
        })
    };
    match args.what.as_slice() {
        [] if args.model.is_some() => Ok(What::Workload(predict::WORKLOAD.to_owned())),
        [] => Ok(What::Pairs(Op::pairs())),
        [name] if Op::find(name).is_some() => Err(Failure::usage(format!(
            "'{name}' is an operation: name the other one too, for example 'vmalab conflicts {name} mmap'"
        ))),
        [name] => {
            let workloads: Vec<&str> = vmalab_workloads::list().iter().map(|workload| workload.name).collect();
            if !workloads.contains(&name.as_str()) {
                return Err(unknown("workload", name, &workloads));
            }
            Ok(What::Workload(name.clone()))
        }
        [a, b] => {
            let pair = (op(a)?, op(b)?);
            if args.model.is_some() {
                return Err(Failure::usage("--model is for a workload: name one, for example page-fault"));
            }
            Ok(What::Pairs(vec![pair]))
        }
        _ => unreachable!("at most two are parsed"),
    }
}

/// The locks named, or all where numbers are compared.
fn locks(args: &ConflictsArgs, what: &What) -> Result<Vec<Lock>, Failure> {
    let mut locks = Vec::new();
    for name in &args.locks {
        let lock = plan::lock(name.trim())?;
        if locks.contains(&lock) {
            return Err(Failure::usage(format!("'{name}' is named twice: name each lock once")));
        }
        locks.push(lock);
    }
    Ok(match what {
        _ if !locks.is_empty() => locks,
        What::Workload(_) if args.model.is_none() => vec![Lock::TypeSafe],
        _ => Lock::ALL.to_vec(),
    })
}

fn request(args: &ConflictsArgs, what: &What, locks: &[Lock]) -> Request {
    let (locks, seed) = (locks.to_vec(), args.seed);
    match what {
        What::Pairs(pairs) => {
            Request::Pairs(PairsRequest { locks, pairs: pairs.clone(), repetitions: args.repetitions, seed })
        }
        What::Workload(workload) => Request::Workload(WorkloadRequest {
            locks,
            workload: workload.clone(),
            threads: args.threads,
            mutators: args.mutators,
            address_spaces: args.address_spaces,
            ops: args.ops,
            seed,
        }),
    }
}

/// Builds the recorder and asks it. `None`: interrupted.
fn record(request: &Request, interrupt: &Interrupt) -> Result<Option<Answer>, Failure> {
    let build = Build {
        what: "'vmalab conflicts'".to_owned(),
        script: "scripts/conflicts.sh",
        argument: "build",
        program: "target/quick/conflicts-record".to_owned(),
    };
    let Some(built) = build.make(interrupt)? else { return Ok(None) };
    let Some(said) = ask(&built, request, interrupt)? else { return Ok(None) };
    let answer = serde_json::from_str(&said);
    answer.map(Some).map_err(|e| Failure::cannot(format!("conflicts-record does not fit this build: {e}")))
}

fn ask(built: &Built, request: &Request, interrupt: &Interrupt) -> Result<Option<String>, Failure> {
    let style = ProgressStyle::with_template("recording {spinner} {elapsed}").expect("the template is valid");
    let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new_spinner().with_style(style));
    if let Some(bar) = &bar {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    let said = built.ask(&serde_json::to_string(request).expect("plain data"), interrupt);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    said
}
