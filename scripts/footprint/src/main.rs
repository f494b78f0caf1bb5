//! Counts what one fault costs in instructions and cache lines, by single steps.
//!
//! `vmalab-footprint VMALAB STRESS_ARGUMENT...` runs `VMALAB stress ...` under ptrace, lets some thousand faults pass and
//! then steps through the SIGBUS handler, from its first instruction to its return. What the kernel does is not seen: a
//! system call is one instruction. Unlike a time, the result is the same from run to run, on a busy machine too.

use iced_x86::{Code, Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use nix::errno::Errno;
use nix::libc::{c_long, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use object::{Object, ObjectSection, ObjectSymbol};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// Faults that pass first: tables are full and locks of the first store taken by then.
const WARM_UP: usize = 2003;
/// A fault that takes more has met something else.
const STEPS_MAX: usize = 50_000;
const LINE: u64 = 64;
/// Where a fault arrives.
const HANDLER: &str = "vmalab_fault_handler::sigbus::on_sigbus";
const INT3: c_long = 0xcc;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The functions and statics of the program, by address, and in the end its sections.
struct Symbols {
    named: BTreeMap<u64, (u64, String)>,
    sections: Vec<(u64, u64, String)>,
}

impl Symbols {
    fn of(program: &str) -> Result<Symbols> {
        let bytes = std::fs::read(program).map_err(|error| format!("cannot read {program}: {error}"))?;
        let file = object::File::parse(&*bytes)?;
        let named = file.symbols().filter(|symbol| symbol.size() > 0).filter_map(|symbol| {
            let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
            Some((symbol.address(), (symbol.size(), name)))
        });
        let section =
            |section: object::Section| Some((section.address(), section.size(), section.name().ok()?.to_string()));
        Ok(Symbols { named: named.collect(), sections: file.sections().filter_map(section).collect() })
    }

    fn address_of(&self, name: &str) -> Option<u64> {
        self.named.iter().find(|(_, (_, known))| known == name).map(|(&address, _)| address)
    }

    /// What lies there: a symbol, or else the section (`.got` has the addresses of other crates' statics).
    fn name_of(&self, address: u64) -> &str {
        if let Some((&start, (size, name))) = self.named.range(..=address).next_back()
            && address - start < *size
        {
            return name;
        }
        let holds = |&&(start, size, _): &&(u64, u64, String)| start <= address && address - start < size;
        self.sections.iter().find(holds).map_or("?", |(_, _, name)| name)
    }
}

/// One part of the process's memory.
struct Mapping {
    start: u64,
    end: u64,
    path: String,
}

fn mappings(process: Pid) -> Result<Vec<Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/maps"))?;
    let parse = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let path = line.split_whitespace().nth(5).unwrap_or("").to_string();
        Some(Mapping { start: u64::from_str_radix(start, 16).ok()?, end: u64::from_str_radix(end, 16).ok()?, path })
    };
    Ok(text.lines().filter_map(parse).collect())
}

/// What the steps of one function came to.
#[derive(Default)]
struct Share {
    instructions: usize,
    code: BTreeSet<u64>,
}

