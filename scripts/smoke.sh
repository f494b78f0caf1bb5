#!/usr/bin/env bash
# Runs every workload on every lock with verification, and every delivery once. Any violation or failure ends it.
# SECONDS_EACH=2 scripts/smoke.sh [vmalab]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
vmalab=${1:-${CARGO_TARGET_DIR:-target}/release/vmalab}
duration=${SECONDS_EACH:-2}

[[ -x $vmalab ]] || {
  echo "$vmalab is not there: run 'cargo build --release' first" >&2
  exit 3
}

# Prints the first column of a listing.
names() { "$vmalab" list "$1" --json | tr '{' '\n' | sed -n 's/.*"name":"\([^"]*\)".*/\1/p'; }

run() {
  local status=0 result
  result=$("$vmalab" stress "$@" --no-floor --json -) || status=$?
  if ((status != 0)); then
    printf 'FAILED (exit %d): vmalab stress %s\n%s\n' "$status" "$*" "$result"
    exit 1
  fi
  printf 'ok: vmalab stress %s\n' "$*"
}

"$vmalab" doctor >/dev/null || {
  "$vmalab" doctor
  exit 3
}
workloads=$(names workloads)
locks=$(names locks)
[[ -n $workloads && -n $locks ]] || {
  echo "vmalab lists no workloads or no locks" >&2
  exit 1
}
for workload in $workloads; do
  for lock in $locks; do
    run "$workload" --lock "$lock" --duration "$duration" --warmup 200ms --verify
  done
done
workload=${workloads%%$'\n'*}
for delivery in sigbus queue software; do
  run "$workload" --delivery "$delivery" --duration 500ms --warmup 200ms --verify
done
