#!/usr/bin/env python3
"""Mutation run over the lock sources: is every check and every ordering shown by a test?

All mutations (see mutations.py) are made at once, in a scratch copy of the tree,
each behind a switch. So every test is built once:

  tests      the core's tests, with debug assertions
  conform    the same calls on vmalab and on the host kernel, compared
  models     exhaustive loom models of the parts (src/**/models.rs), two preemptions
  scheduled  the race catalogue's scripts on real faults: the complete code must pass
  loom       the race catalogue under loom
  deep       the models again, with their own bounds

Every test first runs without a mutation: it must pass, and the places that it
reaches are noted. Then each mutation is put in force in the tests that reach its
place, the shortest first, until one fails. (An ordering: in loom's alone. A test
on real threads must fail twice.) A mutation that nothing kills must be explained
in docs/mutation.md, or the run fails: exit status 1.

Examples:
  scripts/mutate.py --list
  scripts/mutate.py --only 'rcu.rs.*Acquire'
  scripts/mutate.py --only 'rcu.rs' --tests 'models: rcu'
  scripts/mutate.py --limit 600 --seed 7 --json mutation.json
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from mutations import ROOT, SOURCES, at_fault, derive_all, one_line, schemata

DOC = ROOT / "docs/mutation.md"
SCRATCH = ROOT / "target/mutate"
TREE = SCRATCH / "tree"

# Seconds of a test that is run for all mutations before any longer one is.
SHORT = 0.5

KINDS = ["tests", "conform", "models", "scheduled", "loom", "deep"]

# Kind -> what is built, and whether for loom.
BUILDS = {
    "tests": (["test", "-p", "vmalab", "--lib", "--test", "no_alloc", "--test", "real_faults"], False),
    "conform": (["test", "-p", "vmalab-conform", "--test", "conform", "--test", "scenarios"], False),
    "models": (["test", "--release", "-p", "vmalab", "--lib"], True),
    "scheduled": (["build", "--release", "-p", "vmalab-races", "--features", "races", "--bin", "race-child"], False),
    "loom": (["build", "--release", "-p", "vmalab-races", "--bin", "race-child"], True),
}


@dataclass
class Test:
    """One test, in a process of its own."""

    kind: str
    name: str
    args: list
    env: dict
    seconds: float = 0.0
    reached: frozenset = frozenset()

    @property
    def is_model(self):
        return self.kind in ("models", "loom", "deep")

    def __str__(self):
        return f"{self.kind}: {self.name}"

    def run(self, mutation, timeout, reached=None):
        """(status or None: it did not end, what it said)"""
        env = dict(os.environ, MUTATION=str(mutation), **self.env)
        if reached:
            env["MUTATIONS_REACHED"] = reached
        process = subprocess.Popen(
            self.args, cwd=TREE, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, errors="replace", preexec_fn=None if self.kind == "conform" else limit_memory,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return None, ""

    def complaint(self, mutation, timeout, reached=None):
        """What it has to say against the code with this mutation in, or None."""
        status, output = self.run(mutation, timeout, reached)
        if status is None:
            # A model: more schedules than there is time for. No verdict.
            return None if self.is_model else "hangs"
        if self.kind in ("scheduled", "loom"):
            return race_verdict(status, output)
        return failure(output) if status else None

    def control(self, timeout):
        """Without a mutation: how long it takes and what it reaches, or what is wrong with it."""
        with tempfile.NamedTemporaryFile(dir=SCRATCH) as file:
            began = time.monotonic()
            said = self.complaint(0, timeout, file.name)
            self.seconds = round(time.monotonic() - began, 3)
            self.reached = frozenset(i for i, byte in enumerate(Path(file.name).read_bytes()) if byte)
        return said


def limit_memory():
    """For tests of code that may run wild. (conform reserves more, and asks about this limit.)"""
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))


def failure(output):
    """What a test has to say, in a line."""
    match = re.search(r"a model failed: panicked at ([^\n]*)\n([^\n]*)", output)
    match = match or re.search(r"^thread .* panicked at ([^\n]*)\n([^\n]*)", output, re.M)
    if match:
        where = "" if "loom-" in match.group(1) else re.sub(r":\d+:?$", "", match.group(1)) + ": "
        return one_line(where + match.group(2), 100)
    return "ends badly: " + one_line(output[-80:], 80)


def race_verdict(status, output):
    """What a race of the complete code has to say, or None: it passed."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            violation = json.loads(line)["violation"]
            return violation and one_line(f"{violation['oracle']} {violation['what']}", 100)
    return f"ends with status {status}"


