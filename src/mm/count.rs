//! `mm_count`: who keeps the memory of an address space.
//!
//! The owner ([`MmOwner`], inside [`Mm`](super::Mm)) holds one reference. When
//! it goes the address space is emptied (`exit_mmap`) and the reference
//! dropped. A fault of *another* address space may hold one for a moment
//! ([`MmPin`]): it had locked an object that turned out to belong to this one,
//! and lets go of it (CVE-2025-38554, see `lock::refcount`).
//!
//! The last reference may thus be dropped in a signal handler, where nothing
//! is freed: the memory goes on a list, and the next mutator that makes or
//! drops an address space frees it.

use super::core::MmCore;
use crate::lock::LockScheme;
use crate::sync::{AtomicPtr, AtomicUsize, Ordering, statics, track};
use std::ops::Deref;
use std::ptr::{self, NonNull};

/// References to an [`MmCore`], and its place on the list of the dead.
pub(super) struct MmCount {
    references: AtomicUsize,
    next: AtomicPtr<MmCount>,
    /// The `MmCore` that this is a field of, as it came from its box.
    mm: AtomicPtr<()>,
    /// Frees it.
    free: unsafe fn(*mut ()),
    /// Nobody refers to it any more (oracle O6).
    #[cfg(any(feature = "races", loom, shuttle))]
    dead: crate::sync::plain::AtomicBool,
}

/// In builds with mutants the memory of dead address spaces is kept, so that
/// a use of it is a violation that is reported, not undefined behaviour.
#[cfg(any(feature = "races", loom, shuttle))]
mod kept {
    use super::MmCore;
    use crate::lock::LockScheme;
    use crate::sync::plain::Ordering;
    use std::alloc::{Layout, dealloc};

    struct Kept(*mut u8, Layout);
    // SAFETY: memory that nobody uses.
    unsafe impl Send for Kept {}

    impl Drop for Kept {
        fn drop(&mut self) {
            // SAFETY: a former box of this layout, whose value was dropped.
            unsafe { dealloc(self.0, self.1) };
        }
    }

    crate::sync::statics! {
        static KEPT: std::sync::Mutex<Vec<Kept>> = std::sync::Mutex::new(Vec::new());
    }

    /// # Safety
    /// `mm` is from a box, and nobody refers to it any more.
    pub(super) unsafe fn keep<S: LockScheme>(mm: *mut MmCore<S>) {
        // SAFETY: the caller's promise; dropping it leaves its atomics readable.
        unsafe {
            (*mm).count.dead.store(true, Ordering::SeqCst);
            mm.drop_in_place();
        }
        KEPT.lock().expect("kept address spaces").push(Kept(mm.cast(), Layout::new::<MmCore<S>>()));
    }
}

statics! {
    /// Address spaces that nobody refers to, to be freed by a mutator.
    static DEAD: AtomicPtr<MmCount> = AtomicPtr::new(ptr::null_mut());
}

impl MmCount {
    /// One reference, the owner's.
    pub(super) fn new<S: LockScheme>() -> MmCount {
        unsafe fn free<S: LockScheme>(mm: *mut ()) {
            // SAFETY: from `Box::into_raw` in `MmOwner::new`, and nobody refers
            // to it any more.
            #[cfg(not(any(feature = "races", loom, shuttle)))]
            unsafe {
                drop(Box::from_raw(mm.cast::<MmCore<S>>()))
            };
            // SAFETY: as above.
            #[cfg(any(feature = "races", loom, shuttle))]
            unsafe {
                kept::keep(mm.cast::<MmCore<S>>())
            };
        }
        MmCount {
            references: AtomicUsize::new(1),
            next: AtomicPtr::new(ptr::null_mut()),
            mm: AtomicPtr::new(ptr::null_mut()),
            free: free::<S>,
            #[cfg(any(feature = "races", loom, shuttle))]
            dead: crate::sync::plain::AtomicBool::new(false),
        }
    }

    /// Whether nobody refers to it any more: only known where the memory is kept.
    #[inline(always)]
    pub(super) fn is_dead(&self) -> bool {
        #[cfg(any(feature = "races", loom, shuttle))]
        return self.dead.load(Ordering::SeqCst);
        #[cfg(not(any(feature = "races", loom, shuttle)))]
        return false;
    }

