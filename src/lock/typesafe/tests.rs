//! The rwsem, and interleavings stepped by hand: the reader's steps on the
//! test's thread, the mutator's on a thread that lives as long as the test (so
//! that the object it frees is the next one it allocates). Each test fails
//! when the check that it is about is removed.

use super::*;
use crate::addr::{PAGE_SIZE, PageRange};
use crate::file::{FilePage, Store};
use crate::mm::{MapFlags, Mm, Prot};
use crate::mmu::soft::{BASE, SoftMmu};
use crate::mmu::{AccessOp, Content, Installed, Mmu, MmuError, PageAccess, Trap};
use crate::pager::ZeroPager;
use crate::sync::Mutex;
use crate::vma::plan::Layout;
use crate::vma::{Hold, Segment, VmaFlags, VmaRead};
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

#[test]
fn a_writer_waits_for_readers_and_keeps_new_ones_out() {
    let sem = Arc::new(VmaSem::new());
    assert!(sem.try_down_read());
    let writer = {
        let sem = sem.clone();
        std::thread::spawn(move || {
            sem.down_write();
            let alone = sem.word.load(Ordering::Relaxed) & VmaSem::READERS == 0;
            sem.up_write();
            alone
        })
    };
    while sem.word.load(Ordering::Relaxed) & VmaSem::SLEEPER == 0 {
        std::thread::yield_now();
    }
    assert!(!sem.try_down_read(), "reader got in beside a waiting writer");
    assert!(!writer.is_finished());
    sem.up_read();
    assert!(writer.join().unwrap());
    assert_eq!(sem.word.load(Ordering::Relaxed), 0);
}

type Space = Arc<Mm<TypeSafe, SoftMmu, ZeroPager>>;

const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED);
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn space() -> Space {
    Arc::new(Mm::new(SoftMmu::new(16 * PAGE_SIZE).unwrap(), ZeroPager))
}

fn page(n: usize) -> VirtAddr {
    BASE + n * PAGE_SIZE
}

fn map(mm: &Space, n: usize) {
    mm.mmap(page(n).get(), PAGE_SIZE, RW, FIXED).unwrap();
}

fn unmap(mm: &Space, n: usize) {
    mm.munmap(page(n).get(), PAGE_SIZE).unwrap();
}

/// The reader's walk: the VMA at page `n`, which may become stale at once.
fn walk<'g>(mm: &'g Space, section: &'g rcu::ReadGuard, n: usize) -> &'g Vma<TypeSafe> {
    let found = mm.core().tree.snapshot(section).lookup(page(n)).unwrap();
    // SAFETY: found in the section, so the memory stays a VMA until it ends.
    unsafe { found.as_ref() }
}

/// A reader between its locking `sem` and its letting go, also when the test fails.
struct Reader<'g>(&'g Vma<TypeSafe>);

