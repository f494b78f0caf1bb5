//! Faults against mutators, in a form that ThreadSanitizer can judge
//! (`scripts/tsan.sh`); without it, a short stress test.
//!
//! ThreadSanitizer knows only the hand-overs of code compiled with it, and std
//! is not. So here is no `std::thread`, no `Arc`, no std lock or channel:
//! threads come from `pthread_create`, share what main has leaked or made
//! static, and main waits for them with `pthread_join`. The core does its part
//! under `--cfg tsan` (`src/sync/tsan.rs`). That is also why this test has a main
//! of its own; it takes names of schemes, as other tests take theirs.
//!
//! Fields of VMAs are atomics and cannot race by definition. What can, and what
//! this is after: tree nodes, which readers load plainly while mutators build,
//! publish and recycle them; memory of slab pages and address spaces that is
//! freed under a reader; magazines, the depot and the queues of RCU.
//!
//! `--race` runs a race on purpose instead, which must be reported.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::process::ExitCode;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Mm, Prot};
use vmalab::mmap_lock::MmapLock;
use vmalab::mmu::soft::{BASE, SoftMmu};
use vmalab::pager::{AnyPager, Stamp};
use vmalab::stats::{Counter, Snapshot};
use vmalab::sync::{AtomicU64, AtomicUsize, Ordering};
use vmalab::{Errno, rcu, thread};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const ANON: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
const FIXED: MapFlags = ANON.union(MapFlags::FIXED);

/// Operations of each mutator.
const OPERATIONS: usize = if cfg!(tsan) { 30_000 } else { 5_000 };
const FAULTERS: usize = 2;
const MUTATORS: usize = 2;
/// Pages that everybody works on.
const BUSY: usize = 16;
/// Pages above them, now and then mapped one by one and unmapped at once: so
/// many VMAs that slab pages come and go.
const BURST: usize = 1024;
/// Operations between a mutator's bursts, and between its short-lived address spaces.
const BURST_EVERY: usize = 1_000;
const SPACE_EVERY: usize = 50;

