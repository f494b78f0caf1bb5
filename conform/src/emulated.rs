//! vmalab's side: sequences run on a fresh address space, with real faults.

use crate::host::TASK_SIZE;
use crate::observe::{Answer, Recorder, Side, Signal, VmaSeen, Want};
use crate::op::{At, Op, Sequence, Slot};
use crate::run::{Config, Delivery, Lock, Sabotage};
use crate::{MINCORE_MAX, PAGE, fold};
use nix::errno::Errno;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use vmalab::addr::VirtAddr;
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Prot};
use vmalab_fault_handler::{AddressSpace, access};

/// Whether vmalab has the call, with these operands. What it has not is never
/// generated; each entry goes when the core has it.
pub fn supports(op: &Op) -> bool {
    const SHARED: u32 = 1;
    const ANONYMOUS: u32 = 0x20;
    const GROWSDOWN: u32 = 0x100;
    const LOCKED: u32 = 0x2000;
    const HUGETLB: u32 = 0x4_0000;
    if known(op) {
        return false;
    }
    match *op {
        Op::Mmap { flags, file, .. } => {
            let anonymous = flags & ANONYMOUS != 0 || file == Slot::NoFile;
            anonymous && flags & (LOCKED | HUGETLB | GROWSDOWN) == 0 && ![SHARED, 8].contains(&(flags & 0xf))
        }
        Op::Munmap { .. } | Op::Mprotect { .. } => true,
        Op::Load { .. } | Op::LoadByte { .. } | Op::Store { .. } | Op::StoreByte { .. } => true,
        _ => false,
    }
}

/// Divergences that are known and wait for the core; each is left out of random
/// sequences so that it does not hide others, and goes when it is mended.
pub const KNOWN: &[(&str, &str)] = &[
    ("MAP_POPULATE with MAP_NONBLOCK", "DIVERGES: the host then populates nothing"),
    ("MAP_SYNC on private mappings", "DIVERGES: sets VM_SYNC on the host, so no merge with others"),
];

fn known(op: &Op) -> bool {
    const SYNC: u32 = 0x8_0000;
    const POPULATE_NONBLOCK: u32 = 0x1_8000;
    match *op {
        Op::Mmap { flags, .. } => flags & SYNC != 0 || flags & POPULATE_NONBLOCK == POPULATE_NONBLOCK,
        _ => false,
    }
}

/// What vmalab's side has to say.
pub enum Outcome {
    /// Words written.
    Done(usize),
    /// It panicked, after so many words.
    Panicked(usize, String),
}

/// Runs `sequence` on a fresh address space. `map_count_room` is what the host
/// leaves of `vm.max_map_count`.
///
/// # Errors
/// The address space could not be made.
pub fn run(
    sequence: &Sequence,
    config: &Config,
    map_count_room: usize,
    words: &mut [u64],
) -> Result<Outcome, vmalab_fault_handler::Error> {
    match config.lock {
        Lock::Mmap => run_on::<MmapOnly>(sequence, config, map_count_room, words),
        Lock::Rcu => run_on::<Rcu>(sequence, config, map_count_room, words),
        Lock::TypeSafe => run_on::<TypeSafe>(sequence, config, map_count_room, words),
        Lock::RefCount => run_on::<RefCount>(sequence, config, map_count_room, words),
    }
}

fn run_on<S: LockScheme>(
    sequence: &Sequence,
    config: &Config,
    map_count_room: usize,
    words: &mut [u64],
) -> Result<Outcome, vmalab_fault_handler::Error> {
    let delivery = match config.delivery {
        Delivery::Sigbus => vmalab_fault_handler::Delivery::Sigbus,
        Delivery::Queue => vmalab_fault_handler::Delivery::Queue { handlers: 1, polling: false },
    };
    let space = AddressSpace::<S>::builder().region(sequence.setup.place.bytes()).delivery(delivery).build()?;
    space.set_max_map_count(map_count_room);
    let pagemap = File::open("/proc/self/pagemap").expect("/proc is there: the host's side uses it");
    // After a panic the address space may be in any state: it is left alone.
    let mut here = ManuallyDrop::new(Here {
        window: space.range().start().get(),
        pages: sequence.setup.place.pages(),
        pagemap,
        entries: vec![0; sequence.setup.place.pages() * 8],
        sabotage: config.sabotage,
        space,
    });
    let mut recorder = Recorder::new(words, here.pages);
    let result = catch_unwind(AssertUnwindSafe(|| here.run(sequence, &mut recorder)));
    match result {
        Ok(()) => {
            ManuallyDrop::into_inner(here);
            Ok(Outcome::Done(recorder.used()))
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no message)");
            Ok(Outcome::Panicked(recorder.used(), text.to_owned()))
        }
    }
}

struct Here<S: LockScheme> {
    space: AddressSpace<S>,
    window: usize,
    pages: usize,
    pagemap: File,
    entries: Vec<u8>,
    sabotage: Option<Sabotage>,
}

fn signal(signal: vmalab::fault::Signal) -> Signal {
    match signal {
        vmalab::fault::Signal::MapErr => Signal::MapErr,
        vmalab::fault::Signal::AccErr => Signal::AccErr,
        vmalab::fault::Signal::Bus => Signal::BusAdrErr,
    }
}

