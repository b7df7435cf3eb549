# SPDX-License-Identifier: Apache-2.0
"""Composes phrasings: what is asked, times the frames that a request may stand in.

The same frames serve all kinds, so that a model learns that the words inside decide what is asked, whatever stands around them.
"""
import itertools
import re

_CHOICE = re.compile(r"\[([^\]]*)\]")

NOUN = ["What is X?", "Give me X.", "Tell me X.", "Show me X.", "Find X.", "Work out X.", "Determine X.", "I need X.", "I want X.", "I would like X.", "I am looking for X.", "Let me know X.", "Could you give me X?",
        "Can you find X?", "Can you tell me X?", "Could you work out X?", "What would X be?", "Do you know X?", "Please give X.", "I want to know X.", "Say what X is.", "Tell me what X is.", "X?", "X, please.", "Get X for me."]
THINGS = ["Give me X.", "Show me X.", "Tell me X.", "Write X.", "Write down X.", "I need X.", "I want X.", "I would like X.", "I want to see X.", "Let me see X.", "Let me have X.", "Could you write X?", "Can you give me X?", "Please show X.",
          "Could you show me X?", "Can you tell me X?", "Print X.", "Say X.", "X?", "X, please.", "X"]
ORDER = ["X.", "X for me.", "X, please.", "Please X.", "Can you X?", "Could you X?", "Would you X?", "Will you X?", "I want you to X.", "I would like you to X.", "Help me X.", "Help me to X.", "Try to X.", "Let us X.", "I need to X.", "How do I X?",
         "Your task is to X.", "Now X.", "I ask you to X.", "Are you able to X?"]
INDIRECT = ["Tell me X.", "Say X.", "Can you tell me X?", "Could you tell me X?", "Can you say X?", "Do you know X?", "I want to know X.", "I would like to know X.", "Let me know X.", "I need to know X.", "Find out X.", "Please find out X.", "Show me X.",
            "I wonder X.", "Work out X.", "Could you find out X?", "Can you work out X?", "Explain X."]


def raw(*patterns):
    """Patterns with choices in brackets, "[Give|Show] me {w}", written out."""
    out = []
    for pattern in patterns:
        parts = [part.split("|") if i % 2 else [part] for i, part in enumerate(_CHOICE.split(pattern))]
        out += [re.sub(" +", " ", "".join(choice)) for choice in itertools.product(*parts)]
    return out


def _framed(frames, contents):
    texts = [frame.replace("X", content) for content in raw(*contents) for frame in frames]
    return [text[:1].upper() + text[1:] for text in texts]


def noun(*contents):
    """Of things that are worked out: "the sum of {a} and {b}"."""
    return _framed(NOUN, contents)


def things(*contents):
    """Of what is written or shown: "the letters of {w}"."""
    return _framed(THINGS, contents)


def order(*contents):
    """Of deeds: "add {a} and {b}"."""
    return _framed(ORDER, contents)


def indirect(*contents):
    """Of questions in the order of words that they have inside a sentence: "how many letters {w} has"."""
    return _framed(INDIRECT, contents)
