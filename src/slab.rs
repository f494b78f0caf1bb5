//! [`Slab`]: type-stable objects (`kmem_cache` with `SLAB_TYPESAFE_BY_RCU`).
//!
//! # What a reader may rely on
//!
//! A slot never moves and never holds anything but a valid `T`. The
//! constructor runs once for each slot, when its slab page is made, never at
//! allocation or free: an object comes out of [`Slab::alloc`] exactly as its
//! last owner left it. A freed object may be handed out again *at once*, also
//! to another address space, so a reader that found a pointer under RCU holds
//! a `T`, but perhaps another one than it looked for; it must take what
//! reference the object offers and then check that it got what it wanted.
//!
//! Only the memory of a wholly free slab page waits for a grace period (of
//! [`rcu::READERS`]) before it goes back to the system, so a pointer found in
//! a section may be dereferenced until the section ends.
//!
//! # Layout
//!
//! A slab page is [`SLAB_BYTES`] long and as much aligned, so that a slot's
//! page is found by masking. Each announced thread keeps a magazine of
//! [`MAGAZINE`] free objects, last in first out: the object just freed is the
//! next one handed out, with no lock and no shared cache line. Magazines
//! exchange halves with the depot, which is under a mutex and knows the free
//! slots of each page as a bitmap. (A slab whose objects are freed by the hundred,
//! after a grace period, has larger magazines, or all of them would go through
//! the depot.) A magazine belongs to the thread slot
//! ([`crate::thread`]) and passes on with it: nothing is lost when a thread ends.
//!
//! Not for the fault path: `alloc` and `free` are for mutators.

mod block;

use crate::races;
use crate::rcu;
use crate::sync::plain::{AtomicUsize, Ordering};
use crate::sync::{AtomicPtr, MODEL, Mutex, array, aside, const_fn, track};
use crate::thread::{self, SLOTS};
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::{self, NonNull};

/// Bytes in a slab page, and its alignment.
pub const SLAB_BYTES: usize = 32 * 1024;
/// Free objects that a thread keeps to itself, unless the slab says otherwise.
pub const MAGAZINE: usize = if MODEL { 2 } else { 32 };
/// Pages of a slab that come from the allocator one by one; later ones lie in huge pages ([`block`]).
const SINGLE_PAGES: usize = if MODEL { usize::MAX } else { 64 };
/// Objects that an empty magazine takes from the depot.
const REFILL: usize = MAGAZINE / 2;
/// Wholly free pages that the depot keeps before it returns one.
const EMPTY_PAGES_KEPT: usize = if MODEL { 0 } else { 2 };
/// Words of the free bitmap: enough for 16-byte objects and larger.
const BITMAP_WORDS: usize = 32;

/// When a wholly free slab page may go back to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageReturn {
    /// After a grace period: readers may hold stale pointers to free objects.
    AfterGracePeriod,
    /// At once: objects are only freed when no reader can reach them.
    AtOnce,
}

/// A cache of objects of one type, shared by the whole process. Lives in a `static`.
pub struct Slab<T: 'static, const N: usize = MAGAZINE> {
    construct: fn() -> T,
    page_return: PageReturn,
    magazines: [AtomicPtr<Magazine<T, N>>; SLOTS],
    depot: Mutex<Depot>,
    pages: AtomicUsize,
    /// Free objects while the adversary is on.
    #[cfg(feature = "races")]
    forced: races::adversary::Stack<T>,
    /// Every page ever made: a model keeps them all until it ends.
    #[cfg(any(loom, shuttle))]
    kept: std::sync::Mutex<Vec<PagePtr>>,
    #[cfg(any(loom, shuttle))]
    magazines_made: std::sync::Mutex<Vec<MagazinePtr<T, N>>>,
}

// SAFETY: a magazine is only used by the thread that owns its slot (see
// `magazine`), the depot is under its mutex, and objects are handed from
// thread to thread, which needs T: Send; readers share them, which needs Sync.
unsafe impl<T: Send + Sync, const N: usize> Sync for Slab<T, N> {}

