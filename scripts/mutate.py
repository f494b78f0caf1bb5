#!/usr/bin/env python3
"""Mutation run over the lock sources: is every check and every ordering shown by a test?

Derives mutations from the source text: an ordering weakened, a condition turned
off or a wait ended at once, a call left out, two steps in the wrong order. Each is
made in a scratch copy of the tree, and a ladder of tests runs until one fails:

  models     exhaustive loom models of the parts (src/**/models.rs)
  tests      the core's unit tests, with debug assertions
  scheduled  the race catalogue's scripts on real faults: the complete code must pass
  loom       the race catalogue under loom
  deep       the models again, with their own bounds

A mutation that nothing kills must be explained in docs/mutation.md, or the run
fails: exit status 1. Nothing is mutated in tests, in code that only builds with
mutants or models have, in assertions, and in conditions that report a violation
of an oracle: they are not steps of a protocol.

Examples:
  scripts/mutate.py --list
  scripts/mutate.py --only 'rcu.rs.*Acquire'
  scripts/mutate.py --limit 600 --seed 7 --json mutation.json
"""

import argparse
import concurrent.futures
import json
import os
import queue
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs/mutation.md"
SCRATCH = ROOT / "target/mutate"

# What is mutated: file -> (paths of the models that know it; functions
# whose conditions and calls are mutated, "*" for all; functions whose steps are
# swapped). Orderings are mutated everywhere. Argument checks of the system calls
# are not here: the conformance tests and the fuzzers are for those.
SOURCES = {
    "src/lock/typesafe.rs": (
        "lock::typesafe lock::rcu",
        "*",
        "vma_end_read vma_start_write vma_mark_attached vma_mark_detached lock_found check_locked up_read down_write",
    ),
    "src/lock/rcu.rs": (
        "lock::rcu",
        "*",
        "vma_end_read vma_start_write vma_mark_attached vma_mark_detached lock_found start_read",
    ),
    "src/lock/refcount.rs": (
        "lock::refcount mm::count",
        "*",
        "vma_end_read vma_mark_attached vma_mark_detached lock_found start_read put put_foreign start_write wait_for_readers",
    ),
    "src/lock/mod.rs": ("lock::", "find_and_lock", "find_and_lock"),
    "src/mmap_lock/futex.rs": ("mmap_lock", "*", "read_wait write_wait unlock_write give_to_readers wake_writer downgrade"),
    "src/mmap_lock/kernel.rs": ("mmap_lock", "*", "read_wait write_wait unlock_write give_to_readers wake_writer downgrade"),
    "src/rcu.rs": ("rcu:: tree:: slab:: lock::rcu", "*", "drop enter enter_shared start advance synchronize defer_all barrier"),
    "src/membarrier.rs": ("rcu::", "*", "heavy"),
    "src/slab.rs": ("slab::", "give_to_depot release_page take_from_depot", "give_to_depot"),
    "src/thread.rs": ("thread:: rcu:: slab::", "*", "drop announce"),
    "src/mm/core.rs": (
        "lock::",
        "mmap_write wake_vma_writer end_write_all commit downgrade drop exit_mmap",
        "mmap_write wake_vma_writer prepare commit downgrade",
    ),
    "src/mm/count.rs": ("mm::count", "put reap drop grab", "put reap drop"),
    "src/mm/munmap.rs": ("", "unmap_and_release unmap_within prepare_unmap munmap kill", "unmap_and_release unmap_within kill munmap"),
    "src/mm/mmap.rs": ("", "mmap_region map", "mmap_region"),
    "src/mm/mprotect.rs": ("", "mprotect protect_within protect_locked", "protect_within"),
    "src/mm/modify.rs": ("", "change change_protection release_files zap_touched", "change_protection zap_touched"),
    "src/mm/mremap.rs": ("", "move_vma move_pages copy_vma", "move_vma move_pages"),
    "src/mm/fork.rs": ("", "dup_mmap", "dup_mmap"),
    "src/vma/mod.rs": (
        "lock::",
        "store_segment set_anon_vma set_touched set_segment renew detach alloc attach drop",
        "alloc attach detach",
    ),
    "src/tree/mod.rs": ("tree::", "replace", "replace"),
    "src/fault.rs": (
        "",
        "vma_lock_fault handle_mm_fault make_present anon_vma_prepare",
        "vma_lock_fault handle_mm_fault make_present install_filled anon_vma_prepare",
    ),
}

