//! The command `vmalab`: arguments, progress, tables and JSON. What is run and
//! measured lives in `vmalab-workloads`, the races in `vmalab-races`.
//!
//! Results go to standard output, everything else to standard error. Exit
//! statuses are in [`failure::status`].

#![forbid(unsafe_code)]

mod args;
mod calibrate;
mod checkout;
mod compare;
mod conflicts;
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
mod profile;
mod race;
mod statistics;
mod stress;
mod table;
mod units;

use args::{Cli, Command};
use clap::Parser;
use failure::Failure;
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

fn main() -> ExitCode {
    // Bad usage that clap finds by itself ends here with status 2.
    let cli = Cli::parse();
    match log().and_then(|()| dispatch(&cli.command)) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

/// Spans and messages of the control plane, never of the fault path, on
/// standard error if `VMALAB_LOG` asks for them.
fn log() -> Result<(), Failure> {
    let Ok(level) = std::env::var("VMALAB_LOG") else { return Ok(()) };
    let level: LevelFilter = level.parse().map_err(|_| {
        Failure::usage(format!("VMALAB_LOG={level} is no level: choose error, warn, info, debug or trace"))
    })?;
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// Runs the command and gives its exit status.
fn dispatch(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Doctor(args) => doctor::run(args),
        Command::Limits(args) => limits::run(args),
        Command::List(args) => list::run(args),
        Command::Stress(args) => stress::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Conflicts(args) => conflicts::run(args),
        Command::Conform(args) => conform::run(args),
        Command::Race(args) => race::run(args),
        Command::RaceChild(args) => race::child(args),
        Command::Later(later) => Err(plan::not_in_this_build(&format!("'vmalab {}'", later.name()))),
    }
}
