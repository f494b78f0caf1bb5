//! Which errors were reached, and which cannot be.
//!
//! Counted on the host's side: an errno counts as reached when the host gave it.

use crate::observe::Answer;
use crate::op::Call;
use serde::Serialize;
use std::collections::BTreeMap;

/// An error that a call has by the kernel lineage §4.
pub struct Expected {
    /// The call.
    pub call: Call,
    /// Errno or signal.
    pub error: &'static str,
    /// Why it cannot be had here.
    pub gap: Option<&'static str>,
}

const fn yes(call: Call, error: &'static str) -> Expected {
    Expected { call, error, gap: None }
}

const fn no(call: Call, error: &'static str, gap: &'static str) -> Expected {
    Expected { call, error, gap: Some(gap) }
}

const FATAL: &str = "only for a process that is being killed";
const MEMORY: &str = "only when the kernel has no memory";

/// The errors of the kernel lineage §4.1-4.7 and 4.10.
pub const EXPECTED: &[Expected] = &[
    yes(Call::Mmap, "EINVAL"),
    yes(Call::Mmap, "ENOMEM"),
    yes(Call::Mmap, "EBADF"),
    yes(Call::Mmap, "EEXIST"),
    yes(Call::Mmap, "EPERM"),
    yes(Call::Mmap, "EAGAIN"),
    yes(Call::Mmap, "EACCES"),
    yes(Call::Mmap, "ENODEV"),
    yes(Call::Mmap, "EOPNOTSUPP"),
    yes(Call::Mmap, "EOVERFLOW"),
    no(Call::Mmap, "ETXTBSY", "only for a swap file"),
    yes(Call::Munmap, "EINVAL"),
    yes(Call::Munmap, "ENOMEM"),
    yes(Call::Munmap, "EPERM"),
    no(Call::Munmap, "EINTR", FATAL),
    yes(Call::Mprotect, "EINVAL"),
    yes(Call::Mprotect, "ENOMEM"),
    yes(Call::Mprotect, "EACCES"),
    yes(Call::Mprotect, "EPERM"),
    no(Call::Mprotect, "EINTR", FATAL),
    yes(Call::Mremap, "EINVAL"),
    yes(Call::Mremap, "EFAULT"),
    yes(Call::Mremap, "ENOMEM"),
    yes(Call::Mremap, "EPERM"),
    yes(Call::Mremap, "EAGAIN"),
    no(Call::Mremap, "EINTR", FATAL),
    yes(Call::Madvise, "EINVAL"),
    yes(Call::Madvise, "ENOMEM"),
    yes(Call::Madvise, "EAGAIN"),
    yes(Call::Madvise, "EACCES"),
    yes(Call::Madvise, "EFAULT"),
    yes(Call::Madvise, "EPERM"),
    no(Call::Madvise, "EBADF", "only in a kernel without swap support"),
    no(Call::Madvise, "EOPNOTSUPP", "only for a file system that cannot punch holes"),
    no(Call::Madvise, "EHWPOISON", "only for broken memory"),
    no(Call::Madvise, "EINTR", FATAL),
    yes(Call::Msync, "EINVAL"),
    yes(Call::Msync, "ENOMEM"),
    yes(Call::Msync, "EBUSY"),
    no(Call::Msync, "EIO", "a file in memory has no I/O errors"),
    yes(Call::Mincore, "EINVAL"),
    yes(Call::Mincore, "ENOMEM"),
    no(Call::Mincore, "EFAULT", "a vector in Rust is always there"),
    yes(Call::Mlock, "EINVAL"),
    yes(Call::Mlock, "ENOMEM"),
    yes(Call::Mlock, "EPERM"),
    no(Call::Mlock, "EAGAIN", MEMORY),
    yes(Call::Mlock2, "EINVAL"),
    yes(Call::Mlock2, "ENOMEM"),
    yes(Call::Mlock2, "EPERM"),
    no(Call::Mlock2, "EAGAIN", MEMORY),
    yes(Call::Munlock, "EINVAL"),
    yes(Call::Munlock, "ENOMEM"),
    yes(Call::Mlockall, "EINVAL"),
    yes(Call::Mlockall, "EPERM"),
    no(Call::Mlockall, "ENOMEM", "the mappings around the window are over any limit"),
    yes(Call::Mseal, "EINVAL"),
    yes(Call::Mseal, "ENOMEM"),
    no(Call::Fork, "ENOMEM", MEMORY),
    no(Call::Fork, "EINTR", FATAL),
    yes(Call::Load, "SEGV_MAPERR"),
    yes(Call::Load, "SEGV_ACCERR"),
    yes(Call::Load, "BUS_ADRERR"),
    yes(Call::Store, "SEGV_MAPERR"),
    yes(Call::Store, "SEGV_ACCERR"),
    yes(Call::Store, "BUS_ADRERR"),
];

