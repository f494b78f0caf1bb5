//! Scenarios that need a process of their own: the test binary runs itself,
//! asking for the one test that plays the scenario.
#![allow(dead_code)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

const SCENARIO: &str = "VMALAB_TEST_SCENARIO";

/// The scenario this process is to play, if it was started for one.
pub fn scenario() -> Option<String> {
    std::env::var(SCENARIO).ok()
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exit(i32),
    Signal(i32),
}

/// Plays `scenario` in a process of its own, through the test `child`.
pub fn play(scenario: &str) -> (End, Output) {
    let output = Command::new("timeout")
        .args(["-s", "KILL", "60"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(SCENARIO, scenario)
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("run the test binary");
    // timeout(1) dies of the signal that its child died of, or says 128 + it.
    let end = match (output.status.code(), output.status.signal()) {
        (Some(code), _) if code > 128 => End::Signal(code - 128),
        (Some(code), _) => End::Exit(code),
        (None, signal) => End::Signal(signal.expect("a code or a signal")),
    };
    (end, output)
}

/// [`play`] must end so; otherwise the child's output is shown.
#[track_caller]
pub fn ends(scenario: &str, expected: End) {
    let (end, output) = play(scenario);
    assert_eq!(
        end,
        expected,
        "{scenario}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
