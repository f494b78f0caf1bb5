//! The child: runs one sequence as real calls.
//!
//! It must not allocate, ever: the only free addresses are the window's.

use super::procfs::Procfs;
use super::zygote::TASK_SIZE;
use super::{Files, access};
use crate::PAGE;
use crate::observe::{Answer, Recorder, Side, Signal, VmaSeen, Want};
use crate::op::{At, Limit, Op, Setup, Slot};
use crate::remote::{FILE, Parts, Shared, exit};
use nix::errno::Errno;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Exit statuses beside 0.
const FORK_FAILED: i32 = 71;
const NO_ROOM: i32 = 72;

/// The host's address space, as a [`Side`].
struct Here<'a> {
    procfs: Procfs,
    window: usize,
    pages: usize,
    files: &'a Files,
    base: Base,
}

/// What counts towards limits beside the window, in pages.
#[derive(Clone, Copy)]
struct Base {
    total: u64,
    data: u64,
}

impl Side for Here<'_> {
    fn vmas(&mut self, each: &mut dyn FnMut(VmaSeen)) {
        self.procfs.vmas(self.window, self.pages * PAGE, each);
    }

    fn presence(&mut self, bits: &mut [u64]) {
        self.procfs.presence(self.window, bits, self.pages);
    }

    fn in_page_table(&mut self, bits: &mut [u64]) {
        self.procfs.in_page_table(self.window, bits, self.pages);
    }

    fn word(&mut self, offset: usize) -> u64 {
        // SAFETY: an address of the window.
        unsafe { access::load_u64(self.window + offset) }.unwrap_or(u64::MAX)
    }

    fn vm_flags(&mut self, each: &mut dyn FnMut(u64)) -> bool {
        self.procfs.vm_flags(self.window, self.pages * PAGE, each)
    }
}

/// Runs the sequence in `shared` and exits.
///
/// # Safety
/// In a fresh fork of the zygote.
pub unsafe fn main(shared: *mut Shared, files: &Files, window: usize) -> ! {
    // SAFETY: our parent made the memory, and nobody but us uses it until we
    // have exited.
    let Parts { setup, ops, used, words, text }: Parts<'static> = unsafe { (*shared).parts() };
    let mut here = Here {
        procfs: Procfs::open(text),
        window,
        pages: setup.place.pages(),
        files,
        base: Base { total: 0, data: 0 },
    };
    if ops.iter().any(uses_file) {
        fill_file(files.read_write);
    }
    if ops.iter().any(|op| matches!(op, Op::SetLimit { .. })) {
        here.base = Base::measure();
    }
    if ops.iter().any(|op| matches!(op, Op::Brk { .. })) {
        set_brk(window + setup.place.brk_start());
    }
    let recorder = Recorder::new(words, here.pages);
    here.run(ops, setup, recorder, used)
}

