//! [`Op`]: one call or access, with operands that mean the same on both sides.
//!
//! No operand depends on a result, so a sequence can be cut anywhere and
//! still runs. Flags and protections are the raw numbers of the system calls:
//! wrong ones are part of the test.

use std::fmt;

/// What an address counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The first byte of the scratch window; vmalab's region.
    Window,
    /// The first byte that no user address reaches: TASK_SIZE; the region's end.
    Top,
    /// 0.
    Abs,
}

/// An address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// What it counts from.
    pub base: Base,
    /// Bytes from there; wraps.
    pub offset: i64,
}

/// `offset` bytes into the window.
pub const fn win(offset: usize) -> At {
    At { base: Base::Window, offset: offset as i64 }
}

/// `offset` bytes from the end of user space. Only for calls that must fail.
pub const fn top(offset: i64) -> At {
    At { base: Base::Top, offset }
}

/// The address itself.
pub const fn abs(addr: usize) -> At {
    At { base: Base::Abs, offset: addr as i64 }
}

impl At {
    /// The address on a side whose window and top are these.
    #[inline]
    pub fn resolve(self, window: usize, top: usize) -> usize {
        let base = match self.base {
            Base::Window => window,
            Base::Top => top,
            Base::Abs => 0,
        };
        base.wrapping_add(self.offset as usize)
    }
}

impl fmt::Debug for At {
    /// Rust source.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            Base::Window => write!(f, "win({})", number(self.offset as u64)),
            Base::Top if self.offset < 0 => write!(f, "top(-{})", number(self.offset.unsigned_abs())),
            Base::Top => write!(f, "top({})", number(self.offset as u64)),
            Base::Abs => write!(f, "abs({})", number(self.offset as u64)),
        }
    }
}

/// What a mapping is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// No file: descriptor -1.
    NoFile,
    /// A memfd of five and a half pages, open for reading and writing.
    ReadWrite,
    /// The same memfd, open for reading.
    ReadOnly,
    /// The same memfd, open for writing.
    WriteOnly,
    /// Another memfd, of the same contents, with F_SEAL_WRITE.
    Sealed,
    /// A directory.
    Directory,
}

impl Slot {
    /// All of them.
    pub const ALL: [Slot; 6] =
        [Slot::NoFile, Slot::ReadWrite, Slot::ReadOnly, Slot::WriteOnly, Slot::Sealed, Slot::Directory];
}

/// A resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// RLIMIT_AS: pages of the window that may be mapped.
    AddressSpace,
    /// RLIMIT_DATA: the same for private writable mappings.
    Data,
    /// RLIMIT_MEMLOCK.
    Memlock,
}

/// One step of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the operands have the names of the manual pages")]
pub enum Op {
    Mmap {
        addr: At,
        len: usize,
        prot: u32,
        flags: u32,
        file: Slot,
        offset: u64,
    },
    Munmap {
        addr: At,
        len: usize,
    },
    Mprotect {
        addr: At,
        len: usize,
        prot: u32,
    },
    Mremap {
        addr: At,
        old_len: usize,
        new_len: usize,
        flags: u32,
        new_addr: At,
    },
    Madvise {
        addr: At,
        len: usize,
        advice: i32,
    },
    Msync {
        addr: At,
        len: usize,
        flags: u32,
    },
    Mincore {
        addr: At,
        len: usize,
    },
    Mlock {
        addr: At,
        len: usize,
    },
    Mlock2 {
        addr: At,
        len: usize,
        flags: u32,
    },
    Munlock {
        addr: At,
        len: usize,
    },
    Mlockall {
        flags: u32,
    },
    Munlockall,
    Brk {
        to: At,
    },
    Mseal {
        addr: At,
        len: usize,
        flags: u64,
    },
    /// The rest of the sequence runs in the child; then the parent is looked at.
    Fork,
    /// Eight bytes.
    Load {
        addr: At,
    },
    LoadByte {
        addr: At,
    },
    /// Eight bytes.
    Store {
        addr: At,
        value: u64,
    },
    StoreByte {
        addr: At,
        value: u8,
    },
    /// Not a call under test: sets the soft limit to so many pages.
    SetLimit {
        what: Limit,
        pages: u64,
    },
}

