//! What is compared after each step, and how it is written down.
//!
//! Both sides write plain words through the same code, so that equal words
//! mean equal observations; only a difference is ever decoded. The host's side
//! writes in a forked child that must not allocate: nothing here does, up to
//! [`Observation::decode`].

use crate::PAGE;
use crate::op::Setup;
use nix::errno::Errno;
use std::fmt;

/// What a step answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Success: 0, an address as an offset into the window, what was loaded,
    /// or a hash of what `mincore` wrote.
    Value(u64),
    /// An errno.
    Error(i32),
    /// An access earned a signal.
    Signal(Signal),
    /// No answer of its own: the state at the end of the sequence.
    End,
    /// No answer of its own: what a load in each page gives, after that.
    Sweep,
    /// No answer of its own: a hash of each page of the file.
    File,
}

/// SIGSEGV or SIGBUS with its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// SIGSEGV, SEGV_MAPERR
    MapErr,
    /// SIGSEGV, SEGV_ACCERR
    AccErr,
    /// SIGBUS, BUS_ADRERR
    BusAdrErr,
    /// Another code.
    Other,
}

impl Signal {
    /// From the access routines' code.
    pub fn from_code(code: u64) -> Signal {
        match code {
            1 => Signal::MapErr,
            2 => Signal::AccErr,
            3 => Signal::BusAdrErr,
            _ => Signal::Other,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Value(value) => write!(f, "{value:#x}"),
            Answer::Error(errno) => write!(f, "{:?}", Errno::from_raw(*errno)),
            Answer::Signal(Signal::MapErr) => f.write_str("SEGV_MAPERR"),
            Answer::Signal(Signal::AccErr) => f.write_str("SEGV_ACCERR"),
            Answer::Signal(Signal::BusAdrErr) => f.write_str("BUS_ADRERR"),
            Answer::Signal(Signal::Other) => f.write_str("a signal of another kind"),
            Answer::End | Answer::Sweep | Answer::File => f.write_str("(end)"),
        }
    }
}

impl Answer {
    fn encode(self) -> [u64; 2] {
        match self {
            Answer::Value(value) => [0, value],
            Answer::Error(errno) => [1, errno as u64],
            Answer::Signal(signal) => [2, signal as u64 + 1],
            Answer::End => [3, 0],
            Answer::Sweep => [4, 0],
            Answer::File => [5, 0],
        }
    }

    fn decode([kind, value]: [u64; 2]) -> Answer {
        match kind {
            0 => Answer::Value(value),
            1 => Answer::Error(value as i32),
            2 => Answer::Signal(Signal::from_code(value)),
            3 => Answer::End,
            4 => Answer::Sweep,
            _ => Answer::File,
        }
    }
}

/// A VMA, in pages of the window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VmaSeen {
    /// First page.
    pub start: u32,
    /// Page after the last.
    pub end: u32,
    /// Of [`attr`].
    pub attr: u8,
    /// Page offset into the file.
    pub offset: u64,
}

impl VmaSeen {
    /// Makes the bytes of a `mincore` from `start` (an offset of the window) on
    /// that are about pages of this VMA say nothing, if it is of a file.
    pub fn hide_file_pages(&self, start: usize, vec: &mut [u8]) {
        if self.attr & attr::FILE != 0 {
            let place = |page: u32| (page as usize).saturating_sub(start / PAGE).min(vec.len());
            let (from, to) = (place(self.start), place(self.end));
            vec[from..to].fill(0xff);
        }
    }
}

/// Bits of [`VmaSeen::attr`]: those of `PROCMAP_QUERY`.
#[allow(missing_docs, reason = "the names say it")]
pub mod attr {
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
    pub const EXEC: u8 = 4;
    pub const SHARED: u8 = 8;
    pub const FILE: u8 = 0x20;
}

impl fmt::Debug for VmaSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |bit, c| if self.attr & bit != 0 { c } else { '-' };
        let (r, w, x) = (bit(attr::READ, 'r'), bit(attr::WRITE, 'w'), bit(attr::EXEC, 'x'));
        let s = if self.attr & attr::SHARED != 0 { 's' } else { 'p' };
        write!(f, "{:#x}-{:#x} {r}{w}{x}{s}", self.start as usize * PAGE, self.end as usize * PAGE)?;
        if self.attr & attr::FILE != 0 { write!(f, " file+{:#x}", self.offset * PAGE as u64) } else { Ok(()) }
    }
}

