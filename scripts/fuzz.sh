#!/usr/bin/env bash
# Fuzzes the tree and the calls for a bounded time each. Needs a nightly toolchain and cargo-fuzz.
#   scripts/fuzz.sh [--install] [SECONDS_PER_TARGET]     (default 30; --install installs cargo-fuzz where it is missing)
# A failure prints the sequence of calls, and where its input is kept. The corpus (fuzz/corpus) grows from run to run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() {
  echo "skipped: $1. To enable it: $2" >&2
  exit 0
}

install=false
seconds=30
for arg; do
  case $arg in
    --install) install=true ;;
    *[!0-9]* | '' | 0)
      echo "usage: scripts/fuzz.sh [--install] [SECONDS_PER_TARGET]" >&2
      exit 2
      ;;
    *) seconds=$arg ;;
  esac
done

command -v rustup >/dev/null || skip "fuzzing needs a nightly toolchain, and rustup is missing" \
  "install rustup (https://rustup.rs), then 'rustup toolchain install nightly'"
# Asked of rustup first, as running a missing toolchain may start to install it.
rustup toolchain list | grep -q '^nightly' || skip "fuzzing needs a nightly toolchain" \
  "rustup toolchain install nightly"
if ! cargo fuzz --version >/dev/null 2>&1; then
  $install || skip "cargo-fuzz is missing" "scripts/fuzz.sh --install, or 'cargo install cargo-fuzz --locked'"
  cargo install cargo-fuzz --locked
fi

# The least the address sanitizer needs to tell a stale pointer, and no more memory to walk through than that.
export ASAN_OPTIONS="quarantine_size_mb=8${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
cargo +nightly fuzz build
for target in tree mm; do
  echo "== $target: $seconds s"
  log=$(mktemp)
  status=0
  # Long sequences from the start: short ones leave nothing mapped.
  cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -max_len=1024 \
    -len_control=0 -print_final_stats=1 -verbosity=1 >"$log" 2>&1 || status=$?
  if ((status != 0)); then
    cat "$log" >&2
    rm -f "$log"
    echo "FAILED: $target (exit $status)" >&2
    exit 1
  fi
  grep -E '^(#[0-9]+[[:space:]]+DONE|Done |stat::(number_of_executed|average_exec|peak_rss))' "$log"
  rm -f "$log"
done
