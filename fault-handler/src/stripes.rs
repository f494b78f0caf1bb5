//! [`Stripes`]: the userfaultfds of one address range.
//!
//! Faults of one host mapping share more than they need: each takes and drops
//! the reference count of the host's VMA, twice, and each ioctl that of the
//! userfaultfd's file and a lock in its context (`map_changing_lock`). Two
//! threads that fault in different VMAs of ours would trade those cache lines
//! for nothing. So a region is cut into stripes; stripes that are next to each
//! other, or a power of two apart, belong to different userfaultfds, which also
//! keeps the host from joining them to one VMA.
//!
//! The price: an ioctl must not cross from one host VMA to the next, so what
//! spans a border is done in parts. Here, and nowhere else.
//!
//! Stripes are a matter of speed. Where descriptors or host mappings are scarce
//! there is one userfaultfd and one host VMA for everything.

use crate::registry::SPACES_MAX;
use crate::uffd::{OpenError, Origin, Uffd, UffdError};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};

/// Userfaultfds of a range in stripes. It divides no power of two, so neither
/// the distance of two stripes that are a power of two apart.
const UFFDS: usize = 7;
/// The least stripe: what one page of page-table entries maps, as the host has
/// a lock for each of those.
const STRIPE_MIN: usize = 2 << 20;
/// Stripes of a region, at most, where [`STRIPE_MIN`] would make more. The host
/// looks one of them up for each fault.
const STRIPES_MAX: usize = 512;
/// Host mappings that all stripes of the process may be: a quarter of what it
/// may have (`vm.max_map_count`, if nobody changed it).
const MAPPINGS_MAX: usize = 65_530 / 4;
/// Descriptors left to others: as many as the largest number of address spaces
/// need (two userfaultfds and a page map each), and some.
const DESCRIPTORS_LEFT: usize = 3 * SPACES_MAX + 64;

/// Limit on open files (RLIMIT_NOFILE) with which a few address spaces can have
/// their regions in stripes.
pub fn open_files_wanted() -> usize {
    DESCRIPTORS_LEFT + 8 * UFFDS + 12
}

static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

/// See the module's documentation.
pub struct Stripes {
    /// [`UFFDS`], all opened alike, or one.
    uffds: Box<[Uffd]>,
    /// A stripe is `1 << shift` bytes, at a multiple of them. With one
    /// userfaultfd every address lies in stripe 0.
    shift: u32,
    /// What this is in [`MAPPINGS`].
    mappings: usize,
}

impl Stripes {
    /// One userfaultfd for everything.
    pub(crate) fn one(uffd: Uffd) -> Stripes {
        Stripes { uffds: Box::new([uffd]), shift: usize::BITS - 1, mappings: 0 }
    }

