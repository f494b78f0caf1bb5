//! Which pages of a range the host holds.

use linux_raw_sys::general::{
    PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WRITTEN, page_region, pm_scan_arg,
};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::stats::{self, Counter};

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, pm_scan_arg);

/// Finds present pages with `PAGEMAP_SCAN` (Linux 6.7), which skips holes and
/// knows of pages in swap, or with `mincore`, which does neither.
pub struct Presence {
    /// `/proc/self/pagemap`, if the kernel can scan it.
    pagemap: Option<File>,
}

impl Presence {
    pub fn new() -> Presence {
        let pagemap = File::open("/proc/self/pagemap").ok().filter(|pagemap| {
            let mut found = [NOTHING; 1];
            scan(pagemap, PageRange::default(), POPULATED, &mut found).is_ok()
        });
        if pagemap.is_none() {
            tracing::info!(
                "no PAGEMAP_SCAN (Linux 6.7, /proc): pages in swap are not seen when a mapping turns PROT_NONE"
            );
        }
        Presence { pagemap }
    }

    /// Whether some page of `range` may be stored to and is not the zero page.
    /// Where the kernel cannot tell (before Linux 6.7): whether any is present.
    pub fn written(&self, range: PageRange) -> bool {
        if range.is_empty() {
            return false;
        }
        let Some(pagemap) = &self.pagemap else {
            return runs_by_mincore(range, |_| Err(())).is_err();
        };
        loop {
            match scan(pagemap, range, WRITTEN, &mut [NOTHING; 1]) {
                Ok((runs, _)) => return runs > 0,
                Err(Errno::EINTR) => {}
                // As in `runs_by_scan`.
                Err(errno) => panic!("PAGEMAP_SCAN of {range:?}: {errno}"),
            }
        }
    }

    /// Calls `run` with each run of present pages in `range`, in ascending
    /// order (runs may be adjacent), until one fails. Pages that come or go
    /// meanwhile may or may not be reported.
    pub fn runs<E>(&self, range: PageRange, run: impl FnMut(PageRange) -> Result<(), E>) -> Result<(), E> {
        match &self.pagemap {
            Some(pagemap) => runs_by_scan(pagemap, range, POPULATED, run),
            None => runs_by_mincore(range, run),
        }
    }

    /// The same of pages that hold something of their own: not of the zero page.
    /// Where the kernel cannot tell (before Linux 6.7): of all.
    pub fn own<E>(&self, range: PageRange, run: impl FnMut(PageRange) -> Result<(), E>) -> Result<(), E> {
        match &self.pagemap {
            Some(pagemap) => runs_by_scan(pagemap, range, OWN, run),
            None => runs_by_mincore(range, run),
        }
    }
}

/// Which pages are wanted.
#[derive(Clone, Copy)]
struct Categories {
    /// All of these,
    all: u64,
    /// some of these,
    any: u64,
    /// and the first turned round.
    inverted: u64,
}

const POPULATED: Categories = Categories { all: 0, any: (PAGE_IS_PRESENT | PAGE_IS_SWAPPED) as u64, inverted: 0 };
/// Stores are permitted, and it is not the zero page.
const WRITTEN: Categories = Categories {
    all: (PAGE_IS_PRESENT | PAGE_IS_WRITTEN | PAGE_IS_PFNZERO) as u64,
    any: 0,
    inverted: PAGE_IS_PFNZERO as u64,
};

/// Present, and not the zero page.
const OWN: Categories =
    Categories { all: (PAGE_IS_PRESENT | PAGE_IS_PFNZERO) as u64, any: 0, inverted: PAGE_IS_PFNZERO as u64 };

const NOTHING: page_region = page_region { start: 0, end: 0, categories: 0 };