# ---- The scratch copy, and what is built from it.


def build(kind):
    """Builds one kind. (status, cargo's messages)"""
    args, loom = BUILDS[kind]
    env = dict(os.environ, CARGO_PROFILE_RELEASE_DEBUG="0", CARGO_TERM_COLOR="never")
    env["CARGO_TARGET_DIR"] = str(SCRATCH / ("loom" if loom else "host"))
    if loom:
        env["RUSTFLAGS"] = "--cfg loom -Cforce-frame-pointers=yes"
    args = ["cargo", *args, *(["--no-run"] if args[0] == "test" else [])]
    done = subprocess.run([*args, "--message-format=json"], cwd=TREE, env=env, capture_output=True, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and not any(m.get("message", {}).get("level") == "error" for m in messages):
        sys.exit(done.stderr)
    return done.returncode, messages


def write(path, data):
    """Writes what has changed: cargo looks at the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


def make_tree(mutations):
    """The scratch copy, with all mutations in."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for file in filter(lambda file: (ROOT / file).is_file(), files):
        data = (ROOT / file).read_bytes()
        if file in SOURCES:
            data = schemata(data.decode(), [m for m in mutations if m.file == file]).encode()
        if file == "src/lib.rs":
            data += b"\n#[allow(dead_code, missing_docs)]\nmod mutated;\n"
        write(TREE / file, data)
    write(TREE / "src/mutated.rs", (ROOT / "scripts/mutated.rs").read_bytes())


def settle(mutations, kinds):
    """Makes the tree, and finds those that do not compile, inline or at all."""
    by_id = {m.id: m for m in mutations}
    kept = SCRATCH / "forms.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    for mutation in mutations:
        mutation.form = known.get(str(mutation.key), mutation.form)
    for kind in kinds:
        began = time.monotonic()
        while True:
            make_tree(mutations)
            status, messages = build(kind)
            if status == 0:
                print(f"built for {kind}, {time.monotonic() - began:.0f} s", flush=True)
                break
            errors = [m["message"] for m in messages if m.get("message", {}).get("level") == "error"]
            blamed = set()
            for error in errors:
                for span in filter(lambda span: span["is_primary"], error["spans"]):
                    data = (TREE / span["file_name"]).read_bytes()
                    blamed.add(at_fault(data.decode(), len(data[: span["byte_start"]].decode())))
            blamed.discard(None)
            if not blamed:
                sys.exit("\n".join(error["rendered"] for error in errors))
            for mutation in (by_id[number] for number in blamed):
                mutation.form = "arm" if mutation.form == "inline" and mutation.body else "none"
                known[str(mutation.key)] = mutation.form
    kept.write_text(json.dumps(known))


def kinds_built(kinds):
    """What must be built for these kinds of tests."""
    return [kind for kind in BUILDS if kind in kinds or (kind == "models" and "deep" in kinds)]


def collect(options):
    """Every test, from what has been built."""
    tests = []
    for kind in kinds_built(options.kinds):
        _, messages = build(kind)
        binaries = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}
        for target, binary in binaries.items():
            if kind in ("scheduled", "loom"):
                bounds = ["20"] if kind == "scheduled" else ["1000000", "1", "2", str(options.race_seconds)]
                for name, lock in catalogue(kind):
                    tests.append(Test(kind, f"{name} {lock}", [binary, name, lock, "complete", *bounds], {}))
                continue
            listing = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True).stdout
            names = [line[: -len(": test")] for line in listing.splitlines() if line.endswith(": test")]
            for name in names:
                args = [binary, "--exact", name, "--nocapture"]
                if kind in ("tests", "conform"):
                    tests.append(Test(kind, name, args, {"RUST_TEST_THREADS": "1"}))
                elif "models" in name:
                    tests.append(Test("models", name, args, {"LOOM_MAX_PREEMPTIONS": "2"}))
                    tests.append(Test("deep", name, args, {}))
    return [test for test in tests if test.kind in options.kinds and re.search(options.tests, str(test))]