    /// For a range of `bytes`: in stripes if there is enough of it, and of
    /// descriptors and mappings.
    ///
    /// # Errors
    /// Of `open`, the first time.
    pub(crate) fn open(bytes: usize, mut open: impl FnMut() -> Result<Uffd, OpenError>) -> Result<Stripes, OpenError> {
        let first = open()?;
        let origin = first.origin();
        let stripe = bytes.div_ceil(STRIPES_MAX).next_power_of_two().max(STRIPE_MIN);
        let mappings = bytes.div_ceil(stripe) + 1;
        // Relaxed: a count.
        if bytes <= stripe || MAPPINGS.load(Ordering::Relaxed) + mappings > MAPPINGS_MAX {
            return Ok(Stripes::one(first));
        }
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft as usize);
        let mut uffds = vec![first];
        while uffds.len() < UFFDS {
            match open() {
                Ok(uffd) if uffd.origin() == origin && uffd.as_fd().as_raw_fd() as usize + DESCRIPTORS_LEFT < limit => {
                    uffds.push(uffd);
                }
                _ => return Ok(Stripes::one(uffds.swap_remove(0))),
            }
        }
        // (Several regions made at once may go a little beyond.)
        MAPPINGS.fetch_add(mappings, Ordering::Relaxed);
        Ok(Stripes { uffds: uffds.into_boxed_slice(), shift: stripe.ilog2(), mappings })
    }

    /// Only the first of them, for everything. What the others had registered
    /// is not registered any more.
    pub(crate) fn into_one(mut self) -> Stripes {
        let mut uffds = std::mem::take(&mut self.uffds).into_vec();
        Stripes::one(uffds.swap_remove(0))
    }

    /// How many userfaultfds there are.
    pub fn count(&self) -> usize {
        self.uffds.len()
    }

    /// The userfaultfd of the stripe in which `page` lies.
    #[inline]
    pub fn of(&self, page: VirtAddr) -> &Uffd {
        &self.uffds[(page.get() >> self.shift) % UFFDS]
    }

    /// Where the stripe of `page` ends, but no further than `end`.
    pub(crate) fn cut(&self, page: VirtAddr, end: VirtAddr) -> VirtAddr {
        let last_byte = page.get() | ((1 << self.shift) - 1);
        end.min(VirtAddr(last_byte + 1))
    }

    /// `range`, cut at the borders of stripes.
    fn parts(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        let mut at = range.start();
        std::iter::from_fn(move || {
            let start = at;
            at = self.cut(start, range.end());
            (start < range.end()).then(|| PageRange::new(start, at))
        })
    }

    /// Does `range` part by part, and says what was done if not all was.
    fn each(&self, range: PageRange, act: impl Fn(&Uffd, PageRange) -> Result<(), UffdError>) -> Result<(), UffdError> {
        for part in self.parts(range) {
            act(self.of(part.start()), part).map_err(|error| {
                let before = part.start() - range.start();
                match error {
                    UffdError::Again { done } => UffdError::Again { done: before + done },
                    // As the ioctl itself does when it stops halfway.
                    _ if before > 0 => UffdError::Again { done: before },
                    error => error,
                }
            })?;
        }
        Ok(())
    }

    /// How they were created.
    pub fn origin(&self) -> Origin {
        self.uffds[0].origin()
    }

    /// The features they were opened with.
    pub fn features(&self) -> u64 {
        self.uffds[0].features()
    }

    /// The one that messages come from.
    ///
    /// # Panics
    /// If there are several: who waits for messages waits for one descriptor.
    pub fn sole(&self) -> &Uffd {
        assert_eq!(self.uffds.len(), 1, "messages come from one userfaultfd");
        &self.uffds[0]
    }

    /// [`Uffd::register`].
    ///
    /// # Errors
    /// The kernel's; parts may be registered then.
    pub(crate) fn register(&self, range: PageRange) -> Result<(), Errno> {
        self.parts(range).try_for_each(|part| self.of(part.start()).register(part))
    }

    /// [`Uffd::copy`].
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// [`UffdError`].
    pub unsafe fn copy(&self, dst: VirtAddr, src: *const u8, len: usize, protected: bool) -> Result<(), UffdError> {
        self.each(PageRange::sized(dst, len), |uffd, part| {
            // SAFETY: a part of what the caller vouches for.
            unsafe { uffd.copy(part.start(), src.add(part.start() - dst), part.bytes(), protected) }
        })
    }

    /// [`Uffd::zero_pages`].
    ///
    /// # Errors
    /// [`UffdError`].
    pub fn zero_pages(&self, range: PageRange) -> Result<(), UffdError> {
        self.each(range, Uffd::zero_pages)
    }

    /// [`Uffd::move_pages`]. The source must not cross a border of its own.
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// [`UffdError`].
    pub unsafe fn move_pages(&self, dst: VirtAddr, src: VirtAddr, len: usize) -> Result<(), UffdError> {
        self.each(PageRange::sized(dst, len), |uffd, part| {
            // SAFETY: a part of what the caller vouches for.
            unsafe { uffd.move_pages(part.start(), src + (part.start() - dst), part.bytes()) }
        })
    }

    /// [`Uffd::write_protect`].
    ///
    /// # Errors
    /// [`UffdError`]; parts may be done then.
    pub fn write_protect(&self, range: PageRange, protect: bool) -> Result<(), UffdError> {
        self.parts(range).try_for_each(|part| self.of(part.start()).write_protect(part, protect))
    }

    /// [`Uffd::poison`].
    ///
    /// # Errors
    /// [`UffdError`].
    pub fn poison(&self, page: VirtAddr) -> Result<(), UffdError> {
        self.of(page).poison(page)
    }

    /// [`Uffd::wake`] for one page.
    ///
    /// # Errors
    /// [`UffdError`].
    pub fn wake(&self, page: VirtAddr) -> Result<(), UffdError> {
        self.of(page).wake(PageRange::sized(page, PAGE_SIZE))
    }
}

