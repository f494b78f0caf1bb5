//! Keeping threads on CPUs (`--pin`): a thread that moves takes its caches
//! along, and two that happen to share a CPU never meet in a lock.

use crate::RunError;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that this process may use, at least one.
///
/// # Errors
/// [`RunError::Unsupported`] if the system does not tell.
pub(crate) fn cpus() -> Result<Vec<usize>, RunError> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|errno| unsupported("sched_getaffinity", errno))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Keeps the calling thread on `cpu`.
///
/// # Errors
/// [`RunError::Unsupported`] if it may not run there (any more).
pub(crate) fn to(cpu: usize) -> Result<(), RunError> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(|errno| unsupported("CPU number", errno))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|errno| unsupported("sched_setaffinity", errno))
}

fn unsupported(call: &str, errno: Errno) -> RunError {
    RunError::Unsupported(format!("cannot pin threads to CPUs: {call}: {errno}; --no-pin does without"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_nowhere_else() {
        let all = cpus().unwrap();
        let last = *all.last().unwrap();
        let after = std::thread::spawn(move || to(last).and_then(|()| cpus())).join().unwrap().unwrap();
        assert_eq!(after, [last]);
        assert_eq!(cpus().unwrap(), all, "only that thread");
    }
}
