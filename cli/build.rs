//! Tells the command what it was built from: the commit, the compiler, the
//! profile; and keeps addresses and file offsets of its code the same.
//!
//! Rust links with LLD on x86-64 Linux. LLD lays the text segment out at an
//! address that differs from its file offset, and perf, up to 6.1 at least,
//! takes one for the other when it places USDT probes: it would count 0 of
//! them, without a word. Segments that begin on pages of their own cure it
//! (GNU ld and mold take the option as well).

use std::env;
use std::process::Command;

/// Crates whose sources make the command, from its folder.
const SOURCES: [&str; 7] =
    ["src", "../src", "../fault-handler/src", "../workloads/src", "../limits/src", "../races/src", "../conform/src"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,separate-loadable-segments");
    SOURCES.iter().for_each(|folder| println!("cargo::rerun-if-changed={folder}"));
    // Written at each commit and checkout; elsewhere in a linked worktree.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    let rustc = output(&env::var("RUSTC").expect("cargo sets it"), &["--version"]);
    println!("cargo::rustc-env=VMALAB_RUSTC={}", rustc.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=VMALAB_PROFILE={}", env::var("PROFILE").expect("cargo sets it"));
    // Not the repository of somebody who has this one's sources inside theirs.
    let ours = output("git", &["ls-files", "--error-unmatch", "build.rs"]).is_some();
    let Some(commit) = output("git", &["rev-parse", "--short=12", "HEAD"]).filter(|_| ours) else { return };
    println!("cargo::rustc-env=VMALAB_COMMIT={commit}");
    if output("git", &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty()) {
        println!("cargo::rustc-env=VMALAB_MODIFIED=1");
    }
}

/// What a command prints, if it is there and succeeds.
fn output(command: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(command).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
