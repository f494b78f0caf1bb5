//! vmalab's side: sequences run on a fresh address space, with real faults.

use crate::observe::{Answer, Recorder, Side, Signal, VM_FLAGS, VmaSeen, Want, attr};
use crate::op::{At, Limit, Op, Place, Sequence, Slot};
use crate::profile::Profile;
use crate::remote::{Ends, FILE, FILE_BYTES, Parts, Remote, Shared, Silence, exit};
use crate::run::{Config, Delivery, Lock, Sabotage};
use crate::{MINCORE_MAX, PAGE, fold, pagemap};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::file::{File, Inode, Store};
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, MapsEntry, Prot, RemapFlags};
use vmalab::vma::VmaFlags;
use vmalab_fault_handler::file::FdStore;
use vmalab_fault_handler::{AddressSpace, access};

/// Whether vmalab has the call, with these operands. What it has not is never
/// generated.
pub fn supports(op: &Op) -> bool {
    const HUGETLB: u32 = 0x4_0000;
    const COLLAPSE: i32 = 25;
    match *op {
        Op::Mmap { flags, .. } => flags & HUGETLB == 0,
        Op::Madvise { advice, .. } => advice != COLLAPSE,
        _ => !known(op),
    }
}

/// Divergences that are known and wait for the core; each is left out of random
/// sequences so that it does not hide others, and goes when it is mended.
pub const KNOWN: &[(&str, &str)] = &[];

fn known(_: &Op) -> bool {
    false
}

/// vmalab's side, in a process of its own.
pub struct Emulated {
    config: Config,
    worker: Remote,
}

/// Half the time in which a process must say that it is ready.
const READY_WITHIN: Duration = Duration::from_millis(300);
/// Processes made, one after the other, until one is ready.
const TRIES: u32 = 50;

/// Exit of a sequence: done, or as the message says.
const DONE: i32 = 0;
const PANICKED: i32 = 1;
const CANNOT: i32 = 2;

/// Why a sequence was not run to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// vmalab's doing: a panic, a crash or a hang.
    Failed(String),
    /// This machine's: no address space could be made.
    Cannot(String),
}

impl Emulated {
    /// Forks the process.
    ///
    /// # Errors
    /// The call that failed.
    pub fn new(config: Config) -> Result<Emulated, (&'static str, Errno)> {
        // std has a lock that every thread takes as it begins, and one that is held
        // while a panic is told: if a thread of ours is just doing so, nobody can
        // have it there, ever. Such a process does not say that it is ready, and
        // another is made.
        for _ in 0..TRIES {
            // SAFETY: but for that the process uses nothing that other threads of
            // ours may have been in the middle of: this process makes no address
            // spaces, and glibc makes its allocator usable after a fork.
            let worker = unsafe { Remote::fork(|shared, ends| work(shared, ends, config)) }?;
            if worker.wait(READY_WITHIN) != Err(Silence::Stuck) {
                return Ok(Emulated { config, worker });
            }
        }
        Err(("a thread in a forked process", Errno::ETIMEDOUT))
    }

    /// Starts a sequence. `map_count_room` is what the host leaves of
    /// `vm.max_map_count`. [`finish`](Emulated::finish) must follow.
    pub fn start(&mut self, sequence: &Sequence, map_count_room: usize) {
        self.worker.shared().map_count_room.store(map_count_room, Ordering::Relaxed);
        self.worker.start(sequence);
    }

    /// Waits for it. The records, and what stopped it; after that the process is
    /// a new one.
    pub fn finish(&mut self, patience: Duration) -> (Vec<u64>, Option<Stopped>) {
        let reply = self.worker.wait(patience);
        let words = self.worker.words().to_vec();
        let stopped = match reply {
            Ok(DONE) => return (words, None),
            Ok(CANNOT) => Stopped::Cannot(self.worker.message()),
            Ok(_) => Stopped::Failed(format!("panics: {}", self.worker.message())),
            Err(silence @ (Silence::Stuck | Silence::Gone)) => Stopped::Failed(silence.to_string()),
        };
        match Emulated::new(self.config) {
            Ok(new) => *self = new,
            Err((call, errno)) => return (words, Some(Stopped::Cannot(format!("{call}: {errno}")))),
        }
        (words, Some(stopped))
    }
}