/// In cache lines of its own, like what `CachePadded` holds.
#[repr(align(128))]
struct Magazine<T, const N: usize> {
    len: usize,
    objects: [*mut T; N],
}

#[cfg(any(loom, shuttle))]
struct MagazinePtr<T, const N: usize>(*mut Magazine<T, N>);
// SAFETY: only freed through it, when the slab goes.
#[cfg(any(loom, shuttle))]
unsafe impl<T, const N: usize> Send for MagazinePtr<T, N> {}

/// Head of a slab page. All fields are under the depot's mutex.
struct PageHead {
    /// Position in `Depot::partial`, if the page has a free slot there.
    position: usize,
    free: usize,
    /// Whether the page lies in a block. Fixed.
    in_block: bool,
    bitmap: [u64; BITMAP_WORDS],
}

struct Depot {
    /// Pages with at least one free slot in the depot.
    partial: Vec<PagePtr>,
    /// How many of those are wholly free.
    empty: usize,
}

#[derive(Clone, Copy)]
struct PagePtr(NonNull<PageHead>);
// SAFETY: the head is only touched under the depot's mutex.
unsafe impl Send for PagePtr {}

/// What a slab holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabStats {
    /// Slab pages in use (`slabs`).
    pub pages: usize,
    /// Bytes from one object to the next.
    pub object_bytes: usize,
    /// Objects in one slab page.
    pub objects_per_page: usize,
}

impl<T, const N: usize> Slab<T, N> {
    /// Where the first object of a page lies.
    const FIRST: usize = size_of::<PageHead>().next_multiple_of(align_of::<T>());
    /// Objects in a page.
    const PER_PAGE: usize = {
        // (loom's atomics have drop glue that does nothing.)
        assert!(size_of::<T>() >= 16 && align_of::<T>() <= 4096 && (MODEL || !std::mem::needs_drop::<T>()));
        let n = (SLAB_BYTES - Self::FIRST) / size_of::<T>();
        assert!(n > 0, "an object does not fit into a slab page");
        if MODEL {
            2
        } else if n > BITMAP_WORDS * 64 {
            BITMAP_WORDS * 64
        } else {
            n
        }
    };
    const LAYOUT: Layout = match Layout::from_size_align(SLAB_BYTES, SLAB_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("slab layout"),
    };

    const_fn! {
    /// A slab whose slots are made by `construct`, once each.
    pub const fn new(construct: fn() -> T, page_return: PageReturn) -> Slab<T, N> {
        Slab {
            construct,
            page_return,
            magazines: array![AtomicPtr::new(ptr::null_mut()); SLOTS],
            depot: Mutex::new(Depot { partial: Vec::new(), empty: 0 }),
            pages: AtomicUsize::new(0),
            #[cfg(feature = "races")]
            forced: races::adversary::Stack::new(),
            #[cfg(any(loom, shuttle))]
            kept: std::sync::Mutex::new(Vec::new()),
            #[cfg(any(loom, shuttle))]
            magazines_made: std::sync::Mutex::new(Vec::new()),
        }
    }
    }

    /// An object, as its last owner (or the constructor) left it. `None` when
    /// the system has no memory. Mutators only (`kmem_cache_alloc`).
    #[inline]
    pub fn alloc(&'static self) -> Option<NonNull<T>> {
        #[cfg(feature = "races")]
        if races::adversary::is_on() {
            return self.forced.pop().or_else(|| self.alloc_one());
        }
        match self.magazine() {
            Some(magazine) => {
                // SAFETY: the magazine is this thread's alone, and this function
                // does not call itself.
                let magazine = unsafe { &mut *magazine };
                if magazine.len == 0 {
                    self.refill(magazine);
                }
                if magazine.len == 0 {
                    return None;
                }
                magazine.len -= 1;
                track::written(&raw const magazine.len);
                track::read(&raw const magazine.objects[magazine.len]);
                NonNull::new(magazine.objects[magazine.len])
            }
            None => self.alloc_one(),
        }
    }