    /// Drops a reference (`mmdrop`). Async-signal-safe.
    ///
    /// # Safety
    /// The caller owns the reference, and forgets it.
    unsafe fn put(this: NonNull<MmCount>) {
        // SAFETY: alive, by the reference.
        let count = unsafe { this.as_ref() };
        // Release: pairs with the Acquire of whoever is last.
        if count.references.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Acquire: pairs with the Release of all others, whose decrements are one
        // release sequence up to ours. A load, not a fence: ThreadSanitizer sees it.
        count.references.load(Ordering::Acquire);
        let mut head = DEAD.load(Ordering::Relaxed);
        loop {
            count.next.store(head, Ordering::Relaxed);
            // Release: pairs with the Acquire in `reap`.
            match DEAD.compare_exchange_weak(head, this.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

/// Frees what is on the list. Mutators only.
fn reap() {
    // Acquire: pairs with the Release in `put`. The whole list is taken, so it
    // cannot change under us.
    let mut dead = DEAD.swap(ptr::null_mut(), Ordering::Acquire);
    while !dead.is_null() {
        // SAFETY: on the list, so without references; freed after its fields
        // have been read, and only by us.
        unsafe {
            let next = (*dead).next.load(Ordering::Relaxed);
            ((*dead).free)((*dead).mm.load(Ordering::Relaxed));
            dead = next;
        }
    }
}

/// The owner's reference to an address space.
pub(super) struct MmOwner<S: LockScheme>(NonNull<MmCore<S>>);

// SAFETY: a shared reference to an `MmCore`, which is Sync.
unsafe impl<S: LockScheme> Send for MmOwner<S> {}
// SAFETY: as above.
unsafe impl<S: LockScheme> Sync for MmOwner<S> {}

impl<S: LockScheme> MmOwner<S> {
    /// A new, empty address space.
    pub(super) fn new() -> MmOwner<S> {
        reap();
        let mm = NonNull::from(Box::leak(Box::new(MmCore::new())));
        track::objects(mm.as_ptr(), 1);
        let owner = MmOwner(mm);
        owner.count.mm.store(mm.as_ptr().cast(), Ordering::Relaxed);
        owner
    }
}

impl<S: LockScheme> Deref for MmOwner<S> {
    type Target = MmCore<S>;

    #[inline]
    fn deref(&self) -> &MmCore<S> {
        // SAFETY: our reference keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl<S: LockScheme> Drop for MmOwner<S> {
    fn drop(&mut self) {
        self.exit_mmap();
        // SAFETY: our own reference, dropped once.
        unsafe { MmCount::put(NonNull::from(&self.count)) };
        reap();
    }
}

/// A passing reference to another address space's memory (`mmgrab`).
pub(crate) struct MmPin<S: LockScheme>(NonNull<MmCore<S>>);

impl<S: LockScheme> MmCore<S> {
    /// Takes a reference (`mmgrab`). Async-signal-safe.
    ///
    /// # Safety
    /// Something that the caller holds keeps the `MmCore` alive during this call.
    pub(crate) unsafe fn grab(mm: *const MmCore<S>) -> MmPin<S> {
        // SAFETY: the caller's promise.
        let mm = unsafe { &*mm };
        // Relaxed: there is a reference already.
        mm.count.references.fetch_add(1, Ordering::Relaxed);
        MmPin(NonNull::from(mm))
    }
}

impl<S: LockScheme> Deref for MmPin<S> {
    type Target = MmCore<S>;

    fn deref(&self) -> &MmCore<S> {
        // SAFETY: our reference keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl<S: LockScheme> Drop for MmPin<S> {
    fn drop(&mut self) {
        // SAFETY: our own reference, dropped once.
        unsafe { MmCount::put(NonNull::from(&self.count)) };
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::lock::TypeSafe;

    #[test]
    fn a_pin_outlives_the_owner() {
        let owner = MmOwner::<TypeSafe>::new();
        // SAFETY: the owner keeps it.
        let pin = unsafe { MmCore::grab(&*owner) };
        let id = owner.id();
        drop(owner);
        assert_eq!(pin.id(), id);
        assert_eq!(pin.count.references.load(Ordering::Relaxed), 1);
        drop(pin);
        reap();
    }

    /// Waits until no address space waits to be freed: other tests' come and go.
    fn freed() {
        let began = std::time::Instant::now();
        while !DEAD.load(Ordering::Relaxed).is_null() {
            assert!(began.elapsed().as_secs() < 20, "nobody frees what is dead");
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_drops_an_address_space_frees_it() {
        drop(MmOwner::<TypeSafe>::new());
        freed();
    }
}