/// What all steps came to.
#[derive(Default)]
struct Footprint {
    functions: BTreeMap<String, Share>,
    order: Vec<String>,
    code: BTreeSet<u64>,
    /// Each data line: whether it was written, and the first address in it that was used.
    data: BTreeMap<u64, (bool, u64)>,
    locked: usize,
    system_calls: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_forbidden(&*error) => {
            eprintln!(
                "footprint: a process may not trace its child here ({error}): allow ptrace (seccomp profile, yama)"
            );
            ExitCode::from(3)
        }
        Err(error) => {
            eprintln!("footprint: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_forbidden(error: &(dyn Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let errno = error.downcast_ref::<Errno>().copied();
    errno.or(io.map(Errno::from_raw)) == Some(Errno::EPERM)
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().ok_or("usage: vmalab-footprint VMALAB STRESS_ARGUMENT...")?;
    let symbols = Symbols::of(&program)?;
    let handler = symbols.address_of(HANDLER).ok_or_else(|| format!("{program} has no function {HANDLER}"))?;

    let mut command = Command::new(&program);
    command.arg("stress").args(arguments).stdout(Stdio::null());
    // SAFETY: one system call, which is async-signal-safe.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
    let child = command.spawn()?;
    let process = Pid::from_raw(child.id() as i32);
    waitpid(process, None)?;
    ptrace::setoptions(process, Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL)?;
    // The program is where its first mapping is, as its addresses begin at 0.
    let base = mappings(process)?.first().ok_or("a process without memory")?.start;

    let thread = stop_in_handler(process, base + handler)?;
    let first = ptrace::getregs(thread)?;
    let footprint = step_to_return(thread, base, &symbols)?;
    report(&footprint, &mappings(process)?, base, &first, &symbols);
    Ok(())
}

/// Runs until some thread has arrived at `at` often enough; all others go on.
fn stop_in_handler(process: Pid, at: u64) -> Result<Pid> {
    let place = at as ptrace::AddressType;
    let original = ptrace::read(process, place)?;
    let trap = original & !0xff | INT3;
    ptrace::write(process, place, trap)?;
    ptrace::cont(process, None)?;
    let mut arrivals = 0;
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => return Err("the run ended before it had taken enough faults".into()),
            status => status?,
        };
        match status {
            WaitStatus::Stopped(thread, Signal::SIGTRAP) => {
                let mut registers = ptrace::getregs(thread)?;
                if registers.rip != at + 1 {
                    ptrace::cont(thread, None)?;
                    continue;
                }
                registers.rip = at;
                ptrace::setregs(thread, registers)?;
                ptrace::write(thread, place, original)?;
                arrivals += 1;
                if arrivals > WARM_UP {
                    return Ok(thread);
                }
                ptrace::step(thread, None)?;
                waitpid(thread, Some(WaitPidFlag::__WALL))?;
                ptrace::write(thread, place, trap)?;
                ptrace::cont(thread, None)?;
            }
            // A new thread's first stop.
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => ptrace::cont(thread, None)?,
            WaitStatus::Stopped(thread, signal) => ptrace::cont(thread, signal)?,
            WaitStatus::PtraceEvent(thread, ..) => ptrace::cont(thread, None)?,
            _ => {}
        }
    }
}

/// Steps until the function that begins here has returned.
fn step_to_return(thread: Pid, base: u64, symbols: &Symbols) -> Result<Footprint> {
    let mut footprint = Footprint::default();
    let mut details = InstructionInfoFactory::new();
    let frame = ptrace::getregs(thread)?.rsp;
    for _ in 0..STEPS_MAX {
        let registers = ptrace::getregs(thread)?;
        if registers.rsp > frame {
            return Ok(footprint);
        }
        let mut bytes = [0; 16];
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            let address = registers.rip + 8 * i as u64;
            word.copy_from_slice(&ptrace::read(thread, address as ptrace::AddressType)?.to_le_bytes());
        }
        let instruction = Decoder::with_ip(64, &bytes, registers.rip, DecoderOptions::NONE).decode();

        let name = symbols.name_of(registers.rip.wrapping_sub(base));
        let name = if registers.rip >= base && registers.rip - base < 1 << 32 { name } else { "(other libraries)" };
        if !footprint.functions.contains_key(name) {
            footprint.order.push(name.to_string());
        }
        let share = footprint.functions.entry(name.to_string()).or_default();
        share.instructions += 1;
        for byte in [0, instruction.len() as u64 - 1] {
            share.code.insert((registers.rip + byte) / LINE);
            footprint.code.insert((registers.rip + byte) / LINE);
        }
        footprint.locked += usize::from(instruction.has_lock_prefix());
        footprint.system_calls += usize::from(instruction.code() == Code::Syscall);
        if !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
            for used in details.info(&instruction).used_memory() {
                let address = used.virtual_address(0, |register, _, _| value_of(register, &registers));
                if let Some(address) = address.filter(|_| used.access() != OpAccess::NoMemAccess) {
                    let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
                    footprint.data.entry(address / LINE).or_insert((false, address)).0 |= written;
                }
            }
        }
        ptrace::step(thread, None)?;
        match waitpid(thread, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            other => return Err(format!("the fault was disturbed: {other:?}").into()),
        }
    }
    Err(format!("no end after {STEPS_MAX} instructions").into())
}

