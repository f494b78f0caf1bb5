//! Random calls and accesses, sane and not, on an address space under each
//! lock scheme and on the model: all five must answer alike, and look alike
//! after every call.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::fmt;
use vmalab::Errno;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::model::{Model, ModelVma};
use vmalab::mm::{AccessError, MAP_COUNT_MAX, MapFlags, MapsEntry, Mm, Prot};
use vmalab::mmu::Mmu;
use vmalab::mmu::soft::{BASE, SoftMmu};
use vmalab::pager::ZeroPager;

/// Two huge pages and a bit: room for one that is aligned.
const LARGE: usize = 1024 + 16;
const SMALL: usize = 24;
const HUGE: usize = 2 << 20;
/// Calls in one sequence: more make the naive model slow, not the fuzzer wise.
const STEPS_MAX: usize = 64;
/// Mappings are few under the small limit, so that it is met.
const MAP_COUNT_SMALL: usize = 7;

#[derive(Arbitrary)]
struct Input {
    /// Rarely large: that takes time.
    size: u8,
    few_mappings: bool,
    calls: Vec<Call>,
}

#[derive(Arbitrary, Clone, Copy)]
enum Call {
    Mmap {
        addr: Addr,
        len: Len,
        prot: ProtBits,
        flags: Flags,
    },
    /// Most mappings are sane: else nothing is there to be cut.
    MmapFixed {
        page: u8,
        pages: u8,
        prot: Rwx,
        noreserve: bool,
    },
    Munmap {
        addr: Addr,
        len: Len,
    },
    Mprotect {
        addr: Addr,
        len: Len,
        prot: ProtBits,
    },
    MprotectPages {
        page: u8,
        pages: u8,
        prot: Rwx,
    },
    Read {
        addr: Addr,
        len: Short,
    },
    Write {
        addr: Addr,
        len: Short,
        value: u8,
    },
    SetMaxMapCount {
        few: bool,
    },
}

/// An address, more often at an edge than chance would have it.
#[derive(Arbitrary, Clone, Copy)]
enum Addr {
    Page(u8),
    Byte { page: u8, offset: u16 },
    FromEnd { pages: i8 },
    HugePage { number: u8, pages: i8 },
    FirstPage { offset: u16 },
    Below { pages: u8 },
    Top { bytes: u16 },
    Any(usize),
}

/// A length in bytes, likewise.
#[derive(Arbitrary, Clone, Copy)]
enum Len {
    Pages(u8),
    Bytes(u16),
    Huge {
        pages: i8,
    },
    All {
        pages: i8,
    },
    /// Rounds up to 0, or wraps with the address.
    Wraps {
        bytes: u16,
    },
    Any(usize),
}

#[derive(Arbitrary, Clone, Copy)]
struct Short(u16);

#[derive(Arbitrary, Clone, Copy)]
enum Rwx {
    None,
    Read,
    Write,
    ReadWrite,
    Exec,
    All,
}

#[derive(Arbitrary, Clone, Copy)]
enum ProtBits {
    Usual(Rwx),
    Sem(Rwx),
    GrowsDown(Rwx),
    GrowsUp(Rwx),
    GrowsBoth,
    Any(u32),
}

#[derive(Arbitrary, Clone, Copy)]
enum Flags {
    Hint { noreserve: bool, stack: bool, populate: bool },
    Fixed { noreserve: bool, stack: bool, populate: bool },
    NoReplace { also_fixed: bool },
    NotAnonymous,
    Any(u32),
}

impl Addr {
    fn get(self, region: usize) -> usize {
        let base = BASE.get();
        let pages = |n: i8| (n as isize as usize).wrapping_mul(PAGE_SIZE);
        match self {
            Addr::Page(n) => base + n as usize % (SMALL + 2) * PAGE_SIZE,
            Addr::Byte { page, offset } => {
                base + page as usize % (SMALL + 1) * PAGE_SIZE + offset as usize % (PAGE_SIZE + 1)
            }
            Addr::FromEnd { pages: n } => (base + region).wrapping_add(pages(n)),
            Addr::HugePage { number, pages: n } => (base + number as usize % 4 * HUGE).wrapping_add(pages(n)),
            Addr::FirstPage { offset } => offset as usize % (2 * PAGE_SIZE),
            Addr::Below { pages: n } => base - n as usize * PAGE_SIZE,
            Addr::Top { bytes } => usize::MAX - bytes as usize,
            Addr::Any(addr) => addr,
        }
    }
}

impl Len {
    fn get(self, region: usize) -> usize {
        let pages = |n: i8| (n as isize as usize).wrapping_mul(PAGE_SIZE);
        match self {
            Len::Pages(n) => n as usize % (SMALL + 2) * PAGE_SIZE,
            Len::Bytes(n) => n as usize,
            Len::Huge { pages: n } => HUGE.wrapping_add(pages(n % 4)),
            Len::All { pages: n } => region.wrapping_add(pages(n % 4)),
            Len::Wraps { bytes } => usize::MAX - bytes as usize,
            Len::Any(len) => len,
        }
    }
}