/// What is not compared, or never generated, and why.
pub const EXCLUSIONS: &[(&str, &str)] = &[
    (
        "ranges over the window's end",
        "there the host has other mappings, vmalab the end of user space; the end of user space is tried by addresses \
         relative to it, with calls that fail",
    ),
    (
        "mmap with MAP_FIXED in the last page of all addresses",
        "the host takes the address for an errno and returns that",
    ),
    ("hints below the window", "vmalab raises them to the region's start, the host to vm.mmap_min_addr"),
    (
        "the break in the window's last page",
        "the host wants a page free before the next mapping; the region has an end",
    ),
    (
        "RLIMIT_DATA and brk in one sequence",
        "the limit also bounds the heap by itself, and the host's child needs a higher one for what it has beside the \
         window",
    ),
    (
        "mlockall(MCL_CURRENT) without CAP_IPC_LOCK",
        "the mappings that fill the host's address space are over any limit; tried with CAP_IPC_LOCK",
    ),
    ("MAP_HUGETLB", "there are no huge pages in a region"),
    (
        "presence of file pages",
        "the host maps what it finds around a fault (fault-around); contents are compared by loads, and at the end the \
         file itself",
    ),
    ("mincore of file pages", "in vmalab every page within a file's size counts as in memory"),
    (
        "the second half of a page in sequences with files",
        "the files end in the middle of a page; the host's page cache keeps what was stored after the end, vmalab's store \
         does not",
    ),
    (
        "accesses across a page's end in sequences with files",
        "a page of a file is present in one mapping at a time: an access that touches one page through two mappings never \
         ends (docs/semantics.md)",
    ),
    (
        "MADV_FREE and MADV_PAGEOUT in one sequence",
        "the host keeps the zero page, and pages shared with a forked process; vmalab cannot always tell them",
    ),
    (
        "loads inside a hole when a sequence ends",
        "a signal each: at its edges and in some pages between; of the others only that the page tables have nothing there",
    ),
    ("MADV_COLLAPSE, HWPOISON, SOFT_OFFLINE", "outside of vmalab's scope (kernel lineage 4.5)"),
];

/// Calls, and how they ended on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CallCount {
    /// Calls made.
    pub calls: u64,
    /// Calls that failed, or accesses that earned a signal.
    pub errors: u64,
    /// How often each error came.
    pub by_error: BTreeMap<String, u64>,
}

/// By call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<Call, Counts>,
}

/// As [`CallCount`], without text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    calls: u64,
    by_error: BTreeMap<Answer, u64>,
}

impl Counts {
    fn named(&self) -> CallCount {
        let by_error = self.by_error.iter().map(|(error, times)| (error.to_string(), *times)).collect();
        CallCount { calls: self.calls, errors: self.by_error.values().sum(), by_error }
    }
}

/// A line of the errno table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// The call's name.
    pub call: &'static str,
    /// The error.
    pub error: &'static str,
    /// How often.
    pub times: u64,
    /// Why it cannot be reached, where that is so.
    pub gap: Option<String>,
}

impl Coverage {
    /// Counts an answer of the host's.
    pub fn count(&mut self, call: Call, answer: Answer) {
        let counts = self.counts.entry(call).or_default();
        counts.calls += 1;
        if matches!(answer, Answer::Error(_) | Answer::Signal(_)) {
            *counts.by_error.entry(answer).or_default() += 1;
        }
    }

    /// By name of the call.
    pub fn by_call(&self) -> BTreeMap<&'static str, CallCount> {
        self.counts.iter().map(|(call, counts)| (call.name(), counts.named())).collect()
    }

    /// The errno table. A call that was never made has its own reason.
    pub fn errors(&self, why_absent: impl Fn(Call) -> Option<String>) -> Vec<Reached> {
        let by_call = self.by_call();
        let reached = |expected: &Expected| {
            let counts = by_call.get(expected.call.name());
            let times = counts.and_then(|counts| counts.by_error.get(expected.error)).copied().unwrap_or(0);
            let gap = expected.gap.map(str::to_owned).or_else(|| why_absent(expected.call));
            Reached { call: expected.call.name(), error: expected.error, times, gap: gap.filter(|_| times == 0) }
        };
        EXPECTED.iter().map(reached).collect()
    }

    /// Errors that the host gave and §4 does not list.
    pub fn unexpected(&self) -> Vec<(&'static str, String)> {
        let listed = |call: Call, error: &str| EXPECTED.iter().any(|e| e.call == call && e.error == error);
        let all = self.counts.iter().flat_map(|(call, counts)| {
            counts.by_error.keys().map(|error| (*call, error.to_string())).collect::<Vec<_>>()
        });
        all.filter(|(call, error)| !listed(*call, error)).map(|(call, error)| (call.name(), error)).collect()
    }
}
