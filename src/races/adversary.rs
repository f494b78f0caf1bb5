//! The adversary: makes the rare common, so that a run of a few seconds meets
//! what a machine otherwise meets in a month. Only with the feature `races`.
//!
//! While it is on ([`start`], [`stop`]):
//!
//! - **Reuse is forced.** Slabs hand objects out from one process-wide stack
//!   ([`Stack`]): the one just freed, by whomever and in whatever address
//!   space, is the next one that anybody gets.
//! - **Free objects are poisoned** (`src/vma/poison.rs`): every field but the
//!   lock holds a lie, another one each time.
//! - **Threads are delayed at schedule points**, by a stream of their own that
//!   the seed fixes: mostly not at all, sometimes for a few spins, sometimes by
//!   giving the processor away, rarely for up to 100 us, or until the other
//!   side has taken a step or some: a reader lets writers pass, a writer
//!   readers. In each *episode* ([`EPISODE`]) a thread has some points where it
//!   lingers, and a reader that has let writers pass lingers at the points that
//!   follow: what it knows is out of date now, and many a race needs a reader
//!   held at two places on its way.
//!
//! The hook runs wherever a point is, signal handlers included: it takes no
//! lock, allocates nothing, and its thread-locals need no initialisation and
//! have no destructor.

use super::{Oracle, Point, set_hook, violation};
use crate::sync::CachePadded;
use crate::sync::plain::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::cell::Cell;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// Whether it is on. Relaxed everywhere: objects and threads may meet both
/// answers, and each is right.
static ON: AtomicBool = AtomicBool::new(false);
static SEED: AtomicU64 = AtomicU64::new(0);
/// Numbers for threads that nobody has numbered.
static UNNUMBERED: AtomicU64 = AtomicU64::new(0);
static SHARDS: [CachePadded<Shard>; SHARDS_LEN] = [const { CachePadded::new(Shard::new()) }; SHARDS_LEN];

const POINTS: usize = Point::ALL.len();
const SHARDS_LEN: usize = 16;
/// First number of a thread that nobody has numbered.
const FIRST_UNNUMBERED: u64 = 1 << 16;

thread_local! {
    /// State of this thread's stream; 0 before the first draw.
    static STREAM: Cell<u64> = const { Cell::new(0) };
    /// Points left in this episode, and those that it lingers at, a bit each.
    static EPISODE_NOW: Cell<(u32, u64)> = const { Cell::new((0, 0)) };
    /// Points left of those after writers were let pass.
    static STALE: Cell<u8> = const { Cell::new(0) };
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Points that a thread passes before it picks others to linger at.
pub const EPISODE: u32 = 512;

/// A walk may be one under the mmap lock, or lead there, and a workload that
/// touches what is not mapped does little else: nobody lingers there.
const IN_PASSING: u64 = 1 << Point::Walk as u32 | 1 << Point::Fallback as u32;

/// Points at which a reader lingers after it has let writers pass.
const STALE_POINTS: u8 = 8;

/// The points to linger at in one episode: none in half of them, else a
/// quarter of all, so that every pair comes up.
fn episode(draw: u64) -> u64 {
    if draw.is_multiple_of(2) { 0 } else { (draw >> 1) & mix(draw) & !IN_PASSING }
}

const _: () = assert!(POINTS < u64::BITS as usize);

/// Switches the adversary on. Every thread's stream follows from `seed` and the
/// number that it gives to [`enter_thread`]. Counts begin anew.
pub fn start(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
    UNNUMBERED.store(0, Ordering::Relaxed);
    SHARDS.iter().for_each(|shard| shard.reset());
    STREAM.set(0);
    ON.store(true, Ordering::Relaxed);
    set_hook(Some(hook));
}

/// Switches it off. Threads that are inside the hook leave it soon.
pub fn stop() {
    set_hook(None);
    ON.store(false, Ordering::Relaxed);
}

/// Whether it is on.
#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Numbers the calling thread, so that its stream is the same in every run.
/// Threads that do not call it get a number when they first reach a point.
pub fn enter_thread(number: u64) {
    let seed = SEED.load(Ordering::Relaxed);
    SHARD.set(number as usize % SHARDS_LEN);
    EPISODE_NOW.set((0, 0));
    STREAM.set(mix(seed ^ number.wrapping_mul(0xa076_1d64_78bd_642f)) | 1);
}

/// The next number of this thread's stream. Async-signal-safe.
pub fn draw() -> u64 {
    if STREAM.get() == 0 {
        enter_thread(FIRST_UNNUMBERED + UNNUMBERED.fetch_add(1, Ordering::Relaxed));
    }
    // SplitMix64.
    let state = STREAM.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STREAM.set(if state == 0 { 1 } else { state });
    mix(state)
}

/// SplitMix64's finaliser.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What is done at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delay {
    None,
    Spin(u32),
    Yield,
    SleepNs(u64),
    /// Until the other side has taken so many steps, within [`AWAIT_MAX`].
    Await(u64),
}