/// The process's main.
fn work(shared: *mut Shared, ends: Ends, config: Config) -> ! {
    ends.ignore_signals();
    // Both take locks of std's: see `Emulated::new`. A panic's message goes to the
    // parent, which may try the sequence many times.
    std::panic::set_hook(Box::new(|_| {}));
    let _ = std::thread::spawn(|| {}).join();
    ends.reply(DONE);
    loop {
        ends.next();
        // SAFETY: the parent has asked us to run a sequence, and leaves the memory
        // to us until we have answered.
        let shared = unsafe { &mut *shared };
        let room = shared.map_count_room.load(Ordering::Relaxed);
        let Parts { setup, ops, used, words, .. } = shared.parts();
        let sequence = Sequence { setup, ops: ops.to_vec() };
        let result = catch_unwind(AssertUnwindSafe(|| match config.lock {
            Lock::Mmap => run_on::<MmapOnly>(&sequence, &config, room, words, used),
            Lock::Rcu => run_on::<Rcu>(&sequence, &config, room, words, used),
            Lock::TypeSafe => run_on::<TypeSafe>(&sequence, &config, room, words, used),
            Lock::RefCount => run_on::<RefCount>(&sequence, &config, room, words, used),
        }));
        let (status, text) = match &result {
            Ok(Ok(())) => (DONE, String::new()),
            Ok(Err(error)) => (CANNOT, error.to_string()),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                (PANICKED, text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?").to_owned())
            }
        };
        let len = text.len().min(shared.message.len());
        shared.message[..len].copy_from_slice(&text.as_bytes()[..len]);
        shared.message_len.store(len, Ordering::Relaxed);
        ends.reply(status);
        if status != DONE {
            // The address space may be in any state; the parent makes a new process.
            exit(1);
        }
    }
}

fn run_on<S: LockScheme>(
    sequence: &Sequence,
    config: &Config,
    map_count_room: usize,
    words: &mut [u64],
    used: &AtomicUsize,
) -> Result<(), vmalab_fault_handler::Error> {
    let delivery = match config.delivery {
        Delivery::Sigbus => vmalab_fault_handler::Delivery::Sigbus,
        Delivery::Queue => vmalab_fault_handler::Delivery::Queue { handlers: 1, polling: false },
    };
    let place = sequence.setup.place;
    let space = AddressSpace::<S>::builder().region(place.bytes()).delivery(delivery).build()?;
    space.set_max_map_count(map_count_room);
    space.set_kernel(Profile::running().kernel());
    let mut limits = space.limits();
    limits.stack = soft_limit(Resource::RLIMIT_STACK);
    limits.memlock = memlock(place, u64::MAX);
    space.set_limits(limits);
    space.set_brk(space.range().start() + place.brk_start());
    let files = sequence.ops.iter().any(|op| matches!(op, Op::Mmap { file, .. } if *file != Slot::NoFile));
    // After a panic the address space is left alone: its locks may be held.
    let mut here = ManuallyDrop::new(Here {
        window: space.range().start().get(),
        place,
        files: files.then(Files::new),
        pagemap: std::fs::File::open("/proc/self/pagemap").expect("procfs, which the host's side needs as well"),
        sabotage: config.sabotage,
        spaces: vec![space],
    });
    here.run(sequence, &mut Recorder::new(words, place.pages()), used);
    drop(ManuallyDrop::into_inner(here));
    Ok(())
}

fn soft_limit(resource: Resource) -> u64 {
    getrlimit(resource).map_or(u64::MAX, |(soft, _)| soft)
}

