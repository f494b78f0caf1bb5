//! The signal handlers: SIGBUS, which is how a fault of the region arrives,
//! and SIGSEGV, for the access routines only.
//!
//! Both first decide whose signal it is and hand everything else to the
//! action that was installed before. They are installed once per process,
//! with the first region, and stay. A program that installs its own SIGBUS
//! handler later must do as we do: call the previous one for what is not its.
//!
//! Flags of the SIGBUS handler:
//! - SA_SIGINFO: the address and the registers are what it is all about;
//! - SA_RESTART: in queue delivery a SIGBUS can reach a thread inside a
//!   system call that has nothing to do with it;
//! - no SA_ONSTACK: serving a fault needs some 10 KiB, and the alternate stack
//!   that Rust's std gives each thread has 8, of which the registers of an
//!   AVX-512 machine take 3.4. The handler runs on the faulting thread's own
//!   stack;
//! - every signal in sa_mask. A SIGSEGV that the handler sends to its own thread
//!   waits until the handler has returned, and then meets the context of the
//!   faulting instruction. And no other handler of the program runs in the
//!   middle, where SIGBUS is blocked and the fault path's locks are held, so
//!   that its own touch of the region would be deadly.
//!
//! The SIGSEGV handler runs on the alternate stack if the previous one did:
//! stack overflows are still reported.

use crate::access::{fixup_for, operands, signal_code};
use crate::registry::{self, Found};
use crate::siginfo::{self, Queued, SigInfo};
use nix::errno::Errno;
use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vmalab::addr::VirtAddr;
use vmalab::fault::{Access, Outcome, Signal};
use vmalab::rcu;
use vmalab::trace::{self, Event};

/// Bits of the x86 page-fault error code.
const ERR_PRESENT: i64 = 1 << 0;
const ERR_WRITE: i64 = 1 << 1;

/// The action that a signal had before ours.
struct Previous {
    action: UnsafeCell<MaybeUninit<libc::sigaction>>,
    /// Its SA_RESETHAND has come true: it is SIG_DFL from now on.
    reset: AtomicBool,
}

// SAFETY: `action` is written once, before the handler that reads it is installed.
unsafe impl Sync for Previous {}

static PREVIOUS_BUS: Previous = Previous::new();
static PREVIOUS_SEGV: Previous = Previous::new();

impl Previous {
    const fn new() -> Previous {
        Previous { action: UnsafeCell::new(MaybeUninit::uninit()), reset: AtomicBool::new(false) }
    }

    /// # Safety
    /// From a handler that `install_one` installed with this object.
    unsafe fn get(&self) -> libc::sigaction {
        // SAFETY: written before the handler was installed.
        let mut action = unsafe { (*self.action.get()).assume_init() };
        if self.reset.load(Ordering::Relaxed) {
            action.sa_sigaction = libc::SIG_DFL;
        }
        action
    }
}

/// Installs both handlers, once per process.
///
/// # Errors
/// The host's.
pub fn install() -> Result<(), Errno> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !*done {
        install_one(libc::SIGSEGV, on_sigsegv, &PREVIOUS_SEGV, |previous| {
            (previous.sa_flags & (libc::SA_ONSTACK | libc::SA_RESTART), false)
        })?;
        install_one(libc::SIGBUS, on_sigbus, &PREVIOUS_BUS, |_| (libc::SA_RESTART, true))?;
        *done = true;
    }
    Ok(())
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

fn install_one(
    signal: i32,
    handler: Handler,
    previous: &'static Previous,
    choose: impl Fn(&libc::sigaction) -> (i32, bool),
) -> Result<(), Errno> {
    // SAFETY: plain sigaction calls with initialised structures. The previous
    // action is stored before the handler that reads it can run, and `install`
    // lets one thread through once.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        Errno::result(libc::sigaction(signal, ptr::null(), &mut old))?;
        (*previous.action.get()).write(old);
        let (flags, mask_all) = choose(&old);
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = handler as usize;
        new.sa_flags = libc::SA_SIGINFO | flags;
        libc::sigemptyset(&mut new.sa_mask);
        if mask_all {
            libc::sigfillset(&mut new.sa_mask);
        }
        Errno::result(libc::sigaction(signal, &new, ptr::null_mut()))?;
    }
    Ok(())
}

