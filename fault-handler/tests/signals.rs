//! What a program sees of bad accesses, in processes of their own.

#[path = "common/child.rs"]
mod child_process;
mod common;

use child_process::{End, ends, play, scenario};
use common::{How, Served, State};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use vmalab::addr::PAGE_SIZE;

const MAPERR: i32 = 1;
const ACCERR: i32 = 2;

fn how(name: &str) -> How {
    match name {
        "sigbus" => How::Sigbus,
        "queue1" => How::Queue(1, false),
        "queue2" => How::Queue(2, false),
        "polling" => How::Queue(1, true),
        other => panic!("{other}"),
    }
}

const EVERY: [&str; 4] = ["sigbus", "queue1", "queue2", "polling"];

// What the handler saw, and what it was to see.
static SEEN_SIGNAL: AtomicI32 = AtomicI32::new(0);
static SEEN_CODE: AtomicI32 = AtomicI32::new(0);
static SEEN_ADDR: AtomicUsize = AtomicUsize::new(0);
static SEEN_RIP: AtomicUsize = AtomicUsize::new(0);
static SEEN_COUNT: AtomicI32 = AtomicI32::new(0);
static USR1_BLOCKED: AtomicBool = AtomicBool::new(false);
static NEXT_RIP: AtomicUsize = AtomicUsize::new(0);
static EXPECTED_RIP: AtomicUsize = AtomicUsize::new(0);

/// Remembers everything and skips the instruction of [`poke`].
extern "C" fn recorder(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: called by the kernel, or by our handler as the kernel would.
    unsafe {
        let context: *mut libc::ucontext_t = context.cast();
        SEEN_SIGNAL.store(signal, SeqCst);
        SEEN_CODE.store((*info).si_code, SeqCst);
        SEEN_ADDR.store((*info).si_addr() as usize, SeqCst);
        let rip = &mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize];
        SEEN_RIP.store(*rip as usize, SeqCst);
        SEEN_COUNT.fetch_add(1, SeqCst);
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
        USR1_BLOCKED.store(libc::sigismember(&mask, libc::SIGUSR1) == 1, SeqCst);
        if *rip as usize == EXPECTED_RIP.load(SeqCst) {
            *rip = NEXT_RIP.load(SeqCst) as i64;
        }
    }
}

static PLAIN: AtomicI32 = AtomicI32::new(0);

extern "C" fn plain(signal: i32) {
    PLAIN.store(signal, SeqCst);
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) }
}

fn set_handler(signal: i32, handler: usize, flags: i32, masked: Option<i32>) {
    // SAFETY: installs a handler of this test.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        if let Some(masked) = masked {
            libc::sigaddset(&mut action.sa_mask, masked);
        }
        assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
    }
}

fn recorder_addr() -> usize {
    recorder as *const () as usize
}

fn block(signal: i32) {
    // SAFETY: changes this thread's mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
    }
}

/// One store, at an instruction whose address the recorder knows.
fn poke(addr: usize) {
    // SAFETY: a store that faults; the recorder skips it.
    unsafe {
        std::arch::asm!(
            "lea {t}, [rip + 2f]",
            "mov qword ptr [{expected}], {t}",
            "lea {t}, [rip + 3f]",
            "mov qword ptr [{next}], {t}",
            "2: mov qword ptr [{addr}], {t}",
            "3:",
            t = out(reg) _,
            expected = in(reg) EXPECTED_RIP.as_ptr(),
            next = in(reg) NEXT_RIP.as_ptr(),
            addr = in(reg) addr,
        );
    }
}

/// A few bad stores; the recorder must see each as the kernel would show it.
fn poke_and_check(served: &Served) {
    served.map.set(0, 1, State::Read);
    served.map.set(1, 2, State::None);
    // Present and read-only, missing and read-only, PROT_NONE, unmapped.
    // SAFETY: mapped readable.
    unsafe { ptr::read_volatile(served.map.addr(0) as *const u64) };
    served.map.set(2, 3, State::Read);
    for (round, (page, code)) in [(0, ACCERR), (2, ACCERR), (1, ACCERR), (3, MAPERR)].into_iter().enumerate() {
        let addr = served.map.addr(page) + 24;
        poke(addr);
        assert_eq!(SEEN_COUNT.load(SeqCst), round as i32 + 1);
        assert_eq!(SEEN_SIGNAL.load(SeqCst), libc::SIGSEGV);
        assert_eq!(SEEN_ADDR.load(SeqCst), addr);
        assert_eq!(SEEN_CODE.load(SeqCst), code, "page {page}");
        assert_eq!(SEEN_RIP.load(SeqCst), EXPECTED_RIP.load(SeqCst));
    }
    // A page in order is served as before.
    served.map.set(0, 1, State::ReadWrite);
    poke(served.map.addr(0));
    assert_eq!(SEEN_COUNT.load(SeqCst), 4);
}

