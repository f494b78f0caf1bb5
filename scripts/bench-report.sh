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
  compare=(target/release/vmalab compare app-start --locks "mmap,typesafe,refcount" --rounds 9)
  "${compare[@]}" --threads 2 --mutators 2 --duration 2 --json target/performance/compare.json
  # The same number of calls under each lock, and a CPU for each thread.
  for rwsem in std futex; do
    "${compare[@]}" --threads 1 --mutators 1 --mutator-rate 200000 --rwsem "$rwsem" --duration 1 \
      --json "target/performance/compare-rate-$rwsem.json"
  done
fi
python3 scripts/bench_report.py