impl Here<'_> {
    fn run(&mut self, ops: &[Op], setup: Setup, mut recorder: Recorder<'_>, used: &AtomicUsize) -> ! {
        // Processes whose rest is in their child, this one's ancestors, wait.
        let (mut waits_for, mut forked) = (None, false);
        for (step, op) in ops.iter().enumerate() {
            let answer = match op {
                Op::Fork => {
                    // SAFETY: single-threaded, and both sides only make system calls.
                    match unsafe { libc::syscall(libc::SYS_fork) as i32 } {
                        0 => {
                            self.procfs.reopen();
                            forked = true;
                            Answer::Value(0)
                        }
                        pid if pid > 0 => {
                            waits_for = Some(pid);
                            break;
                        }
                        _ => Answer::Error(Errno::last_raw()),
                    }
                }
                op => self.call(op),
            };
            if !recorder.has_room() {
                exit(NO_ROOM);
            }
            let want = Want::at(setup, step, ops.len());
            recorder.record(self, answer, want);
            used.store(recorder.used(), Ordering::Relaxed);
        }
        if let Some(pid) = waits_for {
            let mut status = 0;
            // SAFETY: our own child.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if status != 0 {
                exit(FORK_FAILED);
            }
            recorder.set_used(used.load(Ordering::Relaxed));
        }
        if !recorder.has_room() {
            exit(NO_ROOM);
        }
        let flags = setup.place != crate::op::Place::Crowded;
        recorder.record(self, Answer::End, Want { contents: true, flags });
        let window = self.window;
        // SAFETY: addresses of the window.
        recorder.sweep(self, |offset| match unsafe { access::load_u64(window + offset) } {
            Ok(word) => Answer::Value(word),
            Err(signal) => Answer::Signal(signal),
        });
        if !forked && ops.iter().any(uses_file) {
            // SAFETY: the whole window, which nobody needs any more; and a buffer of ours.
            unsafe {
                let unmapped = libc::munmap(window as *mut _, self.pages * PAGE) == 0;
                let fd = self.files.read_write;
                recorder.file(unmapped, |bytes| {
                    libc::pread(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0);
                });
            }
        }
        used.store(recorder.used(), Ordering::Relaxed);
        exit(0)
    }

    fn at(&self, at: At) -> usize {
        at.resolve(self.window, TASK_SIZE)
    }

    fn fd(&self, slot: Slot) -> i32 {
        match slot {
            Slot::NoFile => -1,
            Slot::ReadWrite => self.files.read_write,
            Slot::ReadOnly => self.files.read_only,
            Slot::WriteOnly => self.files.write_only,
            Slot::Sealed => self.files.sealed,
            Slot::Directory => self.files.directory,
        }
    }

    fn call(&mut self, op: &Op) -> Answer {
        let window = self.window;
        let plain = |result: i64| if result == -1 { Answer::Error(Errno::last_raw()) } else { Answer::Value(0) };
        let place = |result: i64| match result {
            -1 => Answer::Error(Errno::last_raw()),
            addr => Answer::Value((addr as usize).wrapping_sub(window) as u64),
        };
        let loaded = |result: Result<u64, Signal>| result.map_or_else(Answer::Signal, Answer::Value);
        // SAFETY: the generator and `Op::is_safe` see to it that a call either
        // stays in the window or fails; and this process is there to be tried on.
        unsafe {
            use libc::syscall;
            match *op {
                Op::Mmap { addr, len, prot, flags, file, offset } => {
                    let (addr, fd) = (self.at(addr), self.fd(file));
                    place(syscall(libc::SYS_mmap, addr, len, prot as usize, flags as usize, fd as isize, offset))
                }
                Op::Munmap { addr, len } => plain(syscall(libc::SYS_munmap, self.at(addr), len)),
                Op::Mprotect { addr, len, prot } => {
                    plain(syscall(libc::SYS_mprotect, self.at(addr), len, prot as usize))
                }
                Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                    let (addr, new_addr) = (self.at(addr), self.at(new_addr));
                    place(syscall(libc::SYS_mremap, addr, old_len, new_len, flags as usize, new_addr))
                }
                Op::Madvise { addr, len, advice } => {
                    plain(syscall(libc::SYS_madvise, self.at(addr), len, advice as isize))
                }
                Op::Msync { addr, len, flags } => plain(syscall(libc::SYS_msync, self.at(addr), len, flags as usize)),
                Op::Mincore { addr, len } => {
                    let mut vec = [0xaau8; crate::MINCORE_MAX];
                    let addr = self.at(addr);
                    match syscall(libc::SYS_mincore, addr, len, vec.as_mut_ptr()) {
                        0 => {
                            self.vmas(&mut |vma| vma.hide_file_pages(addr.wrapping_sub(window), &mut vec));
                            Answer::Value(crate::fold(&vec))
                        }
                        _ => Answer::Error(Errno::last_raw()),
                    }
                }
                Op::Mlock { addr, len } => plain(syscall(libc::SYS_mlock, self.at(addr), len)),
                Op::Mlock2 { addr, len, flags } => plain(syscall(libc::SYS_mlock2, self.at(addr), len, flags as usize)),
                Op::Munlock { addr, len } => plain(syscall(libc::SYS_munlock, self.at(addr), len)),
                Op::Mlockall { flags } => plain(syscall(libc::SYS_mlockall, flags as usize)),
                Op::Munlockall => plain(syscall(libc::SYS_munlockall)),
                Op::Brk { to } => place(syscall(libc::SYS_brk, self.at(to))),
                Op::Mseal { addr, len, flags } => plain(syscall(libc::SYS_mseal, self.at(addr), len, flags)),
                Op::Load { addr } => loaded(access::load_u64(self.at(addr))),
                Op::LoadByte { addr } => loaded(access::load_u8(self.at(addr))),
                Op::Store { addr, value } => loaded(access::store_u64(self.at(addr), value)),
                Op::StoreByte { addr, value } => loaded(access::store_u8(self.at(addr), value)),
                Op::SetLimit { what, pages } => self.set_limit(what, pages),
                Op::Fork => unreachable!("dealt with by `run`"),
            }
        }
    }

    fn set_limit(&self, what: Limit, pages: u64) -> Answer {
        let (resource, base) = match what {
            Limit::AddressSpace => (libc::RLIMIT_AS, self.base.total),
            Limit::Data => (libc::RLIMIT_DATA, self.base.data),
            Limit::Memlock => (libc::RLIMIT_MEMLOCK, 0),
        };
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: fills and passes the structure.
        let result = unsafe {
            libc::getrlimit(resource, &raw mut limit);
            limit.rlim_cur = ((base + pages) * PAGE as u64).min(limit.rlim_max);
            libc::setrlimit(resource, &raw const limit)
        };
        if result == 0 { Answer::Value(0) } else { Answer::Error(Errno::last_raw()) }
    }
}

