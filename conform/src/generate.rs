//! Random sequences, weighted towards edges.
//!
//! The generator does not know what is mapped: it remembers the ranges of
//! recent calls and prefers their edges, their neighbours, and ranges that
//! span several of them. Most sequences leave some calls out altogether, so that
//! others meet more often (swarm testing).

use crate::PAGE;
use crate::emulated::supports;
use crate::names::ADVICE;
use crate::op::{At, Call, Limit, Op, Place, Sequence, Setup, Slot, abs, top, win};
use crate::remote::OPS_MAX;
use crate::safe::is_safe;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

/// How often each call is made, relative to the others.
const WEIGHTS: [(Call, u32); 18] = [
    (Call::Mmap, 220),
    (Call::Munmap, 110),
    (Call::Mprotect, 180),
    (Call::Mremap, 110),
    (Call::Madvise, 120),
    (Call::Msync, 20),
    (Call::Mincore, 25),
    (Call::Mlock, 30),
    (Call::Mlock2, 20),
    (Call::Munlock, 30),
    (Call::Mlockall, 6),
    (Call::Munlockall, 8),
    (Call::Brk, 30),
    (Call::Mseal, 3),
    (Call::Fork, 4),
    (Call::Load, 80),
    (Call::Store, 140),
    (Call::SetLimit, 8),
];

/// A sequence in the crowded place is as long as so many others, and begins anew
/// as often: each process there costs the host its 65,000 mappings.
const CROWDED_ROUNDS: usize = 4;

/// A stream of sequences.
pub struct Generator {
    rng: Xoshiro256PlusPlus,
    length: usize,
    places: Vec<Place>,
    brk: bool,
}

/// What one sequence is made with.
struct Maker<'g> {
    rng: &'g mut Xoshiro256PlusPlus,
    place: Place,
    /// Ranges of recent calls, in pages: start and length.
    recent: Vec<(usize, usize)>,
    weights: Vec<(Call, u32)>,
}

impl Generator {
    /// Sequences of `length` steps at most, in `places`; with `brk`, or without.
    pub fn new(seed: u64, length: usize, places: &[Place], brk: bool) -> Generator {
        Generator { rng: Xoshiro256PlusPlus::seed_from_u64(seed), length, places: places.to_vec(), brk }
    }

    /// The next sequence.
    pub fn sequence(&mut self) -> Sequence {
        let setup = self.setup();
        let length = if self.rng.random_ratio(1, 4) { self.length / 4 } else { self.length }.max(1);
        let weights = self.weights(setup.place);
        let mut maker = Maker { rng: &mut self.rng, place: setup.place, recent: Vec::new(), weights };
        let rounds = if setup.place == Place::Crowded { CROWDED_ROUNDS.min(OPS_MAX / length) } else { 1 };
        let mut ops = Vec::with_capacity(rounds * length);
        for round in 1..=rounds {
            if setup.place == Place::Crowded {
                ops.extend(maker.crowd(round > 1));
            }
            while ops.len() < round * length {
                ops.push(maker.op());
            }
            ops.truncate(round * length);
        }
        avoid(&mut ops);
        Sequence { setup, ops }
    }

    fn setup(&mut self) -> Setup {
        let wanted = match self.rng.random_range(0..200) {
            0..12 => Place::Large,
            12..13 => Place::Crowded,
            13..29 => Place::Privileged,
            _ => Place::Small,
        };
        let place = if self.places.contains(&wanted) { wanted } else { Place::Small };
        let contents_every = *pick(&mut self.rng, &[1, 1, 4, 0]);
        Setup { place, contents_every, flags_every: if place == Place::Crowded { 0 } else { 16 } }
    }

    /// Leaves out about a quarter of the calls. What maps and what touches stays.
    fn weights(&mut self, place: Place) -> Vec<(Call, u32)> {
        let mut weights = WEIGHTS.to_vec();
        for (call, weight) in &mut weights {
            let keep = matches!(call, Call::Mmap | Call::Store) || self.rng.random_ratio(3, 4);
            let loud = self.rng.random_ratio(1, 8);
            *weight = if !keep || *call == Call::Brk && !self.brk {
                0
            } else if loud {
                *weight * 4
            } else {
                *weight
            };
            if place == Place::Crowded && *call == Call::Fork {
                *weight /= 4;
            }
            if place == Place::Privileged && matches!(call, Call::Mlock | Call::Mlock2 | Call::Munlock | Call::Mlockall)
            {
                *weight = *weight * 3 + 5;
            }
        }
        weights
    }
}

