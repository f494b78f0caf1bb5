//! The child's view of its own address space. No allocation.

use crate::observe::{VM_FLAGS, VmaSeen};
use crate::{PAGE, pagemap};
use linux_raw_sys::general::{procmap_query, procmap_query_flags};

/// `PROCMAP_QUERY`, `_IOWR('f', 17, struct procmap_query)`, since Linux 6.11.
const PROCMAP_QUERY: libc::c_ulong = 0xc000_0000 | (size_of::<procmap_query>() as libc::c_ulong) << 16 | 0x66 << 8 | 17;

/// Open files of `/proc/self`, which speak of the process that opened them.
pub struct Procfs {
    maps: i32,
    pagemap: i32,
    smaps: i32,
    text: &'static mut [u8],
}

fn open(path: &std::ffi::CStr) -> i32 {
    // SAFETY: a C string.
    unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) }
}

impl Procfs {
    /// Opens them for the calling process. `text` is scratch memory.
    pub fn open(text: &'static mut [u8]) -> Procfs {
        Procfs {
            maps: open(c"/proc/self/maps"),
            pagemap: open(c"/proc/self/pagemap"),
            smaps: open(c"/proc/self/smaps"),
            text,
        }
    }

    /// The same of the calling process, which is a fork of the last one.
    pub fn reopen(&mut self) {
        for fd in [self.maps, self.pagemap, self.smaps] {
            // SAFETY: our own descriptors.
            unsafe { libc::close(fd) };
        }
        self.maps = open(c"/proc/self/maps");
        self.pagemap = open(c"/proc/self/pagemap");
        self.smaps = open(c"/proc/self/smaps");
    }

    /// Whether the kernel answers PROCMAP_QUERY.
    pub fn can_query(&self) -> bool {
        self.query(0).is_ok()
    }

    /// The VMA at `addr`, or the next one.
    pub fn query(&self, addr: usize) -> Result<procmap_query, i32> {
        // SAFETY: a plain structure.
        let mut query: procmap_query = unsafe { std::mem::zeroed() };
        query.size = size_of::<procmap_query>() as u64;
        query.query_flags = procmap_query_flags::PROCMAP_QUERY_COVERING_OR_NEXT_VMA as u64;
        query.query_addr = addr as u64;
        // SAFETY: the ioctl fills the structure.
        match unsafe { libc::ioctl(self.maps, PROCMAP_QUERY, &raw mut query) } {
            0 => Ok(query),
            _ => Err(nix::errno::Errno::last_raw()),
        }
    }

    /// Calls `each` with every VMA that begins in the window.
    pub fn vmas(&self, window: usize, bytes: usize, each: &mut dyn FnMut(VmaSeen)) {
        let mut at = window;
        while at < window + bytes {
            let Ok(vma) = self.query(at) else { return };
            let (start, end) = (vma.vma_start as usize, vma.vma_end as usize);
            if start >= window + bytes {
                return;
            }
            each(VmaSeen {
                start: (start.wrapping_sub(window) / PAGE) as u32,
                end: (end.wrapping_sub(window) / PAGE) as u32,
                attr: vma.vma_flags as u8 & 0xf | if vma.inode != 0 { 0x20 } else { 0 },
                offset: vma.vma_offset / PAGE as u64,
            });
            at = end;
        }
    }

    /// Sets the bit of each anonymous page that is present or swapped. (A guard
    /// looks like a swapped page, with a bit of its own since Linux 6.15.)
    pub fn presence(&mut self, window: usize, bits: &mut [u64], pages: usize) {
        let shown =
            |entry| entry & pagemap::IN_PAGE_TABLE != 0 && entry & (pagemap::FILE_OR_SHARED | pagemap::GUARD) == 0;
        pagemap::read(self.pagemap, self.text, window, pages, bits, shown);
    }

    /// Sets the bit of each page of which the page table knows anything.
    pub fn in_page_table(&mut self, window: usize, bits: &mut [u64], pages: usize) {
        pagemap::read(self.pagemap, self.text, window, pages, bits, |entry| entry & pagemap::IN_PAGE_TABLE != 0);
    }

    /// Calls `each` with the compared `VmFlags` of every VMA in the window.
    pub fn vm_flags(&mut self, window: usize, bytes: usize, each: &mut dyn FnMut(u64)) -> bool {
        // SAFETY: our own descriptor.
        if unsafe { libc::lseek(self.smaps, 0, libc::SEEK_SET) } != 0 {
            return false;
        }
        let (mut held, mut inside) = (0, false);
        loop {
            let room = &mut self.text[held..];
            // SAFETY: reads into the scratch memory.
            let got = unsafe { libc::read(self.smaps, room.as_mut_ptr().cast(), room.len()) };
            if got <= 0 {
                return got == 0;
            }
            held += got as usize;
            let mut done = 0;
            while let Some(len) = self.text[done..held].iter().position(|&byte| byte == b'\n') {
                let line = &self.text[done..done + len];
                done += len + 1;
                if let Some(start) = header(line) {
                    if start >= window + bytes {
                        return true;
                    }
                    inside = start >= window;
                } else if inside && let Some(flags) = line.strip_prefix(b"VmFlags:") {
                    each(parse(flags));
                }
            }
            self.text.copy_within(done..held, 0);
            held -= done;
        }
    }
}

/// The start address, if the line begins a VMA: `7f00-7f10 rw-p ...`.
fn header(line: &[u8]) -> Option<usize> {
    let dash = line.iter().position(|&byte| byte == b'-')?;
    line[..dash].iter().try_fold(0usize, |sum, &digit| Some(sum << 4 | (digit as char).to_digit(16)? as usize))
}

fn parse(flags: &[u8]) -> u64 {
    flags.split(|&byte| byte == b' ').fold(0, |bits, word| {
        let bit = VM_FLAGS.iter().position(|name| name.as_bytes() == word);
        bits | bit.map_or(0, |bit| 1 << bit)
    })
}