/// One call: fills `found`, returns how many runs and where it stopped.
fn scan(
    pagemap: &File,
    range: PageRange,
    wanted: Categories,
    found: &mut [page_region],
) -> Result<(usize, VirtAddr), Errno> {
    let mut arg = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: 0,
        start: range.start().get() as u64,
        end: range.end().get() as u64,
        walk_end: 0,
        vec: found.as_mut_ptr() as u64,
        vec_len: found.len() as u64,
        max_pages: 0,
        category_inverted: wanted.inverted,
        category_mask: wanted.all,
        category_anyof_mask: wanted.any,
        return_mask: 0,
    };
    stats::count(Counter::HostMadvise);
    // SAFETY: the kernel writes `arg` and at most `vec_len` elements of `found`.
    let runs = unsafe { pagemap_scan(pagemap.as_raw_fd(), &mut arg) }?;
    Ok((runs as usize, VirtAddr(arg.walk_end as usize)))
}

fn runs_by_scan<E>(
    pagemap: &File,
    range: PageRange,
    wanted: Categories,
    mut run: impl FnMut(PageRange) -> Result<(), E>,
) -> Result<(), E> {
    let mut found = [NOTHING; 64];
    let mut left = range;
    while !left.is_empty() {
        let (runs, stopped) = match scan(pagemap, left, wanted, &mut found) {
            Ok(answer) => answer,
            Err(Errno::EINTR) => continue,
            // It worked when the region was made, and arguments are as they were.
            Err(errno) => panic!("PAGEMAP_SCAN of {left:?}: {errno}"),
        };
        for f in &found[..runs] {
            let pages = PageRange::new(VirtAddr(f.start as usize), VirtAddr(f.end as usize));
            run(pages.intersect(range))?;
        }
        left = PageRange::new(stopped.clamp(left.start(), left.end()), left.end());
    }
    Ok(())
}

fn runs_by_mincore<E>(range: PageRange, mut run: impl FnMut(PageRange) -> Result<(), E>) -> Result<(), E> {
    let mut residency = [0u8; 1024];
    let mut chunk_start = range.start();
    while chunk_start < range.end() {
        let bytes = (range.end() - chunk_start).min(residency.len() * PAGE_SIZE);
        stats::count(Counter::HostMadvise);
        // SAFETY: one byte for each page of the chunk; the range is mapped.
        let result = unsafe { libc::mincore(chunk_start.get() as *mut _, bytes, residency.as_mut_ptr()) };
        match Errno::result(result) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => continue,
            Err(errno) => panic!("mincore of {range:?}: {errno}"),
        }
        let pages = &residency[..bytes / PAGE_SIZE];
        let mut at = 0;
        for group in pages.chunk_by(|a, b| (a & 1) == (b & 1)) {
            let start = chunk_start + at * PAGE_SIZE;
            at += group.len();
            if group[0] & 1 != 0 {
                run(PageRange::sized(start, group.len() * PAGE_SIZE))?;
            }
        }
        chunk_start = chunk_start + bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr;

    #[test]
    fn both_ways_find_the_same_pages() {
        const PAGES: usize = 3000;
        // SAFETY: a mapping of this test's own.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGES * PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: as above; huge pages would make more of it present.
        unsafe { libc::madvise(base, PAGES * PAGE_SIZE, libc::MADV_NOHUGEPAGE) };
        let start = VirtAddr(base as usize);
        let touched = [0, 1, 5, 1023, 1024, 2047, 2999];
        for page in touched {
            // SAFETY: inside the mapping.
            unsafe { *base.cast::<u8>().add(page * PAGE_SIZE) = 1 };
        }
        let collect = |presence: &Presence| {
            let mut pages = Vec::new();
            let range = PageRange::sized(start, PAGES * PAGE_SIZE);
            let run = |r: PageRange| -> Result<(), ()> {
                pages.extend(r.iter_pages().map(|p| (p - start) / PAGE_SIZE));
                Ok(())
            };
            presence.runs(range, run).unwrap();
            pages
        };
        assert_eq!(collect(&Presence { pagemap: None }), touched);
        assert_eq!(collect(&Presence::new()), touched);
        // SAFETY: our own mapping.
        unsafe { libc::munmap(base, PAGES * PAGE_SIZE) };
    }
}