/// `vm_flags` that are compared, by their letters in `smaps`, beside the
/// protection: the bit is the place in this list.
pub const VM_FLAGS: [&str; 21] = [
    "lo", "lf", "sr", "rr", "dc", "ac", "nr", "gd", "wf", "dd", "hg", "nh", "mg", "sl", "dp", "sh", "ms", "mr", "mw",
    "me", "sf",
];

/// A side, as far as looking at it goes.
pub trait Side {
    /// Calls `each` with the window's VMAs, ascending.
    fn vmas(&mut self, each: &mut dyn FnMut(VmaSeen));
    /// Sets the bit of each page that is present or hidden. (Those of files do
    /// not count.)
    fn presence(&mut self, bits: &mut [u64]);
    /// Sets the bit of each page of which the hardware's page table knows
    /// anything, whatever is mapped there.
    fn in_page_table(&mut self, bits: &mut [u64]);
    /// Eight bytes at an offset of the window, in a page that is present and readable.
    fn word(&mut self, offset: usize) -> u64;
    /// Calls `each` with the bits of [`VM_FLAGS`] of each VMA. `false`: unknown.
    fn vm_flags(&mut self, each: &mut dyn FnMut(u64)) -> bool;
}

/// What of a side is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Contents.
    pub contents: bool,
    /// `vm_flags`.
    pub flags: bool,
}

impl Want {
    /// What is looked at after step number `step` of `steps`.
    pub fn at(setup: Setup, step: usize, steps: usize) -> Want {
        let due = |every: u32| every != 0 && ((step + 1).is_multiple_of(every as usize) || step + 1 == steps);
        Want { contents: due(setup.contents_every), flags: due(setup.flags_every) }
    }
}

/// Where the second word of a page's contents is taken from.
pub const SECOND_WORD: usize = 0x800;

/// Words for each record before its parts.
const HEAD: usize = 5;
/// In a sweep: the page earns a signal. (No test stores such a word.)
const SWEEP_SIGNAL: u64 = 0xdead << 48;
/// In a sweep: nothing is mapped there, and nothing is in the page table.
const SWEEP_HOLE: u64 = SWEEP_SIGNAL | 0xff;
/// Of the empty pages inside a hole, one in so many is touched by a sweep, or one
/// in so many parts of a large window.
const HOLE_STRIDE: usize = 8;
const HOLE_PARTS: usize = 32;
/// Words for a bit for each page of a window.
const BITMAP_WORDS: usize = crate::remote::PAGES_MAX / 64;
const HAS_CONTENTS: u64 = 1 << 62;
const HAS_FLAGS: u64 = 1 << 63;

/// Observations one after the other.
pub struct Recorder<'a> {
    words: &'a mut [u64],
    used: usize,
    pages: usize,
}