impl Short {
    /// Bytes of one access: often few, at times some pages.
    fn get(self) -> usize {
        self.0 as usize % if self.0 & 0x8000 == 0 { 20 } else { 2 * PAGE_SIZE + 20 }
    }
}

impl Rwx {
    fn get(self) -> Prot {
        match self {
            Rwx::None => Prot::NONE,
            Rwx::Read => Prot::READ,
            Rwx::Write => Prot::WRITE,
            Rwx::ReadWrite => Prot::READ | Prot::WRITE,
            Rwx::Exec => Prot::EXEC,
            Rwx::All => Prot::READ | Prot::WRITE | Prot::EXEC,
        }
    }
}

impl ProtBits {
    fn get(self) -> Prot {
        match self {
            ProtBits::Usual(rwx) => rwx.get(),
            ProtBits::Sem(rwx) => rwx.get() | Prot::SEM,
            ProtBits::GrowsDown(rwx) => rwx.get() | Prot::GROWSDOWN,
            ProtBits::GrowsUp(rwx) => rwx.get() | Prot::GROWSUP,
            ProtBits::GrowsBoth => Prot::GROWSDOWN | Prot::GROWSUP,
            ProtBits::Any(bits) => Prot::from_bits_retain(bits),
        }
    }
}

/// What the model knows of: private memory, and nothing special about it.
/// (`vmalab conform` compares the rest with the host.)
fn modelled(flags: MapFlags) -> MapFlags {
    let special = MapFlags::LOCKED
        | MapFlags::GROWSDOWN
        | MapFlags::HUGETLB
        | MapFlags::MAP_32BIT
        | MapFlags::SYNC
        | MapFlags::NONBLOCK;
    let flags = flags - special;
    // SHARED and DROPPABLE.
    match flags.bits() & 0x0f {
        1 | 8 => (flags - MapFlags::SHARED - MapFlags::DROPPABLE) | MapFlags::PRIVATE,
        _ => flags,
    }
}

impl Flags {
    fn get(self) -> MapFlags {
        let anon = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
        let with = |flag: MapFlags, on: bool| if on { flag } else { MapFlags::empty() };
        let extra = |noreserve, stack, populate| {
            with(MapFlags::NORESERVE, noreserve) | with(MapFlags::STACK, stack) | with(MapFlags::POPULATE, populate)
        };
        match self {
            Flags::Hint { noreserve, stack, populate } => anon | extra(noreserve, stack, populate),
            Flags::Fixed { noreserve, stack, populate } => anon | MapFlags::FIXED | extra(noreserve, stack, populate),
            Flags::NoReplace { also_fixed } => anon | MapFlags::FIXED_NOREPLACE | with(MapFlags::FIXED, also_fixed),
            Flags::NotAnonymous => MapFlags::PRIVATE,
            Flags::Any(bits) => modelled(MapFlags::from_bits_retain(bits)),
        }
    }
}

/// A call with its arguments as numbers.
#[derive(Clone, Copy)]
enum Plain {
    Mmap { addr: usize, len: usize, prot: Prot, flags: MapFlags },
    Munmap { addr: usize, len: usize },
    Mprotect { addr: usize, len: usize, prot: Prot },
    Read { addr: usize, len: usize },
    Write { addr: usize, len: usize, value: u8 },
    SetMaxMapCount(usize),
}

impl Call {
    fn plain(self, region: usize) -> Plain {
        let page = |n: u8| BASE.get() + n as usize % SMALL * PAGE_SIZE;
        let some = |n: u8| (1 + n as usize % 6) * PAGE_SIZE;
        match self {
            Call::Mmap { addr, len, prot, flags } => {
                Plain::Mmap { addr: addr.get(region), len: len.get(region), prot: prot.get(), flags: flags.get() }
            }
            Call::MmapFixed { page: n, pages, prot, noreserve } => {
                let flags = Flags::Fixed { noreserve, stack: false, populate: false };
                Plain::Mmap { addr: page(n), len: some(pages), prot: prot.get(), flags: flags.get() }
            }
            Call::Munmap { addr, len } => Plain::Munmap { addr: addr.get(region), len: len.get(region) },
            Call::Mprotect { addr, len, prot } => {
                Plain::Mprotect { addr: addr.get(region), len: len.get(region), prot: prot.get() }
            }
            Call::MprotectPages { page: n, pages, prot } => {
                Plain::Mprotect { addr: page(n), len: some(pages), prot: prot.get() }
            }
            Call::Read { addr, len } => Plain::Read { addr: addr.get(region), len: len.get() },
            Call::Write { addr, len, value } => Plain::Write { addr: addr.get(region), len: len.get(), value },
            Call::SetMaxMapCount { few } => Plain::SetMaxMapCount(if few { MAP_COUNT_SMALL } else { MAP_COUNT_MAX }),
        }
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Plain::Mmap { addr, len, prot, flags } => {
                write!(f, "mmap({addr:#x}, {len:#x}, {:#x}, {:#x})", prot.bits(), flags.bits())?;
                write!(f, " // {prot:?}, {flags:?}")
            }
            Plain::Munmap { addr, len } => write!(f, "munmap({addr:#x}, {len:#x})"),
            Plain::Mprotect { addr, len, prot } => {
                write!(f, "mprotect({addr:#x}, {len:#x}, {:#x}) // {prot:?}", prot.bits())
            }
            Plain::Read { addr, len } => write!(f, "read({addr:#x}, {len})"),
            Plain::Write { addr, len, value } => write!(f, "write({addr:#x}, [{value:#04x}; {len}])"),
            Plain::SetMaxMapCount(max) => write!(f, "set_max_map_count({max})"),
        }
    }
}

