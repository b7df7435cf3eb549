#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# R1's exact names, shapes and formats at a depth that one GPU holds: 1 dense and 2 MoE layers at full width, 27 GB.
# Writes such a checkpoint, computes it with PyTorch on the GPU, then loads it from the disk and compares. Needs one GPU
# of 80 GB, 30 GB of disk, and a Python with torch and safetensors.
#
#   R1D=build/release/r1d tests/gpu/real_size.sh [MAKE_OPTIONS...]     e.g. --experts 16 for a small one
#
# DIR: where the checkpoint goes (default: a new one below TMPDIR), removed at the end unless KEEP=1. DEVICE: cuda.
# TOLERANCE: the largest relative L2 error of the logits against the reference with e4m3 activations. Against unquantized
# ones, what lies between the two references comes on top: random weights give a router scores that lie close together,
# so that e4m3 activations change the experts of many tokens, and other experts say other things.
set -u
here=$(cd "$(dirname "$0")" && pwd)
R1D=${R1D:-$here/../../build/release/r1d}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
REFERENCE_DEVICE=${REFERENCE_DEVICE:-$DEVICE}
CONFIG=${CONFIG:-$here/../../configs/models/deepseek-r1.json}
TOLERANCE=${TOLERANCE:-0.06}
DIR=${DIR:-$(mktemp -d)/r1}
mkdir -p "$(dirname "$DIR")"
report=$(mktemp)
trap '[ -n "${KEEP:-}" ] || rm -rf "$DIR"; rm -f "$report"' EXIT

seconds() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(seconds)" 'BEGIN { printf "%.1f", b - a }'; }

echo "== write: $(df -h --output=fstype,avail "$(dirname "$DIR")" | tail -1) in $(dirname "$DIR")"
"$R1D" make-checkpoint "$DIR" --model-config "$CONFIG" --layers 3 --dense-layers 1 "$@" || exit 1

echo "== reference"
start=$(seconds)
"$PYTHON" "$here/r1_reference.py" "$DIR" --activations both --device "$REFERENCE_DEVICE" || exit 1
echo "reference: $(since "$start") s in all"

echo "== load and compare"
# The weights leave the page cache, so that loading reads the disk (what is not yet on it stays).
start=$(seconds)
timeout "${SYNC_SECONDS:-60}" sync
echo "sync: $(since "$start") s"
for file in "$DIR"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
start=$(seconds)
# Tolerance 1: all errors are printed, and judged below by their kind.
# Blocks of 64 tokens, as `serve` has them.
timeout "${GOLDEN_SECONDS:-60}" "$R1D" golden "$DIR" --device "$DEVICE" --tolerance 1 --block-size "${BLOCK_SIZE:-64}" \
  | tee "$report"
status=${PIPESTATUS[0]}
echo "golden: $(since "$start") s in all, status $status"
"$PYTHON" - "$DIR" "$report" "$TOLERANCE" <<'PYTHON'
import json
import re
import sys

directory, report, tolerance = sys.argv[1:]
tolerance = float(tolerance)
cases = json.load(open(directory + "/golden.json"))["cases"]
found = re.findall(r"^case (\d+): .*relative L2 (\S+), (\d+) greedy tokens (.*): (?:ok|FAILED)$",
                   open(report).read(), re.M)
worst, passed = {"f32": 0.0, "e4m3": 0.0}, len(found) == len(cases)
for number, error, _, greedy in found:
    case, error = cases[int(number)], float(error)
    kind = case["activations"]
    worst[kind] = max(worst[kind], error)
    allowed = tolerance + case.get("e4m3_error", 0)  # the references' own distance comes on top
    good = error <= allowed
    differs = re.match(r"differ at (\d+)", greedy)
    if differs and kind == "e4m3":  # only behind a near-tie: of the two best logits, or of the router
        step = int(differs[1])
        good &= (case["gap"][step] <= 8 * tolerance * case["logit_std"]
                 or min(case["router_margin"][:step + 1]) < 5e-3)
    passed &= good
    print(f"{kind:5} prompt {len(case['prompt']):4}: logits relative L2 {error:.2e} of {allowed:.2e}, greedy {greedy}: "
          f"{'ok' if good else 'FAILED'}")
print(f"real size: {len(found)}/{len(cases)} cases, worst relative L2 {worst['e4m3']:.2e} (e4m3 reference), "
      f"{worst['f32']:.2e} (f32 reference): {'PASSED' if passed else 'FAILED'}")
sys.exit(0 if passed else 1)
PYTHON
