//! `vmalab doctor`: can this machine and user run it, and what would help.

use crate::args::DoctorArgs;
use crate::failure::{Failure, status};
use crate::output::{print, print_json};
use crate::table::facts;
use serde::Serialize;
use std::fs;
use std::path::Path;

mod userfault;

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// Whether `ready` depends on it.
    required: bool,
    detail: String,
    help: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Check {
        Check { name, ok: true, required: false, detail: detail.into(), help: None }
    }

    fn missing(name: &'static str, detail: impl Into<String>, help: impl Into<String>) -> Check {
        Check { name, ok: false, required: false, detail: detail.into(), help: Some(help.into()) }
    }

    fn of(name: &'static str, ok: bool, detail: impl Into<String>, help: impl Into<String>) -> Check {
        if ok { Check::ok(name, detail) } else { Check::missing(name, detail, help) }
    }

    fn required(self) -> Check {
        Check { required: true, ..self }
    }
}

#[derive(Serialize)]
struct DoctorReport {
    schema: u32,
    command: &'static str,
    ready: bool,
    kernel: String,
    checks: Vec<Check>,
}

/// Looks at everything.
pub fn run(args: &DoctorArgs) -> Result<u8, Failure> {
    let kernel = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    let mut checks = vec![architecture(), kernel_version(&kernel)];
    checks.extend(userfault::checks());
    checks.extend([
        unprivileged(),
        membarrier(),
        cpus(),
        open_files(),
        addresses(),
        overcommit(),
        huge_pages(),
        perf(),
    ]);
    let ready = checks.iter().all(|check| check.ok || !check.required);
    let report = DoctorReport { schema: 1, command: "doctor", ready, kernel, checks };
    if args.json {
        print_json(&report)?
    } else {
        print(&text(&report))?
    }
    Ok(if ready { status::DONE } else { status::CANNOT })
}

fn text(report: &DoctorReport) -> String {
    let rows = report.checks.iter().map(|check| {
        let mark = match (check.ok, check.required) {
            (true, _) => "ok",
            (false, true) => "FAIL",
            (false, false) => "note",
        };
        let help = check.help.as_ref().map_or_else(String::new, |help| format!("\nhelp: {help}"));
        (format!("{mark:5}{}", check.name), format!("{}{help}", check.detail))
    });
    let verdict = if report.ready {
        "\nready: this machine and user can run vmalab\n"
    } else {
        "\nnot ready: what is marked FAIL must be mended first\n"
    };
    facts(29, rows.collect()) + verdict
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn architecture() -> Check {
    let here = std::env::consts::ARCH;
    Check::of("architecture", here == "x86_64", here, "only x86-64 is supported").required()
}

/// Oldest kernel whose userfaultfd has what is asked for.
const OLDEST: (u32, u32) = (5, 11);

fn kernel_version(release: &str) -> Check {
    let (major, minor) = OLDEST;
    let help = format!("Linux {major}.{minor} or later is needed");
    Check::of("kernel", version(release).is_some_and(|v| v >= OLDEST), release, help).required()
}

/// `(6, 18)` of `6.18.44-fc`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn unprivileged() -> Check {
    let name = "unprivileged userfaultfd";
    match read("/proc/sys/vm/unprivileged_userfaultfd").as_deref() {
        Some("1") => Check::ok(name, "vm.unprivileged_userfaultfd is 1: any user may serve the kernel's faults too"),
        Some(value) => Check::ok(
            name,
            format!(
                "vm.unprivileged_userfaultfd is {value}: without rights, user-mode faults only (enough for vmalab)"
            ),
        ),
        None => Check::ok(name, "vm.unprivileged_userfaultfd is not there"),
    }
}

fn membarrier() -> Check {
    let name = "membarrier";
    use rustix::thread::{MembarrierCommand, membarrier_query};
    if membarrier_query().contains_command(MembarrierCommand::PrivateExpedited) {
        Check::ok(name, "RCU read sections need no fence")
    } else {
        Check::missing(
            name,
            "not there: each RCU read section pays a full fence",
            "allow membarrier(2) in the container's seccomp profile, or use a kernel with CONFIG_MEMBARRIER",
        )
    }
}

fn cpus() -> Check {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Check::of(
        "CPUs",
        cpus > 1,
        format!("{cpus} usable"),
        "with one CPU threads take turns: locks are hardly contended, and comparisons say little",
    )
}

fn open_files() -> Check {
    use rustix::process::{Resource, getrlimit};
    let name = "open files";
    let limit = getrlimit(Resource::Nofile).current;
    let wanted = vmalab_fault_handler::stripes::open_files_wanted() as u64;
    let detail = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("{limit} (RLIMIT_NOFILE)"));
    Check::of(
        name,
        limit.is_none_or(|limit| limit >= wanted),
        detail,
        format!("'ulimit -n {wanted}' or more, for regions in stripes: two threads' faults are faster by some percent"),
    )
}

fn addresses() -> Check {
    use rustix::process::{Resource, getrlimit};
    let name = "address space limit";
    match getrlimit(Resource::As).current {
        None => Check::ok(name, "none (RLIMIT_AS)"),
        Some(limit) => Check::missing(
            name,
            format!("RLIMIT_AS is {} MiB", limit >> 20),
            "a region must fit below it: 'ulimit -v unlimited', or a smaller --region",
        ),
    }
}

fn overcommit() -> Check {
    let name = "overcommit";
    match read("/proc/sys/vm/overcommit_memory").as_deref() {
        Some("2") => Check::missing(
            name,
            "vm.overcommit_memory is 2: a reserved region counts as memory in use",
            "'sysctl vm.overcommit_memory=0', or a smaller --region",
        ),
        Some(mode) => Check::ok(name, format!("vm.overcommit_memory is {mode}")),
        None => Check::ok(name, "unknown"),
    }
}

fn huge_pages() -> Check {
    let setting = read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = setting.split(['[', ']']).nth(1).unwrap_or("not there");
    Check::ok("transparent huge pages", format!("{chosen}; regions ask for none"))
}

fn perf() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|folder| folder.join("perf")).find(|file| is_executable(file)) {
        Some(perf) => {
            let paranoid = read("/proc/sys/kernel/perf_event_paranoid").unwrap_or_else(|| "unknown".to_owned());
            Check::ok("perf", format!("{}, perf_event_paranoid {paranoid}", perf.display()))
        }
        None => Check::missing(
            "perf",
            "not found",
            "only for profiles: install it (Debian: linux-perf, Ubuntu: linux-tools-generic, Fedora: perf)",
        ),
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.11"), Some((5, 11)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("unknown"), None);
        assert!(version("5.9.1") < Some(OLDEST));
    }
}
