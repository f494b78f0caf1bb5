#!/usr/bin/env bash
# Builds the model executor. Usage: scripts/models.sh loom|shuttle [cargo arguments...]
# Each model has a target folder of its own: its build differs in every crate.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
model=${1:?usage: scripts/models.sh loom|shuttle [cargo arguments...]}
shift
(($#)) || set -- build --release -p vmalab-races --bin race-child
RUSTFLAGS="--cfg $model -Cforce-frame-pointers=yes" CARGO_TARGET_DIR="target/$model" exec cargo "$@"
