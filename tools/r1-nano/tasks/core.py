# SPDX-License-Identifier: Apache-2.0
"""Registry of task kinds, and how one sample becomes a conversation.

A kind is a function from a random generator to (form, slots, thought, answer). The form names a set of phrasings, the slots
fill one of them. Phrasings come in two disjoint lists: the first is for training, the second is only ever used to test.
"""
import random
import re
import zlib
from dataclasses import dataclass
from typing import Callable

from .composed import COMPOSED
from .words import NAME_SET

SPLITS = ("train", "unseen_numbers", "unseen_phrasings")
HELD_OUT_PART = 64  # one question text in 64, chosen by its CRC, never stands in training


@dataclass
class Turn:
    question: str
    thought: str
    answer: str


@dataclass
class Conversation:
    kind: str
    turns: list[Turn]
    system: str | None = None


@dataclass
class Kind:
    """`forms` maps a form to (training phrasings, held-out phrasings). `closed`: too few distinct questions to hold some out by CRC."""

    name: str
    weight: float
    forms: dict[str, tuple[list[str], list[str]]]
    turns: Callable[[random.Random, str], list[Turn]]
    closed: bool = False
    doc: str = ""


KINDS: dict[str, Kind] = {}


def conversation_kind(name, weight, forms, closed=False):
    """Registers a function (rng, split) -> turns, for kinds that make whole conversations."""

    def register(turns):
        KINDS[name] = Kind(name, weight, forms, turns, closed, (turns.__doc__ or "").strip())
        return turns

    return register


def kind(name, weight, forms=None, train=None, held=None, wrap=True):
    """Registers a generator of one question. Either `forms`, or `train` and `held` for a kind with one form.
    `wrap`: polite words may stand around the question."""
    forms = with_composed(name, forms or {"": (train, held)}, wrap)

    def register(generate):
        def turns(rng, split):
            form, slots, thought, answer = generate(rng)
            return [Turn(phrase(rng, forms[form], slots, split, wrap), thought, answer)]

        turns.__doc__ = generate.__doc__
        conversation_kind(name, weight, forms)(turns)
        return generate

    return register


# ---- training phrasings: the plain ones, the composed ones, none that is held out -------------------


def plain(text):
    """Small letters, no punctuation: phrasings that agree in this are the same."""
    return " ".join(re.sub(r"[^a-z0-9{}+*/%<>=$-]", " ", text.lower()).split())


def unwrapped(text):
    """`plain`, also without polite words at either end: they might stand around any phrasing."""
    text, before = plain(text), None
    while text != before:
        before = text
        for wrapper in _LEADS:
            text = text.removeprefix(wrapper + " ")
        for wrapper in _TAILS:
            text = text.removesuffix(" " + wrapper)
    return text


def not_held_out(train, held, wrap=True):
    """The training phrasings that differ from all held-out ones, in their order, each once."""
    key = unwrapped if wrap else plain
    keys = {key(text) for text in held}
    return [text for text in dict.fromkeys(train) if key(text) not in keys]


