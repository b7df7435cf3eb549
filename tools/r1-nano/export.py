#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a training state as a Hugging Face checkpoint, in FP8 as R1 stores it or in bf16, and checks it.

The check loads what was written into Hugging Face transformers and compares its logits with those of
model.py on the same values, in float32.
"""

import argparse
import pathlib
import shutil
import sys

import torch

import checkpoint
import fp8
import state
from model import causal

LARGEST_ERROR = 1e-4  # relative L2 of logits, float32 against float32
FILE_BYTES = 15_500_000  # of one file; r1-nano is one file in FP8 and two in bf16
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@torch.no_grad()
def logits_of(model, ids):
    rope = model.rope(torch.arange(ids.shape[1]))
    attends = [causal(model.shape)] * model.shape.num_hidden_layers
    return model.lm_head(model.hidden(ids, rope, attends, torch.float32)[0])


def as_written(model, quantized):
    """The model with the values that the checkpoint holds."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(fp8.as_stored(name, parameter) if quantized else parameter.bfloat16().float())
    return model


def error_against_reference(directory, model, quantized):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.shape.vocab_size, (2, 200), generator=generator)
    with torch.no_grad():
        expected = checkpoint.reference(directory)(ids).logits
    found = logits_of(as_written(model, quantized), ids)
    return ((found - expected).norm() / expected.norm()).item()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", required=True, help="directory of train.py")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory of the checkpoint")
    parser.add_argument("--dtype", choices=("fp8", "bf16"), default="fp8")
    parser.add_argument("--text-files", type=pathlib.Path, help="directory of the tokenizer's files, copied to --out")
    parser.add_argument("--file-bytes", type=int, default=FILE_BYTES, help="of weights in one file at most")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    model, quantized = state.load_model(arguments.state), arguments.dtype == "fp8"
    checkpoint.write(arguments.out, model, quantized, arguments.file_bytes)
    out = arguments.out
    for name in TEXT_FILES if arguments.text_files else ():
        shutil.copyfile(arguments.text_files / name, out / name)
    error = error_against_reference(out, model, quantized)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size:,} bytes; logits differ from transformers by {error:.1e} (relative L2)")
    return 0 if error < LARGEST_ERROR else 1


if __name__ == "__main__":
    sys.exit(main())
