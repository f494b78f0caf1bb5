//! Queue delivery: handler threads that read the userfaultfd's messages.
//!
//! A handler thread decides with the same fault path as the SIGBUS handler.
//! Where the access may be repeated it wakes the page's waiters: always, even
//! if another thread installed the page, so that nobody's sleep depends on who
//! was first. Where a signal is due, it cannot act in the faulting thread's
//! stead: it sends that thread a SIGBUS of our own making, which interrupts
//! its wait, and our SIGBUS handler there decides again, in place
//! (`sigbus::confirmed`).
//!
//! Before Linux 5.18 (EXACT_ADDRESS) messages name the page only, and so does
//! `si_addr` of the signal.
//!
//! # Threads that cannot take the signal
//!
//! A thread that blocks or ignores SIGBUS would wait for ever: as with a real
//! fault whose signal is blocked, the process dies of SIGSEGV.
//!
//! A thread that faults *inside a system call* (only with a userfaultfd for
//! kernel faults, [`Privilege::Kernel`](crate::uffd::Privilege) or `Best` with
//! rights) takes no signal before the call is over, and the call cannot end
//! before the fault does. /proc tells that it is in a system call; where it
//! does not, messages that go on after the signal was sent and not taken do.
//! Then the page is poisoned (UFFDIO_POISON), which ends the call with EFAULT,
//! as it should end; the next page installed there replaces the poison. Where
//! that is impossible (a store into a page that is present and read-only, or a
//! kernel before 6.6) the process dies of SIGSEGV.

use crate::region::Region;
use crate::registry::{self, Found};
use crate::sigbus;
use crate::siginfo::{self, Queued};
use crate::uffd::Origin;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use userfaultfd::{Event, EventBuffer, FaultKind, ReadWrite};
use vmalab::addr::VirtAddr;
use vmalab::fault::{Access, Outcome, Signal};
use vmalab::rcu;
use vmalab::sync::{AtomicU32, futex_wait, futex_wake};
use vmalab::trace::{self, Event as TraceEvent};

/// Messages that one read may fetch: few, so that handler threads share them.
const BATCH: usize = 4;

/// The handler threads of one region.
pub struct QueueThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    region: Arc<Region>,
    /// Threads that have everything they need: serving allocates nothing.
    ready: AtomicU32,
    stop: AtomicBool,
    /// Readable once `stop` is set: ends a poll.
    stop_event: EventFd,
    /// The last bad access of each thread, by thread number.
    suspects: Mutex<[Suspect; SUSPECTS]>,
}

const SUSPECTS: usize = 64;
/// Messages of one access after its signal was sent and before it was taken,
/// that prove it to be inside a system call.
const REPEATS_MAX: u32 = 16;

/// A bad access whose thread was sent a signal.
#[derive(Clone, Copy, Default)]
struct Suspect {
    thread: i32,
    addr: usize,
    /// The thread's count of signals taken, when the signal was sent.
    taken: u32,
    repeats: u32,
}

