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
//! not taken; then the page is given to it for the moment the call needs: see
//! `Stuck`.

use crate::region::Region;
use crate::registry::{self, Found};
use crate::sigbus;
use crate::siginfo;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use userfaultfd::{Event, EventBuffer, FaultKind, ReadWrite};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::{Access, Outcome};
use vmalab::rcu;

/// Messages that one read may fetch: few, so that handler threads share them.
const BATCH: usize = 4;

/// The handler threads of one region.
pub struct QueueThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    region: Arc<Region>,
    stop: AtomicBool,
    /// Readable once `stop` is set: ends a poll.
    stop_event: EventFd,
}

impl QueueThreads {
    /// Starts `handlers` threads, which sleep until a message comes, or with
    /// `polling` never sleep.
    ///
    /// # Errors
    /// The host's, if it has no descriptor or thread left.
    pub fn start(region: &Arc<Region>, handlers: usize, polling: bool) -> Result<QueueThreads, std::io::Error> {
        let stop_event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { region: region.clone(), stop: AtomicBool::new(false), stop_event });
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
        Ok(started)
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
        if cannot_take_sigbus(message.thread) {
            die_of_sigsegv();
        }
        siginfo::send(message.thread, &siginfo::queued(message.addr, message.access, armed));
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