def catalogue(kind):
    """(entry, lock) of the race catalogue, for real faults or for loom."""
    every = ["mmap", "rcu", "typesafe", "refcount"]
    sets = {"ALL": every, "PER_VMA": every[1:], "REUSING": every[2:]}
    executor = {"scheduled": "Faults", "loom": "Loom"}[kind]
    for path in sorted((ROOT / "races/src/catalogue").glob("*.rs")):
        text = path.read_text()
        name = re.search(r'name: "([\w-]+)"', text)
        locks = re.search(r"locks: (?:Lock::(\w+)|&\[([^\]]*)\])", text)
        if name and locks:
            executors = re.search(r"executors: ([^\n]+)", text).group(1)
            for lock in sets.get(locks.group(1)) or [l.lower() for l in re.findall(r"Lock::(\w+)", locks.group(2) or "")]:
                if "ALL" in executors or executor in executors:
                    yield name.group(1), lock


def control(tests, options):
    """Runs every test without a mutation, or knows from an earlier run what that was like."""
    kept = SCRATCH / "control.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in {test.args[0] for test in tests}}

    def look(test):
        key = " ".join([digests[test.args[0]], *test.args[1:], str(test.env), str(options.model_seconds)])
        if key in known:
            test.seconds, test.reached = known[key][0], frozenset(known[key][1])
            return None
        wrong = test.control(options.model_seconds if test.is_model else options.timeout)
        if not wrong:
            known[key] = (test.seconds, sorted(test.reached))
        return wrong

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        wrong = [f"{test}: {said}" for test, said in zip(tests, pool.map(look, tests)) if said]
    kept.write_text(json.dumps(known))
    if wrong:
        sys.exit("tests fail without any mutation:\n" + "\n".join(wrong))
    count = Counter(test.kind for test in tests)
    kinds = ", ".join(f"{n} {kind}" for kind, n in count.items())
    print(f"{len(tests)} tests pass without a mutation ({kinds}), {time.monotonic() - began:.0f} s", flush=True)


# ---- The run.


@dataclass
class Result:
    """What came of a mutation."""

    mutation: object
    result: str = ""
    by: str = ""
    seconds: float = 0.0
    tests: int = 0


def judge(result, tests):
    """Puts the mutation in force in one of these tests after the other, until one fails."""
    mutation, began = result.mutation, time.monotonic()
    reaching = [t for t in tests if mutation.id in t.reached and (t.is_model or not mutation.is_ordering)]
    for test in sorted(reaching, key=lambda test: test.seconds):
        timeout = 4 * test.seconds + (20 if test.is_model else 5)
        said = test.complaint(mutation.id, timeout)
        result.tests += 1
        if said and (test.is_model or test.complaint(mutation.id, timeout)):
            result.result, result.by = "killed", f"{test}: {said}"
            break
    result.seconds = round(result.seconds + time.monotonic() - began, 1)


def explained():
    """Key -> reason, from the tables of docs/mutation.md. The file is the heading above."""
    reasons = {}
    file = None
    for line in DOC.read_text().splitlines():
        heading = re.match(r"#+ `([^`]+)`", line)
        if heading:
            file = heading.group(1)
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if file and len(cells) == 4 and cells[2].startswith("`"):
            code = cells[2].strip("`").strip().replace("\\|", "|")
            reasons[(file, cells[0].strip("`"), cells[1], code)] = cells[3]
    return reasons