/// RLIMIT_MEMLOCK where `bytes` are asked for: at most the hard limit, and none
/// with CAP_IPC_LOCK.
fn memlock(place: Place, bytes: u64) -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((u64::MAX, u64::MAX));
    match place {
        Place::Privileged => u64::MAX,
        _ if bytes == u64::MAX => soft,
        _ => bytes.min(hard),
    }
}

/// vmalab's own copies of the host's files.
struct Files {
    read_write: Arc<File>,
    read_only: Arc<File>,
    write_only: Arc<File>,
    sealed: Arc<File>,
    directory: Arc<File>,
}

impl Files {
    fn new() -> Files {
        let (plain, sealed) = (Files::inode(), Files::inode());
        Files {
            read_write: File::open(plain.clone(), true, true),
            read_only: File::open(plain.clone(), true, false),
            write_only: File::open(plain, false, true),
            sealed: File::open_sealed(sealed.clone()),
            directory: File::open_unmappable(sealed),
        }
    }

    fn inode() -> Arc<Inode> {
        let store = FdStore::memory(FILE_BYTES as u64).expect("memory for a few pages");
        store.write_at(0, &FILE).expect("a memfd of our own");
        Inode::new(Box::new(store), 16 * PAGE as u64)
    }

    /// What the slot names.
    fn get(&self, slot: Slot) -> Option<&Arc<File>> {
        match slot {
            Slot::NoFile => None,
            Slot::Directory => Some(&self.directory),
            Slot::ReadWrite => Some(&self.read_write),
            Slot::ReadOnly => Some(&self.read_only),
            Slot::WriteOnly => Some(&self.write_only),
            Slot::Sealed => Some(&self.sealed),
        }
    }
}

struct Here<S: LockScheme> {
    /// The address space that the steps run in is the last; those before it
    /// have forked.
    spaces: Vec<AddressSpace<S>>,
    /// Start of the last one's region.
    window: usize,
    place: Place,
    files: Option<Files>,
    /// `/proc/self/pagemap`
    pagemap: std::fs::File,
    sabotage: Option<Sabotage>,
}

fn signal(signal: vmalab::fault::Signal) -> Signal {
    match signal {
        vmalab::fault::Signal::MapErr => Signal::MapErr,
        vmalab::fault::Signal::AccErr => Signal::AccErr,
        vmalab::fault::Signal::Bus => Signal::BusAdrErr,
    }
}

/// The bits of [`VM_FLAGS`].
fn vm_flags(flags: VmaFlags) -> u64 {
    const IN_ORDER: [VmaFlags; VM_FLAGS.len()] = [
        VmaFlags::LOCKED,
        VmaFlags::LOCKONFAULT,
        VmaFlags::SEQ_READ,
        VmaFlags::RAND_READ,
        VmaFlags::DONTCOPY,
        VmaFlags::ACCOUNT,
        VmaFlags::NORESERVE,
        VmaFlags::GROWSDOWN,
        VmaFlags::WIPEONFORK,
        VmaFlags::DONTDUMP,
        VmaFlags::HUGEPAGE,
        VmaFlags::NOHUGEPAGE,
        VmaFlags::MERGEABLE,
        VmaFlags::SEALED,
        VmaFlags::DROPPABLE,
        VmaFlags::SHARED,
        VmaFlags::MAYSHARE,
        VmaFlags::MAYREAD,
        VmaFlags::MAYWRITE,
        VmaFlags::MAYEXEC,
        VmaFlags::SYNC,
    ];
    let set = IN_ORDER.iter().enumerate().filter(|(_, flag)| flags.contains(**flag));
    set.fold(0, |bits, (bit, _)| bits | 1 << bit)
}

impl<S: LockScheme> Side for Here<S> {
    fn vmas(&mut self, each: &mut dyn FnMut(VmaSeen)) {
        for entry in self.space().maps() {
            let MapsEntry { range, prot, flags, offset, file, .. } = entry;
            let shared = if flags.contains(VmaFlags::MAYSHARE) { attr::SHARED } else { 0 };
            let of_file = if file != 0 { attr::FILE } else { 0 };
            each(VmaSeen {
                start: ((range.start().get() - self.window) / PAGE) as u32,
                end: ((range.end().get() - self.window) / PAGE) as u32,
                attr: prot.bits() as u8 | shared | of_file,
                offset: offset / PAGE as u64,
            });
        }
    }

