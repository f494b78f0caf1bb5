"""Mutations of the lock sources, derived from their text; and mutant schemata: one
copy of a source that holds all of its mutations, each behind a switch.

A mutation is an ordering weakened, a condition turned off or a wait ended at once,
a call left out, two steps exchanged, or memory given back too early. Nothing is
mutated in tests, in code that only builds with mutants or models have, in
assertions, in trace points, and in conditions that report a violation of an oracle: they are not
steps of a protocol.

In the schemata an ordering becomes `crate::mutated::ordering(7, Acquire, Relaxed)`,
a condition `crate::mutated::not(8) && (...)`, a statement `if crate::mutated::not(9)
{ ... }`: `src/mutated.rs` there is `scripts/mutated.rs` here. What cannot be written
so, as an exchange, makes the body of its function an arm of a `match`, beside the
body as it is.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What is mutated: file -> (functions whose conditions and calls are mutated, "*"
# for all; functions whose steps are swapped). Orderings are mutated everywhere.
# Argument checks of the system calls are not here: the conformance tests and the
# fuzzers are for those.
SOURCES = {
    "src/lock/typesafe.rs": (
        "*",
        "vma_end_read vma_start_write vma_mark_attached vma_mark_detached lock_found check_locked up_read down_write",
    ),
    "src/lock/rcu.rs": ("*", "vma_end_read vma_start_write vma_mark_attached vma_mark_detached lock_found start_read"),
    "src/lock/refcount.rs": (
        "*",
        "vma_end_read vma_mark_attached vma_mark_detached lock_found start_read put put_foreign start_write wait_for_readers",
    ),
    "src/lock/mod.rs": ("find_and_lock", "find_and_lock"),
    "src/mmap_lock/futex.rs": ("*", "read_wait write_wait unlock_write give_to_readers wake_writer downgrade"),
    "src/mmap_lock/kernel.rs": ("*", "read_wait write_wait unlock_write give_to_readers wake_writer downgrade"),
    "src/rcu.rs": ("*", "drop enter_word nest enter_shared start advance synchronize defer_all barrier"),
    "src/membarrier.rs": ("*", "heavy"),
    "src/slab.rs": ("give_to_depot release_page take_from_depot", "give_to_depot"),
    "src/slab/block.rs": ("take map give_back", "give_back"),
    "src/thread.rs": ("*", "drop announce"),
    "src/mm/core.rs": (
        "mmap_write wake_vma_writer end_write_all commit_from downgrade drop exit_mmap",
        "mmap_write wake_vma_writer prepare_in commit_from downgrade",
    ),
    "src/mm/count.rs": ("put reap drop grab", "put reap drop"),
    "src/mm/munmap.rs": (
        "unmap_and_release unmap_within prepare_unmap munmap kill",
        "unmap_and_release unmap_within kill munmap",
    ),
    "src/mm/mmap.rs": ("mmap_region map", "mmap_region"),
    "src/mm/mprotect.rs": ("mprotect protect_within protect_locked", "protect_within"),
    "src/mm/modify.rs": ("change change_protection release_files zap_touched", "change_protection zap_touched"),
    "src/mm/mremap.rs": ("move_vma move_pages copy_vma", "move_vma move_pages"),
    "src/mm/fork.rs": ("dup_mmap", "dup_mmap"),
    "src/vma/mod.rs": (
        "store_segment set_anon_vma set_touched set_segment renew detach alloc attach drop",
        "alloc attach detach",
    ),
    "src/vma/touched.rs": ("*", ""),
    "src/tree/mod.rs": ("replace", "replace"),
    "src/fault.rs": (
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

# Calls whose absence is a mutation.
CALLS = (
    "down_write up_write up_read down_read wait_for_readers start_write vma_start_write zap heavy light futex_wait "
    "futex_wake wake_writer wake_vma_writer give_to_readers vma_mark_attached vma_mark_detached vma_end_read end_write_all "
    "synchronize start advance push reap put put_foreign set_touched drop poll defer defer_all store fetch_add fetch_sub "
    "fetch_or fetch_and fetch_max unlock_read unlock_write protect change_protection exit_mmap vma_init run_due "
    "reclaim_due insert remove release_page free_node extend"
).split()

ORDERINGS = {
    "Acquire": ["Relaxed"],
    "Release": ["Relaxed"],
    "AcqRel": ["Relaxed", "Acquire", "Release"],
    "SeqCst": ["Relaxed"],
}


@dataclass
class Mutation:
    """One change of the text: characters start..end of the file become new."""

    file: str
    line: int
    function: str
    what: str
    code: str
    start: int
    end: int
    new: str
    body: tuple = None  # of the function, if it has one
    id: int = 0  # from 1
    form: str = "inline"  # in the schemata; or "arm", or "none": it does not compile

    @property
    def key(self):
        return (self.file, self.function, self.what, self.code)

    @property
    def is_ordering(self):
        """Nothing but a model shows it: an x86 has only strong ones."""
        return "->" in self.what and "grace" not in self.what

    def __str__(self):
        return f"{self.file}:{self.line} {self.function}  {self.what}: {self.code}"


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
    for match in re.finditer(r"\b(?:(?:debug_)?assert(?:_eq|_ne)?|trace)!\s*\(", code):
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
    wanted, swapped = (part.split() for part in SOURCES[name])
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

    def add(what, start, end, new, shown=None, at=None, form="inline"):
        at = start if at is None else at
        fn, *body = function(at)
        shown = shown or context(at)
        found.append(Mutation(name, line_of(at), fn, what, shown, start, end, new, tuple(body) if fn else None, form=form))

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
        if re.match(r"!?mutant\([^)]*\)$|mutant\(|wait$|drain$|.* && mutant\(", condition):
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
                add("swapped", s1, e2, new, shown=shown, form="arm")

    # E. When memory goes back.
    for match in re.finditer(r"\bmatch (self\.(page_return|reclaim)) \{", code):
        at_once = {"page_return": "PageReturn::AtOnce", "reclaim": "Reclaim::AtOnce"}[match.group(2)]
        if not skipped(match.start(), match.end()):
            add("after a grace period -> at once", match.start(1), match.end(1), at_once)

    unique = {}
    for mutation in found:
        unique.setdefault((mutation.start, mutation.end, mutation.new), mutation)
    return sorted(unique.values(), key=lambda m: (m.line, m.start))


def derive_all():
    """All mutations of all files, numbered."""
    found = [m for file in SOURCES for m in derive(ROOT / file)]
    same = Counter()
    for number, mutation in enumerate(found, 1):
        mutation.id = number
        same[mutation.key] += 1
        if same[mutation.key] > 1:
            mutation.code += f" (no. {same[mutation.key]})"
    return found


def schemata(text, mutations):
    """The text of a file with all these mutations of it in, each behind its switch."""
    here = "crate::mutated::"
    # What goes in front of and behind which stretch: (start, end, before, behind).
    wraps = []
    arms = defaultdict(list)
    for m in mutations:
        if m.form == "none":
            continue
        if m.form == "arm":
            arms[m.body].append(m)
            at = m.start if m.what == "swapped" else m.body[0] + 1
            wraps.append((at, at, f" {here}reach({m.id}); ", ""))
        elif "->" in m.what:
            wraps.append((m.start, m.end, f"{here}either({m.id}, ", f", {m.new})"))
        elif m.what == "turned off":
            wraps.append((m.start, m.end, f"{here}not({m.id}) && (", ") "))
        elif m.what == "always":
            wraps.append((m.start, m.end, f"{here}yes({m.id}) || (", ") "))
        else:
            wraps.append((m.start, m.end, f"if {here}not({m.id}) {{ ", " }"))
    for (start, end), members in arms.items():
        before = f"{{ match {here}active() {{ "
        for m in members:
            before += f"{m.id} => {text[start : m.start]}{m.new}{text[m.end : end]}\n"
        wraps.append((start, end, before + "_ => ", " } }"))
    # Outer stretches first, and ends before what begins at the same place.
    inserted = defaultdict(lambda: ([], []))
    for start, end, before, behind in sorted(wraps, key=lambda w: (w[0], w[0] != w[1], -w[1])):
        inserted[start][1].append(before)
        inserted[end][0].insert(0, behind)
    out, last = [], 0
    for at in sorted(inserted):
        behind, before = inserted[at]
        out += [text[last:at], *behind, *before]
        last = at
    return "".join(out) + text[last:]


def at_fault(text, at):
    """The mutation whose stretch of a schemata file is innermost around a place, or None."""
    code = mask(text)
    inside = []
    for match in re.finditer(r"(\d+) => \{|crate::mutated::not\((\d+)\) \{|crate::mutated::\w+\((\d+)[,)]", code):
        if match.group(3):
            start, end = code.rfind("\n", 0, match.start()), code.find("\n", match.end())
        else:
            start, end = match.start(), closing(code, match.end() - 1)
        if start <= at < end:
            inside.append((end - start, int(next(filter(None, match.groups())))))
    return min(inside)[1] if inside else None
