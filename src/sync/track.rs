//! The lives of memory that is given back while readers may still look at it:
//! tree nodes, slab pages, address spaces.
//!
//! In a model build such memory is kept and every look is checked: against
//! the end of its life, and under loom against its beginning too: a reader
//! that does not see a node's contents for certain is reported. In the usual
//! build these are empty functions; what debug builds and the feature `races`
//! check there is poison.
//!
//! With the feature `conflicts` the same places tell which plain memory an
//! operation touches (`record.rs`).

#[cfg(any(loom, shuttle))]
pub use checked::{born, died, used};

/// `object` has been written and is about to be known to others.
#[cfg(not(any(loom, shuttle)))]
#[inline(always)]
#[cfg_attr(feature = "conflicts", track_caller)]
pub fn born<T>(object: *const T) {
    written(object);
}

/// `object` is looked at. (What of it: [`read`].)
///
/// # Panics
/// In a model build: if it has been given back, or is not certain to be seen.
#[cfg(not(any(loom, shuttle)))]
#[inline(always)]
pub fn used<T>(_object: *const T) {}

/// `object` is given back; nobody may look at it any more.
///
/// # Panics
/// In a model build: if somebody may be looking.
#[cfg(not(any(loom, shuttle)))]
#[inline(always)]
pub fn died<T>(_object: *const T) {}

/// Plain memory is read, by an operation that may be recorded.
#[inline(always)]
#[cfg_attr(feature = "conflicts", track_caller)]
pub fn read<T>(_part: *const T) {
    #[cfg(feature = "conflicts")]
    super::record::read(_part);
}

/// Plain memory is written, by an operation that may be recorded.
#[inline(always)]
#[cfg_attr(feature = "conflicts", track_caller)]
pub fn written<T>(_part: *const T) {
    #[cfg(feature = "conflicts")]
    super::record::written(_part);
}

/// `count` objects lie at `first` from now on, and are called so in records.
#[inline(always)]
pub fn objects<T>(_first: *const T, _count: usize) {
    #[cfg(feature = "conflicts")]
    super::record::objects(_first, _count);
}

#[cfg(any(loom, shuttle))]
mod checked {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    struct Life {
        /// loom's cell knows which accesses are ordered. (shuttle has one order.)
        #[cfg(loom)]
        cell: ::loom::cell::UnsafeCell<()>,
        dead: std::sync::atomic::AtomicBool,
    }

    // SAFETY: the cell holds nothing; it only reports who accesses it when.
    unsafe impl Send for Life {}
    // SAFETY: as above.
    unsafe impl Sync for Life {}

    crate::sync::statics! {
        static LIVES: Mutex<HashMap<usize, Arc<Life>>> = Mutex::new(HashMap::new());
    }

    fn key<T>(object: *const T) -> usize {
        object.addr()
    }

    fn life<T>(object: *const T) -> Option<Arc<Life>> {
        LIVES.lock().expect("lives").get(&key(object)).cloned()
    }

    fn written(_life: &Life) {
        #[cfg(loom)]
        _life.cell.with_mut(|_| ());
    }

    /// See the usual build's.
    pub fn born<T>(object: *const T) {
        let life = Arc::new(Life {
            #[cfg(loom)]
            cell: Default::default(),
            dead: false.into(),
        });
        written(&life);
        LIVES.lock().expect("lives").insert(key(object), life);
    }

    /// See the usual build's.
    pub fn used<T>(object: *const T) {
        if let Some(life) = life(object) {
            assert!(!life.dead.load(std::sync::atomic::Ordering::Relaxed), "O6: used after it was given back");
            #[cfg(loom)]
            life.cell.with(|_| ());
        }
    }

    /// See the usual build's.
    pub fn died<T>(object: *const T) {
        if let Some(life) = life(object) {
            let was_dead = life.dead.swap(true, std::sync::atomic::Ordering::Relaxed);
            assert!(!was_dead, "O6: given back twice");
            written(&life);
        }
    }
}
