# SPDX-License-Identifier: Apache-2.0
"""What the trained model says: greedy answers with a cache, and how often the MTP layer guesses right."""

import math
import time

import torch

import heldout
import text
from model import causal, softmax_scale

MAX_ROWS = 1024  # answered side by side
MAX_LENGTH = 1024  # prompt and answer
CHECK_EVERY = 16  # steps between looks at who has finished


class Cache:
    """Keys and values of every main layer, [rows, heads, length, ...].

    Each row has its own length: what stands behind it is overwritten before it is seen.
    """

    def __init__(self, model, rows, length, dtype):
        shape, device = model.shape, model.lm_head.weight.device
        layers, heads = shape.num_hidden_layers, shape.num_attention_heads
        self._keys = torch.zeros(layers, rows, heads, length, shape.qk_head_dim, dtype=dtype, device=device)
        self._values = torch.zeros(layers, rows, heads, length, shape.v_head_dim, dtype=dtype, device=device)
        self._rows = torch.arange(rows, device=device)
        self._index = torch.arange(length, device=device)
        self._causal = causal(shape)
        self._scale = softmax_scale(shape)

    def prefill(self, layer):
        def attend(q, k, v):
            self._keys[layer, :, :, : k.shape[2]] = k
            self._values[layer, :, :, : v.shape[2]] = v
            return self._causal(q, k, v)

        return attend

    def step(self, layer, positions, limit):
        """One token a row at `positions` [rows], all below `limit`."""
        hidden = (self._index[:limit] > positions[:, None])[:, None, None]

        def attend(q, k, v):
            self._keys[layer, self._rows, :, positions] = k[:, :, 0]
            self._values[layer, self._rows, :, positions] = v[:, :, 0]
            keys, values = self._keys[layer, :, :, :limit], self._values[layer, :, :, :limit]
            scores = (q @ keys.transpose(-1, -2)).float() * self._scale
            return scores.masked_fill(hidden, -math.inf).softmax(-1).to(q.dtype) @ values

        return attend


def _padded(rows, device):
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device)


@torch.no_grad()
def generate(model, prompts, eos, dtype, deadline=math.inf):
    """The greedy continuations of lists of ids, without the end token; cut at MAX_LENGTH or at the deadline."""
    device, layers = model.lm_head.weight.device, range(model.shape.num_hidden_layers)
    cache = Cache(model, len(prompts), MAX_LENGTH, dtype)
    positions = torch.tensor([len(prompt) for prompt in prompts], device=device)
    tokens = _padded(prompts, device)
    rope = model.rope(torch.arange(tokens.shape[1], device=device))
    states, _ = model.hidden(tokens, rope, [cache.prefill(i) for i in layers], dtype)
    last = states[torch.arange(len(prompts), device=device), positions - 1]
    longest, written = tokens.shape[1], []
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    while True:
        token = model.lm_head(last).argmax(-1)
        written.append(token)
        finished |= token == eos
        longest += 1
        done = len(written) % CHECK_EVERY == 0 and (bool(finished.all()) or time.monotonic() > deadline)
        if done or longest > MAX_LENGTH:
            break
        rope = model.rope(positions[:, None])
        attends = [cache.step(i, positions, longest) for i in layers]
        states, _ = model.hidden(token[:, None], rope, attends, dtype)
        last, positions = states[:, 0], positions + 1
    return [row[: row.index(eos)] if eos in row else row for row in torch.stack(written, 1).tolist()]


def answer_of(completion):
    """What stands behind the thought; nothing where the thought was never closed."""
    _, closed, answer = completion.partition("</think>")
    return answer.strip() if closed else ""


def evaluate(model, tokenizer, per_kind, seed, dtype, deadline=math.inf):
    """A Tally over held-out questions, and one wrong (question, completion) per split and kind."""
    import tasks

    eos = tokenizer.token_to_id(text.EOS)
    asked = heldout.questions(per_kind, seed)
    tally, wrong = heldout.Tally(), {}
    for first in range(0, len(asked), MAX_ROWS):
        part = asked[first : first + MAX_ROWS]
        prompts = tokenizer.encode_batch([text.prompt(q.conversation) for q in part], add_special_tokens=False)
        written = generate(model, [prompt.ids for prompt in prompts], eos, dtype, deadline)
        completions = tokenizer.decode_batch(written, skip_special_tokens=False)
        for question, completion in zip(part, completions, strict=True):
            right = tasks.check(question.conversation, answer_of(completion))
            tally.add(question, right)
            if not right:
                wrong.setdefault((question.split, question.conversation.kind), (question, completion))
    return tally, wrong


def _segments(tokenizer, document):
    return [tokenizer.encode(segment, add_special_tokens=False).ids for segment, _ in document]


@torch.no_grad()
def mtp_agreement(model, tokenizer, seed, dtype, per_kind=4, rows=64):
    """How often the MTP layer's most likely token is the main model's, where the model has to write.

    Teacher-forced on held-out conversations: the acceptance rate of one greedy draft token.
    """
    device, attend = model.lm_head.weight.device, causal(model.shape)
    documents = [text.document(q.conversation) for q in heldout.questions(per_kind, seed)]
    agreed = drafted = 0
    for first in range(0, len(documents), rows):
        part = [_segments(tokenizer, document) for document in documents[first : first + rows]]
        tokens = _padded([[*prompt, *target][:MAX_LENGTH] for prompt, target in part], device)
        rope = model.rope(torch.arange(tokens.shape[1] - 1, device=device))
        states, _ = model.hidden(tokens[:, :-1], rope, [attend] * model.shape.num_hidden_layers, dtype)
        drafts, _ = model.draft(states, tokens[:, 1:], rope, attend)
        # The draft at i and the main model at i + 1 both predict token i + 2.
        same = model.lm_head(drafts[:, :-1]).argmax(-1) == model.lm_head(states[:, 1:]).argmax(-1)
        predicted = torch.arange(2, tokens.shape[1], device=device)
        starts = torch.tensor([[len(prompt)] for prompt, _ in part], device=device)
        ends = torch.tensor([[len(prompt) + len(target)] for prompt, target in part], device=device)
        counts = (predicted >= starts) & (predicted < ends)
        agreed += int((same & counts).sum())
        drafted += int(counts.sum())
    return agreed / max(drafted, 1)
