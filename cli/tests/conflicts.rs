//! `vmalab conflicts` as a user or a script meets it, where nothing is built.
//! (What it records is tested in `conflicts/`, by `scripts/conflicts.sh`.)

mod common;

use common::{Outcome, assert_usage, command};

#[test]
fn bad_usage_is_refused() {
    assert_usage(&["conflicts", "page-falt"], "did you mean 'page-fault'");
    assert_usage(&["conflicts", "mmap"], "'vmalab conflicts mmap mmap'");
    assert_usage(&["conflicts", "mmap", "fault"], "unknown operation 'fault'");
    assert_usage(&["conflicts", "mmap", "munmap", "mprotect"], "unexpected");
    assert_usage(&["conflicts", "mmap", "mmap", "--model", "1..4"], "--model is for a workload");
    assert_usage(&["conflicts", "--lock", "typsafe"], "did you mean 'typesafe'?");
    assert_usage(&["conflicts", "--locks", "rcu,rcu"], "named twice");
    for cores in ["0..4", "4..2", "1..9999", "x", "1.."] {
        assert_usage(&["conflicts", "--model", cores], "for example 1..256");
    }
    assert_usage(&["conflicts", "--line-ns", "60"], "--model");
}

#[test]
fn recording_needs_a_checkout() {
    for args in [&["conflicts"][..], &["conflicts", "page-fault", "--model", "1..4", "--json", "-"]] {
        let out = Outcome::of(command(args).current_dir("/").output().unwrap());
        assert_eq!((out.status, out.stdout.as_str()), (3, ""), "{args:?}");
        assert!(out.stderr.contains("inside a checkout of vmalab"), "{args:?}: {}", out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{args:?}: {}", out.stderr);
    }
}
