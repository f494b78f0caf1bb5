//! The host's side: sequences run as real calls in child processes.
//!
//! ```text
//! this process ── zygote, one for each Place ── a child for each sequence
//! ```
//!
//! A [`Host`] forks a **zygote** whose address space is full but for the
//! scratch window, so that a call without a hint finds its place just where it
//! does in vmalab's region ([`zygote`]). For each sequence the zygote forks a
//! **child**, which runs all steps and writes what it sees into shared memory
//! ([`child`]): no round trip for a step.

mod access;
mod child;
mod procfs;
mod zygote;

pub use zygote::TASK_SIZE;

use crate::PAGE;
use crate::op::{Op, Place, Sequence, Setup};
use nix::errno::Errno;
use std::ffi::CStr;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

/// Most steps of a sequence.
pub const OPS_MAX: usize = 1024;
/// Words that the observations of one sequence may take.
const WORDS: usize = 4 << 20;
/// Scratch memory of the child, for files of /proc.
const TEXT: usize = 64 << 10;
/// How long a sequence may take before the host's side counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the files that are mapped: five pages and a half.
pub const FILE_BYTES: usize = 5 * PAGE + PAGE / 2;

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

/// What this process, the zygote and its children share.
#[repr(C)]
struct Shared {
    setup: Setup,
    count: usize,
    ops: [Op; OPS_MAX],
    /// Room for mappings, measured by the zygote: `vm.max_map_count` less what
    /// the process has beside the window.
    map_count_room: AtomicUsize,
    /// Whether the break could be put into the window.
    has_brk: AtomicI32,
    /// Words written.
    used: AtomicUsize,
    words: [u64; WORDS],
    text: [u8; TEXT],
}

/// The files that [`Slot`](crate::op::Slot)s stand for.
#[derive(Clone, Copy, Debug)]
pub struct Files {
    read_write: i32,
    read_only: i32,
    write_only: i32,
    sealed: i32,
    directory: i32,
}

/// Contents of byte `at` of a file, when a sequence starts.
pub fn file_byte(at: usize) -> u8 {
    (at / PAGE * 16 + at % 7 + 1) as u8
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

    fn all(&self) -> [i32; 5] {
        [self.read_write, self.read_only, self.write_only, self.sealed, self.directory]
    }
}

/// The host's side of one [`Place`].
pub struct Host {
    place: Place,
    shared: NonNull<Shared>,
    files: Files,
    /// Commands to the zygote; closing it ends the zygote.
    commands: i32,
    replies: i32,
    zygote: i32,
}

// SAFETY: `shared` is memory of our own, used by whoever owns the `Host`.
unsafe impl Send for Host {}

