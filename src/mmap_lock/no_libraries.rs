//! In a model build: the libraries' locks have threads of their own making
//! inside, which no model sees, so there are none.

use super::Rwsem;
use std::convert::Infallible;
use std::marker::PhantomData;

pub type Read<'a> = Option<(Infallible, PhantomData<&'a ()>)>;
pub type Write<'a> = Option<(Infallible, PhantomData<&'a ()>)>;

/// There is none.
pub enum Library {}

pub fn prepare_thread() {}

impl Library {
    pub fn new(_: Rwsem) -> Option<Library> {
        None
    }

    pub fn try_lock_read(&self) -> Option<Read<'_>> {
        match *self {}
    }

    pub fn try_lock_write(&self) -> Option<Write<'_>> {
        match *self {}
    }

    pub fn lock_read(&self) -> Read<'_> {
        match *self {}
    }

    pub fn lock_write(&self) -> Write<'_> {
        match *self {}
    }

    /// # Safety
    /// None: it is never called.
    pub unsafe fn unlock_read(&self, _: Read<'_>) {
        match *self {}
    }

    /// # Safety
    /// None: it is never called.
    pub unsafe fn unlock_write(&self, _: Write<'_>) {
        match *self {}
    }

    /// # Safety
    /// None: it is never called.
    pub unsafe fn downgrade<'a>(&self, _: Write<'a>) -> Read<'a> {
        match *self {}
    }

    pub fn is_idle(&self) -> bool {
        match *self {}
    }
}