    /// An object from the depot.
    #[cold]
    fn alloc_one(&'static self) -> Option<NonNull<T>> {
        let mut one = [ptr::null_mut()];
        let got = self.take_from_depot(&mut one);
        if got == 1 { NonNull::new(one[0]) } else { None }
    }

    /// Gives an object back; it may be handed out again before this returns.
    /// Mutators only (`kmem_cache_free`).
    ///
    /// # Safety
    /// The object came from this slab's [`alloc`](Slab::alloc) and is owned by
    /// the caller. It is in a state in which stale readers (for
    /// [`PageReturn::AfterGracePeriod`]) can do no harm.
    #[inline]
    pub unsafe fn free(&'static self, object: NonNull<T>) {
        #[cfg(feature = "races")]
        if races::adversary::is_on() {
            if let Some(older) = self.forced.push(object) {
                self.give_to_depot(&older);
            }
            return;
        }
        match self.magazine() {
            Some(magazine) => {
                // SAFETY: as in `alloc`.
                let magazine = unsafe { &mut *magazine };
                if magazine.len == N {
                    self.drain(magazine);
                }
                magazine.objects[magazine.len] = object.as_ptr();
                track::written(&raw const magazine.objects[magazine.len]);
                magazine.len += 1;
                track::written(&raw const magazine.len);
            }
            None => self.give_to_depot(&[object.as_ptr()]),
        }
    }

    /// The calling thread's magazine.
    #[inline]
    fn magazine(&'static self) -> Option<*mut Magazine<T, N>> {
        if let Some(slot) = thread::current() {
            // Relaxed: written by owners of the slot only, and the slot's own
            // hand-over (Release in `Lease::drop`, Acquire in `announce`) orders them.
            let magazine = self.magazines[slot.index()].load(Ordering::Relaxed);
            if !magazine.is_null() {
                return Some(magazine);
            }
        }
        self.make_magazine()
    }

    /// Announces the calling thread and gives its slot a magazine, as needed.
    #[cold]
    #[inline(never)]
    fn make_magazine(&'static self) -> Option<*mut Magazine<T, N>> {
        thread::announce();
        let cell = &self.magazines[thread::current()?.index()];
        let magazine = cell.load(Ordering::Relaxed);
        if !magazine.is_null() {
            return Some(magazine);
        }
        let magazine = Box::into_raw(Box::new(Magazine { len: 0, objects: [ptr::null_mut(); N] }));
        track::objects(magazine, 1);
        cell.store(magazine, Ordering::Relaxed);
        #[cfg(any(loom, shuttle))]
        self.magazines_made.lock().expect("magazines").push(MagazinePtr(magazine));
        Some(magazine)
    }

    #[cold]
    #[inline(never)]
    fn refill(&'static self, magazine: &mut Magazine<T, N>) {
        magazine.len = aside(|| self.take_from_depot(&mut magazine.objects[..REFILL]));
        track::written(magazine);
    }

    /// Gives the older half of a full magazine to the depot.
    #[cold]
    #[inline(never)]
    fn drain(&'static self, magazine: &mut Magazine<T, N>) {
        aside(|| magazine.objects[..N / 2].chunks(MAGAZINE).for_each(|objects| self.give_to_depot(objects)));
        magazine.objects.copy_within(N / 2.., 0);
        magazine.len = N / 2;
        track::written(magazine);
    }

    fn page_of(object: *mut T) -> NonNull<PageHead> {
        // The page is aligned to its size, and its head comes first.
        NonNull::new(object.map_addr(|addr| addr & !(SLAB_BYTES - 1)).cast()).expect("slab page is not null")
    }

