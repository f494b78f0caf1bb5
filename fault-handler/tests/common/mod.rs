//! A flat address space for tests: one state for each page instead of VMAs,
//! one spinning lock instead of theirs, and the fault path of a few lines.
#![allow(dead_code)]

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::{Access, Outcome, ServeFault, Signal};
use vmalab::file::{FilePage, Inode};
use vmalab::mmu::{Content, Installed, Mmu, MmuError, PageAccess, PageBuf};
use vmalab_fault_handler::mmu::UffdMmu;
use vmalab_fault_handler::queue::QueueThreads;
use vmalab_fault_handler::region::Notify;
use vmalab_fault_handler::registry::Registration;
use vmalab_fault_handler::sigbus;
use vmalab_fault_handler::uffd::Privilege;

/// What a page of the flat map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Unmapped,
    None,
    Read,
    ReadWrite,
    /// Faults end in SIGBUS.
    NoMemory,
}

pub const STATES: [State; 5] = [State::Unmapped, State::None, State::Read, State::ReadWrite, State::NoMemory];

impl State {
    fn access(self) -> PageAccess {
        match self {
            State::Read => PageAccess::Read,
            State::ReadWrite => PageAccess::ReadWrite,
            _ => PageAccess::None,
        }
    }
}

pub struct FlatMap {
    pub mmu: UffdMmu,
    states: Vec<AtomicU8>,
    /// Readers, or `WRITER`.
    lock: AtomicU32,
    /// A writer waits: readers let it through.
    writer_waits: AtomicBool,
    /// Pages are filled with this byte.
    fill: AtomicU8,
    pub faults: AtomicU64,
    pub installed: AtomicU64,
    /// Every access repeats until this is cleared.
    pub stall: AtomicBool,
    /// Maps a file, page by page, instead of zeros; `true`: shared.
    pub file: OnceLock<(Arc<Inode>, bool)>,
}

const WRITER: u32 = 1 << 31;

/// Page 0 of a map, in its region: a stripe ends with page 4 (`Stripes`).
const FIRST: usize = 512 - 5;

impl FlatMap {
    pub fn new(pages: usize, notify: Notify, privilege: Privilege) -> FlatMap {
        let mmu = UffdMmu::new((FIRST + pages).max(1024) * PAGE_SIZE, notify, privilege).expect("userfaultfd");
        FlatMap {
            mmu,
            states: (0..pages).map(|_| AtomicU8::new(State::Unmapped as u8)).collect(),
            lock: AtomicU32::new(0),
            writer_waits: AtomicBool::new(false),
            fill: AtomicU8::new(0),
            faults: AtomicU64::new(0),
            installed: AtomicU64::new(0),
            stall: AtomicBool::new(false),
            file: OnceLock::new(),
        }
    }

    pub fn addr(&self, page: usize) -> usize {
        self.mmu.range().start().get() + (FIRST + page) * PAGE_SIZE
    }

    pub fn pages(&self, from: usize, to: usize) -> PageRange {
        PageRange::new(VirtAddr(self.addr(from)), VirtAddr(self.addr(to)))
    }

    pub fn fill_with(&self, byte: u8) {
        self.fill.store(byte, SeqCst);
    }

    /// A mutator's critical section: no fault is served meanwhile.
    pub fn write_locked<R>(&self, f: impl FnOnce() -> R) -> R {
        while self.lock.compare_exchange(0, WRITER, SeqCst, SeqCst).is_err() {
            self.writer_waits.store(true, SeqCst);
            std::thread::yield_now();
        }
        self.writer_waits.store(false, SeqCst);
        let result = f();
        self.lock.store(0, SeqCst);
        result
    }

    /// A fault's critical section.
    pub fn read_locked<R>(&self, f: impl FnOnce() -> R) -> R {
        loop {
            let old = self.lock.load(SeqCst);
            if old & WRITER == 0
                && !self.writer_waits.load(SeqCst)
                && self.lock.compare_exchange(old, old + 1, SeqCst, SeqCst).is_ok()
            {
                break;
            }
            std::thread::yield_now();
        }
        let result = f();
        self.lock.fetch_sub(1, SeqCst);
        result
    }

    fn state(&self, page: usize) -> State {
        STATES[self.states[page].load(SeqCst) as usize]
    }

    /// mmap, munmap and mprotect in one.
    pub fn set(&self, from: usize, to: usize, state: State) {
        self.try_set(from, to, state).expect("protect")
    }

