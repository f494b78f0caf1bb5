#!/usr/bin/env bash
# Builds what records cache lines, and checks what must not be shared. Usage: scripts/conflicts.sh [build | check]
#   build   only the program conflicts-record, in target/quick; 'vmalab conflicts' calls this
#   check   the tests: faults in different VMAs share no written line under a per-VMA lock, nor does anything with a
#           fault of another address space (the default)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=target
with=(--profile quick -p vmalab-conflicts --features conflicts)
case ${1:-check} in
build) exec cargo build "${with[@]}" --bin conflicts-record ;;
check) exec cargo test "${with[@]}" ;;
*)
  echo "usage: scripts/conflicts.sh [build | check]" >&2
  exit 2
  ;;
esac
