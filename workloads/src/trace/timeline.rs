//! The timeline: every trace point of every thread of a run, in a ring per
//! thread that keeps the latest. [`Timeline::write_chrome`] tells it as a
//! Chrome trace, which Perfetto opens.

use super::{chrome, clock};
use std::cell::Cell;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use vmalab::trace::Event;

/// Events kept of each thread unless something else is asked for.
pub const TIMELINE_EVENTS: usize = 1 << 17;

/// One trace point, as it was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Nanoseconds since the timeline began.
    pub(super) ns: u64,
    pub(super) event: Event,
    pub(super) a: u64,
    pub(super) b: u64,
}

/// A thread's events, the oldest overwritten by the newest. Written by its
/// thread alone, in signal handlers too; read when the thread is done.
struct Ring {
    /// See `record`. As many as a power of two.
    entries: Box<[[AtomicU64; 2]]>,
    /// Entries ever written.
    written: AtomicU64,
    track: Mutex<Track>,
}

/// Whose events they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    /// Number of the thread.
    pub(super) tid: i32,
    pub(super) name: String,
}

thread_local! {
    /// Const-initialised and without destructor: async-signal-safe.
    static RING: Cell<Option<&'static Ring>> = const { Cell::new(None) };
}

/// A timeline is being recorded.
static ON: AtomicBool = AtomicBool::new(false);

static RINGS: Mutex<Rings> = Mutex::new(Rings { events: 0, began: 0, joined: Vec::new(), free: Vec::new() });

struct Rings {
    /// Events that each ring keeps.
    events: usize,
    /// Clock reading at the beginning.
    began: u64,
    joined: Vec<&'static Ring>,
    /// Of earlier timelines, to be used again: they live for ever, so that a
    /// thread that a run has given up can do no harm.
    free: Vec<&'static Ring>,
}

fn rings() -> std::sync::MutexGuard<'static, Rings> {
    RINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that begin from now on are recorded, the last `events` of each
/// (rounded up to a power of two).
pub(crate) fn start(events: usize) {
    let mut rings = rings();
    let events = events.max(1).next_power_of_two();
    rings.events = events;
    rings.began = clock().raw();
    rings.free.retain(|ring| ring.entries.len() == events);
    ON.store(true, Ordering::Relaxed);
}

/// Whether a timeline is being recorded.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Gives the calling thread a ring, if a timeline is being recorded. Under
/// `name`, or else the thread's own. Not async-signal-safe.
pub(crate) fn join(name: Option<String>) {
    if !is_on() {
        return;
    }
    let tid = nix::unistd::gettid().as_raw();
    let name =
        name.or_else(|| Some(std::thread::current().name()?.to_owned())).unwrap_or_else(|| format!("thread {tid}"));
    let mut rings = rings();
    let events = rings.events;
    let ring = rings.free.pop().unwrap_or_else(|| {
        let entries = (0..events).map(|_| Default::default()).collect();
        Box::leak(Box::new(Ring { entries, written: AtomicU64::new(0), track: Mutex::default() }))
    });
    // Relaxed: the thread itself goes on with it.
    ring.written.store(0, Ordering::Relaxed);
    *ring.track.lock().unwrap_or_else(PoisonError::into_inner) = Track { tid, name };
    rings.joined.push(ring);
    RING.set(Some(ring));
}

/// The calling thread is recorded no more.
pub(crate) fn leave() {
    RING.set(None);
}

/// Bits of the first word that tell the event; the clock reading has the others.
const EVENT_BITS: u32 = 8;
/// Bits of the second word that hold the event's first number, an address; its
/// second one has the others, or as much of it as they hold. Two words, as it
/// is the cache lines written that a timeline costs.
const ADDRESS_BITS: u32 = 48;

/// The first number's bits.
const ADDRESS: u64 = (1 << ADDRESS_BITS) - 1;

