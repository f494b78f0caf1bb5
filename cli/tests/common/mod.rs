//! Running the binary and looking at what it left.

#![allow(dead_code)] // each test file uses its part

use std::process::{Command, Output};

/// What a run of the command left behind.
pub struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
}

impl Outcome {
    /// Of a process that has ended.
    pub fn of(output: Output) -> Outcome {
        Outcome {
            status: output.status.code().expect("ended by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Standard output, which must be one JSON object and nothing else.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }
}

/// The command, ready to run.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmalab"));
    command.args(args);
    command
}

/// Runs the command with its output in pipes.
pub fn vmalab(args: &[&str]) -> Outcome {
    Outcome::of(command(args).output().expect("the binary runs"))
}

/// It is bad usage, and standard error says why.
pub fn assert_usage(args: &[&str], says: &str) {
    let out = vmalab(args);
    assert_eq!((out.status, out.stdout.as_str()), (2, ""), "{args:?}: {}", out.stderr);
    assert!(out.stderr.starts_with("error: ") && out.stderr.contains(says), "{args:?}: {}", out.stderr);
}
