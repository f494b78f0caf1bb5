//! [`Faults`]: an address space over userfaultfd, whose accesses are real loads
//! and stores (`sigbus` and `queue` delivery). The only file that knows the
//! names of the fault handler's crate.