/// A name, and how to drive the scheme.
type Test = (&'static str, fn());

const TESTS: [Test; 4] = [
    (MmapOnly::NAME, drive::<MmapOnly>),
    (Rcu::NAME, drive::<Rcu>),
    (TypeSafe::NAME, drive::<TypeSafe>),
    (RefCount::NAME, drive::<RefCount>),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| args.iter().any(|arg| arg == option);
    if has("--race") {
        race();
        return ExitCode::SUCCESS;
    }
    if has("--list") {
        // As test runners expect it.
        if !has("--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    for (_, test) in TESTS.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name)) {
        test();
    }
    ExitCode::SUCCESS
}

/// Runs `body(arg)` on a thread of its own. A panic there ends the process.
fn spawn<T: Sync>(body: extern "C" fn(*mut c_void) -> *mut c_void, arg: &'static T) -> libc::pthread_t {
    let mut thread = 0;
    // SAFETY: `arg` lives for ever and may be shared; `body` takes a `&'static T`
    // (every caller's `body` casts it back to the same type).
    let failed =
        unsafe { libc::pthread_create(&mut thread, std::ptr::null(), body, std::ptr::from_ref(arg).cast_mut().cast()) };
    assert_eq!(failed, 0, "pthread_create");
    thread
}

fn join(thread: libc::pthread_t) {
    // SAFETY: each thread is joined once, by who made it.
    assert_eq!(unsafe { libc::pthread_join(thread, std::ptr::null_mut()) }, 0, "pthread_join");
}

type Space<S> = Mm<S, SoftMmu, AnyPager>;

fn space<S: LockScheme>(pages: usize) -> Space<S> {
    Mm::new(SoftMmu::new(pages * PAGE_SIZE).expect("memory"), AnyPager::Stamped)
}

/// Two address spaces, which trade VMA objects as their mutators free and
/// allocate them, and the threads' common state.
struct Arena<S: LockScheme> {
    spaces: [Space<S>; 2],
    mutators_left: AtomicUsize,
    threads: AtomicU64,
    faults: AtomicU64,
}

fn drive<S: LockScheme>() {
    let before = Snapshot::take();
    let grace_periods = rcu::stats().grace_periods;
    // Leaked for the threads, taken back below.
    let leaked = Box::into_raw(Box::new(Arena::<S> {
        spaces: [space(BUSY + BURST), space(BUSY + BURST)],
        mutators_left: AtomicUsize::new(MUTATORS),
        threads: AtomicU64::new(0),
        faults: AtomicU64::new(0),
    }));
    // SAFETY: lives until every thread has been joined.
    let arena: &'static Arena<S> = unsafe { &*leaked };
    let faulters: [_; FAULTERS] = std::array::from_fn(|_| spawn(fault::<S>, arena));
    let mutators: [_; MUTATORS] = std::array::from_fn(|_| spawn(mutate::<S>, arena));
    faulters.into_iter().chain(mutators).for_each(join);

    arena.spaces.iter().for_each(Mm::validate);
    let faults = arena.faults.load(Ordering::Relaxed);
    // SAFETY: from `Box::into_raw`; the threads are gone.
    drop(unsafe { Box::from_raw(leaked) });
    rcu::barrier();
    let counts = Snapshot::take().since(&before);
    let reused = counts.get(Counter::VmaReusedOtherMm);
    println!(
        "{}: {faults} accesses, {} faults ({} under the VMA's lock), {} operations, \
         {reused} VMAs reused in another address space, {} grace periods",
        S::NAME,
        counts.get(Counter::Fault),
        counts.get(Counter::VmaLockSuccess),
        counts.get(Counter::MmapLockWrite),
        rcu::stats().grace_periods - grace_periods,
    );
    assert!(faults > 0 && reused > 0, "nothing was tested");
}

/// The arena behind a thread's argument, and a generator of its own.
///
/// # Safety
/// `arg` is an `Arena<S>` that outlives the thread.
unsafe fn enter<S: LockScheme>(arg: *mut c_void) -> (&'static Arena<S>, Random) {
    // SAFETY: the caller's promise.
    let arena = unsafe { &*arg.cast::<Arena<S>>() };
    let number = arena.threads.fetch_add(1, Ordering::Relaxed) + 1;
    (arena, Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

extern "C" fn fault<S: LockScheme>(arg: *mut c_void) -> *mut c_void {
    // SAFETY: `drive` gives an arena, and joins this thread.
    let (arena, mut random) = unsafe { enter::<S>(arg) };
    // The two kinds of threads enter RCU sections in different ways.
    if arena.faults.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
        thread::announce();
    }
    while arena.mutators_left.load(Ordering::Relaxed) > 0 {
        let mm = &arena.spaces[random.below(2)];
        let page = if random.below(2) == 0 { random.below(BUSY + BURST) } else { random.below(BUSY) };
        let at = BASE + page * PAGE_SIZE;
        if random.below(3) == 0 {
            // After the stamp. Mapped and writable, or not: both are right.
            let _ = mm.write(at + 32, &random.0.to_ne_bytes());
        } else {
            let mut bytes = [0; 24];
            match mm.read(at, &mut bytes) {
                Ok(()) => {
                    let stamp = Stamp::from_bytes(&bytes);
                    assert_eq!((stamp.mm_id, stamp.page_addr()), (mm.id(), at), "another page's contents");
                }
                Err(error) => assert!(matches!(error.signal, Signal::MapErr | Signal::AccErr), "{error:?}"),
            }
        }
        arena.faults.fetch_add(1, Ordering::Relaxed);
    }
    std::ptr::null_mut()
}

extern "C" fn mutate<S: LockScheme>(arg: *mut c_void) -> *mut c_void {
    // SAFETY: `drive` gives an arena, and joins this thread.
    let (arena, mut random) = unsafe { enter::<S>(arg) };
    for round in 1..=OPERATIONS {
        let mm = &arena.spaces[random.below(2)];
        operate(mm, &mut random);
        if round % BURST_EVERY == 0 {
            burst(mm);
        }
        if round % SPACE_EVERY == 0 {
            // Its VMAs were the others' a moment ago, and will be again: stale
            // readers of those must survive that it goes.
            let short_lived = space::<S>(BUSY);
            (0..4).for_each(|_| operate(&short_lived, &mut random));
        }
    }
    arena.mutators_left.fetch_sub(1, Ordering::Relaxed);
    std::ptr::null_mut()
}

/// One random call on the busy pages.
fn operate<S: LockScheme>(mm: &Space<S>, random: &mut Random) {
    let first = random.below(BUSY);
    let (at, len) = (page(first), (1 + random.below(4)).min(BUSY - first) * PAGE_SIZE);
    let prot = [Prot::NONE, Prot::READ, RW, RW][random.below(4)];
    match random.below(8) {
        0..4 => drop(mm.mmap(at, len, prot, FIXED).expect("a fixed mmap inside the region")),
        4 | 5 => mm.munmap(at, len).expect("munmap inside the region"),
        _ => match mm.mprotect(at, len, prot) {
            Ok(()) | Err(Errno::ENOMEM) => {}
            Err(other) => panic!("mprotect: {other}"),
        },
    }
}

fn burst<S: LockScheme>(mm: &Space<S>) {
    for n in 0..BURST {
        let prot = if n % 2 == 0 { RW } else { Prot::READ };
        mm.mmap(page(BUSY + n), PAGE_SIZE, prot, FIXED).expect("a fixed mmap inside the region");
    }
    mm.munmap(page(BUSY), BURST * PAGE_SIZE).expect("munmap inside the region");
}

fn page(n: usize) -> usize {
    VirtAddr(BASE.get() + n * PAGE_SIZE).get()
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// Two threads that write one variable under the mmap lock, held for *reading*
/// only: a true race, beside a lock that ThreadSanitizer must not mistake for
/// protection.
fn race() {
    struct Shared {
        lock: MmapLock,
        passed: AtomicUsize,
        racy: UnsafeCell<u64>,
    }
    // SAFETY: it is not: nothing orders the two threads' stores to `racy`. That is the point.
    unsafe impl Sync for Shared {}
    static SHARED: Shared = Shared { lock: MmapLock::new(), passed: AtomicUsize::new(0), racy: UnsafeCell::new(0) };

    extern "C" fn racer(arg: *mut c_void) -> *mut c_void {
        // SAFETY: `race` gives a `Shared`.
        let shared = unsafe { &*arg.cast::<Shared>() };
        let _guard = shared.lock.read();
        // Both inside before either writes, and until both have written: else
        // the order of unlock and lock would order the writes. One writes after
        // the other, as ThreadSanitizer may miss stores of the same moment.
        // Relaxed: so that this orders nothing.
        let wait_for = |count| {
            while shared.passed.load(Ordering::Relaxed) < count {
                std::hint::spin_loop();
            }
        };
        let place = shared.passed.fetch_add(1, Ordering::Relaxed);
        wait_for(2 + place);
        // SAFETY: see `Shared`; it is the hardware's store of an aligned word.
        unsafe { shared.racy.get().write_volatile(place as u64) };
        shared.passed.fetch_add(1, Ordering::Relaxed);
        wait_for(4);
        std::ptr::null_mut()
    }
    [spawn(racer, &SHARED), spawn(racer, &SHARED)].into_iter().for_each(join);
    println!("the race took place");
}
