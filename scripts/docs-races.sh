#!/usr/bin/env bash
# Writes docs/races.md from the race catalogue.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
page=$(mktemp)
trap 'rm -f "$page"' EXIT
cargo run --quiet --release -p vmalab-races --example race-docs >"$page"
cat "$page" >docs/races.md