# A step whose place matters.
STEP = re.compile(
    r"\.(load|store|swap)\(|fetch_|compare_exchange|up_read|down_|up_write|zap|commit|prepare|downgrade|drop\(|mark_|"
    r"\bput|start_|wait_for|futex|heavy|light|rcu::|install|page\(|unhide|end_write|mmap_write|set_touched|protect\(|"
    r"change_protection|detach|attach|defer|free|lock_found|check_locked|push|release|segment\(|vma_init|grab|wake|"
    r"try_down|range_now|vm_mm\(|serve|edit|handle_mm_fault|before_install|advance|run_due|give_to"
)

RUNGS = ["models", "tests", "scheduled", "loom", "deep"]

# Calls whose absence is a mutation.
CALLS = (
    "down_write up_write up_read down_read wait_for_readers start_write vma_start_write zap heavy light futex_wait "
    "futex_wake wake_writer wake_vma_writer give_to_readers vma_mark_attached vma_mark_detached vma_end_read end_write_all "
    "synchronize start advance push reap put put_foreign set_touched drop poll defer defer_all store fetch_add fetch_sub "
    "fetch_or fetch_and fetch_max unlock_read unlock_write protect change_protection exit_mmap vma_init run_due "
    "reclaim_due insert remove release_page free_node"
).split()

ORDERINGS = {
    "Acquire": ["Relaxed"],
    "Release": ["Relaxed"],
    "AcqRel": ["Relaxed", "Acquire", "Release"],
    "SeqCst": ["Relaxed"],
}


@dataclass
class Mutation:
    """One change of the text: bytes start..end of the file become new."""

    file: str
    line: int
    what: str
    code: str
    start: int
    end: int
    new: str
    result: str = ""
    by: str = ""
    seconds: float = 0.0
    reason: str = ""

    @property
    def key(self):
        return (self.file, self.what, self.code)

    def __str__(self):
        return f"{self.file}:{self.line}  {self.what}: {self.code}"


def mask(text):
    """The text with comments, strings and characters blanked, same length."""
    out = list(text)
    pattern = re.compile(
        r"//[^\n]*|/\*.*?\*/|r#*\".*?\"#*|b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\.|[^'\\\n])'", re.DOTALL
    )
    for match in pattern.finditer(text):
        for i in range(match.start(), match.end()):
            if out[i] != "\n":
                out[i] = " "
    return "".join(out)


def closing(code, opening):
    """Where the bracket at opening ends (just behind it)."""
    pairs = {"{": "}", "(": ")", "[": "]"}
    depth = 0
    open_, close = code[opening], pairs[code[opening]]
    for i in range(opening, len(code)):
        if code[i] == open_:
            depth += 1
        elif code[i] == close:
            depth -= 1
            if depth == 0:
                return i + 1
    return len(code)


def statement_end(code, at):
    """The end of the statement or item that begins at `at`."""
    i = at
    while i < len(code):
        c = code[i]
        if c in "([":
            i = closing(code, i)
            continue
        if c == "{":
            end = closing(code, i)
            rest = code[end:].lstrip()
            if rest.startswith("else"):
                i = end + (len(code[end:]) - len(rest)) + 4
                continue
            if rest[:1] in (";", ".", "?", ","):
                i = end
                continue
            return end
        if c in ";,":
            return i + 1
        if c == "}":
            return i
        i += 1
    return i


def excluded(code):
    """Stretches that are not mutated."""
    spans = []
    for match in re.finditer(r"#\[cfg\(", code):
        end = closing(code, match.start() + 1)
        condition = code[match.start() : end]
        if "not(" in condition and "test" not in condition:
            continue
        if re.search(r"\btest\b|feature|loom|shuttle", condition):
            # Further attributes belong to the item.
            while code[end:].lstrip().startswith("#["):
                end = closing(code, code.index("[", end))
            spans.append((match.start(), statement_end(code, end)))
    for match in re.finditer(r"\b(?:debug_)?assert(?:_eq|_ne)?!\s*\(", code):
        spans.append((match.start(), closing(code, match.end() - 1)))
    for match in re.finditer(r"\bif (!?)mutant\(", code):
        brace = code.index("{", match.start())
        condition = code[match.end() - 7 : brace]
        if not match.group(1) and "&&" not in condition:
            spans.append((match.start(), closing(code, brace)))
    for match in re.finditer(r"\bpoint\(", code):
        spans.append((match.start(), statement_end(code, match.start())))
    return spans


