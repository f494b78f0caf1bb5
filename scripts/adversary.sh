#!/usr/bin/env bash
# Runs the adversary against each lock scheme, one after the other, with verification: reuse-storm on real faults and in
# software, and other workloads in between, each run with the next seed. One line per lock; exit 1 at any violation.
#
#   scripts/adversary.sh [SECONDS] [LOCK...]     SECONDS per lock (default 60); all four locks unless named
#
# SEED=N     the first seed (default: the time)
# PARALLEL=1 all locks at once
# VMALAB=... the command; without it one is built with the feature `races`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}
(($#)) && shift
locks=("$@")
((${#locks[@]})) || locks=(mmap rcu typesafe refcount)
[[ $seconds =~ ^[1-9][0-9]*$ ]] || {
  echo "usage: scripts/adversary.sh [SECONDS] [LOCK...]; SECONDS is a whole number, not '$seconds'" >&2
  exit 2
}
seed=${SEED:-$(date +%s)}
if [[ -z ${VMALAB:-} ]]; then
  cargo build --release -p vmalab-cli --features races
  VMALAB=${CARGO_TARGET_DIR:-target}/release/vmalab
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# What is run in turn. reuse-storm is what the adversary was made for, so it has every other turn.
turns=(
  "reuse-storm"
  "reuse-storm --delivery software"
  "app-start --mutators 1"
  "reuse-storm --mutators 2"
  "protect"
  "reuse-storm --delivery software --mutators 2 --threads 3"
  "alloc-churn --mutators 1"
  "mremap-move --mutators 1"
  "reuse-storm --address-spaces 3"
  "fork-cow --mutators 1"
  "maps-reader"
  "file-shared --mutators 1 --address-spaces 2"
  "stack-growth --mutators 1"
  "page-fault-shared --mutators 1"
  "reuse-storm --delivery queue"
  "app-start --mutators 1 --address-spaces 2 --threads 4"
)

# Sums a number up over the results of a lock: KEY FOLDER.
sum() { cat "$2"/*.json | grep -o "\"$1\":[0-9]*" | awk -F: '{ n += $2 } END { print n + 0 }'; }

against() {
  local lock=$1 results=$folder/$1 started=$SECONDS turn=0 left each status
  mkdir "$results"
  while left=$((seconds - (SECONDS - started))) && ((left > 0)); do
    # Every turn comes at least once if there is a second for each.
    each=$((seconds / ${#turns[@]}))
    each=$((each < 1 ? 1 : each > 30 ? 30 : each))
    each=$((each < left ? each : left))
    local run="stress ${turns[turn % ${#turns[@]}]} --lock $lock --adversary --verify --seed $((seed + turn))"
    status=0
    # shellcheck disable=SC2086 # words of options
    "$VMALAB" $run --duration "$each" --warmup 0 --json "$results/$turn.json" >"$results/out" 2>"$results/err" || status=$?
    if ((status == 3)); then
      cat "$results/err" >&2
      return 3
    elif ((status != 0)); then
      printf '%-9s VIOLATION (exit %d) after %d runs: vmalab %s\n' "$lock" "$status" "$turn" "$run"
      cat "$results/err" "$results/out"
      return 1
    fi
    turn=$((turn + 1))
  done
  printf '%-9s ok: %d runs in %d s, seeds %d-%d: %d accesses checked, %d VMA objects reused (%d in another mm)\n' \
    "$lock" "$turn" $((SECONDS - started)) "$seed" $((seed + turn - 1)) "$(sum checked "$results")" \
    "$(cat "$results"/*.json | grep -o '"adversary":{.*' | grep -o '"reused":[0-9]*' | awk -F: '{ n += $2 } END { print n + 0 }')" \
    "$(cat "$results"/*.json | grep -o '"adversary":{.*' | grep -o '"reused_other_mm":[0-9]*' | awk -F: '{ n += $2 } END { print n + 0 }')"
}

failed=0
if [[ ${PARALLEL:-0} == 1 ]]; then
  for lock in "${locks[@]}"; do
    against "$lock" &
    jobs[$!]=$lock
  done
  for job in "${!jobs[@]}"; do
    wait "$job" || failed=$(($? > failed ? $? : failed))
  done
else
  for lock in "${locks[@]}"; do
    against "$lock" || failed=$(($? > failed ? $? : failed))
  done
fi
exit "$failed"
