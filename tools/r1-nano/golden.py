#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes golden.json and golden.safetensors beside a checkpoint: what Hugging Face transformers computes from it.

float32 arithmetic on exactly the stored values. `r1d golden DIR` compares the daemon with them.
"""

import argparse
import json
import pathlib

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer

import checkpoint
import heldout
import text

NUM_CASES = 6
NUM_GREEDY = 32
SEED = "golden"


def prompts(tokenizer):
    """Prompts of different kinds, spread over all of them."""
    questions = [q for q in heldout.questions(1, SEED) if q.split == heldout.SPLITS[0]]
    spread = [questions[i * len(questions) // NUM_CASES] for i in range(min(NUM_CASES, len(questions)))]
    return [tokenizer.encode(text.prompt(q.conversation), add_special_tokens=False).ids for q in spread]


@torch.no_grad()
def case_of(model, prompt):
    """One case of golden.json, and the logits at the prompt's last position."""
    logits = model(torch.tensor([prompt])).logits[0]
    last, ids, greedy, gaps = logits[-1], list(prompt), [], []
    row = last
    for _ in range(NUM_GREEDY):
        best = row.topk(2)
        greedy.append(best.indices[0].item())
        gaps.append(round((best.values[0] - best.values[1]).item(), 5))
        ids.append(greedy[-1])
        row = model(torch.tensor([ids])).logits[0, -1]
    top = last.topk(8)
    case = {
        "prompt": prompt,
        "greedy": greedy,
        "gap": gaps,
        "prompt_mean_nll": F.cross_entropy(logits[:-1], torch.tensor(prompt[1:])).item(),
        "top8": [[i, round(v, 5)] for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)],
        "logit_std": round(last.std().item(), 4),
    }
    return case, last.contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, help="of the checkpoint")
    parser.add_argument("--tokenizer", help="tokenizer.json; default: the checkpoint's")
    arguments = parser.parse_args()
    directory = arguments.directory
    tokenizer = Tokenizer.from_file(arguments.tokenizer or str(directory / "tokenizer.json"))
    model = checkpoint.reference(directory)
    results = [case_of(model, prompt) for prompt in prompts(tokenizer)]
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, float32 on the stored values"
    golden = {"reference": versions, "cases": [case for case, _ in results]}
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")
    tensors = {f"prompt{i}.last_logits": logits for i, (_, logits) in enumerate(results)}
    checkpoint.save_tensors(tensors, directory / "golden.safetensors")
    print(f"{directory}: {len(results)} cases, prompts of {[len(case['prompt']) for case, _ in results]} tokens")


if __name__ == "__main__":
    main()