impl Input {
    fn region(&self) -> usize {
        if self.size % 16 == 15 { LARGE * PAGE_SIZE } else { SMALL * PAGE_SIZE }
    }

    fn map_count_max(&self) -> usize {
        if self.few_mappings { MAP_COUNT_SMALL } else { MAP_COUNT_MAX }
    }

    fn calls(&self) -> impl Iterator<Item = Plain> {
        self.calls.iter().take(STEPS_MAX).map(|call| call.plain(self.region()))
    }
}

/// What cargo-fuzz prints of a crash: the calls, to be pasted into a test.
impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SoftMmu::new({:#x}) at {BASE:#x}; at most {} mappings", self.region(), self.map_count_max())?;
        self.calls().enumerate().try_for_each(|(step, call)| writeln!(f, "{step:3}: {call:?}"))
    }
}

/// What a call answers.
#[derive(Debug, PartialEq)]
enum Answer {
    Address(Result<VirtAddr, Errno>),
    Call(Result<(), Errno>),
    Access(Result<(), AccessError>, Vec<u8>),
    Nothing,
}

/// An address space, whatever its locks.
trait Space {
    fn name(&self) -> &'static str;
    fn call(&mut self, call: Plain) -> Answer;
    fn vmas(&self) -> Vec<ModelVma>;
    fn maps(&self) -> Vec<MapsEntry>;
    fn validate(&self);
}

/// The two take the same calls by the same names.
macro_rules! answer {
    ($space:expr, $call:expr) => {
        match $call {
            Plain::Mmap { addr, len, prot, flags } => Answer::Address($space.mmap(addr, len, prot, flags)),
            Plain::Munmap { addr, len } => Answer::Call($space.munmap(addr, len)),
            Plain::Mprotect { addr, len, prot } => Answer::Call($space.mprotect(addr, len, prot)),
            Plain::Read { addr, len } => {
                let mut bytes = vec![0xa5; len];
                Answer::Access($space.read(VirtAddr(addr), &mut bytes), bytes)
            }
            Plain::Write { addr, len, value } => {
                Answer::Access($space.write(VirtAddr(addr), &vec![value; len]), Vec::new())
            }
            Plain::SetMaxMapCount(max) => {
                $space.set_max_map_count(max);
                Answer::Nothing
            }
        }
    };
}

impl<S: LockScheme> Space for Mm<S, SoftMmu, ZeroPager> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn call(&mut self, call: Plain) -> Answer {
        answer!(self, call)
    }

    fn vmas(&self) -> Vec<ModelVma> {
        let vmas = ModelVma::all_of(self);
        assert_eq!(vmas.len(), self.map_count());
        for at in self.mmu().range().iter_pages().step_by(5) {
            let mapped = vmas.iter().any(|v| v.start <= at.get() && at.get() < v.end);
            assert_eq!(self.is_mapped(at), mapped, "is_mapped({at:?})");
        }
        vmas
    }

    fn maps(&self) -> Vec<MapsEntry> {
        Mm::maps(self)
    }

    fn validate(&self) {
        Mm::validate(self);
    }
}

fn space<S: LockScheme>(region: usize) -> Box<dyn Space> {
    Box::new(Mm::<S, _, _>::new(SoftMmu::new(region).expect("a small region"), ZeroPager))
}

fuzz_target!(|input: Input| {
    let region = input.region();
    let mut spaces =
        [space::<MmapOnly>(region), space::<Rcu>(region), space::<TypeSafe>(region), space::<RefCount>(region)];
    let mut model = Model::new(SoftMmu::new(region).expect("a small region").range());
    spaces.iter_mut().for_each(|space| drop(space.call(Plain::SetMaxMapCount(input.map_count_max()))));
    model.set_max_map_count(input.map_count_max());
    for (step, call) in input.calls().enumerate() {
        let expected = answer!(model, call);
        let mut listing: Option<Vec<MapsEntry>> = None;
        for space in &mut spaces {
            let name = space.name();
            let answer = space.call(call);
            assert_eq!(answer, expected, "{name} and the model answer call {step} differently: {call:?}");
            assert_eq!(space.vmas(), model.vmas(), "{name} and the model differ after call {step}: {call:?}");
            // With the incarnations, which the model does not know.
            let maps = space.maps();
            if let Some(listing) = &listing {
                assert_eq!(&maps, listing, "{name} and mmap differ after call {step}: {call:?}");
            }
            listing = Some(maps);
        }
    }
    spaces.iter().for_each(|space| space.validate());
});
