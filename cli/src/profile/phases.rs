//! Which phase of a fault, or which operation, a stack belongs to.
//!
//! Told by the names of functions: those of the fault path are functions of
//! their own in a release build.

use super::stacks::Frame;

macro_rules! phases {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a thread was about. The first ones are those of `stress`'s
        /// attribution.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Phase { $($(#[$doc])* $name,)* }

        impl Phase {
            /// For people.
            pub const fn name(self) -> &'static str {
                match self { $(Phase::$name => $text,)* }
            }
        }
    };
}

phases! {
    /// The exception, and its way to us as a signal or a message.
    Delivery = "delivery",
    /// The address space, and the walk of its tree.
    Lookup = "lookup",
    /// Taking and giving back the VMA's lock or the mmap lock.
    Lock = "lock",
    /// Waiting for the mmap lock.
    Wait = "wait",
    /// Judging the access, making the page present.
    Install = "install",
    /// From the handler back to the access.
    Return = "return",
    Mmap = "mmap",
    Munmap = "munmap",
    Mprotect = "mprotect",
    Mremap = "mremap",
    Madvise = "madvise",
    Fork = "fork",
    /// An operation waits for the mmap lock.
    WriteWait = "mmap_lock wait",
    /// The workload's own code.
    Workload = "workload",
    /// Start, end, reports.
    Other = "other",
}

/// Parts of the names of functions in which a fault's handler begins.
const ENTRY: [&str; 3] = ["sigbus::on_sigbus", "queue::Shared::handle", "ServeFault>::serve_fault"];

const INSTALL: [&str; 5] =
    ["handle_mm_fault", "make_present", "make_file_present", "install_filled", "as vmalab::mmu::Mmu>::"];

const LOCK: [&str; 5] = ["lock_vma_under_rcu", "vma_end_read", "mmap_lock::", "VmaSem", "VmaRead"];

const LOOKUP: [&str; 2] = ["lock::vma_lookup", "registry::find"];

const ACCESS: [&str; 5] = ["vmalab_load_u64", "vmalab_store_u64", "vmalab_load_u8", "vmalab_store_u8", "vmalab_copy"];

/// Files of `src/mm/`, and what their functions do.
const OPERATIONS: [(&str, Phase); 6] = [
    ("vmalab::mm::mmap::", Phase::Mmap),
    ("vmalab::mm::munmap::", Phase::Munmap),
    ("vmalab::mm::mprotect::", Phase::Mprotect),
    ("vmalab::mm::mremap::", Phase::Mremap),
    ("vmalab::mm::madvise::", Phase::Madvise),
    ("vmalab::mm::fork::", Phase::Fork),
];

/// The phase of a stack, and how many frames lie before it begins. `frames`
/// from the outermost on.
pub fn of(thread: &str, frames: &[Frame]) -> (Phase, usize) {
    let at = |names: &[&str]| {
        let is_one = |frame: &Frame| {
            let function = frame.function.as_deref().unwrap_or_default();
            names.iter().any(|name| function.contains(name))
        };
        frames.iter().position(is_one)
    };
    let last_user = frames.iter().rposition(|frame| !frame.kernel);
    let in_kernel = last_user.is_none_or(|at| at + 1 < frames.len());

    if let Some(entry) = at(&ENTRY) {
        // The signal's trampoline is part of it.
        let begins = entry - usize::from(entry > 0 && is_trampoline(&frames[entry - 1]));
        return (in_handler(&frames[entry..], at), begins);
    }
    if let Some(at) = frames.iter().rposition(is_trampoline) {
        return (Phase::Return, at);
    }
    let operation = OPERATIONS.iter().filter_map(|&(name, phase)| Some((at(&[name])?, phase))).min();
    if let Some((begins, phase)) = operation {
        let waits = at(&["MmapLock::write_slow", "MmapLock::read_slow"]);
        return waits.map_or((phase, begins), |begins| (Phase::WriteWait, begins));
    }
    if let Some(access) = at(&ACCESS) {
        return (Phase::Delivery, access);
    }
    // Reading messages, waking.
    if thread.starts_with("vmalab-fault") && at(&["queue::"]).is_some() {
        return (Phase::Delivery, at(&["queue::"]).unwrap_or(0));
    }
    // Where the access is a plain instruction of the workload.
    if let Some(fault) = at(&["asm_exc_page_fault"]).filter(|_| in_kernel && at(&["workload"]).is_some()) {
        return (Phase::Delivery, fault);
    }
    match at(&["vmalab_workloads::"]) {
        Some(begins) => (Phase::Workload, begins),
        None => (Phase::Other, 0),
    }
}

