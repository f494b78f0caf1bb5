//! The whole catalogue, or the entries named, under one executor: a line for
//! each run. `race-suite faults|shuttle|loom CHILD [NAME...]`, where CHILD is
//! the executor's `race-child`. RACE_SECONDS bounds a model's run of the complete code.
//! `scripts/races.sh` builds and calls it.

use std::process::{Command, ExitCode};
use std::time::Duration;

fn main() -> ExitCode {
    match suite() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err((status, message)) => {
            eprintln!("error: {message}");
            ExitCode::from(status)
        }
    }
}

#[cfg(any(loom, shuttle))]
fn suite() -> Result<bool, (u8, String)> {
    Err((2, "the usual build of this program runs the models".to_string()))
}

#[cfg(not(any(loom, shuttle)))]
fn suite() -> Result<bool, (u8, String)> {
    use vmalab_races::{Executor, find, suite::Suite};
    let usage = |message: String| (2, message);
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [executor, child, names @ ..] = args.as_slice() else {
        return Err(usage("usage: race-suite faults|shuttle|loom CHILD [NAME...]".to_string()));
    };
    let executor: Executor = executor.parse().map_err(|()| usage(format!("no executor is named '{executor}'")))?;
    if let Some(name) = names.iter().find(|name| find(name).is_none()) {
        return Err(usage(format!("no race is named '{name}'")));
    }
    let duration = number("RACE_SECONDS").map_err(usage)?.map(Duration::from_secs);
    let suite = Suite { executor, command: &|| Command::new(child), names, duration };
    let misses = suite.run(&mut |run| println!("{run}")).map_err(|reason| (3, reason))?;
    let runs = suite.jobs().len();
    println!("{executor}: {runs} runs, {misses} not as they must be");
    Ok(misses == 0)
}

#[cfg(not(any(loom, shuttle)))]
fn number(variable: &str) -> Result<Option<u64>, String> {
    let Some(text) = std::env::var_os(variable) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| format!("{variable} must be a whole number"))
}
