//! Loads and stores of the host's child that report a signal.
//!
//! As `vmalab_fault_handler::access`, with handlers of their own: the window
//! may lie where the parent process has a region, whose handlers would take
//! the fault for theirs.

use crate::observe::Signal;

std::arch::global_asm!(
    ".pushsection .text.conform_access, \"ax\", @progbits",
    ".hidden conform_access_start",
    ".hidden conform_access_end",
    ".globl conform_access_start",
    ".globl conform_access_end",
    ".globl conform_load_u8",
    ".globl conform_load_u64",
    ".globl conform_store_u8",
    ".globl conform_store_u64",
    ".hidden conform_load_u8",
    ".hidden conform_load_u64",
    ".hidden conform_store_u8",
    ".hidden conform_store_u64",
    "conform_access_start:",
    "conform_load_u64:",
    "    mov rdx, qword ptr [rdi]",
    "    xor eax, eax",
    "    ret",
    "conform_load_u8:",
    "    movzx edx, byte ptr [rdi]",
    "    xor eax, eax",
    "    ret",
    "conform_store_u64:",
    "    mov qword ptr [rdi], rsi",
    "    xor eax, eax",
    "    ret",
    "conform_store_u8:",
    "    mov byte ptr [rdi], sil",
    "    xor eax, eax",
    "    ret",
    // The handler sends a faulting access here, with the code in RAX.
    "conform_access_end:",
    "    ret",
    ".popsection",
);

#[repr(C)]
struct Answer {
    code: u64,
    value: u64,
}

unsafe extern "C" {
    static conform_access_start: u8;
    static conform_access_end: u8;
    fn conform_load_u64(addr: usize) -> Answer;
    fn conform_load_u8(addr: usize) -> Answer;
    fn conform_store_u64(addr: usize, value: u64) -> Answer;
    fn conform_store_u8(addr: usize, value: u8) -> Answer;
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel's siginfo and context of this handler.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as usize;
        let end = (&raw const conform_access_end).addr();
        if !((&raw const conform_access_start).addr()..end).contains(&rip) {
            // Our own mistake. 70 and not a core dump: the parent tells.
            libc::_exit(70);
        }
        let code = match (signal, (*info).si_code) {
            (libc::SIGSEGV, 1) => 1,
            (libc::SIGSEGV, 2) => 2,
            (libc::SIGBUS, libc::BUS_ADRERR) => 3,
            _ => 4,
        };
        registers[libc::REG_RIP as usize] = end as i64;
        registers[libc::REG_RAX as usize] = code;
    }
}

/// Installs the handlers for the whole process.
///
/// # Safety
/// In a process that is this module's: nothing else in it expects SIGSEGV or SIGBUS.
pub unsafe fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: a valid action; the rest is the caller's promise.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, std::ptr::null_mut());
            let mut unblock: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut unblock);
            libc::sigaddset(&mut unblock, signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, &unblock, std::ptr::null_mut());
        }
    }
}

fn check(answer: Answer) -> Result<u64, Signal> {
    if answer.code == 0 { Ok(answer.value) } else { Err(Signal::from_code(answer.code)) }
}

/// # Safety
/// As for all here: `addr` is in the scratch window, or unmapped.
pub unsafe fn load_u64(addr: usize) -> Result<u64, Signal> {
    // SAFETY: only `addr` is accessed; a fault comes back as a code.
    check(unsafe { conform_load_u64(addr) })
}

/// # Safety
/// As [`load_u64`].
pub unsafe fn load_u8(addr: usize) -> Result<u64, Signal> {
    // SAFETY: as above.
    check(unsafe { conform_load_u8(addr) })
}

/// # Safety
/// As [`load_u64`].
pub unsafe fn store_u64(addr: usize, value: u64) -> Result<u64, Signal> {
    // SAFETY: as above.
    check(unsafe { conform_store_u64(addr, value) }).map(|_| 0)
}

/// # Safety
/// As [`load_u64`].
pub unsafe fn store_u8(addr: usize, value: u8) -> Result<u64, Signal> {
    // SAFETY: as above.
    check(unsafe { conform_store_u8(addr, value) }).map(|_| 0)
}