/// The kinds of [`Op`], in the order of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "as the ops")]
pub enum Call {
    Mmap,
    Munmap,
    Mprotect,
    Mremap,
    Madvise,
    Msync,
    Mincore,
    Mlock,
    Mlock2,
    Munlock,
    Mlockall,
    Munlockall,
    Brk,
    Mseal,
    Fork,
    Load,
    Store,
    SetLimit,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 18] = [
        Call::Mmap,
        Call::Munmap,
        Call::Mprotect,
        Call::Mremap,
        Call::Madvise,
        Call::Msync,
        Call::Mincore,
        Call::Mlock,
        Call::Mlock2,
        Call::Munlock,
        Call::Mlockall,
        Call::Munlockall,
        Call::Brk,
        Call::Mseal,
        Call::Fork,
        Call::Load,
        Call::Store,
        Call::SetLimit,
    ];

    /// The name of the system call, or `load`, `store`, `setrlimit`.
    pub fn name(self) -> &'static str {
        match self {
            Call::Mmap => "mmap",
            Call::Munmap => "munmap",
            Call::Mprotect => "mprotect",
            Call::Mremap => "mremap",
            Call::Madvise => "madvise",
            Call::Msync => "msync",
            Call::Mincore => "mincore",
            Call::Mlock => "mlock",
            Call::Mlock2 => "mlock2",
            Call::Munlock => "munlock",
            Call::Mlockall => "mlockall",
            Call::Munlockall => "munlockall",
            Call::Brk => "brk",
            Call::Mseal => "mseal",
            Call::Fork => "fork",
            Call::Load => "load",
            Call::Store => "store",
            Call::SetLimit => "setrlimit",
        }
    }
}

impl Op {
    /// Its kind.
    pub fn call(&self) -> Call {
        match self {
            Op::Mmap { .. } => Call::Mmap,
            Op::Munmap { .. } => Call::Munmap,
            Op::Mprotect { .. } => Call::Mprotect,
            Op::Mremap { .. } => Call::Mremap,
            Op::Madvise { .. } => Call::Madvise,
            Op::Msync { .. } => Call::Msync,
            Op::Mincore { .. } => Call::Mincore,
            Op::Mlock { .. } => Call::Mlock,
            Op::Mlock2 { .. } => Call::Mlock2,
            Op::Munlock { .. } => Call::Munlock,
            Op::Mlockall { .. } => Call::Mlockall,
            Op::Munlockall => Call::Munlockall,
            Op::Brk { .. } => Call::Brk,
            Op::Mseal { .. } => Call::Mseal,
            Op::Fork => Call::Fork,
            Op::Load { .. } | Op::LoadByte { .. } => Call::Load,
            Op::Store { .. } | Op::StoreByte { .. } => Call::Store,
            Op::SetLimit { .. } => Call::SetLimit,
        }
    }

    /// Rust source of the value, with larger numbers in hexadecimal.
    pub fn source(&self) -> String {
        // Plain decimal numbers are all that derived Debug gives beside `At`,
        // which formats itself.
        let plain = format!("{self:?}");
        let mut out = String::with_capacity(plain.len());
        let mut rest = plain.as_str();
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, from) = rest.split_at(start);
            let end = from.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(from.len());
            let (token, after) = from.split_at(end);
            out.push_str(before);
            let inside_name = before.ends_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            match token.parse::<u64>() {
                Ok(n) if !inside_name => out.push_str(&number(n)),
                _ => out.push_str(token),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

/// A number of Rust source.
fn number(n: u64) -> String {
    if n < 10 { n.to_string() } else { format!("{n:#x}") }
}

/// As `strace` would write it; `w` is the window, `top` the end of user space.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::names::{ADVICE, MCL, MLOCK2, MREMAP, MSYNC, PROT};
        use crate::names::{bits, map_flags, name};
        let name_of = self.call().name();
        match *self {
            Op::Mmap { addr, len, prot, flags, file, offset } => {
                let file = if file == Slot::NoFile { "-1".to_owned() } else { format!("{file:?}") };
                let (addr, prot, flags) = (Shown(addr), bits(prot, PROT), map_flags(flags));
                write!(f, "mmap({addr}, {len:#x}, {prot}, {flags}, {file}, {offset:#x})")
            }
            Op::Mprotect { addr, len, prot } => {
                write!(f, "mprotect({}, {len:#x}, {})", Shown(addr), bits(prot, PROT))
            }
            Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                let (addr, to) = (Shown(addr), Shown(new_addr));
                write!(f, "mremap({addr}, {old_len:#x}, {new_len:#x}, {}, {to})", bits(flags, MREMAP))
            }
            Op::Madvise { addr, len, advice } => {
                write!(f, "madvise({}, {len:#x}, {})", Shown(addr), name(advice, ADVICE))
            }
            Op::Msync { addr, len, flags } => write!(f, "msync({}, {len:#x}, {})", Shown(addr), bits(flags, MSYNC)),
            Op::Mlock2 { addr, len, flags } => write!(f, "mlock2({}, {len:#x}, {})", Shown(addr), bits(flags, MLOCK2)),
            Op::Munmap { addr, len }
            | Op::Mincore { addr, len }
            | Op::Mlock { addr, len }
            | Op::Munlock { addr, len } => {
                write!(f, "{name_of}({}, {len:#x})", Shown(addr))
            }
            Op::Mlockall { flags } => write!(f, "mlockall({})", bits(flags, MCL)),
            Op::Munlockall | Op::Fork => write!(f, "{name_of}()"),
            Op::Brk { to } => write!(f, "brk({})", Shown(to)),
            Op::Mseal { addr, len, flags } => write!(f, "mseal({}, {len:#x}, {flags:#x})", Shown(addr)),
            Op::Load { addr } => write!(f, "load({})", Shown(addr)),
            Op::LoadByte { addr } => write!(f, "load byte({})", Shown(addr)),
            Op::Store { addr, value } => write!(f, "store({}, {value:#x})", Shown(addr)),
            Op::StoreByte { addr, value } => write!(f, "store byte({}, {value:#x})", Shown(addr)),
            Op::SetLimit { what, pages } => write!(f, "setrlimit({what:?}, {pages} pages)"),
        }
    }
}

