#!/usr/bin/env bash
# Compares vmalab with the host kernel by random calls: every lock scheme, both deliveries that serve real faults, several
# seeds. What one build has passed is not run again, so that a sweep can be stopped and taken up later.
#
#   scripts/conform-sweep.sh [OPS] [SEEDS]     OPS calls (default 1000000) for each of the seeds 1 to SEEDS (default 10)
#
# SEED=N      the first seed (default 1)
# JOBS=N      runs at once (default: half the CPUs; a run uses two)
# LOCKS="..." DELIVERIES="..."   only these
# VMALAB=...  the command (default target/release/vmalab); a build is known by its hash
# RESULTS=DIR where results are kept (default target/conform-sweep)
#
# One line per run, and a sum. Exit 1 if a run diverged (its report is in RESULTS), 3 if one could not be made, 130 on Ctrl-C.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ops=${1:-1000000} seeds=${2:-10} first=${SEED:-1}
target=${CARGO_TARGET_DIR:-target}
vmalab=${VMALAB:-$target/release/vmalab} results=${RESULTS:-$target/conform-sweep}
jobs=${JOBS:-$((($(nproc) + 1) / 2))}
for number in "$ops" "$seeds" "$first" "$jobs"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || {
    echo "usage: scripts/conform-sweep.sh [OPS] [SEEDS]; '$number' is not a positive number" >&2
    exit 2
  }
done
[[ -x $vmalab ]] || {
  echo "$vmalab is not there: run 'cargo build --release' first" >&2
  exit 3
}
build=$(sha256sum "$vmalab" | cut -c1-12)
mkdir -p "$results/$build"
# A rebuild while the sweep runs must not change what it runs.
command=$results/$build/vmalab
[[ -x $command ]] || cp "$vmalab" "$command"
passed=$results/$build/passed
touch "$passed"
echo "build $build, $ops calls a run, seeds $first-$((first + seeds - 1)), $jobs at once"

# One run: DELIVERY LOCK SEED. Runs in a process of its own.
one() {
  local delivery=$1 lock=$2 seed=$3 status=0 started=$SECONDS
  local name=$ops-$seed-$lock-$delivery
  local report=$results/$build/$name.json
  if grep -qxF "$name" "$passed"; then
    printf 'ok      seed %-4d %-9s %-7s (passed before)\n' "$seed" "$lock" "$delivery"
    return 0
  fi
  "$command" conform --ops "$ops" --seed "$seed" --lock "$lock" --delivery "$delivery" --shrink 10 --json "$report" \
    >"$report.text" 2>&1 || status=$?
  case $status in
    0)
      echo "$name" >>"$passed"
      printf 'ok      seed %-4d %-9s %-7s %5d s\n' "$seed" "$lock" "$delivery" $((SECONDS - started))
      rm -f "$report.text"
      ;;
    1) printf 'DIVERGE seed %-4d %-9s %-7s %5d s: %s\n' "$seed" "$lock" "$delivery" $((SECONDS - started)) "$(tail -n 1 "$report.text")" ;;
    130) ;;
    *) printf 'FAILED  seed %-4d %-9s %-7s exit %d: %s\n' "$seed" "$lock" "$delivery" "$status" "$(tail -n 1 "$report.text")" ;;
  esac
  return "$status"
}

# On Ctrl-C the runs get the signal, too; otherwise they are told.
interrupted=0
trap 'interrupted=1; for job in $(jobs -p); do pkill -TERM -P "$job" || :; done' INT TERM
running=0 runs=0 diverged=0 failed=0
# Waits for a run to end.
reap() {
  local status=0
  wait -n || status=$?
  ((interrupted)) && return
  running=$((running - 1))
  case $status in
    0) ;;
    1) diverged=$((diverged + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
}
for ((seed = first; seed < first + seeds; seed++)); do
  for lock in ${LOCKS:-mmap rcu typesafe refcount}; do
    for delivery in ${DELIVERIES:-sigbus queue}; do
      ((running < jobs)) || reap
      ((interrupted)) && break 3
      one "$delivery" "$lock" "$seed" &
      running=$((running + 1)) runs=$((runs + 1))
    done
  done
done
while ((running > 0 && !interrupted)); do reap; done
if ((interrupted)); then
  wait
  echo "interrupted; the same command goes on from here" >&2
  exit 130
fi
echo "$runs runs of $ops calls on build $build: $((runs - diverged - failed)) ok, $diverged diverged, $failed failed"
((diverged)) && exit 1
((failed)) && exit 3
exit 0
