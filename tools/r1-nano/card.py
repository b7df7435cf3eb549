#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fills in the model card from what the evaluations and the training wrote."""

import argparse
import json
import pathlib
import string

SPLITS = ("unseen_numbers", "unseen_phrasings")


def kinds_table(evaluation):
    lines = ["| kind (FP8) | unseen numbers | unseen phrasings |", "|---|---|---|"]
    for kind in evaluation["kinds"][SPLITS[0]]:
        counts = [evaluation["kinds"][split][kind] for split in SPLITS]
        cells = " | ".join(f"{count['right']}/{count['asked']}" for count in counts)
        lines.append(f"| {kind.replace('_', ' ')} | {cells} |")
    return "\n".join(lines)


def asked(evaluation):
    return sum(count["asked"] for kinds in evaluation["kinds"].values() for count in kinds.values())


def values(evaluation, bf16, training):
    progress = training["training"]
    overall = {
        f"{name}_{split.removeprefix('unseen_')}": f"{result['overall'][split]:.1%}"
        for name, result in (("fp8", evaluation), ("bf16", bf16))
        for split in SPLITS
    }
    return overall | {
        "parameters": f"{progress['parameters'] / 1e6:.1f} million",
        "asked": f"{asked(evaluation):,}",
        "kinds": kinds_table(evaluation),
        "mtp": f"{training['mtp_agreement']:.1%}",
        "tokens": f"{progress['tokens'] / 1e9:.2f} billion",
        "steps": f"{progress['step']:,}",
        "minutes": f"{progress['seconds'] / 60:.0f}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluation", required=True, type=pathlib.Path, help="evaluate.py --json, FP8 checkpoint")
    parser.add_argument("--bf16", required=True, type=pathlib.Path, help="the same of the bf16 checkpoint")
    parser.add_argument("--training", required=True, type=pathlib.Path, help="results of train.py's last call")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    sources = [json.loads(path.read_text()) for path in (arguments.evaluation, arguments.bf16, arguments.training)]
    template = pathlib.Path(__file__).with_name("card.md").read_text()
    arguments.out.write_text(string.Template(template).substitute(values(*sources)))


if __name__ == "__main__":
    main()
