//! `madvise`.

use super::Mm;
use super::core::{Affected, MmapWrite, page_range};
use super::modify::Modify;
use crate::addr::{PageRange, VirtAddr, page_align_up};
use crate::file::FilePage;
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::rcu;
use crate::trace::{Event, Operation};
use crate::vma::{Segment, VmaFlags, VmaRef};
use nix::errno::Errno;
use std::ops::Range;

/// MADV_* of `madvise`, with Linux's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names are the constants of madvise(2)")]
pub enum Advice {
    Normal = 0,
    Random = 1,
    Sequential = 2,
    WillNeed = 3,
    DontNeed = 4,
    Free = 8,
    Remove = 9,
    DontFork = 10,
    DoFork = 11,
    Mergeable = 12,
    Unmergeable = 13,
    HugePage = 14,
    NoHugePage = 15,
    DontDump = 16,
    DoDump = 17,
    WipeOnFork = 18,
    KeepOnFork = 19,
    Cold = 20,
    PageOut = 21,
    PopulateRead = 22,
    PopulateWrite = 23,
    DontNeedLocked = 24,
    GuardInstall = 102,
    GuardRemove = 103,
}

impl Advice {
    /// Every advice that is emulated. (Not COLLAPSE, HWPOISON, SOFT_OFFLINE.)
    pub const ALL: [Advice; 24] = [
        Advice::Normal,
        Advice::Random,
        Advice::Sequential,
        Advice::WillNeed,
        Advice::DontNeed,
        Advice::Free,
        Advice::Remove,
        Advice::DontFork,
        Advice::DoFork,
        Advice::Mergeable,
        Advice::Unmergeable,
        Advice::HugePage,
        Advice::NoHugePage,
        Advice::DontDump,
        Advice::DoDump,
        Advice::WipeOnFork,
        Advice::KeepOnFork,
        Advice::Cold,
        Advice::PageOut,
        Advice::PopulateRead,
        Advice::PopulateWrite,
        Advice::DontNeedLocked,
        Advice::GuardInstall,
        Advice::GuardRemove,
    ];

    /// By number.
    pub fn from_raw(raw: i32) -> Option<Advice> {
        Advice::ALL.into_iter().find(|advice| *advice as i32 == raw)
    }

    /// It gives contents up: forbidden where they are sealed (`is_discard`).
    fn discards(self) -> bool {
        use Advice::*;
        matches!(self, Free | DontNeed | DontNeedLocked | Remove | DontFork | WipeOnFork | GuardInstall)
    }

