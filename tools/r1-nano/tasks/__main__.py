# SPDX-License-Identifier: Apache-2.0
"""python3 -m tasks --show [KIND]: prints sample documents for reading."""
import argparse
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tasks
import text


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", nargs="?", const="", metavar="KIND")
    parser.add_argument("--split", default="train", choices=tasks.SPLITS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-n", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for name in [args.show] if args.show else tasks.KINDS:
        for _ in range(args.n):
            print(f"==== {name}")
            print("".join(part for part, _ in text.document(tasks.sample(rng, args.split, name))))


main()
