//! A process that runs sequences for us, and the memory shared with it.
//!
//! Both sides run in processes of their own: the host's because its address
//! space is special, vmalab's so that a hang or a crash is a divergence like
//! any other, to be shrunk and shown.

use crate::PAGE;
use crate::op::{Op, Place, Sequence, Setup};
use nix::errno::Errno;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

/// Most steps of a sequence.
pub const OPS_MAX: usize = 1024;
/// Words that the observations of one sequence may take, in the large window.
const WORDS: usize = 4 << 20;
/// In a window of 64 pages.
const WORDS_SMALL: usize = WORDS / 8;
/// Scratch memory, for files of /proc.
const TEXT: usize = 64 << 10;
/// Pages of the largest window.
pub const PAGES_MAX: usize = 2048;
/// Bytes of the files that are mapped: five pages and a half.
pub const FILE_BYTES: usize = 5 * PAGE + PAGE / 2;

/// Contents of a file when a sequence starts.
pub static FILE: [u8; FILE_BYTES] = {
    let (mut bytes, mut at) = ([0; FILE_BYTES], 0);
    while at < FILE_BYTES {
        bytes[at] = (at / PAGE * 16 + at % 7 + 1) as u8;
        at += 1;
    }
    bytes
};

/// What is shared.
#[repr(C)]
pub struct Shared {
    /// Of the sequence.
    pub setup: Setup,
    /// Steps.
    pub count: usize,
    /// The steps.
    pub ops: [Op; OPS_MAX],
    /// Room for mappings in the window (`vm.max_map_count`).
    pub map_count_room: AtomicUsize,
    /// Whether the break could be put into the window.
    pub has_brk: AtomicI32,
    /// Words written.
    pub used: AtomicUsize,
    /// What a panic said.
    pub message: [u8; 512],
    /// Bytes of it.
    pub message_len: AtomicUsize,
    /// Scratch memory.
    pub text: [u8; TEXT],
    /// The records. Last: of small windows only the beginning is mapped.
    words: [u64; WORDS],
}

impl Shared {
    /// What a sequence is run from and written to.
    pub fn parts(&mut self) -> Parts<'_> {
        let Shared { setup, count, ops, used, text, words, .. } = self;
        Parts { setup: *setup, ops: &ops[..*count], used, text, words: &mut words[..words_in(setup.place)] }
    }

    /// Unmaps what a sequence in `place` does not need: `mlockall` would make
    /// all of it present.
    ///
    /// # Safety
    /// `shared` is this process's own mapping, and from now on nobody in it
    /// reaches beyond the words of `place`.
    pub unsafe fn trim(shared: *mut Shared, place: Place) {
        let used = (std::mem::offset_of!(Shared, words) + words_in(place) * size_of::<u64>()).next_multiple_of(PAGE);
        let rest = size_of::<Shared>().next_multiple_of(PAGE) - used;
        if rest > 0 {
            // SAFETY: the end of the mapping; the caller's promise.
            unsafe { libc::munmap(shared.cast::<u8>().add(used).cast(), rest) };
        }
    }
}

/// A sequence, and where what is seen of it goes.
pub struct Parts<'a> {
    /// Of the sequence.
    pub setup: Setup,
    /// The steps.
    pub ops: &'a [Op],
    /// Words written.
    pub used: &'a AtomicUsize,
    /// Room for the records.
    pub words: &'a mut [u64],
    /// Scratch memory.
    pub text: &'a mut [u8],
}

fn words_in(place: Place) -> usize {
    if place == Place::Large { WORDS } else { WORDS_SMALL }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// No step was finished for too long.
    Stuck,
    /// The process has ended.
    Gone,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Silence::Stuck => "hangs",
            Silence::Gone => "died",
        })
    }
}

/// The process. Killed when this is dropped, or when the thread ends that made it.
pub struct Remote {
    shared: NonNull<Shared>,
    /// Commands; closing it ends the process.
    commands: i32,
    replies: i32,
    pid: i32,
}

// SAFETY: `shared` is memory of our own, used by whoever owns the `Remote`.
unsafe impl Send for Remote {}