struct Shown(At);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let At { base, offset } = self.0;
        match base {
            Base::Window => write!(f, "w+{offset:#x}"),
            Base::Top if offset < 0 => write!(f, "top-{:#x}", offset.unsigned_abs()),
            Base::Top => write!(f, "top+{offset:#x}"),
            Base::Abs => write!(f, "{:#x}", offset as u64),
        }
    }
}

/// Where a sequence runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The window.
    pub place: Place,
    /// Contents of pages are compared after every so many steps, and after the
    /// last. (Looking at a page that vmalab has hidden brings it back.)
    pub contents_every: u32,
    /// The same for `vm_flags`, which are slow to get from the host.
    pub flags_every: u32,
}

impl Setup {
    /// The small window, everything compared after every step.
    pub const THOROUGH: Setup = Setup { place: Place::Small, contents_every: 1, flags_every: 1 };
}

/// A window and its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// 64 pages.
    Small,
    /// 8 MiB, aligned to 2 MiB.
    Large,
    /// 64 pages, in a process that is 24 mappings short of `vm.max_map_count`.
    Crowded,
    /// 64 pages, in a process with CAP_IPC_LOCK: RLIMIT_MEMLOCK does not bind.
    Privileged,
}

impl Place {
    /// All of them.
    pub const ALL: [Place; 4] = [Place::Small, Place::Large, Place::Crowded, Place::Privileged];

    /// Pages of the window.
    pub fn pages(self) -> usize {
        if self == Place::Large { crate::remote::PAGES_MAX } else { 64 }
    }

    /// Bytes of the window.
    pub fn bytes(self) -> usize {
        self.pages() * crate::PAGE
    }

    /// Where the break starts, in bytes into the window.
    pub fn brk_start(self) -> usize {
        24 * crate::PAGE
    }
}

/// Steps and where they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Where.
    pub setup: Setup,
    /// What.
    pub ops: Vec<Op>,
}

impl Sequence {
    /// A Rust test that runs the sequence.
    pub fn source(&self, name: &str) -> String {
        let mut text = format!("#[test]\nfn {name}() {{\n    use vmalab_conform::prelude::*;\n");
        let call = if self.setup == Setup::THOROUGH {
            "check(&[".to_owned()
        } else {
            format!("check_in({:?}, &[", self.setup)
        };
        text += &format!("    {call}\n");
        for op in &self.ops {
            text += &format!("        // {op}\n        {},\n", op.source());
        }
        text += "    ]);\n}\n";
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_rust() {
        let op = Op::Mlock2 { addr: top(-4096), len: usize::MAX, flags: 3 };
        assert_eq!(op.source(), "Mlock2 { addr: top(-0x1000), len: 0xffffffffffffffff, flags: 3 }");
        let op = Op::Madvise { addr: win(4097), len: 4096, advice: -12 };
        assert_eq!(op.source(), "Madvise { addr: win(0x1001), len: 0x1000, advice: -0xc }");
    }
}
