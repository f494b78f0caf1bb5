//! `maps-reader`: mutators split, shrink and move mappings back and forth while
//! fault threads list the mappings and look up single addresses: monitoring
//! tools reading `/proc/PID/maps` of a busy process. After the kernel's
//! selftest `proc-maps-race`. With `--verify` a listing must show each row of
//! mappings before an operation or after it, nothing between: no gap, nothing
//! twice, no mapping with half of a change.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::Oracle;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::mm::{MapFlags, MapsEntry, Prot, RemapFlags};

/// Mappings of a row, of three pages each, which differ from their neighbours.
const ROW: usize = 16;
const EACH: usize = 3 * PAGE_SIZE;
/// A row, a gap, and the place to which one mapping of it goes and comes back.
const BYTES: usize = (ROW + 1) * EACH + PAGE_SIZE;

pub(super) struct MapsReader {
    /// The row of each mutator, with its address space.
    rows: Vec<(usize, PageRange)>,
}

/// The protection of mapping `n` of a row at rest.
fn prot_of(n: usize) -> Prot {
    if n.is_multiple_of(2) { RW } else { Prot::READ }
}

impl MapsReader {
    /// Judges what a listing shows of one row.
    fn check<T: Target>(&self, ctx: &Ctx<T>, mm: usize, row: PageRange, entries: &[MapsEntry]) -> Flow {
        let fail = |at: VirtAddr, what: String| Err(ctx.violation(Oracle::Outcome, mm, at, what));
        ctx.checked();
        let of_row: Vec<&MapsEntry> = entries.iter().filter(|entry| entry.range.overlaps(row)).collect();
        let mut at = row.start();
        let mut absent = 0;
        for n in 0..ROW {
            let whole = PageRange::sized(row.start() + n * EACH, EACH);
            let parts: Vec<&&MapsEntry> = of_row.iter().filter(|entry| entry.range.overlaps(whole)).collect();
            // Whole; or split after its first page; or cut there; or away.
            let first = PageRange::sized(whole.start(), PAGE_SIZE);
            let rest = PageRange::new(first.end(), whole.end());
            let other = if prot_of(n) == RW { Prot::READ } else { RW };
            let fits = match parts.as_slice() {
                [] => true,
                [one] => one.range == whole && one.prot == prot_of(n) || one.range == first && one.prot == prot_of(n),
                [a, b] => a.range == first && b.range == rest && a.prot == prot_of(n) && b.prot == other | Prot::EXEC,
                _ => false,
            };
            absent += usize::from(parts.is_empty());
            if !fits {
                let shown: Vec<String> = parts.iter().map(|part| part.to_string()).collect();
                return fail(at, format!("mapping {n} of the row is shown as [{}]", shown.join(", ")));
            }
            at = whole.end();
        }
        // One operation at a time: at most one mapping is away.
        if absent > 1 { fail(row.start(), format!("{absent} mappings of the row are missing at once")) } else { Ok(()) }
    }

    /// One of the three changes, done and undone.
    fn change<T: Target>(&self, ctx: &mut Ctx<T>, row: PageRange) -> Flow {
        let n = ctx.rng.below(ROW);
        let start = row.start() + n * EACH;
        let rest = start + PAGE_SIZE;
        match ctx.rng.below(3) {
            0 => {
                let other = if prot_of(n) == RW { Prot::READ } else { RW };
                ctx.mprotect(ctx.mm, rest, EACH - PAGE_SIZE, other | Prot::EXEC)?;
                ctx.mprotect(ctx.mm, rest, EACH - PAGE_SIZE, prot_of(n))
            }
            1 => {
                ctx.mremap(ctx.mm, start, EACH, PAGE_SIZE, RemapFlags::empty(), VirtAddr(0))?;
                ctx.mremap(ctx.mm, start, PAGE_SIZE, EACH, RemapFlags::empty(), VirtAddr(0))
            }
            _ => {
                let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
                let away = row.end() + PAGE_SIZE;
                ctx.mremap(ctx.mm, start, EACH, EACH, flags, away)?;
                ctx.mremap(ctx.mm, away, EACH, EACH, flags, start)
            }
        }
    }
}

/// Stores to a mapping before anybody splits it, so that it has its `anon_vma`:
/// parts that got theirs from different neighbours would not merge again.
fn identify<T: Target>(target: &T, mapping: PageRange, prot: Prot) -> Result<(), Fail> {
    let (start, bytes) = (mapping.start().get(), mapping.bytes());
    // Unlike both neighbours meanwhile.
    let prepared = target.mprotect(start, bytes, RW | Prot::EXEC);
    let stored = target.store(mapping.start() + PAGE_SIZE / 2, 1);
    let restored = target.mprotect(start, bytes, prot);
    match (prepared, stored, restored) {
        (Ok(()), Ok(()), Ok(())) => Ok(()),
        outcome => Err(Fail::Error(format!("cannot store to a row: {outcome:?}"))),
    }
}

impl Workload for MapsReader {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * BYTES.max(background::BYTES)
    }

    fn new<T: Target>(shared: &Shared<T>) -> Result<MapsReader, Fail> {
        let Plan { threads, mutators, address_spaces, .. } = shared.plan;
        let row = |mutator: usize| {
            let mm = mutator % address_spaces;
            (mm, PageRange::sized(shared.area(mm, threads + mutator).start(), ROW * EACH))
        };
        let rows: Vec<_> = (0..mutators).map(row).collect();
        for &(mm, row) in &rows {
            for n in 0..ROW {
                let flags = ANON | MapFlags::FIXED_NOREPLACE;
                let mapped = shared.targets[mm].map((row.start() + n * EACH).get(), EACH, prot_of(n), flags);
                mapped.map_err(|errno| Fail::Error(format!("cannot map a row: {errno}")))?;
            }
            for n in 0..ROW {
                identify(&shared.targets[mm], PageRange::sized(row.start() + n * EACH, EACH), prot_of(n))?;
            }
        }
        Ok(MapsReader { rows })
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        while ctx.go() {
            let (mm, row) = self.rows[ctx.rng.below(self.rows.len())];
            if ctx.rng.one_in(2) {
                let entries = ctx.target(mm).maps();
                if ctx.verify {
                    self.check(ctx, mm, row, &entries)?;
                }
            } else {
                let n = ctx.rng.below(ROW);
                let addr = row.start() + n * EACH + ctx.rng.below(EACH);
                let found = ctx.target(mm).query(addr);
                ctx.checked();
                if let Some(entry) = found.filter(|entry| !entry.range.contains(addr)) {
                    let message = format!("asked for the mapping that holds this address, the answer was {entry}");
                    return Err(ctx.violation(Oracle::Outcome, mm, addr, message));
                }
            }
            // And faults as well: a load of the first page, which is only away
            // during a move.
            let addr = row.start() + ctx.rng.below(ROW) * EACH;
            let seen = ctx.load(mm, addr);
            let _ = ctx.not_bus(addr, seen)?;
        }
        Ok(())
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let (_, row) = self.rows[ctx.index];
        while ctx.go() {
            self.change(ctx, row)?;
        }
        Ok(())
    }
}
