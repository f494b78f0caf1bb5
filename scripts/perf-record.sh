#!/usr/bin/env bash
# Records a stress run with perf, with call stacks.
#   scripts/perf-record.sh WORKLOAD [stress options]
#   PERF_DATA=FILE names the recording (default perf.data); PERF_OPTIONS adds options of perf record.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# == 0)); then
  echo "usage: scripts/perf-record.sh WORKLOAD [options of 'vmalab stress']" >&2
  exit 2
fi
if ! command -v perf >/dev/null; then
  echo "perf is missing: install it (Debian: linux-perf, Ubuntu: linux-tools-\$(uname -r), Fedora: perf)" >&2
  exit 3
fi
paranoid=$(cat /proc/sys/kernel/perf_event_paranoid 2>/dev/null || echo 0)
if ((paranoid > 2 && EUID != 0)); then
  echo "perf is not allowed here (perf_event_paranoid is $paranoid):" \
    "be root, or 'sudo sysctl kernel.perf_event_paranoid=1'" >&2
  exit 3
fi

# Full debug information, same optimisation as release. Frame pointers come from .cargo/config.toml.
cargo build --profile profiling -p vmalab-cli
data=${PERF_DATA:-perf.data}
# Many virtual machines have no cycle counter; the clock works everywhere.
event=cycles
[[ $(perf stat -e cycles true 2>&1) == *"not supported"* ]] && event=cpu-clock
# shellcheck disable=SC2086
perf record -e "$event" -F 1999 --call-graph fp -o "$data" ${PERF_OPTIONS:-} -- \
  "${CARGO_TARGET_DIR:-target}/profiling/vmalab" stress "$@"
echo "read it with: perf report -i $data --no-children ('vmalab profile' draws a flame graph; see docs/profiling.md)" >&2