    fn slot_of(object: *mut T) -> usize {
        let offset = object.addr() & (SLAB_BYTES - 1);
        let slot = (offset - Self::FIRST) / size_of::<T>();
        assert!(
            (offset - Self::FIRST).is_multiple_of(size_of::<T>()) && slot < Self::PER_PAGE,
            "not an object of this slab"
        );
        slot
    }

    /// Fills `out` from free slots, making slab pages as needed; returns how many.
    fn take_from_depot(&'static self, out: &mut [*mut T]) -> usize {
        let mut depot = self.depot.lock().expect("slab depot");
        let mut taken = 0;
        while taken < out.len() {
            let Some(&PagePtr(page)) = depot.partial.last() else {
                match self.make_page() {
                    Some(page) => {
                        depot.insert(page);
                        depot.empty += 1;
                    }
                    None => break,
                }
                continue;
            };
            // SAFETY: pages in the depot are live, and we hold its mutex.
            let head = unsafe { &mut *page.as_ptr() };
            track::written(head);
            if head.free == Self::PER_PAGE {
                depot.empty -= 1;
            }
            for (w, word) in head.bitmap[..Self::PER_PAGE.div_ceil(64)].iter_mut().enumerate() {
                while *word != 0 && taken < out.len() {
                    let slot = w * 64 + word.trailing_zeros() as usize;
                    *word &= *word - 1;
                    head.free -= 1;
                    // SAFETY: the slot lies within the page.
                    out[taken] = unsafe { page.as_ptr().byte_add(Self::FIRST + slot * size_of::<T>()) }.cast();
                    taken += 1;
                }
            }
            if head.free == 0 {
                depot.remove(page);
            }
        }
        taken
    }

    #[inline(never)]
    fn give_to_depot(&'static self, objects: &[*mut T]) {
        // A full magazine gives so many at once, the adversary no more.
        let mut returned: [Option<PagePtr>; MAGAZINE] = [None; MAGAZINE];
        {
            let mut depot = self.depot.lock().expect("slab depot");
            for (object, returned) in objects.iter().zip(&mut returned) {
                let (page, slot) = (Self::page_of(*object), Self::slot_of(*object));
                // SAFETY: the object's page is live, and we hold the mutex.
                let head = unsafe { &mut *page.as_ptr() };
                track::written(head);
                let (word, bit) = (slot / 64, 1u64 << (slot % 64));
                assert_eq!(head.bitmap[word] & bit, 0, "object freed twice");
                head.bitmap[word] |= bit;
                head.free += 1;
                if head.free == 1 {
                    depot.insert(PagePtr(page));
                }
                if head.free == Self::PER_PAGE {
                    depot.empty += 1;
                    if depot.empty > EMPTY_PAGES_KEPT {
                        depot.empty -= 1;
                        depot.remove(page);
                        *returned = Some(PagePtr(page));
                    }
                }
            }
        }
        for PagePtr(page) in returned.into_iter().flatten() {
            self.pages.fetch_sub(1, Ordering::Relaxed);
            match self.page_return {
                // SAFETY: the page is out of the depot and wholly free, so no
                // section that begins now can find an object in it.
                PageReturn::AfterGracePeriod => unsafe { rcu::defer(page.as_ptr().cast(), Self::release_page) },
                // SAFETY: and nobody has stale pointers.
                PageReturn::AtOnce => unsafe { Self::release_page(page.as_ptr().cast()) },
            }
        }
    }