def table(done):
    """Totals by file, as in docs/mutation.md."""
    lines = ["| file | mutations | " + " | ".join(KINDS) + " | explained | survived | do not compile |"]
    lines.append("|---|" + "---|" * (len(KINDS) + 4))
    for file in [*SOURCES, ""]:
        here = [r for r in done if not file or r.mutation.file == file]
        by = Counter(r.by.split(":")[0] for r in here if r.result == "killed")
        results = Counter(r.result for r in here)
        numbers = [len(here), *(by[kind] for kind in KINDS)]
        numbers += [results["explained"], results["SURVIVED"], results["does not compile"]]
        if here:
            lines.append(f"| {f'`{file}`' if file else 'all'} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def kinds(text):
    chosen = text.split(",")
    if unknown := set(chosen) - set(KINDS):
        raise argparse.ArgumentTypeError(f"no such kind: {', '.join(unknown)}")
    return chosen


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutations and stop")
    parser.add_argument("--only", metavar="REGEX", default="", help="only mutations whose line matches")
    parser.add_argument("--kinds", metavar="KIND,..", default=",".join(KINDS), type=kinds, help="only tests of these kinds")
    parser.add_argument("--tests", metavar="REGEX", default="", help="of those, only whose 'kind: name' matches")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="tests that run at once (2)")
    parser.add_argument("--timeout", type=float, default=240, metavar="S", help="for a test without a mutation (240)")
    parser.add_argument("--model-seconds", type=int, default=60, metavar="S", help="at most, for one model (60)")
    parser.add_argument("--race-seconds", type=int, default=3, metavar="S", help="at most, for one race under loom (3)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="begin no mutation after that: a sample, by --seed")
    parser.add_argument("--seed", type=int, default=1, help="order of a sample (1)")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--known", metavar="FILE", help="results of an earlier run: what it killed is not run again")
    return parser.parse_args()


def main():
    options = arguments()
    every = derive_all()
    mutations = [m for m in every if re.search(options.only, str(m))]
    reasons = explained()
    if options.list:
        for mutation in mutations:
            print(mutation, "  (explained)" if mutation.key in reasons else "", sep="")
        print(f"{len(mutations)} mutations")
        return 0
    if options.limit:
        random.Random(options.seed).shuffle(mutations)
    done = []
    if options.known:
        # Lines move; the same text in the same function is the same mutation.
        killed = {tuple(r["key"]): r for r in json.loads(Path(options.known).read_text()) if r["result"] == "killed"}
        for m in [m for m in mutations if m.key in killed]:
            done.append(Result(m, "killed", killed[m.key]["by"]))
            mutations.remove(m)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    settle(every, kinds_built(options.kinds))
    tests = collect(options)
    control(tests, options)
    began = time.monotonic()
    printing = threading.Lock()
    total = len(done) + len(mutations)

    def one(result, tests, last):
        if options.limit and time.monotonic() - began > options.limit:
            return
        if result.mutation.form == "none":
            result.result = "does not compile"
        else:
            judge(result, tests)
        if last and not result.result:
            result.result = "explained" if result.mutation.key in reasons else "SURVIVED"
            result.by = "" if result.tests else "no test reaches it"
        if not result.result:
            return
        with printing:
            done.append(result)
            print(f"{len(done):4}/{total}  {result.result:16} {result.seconds:6.1f} s  {result.mutation}", flush=True)
            if result.by:
                print(f"{'':37}{result.by}", flush=True)
            if options.json:
                save(options.json, done)

    # First the short tests for all of them, and what is explained last: most news
    # come soon. A sample is taken one by one.
    results = [Result(mutation) for mutation in sorted(mutations, key=lambda m: m.key in reasons)]
    short = [test for test in tests if test.seconds <= SHORT]
    rounds = [tests] if options.limit else [short, [test for test in tests if test.seconds > SHORT]]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for chosen in rounds:
            left = [result for result in results if not result.result]
            list(pool.map(lambda result: one(result, chosen, chosen is rounds[-1]), left))
            if chosen is not rounds[-1]:
                alive = [r for r in results if not r.result]
                print(f"{len(alive)} live on after the short tests:", *(f"  {r.mutation}" for r in alive), sep="\n", flush=True)
    print(f"\n{table(done)}\n\n{len(done)} of {total} mutations in {time.monotonic() - began:.0f} s")
    survived = [r for r in done if r.result == "SURVIVED"]
    for result in survived:
        print(f"SURVIVED  {result.mutation}")
    for result in (r for r in done if r.result == "killed" and r.mutation.key in reasons):
        print(f"docs/mutation.md explains what {result.by.split(':')[0]} kill: {result.mutation}")
    for key in reasons.keys() - {m.key for m in every}:
        print(f"docs/mutation.md explains what is no mutation: {key}")
    return 1 if survived else 0


def save(path, done):
    def row(result):
        m = result.mutation
        return {"key": m.key, "line": m.line, "form": m.form, **{k: v for k, v in asdict(result).items() if k != "mutation"}}

    Path(path).write_text(json.dumps([row(result) for result in done], indent=1))


if __name__ == "__main__":
    sys.exit(main())