impl Drop for Stripes {
    fn drop(&mut self) {
        MAPPINGS.fetch_sub(self.mappings, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::region::{Notify, Region};
    use crate::uffd::Privilege;
    use std::sync::Mutex;

    const STRIPES: usize = 8;
    const PAGES: usize = STRIPE_MIN / PAGE_SIZE;

    /// What the process has of everything is one test's at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> std::sync::MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets this process have stripes, whatever limit it was started with.
    pub(crate) fn enough_descriptors() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let wanted = (DESCRIPTORS_LEFT as u64 + 192).max(soft);
        nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).expect("some 1000 descriptors");
    }

    fn region() -> Region {
        enough_descriptors();
        let region = Region::new(STRIPES * STRIPE_MIN, Notify::Signal, Privilege::User).unwrap();
        assert_eq!(region.uffd().count(), UFFDS);
        region
    }

    #[test]
    fn stripes_a_power_of_two_apart_have_userfaultfds_of_their_own() {
        let _alone = alone();
        let region = region();
        let uffd = region.uffd();
        for stripe in 0..1000 {
            let at = |stripe: usize| uffd.of(VirtAddr(stripe * STRIPE_MIN));
            for distance in (0..10).map(|power| 1 << power) {
                assert!(!std::ptr::eq(at(stripe), at(stripe + distance)), "{stripe} + {distance}");
            }
            // The same within a stripe, to its last byte.
            assert!(std::ptr::eq(at(stripe), uffd.of(VirtAddr((stripe + 1) * STRIPE_MIN - 1))));
        }
    }

    #[test]
    fn what_is_scarce_is_left_to_others() {
        let _alone = alone();
        let count = || MAPPINGS.load(Ordering::Relaxed);
        let open = || Uffd::open(Privilege::User, 0, 0);
        assert_eq!(Stripes::open(STRIPE_MIN, open).unwrap().count(), 1, "too small");
        // Other tests take some as well, but no more than that.
        MAPPINGS.fetch_add(MAPPINGS_MAX, Ordering::Relaxed);
        assert_eq!(Stripes::open(STRIPES * STRIPE_MIN, open).unwrap().count(), 1, "too many mappings");
        MAPPINGS.fetch_sub(MAPPINGS_MAX, Ordering::Relaxed);
        let mut opened = 0;
        let few = || {
            opened += 1;
            if opened < UFFDS { open() } else { Err(OpenError::Missing) }
        };
        assert_eq!(Stripes::open(STRIPES * STRIPE_MIN, few).unwrap().count(), 1, "too few descriptors");
        let many = Stripes::open(usize::MAX / 4, open).unwrap();
        assert!(many.count() == 1 || (STRIPES_MAX / 2..=STRIPES_MAX + 1).contains(&many.mappings), "{}", many.mappings);
        let before = count();
        assert_eq!(many.into_one().count(), 1);
        assert!(count() <= before);
    }