/// A mapping of a file that has no pages: SIGBUS that is none of ours.
fn foreign_page() -> usize {
    // SAFETY: a new mapping of an empty file.
    unsafe {
        let fd = libc::memfd_create(c"empty".as_ptr(), 0);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let addr = libc::mmap(ptr::null_mut(), PAGE_SIZE, prot, libc::MAP_SHARED, fd, 0);
        assert_ne!(addr, libc::MAP_FAILED);
        addr as usize
    }
}

static ALARMS: AtomicI32 = AtomicI32::new(0);

/// A page that the alarm's handler reads; 0 while this thread holds the lock.
static ALARM_PAGE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn alarm(_: i32) {
    let page = ALARM_PAGE.load(SeqCst);
    if page != 0 {
        // SAFETY: an address of this test's region.
        let read = unsafe { vmalab_fault_handler::access::load_u64(page) };
        assert!(matches!(read, Err(vmalab::fault::Signal::MapErr)));
    }
    ALARMS.fetch_add(1, SeqCst);
}

/// A timer that sends this thread SIGALRM every so often.
fn start_alarms(every_ns: i64) {
    // SAFETY: a timer of this process, which is made for this test.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = ptr::null_mut();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
        let every = libc::timespec { tv_sec: 0, tv_nsec: every_ns };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        assert_eq!(libc::timer_settime(timer, 0, &spec, ptr::null_mut()), 0);
    }
}

/// Bad and good accesses while a timer's signals interrupt them and their
/// waits, so that faults are repeated and reported twice, and whose handler
/// touches the region itself.
fn interrupted(how: How) {
    const PAGES: usize = 64;
    set_handler(libc::SIGALRM, alarm as *const () as usize, 0, None);
    let served = Served::new(PAGES + 1, how);
    // Longer than its handler takes, or nothing else would run.
    start_alarms(1_500_000);
    for _ in 0..25 {
        // The timer's handler must not wait for a lock that its thread holds.
        ALARM_PAGE.store(0, SeqCst);
        served.map.set(0, PAGES, State::Unmapped);
        for half in [0, PAGES / 2] {
            served.map.set(half, half + PAGES / 2, if half == 0 { State::Read } else { State::ReadWrite });
        }
        ALARM_PAGE.store(served.map.addr(PAGES), SeqCst);
        for page in 0..PAGES {
            let addr = served.map.addr(page);
            // SAFETY: addresses of this test's region.
            let stored = unsafe { vmalab_fault_handler::access::store_u64(addr, 1) };
            let expected = if page < PAGES / 2 { Err(vmalab::fault::Signal::AccErr) } else { Ok(()) };
            assert_eq!(stored, expected);
        }
    }
    ALARM_PAGE.store(0, SeqCst);
    assert!(ALARMS.load(SeqCst) > 0);
}

