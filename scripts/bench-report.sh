#!/usr/bin/env bash
# Measures every row of docs/performance.md on this machine and writes it anew, with docs/performance.json beside it:
# the Criterion benches, and `vmalab compare app-start` for the tail of the fault latency. Takes some ten minutes; leave
# the machine alone meanwhile.
#
#   scripts/bench-report.sh              everything
#   scripts/bench-report.sh --write-only the document again, from the figures in target/performance
#   CRITERION=1 scripts/bench-report.sh  Criterion's own figures as well, kept in target/criterion
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} != --write-only ]]; then
  rm -rf target/performance
  [[ ${CRITERION:-0} == 1 ]] || export ROWS=only
  cargo bench --bench core --bench fault
  cargo build --release -p vmalab-cli
  compare=(target/release/vmalab compare app-start --threads 2 --mutators 2 --locks "mmap,typesafe,refcount" --rounds 9 --duration 2)
  "${compare[@]}" --json target/performance/compare.json
  "${compare[@]}" --mutator-rate 50000 --json target/performance/compare-rate.json
fi
python3 scripts/bench_report.py