def with_composed(name, forms, wrap=True):
    """Adds the composed phrasings. The plain ones are repeated, so that about one draw in four gives one of them."""

    def mixed(train, held, more):
        train, more = not_held_out(train, held, wrap), not_held_out(more, held, wrap)
        return train * max(1, len(more) // (3 * len(train))) + more

    composed = COMPOSED.get(name, {})
    return {form: (mixed(train, held, composed.get(form, [])), held) for form, (train, held) in forms.items()}


# ---- polite wrappers, case and punctuation -----------------------------------------------------

VERBS = set(
    "compute add find calculate tell work give subtract multiply divide evaluate solve simplify convert write sort put order"
    " count spell reverse list name take reduce express arrange shift encode decode factor decide check compare turn continue"
    " determine figure say show read answer change make translate pick sum".split()
)
PRELUDES = ["Hi! ", "Hello. ", "Hello, ", "Hi, ", "Quick question: ", "I have a question. ", "Here is one: ", "Help me with this: ",
            "Now this: ", "Question: ", "Next: ", "I need some help. ", "Okay, ", "OK. ", "Hey, ", "Hey! ", "Good morning. ", "Can you help? ", "Help me please. ", "Another question: ", "Question for you: ", "I am stuck. ",
            "Let us try this: ", "So, ", "Well, ", "Alright. ", "Here is a question. ", "Please help with this: ", "My homework: "]
SUFFIXES = [" Thanks.", " Thank you.", " Please.", " Thanks!", " Think step by step.", " Just the answer please.", " I need it for school.", " I need to know.", " Please explain.", " Please think.", " Thanks in advance.",
            " It is for my homework.", " I am curious.", " Be careful.", " I want to understand it."]
ASKS = ["Please ", "Can you ", "Could you ", "Could you please ", "Please ", "I want you to ", "I need you to ", "You should "]
TELLS = ["Tell me: ", "Tell me, ", "Please tell me: ", "I want to know: ", "Do you know: ", "Please answer: ", "I wonder: ", "Say: ", "Can you tell me: ", "Let me ask: "]
HELD_PRELUDES = ["Hello there. ", "Hi, quick question. ", "Please help me. ", "One question: "]
HELD_SUFFIXES = [" Thanks, please think.", " I want to know.", " Please help."]

_LEADS = sorted({plain(w) for w in PRELUDES + ASKS + TELLS + HELD_PRELUDES}, key=len, reverse=True)
_TAILS = sorted({plain(w) for w in SUFFIXES + HELD_SUFFIXES}, key=len, reverse=True)
_REQUESTS = {"can", "could", "would", "will", "please", "i", "help", "let", "do"}  # begin phrasings that are polite enough


def _first_word(text):
    return text.split(" ", 1)[0].rstrip(",.:").lower()


def lower_first(text):
    head = text.split(" ", 1)[0]
    return text if len(head) > 1 and head[1:] != head[1:].lower() or head == "I" else text[:1].lower() + text[1:]


def _polite(rng, text, keep_first):
    if _first_word(text) in _REQUESTS:
        return text
    if _first_word(text) in VERBS:
        lead = rng.choice(ASKS)
        if lead[:1] == "C":
            text = text[:-1] + "?" if text.endswith(".") else text
        return lead + lower_first(text)
    return rng.choice(TELLS) + (text if keep_first else rng.choice([text, lower_first(text)]))


def wrapped(rng, text, split):
    """Adds polite words before and after, and varies case and final punctuation. Never changes what is asked."""
    keep_first = text.split(" ", 1)[0].rstrip(",:'s") in NAME_SET
    held = split == "unseen_phrasings"
    draw = rng.random()
    if draw < 0.20:
        text = _polite(rng, text, keep_first)
    elif draw < 0.32:
        text = rng.choice(HELD_PRELUDES if held else PRELUDES) + text
    if rng.random() < 0.08 and text[-1] in ".?!":
        text += rng.choice(HELD_SUFFIXES if held else SUFFIXES)
    draw = rng.random()
    if draw < 0.18 and not keep_first:
        text = lower_first(text)
    if rng.random() < 0.18 and text[-1] in ".?!":
        text = text[:-1].rstrip()
    return text


SYSTEMS = ["You are a helpful assistant.", "You are r1-nano.", "Be brief.", "Answer the question.", "You are a small model made to test r1d.",
           "Think first, then answer.", "Today is a good day.", "You are a friendly assistant. Be brief."]


def phrase(rng, phrasings, slots, split, wrap):
    train, held = phrasings
    text = rng.choice(held if split == "unseen_phrasings" else train).format(**slots)
    return wrapped(rng, text, split) if wrap else text


def one_sample(rng, entry, split):
    turns = entry.turns(rng, split)
    return Conversation(entry.name, turns, rng.choice(SYSTEMS) if rng.random() < 0.04 else None)


def is_held_out(question):
    return zlib.crc32(question.encode()) % HELD_OUT_PART == 0