impl<S: LockScheme> Side for Here<S> {
    fn vmas(&mut self, each: &mut dyn FnMut(VmaSeen)) {
        for entry in self.space.maps() {
            each(VmaSeen {
                start: ((entry.range.start().get() - self.window) / PAGE) as u32,
                end: ((entry.range.end().get() - self.window) / PAGE) as u32,
                attr: entry.prot.bits() as u8,
                offset: 0,
            });
        }
    }

    /// What the hardware has: in the region, or hidden in its twin.
    fn presence(&mut self, bits: &mut [u64]) {
        const PRESENT: u64 = 1 << 63;
        let reservation = self.space.mmu().region().reservation().bytes();
        let bytes = self.pages * PAGE;
        let align = if bytes >= 2 << 20 { 2 << 20 } else { PAGE };
        let twin = (reservation - align) / 2;
        for start in [self.window, self.window + twin] {
            let at = (start / PAGE * 8) as u64;
            self.pagemap.read_exact_at(&mut self.entries, at).expect("our own pages");
            for (page, entry) in self.entries.chunks_exact(8).enumerate() {
                if u64::from_ne_bytes(entry.try_into().expect("eight bytes")) & PRESENT != 0 {
                    bits[page / 64] |= 1 << (page % 64);
                }
            }
        }
    }

    fn word(&mut self, offset: usize) -> u64 {
        // SAFETY: an address of the region.
        unsafe { access::load_u64(self.window + offset) }.unwrap_or(u64::MAX)
    }

    fn vm_flags(&mut self, _: &mut dyn FnMut(u64)) -> bool {
        false
    }
}

impl<S: LockScheme> Here<S> {
    fn run(&mut self, sequence: &Sequence, recorder: &mut Recorder<'_>) {
        let ops = &sequence.ops;
        for (step, op) in ops.iter().enumerate() {
            let answer = self.call(op);
            recorder.record(self, answer, Want::at(sequence.setup, step, ops.len()));
        }
        self.space.validate();
        recorder.record(self, Answer::End, Want { contents: true, flags: true });
        let window = self.window;
        // SAFETY: addresses of the region.
        recorder.sweep(|offset| match unsafe { access::load_u64(window + offset) } {
            Ok(word) => Answer::Value(word),
            Err(bad) => Answer::Signal(signal(bad)),
        });
        self.space.validate();
    }

    fn at(&self, at: At) -> usize {
        at.resolve(self.window, self.window + self.pages * PAGE)
    }

    fn call(&mut self, op: &Op) -> Answer {
        let window = self.window;
        let plain = |result: Result<(), Errno>| result.map_or_else(failed, |()| Answer::Value(0));
        let place = |result: Result<VirtAddr, Errno>| {
            result.map_or_else(failed, |addr| Answer::Value(addr.get().wrapping_sub(window) as u64))
        };
        let loaded = |result: Result<u64, vmalab::fault::Signal>| {
            result.map_or_else(|bad| Answer::Signal(signal(bad)), Answer::Value)
        };
        match *op {
            // What the system call itself checks (`ksys_mmap_pgoff`): vmalab's call has no offset.
            Op::Mmap { offset, .. } if !offset.is_multiple_of(PAGE as u64) => failed(Errno::EINVAL),
            Op::Mmap { addr, len, prot, flags, .. } => {
                let (prot, mut flags) = (Prot::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
                if self.sabotage == Some(Sabotage::NoMerge) && flags.contains(MapFlags::FIXED) {
                    flags |= MapFlags::STACK;
                }
                place(self.space.mmap(self.at(addr), len, prot, flags))
            }
            Op::Munmap { addr, len } => match self.space.munmap(self.at(addr), len) {
                Err(Errno::EINVAL) if self.sabotage == Some(Sabotage::Errno) => failed(Errno::ENOMEM),
                result => plain(result),
            },
            Op::Mprotect { addr, len, prot } => {
                plain(self.space.mprotect(self.at(addr), len, Prot::from_bits_retain(prot)))
            }
            // SAFETY: addresses of the region (`is_safe`), here and below.
            Op::Load { addr } => loaded(unsafe { access::load_u64(self.at(addr)) }),
            // SAFETY: as above.
            Op::LoadByte { addr } => loaded(unsafe { access::load_u8(self.at(addr)) }.map(u64::from)),
            // SAFETY: as above.
            Op::Store { addr, value } => loaded(unsafe { access::store_u64(self.at(addr), value) }.map(|()| 0)),
            // SAFETY: as above.
            Op::StoreByte { addr, value } => loaded(unsafe { access::store_u8(self.at(addr), value) }.map(|()| 0)),
            ref other => unreachable!("{other} is not supported, so not generated"),
        }
    }
}

fn failed(errno: Errno) -> Answer {
    Answer::Error(errno as i32)
}

const _: () = assert!(TASK_SIZE > MINCORE_MAX * PAGE);
#[allow(dead_code, reason = "for mincore, which the core does not have yet")]
const _: fn(&[u8]) -> u64 = fold;
