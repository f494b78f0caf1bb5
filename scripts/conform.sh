#!/usr/bin/env bash
# Compares vmalab with the host kernel by random calls, under every lock scheme and both deliveries that serve real faults.
#
#   scripts/conform.sh [OPS] [SEEDS]     OPS calls (default 1000000) for each of SEEDS seeds (default 1)
#
# SEED=N     the first seed (default 1)
# VMALAB=... the command (default target/release/vmalab)
#
# Then, for each lock, calls and faults on three threads at once, a tenth as many.
#
# One line per run; exit 1 at the first divergence, which is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ops=${1:-1000000} seeds=${2:-1} first=${SEED:-1}
vmalab=${VMALAB:-${CARGO_TARGET_DIR:-target}/release/vmalab}
[[ -x $vmalab ]] || {
  echo "$vmalab is not there: run 'cargo build --release' first" >&2
  exit 3
}
for ((seed = first; seed < first + seeds; seed++)); do
  for delivery in sigbus queue; do
    for lock in mmap rcu typesafe refcount; do
      started=$SECONDS status=0
      said=$("$vmalab" conform --ops "$ops" --seed "$seed" --lock "$lock" --delivery "$delivery" 2>&1) || status=$?
      if ((status != 0)); then
        printf 'FAILED (exit %d): vmalab conform --ops %s --seed %s --lock %s --delivery %s\n%s\n' \
          "$status" "$ops" "$seed" "$lock" "$delivery" "$said"
        exit "$status"
      fi
      printf 'ok: %s calls, seed %s, %s, %s: no divergence in %d s\n' "$ops" "$seed" "$lock" "$delivery" $((SECONDS - started))
    done
  done
done
for lock in mmap rcu typesafe refcount; do
  status=0
  said=$("$vmalab" conform --concurrent --ops $((ops / 10 + 1)) --seed "$first" --lock "$lock" 2>&1) || status=$?
  if ((status != 0)); then
    printf 'FAILED (exit %d): vmalab conform --concurrent --seed %s --lock %s\n%s\n' "$status" "$first" "$lock" "$said"
    exit "$status"
  fi
  printf 'ok: at once, %s\n' "$lock"
done
