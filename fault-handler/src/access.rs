//! Loads and stores that report a signal instead of raising it.
//!
//! The routines are assembler so that their instructions have known addresses:
//! when an access of theirs earns a signal, the handler finds RIP between two
//! labels and lets the thread go on at a third, with the signal's code in RAX.
//! (The kernel's `copy_from_user` works the same way.) Where no fault happens
//! they cost a call.

use vmalab::fault::Signal;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!(
    "vmalab-fault-handler needs x86-64 Linux: its access routines and signal handlers read that machine's registers"
);

// Two rules make one fixup serve all routines. Nothing is pushed before an
// access, so that at each of them the return address is on top of the stack.
// And RCX is the count of bytes not yet done (only the copy cares), which `rep
// movsb` keeps up to date when it is interrupted.
std::arch::global_asm!(
    ".pushsection .text.vmalab_access, \"ax\", @progbits",
    ".hidden vmalab_access_start",
    ".hidden vmalab_access_end",
    ".hidden vmalab_access_fixup",
    ".hidden vmalab_load_u8",
    ".hidden vmalab_load_u64",
    ".hidden vmalab_store_u8",
    ".hidden vmalab_store_u64",
    ".hidden vmalab_copy",
    ".globl vmalab_access_start",
    ".globl vmalab_access_end",
    ".globl vmalab_access_fixup",
    ".globl vmalab_load_u8",
    ".globl vmalab_load_u64",
    ".globl vmalab_store_u8",
    ".globl vmalab_store_u64",
    ".globl vmalab_copy",
    // Types and sizes are what makes profilers know them.
    ".type vmalab_access_fixup, @function",
    ".type vmalab_load_u8, @function",
    ".type vmalab_load_u64, @function",
    ".type vmalab_store_u8, @function",
    ".type vmalab_store_u64, @function",
    ".type vmalab_copy, @function",
    ".p2align 5",
    "vmalab_access_start:",
    "vmalab_load_u64:",
    "    mov rdx, qword ptr [rdi]",
    "    xor eax, eax",
    "    ret",
    ".size vmalab_load_u64, . - vmalab_load_u64",
    ".p2align 4",
    "vmalab_store_u64:",
    "    mov qword ptr [rdi], rsi",
    "    xor eax, eax",
    "    ret",
    ".size vmalab_store_u64, . - vmalab_store_u64",
    ".p2align 4",
    "vmalab_load_u8:",
    "    movzx edx, byte ptr [rdi]",
    "    xor eax, eax",
    "    ret",
    ".size vmalab_load_u8, . - vmalab_load_u8",
    ".p2align 4",
    "vmalab_store_u8:",
    "    mov byte ptr [rdi], sil",
    "    xor eax, eax",
    "    ret",
    ".size vmalab_store_u8, . - vmalab_store_u8",
    ".p2align 4",
    "vmalab_copy:",
    "    mov rcx, rdx",
    "    rep movsb",
    "    xor edx, edx",
    "    xor eax, eax",
    "    ret",
    ".size vmalab_copy, . - vmalab_copy",
    "vmalab_access_end:",
    "vmalab_access_fixup:",
    "    mov rdx, rcx",
    "    ret",
    ".size vmalab_access_fixup, . - vmalab_access_fixup",
    ".popsection",
);

/// What a routine returns: RAX and RDX.
#[repr(C)]
struct Answer {
    /// 0, or a code of [`signal_code`].
    code: u64,
    /// The value loaded, or for copies the bytes not done.
    value: u64,
}

unsafe extern "C" {
    static vmalab_access_start: u8;
    static vmalab_access_end: u8;
    static vmalab_access_fixup: u8;
    fn vmalab_load_u64(addr: usize) -> Answer;
    fn vmalab_store_u64(addr: usize, value: u64) -> Answer;
    fn vmalab_load_u8(addr: usize) -> Answer;
    fn vmalab_store_u8(addr: usize, value: u8) -> Answer;
    fn vmalab_copy(dst: usize, src: usize, len: usize) -> Answer;
}

