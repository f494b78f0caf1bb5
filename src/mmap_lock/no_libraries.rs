//! In a model build: the libraries' locks have threads of their own making
//! inside, which no model sees, so there are none.

use super::Rwsem;

/// There is none.
pub enum Library {}

pub fn prepare_thread() {}

impl Library {
    pub fn new(_: Rwsem) -> Option<Library> {
        None
    }

    pub fn try_lock_read(&self) -> bool {
        match *self {}
    }

    pub fn try_lock_write(&self) -> bool {
        match *self {}
    }

    pub fn lock_read(&self) {
        match *self {}
    }

    pub fn lock_write(&self) {
        match *self {}
    }

    /// # Safety
    /// None: it is never called.
    pub unsafe fn unlock_read(&self) {
        match *self {}
    }

    /// # Safety
    /// None: it is never called.
    pub unsafe fn unlock_write(&self) {
        match *self {}
    }

    /// # Safety
    /// None: it is never called.
    pub unsafe fn downgrade(&self) {
        match *self {}
    }

    pub fn is_idle(&self) -> bool {
        match *self {}
    }
}