impl<'g> Reader<'g> {
    fn new(vma: &'g Vma<TypeSafe>) -> Reader<'g> {
        assert!(vma.lock.sem.try_down_read());
        Reader(vma)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.lock.sem.up_read();
    }
}

/// All of the reader's steps after the walk. Lets go at once of what it got.
fn try_lock<M: Mmu>(mm: &Mm<TypeSafe, M, ZeroPager>, vma: &Vma<TypeSafe>, n: usize) -> Result<(), Refused> {
    let verdict = lock_found(mm.core(), vma, page(n));
    if verdict.is_ok() {
        vma.lock.sem.up_read();
    }
    verdict
}

/// The last of them, the reader having locked `sem`.
fn check(mm: &Space, reader: &Reader<'_>, n: usize) -> Result<(), Refused> {
    check_locked(mm.core(), reader.0, page(n))
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that does what it is told, step by step.
struct Mutator {
    jobs: Option<Sender<Job>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Mutator {
    fn new() -> Mutator {
        let (jobs, inbox) = channel::<Job>();
        let (tell, done) = channel();
        let thread = std::thread::spawn(move || {
            for job in inbox {
                job();
                tell.send(()).unwrap();
            }
        });
        Mutator { jobs: Some(jobs), done, thread: Some(thread) }
    }

    fn begin(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
    }

    fn finish(&self) {
        self.done.recv().unwrap();
    }

    fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.begin(job);
        self.finish();
    }

    /// Returns when the mutator sleeps until `vma`'s readers are gone.
    ///
    /// # Panics
    /// If it goes on instead.
    fn waits_for_readers_of(&self, vma: &Vma<TypeSafe>) {
        while vma.lock.sem.word.load(Ordering::Relaxed) & VmaSem::SLEEPER == 0 {
            assert_eq!(self.done.try_recv(), Err(TryRecvError::Empty), "the mutator did not wait for a reader");
            std::thread::yield_now();
        }
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

#[test]
fn a_vma_freed_after_the_walk_is_a_miss() {
    let (mm, mutator) = (space(), Mutator::new());
    map(&mm, 1);
    let section = rcu::read();
    let stale = walk(&mm, &section, 1);
    let other = mm.clone();
    mutator.run(move || unmap(&other, 1));
    assert_eq!(try_lock(&mm, stale, 1), Err(Refused::Detached));
    assert_eq!(TypeSafe::readers(stale), 0);
}

/// The seed's case 1: the object is in use again, at the very same address,
/// but elsewhere.
#[test]
fn a_vma_reused_in_another_mm_is_refused() {
    let (a, b, mutator) = (space(), space(), Mutator::new());
    map(&a, 1);
    let section = rcu::read();
    let stale = walk(&a, &section, 1);
    let (a2, b2) = (a.clone(), b.clone());
    mutator.run(move || {
        unmap(&a2, 1);
        map(&b2, 1);
    });
    assert!(ptr::eq(walk(&b, &section, 1), stale), "the object was not reused");
    assert_eq!(try_lock(&a, stale, 1), Err(Refused::For(Abort::OtherMm)));
    assert_eq!(TypeSafe::readers(stale), 0);
}

/// Case 1 within one address space.
#[test]
fn a_vma_reused_at_another_range_is_refused() {
    let (mm, mutator) = (space(), Mutator::new());
    map(&mm, 1);
    let section = rcu::read();
    let stale = walk(&mm, &section, 1);
    let other = mm.clone();
    mutator.run(move || {
        unmap(&other, 1);
        map(&other, 5);
    });
    assert!(ptr::eq(walk(&mm, &section, 5), stale), "the object was not reused");
    assert_eq!(try_lock(&mm, stale, 1), Err(Refused::For(Abort::OtherRange)));
    assert_eq!(TypeSafe::readers(stale), 0);
}

/// A VMA that shrank under a stale reader: same object, same mm, other range.
#[test]
fn a_vma_that_lost_the_address_is_refused() {
    let (mm, mutator) = (space(), Mutator::new());
    mm.mmap(page(1).get(), 2 * PAGE_SIZE, RW, FIXED).unwrap();
    let section = rcu::read();
    let stale = walk(&mm, &section, 2);
    let other = mm.clone();
    mutator.run(move || unmap(&other, 2));
    assert_eq!(try_lock(&mm, stale, 2), Err(Refused::For(Abort::OtherRange)));
    assert_eq!(try_lock(&mm, stale, 1), Ok(()));
}

/// A reader that looked at the numbers before the VMA was write-locked, and
/// locks `sem` after the writer let go of it.
#[test]
fn a_write_locked_vma_is_refused_before_and_after_locking() {
    let mm = space();
    map(&mm, 1);
    let write = mm.core().mmap_write();
    let (affected, _) = write.affected(PageRange::sized(page(1), PAGE_SIZE));
    let _locked = affected[0].start_write(&write, None).unwrap();
    let section = rcu::read();
    let vma = walk(&mm, &section, 1);
    assert_eq!(try_lock(&mm, vma, 1), Err(Refused::For(Abort::WriteLockedEarly)));
    let reader = Reader::new(vma);
    assert_eq!(check(&mm, &reader, 1), Err(Refused::For(Abort::WriteLockedLate)));
    drop(reader);
    drop(write);
    assert_eq!(try_lock(&mm, vma, 1), Ok(()));
}

/// R23: a new VMA is in the tree before the operation that made it is over.
#[test]
fn a_new_vma_is_write_locked_until_the_section_ends() {
    let mm = space();
    let mut write = mm.core().mmap_write();
    let range = PageRange::sized(page(1), PAGE_SIZE);
    let (affected, _) = write.affected(range);
    let mut layout = Layout::new();
    layout.change(None, Segment::unfaulted(range, VmaFlags::READ));
    let prepared = write.prepare(&affected, &layout, None).unwrap().unwrap();
    drop(write.commit(prepared));
    {
        let section = rcu::read();
        let vma = walk(&mm, &section, 1);
        let reader = Reader::new(vma);
        assert_eq!(check(&mm, &reader, 1), Err(Refused::For(Abort::WriteLockedLate)));
        drop(reader);
    }
    drop(write);
    let vma = TypeSafe::lock_vma_under_rcu(mm.core(), page(1)).unwrap();
    // SAFETY: locked just now.
    unsafe { TypeSafe::vma_end_read(vma) };
}

/// The seed's case 3: a reader holds the lock of an object that is free, and
/// the object gets a new life.
#[test]
fn attach_waits_for_a_stale_reader() {
    let (mm, mutator) = (space(), Mutator::new());
    map(&mm, 1);
    let section = rcu::read();
    let stale = walk(&mm, &section, 1);
    let other = mm.clone();
    mutator.run(move || unmap(&other, 1));
    let reader = Reader::new(stale);
    let other = mm.clone();
    mutator.begin(move || map(&other, 1));
    mutator.waits_for_readers_of(stale);
    assert_eq!(check(&mm, &reader, 1), Err(Refused::Detached));
    drop(reader);
    mutator.finish();
    assert!(ptr::eq(walk(&mm, &section, 1), stale), "the object was not reused");
}

/// The window that the file's documentation adds to the seed's: to a reader of
/// another mm a VMA that is write-locked by number does not look locked. The
/// case 2 is here as well: it is not this mm's number that locks it.
#[test]
fn detach_waits_for_a_reader_of_another_mm() {
    let (a, b, mutator) = (space(), space(), Mutator::new());
    map(&a, 1);
    let section = rcu::read();
    let stale = walk(&a, &section, 1);
    let (a2, b2) = (a.clone(), b.clone());
    mutator.run(move || {
        unmap(&a2, 1);
        map(&b2, 1);
    });
    assert!(ptr::eq(walk(&b, &section, 1), stale), "the object was not reused");
    let (locked, is_locked) = channel();
    let (go_on, may_go_on) = channel::<()>();
    mutator.begin(move || {
        let mut write = b.core().mmap_write();
        let (affected, _) = write.affected(PageRange::sized(page(1), PAGE_SIZE));
        let prepared = write.prepare(&affected, &Layout::new(), None).unwrap().unwrap();
        locked.send(()).unwrap();
        may_go_on.recv().unwrap();
        drop(write.commit(prepared));
    });
    is_locked.recv().unwrap();
    assert_eq!(try_lock(&a, stale, 1), Err(Refused::For(Abort::OtherMm)));
    let reader = Reader::new(stale);
    go_on.send(()).unwrap();
    mutator.waits_for_readers_of(stale);
    assert_eq!(check(&a, &reader, 1), Err(Refused::For(Abort::OtherMm)));
    drop(reader);
    mutator.finish();
    assert_eq!(try_lock(&a, stale, 1), Err(Refused::Detached));
}

/// I15: an address space does not go away under a reader of another.
#[test]
fn exit_waits_for_a_stale_reader() {
    let (a, b, mutator) = (space(), space(), Mutator::new());
    map(&a, 1);
    let section = rcu::read();
    let stale = walk(&a, &section, 1);
    let (a2, b2) = (a.clone(), b.clone());
    mutator.run(move || {
        unmap(&a2, 1);
        map(&b2, 1);
    });
    assert!(ptr::eq(walk(&b, &section, 1), stale), "the object was not reused");
    let reader = Reader::new(stale);
    mutator.begin(move || drop(b));
    mutator.waits_for_readers_of(stale);
    drop(reader);
    mutator.finish();
    assert_eq!(try_lock(&a, stale, 1), Err(Refused::Detached));
}

/// R11: whoever gets the lock after a write section sees what the section
/// changed. On x86 it cannot fail, whatever the orderings. Miri emulates weak
/// memory: `cargo +nightly miri test -p vmalab --lib sees_what`, with
/// `MIRIFLAGS="-Zmiri-many-seeds=0..24 -Zmiri-disable-stacked-borrows"`.
#[test]
fn a_reader_sees_what_the_section_before_changed() {
    for _ in 0..if cfg!(miri) { 8 } else { 1000 } {
        let mm = space();
        map(&mm, 1);
        map(&mm, 3);
        let section = rcu::read();
        let vma = walk(&mm, &section, 1);
        let before = vma.lock.vm_lock_seq.load(Ordering::Relaxed);
        let look = || {
            if lock_found(mm.core(), vma, page(1)).is_ok() {
                let after = vma.lock.vm_lock_seq.load(Ordering::Relaxed) != before;
                // SAFETY: locked just now.
                let read = unsafe { VmaRead::new(mm.core(), NonNull::from(vma), Hold::Vma) };
                assert_eq!(read.flags().contains(VmaFlags::WRITE), !after, "the flags of the section before");
            }
        };
        std::thread::scope(|scope| {
            let mutator = scope.spawn(|| {
                mm.mprotect(page(1).get(), PAGE_SIZE, Prot::READ).unwrap();
                // Another section, which leaves this VMA alone.
                mm.mprotect(page(3).get(), PAGE_SIZE, Prot::READ).unwrap();
            });
            while !mutator.is_finished() {
                // One look settles what later ones may see: Miri keeps it for the end.
                if !cfg!(miri) {
                    look();
                }
                std::thread::yield_now();
            }
            look();
        });
    }
}

/// A software `Mmu` that stops before it takes pages or rights away.
struct Stopping {
    soft: SoftMmu,
    reached: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Stopping {
    fn stop(&self) {
        self.reached.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
    }
}

impl Mmu for Stopping {
    fn range(&self) -> PageRange {
        self.soft.range()
    }
    fn install(&self, page: VirtAddr, content: Content<'_>, w: bool, for_write: bool) -> Result<Installed, MmuError> {
        self.soft.install(page, content, w, for_write)
    }
    fn install_run(&self, run: PageRange, writable: bool, for_write: bool) -> Result<usize, MmuError> {
        self.soft.install_run(run, writable, for_write)
    }
    fn unhide(&self, page: VirtAddr, writable: bool) -> Result<bool, MmuError> {
        self.soft.unhide(page, writable)
    }
    fn allow_write(&self, page: VirtAddr) -> Result<(), MmuError> {
        self.soft.allow_write(page)
    }
    fn zap(&self, range: PageRange) {
        self.stop();
        self.soft.zap(range);
    }
    fn protect(&self, range: PageRange, from: PageAccess, to: PageAccess) -> Result<(), MmuError> {
        self.stop();
        self.soft.protect(range, from, to)
    }
    fn access(&self, addr: VirtAddr, op: AccessOp<'_>) -> Result<(), Trap> {
        self.soft.access(addr, op)
    }
    fn install_file(
        &self,
        page: VirtAddr,
        file: FilePage<'_>,
        shared: bool,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError> {
        self.soft.install_file(page, file, shared, writable, for_write)
    }
    fn allow_write_file(&self, page: VirtAddr, file: FilePage<'_>, shared: bool) -> Result<(), MmuError> {
        self.soft.allow_write_file(page, file, shared)
    }
    fn discard(&self, range: PageRange) {
        self.soft.discard(range);
    }
    fn release_file(&self, range: PageRange, file: FilePage<'_>) {
        self.soft.release_file(range, file);
    }
    fn sync_file(&self, range: PageRange, file: FilePage<'_>) -> Result<(), Errno> {
        self.soft.sync_file(range, file)
    }
    fn punch_file(&self, file: FilePage<'_>, pages: u64) -> Result<(), Errno> {
        self.soft.punch_file(file, pages)
    }
    fn shmem(&self, bytes: u64) -> Result<Box<dyn Store>, Errno> {
        self.soft.shmem(bytes)
    }
    fn move_range(&self, from: PageRange, to: VirtAddr, access: PageAccess) -> Result<(), MmuError> {
        self.soft.move_range(from, to, access)
    }
    fn fork_range(&self, child: &Self, range: PageRange, to: VirtAddr) -> Result<(), MmuError> {
        self.soft.fork_range(&child.soft, range, to)
    }
    fn presence(&self, range: PageRange, run: &mut dyn FnMut(PageRange)) {
        self.soft.presence(range, run);
    }
    fn was_written(&self, range: PageRange) -> bool {
        self.soft.was_written(range)
    }
    fn has_contents(&self, range: PageRange) -> bool {
        self.soft.has_contents(range)
    }
    fn guard(&self, range: PageRange) {
        self.soft.guard(range);
    }
    fn unguard(&self, range: PageRange) {
        self.soft.unguard(range);
    }
    fn is_guarded(&self, page: VirtAddr) -> bool {
        self.soft.is_guarded(page)
    }
    fn first_guarded(&self, range: PageRange) -> Option<VirtAddr> {
        self.soft.first_guarded(range)
    }
    fn lazy_free(&self, range: PageRange) {
        self.soft.lazy_free(range);
    }
    fn reclaim(&self, range: PageRange) {
        self.soft.reclaim(range);
    }
    fn drop_own(&self, range: PageRange) {
        self.soft.drop_own(range);
    }
}

/// I9, I10, R24, R26: while pages go or change, no fault can bring one back,
/// not even with a pointer found before, and no other operation can begin.
#[test]
fn no_fault_gets_in_while_pages_change() {
    type Operation = fn(&Mm<TypeSafe, Stopping, ZeroPager>);
    let operations: [(&str, Operation); 3] = [
        ("munmap", |mm| mm.munmap(page(1).get(), PAGE_SIZE).unwrap()),
        ("MAP_FIXED", |mm| assert!(mm.mmap(page(1).get(), PAGE_SIZE, RW, FIXED).is_ok())),
        ("mprotect", |mm| mm.mprotect(page(1).get(), PAGE_SIZE, Prot::READ).unwrap()),
    ];
    for (name, operation) in operations {
        // Before the channels: when an assertion fails, they go first, and free it.
        let mutator = Mutator::new();
        let (reached, is_reached) = channel();
        let (go_on, may_go_on) = channel();
        let soft = SoftMmu::new(4 * PAGE_SIZE).unwrap();
        let mm = Arc::new(Mm::new(Stopping { soft, reached, go_on: Mutex::new(may_go_on) }, ZeroPager));
        mm.mmap(page(1).get(), PAGE_SIZE, RW, FIXED).unwrap();
        mm.write(page(1), b"old").unwrap();
        let section = rcu::read();
        let found = mm.core().tree.snapshot(&section).lookup(page(1)).unwrap();
        // SAFETY: found in the section, so the memory stays a VMA until it ends.
        let stale = unsafe { found.as_ref() };
        let other = mm.clone();
        mutator.begin(move || operation(&other));
        is_reached.recv().unwrap();
        // SAFETY: locked just now.
        let end_read = |vma| unsafe { TypeSafe::vma_end_read(vma) };
        let now = TypeSafe::lock_vma_under_rcu(mm.core(), page(1)).map(end_read);
        if name == "munmap" {
            // Out of the tree, and faults elsewhere go on; but no writer can come.
            assert_eq!(now, Err(Abort::NoVma));
            assert_eq!(try_lock(&mm, stale, 1), Err(Refused::Detached));
            assert!(mm.core().mmap_lock.try_read().is_some(), "munmap did not downgrade");
            assert!(!mm.core().mmap_lock.is_idle(), "munmap let go of the mmap lock too early");
        } else {
            assert_eq!(now, Err(Abort::WriteLockedEarly), "{name}");
            assert_eq!(try_lock(&mm, stale, 1), Err(Refused::For(Abort::WriteLockedEarly)), "{name}");
            assert!(mm.core().mmap_lock.try_read().is_none(), "{name}");
        }
        go_on.send(()).unwrap();
        mutator.finish();
    }
}
