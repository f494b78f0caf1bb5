//! The host's side: sequences run as real calls in child processes.
//!
//! ```text
//! this process ── zygote, one for each Place ── a child for each sequence
//! ```
//!
//! A [`Host`] forks a **zygote** whose address space is full but for the
//! scratch window, so that a call without a hint finds its place just where it
//! does in vmalab's region (`zygote.rs`). For each sequence the zygote forks a
//! **child**, which runs all steps and writes what it sees into shared memory
//! (`child.rs`): no round trip for a step.

mod access;
mod child;
mod procfs;
mod zygote;

pub use zygote::TASK_SIZE;

use crate::op::{Place, Sequence};
use crate::remote::{FILE_BYTES, OPS_MAX, Remote};
use nix::errno::Errno;
use std::ffi::CStr;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a step may take before the host's side counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the host's side does not work; the text says what would help.
#[derive(Debug)]
pub enum HostError {
    /// A call failed while it was set up.
    SetUp(&'static str, Errno),
    /// The zygote could not make a full address space.
    Zygote(i32),
    /// A child ended early, or did not end.
    Child(String),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostError::SetUp(call, errno) => write!(f, "cannot set up the host's side ({call}: {errno})"),
            HostError::Zygote(zygote::NO_QUERY) => {
                f.write_str("the host does not answer PROCMAP_QUERY: Linux 6.11 or later, with /proc, is needed")
            }
            HostError::Zygote(stage) => write!(
                f,
                "cannot fill the address space of a child process (stage {stage}): try without 'ulimit -v', and on \
                 x86-64 Linux with 47 address bits"
            ),
            HostError::Child(how) => write!(f, "the host's child process {how}"),
        }
    }
}

impl std::error::Error for HostError {}

/// The files that [`Slot`](crate::op::Slot)s stand for.
#[derive(Debug)]
pub struct Files {
    read_write: i32,
    read_only: i32,
    write_only: i32,
    sealed: i32,
    directory: i32,
}

fn check(call: &'static str, result: i32) -> Result<i32, HostError> {
    Errno::result(result).map_err(|errno| HostError::SetUp(call, errno))
}

impl Files {
    fn new() -> Result<Files, HostError> {
        // SAFETY: plain calls with C strings; the descriptors are ours.
        unsafe {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            let read_write = check("memfd_create", libc::memfd_create(c"conform".as_ptr(), flags))?;
            let sealed = check("memfd_create", libc::memfd_create(c"conform-sealed".as_ptr(), flags))?;
            for fd in [read_write, sealed] {
                check("ftruncate", libc::ftruncate(fd, FILE_BYTES as i64))?;
                child::fill_file(fd);
            }
            check("fcntl(F_ADD_SEALS)", libc::fcntl(sealed, libc::F_ADD_SEALS, libc::F_SEAL_WRITE))?;
            let path = std::ffi::CString::new(format!("/proc/self/fd/{read_write}")).expect("no zero byte");
            let open = |path: &CStr, how| check("open", libc::open(path.as_ptr(), how | libc::O_CLOEXEC));
            Ok(Files {
                read_write,
                sealed,
                read_only: open(&path, libc::O_RDONLY)?,
                write_only: open(&path, libc::O_WRONLY)?,
                directory: open(c"/", libc::O_RDONLY | libc::O_DIRECTORY)?,
            })
        }
    }
}

/// The host's side of one [`Place`].
pub struct Host {
    place: Place,
    zygote: Remote,
    /// The zygote has its own copies of the descriptors; these keep nothing
    /// alive, and go when we do.
    _files: Files,
}

impl Host {
    /// Forks the zygote.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn new(place: Place) -> Result<Host, HostError> {
        let files = Files::new()?;
        let reservation = Reservation::new(place)?;
        // SAFETY: the zygote only makes system calls and touches memory of its own.
        let zygote = unsafe { Remote::fork(|shared, ends| zygote::main(shared, &files, place, reservation, ends)) };
        reservation.free();
        let zygote = zygote.map_err(|(call, errno)| HostError::SetUp(call, errno))?;
        let host = Host { place, zygote, _files: files };
        match host.reply()? {
            0 => Ok(host),
            stage => Err(HostError::Zygote(stage)),
        }
    }

    /// Where it runs sequences.
    pub fn place(&self) -> Place {
        self.place
    }

    /// How many mappings the window may hold (`vm.max_map_count`).
    pub fn map_count_room(&self) -> usize {
        self.zygote.shared().map_count_room.load(Ordering::Relaxed)
    }

    /// Whether `brk` works in the window.
    pub fn has_brk(&self) -> bool {
        self.zygote.shared().has_brk.load(Ordering::Relaxed) != 0
    }

    /// Starts a sequence in a child. [`finish`](Host::finish) must follow.
    ///
    /// # Panics
    /// If the sequence is for another place, or too long.
    pub fn start(&mut self, sequence: &Sequence) {
        assert!(sequence.setup.place == self.place && sequence.ops.len() <= OPS_MAX);
        self.zygote.start(sequence);
    }

    /// Waits for the child, and gives its records.
    ///
    /// # Errors
    /// [`HostError::Child`]; the sequence's last steps are missing.
    pub fn finish(&mut self) -> Result<&[u64], HostError> {
        match self.reply()? {
            0 => Ok(self.zygote.words()),
            status => {
                let steps = steps(self.zygote.words());
                Err(HostError::Child(format!("ended with wait status {status:#x} after {steps} steps")))
            }
        }
    }

    fn reply(&self) -> Result<i32, HostError> {
        self.zygote.wait(PATIENCE).map_err(|silence| HostError::Child(silence.to_string()))
    }
}

fn steps(mut words: &[u64]) -> usize {
    let mut steps = 0;
    while let Some((_, rest)) = crate::observe::next_record(words) {
        words = rest;
        steps += 1;
    }
    steps
}

impl Drop for Files {
    fn drop(&mut self) {
        for fd in [self.read_write, self.read_only, self.write_only, self.sealed, self.directory] {
            // SAFETY: our own descriptor.
            unsafe { libc::close(fd) };
        }
    }
}

/// Where the window will be, and what is kept free around it until the zygote
/// has been forked.
#[derive(Clone, Copy)]
struct Reservation {
    start: usize,
    bytes: usize,
    window: usize,
}

impl Reservation {
    /// Aligned to 2 MiB, where the kernel puts mappings by itself. Below the
    /// program and its libraries, if there is room: `smaps` tells of everything
    /// up to the window. And above a third of all addresses (TASK_UNMAPPED_BASE):
    /// the kernel's search upwards begins there.
    ///
    /// What lies within 2 MiB around it is filled with what cannot be accessed: a
    /// stack that grows towards memory that can be stops at the guard gap; in
    /// vmalab it grows to the region's start.
    fn new(place: Place) -> Result<Reservation, HostError> {
        const ALIGN: usize = 2 << 20;
        const HINT: usize = 3 << 44;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let bytes = place.bytes() + 3 * ALIGN;
        // SAFETY: a new mapping.
        let start = unsafe { libc::mmap(HINT as *mut _, bytes, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(HostError::SetUp("mmap", Errno::last()));
        }
        let start = start as usize;
        Ok(Reservation { start, bytes, window: (start + ALIGN).next_multiple_of(ALIGN) })
    }

    /// Gives it back; each process has its own.
    fn free(self) {
        // SAFETY: our own mapping, which nobody has touched.
        unsafe { libc::munmap(self.start as *mut _, self.bytes) };
    }
}