impl Base {
    /// From `/proc/self/statm` and `status`, while the window is empty.
    fn measure() -> Base {
        let mut text = [0u8; 4096];
        let total = number(read(c"/proc/self/statm", &mut text));
        let status = read(c"/proc/self/status", &mut text);
        let data = status.windows(7).position(|part| part == b"VmData:").map_or(0, |at| number(&status[at + 7..]));
        Base { total, data: data / (PAGE as u64 / 1024) }
    }
}

fn read<'t>(path: &std::ffi::CStr, text: &'t mut [u8]) -> &'t [u8] {
    // SAFETY: a C string, and a buffer of that size.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let got = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        &text[..got.max(0) as usize]
    }
}

/// The first number.
fn number(text: &[u8]) -> u64 {
    let digits = text.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))
}

fn uses_file(op: &Op) -> bool {
    matches!(op, Op::Mmap { file, .. } if *file != Slot::NoFile)
}

/// Writes a file's first contents.
pub fn fill_file(fd: i32) {
    // SAFETY: a buffer of our own. The file is in memory: a write is whole.
    unsafe { libc::pwrite(fd, FILE.as_ptr().cast(), FILE.len(), 0) };
}

/// Puts an empty heap at `start` (`PR_SET_MM_MAP`, which needs no rights).
/// Whether it worked.
pub fn set_brk(start: usize) -> bool {
    #[repr(C)]
    struct PrctlMmMap {
        start_code: u64,
        end_code: u64,
        start_data: u64,
        end_data: u64,
        start_brk: u64,
        brk: u64,
        start_stack: u64,
        arg_start: u64,
        arg_end: u64,
        env_start: u64,
        env_end: u64,
        auxv: u64,
        auxv_size: u32,
        exe_fd: u32,
    }
    const PR_SET_MM_MAP: usize = 14;
    let at = start as u64;
    // The other places mean nothing to the calls under test; the data segment
    // is empty, so that it does not count towards RLIMIT_DATA.
    let map = PrctlMmMap {
        start_code: at,
        end_code: at + 1,
        start_data: at,
        end_data: at,
        start_brk: at,
        brk: at,
        start_stack: at,
        arg_start: at,
        arg_end: at,
        env_start: at,
        env_end: at,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: passes the structure.
    let result = unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<PrctlMmMap>(), 0) };
    result == 0
}
