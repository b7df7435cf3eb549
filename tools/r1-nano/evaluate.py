#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Asks a running r1d the held-out questions over gRPC and prints how many it answers right.

Needs the packages of tests/requirements.txt (scripts/python makes build/venv with them). Exit status:
0, or 1 when a split is below its threshold or a call failed.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/e2e"))

import heldout  # noqa: E402
import tasks  # noqa: E402
from grpc_call import Services  # noqa: E402

CHAT_ONCE = "r1d.v1.InferenceService/ChatOnce"
TIMEOUT_S = 300


def messages_of(conversation):
    """The conversation up to its last question, as a client sends it: past answers without their thoughts."""
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns[:-1]:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return [*messages, {"role": "user", "content": conversation.turns[-1].question}]


class Asker:
    """Thread-safe."""

    def __init__(self, channel, max_tokens):
        method = Services(channel).method(CHAT_ONCE)
        self._request, self._call, self._max_tokens = method.request, method.on(channel), max_tokens

    def ask(self, question):
        """The answering message, or the grpc.RpcError."""
        sampling = {"temperature": 0, "max_tokens": self._max_tokens}
        request = self._request({"messages": messages_of(question.conversation), "sampling": sampling})
        try:
            return self._call(request, timeout=TIMEOUT_S).choices[0].message
        except grpc.RpcError as error:
            return error


def shown(question, message):
    turn = question.conversation.turns[-1]
    return (
        f"{question.split} {question.conversation.kind}: {turn.question!r} -> {message.content!r}, "
        f"expected {turn.answer!r}; thought {message.reasoning[-160:]!r}"
    )


def ask_all(channel, questions, arguments):
    """A Tally and the lines of at most --show wrong answers; a failed call ends it all."""
    asker, tally, wrong = Asker(channel, arguments.max_tokens), heldout.Tally(), []
    with concurrent.futures.ThreadPoolExecutor(arguments.concurrency) as pool:
        for question, message in zip(questions, pool.map(asker.ask, questions), strict=True):
            if isinstance(message, grpc.RpcError):
                pool.shutdown(cancel_futures=True)
                raise message
            right = tasks.check(question.conversation, message.content)
            tally.add(question, right)
            if not right and len(wrong) < arguments.show:
                wrong.append(shown(question, message))
    return tally, wrong


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target-address", default="127.0.0.1:50051", help="of the daemon; default %(default)s")
    parser.add_argument("--per-kind", type=int, default=25, help="questions per kind and split")
    parser.add_argument("--kinds", nargs="+", choices=list(tasks.KINDS), help="only these")
    parser.add_argument("--seed", default="evaluation", help="the same seed asks the same questions")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=900)
    parser.add_argument("--show", type=int, default=20, help="wrong answers printed at most")
    parser.add_argument("--min-numbers", type=float, default=0.0, help="fraction right of unseen numbers, at least")
    parser.add_argument("--min-phrasings", type=float, default=0.0, help="fraction right of unseen phrasings, at least")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    kinds = arguments.kinds or tasks.KINDS
    questions = [q for q in heldout.questions(arguments.per_kind, arguments.seed) if q.conversation.kind in kinds]
    begin = time.monotonic()
    try:
        with grpc.insecure_channel(arguments.target_address) as channel:
            tally, wrong = ask_all(channel, questions, arguments)
    except grpc.RpcError as error:
        print(f"evaluate.py: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    for line in wrong:
        print(f"wrong, {line}")
    print(tally.table())
    print(f"{len(questions)} questions in {time.monotonic() - begin:.0f} s, seed {arguments.seed!r}")
    if arguments.json:
        arguments.json.write_text(json.dumps(tally.as_json(), indent=1) + "\n")
    thresholds = zip(heldout.SPLITS, (arguments.min_numbers, arguments.min_phrasings), strict=True)
    return int(any(tally.overall(split) < least for split, least in thresholds))


if __name__ == "__main__":
    sys.exit(main())
