#!/usr/bin/env bash
# Counts what one page fault executes and touches in vmalab, by function: instructions, cache lines of code, cache lines of
# data. By single steps, so the counts are the same on a busy machine, and from run to run of one build.
#
#   scripts/footprint.sh [LOCK...] [-- STRESS_OPTION...]     all four locks unless named; a write fault of page-fault
#
#   scripts/footprint.sh typesafe mmap
#   scripts/footprint.sh refcount -- --fault-around 16
#
# VMALAB=...  the command; without it a release build is made
# STATICS=1   names the statics behind the count
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
locks=()
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 != -* ]] || {
    echo "usage: scripts/footprint.sh [LOCK...] [-- STRESS_OPTION...]; options of stress come after '--', not '$1'" >&2
    exit 2
  }
  locks+=("$1")
  shift
done
(($#)) && shift
((${#locks[@]})) || locks=(mmap rcu typesafe refcount)
if [[ -z ${VMALAB:-} ]]; then
  cargo build --quiet --release
  VMALAB=${CARGO_TARGET_DIR:-target}/release/vmalab
fi
steps=${CARGO_TARGET_DIR:-$PWD/target}/footprint
cargo build --quiet --manifest-path scripts/footprint/Cargo.toml --target-dir "$steps"
for lock in "${locks[@]}"; do
  printf '== %s\n' "$lock"
  "$steps/debug/vmalab-footprint" "$VMALAB" page-fault --lock "$lock" --threads 1 --duration 10 "$@"
  echo
done
