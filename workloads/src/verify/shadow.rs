//! The generation window: what an access to a slot may see.
//!
//! A [`Slot`] is a small range of pages that one mutator changes and any
//! thread accesses. The mutator announces each change before it makes the
//! call and confirms it after the call has returned; in between, both the old
//! and the new state are right. An accessor reads the slot's word before and
//! after its access: one of the states in that [`Window`] must explain what it
//! saw. Nothing is locked, so verification does not serialise what it checks.
//!
//! # Protocol
//! `word` counts up: `2e - 1` while change `e` is under way, `2e` once it is
//! confirmed. State `e` lies in `ring[e % RING]`, written before `word` becomes
//! `2e - 1` (a fresh mapping's incarnation: before it becomes `2e`). It is a
//! sequence lock that never retries: an accessor that was overtaken by `RING`
//! changes learns so, and checks contents only.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use vmalab::addr::PageRange;
use vmalab::fault::Signal;
use vmalab::mm::Prot;

/// Changes remembered, a power of two.
const RING: u64 = 16;
/// States a window holds: the entry being overwritten next is not one of them.
const WINDOW: usize = RING as usize - 1;

/// What a slot permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum State {
    /// Nothing is mapped.
    Unmapped = 0,
    /// PROT_NONE.
    None = 1,
    /// PROT_READ.
    Read = 2,
    /// PROT_READ | PROT_WRITE.
    ReadWrite = 3,
}

impl State {
    fn from_bits(bits: u64) -> State {
        match bits & 3 {
            0 => State::Unmapped,
            1 => State::None,
            2 => State::Read,
            _ => State::ReadWrite,
        }
    }

    /// The protection of a mapped state.
    pub(crate) fn prot(self) -> Prot {
        match self {
            State::Unmapped | State::None => Prot::empty(),
            State::Read => Prot::READ,
            State::ReadWrite => Prot::READ | Prot::WRITE,
        }
    }

    /// How an access must end.
    pub(crate) fn outcome(self, write: bool) -> Result<(), Signal> {
        match self {
            State::Unmapped => Err(Signal::MapErr),
            State::None => Err(Signal::AccErr),
            State::Read if write => Err(Signal::AccErr),
            State::Read | State::ReadWrite => Ok(()),
        }
    }
}

/// One state that a slot was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) state: State,
    /// Counts the slot's mappings, from 1.
    pub(crate) generation: u64,
    /// Pages of this mapping carry this incarnation or a higher one. While a
    /// mapping is being made: its predecessor's.
    pub(crate) incarnation: u64,
}

#[derive(Default)]
struct Entry {
    /// `generation << 2 | state`.
    packed: AtomicU64,
    incarnation: AtomicU64,
}

/// A range of pages with its recent states. One thread changes it, all may look.
pub(crate) struct Slot {
    pub(crate) range: PageRange,
    word: AtomicU64,
    ring: [Entry; RING as usize],
}

impl Slot {
    /// An unmapped slot.
    pub(crate) fn new(range: PageRange) -> Slot {
        Slot { range, word: AtomicU64::new(0), ring: Default::default() }
    }

    fn entry(&self, event: u64) -> &Entry {
        &self.ring[(event % RING) as usize]
    }

    fn moment(&self, event: u64) -> Moment {
        let entry = self.entry(event);
        let packed = entry.packed.load(Ordering::Relaxed);
        Moment {
            state: State::from_bits(packed),
            generation: packed >> 2,
            incarnation: entry.incarnation.load(Ordering::Relaxed),
        }
    }

    /// The state now, for the slot's own mutator between changes.
    pub(crate) fn now(&self) -> Moment {
        let word = self.word.load(Ordering::Relaxed);
        debug_assert!(word.is_multiple_of(2), "a change is under way");
        self.moment(word / 2)
    }

