#!/usr/bin/env python3
"""Writes the two tables of pairs in docs/conflicts.md: those of one address space, and of two.

Runs 'vmalab conflicts' (target/release/vmalab, or VMALAB), or reads what it has written:

  scripts/docs-conflicts.py [pairs.json]
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs/conflicts.md"
LOCKS = ["mmap", "rcu", "typesafe", "refcount"]


def pairs():
    if len(sys.argv) > 1:
        return json.loads(Path(sys.argv[1]).read_text())["pairs"]
    command = os.environ.get("VMALAB", "target/release/vmalab")
    out = subprocess.run([command, "conflicts", "--json", "-"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout)["pairs"]


def table(pairs):
    """One row for two operations, one column for each lock: least-most lines shared with a write."""
    rows = {}
    for pair in pairs:
        least, most = pair["lines"]["min"], pair["lines"]["max"]
        rows.setdefault(", ".join(pair["ops"]), {})[pair["lock"]] = f"{least}" if least == most else f"{least}-{most}"
    lines = ["| | " + " | ".join(f"`{lock}`" for lock in LOCKS) + " |", "|---|" + "---|" * len(LOCKS)]
    lines += [f"| {ops} | " + " | ".join(cells[lock] for lock in LOCKS) + " |" for ops, cells in rows.items()]
    return "\n".join(lines) + "\n"


def main():
    every = pairs()
    relations = list(dict.fromkeys(pair["relation"] for pair in every))
    tables = iter(table([pair for pair in every if pair["relation"] == relation]) for relation in relations)
    text, count = re.subn(r"^\| \| `mmap` .*\n(?:\|.*\n)+", lambda _: next(tables), DOC.read_text(), flags=re.M)
    if count != len(relations):
        sys.exit(f"{DOC} has {count} tables of pairs, and there are {len(relations)} relations")
    DOC.write_text(text)


if __name__ == "__main__":
    main()