    pub fn try_set(&self, from: usize, to: usize, state: State) -> Result<(), MmuError> {
        self.write_locked(|| {
            let (old, range) = (self.state(from), self.pages(from, to));
            if let Some((inode, _)) = self.file.get()
                && !matches!(state, State::Read | State::ReadWrite)
            {
                self.mmu.release_file(range, FilePage { inode, index: from as u64 });
            }
            if state == State::Unmapped || state == State::NoMemory {
                self.mmu.zap(range);
            } else if old != State::Unmapped && old != State::NoMemory {
                self.mmu.protect(range, old.access(), state.access())?;
            }
            self.states[from..to].iter().for_each(|s| s.store(state as u8, SeqCst));
            Ok(())
        })
    }

    fn serve(&self, addr: VirtAddr, access: Access) -> Result<Outcome, MmuError> {
        let number = (addr.page() - self.mmu.range().start()) / PAGE_SIZE;
        let Some(index) = number.checked_sub(FIRST).filter(|&index| index < self.states.len()) else {
            return Ok(Outcome::Signal(Signal::MapErr));
        };
        let writable = match self.state(index) {
            State::Unmapped => return Ok(Outcome::Signal(Signal::MapErr)),
            State::NoMemory => return Ok(Outcome::Signal(Signal::Bus)),
            State::None => return Ok(Outcome::Signal(Signal::AccErr)),
            State::Read if access.write => return Ok(Outcome::Signal(Signal::AccErr)),
            State::Read => false,
            State::ReadWrite => true,
        };
        let page = addr.page();
        if self.mmu.is_guarded(page) {
            return Ok(Outcome::Signal(Signal::MapErr));
        }
        if self.mmu.unhide(page, writable)? {
            return Ok(Outcome::Done);
        }
        if let Some((inode, shared)) = self.file.get() {
            let file = FilePage { inode, index: index as u64 };
            if access.present && access.write {
                self.mmu.allow_write_file(page, file, *shared)?;
            } else {
                self.mmu.install_file(page, file, *shared, writable, access.write)?;
            }
            return Ok(Outcome::Done);
        }
        if access.present && access.write {
            self.mmu.allow_write(page)?;
            return Ok(Outcome::Done);
        }
        let mut scratch = PageBuf::zeroed();
        let content = match self.fill.load(SeqCst) {
            0 => Content::Zero,
            byte => {
                scratch.0.fill(byte);
                Content::Page(&scratch)
            }
        };
        if self.mmu.install(page, content, writable, access.write)? == Installed::New {
            self.installed.fetch_add(1, SeqCst);
        }
        Ok(Outcome::Done)
    }
}

impl ServeFault for FlatMap {
    fn serve_fault(&self, addr: VirtAddr, access: Access) -> Outcome {
        self.faults.fetch_add(1, SeqCst);
        if self.stall.load(SeqCst) {
            return Outcome::Done;
        }
        match self.read_locked(|| self.serve(addr, access)) {
            Ok(outcome) => outcome,
            Err(MmuError::NoMemory | MmuError::BeyondEnd) => Outcome::Signal(Signal::Bus),
            Err(_) => Outcome::Done,
        }
    }
}

/// A flat map that serves faults until it is dropped.
pub struct Served {
    pub map: Arc<FlatMap>,
    queue: Option<QueueThreads>,
    registration: Registration,
}

/// How faults are delivered.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Sigbus,
    Queue(usize, bool),
}

impl Served {
    pub fn new(pages: usize, how: How) -> Served {
        Served::with(pages, how, Privilege::User)
    }

    pub fn with(pages: usize, how: How, privilege: Privilege) -> Served {
        sigbus::install().expect("handlers");
        let notify = match how {
            How::Sigbus => Notify::Signal,
            How::Queue(..) => Notify::Queue,
        };
        let map = Arc::new(FlatMap::new(pages, notify, privilege));
        let region = map.mmu.region();
        let registration =
            Registration::new(region.range(), region.reservation(), map.clone()).expect("room in the table");
        let queue = match how {
            How::Sigbus => None,
            How::Queue(handlers, polling) => Some(QueueThreads::start(region, handlers, polling).expect("threads")),
        };
        Served { map, queue, registration }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.registration.retire();
        if let Some(queue) = self.queue.take() {
            queue.stop();
        }
        self.map.set(0, self.map.states.len(), State::Unmapped);
    }
}
