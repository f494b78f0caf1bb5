//! Queue delivery: handler threads that read the userfaultfd's messages.
//!
//! A handler thread decides with the same fault path as the SIGBUS handler.
//! Where the access may be repeated it wakes the page's waiters: always, even
//! if another thread installed the page, so that nobody's sleep depends on who
//! was first. Where a signal is due, it cannot act in the faulting thread's
//! stead: it sends that thread a SIGBUS of our own making, which interrupts
//! its wait, and our SIGBUS handler there decides again, in place (see
//! `sigbus::confirmed` for why twice).
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
//! before the fault does: the kernel repeats the fault without pause. Such a
//! thread is recognised by its messages going on after the signal was sent and
//! not taken. Then the page is poisoned (UFFDIO_POISON), which ends the call
//! with EFAULT, as it should end; the next page installed there replaces the
//! poison. Where that is impossible (a store into a page that is present and
//! read-only, or a kernel before 6.6) the process dies of SIGSEGV.

use crate::region::Region;
use crate::registry::{self, Found};
use crate::sigbus;
use crate::siginfo;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use userfaultfd::{Event, EventBuffer, FaultKind, ReadWrite};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::{Access, Outcome};
use vmalab::rcu;
use vmalab::sync::{futex_wait, futex_wake};

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
        let mut buffer = EventBuffer::new(BATCH);
        self.ready.fetch_add(1, Ordering::Relaxed);
        futex_wake(&self.ready, i32::MAX);
        // Acquire: pairs with the Release in `stop`.
        while !self.stop.load(Ordering::Acquire) {
            if !polling {
                self.wait();
            }
            // Before the read: see `sigbus::confirmed`.
            let armed = sigbus::armings();
            let messages = match self.region.uffd().messages().read_events(&mut buffer) {
                Ok(messages) => messages,
                // A signal; anything else would come again and end in `stop`.
                Err(_) => continue,
            };
            let mut any = false;
            for message in messages.flatten().filter_map(Message::decode) {
                any = true;
                self.handle(&message, armed);
            }
            if polling && !any {
                std::hint::spin_loop();
            }
        }
    }

    /// Sleeps until there is a message, or the end.
    fn wait(&self) {
        let mut fds = [
            PollFd::new(self.region.uffd().as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop_event.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("poll of a userfaultfd: {errno}"),
        }
    }

    fn handle(&self, message: &Message, armed: u32) {
        let outcome = {
            let section = rcu::FAULTS.enter();
            match registry::find(&section, message.addr) {
                Found::Region(serve) => serve.serve_fault(message.addr, message.access),
                // The space is going: its end wakes everybody.
                Found::Nothing | Found::Foreign => return,
            }
        };
        match outcome {
            Outcome::Done => self.wake(message.addr),
            Outcome::Signal(_) => self.signal(message, armed),
        }
    }

    fn wake(&self, addr: VirtAddr) {
        // EAGAIN and the like cannot be: no event is ever pending.
        let _ = self.region.uffd().wake(PageRange::sized(addr.page(), PAGE_SIZE));
    }

    #[cold]
    fn signal(&self, message: &Message, armed: u32) {
        match self.repeats(message) {
            0 => {
                if cannot_take_sigbus(message.thread) {
                    die_of_sigsegv();
                }
                siginfo::send(message.thread, &siginfo::queued(message.addr, message.access, armed));
            }
            // It is pending; the thread repeats its fault in the meantime.
            1..REPEATS_MAX => std::thread::yield_now(),
            _ => {
                if !self.region.poison(message.addr.page()) {
                    die_of_sigsegv();
                }
            }
        }
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

/// Whether a SIGBUS sent to `thread` would never be delivered.
fn cannot_take_sigbus(thread: i32) -> bool {
    if sigbus::is_ignored(libc::SIGBUS) {
        return true;
    }
    let mut path = [0u8; 48];
    let mut rest = &mut path[..47];
    let _ = std::io::Write::write_fmt(&mut rest, format_args!("/proc/self/task/{thread}/status"));
    let mut text = [0u8; 4096];
    // SAFETY: `path` ends in a zero byte, `text` takes what is read; the
    // descriptor is closed again. No allocation: this is the fault path.
    let read = unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return false;
        }
        let read = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        usize::try_from(read).unwrap_or(0)
    };
    let line = text[..read].split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"SigBlk:\t"));
    let mask = line.and_then(|hex| u64::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
    mask.unwrap_or(0) & (1 << (libc::SIGBUS - 1)) != 0
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