fn value_of(register: Register, at: &user_regs_struct) -> Option<u64> {
    Some(match register {
        Register::RAX => at.rax,
        Register::RBX => at.rbx,
        Register::RCX => at.rcx,
        Register::RDX => at.rdx,
        Register::RSI => at.rsi,
        Register::RDI => at.rdi,
        Register::RBP => at.rbp,
        Register::RSP => at.rsp,
        Register::R8 => at.r8,
        Register::R9 => at.r9,
        Register::R10 => at.r10,
        Register::R11 => at.r11,
        Register::R12 => at.r12,
        Register::R13 => at.r13,
        Register::R14 => at.r14,
        Register::R15 => at.r15,
        Register::FS => at.fs_base,
        Register::GS => at.gs_base,
        // Segments without a base of their own.
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    })
}

/// Without what says the same in every line: `<vmalab::lock::typesafe::TypeSafe as vmalab::lock::LockScheme>::f`.
fn short(name: &str) -> String {
    let name = name.replace("vmalab_fault_handler::", "").replace("vmalab::", "");
    if name.chars().count() <= 76 { name } else { format!("{}...", name.chars().take(73).collect::<String>()) }
}

fn report(footprint: &Footprint, memory: &[Mapping], base: u64, first: &user_regs_struct, symbols: &Symbols) {
    println!("{:>12} {:>10}  function", "instructions", "code lines");
    for name in &footprint.order {
        let share = &footprint.functions[name];
        println!("{:>12} {:>10}  {}", share.instructions, share.code.len(), short(name));
    }
    let all: usize = footprint.functions.values().map(|share| share.instructions).sum();
    println!(
        "{all:>12} {:>10}  all of it; {} locked, {} system calls",
        footprint.code.len(),
        footprint.locked,
        footprint.system_calls
    );

    // The program's own data may lie right behind what is mapped of its file.
    let program = memory.iter().find(|part| part.start == base).map_or("", |part| part.path.as_str());
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut statics = Vec::new();
    let mut after_program = false;
    let mut inside = |address: u64| {
        let part = memory.iter().position(|part| part.start <= address && address < part.end)?;
        after_program = memory[part].path.is_empty() && part > 0 && memory[part - 1].path == program;
        Some((memory[part].path.clone(), after_program))
    };
    for &(written, address) in footprint.data.values() {
        let kind = match inside(address) {
            _ if address < first.rsp && first.rsp - address < 64 << 10 => "stack",
            _ if address >= first.rsp && address - first.rsp < 8 << 10 => "signal frame",
            _ if address.abs_diff(first.fs_base) < 8 << 10 => "thread-locals",
            Some((path, bss)) if path == program || bss => {
                statics.push((address - base, written));
                "statics of the program"
            }
            Some((path, _)) if path.contains(".so") => "other libraries",
            _ => "heap and slabs",
        };
        let count = kinds.entry(kind).or_default();
        count.0 += 1;
        count.1 += usize::from(written);
    }
    println!("\n{:>12} {:>10}  kind", "data lines", "written");
    for (kind, (lines, written)) in &kinds {
        println!("{lines:>12} {written:>10}  {kind}");
    }
    let written = footprint.data.values().filter(|(written, _)| *written).count();
    println!("{:>12} {written:>10}  all of it", footprint.data.len());
    if std::env::var_os("STATICS").is_some_and(|wanted| wanted == "1") {
        for (address, written) in statics {
            println!(
                "  {address:#x} {} {}",
                if written { "written" } else { "read   " },
                short(symbols.name_of(address))
            );
        }
    }
}