impl QueueThreads {
    /// Starts `handlers` threads (at least one), which sleep until a message
    /// comes, or with `polling` never sleep. Returns when all of them serve.
    ///
    /// # Errors
    /// The host's, if it has no descriptor or thread left.
    pub fn start(region: &Arc<Region>, handlers: usize, polling: bool) -> Result<QueueThreads, std::io::Error> {
        let stop_event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            region: region.clone(),
            ready: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            stop_event,
            suspects: Mutex::new([Suspect::default(); SUSPECTS]),
        });
        let mut started = QueueThreads { shared, threads: Vec::new() };
        for index in 0..handlers.max(1) {
            let shared = started.shared.clone();
            let builder = std::thread::Builder::new().name(format!("vmalab-fault/{index}"));
            match builder.spawn(move || shared.run(polling)) {
                Ok(thread) => started.threads.push(thread),
                Err(error) => {
                    started.stop();
                    return Err(error);
                }
            }
        }
        let ready = &started.shared.ready;
        loop {
            let count = ready.load(Ordering::Relaxed);
            if count as usize == started.threads.len() {
                return Ok(started);
            }
            futex_wait(ready, count);
        }
    }

    /// Ends the threads and waits for them. Messages still unread stay unread:
    /// their threads wait until the region goes.
    pub fn stop(self) {
        // Release: pairs with the Acquire in `run`.
        self.shared.stop.store(true, Ordering::Release);
        // A counter far from full: cannot fail.
        let _ = self.shared.stop_event.write(1);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// One page fault out of a message.
struct Message {
    addr: VirtAddr,
    access: Access,
    thread: i32,
}

impl Message {
    fn decode(event: Event) -> Option<Message> {
        // Other events were not asked for.
        let Event::Pagefault { kind, rw, addr, thread_id } = event else { return None };
        let present = kind == FaultKind::WriteProtected;
        let access = Access { write: present || rw == ReadWrite::Write, present };
        Some(Message { addr: VirtAddr(addr as usize), access, thread: thread_id.as_raw() })
    }
}

impl Shared {
    fn run(&self, polling: bool) {
        vmalab::thread::announce();
        trace::follow_thread();
        let mut buffer = EventBuffer::new(BATCH);
        self.ready.fetch_add(1, Ordering::Relaxed);
        futex_wake(&self.ready, i32::MAX);
        // Acquire: pairs with the Release in `stop`.
        while !self.stop.load(Ordering::Acquire) {
            if !polling {
                self.wait();
            }
            // Before the read: see `sigbus::confirmed`.
            let serial = sigbus::serial();
            let messages = match self.region.uffd().sole().messages().read_events(&mut buffer) {
                Ok(messages) => messages,
                // A signal; anything else would come again and end in `stop`.
                Err(_) => continue,
            };
            let mut any = false;
            for message in messages.flatten().filter_map(Message::decode) {
                any = true;
                self.handle(&message, serial);
            }
            if polling && !any {
                std::hint::spin_loop();
            }
        }
    }

    /// Sleeps until there is a message, or the end.
    fn wait(&self) {
        let mut fds = [
            PollFd::new(self.region.uffd().sole().as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop_event.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("poll of a userfaultfd: {errno}"),
        }
    }

    fn handle(&self, message: &Message, serial: u32) {
        trace::hit(TraceEvent::FaultDelivered, message.addr.get() as u64, 0);
        let outcome = {
            let section = rcu::FAULTS.enter();
            match registry::find(&section, message.addr) {
                Found::Region(serve) => serve.serve_fault(message.addr, message.access),
                // The space is going.
                Found::Nothing => Outcome::Signal(Signal::MapErr),
                // It is gone: its end wakes everybody.
                Found::Foreign => return,
            }
        };
        match outcome {
            Outcome::Done => self.wake(message.addr),
            Outcome::Signal(_) => self.signal(message, serial),
        }
    }

    fn wake(&self, addr: VirtAddr) {
        // EAGAIN and the like cannot be: no event is ever pending.
        let _ = self.region.uffd().wake(addr.page());
    }

    #[cold]
    fn signal(&self, message: &Message, serial: u32) {
        let kernel_faults = self.region.uffd().origin() != Origin::UserModeOnly;
        match whereabouts(message.thread) {
            Whereabouts::Waiting { rip, rsp } => send_sigbus(message, serial, rip, rsp),
            Whereabouts::SystemCall if kernel_faults => {
                // Or a signal handler has led it there since; then it will
                // fault again, on poison or not.
                if !self.region.poison(message.addr.page()) {
                    self.repeat_or_die(message);
                }
            }
            // Not waiting, or not yet: if it does, it shall ask again.
            Whereabouts::SystemCall | Whereabouts::Running => self.wake(message.addr),
            Whereabouts::Unknown => match self.repeats(message) {
                0 => send_sigbus(message, serial, 0, 0),
                // It is pending; the thread repeats its fault in the meantime.
                1..REPEATS_MAX => std::thread::yield_now(),
                _ => {
                    if !self.region.poison(message.addr.page()) {
                        die_of_sigsegv();
                    }
                }
            },
        }
    }

    /// For an access that can neither be served nor ended: if it comes again
    /// and again it is inside a system call indeed.
    fn repeat_or_die(&self, message: &Message) {
        if self.repeats(message) >= REPEATS_MAX {
            die_of_sigsegv();
        }
        self.wake(message.addr);
    }

    /// How often this access was told to end and did not.
    fn repeats(&self, message: &Message) -> u32 {
        let taken = sigbus::CONSUMED.of(message.thread).load(Ordering::Relaxed);
        let mut suspects = self.suspects.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let suspect = &mut suspects[message.thread as usize % SUSPECTS];
        let same = suspect.thread == message.thread && suspect.addr == message.addr.get() && suspect.taken == taken;
        let repeats = if same { suspect.repeats + 1 } else { 0 };
        *suspect = Suspect { thread: message.thread, addr: message.addr.get(), taken, repeats };
        repeats
    }
}

fn send_sigbus(message: &Message, serial: u32, rip: usize, rsp: usize) {
    if cannot_take_sigbus(message.thread) {
        die_of_sigsegv();
    }
    let Message { addr, access, thread } = *message;
    siginfo::send(thread, &Queued { addr, access, rip, rsp, serial }.encode());
}

/// Where a thread is that has reported a fault.
enum Whereabouts {
    /// Asleep, outside any system call: in its fault.
    Waiting { rip: usize, rsp: usize },
    /// Asleep inside a system call.
    SystemCall,
    /// On a CPU.
    Running,
    /// /proc does not tell.
    Unknown,
}

/// Asks `/proc/self/task/N/syscall`: "running", or the system call (-1: none),
/// for a call its arguments, the stack pointer and the instruction pointer.
fn whereabouts(thread: i32) -> Whereabouts {
    // A message is readable a little before its thread is asleep.
    for _ in 0..100 {
        let mut text = [0u8; 256];
        let Some(text) = read_proc(thread, "syscall", &mut text) else { return Whereabouts::Unknown };
        let mut words = text.trim_ascii().split(|&b| b == b' ');
        let hex = |word: Option<&[u8]>| {
            let digits = std::str::from_utf8(word?.strip_prefix(b"0x")?).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        match words.next() {
            Some(b"running") => std::thread::yield_now(),
            Some(b"-1") => {
                return match (hex(words.next()), hex(words.next())) {
                    (Some(rsp), Some(rip)) => Whereabouts::Waiting { rip, rsp },
                    _ => Whereabouts::Unknown,
                };
            }
            Some(word) if word.first().is_some_and(u8::is_ascii_digit) => return Whereabouts::SystemCall,
            _ => return Whereabouts::Unknown,
        }
    }
    Whereabouts::Running
}

/// Whether a SIGBUS sent to `thread`, which waits, would never be delivered.
///
/// Blocked may also mean that it left the wait and is in our SIGBUS handler
/// right now, for another report of the same access. Nobody is there for long:
/// it must be blocked, and asleep outside system calls, each time we look.
fn cannot_take_sigbus(thread: i32) -> bool {
    const LOOKS: u32 = 20;
    let stuck = || {
        let waits = matches!(whereabouts(thread), Whereabouts::Waiting { .. } | Whereabouts::Unknown);
        blocks_sigbus(thread) && waits
    };
    sigbus::is_ignored(libc::SIGBUS)
        || (0..LOOKS).all(|look| {
            if look > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            stuck()
        })
}

fn blocks_sigbus(thread: i32) -> bool {
    let mut text = [0u8; 4096];
    let Some(text) = read_proc(thread, "status", &mut text) else { return false };
    let line = text.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"SigBlk:\t"));
    let mask = line.and_then(|hex| u64::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
    mask.unwrap_or(0) & (1 << (libc::SIGBUS - 1)) != 0
}

/// Reads a file of `/proc/self/task/N`. No allocation: this is the fault path.
fn read_proc<'b>(thread: i32, file: &str, text: &'b mut [u8]) -> Option<&'b [u8]> {
    let mut path = [0u8; 64];
    let mut rest = &mut path[..63];
    std::io::Write::write_fmt(&mut rest, format_args!("/proc/self/task/{thread}/{file}")).ok()?;
    // SAFETY: `path` ends in a zero byte, `text` takes what is read; the
    // descriptor is closed again.
    let read = unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let read = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        usize::try_from(read).ok()?
    };
    Some(&text[..read])
}

/// What the kernel does to a process whose fault signal is blocked.
fn die_of_sigsegv() -> ! {
    sigbus::set_default(libc::SIGSEGV);
    // SAFETY: unblocks SIGSEGV on this thread, then raises it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGSEGV);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(libc::SIGSEGV);
        libc::abort()
    }
}