impl Remote {
    /// Forks a process that runs `main` with the shared memory and its ends of
    /// the pipes.
    ///
    /// # Errors
    /// The call that failed.
    ///
    /// # Safety
    /// `main` may not rely on anything that other threads of this process do.
    pub unsafe fn fork(main: impl FnOnce(*mut Shared, Ends)) -> Result<Remote, (&'static str, Errno)> {
        let shared = map_shared()?;
        let (commands_read, commands) = pipe()?;
        let (replies, replies_write) = pipe()?;
        // SAFETY: asks for a number; then, the caller's promise.
        let (parent, pid) = unsafe { (libc::getpid(), libc::fork()) };
        match pid {
            0 => {
                // A process that hangs must not outlive us.
                // SAFETY: plain calls.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    if libc::getppid() != parent {
                        exit(1);
                    }
                }
                main(shared.as_ptr(), Ends { commands: commands_read, replies: replies_write });
                exit(0)
            }
            pid if pid < 0 => return Err(("fork", Errno::last())),
            _ => {}
        }
        // SAFETY: our own descriptors; and memory of ours, which processes to
        // come are to do without: a host's child pays for all that it has.
        unsafe {
            libc::close(commands_read);
            libc::close(replies_write);
            libc::madvise(shared.as_ptr().cast(), size_of::<Shared>(), libc::MADV_DONTFORK);
        }
        Ok(Remote { shared, commands, replies, pid })
    }

    /// The shared memory. Fields that are not atomic are the process's between
    /// `start` and the end of `wait`.
    pub fn shared(&self) -> &Shared {
        // SAFETY: mapped as long as we live.
        unsafe { self.shared.as_ref() }
    }

    /// Asks the process to run a sequence.
    pub fn start(&mut self, sequence: &Sequence) {
        // SAFETY: the process waits for the command below.
        let shared = unsafe { self.shared.as_mut() };
        shared.setup = sequence.setup;
        shared.count = sequence.ops.len();
        shared.ops[..sequence.ops.len()].copy_from_slice(&sequence.ops);
        shared.used.store(0, Ordering::Relaxed);
        shared.message_len.store(0, Ordering::Relaxed);
        // SAFETY: a byte from our stack. A failure shows in `wait`.
        unsafe { libc::write(self.commands, b"s".as_ptr().cast(), 1) };
    }

    /// Waits for a number from the process, with patience for each step.
    ///
    /// # Errors
    /// [`Silence`].
    pub fn wait(&self, patience: Duration) -> Result<i32, Silence> {
        let mut status = [0; 4];
        let mut used = usize::MAX;
        loop {
            let mut poll = libc::pollfd { fd: self.replies, events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure of our own.
            match unsafe { libc::poll(&mut poll, 1, patience.as_millis() as i32) } {
                0 => {
                    let now = self.shared().used.load(Ordering::Relaxed);
                    if now == used {
                        return Err(Silence::Stuck);
                    }
                    used = now;
                }
                n if n < 0 => {}
                _ => break,
            }
        }
        // SAFETY: a buffer of four bytes.
        let got = unsafe { libc::read(self.replies, status.as_mut_ptr().cast(), 4) };
        if got == 4 { Ok(i32::from_ne_bytes(status)) } else { Err(Silence::Gone) }
    }

    /// The words written so far.
    pub fn words(&self) -> &[u64] {
        let shared = self.shared();
        &shared.words[..shared.used.load(Ordering::Relaxed)]
    }

    /// What a panic said.
    pub fn message(&self) -> String {
        let shared = self.shared();
        String::from_utf8_lossy(&shared.message[..shared.message_len.load(Ordering::Relaxed)]).into_owned()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // SAFETY: descriptors, memory and child are ours.
        unsafe {
            libc::close(self.commands);
            libc::close(self.replies);
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            libc::munmap(self.shared.as_ptr().cast(), size_of::<Shared>());
        }
    }
}

/// The process's ends of the pipes.
#[derive(Clone, Copy)]
pub struct Ends {
    commands: i32,
    replies: i32,
}

impl Ends {
    /// Ctrl-C is the parent's affair: when it ends, the commands do.
    pub fn ignore_signals(&self) {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP] {
            // SAFETY: SIG_IGN is a valid action.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }

    /// Waits for the next command; without one the process ends.
    pub fn next(&self) {
        let mut command = 0u8;
        // SAFETY: a buffer of one byte.
        if unsafe { libc::read(self.commands, (&raw mut command).cast(), 1) } != 1 {
            exit(0);
        }
    }

    /// Answers.
    pub fn reply(&self, status: i32) {
        // SAFETY: four bytes of our stack.
        unsafe { libc::write(self.replies, (&raw const status).cast(), 4) };
    }
}

/// Ends the process at once.
pub fn exit(status: i32) -> ! {
    // SAFETY: nothing of this process is needed any more.
    unsafe { libc::_exit(status) }
}

fn map_shared() -> Result<NonNull<Shared>, (&'static str, Errno)> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping. All zeros is a valid `Shared` as far as it is read
    // before it is written.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(("mmap", Errno::last()));
    }
    Ok(NonNull::new(at.cast()).expect("mmap without a hint gives no null"))
}

fn pipe() -> Result<(i32, i32), (&'static str, Errno)> {
    let mut ends = [0; 2];
    // SAFETY: fills the array.
    let result = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    Errno::result(result).map_err(|errno| ("pipe2", errno))?;
    Ok((ends[0], ends[1]))
}
