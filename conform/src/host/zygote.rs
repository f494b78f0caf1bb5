//! The zygote: a process whose address space is full but for the window.
//!
//! Every gap between `mmap_min_addr` and TASK_SIZE is filled with a shared
//! mapping of one memfd, PROT_NONE, which merges with nothing that a test
//! makes and needs neither memory nor page tables. What then remains free is
//! the window, and the guard gap below the stack, which the kernel gives to
//! nobody.

use super::procfs::Procfs;
use super::{Files, Reservation, access, child};
use crate::PAGE;
use crate::op::Place;
use crate::remote::{Ends, Shared, exit};
use linux_raw_sys::general::procmap_query;
use nix::errno::Errno;
use std::sync::atomic::Ordering;

/// The kernel gives out no address below, whatever `vm.mmap_min_addr` is.
const LOW: usize = PAGE;
/// TASK_SIZE with 47 address bits.
pub const TASK_SIZE: usize = (1 << 47) - PAGE;
/// `stack_guard_gap`.
const STACK_GUARD: usize = 256 * PAGE;
/// What the crowded place leaves of `vm.max_map_count`.
const CROWDED_ROOM: usize = 24;

/// Stage of [`main`] at which it gave up.
pub const NO_QUERY: i32 = 1;
const NO_FILLER: i32 = 2;
const NOT_FULL: i32 = 3;
const NO_CAPABILITIES: i32 = 4;
const NOT_CROWDED: i32 = 5;

/// Never returns.
///
/// Runs in a fork of a process that may have had other threads, and with
/// nowhere to put an allocation: system calls and memory of its own only.
///
/// # Safety
/// To be called in a fresh fork. `shared` is the shared memory, `reservation`
/// the place's.
pub unsafe fn main(shared: *mut Shared, files: &Files, place: Place, reservation: Reservation, ends: Ends) -> ! {
    ends.ignore_signals();
    // SAFETY: plain system calls on memory that the fork gave us.
    unsafe {
        access::install();
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        deepen_stack();
    }
    reservation.free();
    // SAFETY: our copy of the mapping; only records of this place are written.
    unsafe { Shared::trim(shared, place) };
    let window = reservation.window;
    // SAFETY: the parent waits for our answer; children make their own.
    let text: &'static mut [u8] = unsafe { &mut (*shared).text };
    let procfs = Procfs::open(text);
    // SAFETY: nobody writes but us, and only atomic fields are read here.
    let stage = prepare(&procfs, unsafe { &*shared }, place, window);
    ends.reply(stage);
    if stage != 0 {
        exit(1);
    }
    loop {
        ends.next();
        let mut status = 0;
        // SAFETY: single-threaded; the child only makes system calls.
        unsafe {
            match libc::syscall(libc::SYS_fork) as i32 {
                0 => child::main(shared, files, window),
                pid if pid > 0 => {
                    libc::waitpid(pid, &raw mut status, 0);
                }
                _ => status = -1,
            }
        }
        ends.reply(status);
    }
}

/// The stack has to grow to its size now: later there may be no room.
#[inline(never)]
fn deepen_stack() {
    let deep = [0u8; 256 << 10];
    std::hint::black_box(&deep);
}

