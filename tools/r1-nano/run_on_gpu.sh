#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains r1-nano on one GPU in two calls of under ten minutes each; the second continues the first.
#
#   OUT=DIR tools/r1-nano/run_on_gpu.sh smoke|first|second
#
# smoke: a whole schedule in sixty steps, to see that everything works on this machine.
# Under OUT come logs, results and the float32 weights in files below 16 MiB; the optimizer's state
# stays in build/r1-nano/state. export.py makes the checkpoints from the weights, on any machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

die() { printf 'run_on_gpu.sh: %s\n' "$1" >&2; exit 2; }

[[ $# -eq 1 ]] || die "expected one argument: smoke, first or second"
[[ -n ${OUT:-} ]] || die "OUT names no directory for the results"
readonly part=$1 work=build/r1-nano

case "$part" in
  smoke) rm -rf "$work/smoke"; state=$work/smoke options=(--seconds 140 --reserve 30 --steps 60 --evaluate-per-kind 2) ;;
  first) rm -rf "$work/state"; state=$work/state options=(--seconds 560 --reserve 40 --until 0.48 --evaluate-per-kind 8) ;;
  second)
    state=$work/state options=(--seconds 570 --reserve 60 --until 1 --evaluate-per-kind 25)
    [[ -f $state/state.json ]] || die "$state is not there: run first"
    ;;
  *) die "unknown part $part; expected smoke, first or second" ;;
esac

mkdir -p "$OUT" "$work"
# Compiled kernels are kept for the next call.
export TORCHINDUCTOR_CACHE_DIR=$PWD/$work/inductor
status=0
python3 tools/r1-nano/train.py --state "$state" --results "$OUT/results-$part.json" "${options[@]}" 2>&1 |
  tee "$OUT/train-$part.log" || status=$?
# Even if the evaluation failed: the weights were saved before it.
[[ $part == smoke || ! -f $state/state.json ]] || cp "$state"/weights-*.safetensors "$state/state.json" "$OUT"
exit "$status"