fn is_trampoline(frame: &Frame) -> bool {
    frame.function.as_deref() == Some("__restore_rt")
}

fn in_handler(handler: &[Frame], at: impl Fn(&[&str]) -> Option<usize>) -> Phase {
    if at(&["MmapLock::read_slow"]).is_some() {
        Phase::Wait
    } else if at(&LOOKUP).is_some() {
        Phase::Lookup
    } else if at(&INSTALL).is_some() {
        Phase::Install
    } else if at(&LOCK).is_some() {
        Phase::Lock
    } else if handler.iter().skip(1).all(|frame| frame.kernel) {
        // The handler itself makes no system call: the kernel is still at the
        // delivery, or the clock interrupt that came meanwhile is noticed only
        // now, at the first instruction.
        Phase::Delivery
    } else {
        Phase::Lookup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(functions: &[&str]) -> Vec<Frame> {
        let frame = |name: &&str| match name.strip_prefix("k:") {
            Some(name) => Frame { function: Some(name.to_owned()), kernel: true },
            None => Frame { function: Some((*name).to_owned()), kernel: false },
        };
        functions.iter().map(frame).collect()
    }

    const THREAD: &str = "vmalab_workloads::runner::thread";
    const HANDLER: &str = "vmalab_fault_handler::sigbus::on_sigbus";
    const SERVE: &str = "<vmalab::mm::Mm<S,M,P> as vmalab::fault::ServeFault>::serve_fault";

    #[test]
    fn every_phase_is_known_by_its_functions() {
        let lock = "<vmalab::lock::typesafe::TypeSafe as vmalab::lock::LockScheme>::lock_vma_under_rcu";
        for (functions, expected) in [
            (vec![THREAD, "vmalab_store_u64", "k:asm_exc_page_fault", "k:exc_page_fault"], (Phase::Delivery, 1)),
            (vec![THREAD, "__restore_rt", HANDLER], (Phase::Delivery, 1)),
            (vec![THREAD, "__restore_rt", HANDLER, "k:fpu__clear_user_states"], (Phase::Delivery, 1)),
            (vec![THREAD, "__restore_rt", HANDLER, SERVE], (Phase::Lookup, 1)),
            (vec![THREAD, "__restore_rt", HANDLER, SERVE, lock, "vmalab::lock::vma_lookup"], (Phase::Lookup, 1)),
            (vec![THREAD, "__restore_rt", HANDLER, SERVE, lock], (Phase::Lock, 1)),
            (
                vec![THREAD, "__restore_rt", HANDLER, SERVE, "vmalab::mmap_lock::MmapLock::read_slow", "k:futex_wait"],
                (Phase::Wait, 1),
            ),
            (
                vec![
                    THREAD,
                    "__restore_rt",
                    HANDLER,
                    SERVE,
                    "vmalab::fault::<impl vmalab::mm::Mm<S,M,P>>::handle_mm_fault",
                ],
                (Phase::Install, 1),
            ),
            (vec![THREAD, "__restore_rt", "k:__x64_sys_rt_sigreturn"], (Phase::Return, 1)),
            (
                vec![
                    THREAD,
                    "vmalab::mm::munmap::<impl vmalab::mm::Mm<S,M,P>>::munmap",
                    "vmalab::mmap_lock::MmapLock::write_slow",
                ],
                (Phase::WriteWait, 2),
            ),
            (vec![THREAD, "vmalab::mm::mmap::<impl vmalab::mm::Mm<S,M,P>>::map_and_populate"], (Phase::Mmap, 1)),
            (vec![THREAD], (Phase::Workload, 0)),
            (vec!["main"], (Phase::Other, 0)),
        ] {
            assert_eq!(of("fault-0", &stack(&functions)), expected, "{functions:?}");
        }
    }
}
