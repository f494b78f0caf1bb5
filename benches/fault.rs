//! What a whole fault costs, from the trap to the instruction's end, beside
//! the bare mechanism: a signal handler that does nothing but UFFDIO_COPY.
//!
//! `cargo bench --bench fault`. The bare loop and vmalab's take turns, sample
//! by sample, and their ratio is printed at the end: compare nothing else.
//! Everything runs beside an idle second thread, as in any program that has a
//! use for per-VMA locks: system calls cost more there.

use criterion::{BenchmarkId, Criterion};
use std::cell::UnsafeCell;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::lock::{LockScheme, MmapOnly, TypeSafe};
use vmalab::mm::{MapFlags, Prot};
use vmalab_fault_handler::AddressSpace;
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_fault_handler::region::{Notify, Region};
use vmalab_fault_handler::uffd::Privilege;

const PAGES: usize = 512;
const BYTES: usize = PAGES * PAGE_SIZE;
const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);

#[derive(Clone, Copy)]
enum Touch {
    Store,
    Load,
}

/// Touches each page once; `drop_pages` makes them absent again, untimed.
fn touch(start: VirtAddr, how: Touch, faults: u64, drop_pages: impl Fn()) -> Duration {
    let mut timed = Duration::ZERO;
    let mut left = faults as usize;
    while left > 0 {
        let n = left.min(PAGES);
        let begin = Instant::now();
        for page in PageRange::sized(start, n * PAGE_SIZE).iter_pages() {
            match how {
                // SAFETY: a page of a region that a handler serves, used by this
                // bench alone.
                Touch::Store => unsafe { store_u64(page.get(), 1) }.unwrap(),
                // SAFETY: as above.
                Touch::Load => drop(unsafe { load_u64(page.get()) }.unwrap()),
            }
        }
        timed += begin.elapsed();
        left -= n;
        drop_pages();
    }
    timed
}

/// Latency of each touch in ns, with the clock's own time in it.
fn latencies(start: VirtAddr, drop_pages: impl Fn()) -> Vec<u64> {
    let mut all = Vec::with_capacity(PAGES);
    for page in PageRange::sized(start, BYTES).iter_pages() {
        let begin = Instant::now();
        // SAFETY: as in `touch`.
        unsafe { store_u64(page.get(), 1) }.unwrap();
        all.push(begin.elapsed().as_nanos() as u64);
    }
    drop_pages();
    all
}

fn median(mut values: Vec<u64>) -> u64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable(middle).1
}

/// The bare mechanism: its own region, its own handler, no address space.
struct Bare {
    region: Region,
    ours: UnsafeCell<libc::sigaction>,
}

static BARE_FD: AtomicI32 = AtomicI32::new(-1);
/// UFFDIO_COPY or UFFDIO_ZEROPAGE.
static BARE_REQUEST: AtomicI32 = AtomicI32::new(0);
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;

#[repr(align(4096))]
struct Page([u8; PAGE_SIZE]);
static ZEROS: Page = Page([0; PAGE_SIZE]);

extern "C" fn bare_handler(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: a SIGBUS of the kernel's carries the address; the ioctl writes
    // only the structure on this stack.
    unsafe {
        let page = (*info).si_addr() as u64 & !(PAGE_SIZE as u64 - 1);
        let fd = BARE_FD.load(Ordering::Relaxed);
        if BARE_REQUEST.load(Ordering::Relaxed) == 0 {
            let mut copy = [page, ZEROS.0.as_ptr() as u64, PAGE_SIZE as u64, 0, 0];
            libc::ioctl(fd, UFFDIO_COPY, copy.as_mut_ptr());
        } else {
            let mut zero = [page, PAGE_SIZE as u64, 0, 0];
            libc::ioctl(fd, UFFDIO_ZEROPAGE, zero.as_mut_ptr());
        }
    }
}

impl Bare {
    fn new() -> Bare {
        let region = Region::new(BYTES, Notify::Signal, Privilege::User).expect("a userfaultfd region");
        BARE_FD.store(region.uffd().messages().as_fd().as_raw_fd(), Ordering::Relaxed);
        // SAFETY: all zero bytes are a sigaction.
        Bare { region, ours: UnsafeCell::new(unsafe { std::mem::zeroed() }) }
    }