/// Changes what two steps of one sequence must not do together; see
/// [`LEFT_OUT`](crate::coverage::LEFT_OUT).
fn avoid(ops: &mut [Op]) {
    const SHARED: u32 = 1;
    const FREE: i32 = 8;
    const PAGEOUT: i32 = 21;
    const COLD: i32 = 20;
    const HALF: i64 = PAGE as i64 / 2;
    let has = |wanted: i32| ops.iter().any(|op| matches!(op, Op::Madvise { advice, .. } if *advice == wanted));
    let both = has(FREE) && has(PAGEOUT);
    let files =
        ops.iter().any(|op| matches!(op, Op::Mmap { flags, file, .. } if flags & SHARED != 0 || *file != Slot::NoFile));
    for op in ops {
        match op {
            Op::Madvise { advice, .. } if both && *advice == PAGEOUT => *advice = COLD,
            Op::Load { addr } | Op::Store { addr, .. } | Op::LoadByte { addr } | Op::StoreByte { addr, .. }
                if files && addr.offset.rem_euclid(PAGE as i64) > HALF - 8 =>
            {
                addr.offset -= HALF;
            }
            _ => {}
        }
    }
}

fn pick<'a, T>(rng: &mut impl Rng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

impl Maker<'_> {
    /// Enough VMAs to come near the limit of the crowded place. `again`: whatever
    /// is there.
    fn crowd(&mut self, again: bool) -> Vec<Op> {
        let unlimited = |what| Op::SetLimit { what, pages: 1 << 30 };
        let mut limits = if again { vec![unlimited(Limit::AddressSpace), unlimited(Limit::Memlock)] } else { vec![] };
        if again && !self.has_brk() {
            limits.push(unlimited(Limit::Data));
        }
        let whole = Op::Mmap { addr: win(0), len: 40 * PAGE, prot: 3, flags: 0x32, file: Slot::NoFile, offset: 0 };
        let cuts = self.rng.random_range(7..12);
        let cut = |i: usize| Op::Mprotect { addr: win((2 * i + 1) * PAGE), len: PAGE, prot: 1 };
        limits.into_iter().chain([whole]).chain((0..cuts).map(cut)).collect()
    }

    fn op(&mut self) -> Op {
        loop {
            let call = self.call();
            let op = self.of(call);
            if is_safe(&op, self.place) && supports(&op) {
                return op;
            }
        }
    }

    fn call(&mut self) -> Call {
        let total: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.random_range(0..total);
        for &(call, weight) in &self.weights {
            if left < weight {
                return call;
            }
            left -= weight;
        }
        unreachable!("the weights sum to the total")
    }

    fn has_brk(&self) -> bool {
        self.weights.iter().any(|&(call, weight)| call == Call::Brk && weight > 0)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    /// A page number, of the window or just after it.
    fn page(&mut self) -> usize {
        let pages = self.place.pages();
        let page = match self.rng.random_range(0..10) {
            0..6 if !self.recent.is_empty() => {
                let (start, len) = *pick(self.rng, &self.recent);
                let edge = *pick(self.rng, &[start, start, start + len, start + len, start + len / 2]);
                match self.rng.random_range(0..5) {
                    0 => edge + 1,
                    1 => edge.saturating_sub(1),
                    _ => edge,
                }
            }
            6..9 if self.place == Place::Large => 512 * self.rng.random_range(0..5) + self.rng.random_range(0..2),
            0..9 => *pick(self.rng, &[0, pages - 14, 22]) + self.rng.random_range(0..14),
            _ => self.rng.random_range(0..pages),
        };
        page.min(pages)
    }

    /// A number of pages, mostly a few.
    fn pages(&mut self) -> usize {
        match self.rng.random_range(0..20) {
            0..12 => self.rng.random_range(1..4),
            12..15 => self.rng.random_range(1..12),
            15..18 if !self.recent.is_empty() => pick(self.rng, &self.recent).1.max(1),
            18 if self.place == Place::Large => 512 * self.rng.random_range(1..3),
            18 => self.rng.random_range(1..self.place.pages() + 1),
            _ => 1,
        }
    }

    /// A range: start and length, mostly of whole pages inside the window.
    fn range(&mut self) -> (At, usize) {
        if self.chance(3) {
            return self.outside();
        }
        let window = self.place.pages();
        let (mut start, mut pages) = (self.page(), self.pages());
        if self.chance(15) && self.recent.len() > 1 {
            // From one recent range to another.
            let (a, b) = (*pick(self.rng, &self.recent), *pick(self.rng, &self.recent));
            start = a.0.min(b.0);
            pages = (a.0 + a.1).max(b.0 + b.1) - start;
        }
        if start + pages > window {
            start = window.saturating_sub(pages);
            pages = pages.min(window);
        }
        self.remember(start, pages);
        let addr = win(start * PAGE + self.misalignment());
        let len = match self.rng.random_range(0..50) {
            0 => 0,
            1 => 1,
            2 => pages * PAGE - 1,
            3 => pages * PAGE + 1,
            4 => PAGE / 2,
            _ => pages * PAGE,
        };
        (addr, len)
    }

    fn remember(&mut self, start: usize, pages: usize) {
        if self.recent.len() < 8 {
            self.recent.push((start, pages));
        } else {
            let place = self.rng.random_range(0..8);
            self.recent[place] = (start, pages);
        }
    }

    fn misalignment(&mut self) -> usize {
        if self.chance(3) { *pick(self.rng, &[1, 8, PAGE / 2, PAGE - 1]) } else { 0 }
    }

    /// Lengths and addresses that no call accepts, or that wrap.
    fn outside(&mut self) -> (At, usize) {
        let len = *pick(
            self.rng,
            &[
                0,
                1,
                PAGE,
                2 * PAGE,
                1 << 47,
                1 << 62,
                usize::MAX - PAGE,
                usize::MAX - PAGE + 1,
                usize::MAX,
                usize::MAX - 2 * PAGE + 1,
            ],
        );
        let page = self.page() * PAGE;
        let page_size = PAGE as i64;
        let addr = *pick(
            self.rng,
            &[
                win(page),
                win(page + 1),
                top(-page_size),
                top(0),
                top(1),
                top(page_size),
                abs(0),
                abs(1),
                abs(usize::MAX),
                abs(usize::MAX - PAGE + 1),
                abs(usize::MAX - 2 * PAGE + 1),
                abs(1 << 62),
            ],
        );
        (addr, len)
    }

    fn prot(&mut self) -> u32 {
        match self.rng.random_range(0..40) {
            0 => *pick(self.rng, &[8, 0x10, 0x80, 0x8000_0000, 0xb]),
            1 => *pick(self.rng, &[0x0100_0001, 0x0200_0003, 0x0300_0001]),
            2..5 => *pick(self.rng, &[2, 4, 5, 7, 6]),
            5..12 => 0,
            12..20 => 1,
            _ => 3,
        }
    }

    fn map_flags(&mut self) -> u32 {
        const PRIVATE: u32 = 2;
        const ANONYMOUS: u32 = 0x20;
        let kind = match self.rng.random_range(0..40) {
            0 => *pick(self.rng, &[0, 3, 8, 4, 15]),
            1..9 => 1,
            _ => PRIVATE,
        };
        let mut flags = kind | if self.chance(85) { ANONYMOUS } else { 0 };
        let extra = [
            (45, 0x10),
            (8, 0x10_0000),
            (10, 0x4000),
            (12, 0x8000),
            (3, 0x1_0000),
            (4, 0x2_0000),
            (4, 0x2000),
            (2, 0x100),
            (1, 0x40),
            (1, 0x8_0000),
            (1, 0x800),
            (1, 0x1000),
            (1, 0x200),
            (1, 0x800_0000),
        ];
        for (percent, flag) in extra {
            if self.chance(percent) {
                flags |= flag;
            }
        }
        flags
    }

    fn mmap(&mut self) -> Op {
        let (mut addr, len) = self.range();
        let flags = self.map_flags();
        if flags & 0x10_0010 == 0 && self.chance(60) {
            addr = if self.chance(10) { abs(*pick(self.rng, &[1, PAGE - 1])) } else { abs(0) };
        }
        let file = if flags & 0x20 != 0 && self.chance(95) { Slot::NoFile } else { *pick(self.rng, &Slot::ALL) };
        let offset = match self.rng.random_range(0..20) {
            _ if file == Slot::NoFile && self.chance(95) => 0,
            0 => *pick(self.rng, &[1, PAGE as u64 / 2, 1 << 62, u64::MAX - 0xfff]),
            _ => self.rng.random_range(0..7) * PAGE as u64,
        };
        Op::Mmap { addr, len, prot: self.prot(), flags, file, offset }
    }

    fn mremap(&mut self) -> Op {
        let (addr, old_len) = self.range();
        let new_len = match self.rng.random_range(0..20) {
            0 => *pick(self.rng, &[0, 1, PAGE - 1, 1 << 47, usize::MAX, 1 << 40]),
            1..8 => old_len,
            8..12 => old_len.wrapping_add(self.pages() * PAGE),
            12..16 => old_len.saturating_sub(PAGE),
            _ => self.pages() * PAGE,
        };
        let old_len = if self.chance(4) { 0 } else { old_len };
        let flags = match self.rng.random_range(0..30) {
            0 => *pick(self.rng, &[2, 4, 6, 8, 9, 0x8000_0001]),
            1..9 => 0,
            9..17 => 1,
            17..26 => 3,
            26..28 => 5,
            _ => 7,
        };
        let new_addr = if self.chance(3) { self.outside().0 } else { win(self.page() * PAGE + self.misalignment()) };
        Op::Mremap { addr, old_len, new_len, flags, new_addr }
    }

    fn of(&mut self, call: Call) -> Op {
        match call {
            Call::Mmap => self.mmap(),
            Call::Mremap => self.mremap(),
            Call::Mlockall => Op::Mlockall { flags: *pick(self.rng, &[0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]) },
            Call::Munlockall => Op::Munlockall,
            Call::Fork => Op::Fork,
            Call::Brk => Op::Brk { to: self.break_place() },
            // RLIMIT_DATA also bounds the heap by itself, where what the host's
            // child has beside the window does not count.
            Call::SetLimit => Op::SetLimit {
                what: *pick(
                    self.rng,
                    &[Limit::AddressSpace, Limit::Memlock, Limit::Data][..if self.has_brk() { 2 } else { 3 }],
                ),
                pages: *pick(self.rng, &[0, 1, 4, 16, 40, 64, 1 << 30]),
            },
            Call::Load | Call::Store => self.access(call),
            _ => {
                let (addr, len) = self.range();
                self.ranged(call, addr, len)
            }
        }
    }

    /// Calls on a range.
    fn ranged(&mut self, call: Call, addr: At, len: usize) -> Op {
        match call {
            Call::Munmap => Op::Munmap { addr, len },
            Call::Mprotect => Op::Mprotect { addr, len, prot: self.prot() },
            Call::Madvise => Op::Madvise { addr, len, advice: self.advice() },
            Call::Msync => Op::Msync { addr, len, flags: *pick(self.rng, &[0, 1, 2, 4, 6, 5, 8, 3]) },
            Call::Mincore => Op::Mincore { addr, len },
            Call::Mlock => Op::Mlock { addr, len },
            Call::Mlock2 => Op::Mlock2 { addr, len, flags: *pick(self.rng, &[0, 1, 1, 1, 2]) },
            Call::Munlock => Op::Munlock { addr, len },
            Call::Mseal => Op::Mseal { addr, len, flags: if self.chance(5) { 1 } else { 0 } },
            other => unreachable!("{other:?} is not a call on a range"),
        }
    }

    fn advice(&mut self) -> i32 {
        if self.chance(3) { *pick(self.rng, &[-1, 5, 26, 104]) } else { pick(self.rng, ADVICE).0 as i32 }
    }

    fn break_place(&mut self) -> At {
        match self.rng.random_range(0..20) {
            0 => *pick(self.rng, &[abs(0), abs(1), top(1), top(4096)]),
            1 => win(self.place.brk_start() - 1),
            2..6 => win(self.page() * PAGE),
            _ => win(self.place.brk_start() + self.rng.random_range(0..10) * PAGE + self.misalignment()),
        }
    }

    fn access(&mut self, call: Call) -> Op {
        let page = self.page().min(self.place.pages() - 1) * PAGE;
        let store = call == Call::Store;
        match self.rng.random_range(0..20) {
            0 if store => Op::StoreByte { addr: win(page + 1), value: self.rng.random() },
            0 => Op::LoadByte { addr: win(page + PAGE - 1) },
            // Over the edge of the page.
            1 if store => Op::Store { addr: win(page + PAGE - 4), value: self.value() },
            1 => Op::Load { addr: win(page + PAGE - 4) },
            // The second word that is looked at.
            2..6 if store => Op::Store { addr: win(page + crate::observe::SECOND_WORD), value: self.value() },
            _ if store => Op::Store { addr: win(page), value: self.value() },
            _ => Op::Load { addr: win(page) },
        }
    }

    fn value(&mut self) -> u64 {
        u64::from(self.rng.random_range(1..0x1_0000_u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_sequences() {
        let make = || {
            let mut generator = Generator::new(7, 60, &Place::ALL, true);
            (0..20).map(|_| generator.sequence()).collect::<Vec<_>>()
        };
        assert_eq!(make(), make());
        assert!(make().iter().all(|s| s.ops.iter().all(|op| is_safe(op, s.setup.place))));
    }
}
