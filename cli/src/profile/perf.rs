//! The tool `perf`: whether it may be used, recording, reading.

use crate::failure::{Failure, status};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether perf is there and allowed; the event to sample.
pub fn check() -> Result<&'static str, Failure> {
    match Command::new("perf").arg("--version").stdin(Stdio::null()).output() {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::cannot(
                "perf is missing: install it (Debian: apt-get install linux-perf; Ubuntu: linux-tools-$(uname -r); \
                 Fedora: perf)",
            ));
        }
        Err(error) => return Err(Failure::cannot(format!("cannot run perf: {error}"))),
    }
    // Many virtual machines have no cycle counter; the clock works everywhere.
    if counts("cycles") {
        return Ok("cycles");
    }
    if counts("cpu-clock") {
        return Ok("cpu-clock");
    }
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    Err(Failure::cannot(format!(
        "perf is not allowed here (kernel.perf_event_paranoid is {}): be root, or \
         'sudo sysctl kernel.perf_event_paranoid=1'; a container needs CAP_PERFMON and a seccomp profile that lets \
         perf_event_open through",
        paranoid.trim()
    )))
}

/// Whether perf can count `event` here.
fn counts(event: &str) -> bool {
    let ran = Command::new("perf").args(["stat", "-x,", "-e", event, "true"]).stdin(Stdio::null()).output();
    ran.is_ok_and(|ran| {
        let said = String::from_utf8_lossy(&ran.stderr);
        ran.status.success() && !said.contains("not supported") && !said.contains("not counted")
    })
}

/// What is recorded, and where it goes.
pub struct Recording<'a> {
    pub event: &'a str,
    /// Samples a second.
    pub frequency: u32,
    pub data: &'a Path,
    /// Arguments of `stress`.
    pub stress: &'a [OsString],
    /// Its JSON.
    pub report: &'a Path,
    /// Its table.
    pub table: &'a Path,
}

/// Records a run of this very program; its exit status.
pub fn record(recording: &Recording<'_>) -> Result<u8, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::cannot(format!("cannot find myself: {error}")))?;
    let table = File::create(recording.table)
        .map_err(|error| Failure::usage(format!("cannot write {}: {error}", recording.table.display())))?;
    let ran = Command::new("perf")
        .args(["record", "--quiet", "--call-graph", "fp", "-e", recording.event])
        .args(["-F", &recording.frequency.to_string(), "-o"])
        .arg(recording.data)
        .arg("--")
        .arg(program)
        .arg("stress")
        .args(recording.stress)
        .args(["--no-floor", "--json"])
        .arg(recording.report)
        .stdin(Stdio::null())
        .stdout(table)
        .status()
        .map_err(|error| Failure::cannot(format!("cannot run perf: {error}")))?;
    Ok(ran.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(status::CANNOT))
}

/// The samples as text: for each a line with the thread's name, then its
/// frames, the innermost first.
pub fn script(data: &Path) -> Result<String, Failure> {
    let ran = Command::new("perf")
        .args(["script", "--no-inline", "-F", "comm,tid,ip,sym,dso", "-i"])
        .arg(data)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::cannot(format!("cannot run perf: {error}")))?;
    if !ran.status.success() {
        return Err(Failure::cannot(format!("perf script failed: {}", String::from_utf8_lossy(&ran.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