/// Writes to the calling thread's ring. Async-signal-safe.
#[inline]
pub(super) fn record(event: Event, a: u64, b: u64, now: u64) {
    let Some(ring) = RING.get() else { return };
    // Relaxed, here and below: read when the thread is done and joined, or by a
    // reader that takes what it gets. The number is raised first, so that a
    // signal handler in the middle writes elsewhere.
    let at = ring.written.load(Ordering::Relaxed);
    ring.written.store(at + 1, Ordering::Relaxed);
    let entry = ring.entry(at);
    entry[0].store(now << EVENT_BITS | event as u64, Ordering::Relaxed);
    let b = b.min(u64::MAX >> ADDRESS_BITS);
    entry[1].store(b << ADDRESS_BITS | (a & ADDRESS), Ordering::Relaxed);
}

/// What was recorded. Its events are those that the rings still held.
pub struct Timeline {
    threads: Vec<(Track, Vec<Entry>)>,
    dropped: u64,
}

impl Timeline {
    /// Ends the recording and takes what there is.
    pub(crate) fn take() -> Timeline {
        ON.store(false, Ordering::Relaxed);
        let mut rings = rings();
        let began = rings.began << EVENT_BITS >> EVENT_BITS;
        let joined = std::mem::take(&mut rings.joined);
        let mut timeline = Timeline { threads: Vec::new(), dropped: 0 };
        for ring in &joined {
            let (written, room) = (ring.written.load(Ordering::Relaxed), ring.entries.len() as u64);
            let kept = written.min(room);
            timeline.dropped += written - kept;
            let entries = (written - kept..written).filter_map(|at| ring.read(at, began)).collect();
            timeline.threads.push((ring.track.lock().unwrap_or_else(PoisonError::into_inner).clone(), entries));
        }
        rings.free.extend(joined);
        timeline
    }

    /// Events in it.
    pub fn events(&self) -> usize {
        self.threads.iter().map(|(_, entries)| entries.len()).sum()
    }

    /// Threads in it.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Older events for which the rings had no room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes it in Chrome's trace event format (JSON), for Perfetto
    /// (ui.perfetto.dev) and chrome://tracing.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_chrome(&self, out: &mut dyn Write) -> io::Result<()> {
        chrome::write(&self.threads, self.dropped, out)
    }

    #[cfg(test)]
    pub(super) fn of(threads: Vec<(Track, Vec<Entry>)>) -> Timeline {
        Timeline { threads, dropped: 0 }
    }
}

impl Ring {
    /// The place of the `at`th entry.
    #[inline]
    fn entry(&self, at: u64) -> &[AtomicU64; 2] {
        &self.entries[at as usize & (self.entries.len() - 1)]
    }

    fn read(&self, at: u64, began: u64) -> Option<Entry> {
        let [first, second] = self.entry(at).each_ref().map(|word| word.load(Ordering::Relaxed));
        let event = *Event::ALL.get((first & ((1 << EVENT_BITS) - 1)) as usize)?;
        let ns = clock().delta_as_nanos(began, first >> EVENT_BITS);
        Some(Entry { ns, event, a: second & ADDRESS, b: second >> ADDRESS_BITS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_latest_and_counts_the_others() {
        let _turn = crate::run::one_at_a_time();
        start(8);
        std::thread::spawn(|| {
            join(Some("writer".to_owned()));
            for n in 0..20 {
                record(Event::Lookup, n, n + 1, clock().raw());
            }
        })
        .join()
        .unwrap();
        let timeline = Timeline::take();
        assert_eq!((timeline.threads(), timeline.events(), timeline.dropped()), (1, 8, 12));
        let (track, entries) = &timeline.threads[0];
        assert_eq!(track.name, "writer");
        assert_eq!(
            entries.iter().map(|entry| (entry.a, entry.b)).collect::<Vec<_>>(),
            (12..20).map(|n| (n, n + 1)).collect::<Vec<_>>()
        );
        assert!(entries.is_sorted_by_key(|entry| entry.ns));
    }
}
