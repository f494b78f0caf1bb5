#!/usr/bin/env python3
"""Writes docs/performance.md and docs/performance.json from the rows in target/performance; see bench-report.sh.

What stands below the line MARK in docs/performance.md is written by hand and stays.
"""

import json
import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "target/performance"
DOC = ROOT / "docs/performance.md"
DATA = ROOT / "docs/performance.json"
MARK = "<!-- Below this line the text is written by hand. -->"

# Headings, and the rows under each: by the beginning of their names.
SECTIONS = [
    ("A whole fault, against the bare mechanism", ["whole write", "whole read", "bare ", "two threads' faults"]),
    ("The first touch of a mapping in order, against the host's own", ["first touch"]),
    ("Looking a VMA up", ["lookup"]),
    ("Locks", ["rcu section", "read-lock"]),
    ("Changing the address space", ["tree update", "mmap + munmap of", "mmap + munmap in", "host calls"]),
    ("Without hardware", ["arithmetic", "software faults", "fault without"]),
    ("Latency under change", ["p99", "faults/s"]),
    ("Memory", ["memory"]),
]


def from_compare():
    """The rows that `vmalab compare` gives."""
    rows = []
    for name, what, goal in [
        ("compare.json", "2 threads and 2 mutators", {"at_most": 0.2}),
        ("compare-rate-std.json", "1 thread and 1 mutator of 200 k calls/s, rwsem std", None),
        ("compare-rate-futex.json", "1 thread and 1 mutator of 200 k calls/s, rwsem futex", None),
    ]:
        file = ROWS / name
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        for subject in result["subjects"]:
            if subject["name"] == result["baseline"]:
                continue
            for key, title in [("p99_ratio", "p99"), ("throughput_ratio", "faults/s")]:
                if key != "p99_ratio" and goal:
                    continue
                ratio = subject[key]
                p99 = sorted(run["fault_ns"]["p99"] for run in subject["runs"])
                row = {
                    "name": f"{title} in app-start, {what}/{subject['name']}",
                    "unit": "ratio", "value": ratio["median"], "low": ratio["low"], "high": ratio["high"],
                    "rounds": result["rounds"], "goal": goal, "met": ratio["median"] <= 0.2 if goal else None,
                    "subject": subject["name"], "against": f"{result['baseline']}, rwsem {result['rwsem']}",
                }  # fmt: skip
                if title == "p99":
                    row["subject_ns"] = p99[len(p99) // 2]
                rows.append(row)
    return rows


def number(value):
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def line(row):
    goal = row["goal"] or {}
    wanted = "".join(f"{'≤' if kind == 'at_most' else '≥'} {number(limit)}" for kind, limit in goal.items())
    unit = {"ratio": "", "ns": " ns", "bytes": " B"}.get(row["unit"], "")
    value = f"{number(row['value'])}{unit}"
    if row["low"] != row["high"]:
        value += f" ({number(row['low'])} – {number(row['high'])})"
    times = ""
    if "against_ns" in row:
        times = f"{number(row['subject_ns'])} / {number(row['against_ns'])}"
    elif "subject_ns" in row:
        times = number(row["subject_ns"])
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    return f"| {row['name']} | {value} | {wanted} | {met} | {times} |"


def machine():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "rustc": rustc.split(" (")[0],
    }


def main():
    rows = [json.loads(file.read_text()) for file in sorted(ROWS.glob("*.json")) if not file.name.startswith("compare")]
    rows += from_compare()
    if not rows:
        raise SystemExit("target/performance holds no figures: run scripts/bench-report.sh")
    here = machine()
    DATA.write_text(json.dumps({"schema": 1, "machine": here, "rows": rows}, indent=1) + "\n")
    goals = [row for row in rows if row["goal"]]
    text = [
        "# Performance: what there is against what there can be",
        "",
        "Written by `scripts/bench-report.sh`, which measures all of it; the same figures are in `performance.json`. Every",
        "ratio is taken side by side: subject and reference take turns, some milliseconds each, and the figure is the median",
        "of the rounds' ratios with its 95 % interval. The times are medians in ns per operation (subject / reference), good",
        "for orders of magnitude only: the machine's own speed wanders.",
        "",
        f"Machine: {here['cpu']}, {here['cpus']} CPUs, Linux {here['kernel']}, {here['rustc']}. "
        f"Goals met: {sum(bool(row['met']) for row in goals)} of {len(goals)}.",
    ]
    left = list(rows)
    for heading, names in SECTIONS:
        chosen = [row for name in names for row in left if row["name"].startswith(name)]
        if chosen:
            text += ["", f"## {heading}", "", "| what | figure | goal | met | ns |", "|---|---|---|---|---|"]
            text += [line(row) for row in chosen]
            left = [row for row in left if row not in chosen]
    assert not left, f"rows without a section: {[row['name'] for row in left]}"
    below = DOC.read_text().partition(MARK)[2] if DOC.exists() else "\n"
    DOC.write_text("\n".join(text) + f"\n\n{MARK}{below}")
    for row in goals:
        if not row["met"]:
            print(f"not met: {row['name']}: {number(row['value'])}, goal {row['goal']}")


if __name__ == "__main__":
    main()
