//! What an operation touches: the primitives of the usual build, which note
//! each access of a thread that is being recorded (feature `conflicts`).
//!
//! [`operation`] runs a function and returns every access that the core made
//! meanwhile on this thread: address, length, whether it writes, and the line
//! of source that did it. Two operations that touch no common cache line with
//! a write scale together, on any machine (Clements et al., *The scalable
//! commutativity rule*, SOSP 2013); `vmalab conflicts` compares what was noted.
//!
//! Seen are atomics ([`super::plain`] too), mutexes and what they protect, and
//! the plain memory that the core tells of through [`super::track`]: tree
//! nodes, VMA objects when a slab page is made, magazines, heads of slab pages.
//! The values have the layout of those that they stand for, so objects lie in
//! lines as in the usual build.
//!
//! Not seen: the allocator's own memory, thread-locals, page contents, what
//! the host kernel does. Not for signal handlers: a record is a growing list.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

/// Bytes that caches hand from core to core as one.
pub const LINE_BYTES: usize = 64;

/// One access of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First byte.
    pub addr: usize,
    /// Bytes, at least 1.
    pub bytes: usize,
    /// It takes the line from other caches: a store, or any read-modify-write,
    /// also one that fails or changes nothing.
    pub write: bool,
    /// The line of source.
    pub at: &'static Location<'static>,
}

impl Access {
    /// Numbers of the cache lines that it touches.
    pub fn lines(&self) -> std::ops::RangeInclusive<usize> {
        self.addr / LINE_BYTES..=(self.addr + self.bytes - 1) / LINE_BYTES
    }
}

thread_local! {
    /// The accesses of the operation under way on this thread, if any.
    static NOTED: RefCell<Option<Vec<Access>>> = const { RefCell::new(None) };
}

/// Runs `f` and returns the accesses that this thread made in it, in order.
/// One inside another belongs to the inner one alone.
pub fn operation<R>(f: impl FnOnce() -> R) -> (R, Vec<Access>) {
    let outer = NOTED.replace(Some(Vec::new()));
    let result = f();
    let noted = NOTED.replace(outer).expect("put there above");
    (result, noted)
}

/// Runs `f` without noting anything.
pub fn unrecorded<R>(f: impl FnOnce() -> R) -> R {
    operation(f).0
}

#[track_caller]
#[inline]
fn note(addr: usize, bytes: usize, write: bool) {
    let at = Location::caller();
    // (Gone while the thread's locals are torn down.)
    let _ = NOTED.try_with(|noted| {
        if let Some(noted) = noted.borrow_mut().as_mut()
            && bytes > 0
        {
            noted.push(Access { addr, bytes, write, at });
        }
    });
}

/// Plain memory is read.
#[track_caller]
pub(super) fn read<T>(object: *const T) {
    note(object.addr(), size_of::<T>(), false);
}

/// Plain memory is written.
#[track_caller]
pub(super) fn written<T>(object: *const T) {
    note(object.addr(), size_of::<T>(), true);
}

/// What lies where: `count` objects of `stride` bytes each.
struct Known {
    count: usize,
    stride: usize,
    name: &'static str,
}

/// By first address.
static KNOWN: std::sync::Mutex<BTreeMap<usize, Known>> = std::sync::Mutex::new(BTreeMap::new());

/// `count` objects of this type lie here from now on, for [`describe`].
pub(super) fn objects<T>(first: *const T, count: usize) {
    let (start, stride) = (first.addr(), size_of::<T>());
    let end = start + count * stride;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    // What was there before has gone.
    let overlaps = |(&at, known): (&usize, &Known)| (at + known.count * known.stride > start).then_some(at);
    while let Some(old) = known.range(..end).next_back().and_then(overlaps) {
        known.remove(&old);
    }
    known.insert(start, Known { count, stride, name: std::any::type_name::<T>() });
}

/// What lies at an address, as far as the core has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The object's type, without paths.
    pub object: String,
    /// Address of the object.
    pub start: usize,
    /// Bytes from the object's start.
    pub offset: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.object, self.offset)
    }
}

/// The object at `addr`; `None`: a static, or what the core has not told of.
pub fn describe(addr: usize) -> Option<Place> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let (&first, object) = known.range(..=addr).next_back()?;
    let offset = addr - first;
    (offset < object.count * object.stride).then(|| Place {
        object: without_paths(object.name),
        start: addr - offset % object.stride,
        offset: offset % object.stride,
    })
}