/// Where to go on if `rip` is inside a routine of this module.
#[inline]
pub(crate) fn fixup_for(rip: usize) -> Option<usize> {
    let start = (&raw const vmalab_access_start).addr();
    let end = (&raw const vmalab_access_end).addr();
    (start <= rip && rip < end).then(|| (&raw const vmalab_access_fixup).addr())
}

/// The addresses that the instruction at `rip`, in a routine of this module,
/// is about to access: RDI holds the first one, and for a copy RSI the other
/// side's. Of a word it is the first byte and the last, which may lie in the
/// next page.
#[inline]
pub(crate) fn operands(rip: usize, rdi: usize, rsi: usize) -> [usize; 2] {
    if rip >= (vmalab_copy as *const ()).addr() {
        [rdi, rsi]
    } else if rip < (vmalab_load_u8 as *const ()).addr() {
        [rdi, rdi.wrapping_add(size_of::<u64>() - 1)]
    } else {
        [rdi, rdi]
    }
}

/// The number that stands for `signal` in RAX.
pub(crate) const fn signal_code(signal: Signal) -> u64 {
    match signal {
        Signal::MapErr => 1,
        Signal::AccErr => 2,
        Signal::Bus => 3,
    }
}

#[inline]
fn check(answer: Answer) -> Result<u64, Signal> {
    match answer.code {
        0 => Ok(answer.value),
        1 => Err(Signal::MapErr),
        2 => Err(Signal::AccErr),
        _ => Err(Signal::Bus),
    }
}

/// Loads eight bytes, or tells which signal a plain load would have earned.
///
/// # Errors
/// The signal.
///
/// # Safety
/// `addr` is inside a region that this crate serves, or a place that may be
/// read like a volatile variable. Signal handlers of this crate are installed
/// (every region does that) and SIGBUS is not blocked.
#[inline]
pub unsafe fn load_u64(addr: usize) -> Result<u64, Signal> {
    // SAFETY: the routine touches only `addr`, clobbers what the C ABI allows,
    // and a fault comes back as a code; the rest is the caller's promise.
    check(unsafe { vmalab_load_u64(addr) })
}

/// Stores eight bytes, or tells which signal a plain store would have earned.
///
/// # Errors
/// The signal.
///
/// # Safety
/// As [`load_u64`], for stores.
#[inline]
pub unsafe fn store_u64(addr: usize, value: u64) -> Result<(), Signal> {
    // SAFETY: as in `load_u64`.
    check(unsafe { vmalab_store_u64(addr, value) }).map(drop)
}

/// Loads one byte; see [`load_u64`].
///
/// # Errors
/// The signal.
///
/// # Safety
/// As [`load_u64`].
#[inline]
pub unsafe fn load_u8(addr: usize) -> Result<u8, Signal> {
    // SAFETY: as in `load_u64`.
    check(unsafe { vmalab_load_u8(addr) }).map(|value| value as u8)
}

/// Stores one byte; see [`store_u64`].
///
/// # Errors
/// The signal.
///
/// # Safety
/// As [`store_u64`].
#[inline]
pub unsafe fn store_u8(addr: usize, value: u8) -> Result<(), Signal> {
    // SAFETY: as in `load_u64`.
    check(unsafe { vmalab_store_u8(addr, value) }).map(drop)
}

/// Copies `len` bytes, front to back. On a signal: it, and how many bytes at
/// the end were not copied.
///
/// # Errors
/// The signal and the bytes left.
///
/// # Safety
/// As [`load_u64`] for the source and [`store_u64`] for the destination.
#[inline]
pub unsafe fn copy(dst: usize, src: usize, len: usize) -> Result<(), (Signal, usize)> {
    // SAFETY: as in `load_u64`, for both ranges.
    let answer = unsafe { vmalab_copy(dst, src, len) };
    let left = answer.value as usize;
    check(answer).map(drop).map_err(|signal| (signal, left))
}
