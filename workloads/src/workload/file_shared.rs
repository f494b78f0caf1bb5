//! `file-shared`: all threads map one file shared, each at a place of its own
//! and in its own address space, store to their own words of its pages and
//! read the others': a database's buffers, or a message ring. Now and then a
//! thread syncs, or maps the file anew. With `--verify` a word never goes
//! back, its thread reads what it stored last through whatever mapping, and
//! after an `msync` the file has it.

use super::{Workload, background};
use crate::ctx::{Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::{Oracle, word_of};
use std::sync::Arc;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;

const PAGES: usize = 8;
const BYTES: usize = PAGES * PAGE_SIZE;

pub(super) struct FileShared {
    file: Arc<File>,
}

impl FileShared {
    /// The thread's mapping of the file.
    fn map<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow<VirtAddr> {
        ctx.map_file(ctx.mm, BYTES, RW, &self.file)
    }

    /// What the file itself holds of the thread's word.
    fn stored(&self, page: usize, worker: usize) -> Result<u64, vmalab::Errno> {
        let mut word = [0; 8];
        let offset = page * PAGE_SIZE + word_of(worker);
        self.file.inode().store().read_at(offset as u64, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }
}

fn load<T: Target>(ctx: &mut Ctx<T>, addr: VirtAddr) -> Flow<u64> {
    let seen = ctx.load(ctx.mm, addr);
    ctx.checked();
    ctx.not_bus(addr, seen)?.map_err(|signal| refused(ctx, addr, "load", signal))
}

fn refused<T: Target>(ctx: &Ctx<T>, addr: VirtAddr, what: &str, signal: Signal) -> Fail {
    let message = format!("a {what} ended in {signal:?}, but the mapping permits it");
    ctx.violation(Oracle::Outcome, ctx.mm, addr, message)
}

impl Workload for FileShared {
    fn region_bytes(plan: &Plan) -> usize {
        plan.threads * BYTES + plan.mutators * background::BYTES
    }

    fn new<T: Target>(shared: &Shared<T>) -> Result<FileShared, Fail> {
        let file = shared.targets[0].new_file(BYTES);
        Ok(FileShared { file: file.map_err(|errno| Fail::Error(format!("cannot make a file: {errno}")))? })
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let threads = ctx.shared.plan.threads;
        let mut start = self.map(ctx)?;
        // What this thread stored last, and the highest that it saw of others.
        let mut own = [0u64; PAGES];
        let mut seen = vec![[0u64; PAGES]; threads];
        let mut round = 0;
        while ctx.go() {
            round += 1;
            let page = ctx.rng.below(PAGES);
            let other = ctx.rng.below(threads);
            let word = |worker: usize| start + page * PAGE_SIZE + word_of(worker);
            match ctx.rng.below(64) {
                0 => {
                    ctx.munmap(ctx.mm, start, BYTES)?;
                    let stored = self.stored(page, ctx.worker);
                    if ctx.verify && stored != Ok(own[page]) {
                        let message = format!("after munmap the file holds {stored:x?}, not {:#x}", own[page]);
                        return Err(ctx.violation(Oracle::Contents, ctx.mm, start + page * PAGE_SIZE, message));
                    }
                    start = self.map(ctx)?;
                }
                1 => {
                    ctx.msync(ctx.mm, start, BYTES)?;
                    let stored = self.stored(page, ctx.worker);
                    if ctx.verify && stored != Ok(own[page]) {
                        let message = format!("after msync the file holds {stored:x?}, not {:#x}", own[page]);
                        return Err(ctx.violation(Oracle::Contents, ctx.mm, start + page * PAGE_SIZE, message));
                    }
                }
                2..16 => {
                    let result = ctx.store(ctx.mm, word(ctx.worker), round);
                    let result = ctx.not_bus(word(ctx.worker), result)?;
                    result.map_err(|signal| refused(ctx, word(ctx.worker), "store", signal))?;
                    own[page] = round;
                }
                16..32 => {
                    let value = load(ctx, word(ctx.worker))?;
                    if ctx.verify && value != own[page] {
                        let message = format!("the word is {value:#x}, this thread stored {:#x} last", own[page]);
                        return Err(ctx.violation(Oracle::Contents, ctx.mm, word(ctx.worker), message));
                    }
                }
                _ => {
                    let value = load(ctx, word(other))?;
                    if ctx.verify && value < seen[other][page] {
                        let message =
                            format!("the word of thread {other} went back to {value:#x} from {:#x}", seen[other][page]);
                        return Err(ctx.violation(Oracle::Contents, ctx.mm, word(other), message));
                    }
                    seen[other][page] = value;
                }
            }
        }
        ctx.munmap(ctx.mm, start, BYTES)
    }
}