impl<'a> Recorder<'a> {
    /// Writes to `words`, of a window of `pages` pages.
    pub fn new(words: &'a mut [u64], pages: usize) -> Recorder<'a> {
        Recorder { words, used: 0, pages }
    }

    /// Words written.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Goes on after what others have written.
    pub fn set_used(&mut self, used: usize) {
        self.used = used;
    }

    /// What was written.
    pub fn words(&self) -> &[u64] {
        &self.words[..self.used]
    }

    /// Whether another record of any size fits.
    pub fn has_room(&self) -> bool {
        self.words.len() - self.used > 64 + 8 * self.pages
    }

    fn push(&mut self, word: u64) {
        self.words[self.used] = word;
        self.used += 1;
    }

    /// Writes one observation.
    pub fn record(&mut self, side: &mut impl Side, answer: Answer, want: Want) {
        let start = self.used;
        self.used += HEAD;
        let mut vmas = 0;
        side.vmas(&mut |vma| {
            self.push(u64::from(vma.start) << 32 | u64::from(vma.end));
            self.push(vma.offset << 8 | u64::from(vma.attr));
            vmas += 1;
        });
        let bitmap = self.used;
        let bitmap_words = self.pages.div_ceil(64);
        self.words[bitmap..bitmap + bitmap_words].fill(0);
        side.presence(&mut self.words[bitmap..bitmap + bitmap_words]);
        for vma in 0..vmas {
            let (range, attr) = (self.words[start + HEAD + 2 * vma], self.words[start + HEAD + 2 * vma + 1]);
            if attr as u8 & attr::FILE != 0 {
                for page in (range >> 32) as usize..(range as u32) as usize {
                    self.words[bitmap + page / 64] &= !(1 << (page % 64));
                }
            }
        }
        self.used += bitmap_words;
        let contents = if want.contents { self.contents(side, start + HEAD, vmas, bitmap) } else { 0 };
        let flags_start = self.used;
        let mut has_flags = false;
        if want.flags {
            has_flags = side.vm_flags(&mut |flags| self.push(flags));
        }
        if !has_flags {
            self.used = flags_start;
        }
        let flags = self.used - flags_start;
        let [kind, value] = answer.encode();
        self.words[start] = (self.used - start) as u64;
        self.words[start + 1] = kind;
        self.words[start + 2] = value;
        let marks = if want.contents { HAS_CONTENTS } else { 0 } | if has_flags { HAS_FLAGS } else { 0 };
        self.words[start + 3] = marks | vmas as u64;
        self.words[start + 4] = (bitmap_words | contents << 16 | flags << 32) as u64;
    }

    /// A word for each page that is present and may be read.
    fn contents(&mut self, side: &mut impl Side, vmas_at: usize, vmas: usize, bitmap: usize) -> usize {
        let before = self.used;
        for vma in 0..vmas {
            let (range, attr) = (self.words[vmas_at + 2 * vma], self.words[vmas_at + 2 * vma + 1]);
            if attr as u8 & (attr::READ | attr::WRITE | attr::EXEC) == 0 {
                continue;
            }
            for page in (range >> 32) as usize..(range as u32) as usize {
                if self.words[bitmap + page / 64] >> (page % 64) & 1 == 1 {
                    let (first, second) = (side.word(page * PAGE), side.word(page * PAGE + SECOND_WORD));
                    self.push(first ^ second.rotate_left(32));
                }
            }
        }
        self.used - before
    }
}

impl Recorder<'_> {
    /// Writes what a load at the start of each page of the window gives. Of the
    /// pages inside a hole, which the page table does not know, most are only
    /// noted as such: a signal costs more than all else.
    pub fn sweep<T: Side>(&mut self, side: &mut T, mut load: impl FnMut(usize) -> Answer) {
        let start = self.used;
        self.used += HEAD;
        let mut mapped = [0; BITMAP_WORDS];
        side.vmas(&mut |vma| (vma.start..vma.end).for_each(|page| mapped[page as usize / 64] |= 1 << (page % 64)));
        let mut in_table = [0; BITMAP_WORDS];
        side.in_page_table(&mut in_table[..self.pages.div_ceil(64)]);
        let pages = self.pages;
        let has = |bits: &[u64], page: usize| page >= pages || bits[page / 64] >> (page % 64) & 1 == 1;
        let stride = HOLE_STRIDE.max(pages / HOLE_PARTS);
        for page in 0..pages {
            let inside = |page: usize| !has(&mapped, page) && !has(&in_table, page);
            let skip = !page.is_multiple_of(stride) && inside(page - 1) && inside(page) && inside(page + 1);
            if skip {
                self.push(SWEEP_HOLE);
                continue;
            }
            let word = match load(page * PAGE) {
                Answer::Value(word) => word,
                Answer::Signal(signal) => SWEEP_SIGNAL | (signal as u64 + 1),
                other => unreachable!("a load does not give {other:?}"),
            };
            self.push(word);
        }
        let [kind, value] = Answer::Sweep.encode();
        let head = [(self.used - start) as u64, kind, value, HAS_CONTENTS, (self.pages as u64) << 16];
        self.words[start..start + HEAD].copy_from_slice(&head);
    }
}

impl Recorder<'_> {
    /// Writes what the file of [`Slot::ReadWrite`](crate::op::Slot::ReadWrite)
    /// holds after everything was unmapped, if it could be.
    pub fn file(&mut self, unmapped: bool, read: impl FnOnce(&mut [u8])) {
        let mut bytes = [0u8; crate::remote::FILE_BYTES];
        if unmapped {
            read(&mut bytes);
        }
        let start = self.used;
        self.used += HEAD;
        for page in bytes.chunks(PAGE) {
            self.push(crate::fold(page));
        }
        let [kind, value] = Answer::File.encode();
        let head = [(self.used - start) as u64, kind, value, HAS_CONTENTS, ((self.used - start - HEAD) as u64) << 16];
        self.words[start..start + HEAD].copy_from_slice(&head);
    }
}