    /// What it does to flags; `None`: it is about pages.
    fn flags(self, old: &Segment) -> Option<Result<VmaFlags, Errno>> {
        use Advice::*;
        let flags = old.flags;
        let shared = VmaFlags::SHARED | VmaFlags::MAYSHARE;
        Some(match self {
            Normal => Ok(flags - (VmaFlags::RAND_READ | VmaFlags::SEQ_READ)),
            Sequential => Ok((flags - VmaFlags::RAND_READ) | VmaFlags::SEQ_READ),
            Random => Ok((flags - VmaFlags::SEQ_READ) | VmaFlags::RAND_READ),
            DontFork => Ok(flags | VmaFlags::DONTCOPY),
            DoFork => Ok(flags - VmaFlags::DONTCOPY),
            WipeOnFork if old.file.is_some() => Err(Errno::EINVAL),
            WipeOnFork => Ok(flags | VmaFlags::WIPEONFORK),
            KeepOnFork | DoDump if flags.contains(VmaFlags::DROPPABLE) => Err(Errno::EINVAL),
            KeepOnFork => Ok(flags - VmaFlags::WIPEONFORK),
            DontDump => Ok(flags | VmaFlags::DONTDUMP),
            DoDump => Ok(flags - VmaFlags::DONTDUMP),
            Mergeable if flags.intersects(shared | VmaFlags::DROPPABLE) => Ok(flags),
            Mergeable => Ok(flags | VmaFlags::MERGEABLE),
            Unmergeable => Ok(flags - VmaFlags::MERGEABLE),
            HugePage => Ok((flags - VmaFlags::NOHUGEPAGE) | VmaFlags::HUGEPAGE),
            NoHugePage => Ok((flags - VmaFlags::HUGEPAGE) | VmaFlags::NOHUGEPAGE),
            _ => return None,
        })
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `madvise(2)`; `advice` is a number, [`Advice`] has the names. WILLNEED
    /// and COLD do nothing but judge their arguments; PAGEOUT gives up what was
    /// freed lazily.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.5). EINVAL: an unknown advice, an
    /// unaligned address, a mapping it is not for. ENOMEM: part of the range is
    /// not mapped (the rest was dealt with). EAGAIN: the map count. EPERM: sealed
    /// contents. EACCES: REMOVE of what may not be written. EFAULT: populating a
    /// page that cannot be had.
    pub fn madvise(&self, addr: usize, len: usize, advice: i32) -> Result<(), Errno> {
        let _op = Operation::begin(Event::Madvise, Event::MadviseReturn, addr, len);
        let advice = Advice::from_raw(advice).ok_or(Errno::EINVAL)?;
        let len = page_align_up(len).ok_or(Errno::EINVAL)?;
        let range = page_range(VirtAddr(addr), len).ok_or(Errno::EINVAL)?;
        if range.is_empty() {
            return Ok(());
        }
        let result = match advice {
            Advice::PopulateRead | Advice::PopulateWrite => {
                self.madvise_populate(range, advice == Advice::PopulateWrite)
            }
            _ => self.do_madvise(range, advice),
        };
        rcu::poll();
        result
    }

    /// `madvise_walk_vmas`
    fn do_madvise(&self, range: PageRange, advice: Advice) -> Result<(), Errno> {
        let mut write = self.core().mmap_write();
        let (affected, overlap) = write.affected(range);
        let hole = has_hole(&affected, &overlap, range);
        let result = if affected[overlap.clone()].first().is_some_and(|vma| advice.flags(&vma.segment()).is_some()) {
            self.advise_flags(&mut write, &affected, overlap, range, advice)
        } else {
            affected[overlap].iter().try_for_each(|vma| self.advise_pages(&write, vma, range, advice))
        };
        result?;
        if hole { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Advice that is a flag (`madvise_update_vma`).
    fn advise_flags<'m>(
        &self,
        write: &mut MmapWrite<'m, S>,
        affected: &Affected<'m, S>,
        overlap: Range<usize>,
        range: PageRange,
        advice: Advice,
    ) -> Result<(), Errno> {
        self.settle_anon_vmas(write, affected);
        let judge = |old: &Segment, _| {
            may_modify(old, advice)?;
            advice.flags(old).expect("not about pages")
        };
        let (modify, stopped) = Modify::lay_out(self.core(), affected, overlap, range, None, judge);
        // Slabs are full, or the map count: "temporarily unavailable".
        let again = |errno| if errno == Errno::ENOMEM { Errno::EAGAIN } else { errno };
        if let Some(prepared) = write.prepare(affected, &modify.layout, None).map_err(again)? {
            drop(write.commit(prepared));
        }
        stopped.map_err(again)
    }

    /// Advice about the pages of one VMA (`madvise_vma_behavior`).
    fn advise_pages<'m>(
        &self,
        write: &MmapWrite<'m, S>,
        vma: &VmaRef<'m, S>,
        range: PageRange,
        advice: Advice,
    ) -> Result<(), Errno> {
        let segment = vma.segment();
        may_modify(&segment, advice)?;
        let range = segment.range.intersect(range);
        let locked = segment.flags.contains(VmaFlags::LOCKED);
        match advice {
            Advice::DontNeed | Advice::DontNeedLocked => {
                if locked && advice == Advice::DontNeed {
                    return Err(Errno::EINVAL);
                }
                self.settle_anon_vma(write, vma);
                if let Some(touched) = write.drain(&[*vma]).touched_in(range) {
                    self.release_files(&touched);
                    self.mmu().discard(touched.span);
                }
            }
            Advice::Free => {
                if locked || !segment.is_anonymous() {
                    return Err(Errno::EINVAL);
                }
                self.settle_anon_vma(write, vma);
                if let Some(touched) = write.drain(&[*vma]).touched_in(range) {
                    self.mmu().lazy_free(touched.span);
                }
            }
            Advice::Remove => self.punch(write, vma, &segment, range)?,
            Advice::Cold | Advice::PageOut => {
                if locked {
                    return Err(Errno::EINVAL);
                }
                if advice == Advice::PageOut {
                    self.settle_anon_vma(write, vma);
                }
                if advice == Advice::PageOut
                    && segment.is_anonymous()
                    && let Some(touched) = write.drain(&[*vma]).touched_in(range)
                {
                    if segment.flags.contains(VmaFlags::DROPPABLE) {
                        self.mmu().drop_own(touched.span);
                    } else {
                        self.mmu().reclaim(touched.span);
                    }
                }
            }
            Advice::GuardInstall | Advice::GuardRemove => self.advise_guard(write, vma, &segment, range, advice)?,
            _ => {}
        }
        Ok(())
    }

    /// Guards (`madvise_guard_install`, `madvise_guard_remove`).
    fn advise_guard<'m>(
        &self,
        write: &MmapWrite<'m, S>,
        vma: &VmaRef<'m, S>,
        segment: &Segment,
        range: PageRange,
        advice: Advice,
    ) -> Result<(), Errno> {
        let files = self.core().kernel().guards_files();
        let forbidden = segment.flags.contains(VmaFlags::LOCKED) && advice == Advice::GuardInstall;
        if forbidden || segment.file.is_some() && !files {
            return Err(Errno::EINVAL);
        }
        if advice == Advice::GuardRemove {
            if write.drain(&[*vma]).touched_in(range).is_some() {
                self.mmu().unguard(range);
            }
            return Ok(());
        }
        // Guards are part of the page tables, which a forked child gets only of
        // VMAs that have an identity.
        if segment.is_anonymous() {
            self.anon_vma_prepare(write, vma);
        }
        if let Some(touched) = write.drain(&[*vma]).touched_in(range) {
            self.release_files(&touched);
        }
        let Ok(vma) = vma.start_write(write, None) else { unreachable!("nobody kills it") };
        vma.set_touched(range);
        self.mmu().guard(range);
        Ok(())
    }