    /// Calls `body` with the bare handler installed, and what drops the pages.
    fn with_handler<T>(&self, how: Touch, body: impl FnOnce(VirtAddr, &dyn Fn()) -> T) -> T {
        BARE_REQUEST.store(matches!(how, Touch::Load) as i32, Ordering::Relaxed);
        let range = self.region.range();
        // SAFETY: installs the bare handler for the time of the loop and puts
        // the former one back; this bench has one thread.
        unsafe {
            let mut bare: libc::sigaction = std::mem::zeroed();
            bare.sa_sigaction = bare_handler as *const () as usize;
            bare.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGBUS, &bare, self.ours.get()), 0);
        }
        let result = body(range.start(), &|| {
            // SAFETY: pages of our own region.
            unsafe { libc::madvise(range.start().get() as *mut _, range.bytes(), libc::MADV_DONTNEED) };
        });
        // SAFETY: as above.
        unsafe { assert_eq!(libc::sigaction(libc::SIGBUS, self.ours.get(), std::ptr::null_mut()), 0) };
        result
    }

    fn run(&self, how: Touch, faults: u64) -> Duration {
        self.with_handler(how, |start, drop_pages| touch(start, how, faults, drop_pages))
    }

    fn latencies(&self) -> Vec<u64> {
        self.with_handler(Touch::Store, |start, drop_pages| latencies(start, drop_pages))
    }
}

struct Whole<S: LockScheme> {
    space: AddressSpace<S>,
    start: VirtAddr,
}

impl<S: LockScheme> Whole<S> {
    fn new() -> Whole<S> {
        let space = AddressSpace::builder().region(64 << 20).build().expect("a userfaultfd region");
        let mm = space.mm();
        // Neighbours, so that there is a tree to walk.
        for i in 0..1_000 {
            mm.mmap(mm.range().start().get() + 2 * i * PAGE_SIZE, PAGE_SIZE, Prot::READ, FIXED).unwrap();
        }
        let start = mm.mmap(0, BYTES, Prot::READ | Prot::WRITE, FIXED).unwrap();
        Whole { space, start }
    }

    fn drop_pages(&self) {
        use vmalab::mmu::Mmu;
        self.space.mm().mmu().zap(PageRange::sized(self.start, BYTES));
    }

    fn run(&self, how: Touch, faults: u64) -> Duration {
        touch(self.start, how, faults, || self.drop_pages())
    }
}

fn main() {
    std::thread::spawn(benches).join().unwrap();
}

fn benches() {
    vmalab::thread::announce();
    let mut c = Criterion::default().configure_from_args();
    let bare = Bare::new();
    let typesafe = Whole::<TypeSafe>::new();
    let mmap = Whole::<MmapOnly>::new();
    for (name, how) in [("store: UFFDIO_COPY", Touch::Store), ("load: UFFDIO_ZEROPAGE", Touch::Load)] {
        let mut group = c.benchmark_group(format!("whole fault, {name}"));
        group.bench_function(BenchmarkId::from_parameter("bare"), |b| b.iter_custom(|n| bare.run(how, n)));
        group.bench_function(BenchmarkId::from_parameter("typesafe"), |b| b.iter_custom(|n| typesafe.run(how, n)));
        group.bench_function(BenchmarkId::from_parameter("mmap"), |b| b.iter_custom(|n| mmap.run(how, n)));
        group.finish();
        ratios(name, &bare, how, [("typesafe", &|n| typesafe.run(how, n)), ("mmap", &|n| mmap.run(how, n))]);
    }
    if !only_checking() {
        let (mut floor, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..64 {
            floor.extend(bare.latencies());
            whole.extend(latencies(typesafe.start, || typesafe.drop_pages()));
        }
        let (floor, whole) = (median(floor), median(whole));
        println!(
            "store, p50 of one fault: bare {floor} ns, typesafe {whole} ns, ratio {:.3}",
            whole as f64 / floor as f64
        );
    }
    c.final_summary();
}

fn only_checking() -> bool {
    std::env::args().any(|arg| arg == "--test" || arg == "--list")
}

type Run<'a> = &'a dyn Fn(u64) -> Duration;

/// Alternates bare and whole faults and prints the median of the ratios.
fn ratios(name: &str, bare: &Bare, how: Touch, subjects: [(&str, Run<'_>); 2]) {
    if only_checking() {
        return;
    }
    const ROUNDS: usize = 31;
    for (subject, run) in subjects {
        let mut ratios: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let floor = bare.run(how, PAGES as u64).as_secs_f64();
                run(PAGES as u64).as_secs_f64() / floor
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let (low, mid, high) = (ratios[ROUNDS / 4], ratios[ROUNDS / 2], ratios[3 * ROUNDS / 4]);
        println!(
            "{name}, {subject} / bare: {mid:.3} (quartiles {low:.3} to {high:.3}, {ROUNDS} rounds of {PAGES} faults)"
        );
    }
}