/// Looks at most while the other side is waited for, by side: it may be waiting
/// for us, or for a processor, which it gets every so many looks. A reader
/// waits some 100 us; a writer less, since there are fewer of them and most
/// readers wait for its mmap lock.
const AWAIT_MAX: [u32; 2] = [4096, 256];
const AWAIT_YIELD: u32 = 512;

/// Steps of readers and of writers, for [`Delay::Await`].
static STEPS: [CachePadded<AtomicU64>; 2] = [const { CachePadded::new(AtomicU64::new(0)) }; 2];

/// Whose point it is: 0 a reader's, 1 a writer's.
fn side(point: Point) -> usize {
    use Point::*;
    match point {
        Walk | Number | H1 | H2 | H3 | Numbers | Attached | Checks | H4 | H5 | H13 | Fill | Prepare | Fallback
        | Sleep | Woken => 0,
        H6 | Commit | H7 | H8 | H9 | H10 | H11 | Doze | Drained | H12 | Replace | Section | Freed => 1,
    }
}

/// How much a thread is given to delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Brisk,
    /// The point is one of the episode's.
    Lingering,
    /// Writers have just been let pass.
    Stale,
}

/// Decides by one draw.
fn decide(draw: u64, mood: Mood) -> Delay {
    let (dice, size) = (draw % 256, draw >> 32);
    let (nothing, spin, give_way, wait) = match mood {
        Mood::Brisk => (224, 248, 252, 255),
        Mood::Lingering => (128, 184, 200, 248),
        Mood::Stale => (96, 128, 144, 244),
    };
    match dice {
        n if n < nothing => Delay::None,
        n if n < spin => Delay::Spin(1 + size as u32 % 64),
        n if n < give_way => Delay::Yield,
        n if n < wait => Delay::Await(1 + size % 32),
        _ => Delay::SleepNs(1_000 + size % 99_001),
    }
}

