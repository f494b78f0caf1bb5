#!/usr/bin/env bash
# Builds and runs the race catalogue, or the entries named: every mutant must be caught, the complete code must pass.
# Usage: [RACE_SECONDS=20] [RACE_PROFILE=release] scripts/races.sh [faults|shuttle|loom|all] [NAME...]
# RACE_SECONDS bounds each run of a model over the complete code; a mutant's ends when it is caught. Exits 1 at a miss, 3 if this machine cannot do it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
executors=${1:-faults}
(($#)) && shift
case $executors in
faults | shuttle | loom) ;;
all) executors="faults shuttle loom" ;;
*)
  echo "usage: scripts/races.sh [faults|shuttle|loom|all] [NAME...]" >&2
  exit 2
  ;;
esac
# RACE_PROFILE is the profile of what runs on real faults.
export RACE_SECONDS=${RACE_SECONDS:-20}
profile=${RACE_PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}

cargo build --quiet --profile "$profile" -p vmalab-races --features races --bin race-child --example race-suite
status=0
for executor in $executors; do
  if [[ $executor == faults ]]; then
    child=$target/$profile/race-child
  else
    scripts/models.sh "$executor" build --quiet --release -p vmalab-races --bin race-child
    child=target/$executor/release/race-child
  fi
  "$target/$profile/examples/race-suite" "$executor" "$child" "$@" || {
    result=$?
    ((result == 1)) || exit "$result"
    status=1
  }
done
exit "$status"