    #[test]
    fn parts_fill_the_range_and_cross_no_border() {
        let _alone = alone();
        let region = region();
        let start = region.range().start();
        for (from, to) in
            [(0, 1), (PAGES - 1, PAGES), (PAGES - 1, PAGES + 1), (1, 3 * PAGES + 1), (PAGES, 3 * PAGES), (5, 5)]
        {
            let range = PageRange::new(start + from * PAGE_SIZE, start + to * PAGE_SIZE);
            let parts: Vec<_> = region.uffd().parts(range).collect();
            assert_eq!(parts.iter().map(|part| part.pages()).sum::<usize>(), to - from);
            assert!(parts.windows(2).all(|two| two[0].end() == two[1].start()), "{parts:?}");
            for part in parts {
                let stripe = |at: VirtAddr| (at - start) / STRIPE_MIN;
                assert!(!part.is_empty() && stripe(part.start()) == stripe(VirtAddr(part.end().get() - 1)), "{part:?}");
            }
        }
        let one = Stripes::one(Uffd::open(Privilege::User, 0, 0).unwrap());
        assert_eq!(one.parts(region.range()).collect::<Vec<_>>(), [region.range()]);
    }

    /// What `Region::new` does when the host has no mappings left halfway.
    #[test]
    fn what_was_registered_in_stripes_can_be_registered_as_one() {
        let _alone = alone();
        enough_descriptors();
        let range = crate::region::reserve(STRIPES * STRIPE_MIN).unwrap();
        crate::region::open_up(range).unwrap();
        let uffd = Stripes::open(range.bytes(), || Uffd::open(Privilege::User, 0, 0)).unwrap();
        assert_eq!((uffd.count(), uffd.register(range)), (UFFDS, Ok(())));
        let one = uffd.into_one();
        assert_eq!(one.register(range), Ok(()));
        assert_eq!(one.zero_pages(range), Ok(()), "one host mapping again");
    }

    /// On real host mappings: an ioctl that crossed a border would fail.
    #[test]
    fn ioctls_across_borders() {
        let _alone = alone();
        let region = region();
        let (uffd, start) = (region.uffd(), region.range().start());
        let at = |page: usize| start + page * PAGE_SIZE;
        let load = |page: usize| {
            // SAFETY: a page that this test has made present.
            unsafe { (at(page).get() as *const u8).read_volatile() }
        };
        let bytes = vec![7u8; 8 * PAGE_SIZE];
        let copy = |page: usize, pages: usize| {
            // SAFETY: a buffer of eight pages.
            unsafe { uffd.copy(at(page), bytes.as_ptr(), pages * PAGE_SIZE, false) }
        };
        assert_eq!(copy(PAGES - 4, 8), Ok(()));
        assert!((PAGES - 4..PAGES + 4).all(|page| load(page) == 7));
        assert_eq!(uffd.zero_pages(PageRange::new(at(2 * PAGES - 1), at(2 * PAGES + 1))), Ok(()));
        assert_eq!((load(2 * PAGES - 1), load(2 * PAGES)), (0, 0));
        // What was done before the first page that is there already.
        assert_eq!(copy(PAGES - 7, 8), Err(UffdError::Again { done: 3 * PAGE_SIZE }));
        assert_eq!(copy(2 * PAGES - 3, 5), Err(UffdError::Again { done: 2 * PAGE_SIZE }));
        assert_eq!(copy(3 * PAGES, 1), Ok(()));
        assert_eq!(copy(3 * PAGES - 2, 3), Err(UffdError::Again { done: 2 * PAGE_SIZE }), "nothing of the second part");
        assert_eq!(copy(3 * PAGES, 2), Err(UffdError::Exists));
        assert_eq!(copy(4 * PAGES + 1, 1), Ok(()));
        assert_eq!(copy(4 * PAGES - 2, 8), Err(UffdError::Again { done: 3 * PAGE_SIZE }), "some of the second part");
        assert_eq!(uffd.write_protect(PageRange::new(at(PAGES - 4), at(PAGES + 4)), true), Ok(()));
        assert!((PAGES - 4..PAGES + 4).all(|page| load(page) == 7));
    }
}