/// Called at every schedule point.
fn hook(point: Point) {
    let shard = shard();
    shard.points[point as usize].fetch_add(1, Ordering::Relaxed);
    // Around a futex the thread is delayed enough, and may be asleep on it.
    if matches!(point, Point::Sleep | Point::Woken) {
        return;
    }
    let side = side(point);
    STEPS[side].fetch_add(1, Ordering::Relaxed);
    let draw = draw();
    let (left, mut lingering) = EPISODE_NOW.get();
    if left == 0 {
        lingering = episode(mix(draw));
    }
    EPISODE_NOW.set((left.checked_sub(1).unwrap_or(EPISODE), lingering));
    let (bit, stale) = (1u64 << point as u32, STALE.get());
    STALE.set(stale.saturating_sub(1));
    let mood = match stale {
        0 if lingering & bit != 0 => Mood::Lingering,
        0 => Mood::Brisk,
        _ if IN_PASSING & bit != 0 => Mood::Brisk,
        _ => Mood::Stale,
    };
    match decide(draw, mood) {
        Delay::None => {}
        Delay::Await(_) if IN_PASSING & bit != 0 => {}
        Delay::Spin(n) => {
            shard.spins.fetch_add(1, Ordering::Relaxed);
            (0..n).for_each(|_| std::hint::spin_loop());
        }
        Delay::Yield => {
            shard.yields.fetch_add(1, Ordering::Relaxed);
            // SAFETY: touches nothing; it cannot fail, so errno stays.
            unsafe { libc::sched_yield() };
        }
        Delay::SleepNs(ns) => {
            shard.sleeps.fetch_add(1, Ordering::Relaxed);
            sleep(ns);
        }
        Delay::Await(steps) => {
            shard.awaits.fetch_add(1, Ordering::Relaxed);
            let others = &STEPS[1 - side];
            let until = others.load(Ordering::Relaxed) + steps;
            for look in 1..=AWAIT_MAX[side] {
                if others.load(Ordering::Relaxed) >= until {
                    STALE.set([STALE_POINTS, 0][side]);
                    break;
                }
                if look.is_multiple_of(AWAIT_YIELD) {
                    // SAFETY: as above.
                    unsafe { libc::sched_yield() };
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

fn sleep(ns: u64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: ns as libc::c_long };
    // SAFETY: reads `time` only; async-signal-safe. errno is saved and restored
    // because a signal handler may be the caller. A shorter sleep is as good.
    unsafe {
        let errno = *libc::__errno_location();
        libc::nanosleep(&time, ptr::null_mut());
        *libc::__errno_location() = errno;
    }
}

/// Counters of the threads whose number falls on it.
struct Shard {
    points: [AtomicU64; POINTS],
    spins: AtomicU64,
    yields: AtomicU64,
    sleeps: AtomicU64,
    awaits: AtomicU64,
    reused: AtomicU64,
    reused_other_mm: AtomicU64,
    poisoned: AtomicU64,
}

impl Shard {
    const fn new() -> Shard {
        Shard {
            points: [const { AtomicU64::new(0) }; POINTS],
            spins: AtomicU64::new(0),
            yields: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            awaits: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            reused_other_mm: AtomicU64::new(0),
            poisoned: AtomicU64::new(0),
        }
    }

    fn reset(&self) {
        let Shard { points, spins, yields, sleeps, awaits, reused, reused_other_mm, poisoned } = self;
        points
            .iter()
            .chain([spins, yields, sleeps, awaits, reused, reused_other_mm, poisoned])
            .for_each(|count| count.store(0, Ordering::Relaxed));
    }
}

fn shard() -> &'static Shard {
    &SHARDS[SHARD.get()]
}

/// What the adversary has done since [`start`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Schedule points reached, in the order of [`Point::ALL`].
    pub points: [u64; POINTS],
    /// Delays of a few spins.
    pub spins: u64,
    /// Delays by giving the processor away.
    pub yields: u64,
    /// Delays by sleeping.
    pub sleeps: u64,
    /// Delays until the other side had taken some steps.
    pub awaits: u64,
    /// VMA objects handed out that had been a VMA before.
    pub reused: u64,
    /// ... in another address space.
    pub reused_other_mm: u64,
    /// VMA objects poisoned when they were freed.
    pub poisoned: u64,
}

/// The counts so far.
pub fn counts() -> Counts {
    let sum = |of: &dyn Fn(&Shard) -> &AtomicU64| SHARDS.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum();
    Counts {
        points: std::array::from_fn(|i| sum(&|shard| &shard.points[i])),
        spins: sum(&|shard| &shard.spins),
        yields: sum(&|shard| &shard.yields),
        sleeps: sum(&|shard| &shard.sleeps),
        awaits: sum(&|shard| &shard.awaits),
        reused: sum(&|shard| &shard.reused),
        reused_other_mm: sum(&|shard| &shard.reused_other_mm),
        poisoned: sum(&|shard| &shard.poisoned),
    }
}

/// Counts a VMA object that has been one before.
pub(crate) fn count_reuse(other_mm: bool) {
    if is_on() {
        shard().reused.fetch_add(1, Ordering::Relaxed);
        shard().reused_other_mm.fetch_add(u64::from(other_mm), Ordering::Relaxed);
    }
}

/// Counts a poisoned VMA object.
pub(crate) fn count_poison() {
    shard().poisoned.fetch_add(1, Ordering::Relaxed);
}

/// Free objects of a slab, last in first out, for every thread of the process.
pub(crate) struct Stack<T> {
    pile: Mutex<Pile<T>>,
    /// The address space that the object freed last belonged to.
    last_mm: AtomicPtr<()>,
}

struct Pile<T> {
    len: usize,
    objects: [*mut T; Stack::<()>::MAX],
}

// SAFETY: pointers to free objects, which the slab hands from thread to thread
// (see `Slab`'s own bound).
unsafe impl<T: Send + Sync> Send for Pile<T> {}

/// What a push leaves for the slab to take: the older half of a full stack.
pub(crate) type Overflow<T> = [*mut T; Stack::<()>::MAX / 2];

impl<T> Stack<T> {
    /// Free objects kept at most; more go to the slab's depot, so that slab
    /// pages still fall free.
    pub(crate) const MAX: usize = 64;

    pub(crate) const fn new() -> Stack<T> {
        Stack {
            pile: Mutex::new(Pile { len: 0, objects: [ptr::null_mut(); Stack::<()>::MAX] }),
            last_mm: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The object freed last.
    pub(crate) fn pop(&self) -> Option<ptr::NonNull<T>> {
        let mut pile = self.pile.lock().unwrap_or_else(PoisonError::into_inner);
        pile.len = pile.len.checked_sub(1)?;
        ptr::NonNull::new(pile.objects[pile.len])
    }

    /// Puts a free object on top; returns the older half when it was full.
    pub(crate) fn push(&self, object: ptr::NonNull<T>) -> Option<Overflow<T>> {
        let mut pile = self.pile.lock().unwrap_or_else(PoisonError::into_inner);
        let len = pile.len;
        if pile.objects[..len].contains(&object.as_ptr()) {
            violation(Oracle::O4, "an object was freed twice");
        }
        let mut overflow = None;
        if len == Self::MAX {
            let mut older = [ptr::null_mut(); Stack::<()>::MAX / 2];
            older.copy_from_slice(&pile.objects[..Self::MAX / 2]);
            pile.objects.copy_within(Self::MAX / 2.., 0);
            pile.len = Self::MAX / 2;
            overflow = Some(older);
        }
        let len = pile.len;
        pile.objects[len] = object.as_ptr();
        pile.len += 1;
        overflow
    }

    /// Notes the address space of the object that is being freed; returns that
    /// of the one freed before, dead or alive.
    pub(crate) fn swap_mm(&self, mm: *mut ()) -> *mut () {
        self.last_mm.swap(mm, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(n: usize) -> ptr::NonNull<u64> {
        ptr::NonNull::without_provenance(n.try_into().unwrap())
    }

    #[test]
    fn the_last_in_is_the_first_out_for_whatever_thread() {
        static STACK: Stack<u64> = Stack::new();
        assert_eq!(STACK.pop(), None);
        std::thread::scope(|scope| {
            scope.spawn(|| [8, 16, 24].map(|n| assert_eq!(STACK.push(object(n)), None)));
        });
        assert_eq!(STACK.pop(), Some(object(24)));
        STACK.push(object(32));
        let popped = std::thread::scope(|scope| scope.spawn(|| STACK.pop().map(|o| o.addr().get())).join().unwrap());
        assert_eq!(popped, Some(32));
        assert_eq!([STACK.pop(), STACK.pop(), STACK.pop()], [Some(object(16)), Some(object(8)), None]);
    }

    #[test]
    fn a_full_stack_gives_its_older_half_away() {
        let stack = Stack::<u64>::new();
        let max = Stack::<u64>::MAX;
        for n in 1..=max {
            assert_eq!(stack.push(object(8 * n)), None);
        }
        let older = stack.push(object(8 * (max + 1))).unwrap();
        assert_eq!(older.map(|o| o.addr()), std::array::from_fn(|i| 8 * (i + 1)));
        let rest: Vec<_> = std::iter::from_fn(|| stack.pop()).map(|o| o.addr().get() / 8).collect();
        assert_eq!(rest, (max / 2 + 1..=max + 1).rev().collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "O4: an object was freed twice")]
    fn a_second_free_is_a_violation() {
        let stack = Stack::<u64>::new();
        stack.push(object(8));
        stack.push(object(16));
        stack.push(object(8));
    }

    #[test]
    fn a_seed_and_a_number_make_the_stream() {
        let stream = |number| {
            std::thread::spawn(move || {
                enter_thread(number);
                [draw(), draw(), draw()]
            })
            .join()
            .unwrap()
        };
        assert_eq!(stream(3), stream(3));
        assert_ne!(stream(3), stream(4));
    }

    #[test]
    fn episodes_linger_anywhere_but_in_passing() {
        let sets: Vec<u64> = (0..10_000).map(|n| episode(mix(n))).collect();
        let idle = sets.iter().filter(|&&set| set == 0).count();
        assert!((4_500..5_500).contains(&idle), "{idle}");
        for &point in Point::ALL {
            let often = sets.iter().filter(|&&set| set & 1u64 << point as u32 != 0).count();
            let passing = matches!(point, Point::Walk | Point::Fallback);
            assert_eq!(often == 0, passing, "{point:?}: {often}");
        }
    }

    #[test]
    fn delays_are_rare_short_and_of_every_kind() {
        enter_thread(1);
        for mood in [Mood::Brisk, Mood::Lingering, Mood::Stale] {
            let mut seen = [0; 5];
            for _ in 0..100_000 {
                let kind = match decide(draw(), mood) {
                    Delay::None => 0,
                    Delay::Spin(n) => {
                        assert!((1..=64).contains(&n));
                        1
                    }
                    Delay::Yield => 2,
                    Delay::SleepNs(ns) => {
                        assert!((1_000..=100_000).contains(&ns));
                        3
                    }
                    Delay::Await(steps) => {
                        assert!((1..=32).contains(&steps));
                        4
                    }
                };
                seen[kind] += 1;
            }
            assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
            assert!(mood != Mood::Brisk || seen[0] > 80_000 && seen[3] < 1_000, "{seen:?}");
        }
    }
}