/// 0, or the stage at which it failed.
fn prepare(procfs: &Procfs, shared: &Shared, place: Place, window: usize) -> i32 {
    if !procfs.can_query() {
        return NO_QUERY;
    }
    // SAFETY: a C string.
    let filler = unsafe { libc::memfd_create(c"filler".as_ptr(), libc::MFD_CLOEXEC) };
    if filler < 0 {
        return NO_FILLER;
    }
    let window = window..window + place.bytes();
    let mut largest = 0..0;
    let full = for_each_gap(procfs, |start, end| {
        // The window, as a part of a gap.
        let parts = if start <= window.start && window.end <= end {
            [(start, window.start), (window.end, end)]
        } else {
            [(start, end), (end, end)]
        };
        parts.into_iter().all(|(start, end)| {
            if end - start > largest.len() {
                largest = start..end;
            }
            start == end || fill(filler, start, end)
        })
    });
    if !full {
        return NOT_FULL;
    }
    // After the filling, which may begin below `vm.mmap_min_addr`.
    if !drop_capabilities(place == Place::Privileged) {
        return NO_CAPABILITIES;
    }
    let limit = map_count_limit();
    let mut count = count_vmas(procfs);
    if place == Place::Crowded {
        // Each page of another protection cuts the filler: two VMAs more.
        let mut at = largest.start + PAGE;
        while count + CROWDED_ROOM + 2 <= limit && at + PAGE < largest.end {
            // SAFETY: a page of our own filler.
            if unsafe { libc::mprotect(at as *mut _, PAGE, libc::PROT_READ) } != 0 {
                return NOT_CROWDED;
            }
            at += 2 * PAGE;
            count += 2;
        }
        if count_vmas(procfs) != count {
            return NOT_CROWDED;
        }
    }
    shared.map_count_room.store(limit.saturating_sub(count), Ordering::Relaxed);
    shared.has_brk.store(i32::from(child::set_brk(window.start + place.brk_start())), Ordering::Relaxed);
    0
}

fn fill(filler: i32, start: usize, end: usize) -> bool {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    // SAFETY: NOREPLACE: nothing is lost.
    unsafe { libc::mmap(start as *mut _, end - start, libc::PROT_NONE, flags, filler, 0) as usize == start }
}

/// Calls `gap` with every free range that the kernel may give out.
fn for_each_gap(procfs: &Procfs, mut gap: impl FnMut(usize, usize) -> bool) -> bool {
    // SAFETY: reads the auxiliary vector; the random bytes lie on the main stack.
    let on_stack = unsafe { libc::getauxval(libc::AT_RANDOM) } as usize;
    let mut at = LOW;
    while at < TASK_SIZE {
        let (start, end, guard) = match procfs.query(at) {
            Ok(procmap_query { vma_start, vma_end, .. }) if (vma_start as usize) < TASK_SIZE => {
                let (start, end) = (vma_start as usize, vma_end as usize);
                (start, end, if (start..end).contains(&on_stack) { STACK_GUARD } else { 0 })
            }
            _ => (TASK_SIZE, TASK_SIZE, 0),
        };
        let room = start.saturating_sub(guard);
        if room > at && !gap(at, room) {
            return false;
        }
        at = end;
    }
    true
}

fn count_vmas(procfs: &Procfs) -> usize {
    let (mut at, mut count) = (0, 0);
    while at < TASK_SIZE
        && let Ok(vma) = procfs.query(at)
        && (vma.vma_start as usize) < TASK_SIZE
    {
        at = vma.vma_end as usize;
        count += 1;
    }
    count
}

/// `vm.max_map_count`
fn map_count_limit() -> usize {
    let mut text = [0u8; 32];
    // SAFETY: a C string, and a buffer of that size.
    let got = unsafe {
        let fd = libc::open(c"/proc/sys/vm/max_map_count".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let got = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        got
    };
    let digits = text[..got.max(0) as usize].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up what would lift limits: CAP_IPC_LOCK (RLIMIT_MEMLOCK; unless kept)
/// and CAP_SYS_RAWIO (mappings below `mmap_min_addr`).
fn drop_capabilities(keep_ipc_lock: bool) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    const CAP_SYS_RAWIO: u32 = 17;
    let mut header = CapHeader { version: 0x2008_0522, pid: 0 };
    let mut data = [CapData::default(); 2];
    let drop = 1 << CAP_SYS_RAWIO | if keep_ipc_lock { 0 } else { 1 << CAP_IPC_LOCK };
    // SAFETY: version 3 of the call takes two data blocks.
    unsafe {
        if libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) != 0 {
            return false;
        }
        if keep_ipc_lock && data[0].effective & 1 << CAP_IPC_LOCK == 0 {
            Errno::set_raw(libc::EPERM);
            return false;
        }
        data[0].effective &= !drop;
        data[0].permitted &= !drop;
        data[0].inheritable &= !drop;
        libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) == 0
    }
}