    /// Announces a change to `state`; `fresh` if by a new mapping. Only the
    /// slot's own mutator calls it.
    pub(crate) fn begin(&self, state: State, fresh: bool) {
        let now = self.now();
        let event = self.word.load(Ordering::Relaxed) / 2 + 1;
        // Release: pairs with the Acquire fence in `close`. An accessor that saw
        // any of the stores below sees the word that came before them.
        fence(Ordering::Release);
        let entry = self.entry(event);
        entry.packed.store((now.generation + u64::from(fresh)) << 2 | state as u64, Ordering::Relaxed);
        entry.incarnation.store(now.incarnation, Ordering::Relaxed);
        // Release: pairs with the Acquire loads of accessors, for the entry. The
        // fence after it keeps the call that follows behind it: SeqCst, pairs
        // with those around the access.
        self.word.store(2 * event - 1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Confirms it; `incarnation` of a fresh mapping.
    pub(crate) fn end(&self, incarnation: Option<u64>) {
        let word = self.word.load(Ordering::Relaxed);
        debug_assert!(!word.is_multiple_of(2), "no change is under way");
        if let Some(incarnation) = incarnation {
            self.entry(word / 2 + 1).incarnation.store(incarnation, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `open`. Who sees it comes after the
        // call and sees the incarnation.
        self.word.store(word + 1, Ordering::Release);
    }

    /// To be called before an access.
    pub(crate) fn open(&self) -> Opened {
        // Acquire: pairs with the Release in `begin` and `end`.
        let word = self.word.load(Ordering::Acquire);
        // SeqCst: the access stays behind the load; pairs with the one in `begin`.
        fence(Ordering::SeqCst);
        Opened { word }
    }

    /// To be called after it. `None`: overtaken.
    pub(crate) fn close(&self, opened: Opened) -> Option<Window> {
        // SeqCst: the access, a store in a store buffer too, stays before the load.
        fence(Ordering::SeqCst);
        // Acquire: pairs with the Release in `begin`, for the entries.
        let word = self.word.load(Ordering::Acquire);
        let (first, last) = (opened.word / 2, word.div_ceil(2));
        if last - first >= WINDOW as u64 {
            return None;
        }
        let mut window = Window { moments: [self.moment(first); WINDOW], len: (last - first + 1) as usize };
        for (moment, event) in window.moments.iter_mut().zip(first..=last) {
            *moment = self.moment(event);
        }
        // Acquire: pairs with the Release fence in `begin`; if an entry read above
        // was being overwritten, this load sees that its change was confirmed.
        fence(Ordering::Acquire);
        let now = self.word.load(Ordering::Relaxed);
        (now < 2 * (first + RING - 1)).then_some(window)
    }

    /// The latest states for a message, oldest first. May be torn.
    pub(crate) fn history(&self) -> String {
        let word = self.word.load(Ordering::Relaxed);
        let last = word.div_ceil(2);
        let moments = (last.saturating_sub(3)..=last).map(|event| {
            let Moment { state, generation, incarnation } = self.moment(event);
            let doing = if 2 * event > word { " (under way)" } else { "" };
            format!("{state:?} mapping {generation} incarnation {incarnation}{doing}")
        });
        moments.collect::<Vec<_>>().join(", then ")
    }
}

/// The word before an access.
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    word: u64,
}

/// The states that a slot was in at some moment during an access; at least one.
pub(crate) struct Window {
    moments: [Moment; WINDOW],
    len: usize,
}

impl Window {
    /// The states, in order.
    pub(crate) fn moments(&self) -> &[Moment] {
        &self.moments[..self.len]
    }

    /// Whether some state explains `outcome`.
    pub(crate) fn explains(&self, write: bool, outcome: Result<(), Signal>) -> bool {
        self.moments().iter().any(|moment| moment.state.outcome(write) == outcome)
    }

    /// Lowest and highest generation among the states that permit the access,
    /// and the incarnation to expect at least.
    pub(crate) fn generations(&self, write: bool) -> Option<(u64, u64, u64)> {
        let mut permitting = self.moments().iter().filter(|moment| moment.state.outcome(write).is_ok());
        let first = permitting.next()?;
        let last = permitting.next_back().unwrap_or(first);
        Some((first.generation, last.generation, first.incarnation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmalab::addr::VirtAddr;

    fn slot() -> Slot {
        Slot::new(PageRange::sized(VirtAddr(0x1000), 0x1000))
    }

    fn change(slot: &Slot, state: State, incarnation: Option<u64>) {
        slot.begin(state, incarnation.is_some());
        slot.end(incarnation);
    }

    #[test]
    fn a_quiet_window_has_one_state() {
        let slot = slot();
        change(&slot, State::ReadWrite, Some(7));
        let window = slot.close(slot.open()).unwrap();
        assert_eq!(window.moments(), [Moment { state: State::ReadWrite, generation: 1, incarnation: 7 }]);
        assert!(window.explains(true, Ok(())));
        assert!(!window.explains(false, Err(Signal::MapErr)));
    }

    #[test]
    fn while_a_change_is_under_way_both_states_hold() {
        let slot = slot();
        change(&slot, State::ReadWrite, Some(7));
        slot.begin(State::Read, false);
        let window = slot.close(slot.open()).unwrap();
        assert!(window.explains(true, Ok(())) && window.explains(true, Err(Signal::AccErr)));
        slot.end(None);
        let window = slot.close(slot.open()).unwrap();
        assert!(!window.explains(true, Ok(())), "the change has returned");
        assert_eq!(slot.now().incarnation, 7, "protection changes keep the mapping");
    }

    #[test]
    fn a_replacement_never_explains_a_hole() {
        let slot = slot();
        change(&slot, State::ReadWrite, Some(7));
        let opened = slot.open();
        change(&slot, State::ReadWrite, Some(9));
        let window = slot.close(opened).unwrap();
        assert!(!window.explains(false, Err(Signal::MapErr)));
        assert_eq!(window.generations(false), Some((1, 2, 7)));
    }

    #[test]
    fn an_overtaken_window_says_so() {
        for changes in 0..3 * RING {
            let slot = slot();
            let opened = slot.open();
            for i in 0..changes {
                change(&slot, State::ReadWrite, Some(i + 1));
            }
            let window = slot.close(opened);
            assert_eq!(window.is_some(), changes < WINDOW as u64, "{changes} changes");
            if let Some(window) = window {
                assert_eq!(window.moments().len() as u64, changes + 1);
                assert_eq!(window.moments()[0].state, State::Unmapped);
            }
        }
    }

    #[test]
    fn windows_of_racing_threads_hold_consistent_states() {
        let slot = slot();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 1..200_000 {
                    let state = if i % 2 == 0 { State::ReadWrite } else { State::Read };
                    change(&slot, state, Some(i));
                }
            });
            scope.spawn(|| {
                let mut complete = 0;
                for _ in 0..200_000 {
                    let Some(window) = slot.close(slot.open()) else { continue };
                    complete += 1;
                    for pair in window.moments().windows(2) {
                        assert_eq!(pair[0].generation + 1, pair[1].generation);
                    }
                    for moment in window.moments() {
                        // An announced mapping still has its predecessor's incarnation.
                        assert!(moment.generation - moment.incarnation <= 1);
                        let even = moment.generation % 2 == 0;
                        assert!(moment.generation == 0 || even == (moment.state == State::ReadWrite));
                    }
                }
                assert!(complete > 0);
            });
        });
    }
}
