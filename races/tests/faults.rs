//! Every entry on real threads and real faults: its mutant is caught, the
//! complete code passes. Needs the feature `races`.

#[cfg(not(feature = "races"))]
#[test]
fn skipped() {
    eprintln!("skipped: scheduled races need 'cargo test --release -p vmalab-races --features races'");
}

#[cfg(feature = "races")]
#[test]
fn every_mutant_is_caught_and_the_complete_code_passes() {
    use std::process::Command;
    use std::time::Duration;
    use vmalab_races::process::Run;
    use vmalab_races::{Executor, suite::Suite};
    /// Told, not demanded: a busy machine is no fault of an entry.
    const SLOW: Duration = Duration::from_secs(1);

    let mut told = Vec::new();
    let mut tell = |run: &Run| {
        let slow = if run.elapsed > SLOW { "  (slow)" } else { "" };
        eprintln!("{run}{slow}");
        told.push(run.to_string());
    };
    let executor = Executor::Faults;
    let command = || Command::new(env!("CARGO_BIN_EXE_race-child"));
    let suite = Suite { executor, command: &command, names: &[], duration: None };
    let misses = suite.run(&mut tell).expect("this machine can run them ('vmalab doctor')");
    assert!(!told.is_empty());
    assert_eq!(misses, 0, "not as they must be:\n{}", told.join("\n"));
}
