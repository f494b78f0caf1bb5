//! The handler thread: reads a message, does one ioctl (which wakes the thread
//! that waits), reads the next. Each thread that faults has a userfaultfd and a
//! handler of its own, blocked in `read(2)`.

use crate::bare::{Bare, Install, Notify};
use crate::calls::PAGES;
use crate::crew::{Place, Probe, Samples, pin};
use crate::{Handler, Reason, Touch};
use linux_raw_sys::general::UFFD_EVENT_PAGEFAULT;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use vmalab::addr::PAGE_SIZE;

/// Faults served by a handler thread.
pub struct Served {
    bare: Arc<Bare>,
    touch: Touch,
    handler: Option<JoinHandle<()>>,
}

impl Served {
    /// Called on the thread that is to fault; its handler gets a CPU as asked.
    pub fn new(install: Install, touch: Touch, pages: usize, handler: Handler, place: Place) -> Result<Served, Reason> {
        let cpu = match handler {
            Handler::Same => place.cpu,
            Handler::Apart => place.spare.ok_or_else(|| Reason("there is no second CPU".to_owned()))?,
        };
        let bare = Arc::new(Bare::new(install, pages, Notify::Queue)?);
        let fd = bare.job.uffd().as_fd().as_raw_fd();
        // Opened non-blocking, for those who poll.
        // SAFETY: takes no pointers.
        Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFL, 0) }).map_err(|errno| Reason::call("fcntl", errno))?;
        let theirs = bare.clone();
        let handler = thread::Builder::new()
            .name("limits-handler".to_owned())
            .spawn(move || {
                // If it cannot be pinned it works as it is.
                let _ = pin(cpu);
                handle(&theirs);
            })
            .map_err(|error| Reason(format!("cannot start a handler thread: {error}")))?;
        Ok(Served { bare, touch, handler: Some(handler) })
    }
}

/// The handler thread. Ends when it has served a page behind those of a pass,
/// or when something failed: then nothing is registered, and no fault comes.
/// (A flag would not do: it could be seen after a fault of the last pass.)
fn handle(bare: &Bare) {
    let job = &bare.job;
    let fd = job.uffd().as_fd().as_raw_fd();
    let last = bare.base() + PAGES * PAGE_SIZE;
    let mut message = [0u64; 4];
    loop {
        // SAFETY: a message fits into the buffer.
        let read = unsafe { libc::read(fd, message.as_mut_ptr().cast(), size_of_val(&message)) };
        let addr = message[2] as usize;
        match Errno::result(read) {
            Ok(_) if message[0] as u8 == UFFD_EVENT_PAGEFAULT as u8 => job.serve(addr),
            Ok(_) => job.give_up(Errno::EPROTO),
            Err(Errno::EINTR) => continue,
            Err(errno) => job.give_up(errno),
        }
        if addr >= last || job.check().is_err() {
            return;
        }
    }
}

impl Probe for Served {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        let bare = &self.bare;
        for first in bare.batches() {
            samples.time(bare.pages() as u64, || bare.touch_batch(first, self.touch));
        }
        bare.job.check()?;
        bare.reset()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The handler is blocked in its read: one more fault, on the pages
        // that no pass touches, ends it.
        self.bare.touch_batch(PAGES, self.touch);
        if let Some(handler) = self.handler.take() {
            // A panic there has been printed; the measurement has its result.
            let _ = handler.join();
        }
    }
}
