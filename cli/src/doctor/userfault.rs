//! What userfaultfd can do here, as the fault handler found it.

use super::Check;
use vmalab_fault_handler::uffd::{Attempt, Capabilities, Origin, capabilities, feature};

/// How a feature is told of: its bit, its name, what it is for, and whether
/// nothing goes without it.
const FEATURES: [(u64, &str, &str, bool); 5] = [
    (feature::SIGBUS, "feature SIGBUS", "delivery on the faulting thread (Linux 4.14)", true),
    (feature::WP, "feature WP", "read-only mappings (Linux 5.7)", true),
    (feature::MOVE, "feature MOVE", "mremap and PROT_NONE keep pages by moving them (Linux 6.8)", false),
    (feature::THREAD_ID, "feature THREAD_ID", "queue delivery names the thread (Linux 4.14)", false),
    (feature::EXACT_ADDRESS, "feature EXACT_ADDRESS", "faults to the byte, not the page (Linux 5.18)", false),
];

/// The checks of userfaultfd and its features.
pub fn checks() -> Vec<Check> {
    let found = capabilities();
    let mut checks = vec![any(&found)];
    checks.extend(found.origins.iter().map(|attempt| origin(attempt, &found)));
    checks.extend(FEATURES.map(|(bit, name, purpose, required)| {
        let check = Check::of(name, found.offers(bit), purpose, format!("{purpose}: use a newer kernel"));
        if required { check.required() } else { check }
    }));
    let names: Vec<&str> = found.feature_names().collect();
    checks.push(Check::ok("all features", if names.is_empty() { "none".to_owned() } else { names.join(" ") }));
    checks
}

fn any(found: &Capabilities) -> Check {
    let detail = if found.any_origin() { "can be created" } else { "cannot be created in any way" };
    let help = "run as root, give CAP_SYS_PTRACE, let this user open /dev/userfaultfd, set \
                vm.unprivileged_userfaultfd=1, or allow the system call in the container's seccomp profile";
    Check::of("userfaultfd", found.any_origin(), detail, help).required()
}

/// One way of creating a userfaultfd. That it fails matters only if all do.
fn origin(attempt: &Attempt, found: &Capabilities) -> Check {
    let (name, gives) = match attempt.origin {
        Origin::Syscall => ("userfaultfd, full", "faults inside system calls are served too (queue delivery)"),
        Origin::Device => ("/dev/userfaultfd", "as much as the full system call, by file permission"),
        Origin::UserModeOnly => ("userfaultfd, user mode", "faults of user code; needs no rights"),
    };
    match attempt.result {
        Ok(()) => Check::ok(name, gives),
        Err(errno) if found.any_origin() => {
            Check::missing(name, format!("{errno}"), format!("not needed here, another way works; it gives: {gives}"))
        }
        Err(errno) => Check::missing(name, format!("{errno}"), gives),
    }
}