    fn presence(&mut self, bits: &mut [u64]) {
        for run in self.space().populated(self.range()) {
            for page in run.iter_pages() {
                let page = (page.get() - self.window) / PAGE;
                bits[page / 64] |= 1 << (page % 64);
            }
        }
    }

    fn in_page_table(&mut self, bits: &mut [u64]) {
        let mut scratch = vec![0; self.place.pages() * size_of::<u64>()];
        pagemap::read(self.pagemap.as_raw_fd(), &mut scratch, self.window, self.place.pages(), bits, |entry| {
            entry & pagemap::IN_PAGE_TABLE != 0
        });
    }

    fn word(&mut self, offset: usize) -> u64 {
        // SAFETY: an address of the region.
        unsafe { access::load_u64(self.window + offset) }.unwrap_or(u64::MAX)
    }

    fn vm_flags(&mut self, each: &mut dyn FnMut(u64)) -> bool {
        self.space().maps().iter().for_each(|entry| each(vm_flags(entry.flags)));
        true
    }
}

impl<S: LockScheme> Here<S> {
    fn space(&self) -> &AddressSpace<S> {
        self.spaces.last().expect("the first is always there")
    }

    fn range(&self) -> PageRange {
        PageRange::sized(VirtAddr(self.window), self.place.bytes())
    }

    fn run(&mut self, sequence: &Sequence, recorder: &mut Recorder<'_>, used: &AtomicUsize) {
        let ops = &sequence.ops;
        for (step, op) in ops.iter().enumerate() {
            let answer = self.call(op);
            assert!(recorder.has_room(), "as much room as the host's side has");
            recorder.record(self, answer, Want::at(sequence.setup, step, ops.len()));
            used.store(recorder.used(), Ordering::Relaxed);
        }
        // The youngest first, as on the host, where its ancestors wait for it.
        loop {
            self.space().validate();
            let flags = self.place != Place::Crowded;
            recorder.record(self, Answer::End, Want { contents: true, flags });
            let window = self.window;
            // SAFETY: addresses of the region.
            recorder.sweep(self, |offset| match unsafe { access::load_u64(window + offset) } {
                Ok(word) => Answer::Value(word),
                Err(bad) => Answer::Signal(signal(bad)),
            });
            used.store(recorder.used(), Ordering::Relaxed);
            self.space().validate();
            if self.spaces.len() == 1 {
                break;
            }
            self.spaces.pop();
            self.window = self.space().range().start().get();
        }
        let unmapped = self.space().munmap(self.window, self.place.bytes()).is_ok();
        if let Some(files) = &self.files {
            recorder.file(unmapped, |bytes| {
                files.read_write.inode().store().read_at(0, bytes).expect("a memfd of our own");
            });
        }
        used.store(recorder.used(), Ordering::Relaxed);
    }

    fn at(&self, at: At) -> usize {
        at.resolve(self.window, self.window + self.place.bytes())
    }

