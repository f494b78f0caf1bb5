//! `siginfo_t` as the kernel lays it out, and sending one to a thread.

use vmalab::addr::VirtAddr;
use vmalab::fault::Access;

/// `si_code` of SIGSEGV: nothing is mapped there.
pub const SEGV_MAPERR: i32 = 1;
/// `si_code` of SIGSEGV: the mapping forbids it.
pub const SEGV_ACCERR: i32 = 2;

/// Marks our own SIGBUS of queue delivery, in `si_errno`; the two low bits
/// are the [`Access`].
const MAGIC: i32 = 0x766d_6c00;

/// The kernel's 128 bytes.
#[repr(C)]
pub struct SigInfo {
    pub signo: i32,
    pub errno: i32,
    pub code: i32,
    _pad: i32,
    /// `si_addr`, or `si_pid` and `si_uid`.
    first: u64,
    /// `si_value`.
    second: u64,
    /// Nothing in a sent signal; the kernel passes 48 bytes on as they are.
    third: u64,
    fourth: u64,
    _rest: [u64; 10],
}

const _: () = assert!(size_of::<SigInfo>() == size_of::<libc::siginfo_t>());

impl SigInfo {
    const fn new(signo: i32, errno: i32, code: i32, first: u64, second: u64) -> SigInfo {
        SigInfo { signo, errno, code, _pad: 0, first, second, third: 0, fourth: 0, _rest: [0; 10] }
    }

    /// A fault, as the kernel reports it.
    pub fn fault(signo: i32, code: i32, addr: usize) -> SigInfo {
        SigInfo::new(signo, 0, code, addr as u64, 0)
    }

    /// A signal that a process sent.
    pub fn user(signo: i32) -> SigInfo {
        // SAFETY: no arguments.
        SigInfo::new(signo, 0, libc::SI_QUEUE, unsafe { libc::getpid() } as u64, 0)
    }

    /// `si_addr` of a fault.
    pub fn addr(&self) -> usize {
        self.first as usize
    }
}

/// The SIGBUS by which a handler thread tells another thread of a bad access.
#[derive(Clone, Copy, Debug)]
pub struct Queued {
    pub addr: VirtAddr,
    pub access: Access,
    /// The instruction that waits, and its stack pointer: 0 where /proc does
    /// not tell.
    pub rip: usize,
    pub rsp: usize,
    /// `sigbus::serial` before the message was read.
    pub serial: u32,
}

impl Queued {
    /// As a signal.
    pub fn encode(&self) -> SigInfo {
        // SAFETY: no arguments.
        let pid = unsafe { libc::getpid() } as u32;
        let bits = i32::from(self.access.write) | i32::from(self.access.present) << 1;
        let first = u64::from(pid) | u64::from(self.serial) << 32;
        let mut info = SigInfo::new(libc::SIGBUS, MAGIC | bits, libc::SI_QUEUE, first, self.addr.get() as u64);
        (info.third, info.fourth) = (self.rip as u64, self.rsp as u64);
        info
    }

    /// From a signal, if this process sent it so.
    pub fn decode(info: &SigInfo) -> Option<Queued> {
        // SAFETY: no arguments.
        let pid = unsafe { libc::getpid() } as u32;
        if info.code != libc::SI_QUEUE || info.errno & !3 != MAGIC || info.first as u32 != pid {
            return None;
        }
        Some(Queued {
            addr: VirtAddr(info.second as usize),
            access: Access { write: info.errno & 1 != 0, present: info.errno & 2 != 0 },
            rip: info.third as usize,
            rsp: info.fourth as usize,
            serial: (info.first >> 32) as u32,
        })
    }
}

/// The calling thread. Async-signal-safe.
pub fn thread_id() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// Sends `info` to a thread of this process (`rt_tgsigqueueinfo`). A code as
/// of the kernel may only be sent to oneself. Returns whether it was taken.
pub fn send(thread: i32, info: &SigInfo) -> bool {
    // SAFETY: the kernel reads `info`.
    unsafe {
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), thread, info.signo, info as *const SigInfo) == 0
    }
}
