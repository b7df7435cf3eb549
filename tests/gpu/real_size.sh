#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# R1's exact names, shapes and formats at a depth that one GPU holds: 1 dense and 2 MoE layers at full width, 27 GB.
# Writes such a checkpoint, computes it with PyTorch on the GPU, then loads it from the disk and compares. Needs one GPU
# of 80 GB, 30 GB of disk, and a Python with torch and safetensors.
#
#   R1D=build/release/r1d tests/gpu/real_size.sh [MAKE_OPTIONS...]     e.g. --experts 16 for a small one
#
# DIR: where the checkpoint goes (default: a new one below TMPDIR), removed at the end unless KEEP=1. DEVICE: cuda.
set -u
here=$(cd "$(dirname "$0")" && pwd)
R1D=${R1D:-$here/../../build/release/r1d}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
REFERENCE_DEVICE=${REFERENCE_DEVICE:-$DEVICE}
CONFIG=${CONFIG:-$here/../../configs/models/deepseek-r1.json}
DIR=${DIR:-$(mktemp -d)/r1}
mkdir -p "$(dirname "$DIR")"
trap '[ -n "${KEEP:-}" ] || rm -rf "$DIR"' EXIT

seconds() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(seconds)" 'BEGIN { printf "%.1f", b - a }'; }

echo "== write: $(df -h --output=fstype,avail "$(dirname "$DIR")" | tail -1) in $(dirname "$DIR")"
"$R1D" make-checkpoint "$DIR" --model-config "$CONFIG" --layers 3 --dense-layers 1 "$@" || exit 1

echo "== reference"
start=$(seconds)
"$PYTHON" "$here/r1_reference.py" "$DIR" --activations both --router-bias 10 --device "$REFERENCE_DEVICE" || exit 1
echo "reference: $(since "$start") s in all"

echo "== load and compare"
# The weights leave the page cache, so that loading reads the disk (what is not yet on it stays).
start=$(seconds)
timeout "${SYNC_SECONDS:-60}" sync
echo "sync: $(since "$start") s"
for file in "$DIR"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
start=$(seconds)
# Blocks of 64 tokens, as `serve` has them.
timeout "${GOLDEN_SECONDS:-60}" "$R1D" golden "$DIR" --device "$DEVICE" --block-size "${BLOCK_SIZE:-64}"
status=$?
echo "golden: $(since "$start") s in all"
[ "$status" = 0 ] && echo "real size: PASSED" || echo "real size: FAILED"
exit "$status"
