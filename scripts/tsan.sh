#!/usr/bin/env bash
# Runs faults against mutators under ThreadSanitizer, on every lock scheme (races/tests/tsan.rs). Needs a nightly toolchain.
#   scripts/tsan.sh [mmap|rcu|typesafe|refcount ...]
# No suppressions: any report fails the run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() {
  echo "skipped: $1. To enable it: $2" >&2
  exit 0
}

command -v rustup >/dev/null || skip "ThreadSanitizer needs a nightly toolchain, and rustup is missing" \
  "install rustup (https://rustup.rs), then 'rustup toolchain install nightly'"
# Asked of rustup first, as running a missing toolchain may start to install it.
rustup toolchain list | grep -q '^nightly' || skip "ThreadSanitizer needs a nightly toolchain" \
  "rustup toolchain install nightly"
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
runtime=$(rustc +nightly --print sysroot)/lib/rustlib/$host/lib
compgen -G "$runtime/librustc*_rt.tsan.a" >/dev/null || skip "there is no ThreadSanitizer runtime for $host" \
  "rustup toolchain install nightly --force, on x86_64-unknown-linux-gnu"

# std comes without ThreadSanitizer, so the ABI check must be waived; `--cfg tsan` keeps std's hand-overs out of the
# core (src/sync/tsan.rs). With --target, build scripts and macros are built without all this.
export RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg tsan -Cforce-frame-pointers=yes"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/tsan
build=(cargo +nightly test -p vmalab-races --test tsan --target "$host" --no-run)
"${build[@]}"
# Once more, for the name of what was built.
test=$("${build[@]}" --message-format json 2>/dev/null | sed -n 's/.*"executable":"\([^"]*\/deps\/tsan-[0-9a-f]*\)".*/\1/p')
[[ -x $test ]] || {
  echo "FAILED: cargo names no test program" >&2
  exit 1
}

export TSAN_OPTIONS="exitcode=66 history_size=4"
status=0
report=$("$test" --race 2>&1) || status=$?
if ((status != 66)) || [[ $report != *"ThreadSanitizer: data race"*racer* ]]; then
  printf '%s\nFAILED (exit %d): ThreadSanitizer did not report a race made on purpose\n' "$report" "$status" >&2
  exit 1
fi
echo "self-check: the race made on purpose is reported"

status=0
"$test" "$@" || status=$?
if ((status != 0)); then
  echo "FAILED (exit $status): see the reports above" >&2
  exit 1
fi
echo "no race reported"
