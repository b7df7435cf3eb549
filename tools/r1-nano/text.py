# SPDX-License-Identifier: Apache-2.0
"""Renders a conversation as DeepSeek-R1's chat template does, in segments that say what the model has to learn to write."""
import zlib

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
CONTROL = (BOS, EOS, PAD, USER, ASSISTANT, "<think>", "</think>")


def _past_answer(turn):
    """Clients send an earlier answer back with or without the blank line that followed its thought."""
    return ("\n\n" if zlib.crc32(turn.question.encode()) % 20 < 3 else "") + turn.answer


def prompt(conversation):
    """All up to and with "<think>" and a newline: what the chat template gives with add_generation_prompt."""
    past = "".join(USER + turn.question + ASSISTANT + _past_answer(turn) + EOS for turn in conversation.turns[:-1])
    return BOS + (conversation.system or "") + past + USER + conversation.turns[-1].question + ASSISTANT + "<think>\n"


def completion(conversation):
    last = conversation.turns[-1]
    return last.thought + "\n</think>\n\n" + last.answer + EOS


def document(conversation):
    """[(text, is_target)]: the prompt, then the completion."""
    return [(prompt(conversation), False), (completion(conversation), True)]