impl Host {
    /// Forks the zygote.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn new(place: Place) -> Result<Host, HostError> {
        let files = Files::new()?;
        let shared = map_shared()?;
        let (commands_read, commands) = pipe()?;
        let (replies, replies_write) = pipe()?;
        let window = reserve_window(place)?;
        // SAFETY: the zygote only makes system calls and touches `shared`; it
        // never returns. See `zygote::main` for what else.
        let zygote = check("fork", unsafe { libc::fork() })?;
        if zygote == 0 {
            // SAFETY: just forked, and the window is reserved for it.
            unsafe { zygote::main(shared.as_ptr(), &files, place, window, commands_read, replies_write) };
        }
        // SAFETY: our own reservation and descriptors.
        unsafe {
            libc::munmap(window as *mut _, place.bytes());
            libc::close(commands_read);
            libc::close(replies_write);
        }
        let host = Host { place, shared, files, commands, replies, zygote };
        match host.reply()? {
            0 => Ok(host),
            stage => Err(HostError::Zygote(stage)),
        }
    }

    /// Where it runs sequences.
    pub fn place(&self) -> Place {
        self.place
    }

    fn shared(&self) -> &Shared {
        // SAFETY: mapped as long as we live. Fields that are not atomic are
        // written by a child between `start` and `finish` only, when nobody here
        // looks at them.
        unsafe { self.shared.as_ref() }
    }

    /// How many mappings the window may hold (`vm.max_map_count`).
    pub fn map_count_room(&self) -> usize {
        self.shared().map_count_room.load(Ordering::Relaxed)
    }

    /// Whether `brk` works in the window.
    pub fn has_brk(&self) -> bool {
        self.shared().has_brk.load(Ordering::Relaxed) != 0
    }

    /// Starts a sequence in a child. [`finish`](Host::finish) must follow.
    ///
    /// # Panics
    /// If the sequence is for another place, or too long.
    pub fn start(&mut self, sequence: &Sequence) {
        assert!(sequence.setup.place == self.place && sequence.ops.len() <= OPS_MAX);
        // SAFETY: no child runs.
        let shared = unsafe { self.shared.as_mut() };
        shared.setup = sequence.setup;
        shared.count = sequence.ops.len();
        shared.ops[..sequence.ops.len()].copy_from_slice(&sequence.ops);
        shared.used.store(0, Ordering::Relaxed);
        // SAFETY: a byte from our stack. A failure shows in `finish`.
        unsafe { libc::write(self.commands, b"s".as_ptr().cast(), 1) };
    }

    /// Waits for the child, and gives its records.
    ///
    /// # Errors
    /// [`HostError::Child`]; the sequence's last steps are missing.
    pub fn finish(&mut self) -> Result<&[u64], HostError> {
        let status = self.reply()?;
        let used = self.shared().used.load(Ordering::Relaxed);
        if status != 0 {
            let steps = steps(&self.shared().words[..used]);
            return Err(HostError::Child(format!("ended with wait status {status:#x} after {steps} steps")));
        }
        Ok(&self.shared().words[..used])
    }

    fn reply(&self) -> Result<i32, HostError> {
        let mut poll = libc::pollfd { fd: self.replies, events: libc::POLLIN, revents: 0 };
        let mut status = [0; 4];
        // SAFETY: plain calls on memory of our own.
        unsafe {
            loop {
                match libc::poll(&mut poll, 1, PATIENCE.as_millis() as i32) {
                    0 => return Err(HostError::Child("is stuck".into())),
                    n if n < 0 && Errno::last() == Errno::EINTR => {}
                    _ => break,
                }
            }
            if libc::read(self.replies, status.as_mut_ptr().cast(), 4) != 4 {
                return Err(HostError::Child("is gone, and its parent too".into()));
            }
        }
        Ok(i32::from_ne_bytes(status))
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

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: descriptors, memory and child are ours.
        unsafe {
            libc::close(self.commands);
            libc::close(self.replies);
            libc::kill(self.zygote, libc::SIGKILL);
            libc::waitpid(self.zygote, std::ptr::null_mut(), 0);
            libc::munmap(self.shared.as_ptr().cast(), size_of::<Shared>());
            for fd in self.files.all() {
                libc::close(fd);
            }
        }
    }
}

fn map_shared() -> Result<NonNull<Shared>, HostError> {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping. All zeros is a valid `Shared` as far as it is read
    // before it is written.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(HostError::SetUp("mmap", Errno::last()));
    }
    Ok(NonNull::new(at.cast()).expect("mmap without a hint gives no null"))
}

/// Reserves a place for the window, aligned to 2 MiB, where the kernel puts
/// mappings by itself. Freed again by both sides of the fork.
fn reserve_window(place: Place) -> Result<usize, HostError> {
    const ALIGN: usize = 2 << 20;
    let (bytes, flags) = (place.bytes(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping, whose ends are given back at once.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), bytes + ALIGN, libc::PROT_NONE, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(HostError::SetUp("mmap", Errno::last()));
        }
        let start = (at as usize).next_multiple_of(ALIGN);
        if start > at as usize {
            libc::munmap(at, start - at as usize);
        }
        let end = at as usize + bytes + ALIGN;
        if end > start + bytes {
            libc::munmap((start + bytes) as *mut _, end - start - bytes);
        }
        Ok(start)
    }
}

fn pipe() -> Result<(i32, i32), HostError> {
    let mut ends = [0; 2];
    // SAFETY: fills the array.
    check("pipe2", unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((ends[0], ends[1]))
}
