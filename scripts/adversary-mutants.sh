#!/usr/bin/env bash
# Whether the adversary notices: runs stress with one check left out after the other, and says how long it took to be
# caught. Exit 1 if one was not. Usage: scripts/adversary-mutants.sh [SECONDS] [MUTANT...]   (default 60 seconds each)
# VMALAB=... the command; without it one is built with the feature `races`. SEED=N (default 1).
# CONTROL=1: the same without the adversary, to show what it adds; nothing has to be caught then.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}
(($#)) && shift
if [[ -z ${VMALAB:-} ]]; then
  cargo build --release -p vmalab-cli --features races
  VMALAB=${CARGO_TARGET_DIR:-target}/release/vmalab
fi

# Mutant, the locks that have the check, and the workload that shows it.
table='NoMmCheck typesafe,refcount reuse-storm
NoRangeCheck rcu,typesafe,refcount reuse-storm
NoDetachedCheck rcu,typesafe,refcount reuse-storm
NumberOfForeignMm typesafe,refcount reuse-storm
AttachDoesNotWait typesafe reuse-storm
DetachDoesNotDrain refcount reuse-storm
DetachDoesNotDrain typesafe reuse-storm --delivery software --threads 3
FreeWithoutGracePeriod rcu reuse-storm
ProtectWithoutVmaLock rcu,typesafe,refcount reuse-storm
ZapBeforeDrain rcu,typesafe,refcount reuse-storm
InstallAfterUnlock mmap,rcu,typesafe,refcount reuse-storm
ZapAfterUnlock mmap,rcu,typesafe,refcount app-start --mutators 1'

adversary=(--adversary)
if [[ ${CONTROL:-0} == 1 ]]; then adversary=(); fi

now_ms() { date +%s%3N; }

missed=0
while read -r mutant locks workload; do
  if (($#)) && [[ " $* " != *" $mutant "* ]]; then continue; fi
  for lock in ${locks//,/ }; do
    status=0
    started=$(now_ms)
    # shellcheck disable=SC2086 # words of options
    said=$(timeout $((seconds + 60)) "$VMALAB" stress $workload --lock "$lock" --mutant "$mutant" "${adversary[@]}" --verify --seed "${SEED:-1}" \
      --warmup 0 --duration "$seconds" 2>&1 >/dev/null) || status=$?
    took=$(($(now_ms) - started))
    case $status in
      0) missed=1 said="not caught" ;;
      124) said="error: does not end (O5)" ;;
    esac
    printf '%-22s %-9s %-12s %6d.%02d s  %s\n' "$mutant" "$lock" "${workload%% *}" $((took / 1000)) $((took % 1000 / 10)) \
      "$(head -n 1 <<<"$said" | cut -c 1-110)"
  done
done <<<"$table"
[[ ${CONTROL:-0} == 1 ]] || exit "$missed"