    /// MADV_REMOVE: a hole in the file (`madvise_remove`).
    fn punch<'m>(
        &self,
        write: &MmapWrite<'m, S>,
        vma: &VmaRef<'m, S>,
        segment: &Segment,
        range: PageRange,
    ) -> Result<(), Errno> {
        let file = segment.file.filter(|_| !segment.flags.contains(VmaFlags::LOCKED)).ok_or(Errno::EINVAL)?;
        if !segment.flags.contains(VmaFlags::SHARED | VmaFlags::MAYWRITE) {
            return Err(Errno::EACCES);
        }
        // SAFETY: the VMA, which is attached under the mmap lock, keeps it.
        let inode = unsafe { file.get() }.inode();
        let index = segment.pgoff_at(range);
        let _drained = write.drain(&[*vma]);
        self.mmu().punch_file(FilePage { inode, index }, range.pages() as u64)
    }
}

/// Whether contents that are sealed stand in the way (`can_madvise_modify`).
fn may_modify(old: &Segment, advice: Advice) -> Result<(), Errno> {
    let sealed = old.flags.contains(VmaFlags::SEALED) && old.is_anonymous() && !old.flags.contains(VmaFlags::WRITE);
    if sealed && advice.discards() { Err(Errno::EPERM) } else { Ok(()) }
}

/// Whether some page of `range` is not mapped.
pub(super) fn has_hole<S: LockScheme>(affected: &Affected<'_, S>, overlap: &Range<usize>, range: PageRange) -> bool {
    let mut at = range.start();
    for vma in &affected[overlap.clone()] {
        let vma = vma.segment().range;
        if vma.start() > at {
            return true;
        }
        at = vma.end();
    }
    at < range.end()
}
