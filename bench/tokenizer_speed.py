#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Encoding speed beside Hugging Face `tokenizers`, one thread each, the same lines, one after the other.

    bench/tokenizer_speed.py TOKENIZER_DIR [TEXT_FILE]

Needs build/venv (scripts/python) and build/release/bench/r1d_tokenizer_bench. TEXT_FILE: default, all
Markdown and C++ of this repository. Rounds alternate, so that a busy machine slows both; the ratio of
the medians is what counts.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCH = ROOT / "build/release/bench/r1d_tokenizer_bench"
ROUNDS, SECONDS = 5, 2.0


def sample_text():
    paths = [p for pattern in ("*.md", "src/**/*.md", "docs/*.md", "src/**/*.cc", "proto/r1d/**/*.proto") for p in sorted(ROOT.glob(pattern))]
    return "\n".join(line for path in paths for line in path.read_text().splitlines() if line) + "\n"


def hugging_face(folder, lines):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin, num_bytes = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < SECONDS:
        for line in lines:
            tokenizer.encode(line, add_special_tokens=False)
            num_bytes += len(line.encode())
    return num_bytes / 1e6 / elapsed


def main():
    folder = pathlib.Path(sys.argv[1])
    text = pathlib.Path(sys.argv[2]).read_text() if len(sys.argv) > 2 else sample_text()
    lines = text.splitlines()
    ours, theirs = [], []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        for _ in range(ROUNDS):
            answer = subprocess.run([BENCH, folder, file.name, str(SECONDS)], capture_output=True, text=True, check=True)
            ours.append(json.loads(answer.stdout)["mb_per_second"])
            theirs.append(hugging_face(folder, lines))
    print(f"{len(text.encode()) / 1e6:.2f} MB in {len(lines)} lines, median of {ROUNDS} rounds of {SECONDS} s")
    print(f"r1d           {statistics.median(ours):8.2f} MB/s   {[round(x, 2) for x in ours]}")
    print(f"tokenizers {tokenizers.__version__} {statistics.median(theirs):5.2f} MB/s   {[round(x, 2) for x in theirs]}")
    print(f"ratio         {statistics.median(ours) / statistics.median(theirs):8.2f}")


if __name__ == "__main__":
    main()