/// `a::b::C<d::E>` as `C<E>`.
fn without_paths(name: &str) -> String {
    let mut short = String::new();
    let mut rest = name;
    while let Some(at) = rest.find(|c: char| !c.is_alphanumeric() && c != '_') {
        if let Some(after) = rest[at..].strip_prefix("::") {
            rest = after;
        } else {
            short.push_str(&rest[..=at]);
            rest = &rest[at + 1..];
        }
    }
    short + rest
}

macro_rules! integers {
    ($($name:ident: $value:ty,)*) => { $(
        /// The atomic of that name, recorded.
        #[derive(Default)]
        #[repr(transparent)]
        pub struct $name(std::sync::atomic::$name);

        impl $name {
            /// See std.
            pub const fn new(value: $value) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }
        }

        atomic!([] $name, $value);
        arithmetic!($name, $value);
    )* };
}

/// What all atomics have.
macro_rules! atomic {
    ([$($generic:ident)?] $name:ty, $value:ty) => {
        #[allow(missing_docs, reason = "std's, with a note made")]
        impl$(<$generic>)? $name {
            #[track_caller]
            #[inline]
            pub fn load(&self, order: Ordering) -> $value {
                read(self);
                self.0.load(order)
            }

            #[track_caller]
            #[inline]
            pub fn store(&self, value: $value, order: Ordering) {
                written(self);
                self.0.store(value, order);
            }

            #[track_caller]
            #[inline]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                written(self);
                self.0.swap(value, order)
            }

            #[track_caller]
            #[inline]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                written(self);
                self.0.compare_exchange(current, new, success, failure)
            }

            #[track_caller]
            #[inline]
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                written(self);
                self.0.compare_exchange_weak(current, new, success, failure)
            }

            #[track_caller]
            #[inline]
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                written(self);
                self.0.fetch_update(set, fetch, change)
            }

            #[inline]
            pub fn as_ptr(&self) -> *mut $value {
                self.0.as_ptr()
            }

            #[inline]
            pub fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }

            #[inline]
            pub fn into_inner(self) -> $value {
                self.0.into_inner()
            }
        }

        impl$(<$generic>)? fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl$(<$generic>)? From<$value> for $name {
            fn from(value: $value) -> Self {
                Self::new(value)
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty) => {
        arithmetic!($name, $value, fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
    };
    ($name:ident, $value:ty, $($operation:ident)*) => {
        #[allow(missing_docs, reason = "std's, with a note made")]
        impl $name {
            $(
                #[track_caller]
                #[inline]
                pub fn $operation(&self, value: $value, order: Ordering) -> $value {
                    written(self);
                    self.0.$operation(value, order)
                }
            )*
        }
    };
}

integers! {
    AtomicU8: u8,
    AtomicU32: u32,
    AtomicU64: u64,
    AtomicUsize: usize,
}

/// The atomic of that name, recorded.
#[derive(Default)]
#[repr(transparent)]
pub struct AtomicBool(std::sync::atomic::AtomicBool);

impl AtomicBool {
    /// See std.
    pub const fn new(value: bool) -> Self {
        Self(std::sync::atomic::AtomicBool::new(value))
    }
}

atomic!([] AtomicBool, bool);

/// The atomic of that name, recorded.
#[repr(transparent)]
pub struct AtomicPtr<T>(std::sync::atomic::AtomicPtr<T>);

impl<T> AtomicPtr<T> {
    /// See std.
    pub const fn new(value: *mut T) -> Self {
        Self(std::sync::atomic::AtomicPtr::new(value))
    }
}

atomic!([T] AtomicPtr<T>, *mut T);

/// std's mutex, recorded: its lock word, and what it protects as far as it is
/// reached through the guard.
#[derive(Default)]
#[repr(transparent)]
pub struct Mutex<T>(std::sync::Mutex<T>);

/// The mutex, held. Released when dropped.
#[must_use = "the mutex is released when the guard is dropped"]
pub struct MutexGuard<'a, T> {
    inner: std::sync::MutexGuard<'a, T>,
    word: *const u32,
    at: &'static Location<'static>,
}

impl<T> Mutex<T> {
    /// A free mutex.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }

    /// See std.
    ///
    /// # Errors
    /// Its holder panicked.
    #[track_caller]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        written(self.word());
        let at = Location::caller();
        let guard = |inner| MutexGuard { inner, word: self.word(), at };
        self.0.lock().map(guard).map_err(|poisoned| PoisonError::new(guard(poisoned.into_inner())))
    }

    /// See std.
    ///
    /// # Errors
    /// It is held, or its holder panicked.
    #[track_caller]
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        written(self.word());
        let at = Location::caller();
        let guard = |inner| MutexGuard { inner, word: self.word(), at };
        self.0.try_lock().map(guard).map_err(|error| match error {
            TryLockError::WouldBlock => TryLockError::WouldBlock,
            TryLockError::Poisoned(poisoned) => TryLockError::Poisoned(PoisonError::new(guard(poisoned.into_inner()))),
        })
    }

    /// See std.
    ///
    /// # Errors
    /// A holder panicked.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.0.get_mut()
    }

    /// The lock word: std puts it before the value.
    fn word(&self) -> *const u32 {
        (&raw const self.0).cast()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[track_caller]
    fn deref(&self) -> &T {
        read(&raw const *self.inner);
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[track_caller]
    fn deref_mut(&mut self) -> &mut T {
        written(&raw const *self.inner);
        &mut self.inner
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        let _ = NOTED.try_with(|noted| {
            if let Some(noted) = noted.borrow_mut().as_mut() {
                noted.push(Access { addr: self.word.addr(), bytes: size_of::<u32>(), write: true, at: self.at });
            }
        });
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_noted_with_their_line() {
        let (word, lock) = (AtomicU64::new(1), Mutex::new([0u64; 2]));
        word.load(Ordering::Relaxed);
        let here = line!();
        let ((), noted) = operation(|| {
            word.load(Ordering::Relaxed);
            assert!(word.compare_exchange(7, 8, Ordering::Relaxed, Ordering::Relaxed).is_err());
            lock.lock().unwrap()[1] = 3;
        });
        let seen: Vec<_> = noted.iter().map(|a| (a.addr, a.bytes, a.write, a.at.line() - here)).collect();
        let (word, lock) = ((&raw const word).addr(), (&raw const lock).addr());
        let data = seen[3].0;
        assert!(data > lock && data < lock + size_of::<Mutex<[u64; 2]>>());
        assert_eq!(
            seen,
            [(word, 8, false, 2), (word, 8, true, 3), (lock, 4, true, 4), (data, 16, true, 4), (lock, 4, true, 4)]
        );
        assert!(noted.iter().all(|access| access.at.file().ends_with("record.rs")));
        assert_eq!(operation(|| unrecorded(|| AtomicU32::new(0).load(Ordering::Relaxed))).1, []);
    }

    #[test]
    fn layouts_are_the_usual_ones() {
        assert_eq!(size_of::<AtomicBool>(), 1);
        assert_eq!(size_of::<Mutex<u64>>(), size_of::<std::sync::Mutex<u64>>());
        assert_eq!(align_of::<AtomicPtr<u8>>(), align_of::<*mut u8>());
    }

    #[test]
    fn the_lock_word_comes_first() {
        // A futex of 0 or 1 is all that changes when the mutex is taken.
        let mutex = Mutex::new(0u64);
        // SAFETY: four initialised bytes, of which std makes an atomic; nobody else uses the mutex.
        let word = |mutex: &Mutex<u64>| unsafe { mutex.word().read_volatile() };
        assert_eq!(word(&mutex), 0);
        let guard = mutex.lock().unwrap();
        assert_eq!(word(&mutex), 1);
        drop(guard);
    }

    #[test]
    fn objects_are_found_by_address() {
        let objects_of = |array: &[[u64; 4]; 3]| objects(array.as_ptr(), 3);
        let array = Box::new([[0u64; 4]; 3]);
        objects_of(&array);
        let place = describe(array[1].as_ptr().addr() + 9).unwrap();
        assert_eq!((place.start, place.offset), (array[1].as_ptr().addr(), 9));
        assert_eq!(place.to_string(), "[u64; 4]+0x9");
        // Another object takes the memory.
        objects(array[1].as_ptr(), 1);
        assert_eq!(describe(array[1].as_ptr().addr()).unwrap().object, "u64");
        assert_eq!(describe(array[0].as_ptr().addr()), None);
        assert_eq!(without_paths("a::b::Vma<c::TypeSafe, alloc::vec::Vec<u8>>"), "Vma<TypeSafe, Vec<u8>>");
    }
}