def functions(code):
    """(name, start of body, end) of every function that has a body."""
    found = []
    for match in re.finditer(r"\bfn (\w+)", code):
        i = match.end()
        while i < len(code) and code[i] not in "{;":
            i = closing(code, i) if code[i] in "([" else i + 1
        if i < len(code) and code[i] == "{":
            found.append((match.group(1), i, closing(code, i)))
    return found


def statements(code, start, end):
    """The statements between start and end, as (start, end)."""
    found = []
    i = start
    while True:
        while i < end and code[i] in " \n\t":
            i += 1
        if i >= end:
            return found
        stop = i
        while code[stop:end].startswith("#["):
            stop = closing(code, stop + 1)
            while code[stop] in " \n":
                stop += 1
        stop = min(statement_end(code, stop), end)
        if stop <= i:
            return found
        found.append((i, stop))
        i = stop


def blocks(code, start, end):
    """The body and every block inside it."""
    yield start, end
    for i in range(start + 1, end - 1):
        if code[i] == "{":
            stop = closing(code, i)
            if ";" in code[i:stop]:
                yield i, stop


def one_line(text, width=110):
    text = re.sub(r"\s*//[^\n]*", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= width else text[: width - 3] + "..."


def derive(path):
    """All mutations of one file."""
    name = str(path.relative_to(ROOT))
    text = path.read_text()
    code = mask(text)
    skip = excluded(code)
    wanted, swapped = (part.split() for part in SOURCES[name][1:])
    bodies = functions(code)
    found = []

    def skipped(start, end):
        return any(a < end and start < b for a, b in skip)

    def line_of(at):
        return text.count("\n", 0, at) + 1

    def context(at):
        start = text.rfind("\n", 0, at) + 1
        end = text.find("\n", at)
        return one_line(text[start:end])

    def chosen(at):
        fn = function(at)[0]
        return fn and (wanted == ["*"] or fn in wanted)

    def add(what, start, end, new, shown=None, at=None):
        at = start if at is None else at
        found.append(Mutation(name, line_of(at), what, shown or context(at), start, end, new))

    def function(at):
        inside = [f for f in bodies if f[1] <= at < f[2]]
        return max(inside, key=lambda f: f[1], default=("", 0, 0))

    # A. Orderings.
    for match in re.finditer(r"Ordering::(Acquire|Release|AcqRel|SeqCst)\b", code):
        if skipped(match.start(), match.end()) or not function(match.start())[0]:
            continue
        before = code[: match.start()].rstrip()
        fence = re.search(r"\b((?:compiler_)?fence)\($", before)
        if fence:
            start = match.start() - (len(code[: match.start()]) - len(before)) - len(fence.group(0))
            add("fence left out", start, statement_end(code, start), "", at=start)
            continue
        for weaker in ORDERINGS[match.group(1)]:
            add(f"{match.group(1)} -> {weaker}", match.start(), match.end(), f"Ordering::{weaker}")

    # B. Conditions.
    for match in re.finditer(r"\b(if|while)\s+(?!let\b)", code):
        at = match.end()
        i = at
        while i < len(code) and code[i] != "{":
            i = closing(code, i) if code[i] in "([" else i + 1
        condition = text[at:i].strip()
        if skipped(match.start(), at) or not chosen(at) or re.search(r"\blet\b|=>", condition):
            continue
        end = closing(code, i)
        body = code[i + 1 : end - 1].strip()
        # An oracle; a matter of sizes and spinning; a switch for a mutant.
        if re.search(r"\bviolation\(", body) or re.search(r"races::|\bMODEL\b|\bspins\b|\bknob\(", condition):
            continue
        if re.match(r"!?mutant\([^)]*\)$|mutant\(|wait$|drain$", condition):
            continue
        shown = one_line(f"{match.group(1)} {condition}")
        add("turned off", at, i, "false ", shown=shown, at=match.start())
        # A wait, or a loop that ends here: ended at once.
        fn = function(at)
        inside_loop = re.search(r"\b(loop|while|for)\b", code[fn[1] : at])
        if inside_loop and re.match(r"(return( Ok\(\(\)\)| true)?|break)?;?$", body) and body:
            add("always", at, i, "true ", shown=shown, at=match.start())

    # C. Calls, and stores.
    call = re.compile(r"(?<![\w.])(?:[\w.:&*\[\] ]|\(\))*?\b(" + "|".join(CALLS) + r")\(")
    for fn, start, end in bodies:
        for a, b in blocks(code, start, end):
            for s, e in statements(code, a + 1, b - 1):
                inner = re.match(r"(?:unsafe \{\s*)?", code[s:e]).end()
                match = call.match(code, s + inner, e)
                if not match or skipped(s, e) or not chosen(s) or not code[:e].rstrip().endswith((";", "}")):
                    continue
                if code[s:e].startswith(("let ", "return", "if ", "for ", "while ", "match ")):
                    continue
                add("left out", s, e, "", shown=one_line(text[s:e]))

    # D. Steps in the wrong order.
    for fn, start, end in bodies:
        if fn not in swapped:
            continue
        for a, b in blocks(code, start, end):
            steps = [s for s in statements(code, a + 1, b - 1) if not skipped(*s)]
            for (s1, e1), (s2, e2) in zip(steps, steps[1:]):
                first, second = code[s1:e1], code[s2:e2]
                if not second.rstrip().endswith((";", "}")) or first.startswith("return"):
                    continue
                if not (STEP.search(first) and STEP.search(second)) or re.search(r"violation\(|if mutant\(", first + second):
                    continue
                bound = re.match(r"let\s+(.*?)(?::[^=]*)?=", first, re.DOTALL)
                if bound and any(re.search(rf"\b{n}\b", second) for n in re.findall(r"\b[a-z]\w*", bound.group(1))):
                    continue
                if code[s2:e2].lstrip().startswith(("return", "break", "continue")):
                    continue
                tail = code[e2 : b - 1].strip() == "" and not code[s2:e2].rstrip().endswith(";")
                if tail and not code[s2:e2].startswith(("if", "for", "while")):
                    continue
                new = text[s2:e2] + text[e1:s2] + text[s1:e1]
                shown = f"{one_line(text[s1:e1], 52)} <-> {one_line(text[s2:e2], 52)}"
                add("swapped", s1, e2, new, shown=shown)

    # E. When memory goes back.
    for match in re.finditer(r"(PageReturn|Reclaim)::AfterGracePeriod\b(?!\s*(?:=>|\)))", code):
        if not skipped(match.start(), match.end()):
            add("AfterGracePeriod -> AtOnce", match.start(), match.end(), f"{match.group(1)}::AtOnce")

    unique = {}
    for mutation in found:
        unique.setdefault((mutation.start, mutation.end, mutation.new), mutation)
    return sorted(unique.values(), key=lambda m: (m.line, m.start))


def explained():
    """Key -> reason, from the tables of docs/mutation.md. The file is the heading above."""
    reasons = {}
    if not DOC.exists():
        return reasons
    file = None
    for line in DOC.read_text().splitlines():
        heading = re.match(r"#+ `([^`]+)`", line)
        if heading:
            file = heading.group(1)
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if file and len(cells) == 3 and cells[1].startswith("`"):
            code = cells[1].strip("`").strip().replace("\\|", "|")
            reasons[(file, cells[0], code)] = cells[2]
    return reasons


def limit_memory():
    """For tests of code that may run wild."""
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))