    fn call(&mut self, op: &Op) -> Answer {
        let (space, window) = (self.space(), self.window);
        let plain = |result: Result<(), Errno>| result.map_or_else(failed, |()| Answer::Value(0));
        let to_place = |addr: VirtAddr| Answer::Value(addr.get().wrapping_sub(window) as u64);
        let loaded = |result: Result<u64, vmalab::fault::Signal>| {
            result.map_or_else(|bad| Answer::Signal(signal(bad)), Answer::Value)
        };
        match *op {
            // What the system call itself checks (`ksys_mmap_pgoff`): vmalab's call has no offset.
            Op::Mmap { offset, .. } if !offset.is_multiple_of(PAGE as u64) => failed(Errno::EINVAL),
            Op::Mmap { addr, len, prot, flags, file, offset } => {
                let (addr, prot, mut flags) =
                    (self.at(addr), Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
                if self.sabotage == Some(Sabotage::NoMerge) && flags.contains(MapFlags::FIXED) {
                    flags |= MapFlags::STACK;
                }
                let result = match self.files.as_ref().and_then(|files| files.get(file)) {
                    Some(file) => space.mmap_file(addr, len, prot, flags, file, offset),
                    None => space.mmap(addr, len, prot, flags),
                };
                result.map_or_else(failed, to_place)
            }
            Op::Munmap { addr, len } => match space.munmap(self.at(addr), len) {
                Err(Errno::EINVAL) if self.sabotage == Some(Sabotage::Errno) => failed(Errno::ENOMEM),
                result => plain(result),
            },
            Op::Mprotect { addr, len, prot } => plain(space.mprotect(self.at(addr), len, Prot::from_bits_retain(prot))),
            Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                assert!(self.sabotage != Some(Sabotage::Panic), "sabotage");
                let flags = RemapFlags::from_bits_retain(flags);
                space.mremap(self.at(addr), old_len, new_len, flags, self.at(new_addr)).map_or_else(failed, to_place)
            }
            Op::Madvise { addr, len, advice } => plain(space.madvise(self.at(addr), len, advice)),
            Op::Msync { addr, len, flags } => plain(space.msync(self.at(addr), len, flags)),
            Op::Mincore { addr, len } => {
                let addr = self.at(addr);
                let mut vec = vec![0xaa; MINCORE_MAX];
                match space.mincore(addr, len, &mut vec) {
                    Ok(()) => {
                        self.vmas(&mut |vma| vma.hide_file_pages(addr.wrapping_sub(window), &mut vec));
                        Answer::Value(fold(&vec))
                    }
                    Err(errno) => failed(errno),
                }
            }
            Op::Mlock { addr, len } => plain(space.mlock(self.at(addr), len)),
            Op::Mlock2 { addr, len, flags } => plain(space.mlock2(self.at(addr), len, flags)),
            Op::Munlock { addr, len } => plain(space.munlock(self.at(addr), len)),
            Op::Mlockall { flags } => plain(space.mlockall(flags)),
            Op::Munlockall => {
                space.munlockall();
                Answer::Value(0)
            }
            Op::Brk { to } => to_place(space.brk(self.at(to))),
            Op::Mseal { addr, len, flags } => plain(space.mseal(self.at(addr), len, flags)),
            Op::Fork => match space.fork() {
                Ok(child) => {
                    self.window = child.range().start().get();
                    self.spaces.push(child);
                    Answer::Value(0)
                }
                Err(vmalab_fault_handler::Error::Fork(errno)) => failed(errno),
                Err(other) => panic!("{other}"),
            },
            // SAFETY: addresses of the region (`is_safe`), here and below.
            Op::Load { addr } => loaded(unsafe { access::load_u64(self.at(addr)) }),
            // SAFETY: as above.
            Op::LoadByte { addr } => loaded(unsafe { access::load_u8(self.at(addr)) }.map(u64::from)),
            // SAFETY: as above.
            Op::Store { addr, value } => loaded(unsafe { access::store_u64(self.at(addr), value) }.map(|()| 0)),
            // SAFETY: as above.
            Op::StoreByte { addr, value } => loaded(unsafe { access::store_u8(self.at(addr), value) }.map(|()| 0)),
            Op::SetLimit { what, pages } => {
                let (mut limits, bytes) = (space.limits(), pages * PAGE as u64);
                match what {
                    Limit::AddressSpace => limits.address_space = bytes,
                    Limit::Data => limits.data = bytes,
                    Limit::Memlock => limits.memlock = memlock(self.place, bytes),
                }
                space.set_limits(limits);
                Answer::Value(0)
            }
        }
    }
}

fn failed(errno: Errno) -> Answer {
    Answer::Error(errno as i32)
}
