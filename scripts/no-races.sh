#!/usr/bin/env bash
# Shows that a normal release build of the command holds no schedule point, no
# mutant and no adversary: not one symbol of theirs, not one of their names. The
# same search in a build with the feature `races` must find them, or it proves
# nothing. Usage: scripts/no-races.sh [NORMAL RACES]: paths of the two builds;
# without them both are made, each in a folder of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# == 2)); then
  normal=$1 races=$2
else
  cargo build --release -p vmalab-cli
  cargo build --release -p vmalab-cli --features races --target-dir target/races
  normal=target/release/vmalab races=target/races/release/vmalab
fi

# Statics that every schedule point and every mutant reads, and the names that
# only code that is compiled in can print.
patterns=('races5point4hook4HOOK' 'races6mutant6switch6MUTANT' 'races6mutant6switch5KNOBS'
  'an address space was used after it was freed' 'a VMA changed while a reader had it locked')
status=0
for pattern in "${patterns[@]}"; do
  in_normal=$(grep -c -a -F -- "$pattern" "$normal" || true)
  in_races=$(grep -c -a -F -- "$pattern" "$races" || true)
  printf '%-50s normal %s, races %s\n' "$pattern" "$in_normal" "$in_races"
  if [[ $in_normal != 0 ]]; then
    echo "a normal build holds '$pattern'" >&2
    status=1
  fi
  if [[ $in_races == 0 ]]; then
    echo "the build with races does not hold '$pattern': the search proves nothing" >&2
    status=1
  fi
done
exit $status
