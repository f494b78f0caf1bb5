//! Which mutation is in force (`MUTATION=7`), and which were reached: a byte for
//! each in the file that `MUTATIONS_REACHED` names. `scripts/mutate.py` adds this
//! file to the scratch copy that holds all mutations.
//!
//! The machine's atomics: no executor is to notice. Set up before `main`, as it is
//! called in signal handlers too.

use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering::Relaxed};

/// More than there are mutations.
const MAX: usize = 1 << 16;

static ACTIVE: AtomicU32 = AtomicU32::new(0);
static REACHED: AtomicPtr<AtomicU8> = AtomicPtr::new(std::ptr::null_mut());

#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = {
    extern "C" fn init() {
        if let Ok(number) = std::env::var("MUTATION") {
            ACTIVE.store(number.parse().expect("MUTATION is a number"), Relaxed);
        }
        if let Ok(path) = std::env::var("MUTATIONS_REACHED") {
            use std::os::fd::AsRawFd;
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("MUTATIONS_REACHED is a file");
            file.set_len(MAX as u64).expect("room in the file");
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping of a file that is long enough; it stays.
            let map = unsafe { libc::mmap(std::ptr::null_mut(), MAX, rights, libc::MAP_SHARED, file.as_raw_fd(), 0) };
            assert_ne!(map, libc::MAP_FAILED, "MUTATIONS_REACHED cannot be mapped");
            REACHED.store(map.cast(), Relaxed);
        }
    }
    init
};

/// The mutation in force, or 0.
#[inline]
pub fn active() -> u32 {
    ACTIVE.load(Relaxed)
}

/// A mutation's place was reached.
#[inline]
pub fn reach(id: u32) {
    let reached = REACHED.load(Relaxed);
    if !reached.is_null() {
        // SAFETY: the mapping has a byte for each mutation, and stays.
        unsafe { (*reached.add(id as usize)).store(1, Relaxed) };
    }
}

/// Whether the mutation is in force.
#[inline]
pub fn yes(id: u32) -> bool {
    reach(id);
    active() == id
}

/// Whether it is not.
#[inline]
pub fn not(id: u32) -> bool {
    !yes(id)
}

/// What the source has, or what the mutation makes of it.
#[inline]
pub fn either<T>(id: u32, original: T, mutated: T) -> T {
    if yes(id) { mutated } else { original }
}