    /// A new slab page, all its slots constructed and free.
    fn make_page(&self) -> Option<PagePtr> {
        let large = self.pages.load(Ordering::Relaxed) >= SINGLE_PAGES;
        let from_block = if large { block::take() } else { None };
        let in_block = from_block.is_some();
        let page = match from_block {
            Some(page) => page,
            // SAFETY: the layout is not empty.
            None => NonNull::new(unsafe { alloc(Self::LAYOUT) })?.cast(),
        };
        let mut bitmap = [0u64; BITMAP_WORDS];
        for slot in 0..Self::PER_PAGE {
            bitmap[slot / 64] |= 1 << (slot % 64);
            // SAFETY: the slot lies within the page and is aligned; nobody else
            // knows the page yet.
            unsafe {
                page.as_ptr().byte_add(Self::FIRST + slot * size_of::<T>()).cast::<T>().write((self.construct)())
            };
        }
        // SAFETY: the head lies at the page's start, before the first slot.
        unsafe { page.write(PageHead { position: usize::MAX, free: Self::PER_PAGE, in_block, bitmap }) };
        self.pages.fetch_add(1, Ordering::Relaxed);
        track::objects(page.as_ptr(), 1);
        // SAFETY: as above.
        track::objects(unsafe { page.as_ptr().byte_add(Self::FIRST) }.cast::<T>(), Self::PER_PAGE);
        track::born(page.as_ptr());
        #[cfg(any(loom, shuttle))]
        self.kept.lock().expect("kept pages").push(PagePtr(page));
        Some(PagePtr(page))
    }

    /// # Safety
    /// `page` is a slab page that nobody can reach any more.
    unsafe fn release_page(page: *mut ()) {
        track::died(page);
        if MODEL {
            return;
        }
        // SAFETY: `make_page` made it, and the page is ours.
        let in_block = unsafe { (*page.cast::<PageHead>()).in_block };
        if races::POISON {
            // SAFETY: the page is ours.
            unsafe { ptr::write_bytes(page.cast::<u8>(), 0x5a, SLAB_BYTES) };
        }
        // SAFETY: from `make_page`, with the same layout or from a block.
        unsafe {
            if in_block {
                block::give_back(NonNull::new_unchecked(page).cast(), races::POISON);
            } else {
                dealloc(page.cast(), Self::LAYOUT);
            }
        }
    }

    /// In a model build: reports a look at an object whose page has been given
    /// back.
    #[inline(always)]
    pub(crate) fn looked_at(object: NonNull<T>) {
        if MODEL {
            track::used(Self::page_of(object.as_ptr()).as_ptr().cast::<()>());
        }
    }

    /// For the adversary's poison; see `Stack::swap_mm`.
    #[cfg(feature = "races")]
    pub(crate) fn swap_mm(&self, mm: *mut ()) -> *mut () {
        self.forced.swap_mm(mm)
    }

    /// How much the slab holds now.
    pub fn stats(&self) -> SlabStats {
        SlabStats {
            pages: self.pages.load(Ordering::Relaxed),
            object_bytes: size_of::<T>(),
            objects_per_page: Self::PER_PAGE,
        }
    }
}

#[cfg(any(loom, shuttle))]
impl<T, const N: usize> Drop for Slab<T, N> {
    fn drop(&mut self) {
        for PagePtr(page) in self.kept.get_mut().expect("kept pages").drain(..) {
            // SAFETY: the execution is over, nobody holds a pointer.
            unsafe { dealloc(page.as_ptr().cast(), Self::LAYOUT) };
        }
        self.magazines_made.get_mut().expect("magazines").drain(..).for_each(|magazine| {
            // SAFETY: from `Box::into_raw` in `magazine`, and dropped once.
            drop(unsafe { Box::from_raw(magazine.0) });
        });
    }
}

impl Depot {
    fn insert(&mut self, PagePtr(page): PagePtr) {
        // SAFETY: a live page, and `&mut self` means the mutex is held.
        unsafe { (*page.as_ptr()).position = self.partial.len() };
        self.partial.push(PagePtr(page));
    }

    fn remove(&mut self, page: NonNull<PageHead>) {
        // SAFETY: a live page, and the mutex is held.
        let position = unsafe { (*page.as_ptr()).position };
        self.partial.swap_remove(position);
        if let Some(moved) = self.partial.get(position) {
            // SAFETY: as above.
            unsafe { (*moved.0.as_ptr()).position = position };
        }
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
