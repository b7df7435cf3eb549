# SPDX-License-Identifier: Apache-2.0
"""The tasks that r1-nano learns: `sample` draws one conversation, `check` judges an answer."""
import itertools

from .core import KINDS, SPLITS, Conversation, Kind, Turn, is_held_out, one_sample
from . import arithmetic, numbers, lists, measures, wordplay, logic, stories, chat  # noqa: F401  (each registers its kinds)

__all__ = ["KINDS", "SPLITS", "Conversation", "Kind", "Turn", "check", "sample"]

_NAMES = list(KINDS)
_SUMS = list(itertools.accumulate(KINDS[name].weight for name in _NAMES))


EARLIER_TURNS = 0.07  # of training conversations begin with turns that have nothing to do with the question


def sample(rng, split="train", kind=None):
    """One conversation. "train" never gives questions whose CRC is held out, "unseen_numbers" gives only those
    (kinds marked closed have too few questions for that), "unseen_phrasings" uses wordings that training never sees."""
    name = kind or rng.choices(_NAMES, cum_weights=_SUMS)[0]
    entry = KINDS[name]
    while True:
        conversation = one_sample(rng, entry, split)
        held_out = is_held_out("\n".join(turn.question for turn in conversation.turns))
        if entry.closed or split == "unseen_phrasings" or held_out == (split == "unseen_numbers"):
            break
    if split == "train" and len(conversation.turns) == 1 and rng.random() < EARLIER_TURNS:
        for _ in range(rng.choice((1, 1, 2))):
            conversation.turns = _single(rng).turns + conversation.turns
    return conversation


def _single(rng):
    while len((conversation := sample(rng)).turns) > 1:
        pass
    return conversation


def check(conversation, answer_text):
    return answer_text.strip() == conversation.turns[-1].answer