#[test]
fn child() {
    let Some(scenario) = scenario() else { return };
    let (name, delivery) = scenario.split_once('/').unwrap();
    let how = how(delivery);
    match name {
        "no_handler" => poke(Served::new(4, how).map.addr(0)),
        "handler_before" => {
            set_handler(libc::SIGSEGV, recorder_addr(), libc::SA_SIGINFO, Some(libc::SIGUSR1));
            poke_and_check(&Served::new(4, how));
            assert!(USR1_BLOCKED.load(SeqCst), "the previous handler's sa_mask");
        }
        "handler_after" => {
            let served = Served::new(4, how);
            set_handler(libc::SIGSEGV, recorder_addr(), libc::SA_SIGINFO, None);
            poke_and_check(&served);
        }
        "handler_plain" => {
            set_handler(libc::SIGSEGV, plain as *const () as usize, 0, None);
            poke(Served::new(4, how).map.addr(0));
        }
        "reset_hand" => {
            set_handler(libc::SIGSEGV, recorder_addr(), libc::SA_SIGINFO | libc::SA_RESETHAND, None);
            let served = Served::new(4, how);
            poke(served.map.addr(0));
            assert_eq!(SEEN_COUNT.load(SeqCst), 1);
            poke(served.map.addr(0));
        }
        "segv_blocked" => {
            set_handler(libc::SIGSEGV, recorder_addr(), libc::SA_SIGINFO, None);
            let served = Served::new(4, how);
            block(libc::SIGSEGV);
            poke(served.map.addr(0));
        }
        "segv_ignored_before" | "segv_ignored_after" => {
            if name.ends_with("before") {
                set_handler(libc::SIGSEGV, libc::SIG_IGN, 0, None);
            }
            let served = Served::new(4, how);
            if name.ends_with("after") {
                set_handler(libc::SIGSEGV, libc::SIG_IGN, 0, None);
            }
            poke(served.map.addr(0));
        }
        "bus_blocked" => {
            let served = Served::new(4, how);
            block(libc::SIGBUS);
            poke(served.map.addr(0));
        }
        "out_of_memory" => {
            let served = Served::new(4, how);
            served.map.set(0, 1, State::NoMemory);
            poke(served.map.addr(0));
        }
        "out_of_memory_handled" => {
            set_handler(libc::SIGBUS, recorder_addr(), libc::SA_SIGINFO, None);
            let served = Served::new(4, how);
            served.map.set(0, 1, State::NoMemory);
            poke(served.map.addr(0) + 8);
            assert_eq!(SEEN_COUNT.load(SeqCst), 1);
            assert_eq!((SEEN_SIGNAL.load(SeqCst), SEEN_CODE.load(SeqCst)), (libc::SIGBUS, libc::BUS_ADRERR));
            assert_eq!(SEEN_ADDR.load(SeqCst), served.map.addr(0) + 8);
        }
        "foreign_bus" => {
            set_handler(libc::SIGBUS, recorder_addr(), libc::SA_SIGINFO, None);
            let _served = Served::new(4, how);
            let addr = foreign_page();
            poke(addr);
            assert_eq!((SEEN_SIGNAL.load(SeqCst), SEEN_ADDR.load(SeqCst)), (libc::SIGBUS, addr));
            assert_eq!(SEEN_RIP.load(SeqCst), EXPECTED_RIP.load(SeqCst));
            // Through our routines it is an error.
            // SAFETY: may fault, which is the point.
            let result = unsafe { vmalab_fault_handler::access::load_u64(addr) };
            assert_eq!(result, Err(vmalab::fault::Signal::Bus));
            // SAFETY: signals this thread, with a handler in place.
            unsafe { libc::raise(libc::SIGBUS) };
            assert_eq!(SEEN_COUNT.load(SeqCst), 2);
        }
        "foreign_bus_default" => {
            let _served = Served::new(4, how);
            poke(foreign_page());
        }
        "foreign_segv_default" => {
            let _served = Served::new(4, how);
            poke(8);
        }
        "kill_ignored" => {
            set_handler(libc::SIGBUS, libc::SIG_IGN, 0, None);
            set_handler(libc::SIGSEGV, libc::SIG_IGN, 0, None);
            let _served = Served::new(4, how);
            // SAFETY: both are ignored.
            unsafe {
                libc::raise(libc::SIGBUS);
                libc::raise(libc::SIGSEGV);
            }
        }
        "kill_default" => {
            set_handler(libc::SIGBUS, libc::SIG_DFL, 0, None);
            let _served = Served::new(4, how);
            // SAFETY: kills, as it should.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        "stack_overflow" => {
            let _served = Served::new(4, how);
            #[allow(unconditional_recursion)]
            fn deeper(n: &mut [u8; 4096]) -> u8 {
                let mut next = std::hint::black_box([n[0]; 4096]);
                deeper(&mut next) + std::hint::black_box(next[1])
            }
            deeper(&mut [0; 4096]);
        }
        "interrupted" => interrupted(how),
        other => panic!("{other}"),
    }
    // What follows a success: not reached where death is expected.
    drop(scenario);
}

fn everywhere(name: &str, end: End) {
    for how in EVERY {
        ends(&format!("{name}/{how}"), end);
    }
}

#[test]
fn without_a_handler_the_process_dies_of_sigsegv() {
    everywhere("no_handler", End::Signal(libc::SIGSEGV));
}

#[test]
fn handlers_see_what_the_kernel_would_show() {
    everywhere("handler_before", End::Exit(0));
    everywhere("handler_after", End::Exit(0));
    everywhere("handler_plain", End::Exit(42));
    everywhere("reset_hand", End::Signal(libc::SIGSEGV));
}

#[test]
fn a_blocked_or_ignored_sigsegv_kills() {
    everywhere("segv_blocked", End::Signal(libc::SIGSEGV));
    everywhere("segv_ignored_before", End::Signal(libc::SIGSEGV));
    everywhere("segv_ignored_after", End::Signal(libc::SIGSEGV));
}

#[test]
fn a_blocked_sigbus_kills() {
    // By the kernel's hand, or ours.
    ends("bus_blocked/sigbus", End::Signal(libc::SIGBUS));
    for how in &EVERY[1..] {
        ends(&format!("bus_blocked/{how}"), End::Signal(libc::SIGSEGV));
    }
}

#[test]
fn out_of_memory_is_sigbus() {
    everywhere("out_of_memory", End::Signal(libc::SIGBUS));
    everywhere("out_of_memory_handled", End::Exit(0));
}

#[test]
fn signals_that_are_not_ours_go_where_they_went_before() {
    everywhere("foreign_bus", End::Exit(0));
    everywhere("foreign_bus_default", End::Signal(libc::SIGBUS));
    everywhere("foreign_segv_default", End::Signal(libc::SIGSEGV));
    everywhere("kill_ignored", End::Exit(0));
    everywhere("kill_default", End::Signal(libc::SIGBUS));
}

#[test]
fn other_signals_may_interrupt_the_wait() {
    everywhere("interrupted", End::Exit(0));
}

#[test]
fn stack_overflows_are_still_reported() {
    let (end, output) = play("stack_overflow/sigbus");
    assert_eq!(end, End::Signal(libc::SIGABRT));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has overflowed its stack"));
}
