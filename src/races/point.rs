//! Schedule points. Called from anywhere in a lock protocol, signal handlers
//! included.

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A named place between two steps of a protocol. H1-H13 are those of
        /// the kernel lineage §2; the others are ours.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Point { $($(#[$doc])* #[doc = concat!("\n\n", $text, ".")] $name,)* }

        impl Point {
            /// All of them, in order.
            pub const ALL: &'static [Point] = &[$(Point::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Point::$name => stringify!($name),)* }
            }

            /// Where it is, in words.
            pub const fn place(self) -> &'static str {
                match self { $(Point::$name => $text,)* }
            }
        }
    };
}

points! {
    /// Reader.
    Walk = "between loading the tree's root and walking the tree",
    /// Reader.
    Number = "between choosing the mm whose number counts and reading it",
    /// Reader.
    H1 = "after the tree walk",
    /// Reader.
    H2 = "after the early comparison of the numbers",
    /// Reader.
    H3 = "between taking the lock and the checks that follow",
    /// Reader.
    Numbers = "between the second comparison of the numbers and the checks that follow",
    /// Reader.
    Attached = "between finding the object attached and comparing vm_mm",
    /// Reader.
    Checks = "between two of the checks that follow the lock",
    /// Reader.
    H4 = "before the lock is given back",
    /// Reader.
    H5 = "between giving the lock back and waking the writer",
    /// Writer.
    H6 = "while an object is filled in, before its lock state is settled",
    /// Writer.
    Commit = "between write-locking the VMAs and changing them",
    /// Writer.
    H7 = "between attaching a VMA and publishing the tree",
    /// Writer.
    H8 = "between publishing the tree and detaching the VMAs that fell out",
    /// Writer.
    H9 = "between the tree's change and the removal of pages",
    /// Writer.
    H10 = "between the removal of pages and the end of the operation",
    /// Writer.
    H11 = "between announcing a writer and waiting for readers",
    /// Writer.
    Doze = "between a look that says wait and going to sleep",
    /// Writer.
    Drained = "between the drain of the readers and the new number",
    /// Writer.
    H12 = "between the new number and letting readers in again",
    /// Reader.
    H13 = "after leaving the RCU section to walk again",
    /// Reader.
    Fill = "between deciding what a page holds and installing it",
    /// Reader.
    Prepare = "before the fault asks for the mmap lock to prepare anon_vma",
    /// Reader.
    Fallback = "before the fault takes the mmap lock",
    /// Either.
    Sleep = "before sleeping on a futex",
    /// Either.
    Woken = "after sleeping on a futex",
    /// Writer.
    Replace = "before a MAP_FIXED takes the mmap lock",
    /// Writer.
    Section = "a write section has begun",
    /// Writer.
    Freed = "after an object was given back to the slab",
}

#[cfg(feature = "races")]
mod hook {
    use super::Point;
    use crate::sync::plain::{AtomicUsize, Ordering};

    static HOOK: AtomicUsize = AtomicUsize::new(0);

    /// Has `hook` called at every schedule point, on the thread that reached
    /// it, also inside a signal handler: it must be async-signal-safe. `None`:
    /// nobody is called any more (who is inside may still be).
    pub fn set_hook(hook: Option<fn(Point)>) {
        // Release: pairs with the Acquire in `point`.
        HOOK.store(hook.map_or(0, |hook| hook as usize), Ordering::Release);
    }

    /// A schedule point.
    #[inline]
    pub fn point(point: Point) {
        let hook = HOOK.load(Ordering::Acquire);
        if hook != 0 {
            // SAFETY: only `set_hook` stores here, and it stores a `fn(Point)`.
            let hook: fn(Point) = unsafe { std::mem::transmute(hook) };
            hook(point);
        }
    }
}

#[cfg(not(feature = "races"))]
mod hook {
    use super::Point;

    /// Without the feature `races` there is nobody to call.
    pub fn set_hook(_: Option<fn(Point)>) {}

    /// A schedule point; nothing without the feature `races`. (A model's
    /// executor switches threads at every atomic, and needs no names for it.)
    #[inline(always)]
    pub fn point(_: Point) {}
}

pub use hook::{point, set_hook};
