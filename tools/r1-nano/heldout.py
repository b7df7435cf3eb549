# SPDX-License-Identifier: Apache-2.0
"""Held-out questions and the table of how many were answered right."""

import collections
import dataclasses
import random

import tasks

SPLITS = ("unseen_numbers", "unseen_phrasings")


@dataclasses.dataclass(frozen=True)
class Question:
    split: str
    conversation: tasks.Conversation


def questions(per_kind, seed):
    """`per_kind` of every kind in both splits; the same ones for the same seed."""
    return [
        Question(split, tasks.sample(random.Random(f"{seed}/{split}/{kind}/{i}"), split=split, kind=kind))
        for split in SPLITS
        for kind in tasks.KINDS
        for i in range(per_kind)
    ]


class Tally:
    """Right and asked, per split and kind."""

    def __init__(self):
        self._counts = collections.defaultdict(lambda: [0, 0])

    def add(self, question, right):
        count = self._counts[question.split, question.conversation.kind]
        count[0] += bool(right)
        count[1] += 1

    def overall(self, split):
        """The fraction right, each kind weighing as much as it was asked."""
        counts = [count for (name, _), count in self._counts.items() if name == split]
        return sum(right for right, _ in counts) / max(sum(asked for _, asked in counts), 1)

    def table(self):
        kinds = sorted({kind for _, kind in self._counts})
        lines = [f"{'kind':24}" + "".join(f"{split:>20}" for split in SPLITS)]
        for kind in kinds:
            cells = ["{}/{}".format(*self._counts[split, kind]) for split in SPLITS]
            lines.append(f"{kind:24}" + "".join(f"{cell:>20}" for cell in cells))
        lines.append(f"{'overall':24}" + "".join(f"{self.overall(split):>20.2%}" for split in SPLITS))
        return "\n".join(lines)

    def as_json(self):
        kinds = {split: {} for split in SPLITS}
        for (split, kind), (right, asked) in sorted(self._counts.items()):
            kinds[split][kind] = {"right": right, "asked": asked}
        return {"overall": {split: self.overall(split) for split in SPLITS}, "kinds": kinds}
