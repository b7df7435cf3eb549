# SPDX-License-Identifier: Apache-2.0
"""The soak's clients, a coroutine a kind: each asks, behaves as its kind does, and judges what comes back."""

import asyncio
import collections
import itertools
import random
import struct
import time

import grpc

import http2
from breakable import breakable
from questions import SERVICE

Code = grpc.StatusCode
# The statuses a kind may see. Who leaves late may have been answered already.
ALLOWED = {
    "whole": {Code.OK},
    "cancel": {Code.OK, Code.CANCELLED},
    "deadline": {Code.OK, Code.DEADLINE_EXCEEDED},
    "disconnect": {Code.OK, Code.UNAVAILABLE, Code.CANCELLED},
}
# FINISH_REASON_CANCELLED, _DEADLINE and _ERROR: the sequence is not whole.
CUT_SHORT = {3, 4, 5}
# What armed fault points add to any of them.
FAULT_CODES = {Code.INTERNAL, Code.RESOURCE_EXHAUSTED}

BAD_REQUESTS = [
    ("Generate", {}, Code.INVALID_ARGUMENT),
    ("Generate", {"prompt": {"token_ids": {"ids": [1 << 30]}}}, Code.INVALID_ARGUMENT),
    ("Generate", {"prompt": {"text": "a"}, "sampling": {"temperature": -1}}, Code.INVALID_ARGUMENT),
    ("Generate", {"prompt": {"text": "a"}, "sampling": {"top_p": "NaN"}}, Code.INVALID_ARGUMENT),
    ("Generate", {"prompt": {"text": "a"}, "sampling": {"n": 100000}}, Code.INVALID_ARGUMENT),
    ("GenerateOnce", {"prompt": {"text": "a"}, "sampling": {"max_tokens": -1}}, Code.INVALID_ARGUMENT),
    ("Generate", {"prompt": {"token_ids": {"ids": [5] * 100000}}}, Code.INVALID_ARGUMENT),
    ("Generate", {"prompt": {"text": "a"}, "model": "another"}, Code.NOT_FOUND),
    ("Chat", {"messages": []}, Code.INVALID_ARGUMENT),
    ("Chat", {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f", "parameters": "{"}]},
     Code.INVALID_ARGUMENT),
    ("Tokenize", {}, Code.INVALID_ARGUMENT),
    ("GenerateOnce", {"prompt": {"text": "a" * (5 << 20)}}, Code.RESOURCE_EXHAUSTED),
]


class Judge:
    """Counts outcomes and keeps what was wrong."""

    def __init__(self, faults_armed):
        self._faults_armed = faults_armed
        self.outcomes, self.wrong = collections.Counter(), []

    def outcome(self, kind, code, allowed, what=""):
        self.outcomes[kind, code.name] += 1
        if code not in allowed and not (self._faults_armed and code in FAULT_CODES):
            self.wrong.append(f"{kind}: {code.name} {what}")

    def expect(self, condition, what):
        if not condition:
            self.wrong.append(what)


class Stream:
    """One stream, read to its end or until `leave` is called after so many messages."""

    def __init__(self, num_sequences):
        self.tokens = [[] for _ in range(num_sequences)]
        self.finished = [False] * num_sequences
        self.reasons, self.code, self.details = [0] * num_sequences, None, ""

    async def read(self, call, leave_after=None, leave=None):
        num_messages = 0
        try:
            async for message in call:
                self.tokens[message.index].extend(message.token_ids)
                if message.HasField("finish"):
                    self.finished[message.index] = True
                    self.reasons[message.index] = message.finish.reason
                num_messages += 1
                if num_messages == leave_after:
                    leave()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass  # the call keeps its code
        self.code, self.details = await call.code(), await call.details()
        return self


class Clients:
    """Everybody who talks to the daemon. `methods`: name -> grpc_call.Method."""

    def __init__(self, daemon, methods, questions, judge, seed):
        self._daemon, self._methods, self._questions, self._judge = daemon, methods, questions, judge
        self._rng = random.Random(seed)
        self.stopping = asyncio.Event()

    def workers(self):
        """name -> (coroutine function, how many of them)."""
        kinds = {kind: (lambda kind=kind: self._whole(kind), 3) for kind in self._questions}
        return kinds | {
            "cancel": (self._cancel, 4), "deadline": (self._deadline, 3), "disconnect": (self._disconnect, 3),
            "slow reader": (self._slow_reader, 2), "bad request": (self._bad_requests, 1),
            "compressed": (self._compressed, 1), "tokenize": (self._tokenize, 1), "scrape": (self._scrape, 1),
            "health": (self._health, 1), "attack": (self._attack, 1),
        }

    async def run(self):
        tasks = [asyncio.create_task(self._loop(work)) for work, count in self.workers().values() for _ in range(count)]
        await asyncio.gather(*tasks)

    async def _loop(self, work):
        while not self.stopping.is_set():
            await work()

    async def pause(self, seconds):
        """Between two requests of one client; the end of the run ends it."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    def _channel(self):
        return grpc.aio.insecure_channel(self._daemon.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def _any(self, kinds=("greedy", "seeded", "several", "chat", "tools")):
        return self._rng.choice(self._questions[self._rng.choice(kinds)])

    def call(self, channel, question, **options):
        method = self._methods[question.method]
        return method.on(channel)(method.request(question.request), **options)

    def check(self, kind, question, stream, allowed):
        """The right status; then the right tokens: all of them, or the first ones of who left early."""
        self._judge.outcome(kind, stream.code, allowed, stream.details)
        for index, (tokens, right) in enumerate(zip(stream.tokens, question.answer)):
            expected = right if stream.finished[index] and stream.reasons[index] not in CUT_SHORT else right[: len(tokens)]
            self._judge.expect(tuple(tokens) == tuple(expected), f"{kind}: sequence {index} gave {tokens}, not {right}")
        if stream.code is Code.OK:
            self._judge.expect(all(stream.finished), f"{kind}: a stream ended OK without its finish")

    async def _whole(self, kind):
        async with self._channel() as channel:
            for _ in range(self._rng.randint(1, 20)):
                question = self._rng.choice(self._questions[kind])
                stream = await Stream(question.num_sequences).read(self.call(channel, question, timeout=120))
                self.check(kind, question, stream, ALLOWED["whole"])
                if self.stopping.is_set():
                    return

    async def _cancel(self):
        question = self._any()
        async with self._channel() as channel:
            call = self.call(channel, question, timeout=120)
            stream = await Stream(question.num_sequences).read(call, self._rng.randint(1, 20), call.cancel)
        self.check("cancel", question, stream, ALLOWED["cancel"])

    async def _deadline(self):
        question = self._any(("greedy", "chat", "long"))
        async with self._channel() as channel:
            call = self.call(channel, question, timeout=self._rng.uniform(0.002, 0.5))
            stream = await Stream(question.num_sequences).read(call)
        self.check("deadline", question, stream, ALLOWED["deadline"])
        await self.pause(self._rng.uniform(0, 0.3))

    async def _disconnect(self):
        question = self._any()
        async with breakable(self._daemon.address) as (channel, cut):
            call = self.call(channel, question, timeout=120)
            stream = await Stream(question.num_sequences).read(call, self._rng.randint(1, 20), cut)
        self.check("disconnect", question, stream, ALLOWED["disconnect"])

    async def _slow_reader(self):
        """Takes 64 bytes of a stream and never more: the stream is ended, whoever reads it."""
        request = self._methods["Generate"].request(
            {"prompt": {"token_ids": {"ids": [400]}}, "sampling": {"max_tokens": 1000, "ignore_eos": True}}
        ).SerializeToString()
        ended = await asyncio.to_thread(read_slowly, self._daemon.address, request, self.stopping.is_set)
        outcome = "ended" if ended else "left" if self.stopping.is_set() else "not ended"
        self._judge.outcomes["slow reader", outcome] += 1
        self._judge.expect(outcome != "not ended", "slow reader: its stream did not end")

    async def _bad_requests(self):
        async with self._channel() as channel:
            for name, request, expected in BAD_REQUESTS:
                method = self._methods[name]
                call = method.on(channel)(method.request(request), timeout=60)
                code = await call.code()
                self._judge.outcome(f"bad {name}", code, {expected}, str(request)[:80])
                await self.pause(0.1)

    async def _compressed(self):
        async with self._channel() as channel:
            call = channel.unary_unary(f"/{SERVICE}/GenerateOnce")(
                bytes(1 << 20), compression=grpc.Compression.Gzip, timeout=60)
            self._judge.outcome("compressed", await call.code(), {Code.UNIMPLEMENTED})
        await self.pause(1)

    async def _tokenize(self):
        text = "".join(self._rng.choice("abc de 0123 <|>ä€") for _ in range(self._rng.randint(1, 200)))
        async with self._channel() as channel:
            there, back = self._methods["Tokenize"], self._methods["Detokenize"]
            try:
                ids = (await there.on(channel)(there.request({"text": text, "plain": True}), timeout=60)).token_ids
                again = await back.on(channel)(back.request({"token_ids": list(ids)}), timeout=60)
                self._judge.expect(again.text == text, f"tokenize: {again.text!r} came back for {text!r}")
                self._judge.outcomes["tokenize", "OK"] += 1
            except grpc.aio.AioRpcError as error:
                self._judge.outcome("tokenize", error.code(), {Code.OK}, error.details())
        await self.pause(0.05)

    async def _scrape(self):
        for path in ("/livez", "/readyz", "/startupz", "/metrics"):
            status, _, text = await asyncio.to_thread(self._daemon.get, path)
            self._judge.outcomes[path, str(status)] += 1
            self._judge.expect(status == 200, f"{path} answered {status}: {text[:200]}")
        await self.pause(0.5)

    async def _health(self):
        async with self._channel() as channel:
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
            status = await watch.read()
            self._judge.expect(status == b"\x08\x01", f"health: {status!r} instead of SERVING")
            self._judge.outcomes["health", "watched"] += 1
            await self.pause(self._rng.uniform(0, 3))
            watch.cancel()

    async def _attack(self):
        flood = self._rng.choice((endless_headers, rapid_resets, pings))
        cut = await asyncio.to_thread(attack, self._daemon.address, flood)
        self._judge.outcomes["attack", "cut" if cut else "not cut"] += 1
        self._judge.expect(cut, f"attack: {flood.__name__} was not cut")
        await self.pause(2)


def endless_headers():
    yield http2.frame(http2.HEADERS, 0, 1, http2.request_headers(f"/{SERVICE}/Generate"))
    while True:
        yield http2.frame(http2.CONTINUATION, 0, 1, http2.header(b"x", b"v" * 100) * 50)


def rapid_resets():
    block = http2.request_headers(f"/{SERVICE}/Generate")
    for stream in itertools.count(1, 2):
        yield http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block) + http2.rst_stream(stream)


def pings():
    while True:
        yield http2.frame(http2.PING, 0, 0, b"01234567") * 100


def attack(address, flood):
    with http2.Client(address, source="127.0.0.2") as client:
        return client.flood(flood(), limit_bytes=64 << 20)


def read_slowly(address, request, leaves):
    """Whether the daemon ends the stream within two minutes, before `leaves()`."""
    settings = http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 64))  # INITIAL_WINDOW_SIZE
    with http2.Client(address, handshake=False) as client:
        client.send(http2.PREFACE + settings + http2.frame(http2.SETTINGS, 1))
        client.send(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.request_headers(f"/{SERVICE}/Generate")))
        message = b"\x00" + len(request).to_bytes(4, "big") + request
        client.send(http2.frame(http2.DATA, http2.END_STREAM, 1, message))
        end = time.monotonic() + 120
        while time.monotonic() < end and not leaves():
            if client.stream_ends(1, limit_s=1):
                return True
        return False
