//! Ready pages: blocks of zeroed memory, made ahead of time, that a fault moves
//! to where they are wanted (UFFDIO_MOVE) and need not clear.
//!
//! A [`Pool`] has blocks of [`BLOCK`] pages. Each is *ready* (all its pages are
//! present and zero), in a fault's hands, or *used* (some pages have been moved
//! away). A fault takes a ready block, moves as many pages as it needs, and
//! puts the block among the used ones; a thread of the pool makes used blocks
//! ready again. Nobody else touches the memory, so what was not moved stays
//! zero. The queues never allocate; who pops may spin for the moment in which
//! another thread is between the two halves of a push, so that thread takes no
//! signals, and a fault that finds nothing ready does without.
//!
//! A move costs a TLB shootdown as soon as two threads run, so single pages are
//! better copied: the pool serves fault-around.

use crate::region::{open_up, reserve};
use crate::stripes::Stripes;
use crate::uffd::UffdError;
use crossbeam::queue::ArrayQueue;
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};

/// Pages of a block.
pub(crate) const BLOCK: usize = 16;
const BLOCK_BYTES: usize = BLOCK * PAGE_SIZE;
/// How long the filler sleeps when there is nothing to do. Being woken by a
/// fault would cost the fault more than the pool saves it.
const NAP: Duration = Duration::from_micros(200);

struct Blocks {
    range: PageRange,
    ready: ArrayQueue<u32>,
    used: ArrayQueue<u32>,
    stop: AtomicBool,
}

impl Blocks {
    fn start(&self, block: u32) -> VirtAddr {
        self.range.start() + block as usize * BLOCK_BYTES
    }

    /// Makes every page of a block present; those that are keep their zeros.
    fn fill(&self, block: u32) -> Result<(), Errno> {
        const MADV_POPULATE_WRITE: i32 = 23;
        let start = self.start(block).get() as *mut libc::c_void;
        // SAFETY: memory of the pool, which nothing refers to.
        Errno::result(unsafe { libc::madvise(start, BLOCK_BYTES, MADV_POPULATE_WRITE) }).map(drop)
    }

    /// The filler's work, until it is told to stop.
    ///
    /// While faults take blocks it does nothing as long as half of them are ready:
    /// a move has to interrupt every other CPU on which the process runs, so the
    /// filler had better not run.
    fn keep_filling(&self) {
        let mut seen = 0;
        // Relaxed: a signal to stop; joining orders the rest.
        while !self.stop.load(Ordering::Relaxed) {
            let used = self.used.len();
            let leave_alone = used > seen && 2 * self.ready.len() >= self.ready.capacity();
            seen = used;
            match if leave_alone { None } else { self.used.pop() } {
                Some(block) if self.fill(block).is_ok() => {
                    let _ = self.ready.push(block);
                    seen = seen.saturating_sub(1);
                }
                Some(block) => {
                    // No memory now: later, perhaps.
                    let _ = self.used.push(block);
                    std::thread::sleep(Duration::from_millis(10));
                }
                None => std::thread::sleep(NAP),
            }
        }
    }
}

/// See the module's documentation.
pub(crate) struct Pool {
    blocks: Arc<Blocks>,
    filler: Option<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `pages` ready pages, rounded up to whole blocks.
    ///
    /// # Errors
    /// The host's: no memory, no thread.
    pub(crate) fn new(pages: usize) -> Result<Pool, Errno> {
        let count = pages.div_ceil(BLOCK).max(1);
        let range = reserve(count * BLOCK_BYTES)?;
        let blocks =
            Blocks { range, ready: ArrayQueue::new(count), used: ArrayQueue::new(count), stop: AtomicBool::new(false) };
        // From here on the reservation goes with the pool.
        let mut pool = Pool { blocks: Arc::new(blocks), filler: None };
        open_up(range).map_err(|(_, errno)| errno)?;
        for block in 0..count as u32 {
            pool.blocks.fill(block)?;
            let _ = pool.blocks.ready.push(block);
        }
        let blocks = Arc::clone(&pool.blocks);
        // With every signal blocked: a handler that touched the region inside a
        // push would wait for its own thread.
        let mask = nix::sys::signal::SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let filler = std::thread::Builder::new().name("vmalab-ready".to_owned()).spawn(move || blocks.keep_filling());
        mask.thread_set_mask()?;
        pool.filler = Some(filler.map_err(|_| Errno::EAGAIN)?);
        Ok(pool)
    }

    /// Pages of the blocks that are ready.
    pub(crate) fn pages(&self) -> usize {
        self.blocks.ready.len() * BLOCK
    }

    /// Moves ready pages to the start of `run`, at most [`BLOCK`]. Returns how
    /// many; `None`: nothing was ready, or they cannot be moved there now.
    /// Async-signal-safe.
    pub(crate) fn move_to(&self, uffd: &Stripes, run: PageRange) -> Option<usize> {
        let block = self.blocks.ready.pop()?;
        let bytes = run.bytes().min(BLOCK_BYTES);
        // SAFETY: pages of the pool, which are ours since `pop`.
        let moved = unsafe { uffd.move_pages(run.start(), self.blocks.start(block), bytes) };
        // There is room: the queue holds every block.
        let _ = self.blocks.used.push(block);
        match moved {
            Ok(()) => Some(bytes / PAGE_SIZE),
            Err(UffdError::Again { done }) if done > 0 => Some(done / PAGE_SIZE),
            Err(_) => None,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.blocks.stop.store(true, Ordering::Relaxed);
        if let Some(filler) = self.filler.take() {
            let _ = filler.join();
        }
        // SAFETY: the pool's own reservation; its thread is gone.
        unsafe { libc::munmap(self.blocks.range.start().get() as *mut _, self.blocks.range.bytes()) };
    }
}