/// The interrupted context, as far as we read and change it.
struct Context(*mut libc::ucontext_t);

impl Context {
    fn register(&self, which: i32) -> i64 {
        // SAFETY: the kernel gave the handler this context; only this handler
        // uses it until it returns.
        unsafe { (*self.0).uc_mcontext.gregs[which as usize] }
    }

    fn rip(&self) -> usize {
        self.register(libc::REG_RIP) as usize
    }

    /// All general registers in one number: an instruction that is repeated
    /// finds them as they were, and so accesses the same address.
    fn fingerprint(&self) -> u64 {
        // R8 to RIP: the first 17 registers of the context.
        (libc::REG_R8..=libc::REG_RIP).fold(0, |sum: u64, which| {
            (sum.rotate_left(7) ^ self.register(which) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }

    /// Goes on at `rip` with `rax`.
    fn redirect(&self, rip: usize, rax: u64) {
        // SAFETY: as in `register`.
        unsafe {
            (*self.0).uc_mcontext.gregs[libc::REG_RIP as usize] = rip as i64;
            (*self.0).uc_mcontext.gregs[libc::REG_RAX as usize] = rax as i64;
        }
    }

    /// The signals blocked in the interrupted program: the kernel's one word,
    /// of which libc's type is a larger relative.
    fn blocked(&self) -> *mut u64 {
        // SAFETY: as in `register`; only a place is computed.
        unsafe { (&raw mut (*self.0).uc_sigmask).cast() }
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// A fault of ours, however it arrived.
struct Fault {
    addr: VirtAddr,
    access: Access,
    /// Queue delivery: what the handler thread knew.
    queued: Option<Queued>,
}

/// Poison markers are in use: BUS_MCEERR_AR may be ours.
static POISON: AtomicBool = AtomicBool::new(false);

/// From now on a "hardware memory error" in a region is taken for a marker of
/// `Region::poison`.
pub(crate) fn expect_poison() {
    // SeqCst: before the marker can be met.
    POISON.store(true, Ordering::SeqCst);
}

/// The faulting access, by the hardware's own word.
#[inline]
fn access_of(context: &Context) -> Access {
    let error = context.register(libc::REG_ERR);
    Access { write: error & ERR_WRITE != 0, present: error & ERR_PRESENT != 0 }
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: this thread's own.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let errno = unsafe { *place };
    let context = Context(context.cast());
    // SAFETY: the kernel's siginfo, of which `SigInfo` is the layout.
    let known = unsafe { &*info.cast::<SigInfo>() };
    // The way of nearly every fault is short and without a detour; all else is
    // out of line, so that it does not take room in the caches.
    if known.code == libc::BUS_ADRERR {
        let fault = Fault { addr: VirtAddr(known.addr()), access: access_of(&context), queued: None };
        trace::hit(Event::FaultDelivered, fault.addr.get() as u64, 0);
        let verdict = serve(&fault);
        if verdict != Some(Outcome::Done) {
            not_done(signal, info, &context, &fault, verdict);
        }
    } else {
        other_sigbus(signal, info, &context, known);
    }
    // SAFETY: as above.
    unsafe { *place = errno };
}

/// A SIGBUS that does not tell of a missing page by itself: a handler thread's,
/// a poison marker, or not ours.
#[cold]
#[inline(never)]
fn other_sigbus(signal: i32, info: *mut libc::siginfo_t, context: &Context, known: &SigInfo) {
    let fault = if known.code == libc::BUS_MCEERR_AR && POISON.load(Ordering::Relaxed) {
        Fault { addr: VirtAddr(known.addr()), access: access_of(context), queued: None }
    } else if let Some(queued) = Queued::decode(known) {
        Fault { addr: queued.addr, access: queued.access, queued: Some(queued) }
    } else {
        return chain(&PREVIOUS_BUS, signal, info, context);
    };
    trace::hit(Event::FaultDelivered, fault.addr.get() as u64, 0);
    if fault.queued.is_some() {
        CONSUMED.count();
        // Before anything else: a late signal may find this thread anywhere,
        // even holding the locks of the fault path. Refused, the access is
        // repeated, and if it still faults, asked again.
        if !confirmed(&fault, context) {
            return;
        }
    }
    let verdict = serve(&fault);
    if verdict != Some(Outcome::Done) {
        not_done(signal, info, context, &fault, verdict);
    }
}

/// Has the fault served; `None`: it is not of ours.
#[inline(always)]
fn serve(fault: &Fault) -> Option<Outcome> {
    let section = rcu::FAULTS.enter();
    match registry::find(&section, fault.addr) {
        Found::Region(serve) => Some(serve.serve_fault(fault.addr, fault.access)),
        Found::Nothing => Some(Outcome::Signal(Signal::MapErr)),
        Found::Foreign => None,
    }
}

/// What becomes of an access that is not simply repeated.
#[cold]
#[inline(never)]
fn not_done(signal: i32, info: *mut libc::siginfo_t, context: &Context, fault: &Fault, verdict: Option<Outcome>) {
    match (verdict, fixup_for(context.rip())) {
        (Some(Outcome::Done), _) => {}
        // The space went away between the queue's decision and ours: the
        // access, repeated, will tell.
        (None, _) if fault.queued.is_some() => {}
        (Some(Outcome::Signal(earned)), Some(fixup)) => context.redirect(fixup, signal_code(earned)),
        (None, _) if maybe_late(fault, context.rip()) => {}
        // Not our memory, but our routine: say a truncated file's mapping.
        (None, Some(fixup)) => context.redirect(fixup, signal_code(Signal::Bus)),
        (None, None) => chain(&PREVIOUS_BUS, signal, info, context),
        (Some(Outcome::Signal(Signal::MapErr)), None) => raise_segv(context, fault.addr, siginfo::SEGV_MAPERR),
        (Some(Outcome::Signal(Signal::AccErr)), None) => raise_segv(context, fault.addr, siginfo::SEGV_ACCERR),
        (Some(Outcome::Signal(Signal::Bus)), None) => {
            let mut bus = SigInfo::fault(libc::SIGBUS, libc::BUS_ADRERR, fault.addr.get());
            chain(&PREVIOUS_BUS, signal, (&raw mut bus).cast(), context);
        }
    }
}

/// The access that a thread was last told to repeat, for [`confirmed`] and
/// [`maybe_late`].
#[derive(Clone, Copy)]
struct Repeated {
    rip: usize,
    addr: usize,
    /// [`Context::fingerprint`].
    registers: u64,
    /// The serial that the thread drew then.
    serial: u32,
}

const NOTHING: Repeated = Repeated { rip: 0, addr: 0, registers: 0, serial: 0 };

thread_local! {
    /// Const-initialised and without destructor: async-signal-safe.
    static REPEATED: Cell<Repeated> = const { Cell::new(NOTHING) };
}

/// Counts the queued signals that threads have judged.
static SERIAL: AtomicU32 = AtomicU32::new(1);

/// The latest serial. A handler thread reads it before it reads messages.
pub(crate) fn serial() -> u32 {
    // SeqCst: pairs with the SeqCst addition in `confirmed`: who reads a number
    // here reads messages after that judgement.
    SERIAL.load(Ordering::SeqCst)
}

/// Whether the interrupted instruction is the one that a queued signal is about.
///
/// A signal sent by a handler thread may come late: the access may have gone
/// through meanwhile, or a third party's signal may have interrupted the wait,
/// so that the fault was repeated and reported twice, or that its handler runs
/// now. Such a signal must not hit whatever the thread does now.
///
/// In a routine of [`access`](crate::access) the registers tell what is about
/// to be accessed. If it is the page that the signal is about, then, late or
/// not, a fault there may be judged now.
///
/// Elsewhere the signal counts only if
///
/// - the interrupted context is the one that the handler thread saw waiting,
///   by instruction and stack pointer (if /proc tells);
/// - it was refused once before, for the same instruction, address and
///   contents of all registers, and its
///   message was read after that: the instruction, repeated, faulted on that
///   address. (A message unread when its thread leaves the wait vanishes, so
///   one read after a judgement is not of a wait before it.)
///
/// What remains: a third party's handler that itself faults on the region, and
/// that interrupts one bad access twice, both times between the report and its
/// judgement, can be taken for it. Without /proc any handler that sleeps can.
///
/// Refusing is always safe: an access that still faults is reported again.
fn confirmed(fault: &Fault, context: &Context) -> bool {
    let Some(queued) = &fault.queued else { return true };
    let (last, rip, addr) = (REPEATED.get(), context.rip(), fault.addr.get());
    if fixup_for(rip).is_some() {
        let register = |which| context.register(which) as usize;
        let operands = operands(rip, register(libc::REG_RDI), register(libc::REG_RSI));
        return operands.iter().any(|&operand| VirtAddr(operand).page() == fault.addr.page());
    }
    // Leaves the memory as it is: it must not make the next report, already on
    // its way, look old.
    let elsewhere = queued.rip != rip || queued.rsp != context.register(libc::REG_RSP) as usize;
    if queued.rip != 0 && elsewhere {
        return false;
    }
    let registers = context.fingerprint();
    let same = last.rip == rip && last.addr == addr && last.registers == registers;
    let sure = same && queued.serial.wrapping_sub(last.serial) < u32::MAX / 2;
    if same && !sure {
        // An older report of the access that was just told to repeat. Drawing a
        // new serial for it would make the report to come look old in its turn.
        return false;
    }
    // SeqCst: pairs with `serial`.
    let serial = SERIAL.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
    let (rip, addr) = if sure { (0, 0) } else { (rip, addr) };
    REPEATED.set(Repeated { rip, addr, registers, serial });
    sure
}

/// Whether a fault that nobody serves may have been taken in a region that has
/// gone since: between the hardware's fault and our look at the table, a
/// thread can be off the CPU for long. Its access is repeated once, and then
/// meets what is there now; a SIGBUS that was never ours comes again.
fn maybe_late(fault: &Fault, rip: usize) -> bool {
    if !registry::any_freed() {
        return false;
    }
    let (last, addr) = (REPEATED.get(), fault.addr.get());
    let again = last.rip == rip && last.addr == addr;
    let (rip, addr) = if again { (0, 0) } else { (rip, addr) };
    REPEATED.set(Repeated { rip, addr, ..last });
    !again
}

/// Queued signals that arrived, by thread: how a handler thread tells a thread
/// that cannot take signals.
pub(crate) static CONSUMED: Consumed = Consumed([const { AtomicU32::new(0) }; 64]);

pub(crate) struct Consumed([AtomicU32; 64]);

impl Consumed {
    fn count(&self) {
        self.of(siginfo::thread_id()).fetch_add(1, Ordering::Relaxed);
    }

    /// The counter that `thread` shares with few others.
    pub(crate) fn of(&self, thread: i32) -> &AtomicU32 {
        &self.0[thread as usize % 64]
    }
}

extern "C" fn on_sigsegv(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    let context = Context(context.cast());
    // SAFETY: as in `on_sigbus`.
    let known = unsafe { &*info.cast::<SigInfo>() };
    // A positive code comes from the kernel: this instruction did it.
    match fixup_for(context.rip()) {
        Some(fixup) if known.code == siginfo::SEGV_ACCERR => context.redirect(fixup, signal_code(Signal::AccErr)),
        Some(fixup) if known.code > 0 => context.redirect(fixup, signal_code(Signal::MapErr)),
        _ => chain(&PREVIOUS_SEGV, signal, info, &context),
    }
    Errno::set_raw(errno);
}

/// Gives `signal` its default action.
pub(crate) fn set_default(signal: i32) {
    // SAFETY: SIG_DFL with no flags is a valid action.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

/// Whether `signal` is ignored.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: a query of the current action.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action);
        action.sa_sigaction == libc::SIG_IGN
    }
}

/// SIGSEGV for the interrupted instruction, after our handler has returned,
/// with what the kernel would have said. Blocked or ignored it kills, as the
/// kernel's own (`force_sig_fault`) does.
fn raise_segv(context: &Context, addr: VirtAddr, code: i32) {
    // SAFETY: the handler's own context.
    let blocked = unsafe { *context.blocked() & bit(libc::SIGSEGV) != 0 };
    if blocked || is_ignored(libc::SIGSEGV) {
        set_default(libc::SIGSEGV);
        // SAFETY: as above.
        unsafe { *context.blocked() &= !bit(libc::SIGSEGV) };
    }
    siginfo::send(siginfo::thread_id(), &SigInfo::fault(libc::SIGSEGV, code, addr.get()));
}

/// Does what the action before ours would have done.
fn chain(previous: &Previous, signal: i32, info: *mut libc::siginfo_t, context: &Context) {
    // SAFETY: called from the handlers that go with `previous`; `info` is valid.
    let (action, code) = unsafe { (previous.get(), (*info.cast::<SigInfo>()).code) };
    let from_kernel = code > 0;
    match action.sa_sigaction {
        libc::SIG_IGN if !from_kernel => {}
        // A fault whose signal is ignored kills as well.
        libc::SIG_DFL | libc::SIG_IGN => {
            set_default(signal);
            if !from_kernel {
                // Nothing would repeat it. It waits until we return.
                siginfo::send(siginfo::thread_id(), &SigInfo::user(signal));
            }
        }
        handler => {
            if action.sa_flags & libc::SA_RESETHAND != 0 {
                previous.reset.store(true, Ordering::Relaxed);
            }
            call(handler, &action, signal, info, context);
        }
    }
}

/// Calls a previous handler with the signals blocked that it asked for.
fn call(handler: usize, action: &libc::sigaction, signal: i32, info: *mut libc::siginfo_t, context: &Context) {
    // SAFETY: the masks are the kernel's 8 bytes; the handler is what the
    // program installed for this signal, called as its flags say.
    unsafe {
        let mut mask = *context.blocked() | *(&raw const action.sa_mask).cast::<u64>();
        if action.sa_flags & libc::SA_NODEFER == 0 {
            mask |= bit(signal);
        }
        let mut ours = 0u64;
        set_mask(&mask, &mut ours);
        if action.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: Handler = std::mem::transmute(handler);
            handler(signal, info, context.0.cast());
        } else {
            let handler: extern "C" fn(i32) = std::mem::transmute(handler);
            handler(signal);
        }
        set_mask(&ours, &mut mask);
    }
}

/// `rt_sigprocmask(SIG_SETMASK)` on the kernel's own 8 bytes.
fn set_mask(new: &u64, old: &mut u64) {
    // SAFETY: both point to 8 bytes.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, old, size_of::<u64>()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::{Notify, Region};
    use crate::registry::Registration;
    use crate::uffd::Privilege;
    use std::sync::Arc;
    use vmalab::addr::PAGE_SIZE;
    use vmalab::fault::ServeFault;

    struct Refuse;

    impl ServeFault for Refuse {
        fn serve_fault(&self, _: VirtAddr, _: Access) -> Outcome {
            Outcome::Signal(Signal::AccErr)
        }
    }

    /// A handler thread's signal that comes when the access is long over must
    /// not hit what the thread does now.
    #[test]
    fn a_late_signal_hits_nobody() {
        install().unwrap();
        let region = Region::new(PAGE_SIZE, Notify::Signal, Privilege::User).unwrap();
        let addr = region.range().start();
        let registration = Registration::new(region.range(), region.reservation(), Arc::new(Refuse)).unwrap();
        let taken = CONSUMED.of(siginfo::thread_id()).load(Ordering::Relaxed);
        // The first is of a message read before the thread judged any other, so
        // what must save it is the context; later ones are old as well.
        let access = Access { write: true, present: false };
        let elsewhere = Queued { addr, access, rip: 1, rsp: 1, serial: serial() };
        for late in [elsewhere, Queued { rip: 0, rsp: 0, ..elsewhere }] {
            for _ in 0..250 {
                assert!(siginfo::send(siginfo::thread_id(), &late.encode()));
            }
        }
        assert!(CONSUMED.of(siginfo::thread_id()).load(Ordering::Relaxed) >= taken + 500);
        drop(registration);
    }
}