/// The first record of `words` as a slice, and what follows it.
pub fn next_record(words: &[u64]) -> Option<(&[u64], &[u64])> {
    let len = *words.first()? as usize;
    Some(words.split_at(len))
}

/// The answer of a record.
pub fn answer_of(record: &[u64]) -> Answer {
    Answer::decode([record[1], record[2]])
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What the step answered.
    pub answer: Answer,
    /// The VMAs.
    pub vmas: Vec<VmaSeen>,
    /// Pages present.
    pub present: Vec<u32>,
    /// A word for each page that is present and readable.
    pub contents: Option<Vec<u64>>,
    /// `vm_flags` of each VMA.
    pub flags: Option<Vec<u64>>,
}

impl Observation {
    /// Reads a record.
    pub fn decode(record: &[u64]) -> Observation {
        let vmas = (record[3] & !(HAS_CONTENTS | HAS_FLAGS)) as usize;
        let counts = record[4];
        let (bitmap, contents, flags) =
            (counts as u16 as usize, (counts >> 16) as u16 as usize, (counts >> 32) as usize);
        let (head, rest) = record.split_at(HEAD);
        let (vma_words, rest) = rest.split_at(2 * vmas);
        let (bitmap_words, rest) = rest.split_at(bitmap);
        let (content_words, rest) = rest.split_at(contents);
        let vma = |words: &[u64]| VmaSeen {
            start: (words[0] >> 32) as u32,
            end: words[0] as u32,
            attr: words[1] as u8,
            offset: words[1] >> 8,
        };
        let present = (0..64 * bitmap).filter(|page| bitmap_words[page / 64] >> (page % 64) & 1 == 1);
        Observation {
            answer: answer_of(head),
            vmas: vma_words.chunks(2).map(vma).collect(),
            present: present.map(|page| page as u32).collect(),
            contents: (head[3] & HAS_CONTENTS != 0).then(|| content_words.to_vec()),
            flags: (head[3] & HAS_FLAGS != 0).then(|| rest[..flags].to_vec()),
        }
    }

    /// The part in which `self` and `other` differ, as text of each; answers
    /// come first. `None`: they agree (what one side did not look at counts as equal).
    pub fn difference(&self, other: &Observation) -> Option<(String, String)> {
        let pages = |pages: &[u32]| format!("present: {}", runs(pages));
        if self.answer != other.answer {
            return Some((self.answer.to_string(), other.answer.to_string()));
        }
        if self.vmas != other.vmas {
            return Some((format!("VMAs: {:?}", self.vmas), format!("VMAs: {:?}", other.vmas)));
        }
        if self.present != other.present {
            return Some((pages(&self.present), pages(&other.present)));
        }
        if let (Some(a), Some(b)) = (&self.contents, &other.contents)
            && a != b
        {
            let place = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
            let word = |words: &[u64]| words.get(place).map_or_else(|| "nothing".into(), |&word| sweep_text(word));
            let which = match self.answer {
                Answer::Sweep => format!("a load in page {place} of the window gives"),
                Answer::File => format!("page {place} of the file, hashed:"),
                _ => format!("contents of number {place} of the readable pages present:"),
            };
            return Some((format!("{which} {}", word(a)), format!("{which} {}", word(b))));
        }
        if let (Some(a), Some(b)) = (&self.flags, &other.flags)
            && a != b
        {
            return Some((self.flags_text(a), other.flags_text(b)));
        }
        None
    }

    fn flags_text(&self, flags: &[u64]) -> String {
        let letters = |flags: u64| {
            let set = VM_FLAGS.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1);
            set.map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
        };
        let all: Vec<String> =
            self.vmas.iter().zip(flags).map(|(vma, flags)| format!("{vma:?} [{}]", letters(*flags))).collect();
        format!("VmFlags: {}", all.join(", "))
    }
}

fn sweep_text(word: u64) -> String {
    if word == SWEEP_HOLE {
        "nothing (a hole)".to_owned()
    } else if word & !7 == SWEEP_SIGNAL && word & 7 != 0 {
        Answer::Signal(Signal::from_code(word & 7)).to_string()
    } else {
        format!("{word:#x}")
    }
}

/// `0-3 7` of page numbers.
fn runs(pages: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == page => *last = page,
            _ => runs.push((page, page)),
        }
    }
    let text: Vec<String> =
        runs.iter().map(|&(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    if text.is_empty() { "no page".to_owned() } else { format!("pages {}", text.join(" ")) }
}