class Worker:
    """A scratch copy of the tree, and the ladder."""

    def __init__(self, number, options):
        self.tree = SCRATCH / str(number)
        self.options = options
        self.races = None

    def sync(self):
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for file in files:
            source, target = ROOT / file, self.tree / file
            if not source.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.read_bytes() != source.read_bytes():
                shutil.copyfile(source, target)

    def command(self, args, timeout, **env):
        """(status or None, output). None: it did not end."""
        full = dict(os.environ, CARGO_INCREMENTAL="1", CARGO_PROFILE_RELEASE_DEBUG="0", CARGO_TERM_COLOR="never", **env)
        process = subprocess.Popen(
            args, cwd=self.tree, env=full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, errors="replace", preexec_fn=None if args[0] == "cargo" else limit_memory,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return None, ""

    def build(self, kind, args, model=None):
        """The executable, or None: it does not compile."""
        env = {"CARGO_TARGET_DIR": str(self.tree / "target" / kind)}
        if model:
            env["RUSTFLAGS"] = f"--cfg {model} -Cforce-frame-pointers=yes"
        status, output = self.command(["cargo", *args, "--message-format=json-render-diagnostics"], 3600, **env)
        if status != 0:
            return None
        paths = [json.loads(line).get("executable") for line in output.splitlines() if line.startswith("{")]
        return next(path for path in reversed(paths) if path)

    def catalogue(self):
        """(name, lock, under loom too)"""
        if self.races is None:
            every = ["mmap", "rcu", "typesafe", "refcount"]
            sets = {"ALL": every, "PER_VMA": every[1:], "REUSING": every[2:]}
            self.races = []
            for path in sorted((self.tree / "races/src/catalogue").glob("*.rs")):
                text = path.read_text()
                name = re.search(r'name: "([\w-]+)"', text)
                locks = re.search(r"locks: (?:Lock::(\w+)|&\[([^\]]*)\])", text)
                if not name or not locks:
                    continue
                chosen = sets.get(locks.group(1)) or [l.lower() for l in re.findall(r"Lock::(\w+)", locks.group(2) or "")]
                executors = re.search(r"executors: ([^\n]+)", text).group(1)
                everywhere = "ALL" in executors
                for lock in chosen:
                    self.races.append((name.group(1), lock, everywhere or "Faults" in executors, everywhere or "Loom" in executors))
        return self.races

    def models(self, mutation):
        """With two preemptions at most, which is enough for nearly all."""
        return self.deep(mutation, LOOM_MAX_PREEMPTIONS="2")

    def deep(self, mutation, **env):
        paths = SOURCES[mutation.file][0].split()
        if not paths:
            return None
        binary = self.build("loom", ["test", "--release", "-p", "vmalab", "--lib", "--no-run"], "loom")
        if not binary:
            return "does not compile", ""
        _, listing = self.command([binary, "--list"], 60)
        names = [line[: -len(": test")] for line in listing.splitlines() if line.endswith(": test")]
        names = [name for name in names if "models" in name and name.startswith(tuple(paths))]
        env["LOOM_MAX_DURATION"] = str(self.options.model_seconds)
        status, output = self.command([binary, "--exact", *names], self.options.timeout, **env)
        # (None: more schedules than there is time for. No verdict.)
        return ("killed", failure(output)) if status not in (0, None) else None

    def tests(self, mutation):
        binary = self.build("host", ["test", "-p", "vmalab", "--lib", "--no-run"])
        if not binary:
            return ("killed", "does not compile") if SOURCES[mutation.file][0] else ("does not compile", "")
        status, output = self.command([binary], self.options.timeout)
        return ("killed", "hangs" if status is None else failure(output)) if status != 0 else None

    def scheduled(self, mutation):
        binary = self.build("races", ["build", "--release", "-p", "vmalab-races", "--features", "races", "--bin", "race-child"])
        return self.race(binary, lambda race: race[2], ["20"], 60, "hangs")

    def loom(self, mutation):
        binary = self.build("loom", ["build", "--release", "-p", "vmalab-races", "--bin", "race-child"], "loom")
        # Seed 1, and the bound on preemptions that most entries need.
        bounds = ["1000000", "1", "2", str(self.options.race_seconds)]
        return self.race(binary, lambda race: race[3], bounds, self.options.timeout, None)

    def race(self, binary, wanted, bounds, timeout, unfinished):
        if not binary:
            return "killed", "does not compile"
        for race in filter(wanted, self.catalogue()):
            status, output = self.command([binary, race[0], race[1], "complete", *bounds], timeout)
            said = unfinished if status is None else verdict(status, output)
            if said:
                return "killed", f"{race[0]} {race[1]}: {said}"
        return None

    def run(self, mutation, rung):
        began = time.monotonic()
        path = self.tree / mutation.file
        original = path.read_text()
        path.write_text(original[: mutation.start] + mutation.new + original[mutation.end :])
        try:
            verdict = getattr(self, rung)(mutation)
        finally:
            path.write_text(original)
        mutation.seconds = round(mutation.seconds + time.monotonic() - began, 1)
        if verdict:
            mutation.result, mutation.by = verdict[0], f"{rung}: {verdict[1]}" if verdict[1] else ""


def failure(output):
    """What a test run has to say, in a line."""
    match = re.search(r"a model failed: panicked at ([^\n]*)\n([^\n]*)", output)
    if match:
        where = "" if "loom-" in match.group(1) else match.group(1).rstrip(":") + ": "
        return one_line(where + match.group(2), 100)
    match = re.search(r"^test (\S+) \.\.\. FAILED|^---- (\S+) stdout", output, re.M)
    if match:
        return match.group(1) or match.group(2)
    return "ends badly: " + one_line(output[-80:], 80)


def verdict(status, output):
    """What a race of the complete code has to say, or None: it passed."""
    if status == 3:
        return None
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            violation = json.loads(line)["violation"]
            return violation and one_line(f"{violation['oracle']} {violation['what']}", 80)
    return f"ends with status {status}"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutations and stop")
    parser.add_argument("--only", metavar="REGEX", default="", help="only mutations whose line matches")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="scratch copies to work in (2)")
    parser.add_argument("--timeout", type=float, default=240, metavar="S", help="seconds for one test run (240)")
    parser.add_argument("--model-seconds", type=int, default=60, metavar="S", help="at most, for one model (60)")
    parser.add_argument("--race-seconds", type=int, default=3, metavar="S", help="at most, for one race under loom (3)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="begin no mutation after that: a sample, by --seed")
    parser.add_argument("--seed", type=int, default=1, help="order of a sample (1)")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--known", metavar="FILE", help="results of an earlier run: what it killed is not run again")
    return parser.parse_args()


def main():
    options = arguments()
    mutations = [m for file in SOURCES for m in derive(ROOT / file)]
    mutations = [m for m in mutations if re.search(options.only, str(m))]
    reasons = explained()
    if options.list:
        for mutation in mutations:
            print(mutation, "  (explained)" if mutation.key in reasons else "", sep="")
        print(f"{len(mutations)} mutations")
        return 0
    if options.limit:
        random.Random(options.seed).shuffle(mutations)
    if options.known:
        # Lines move; the same text in the same file is the same mutation.
        killed = {(m["file"], m["what"], m["code"]) for m in json.loads(Path(options.known).read_text()) if m["result"] == "killed"}
        mutations = [m for m in mutations if m.key not in killed]
    began = time.monotonic()
    workers = queue.SimpleQueue()
    for number in range(options.jobs):
        worker = Worker(number, options)
        worker.sync()
        workers.put(worker)
    printing = threading.Lock()
    done = []

    def climb(mutation, rungs, last):
        if options.limit and time.monotonic() - began > options.limit:
            return
        worker = workers.get()
        try:
            for rung in rungs:
                if not mutation.result:
                    worker.run(mutation, rung)
        finally:
            workers.put(worker)
        if last and not mutation.result:
            mutation.result, mutation.reason = "SURVIVED", reasons.get(mutation.key, "")
        if not mutation.result:
            return
        with printing:
            done.append(mutation)
            result = "explained" if mutation.reason else mutation.result
            print(f"{len(done):4}/{len(mutations)}  {result:16} {mutation.seconds:6.1f} s  {mutation}", flush=True)
            if mutation.by:
                print(f"{'':37}{mutation.by}", flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps([asdict(m) for m in done], indent=1))

    # A sample is taken one by one; otherwise all try the first rung, then the
    # next: builds of one kind follow each other, and the first news come soon.
    steps = [RUNGS] if options.limit else [[rung] for rung in RUNGS]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for rungs in steps:
            left = [m for m in mutations if not m.result]
            list(pool.map(lambda m: climb(m, rungs, rungs[-1] == RUNGS[-1]), left))
    count = lambda result: sum(m.result == result and not m.reason for m in done)
    unexplained = [m for m in done if m.result == "SURVIVED" and not m.reason]
    print(
        f"\n{len(done)} of {len(mutations)} mutations in {time.monotonic() - began:.0f} s: {count('killed')} killed, "
        f"{count('does not compile')} do not compile, {sum(bool(m.reason) for m in done)} explained, "
        f"{len(unexplained)} survived"
    )
    for mutation in unexplained:
        print(f"SURVIVED  {mutation}")
    known = {m.key for file in SOURCES for m in derive(ROOT / file)}
    for key in reasons.keys() - known:
        print(f"docs/mutation.md explains what is no mutation: {key}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
