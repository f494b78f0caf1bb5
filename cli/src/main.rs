//! The command `vmalab`: arguments, progress, tables and JSON. What is run and
//! measured lives in `vmalab-workloads`, the races in `vmalab-races`.
//!
//! Results go to standard output, everything else to standard error. Exit
//! statuses are in [`failure::status`].

#![forbid(unsafe_code)]

mod args;
mod calibrate;
mod compare;
mod conform;
mod doctor;
mod drive;
mod failure;
mod interrupt;
mod limits;
mod list;
mod machine;
mod names;
mod output;
mod plan;
mod race;
mod statistics;
mod stress;
mod table;
mod units;

use args::{Cli, Command};
use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Bad usage that clap finds by itself ends here with status 2.
    let cli = Cli::parse();
    match dispatch(&cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

/// Runs the command and gives its exit status.
fn dispatch(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Doctor(args) => doctor::run(args),
        Command::Limits(args) => limits::run(args),
        Command::List(args) => list::run(args),
        Command::Stress(args) => stress::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Conform(args) => conform::run(args),
        Command::Race(args) => race::run(args),
        Command::RaceChild(args) => race::child(args),
        Command::Later(later) => Err(plan::not_in_this_build(&format!("'vmalab {}'", later.name()))),
    }
}
