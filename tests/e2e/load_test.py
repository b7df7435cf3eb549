# SPDX-License-Identifier: Apache-2.0
"""Many clients at once, some of whom leave in every rude way: nothing leaks, nobody else notices."""

import asyncio
import collections
import contextlib
import dataclasses
import random

import grpc
import grpc.aio

from breakable import breakable
from client import fields
from daemon import PATIENCE_S, SANITIZED, certain_tokens, golden_cases, wait_until

NUM_STREAMS = 200
SEED = 20240607
NUM_ROUNDS = 1 if SANITIZED else 3  # all alike; the first two also fill caches, arenas and free lists
# What the last round may add to the resident memory: 40 KiB a stream. Measured: under 10.
RSS_GROWTH_BYTES = 8 << 20
CASES = [case for case in golden_cases("v3-generic-bf16") if len(case["prompt"]) <= 128]


@dataclasses.dataclass
class Plan:
    """What one client asks, and how it behaves."""

    kind: str  # "finish", "cancel", "deadline", "disconnect"
    request: dict
    max_tokens: int
    certain: list  # the tokens that the output must begin with
    delay_s: float  # before it asks
    leave_after: int  # messages it reads before it cancels or disconnects
    timeout_s: float  # its deadline


def make_plans(seed):
    rng = random.Random(seed)
    kinds = ["finish"] * 100 + ["cancel"] * 40 + ["deadline"] * 30 + ["disconnect"] * 30
    assert len(kinds) == NUM_STREAMS
    rng.shuffle(kinds)
    return [make_plan(rng, kind) for kind in kinds]


def make_plan(rng, kind):
    if rng.random() < 0.5:
        case = rng.choice(CASES)
        prompt, max_tokens, certain = case["prompt"], len(case["greedy"]), certain_tokens(case)
    else:
        prompt = [rng.randrange(2, 512) for _ in range(rng.randint(1, 60))]
        max_tokens, certain = rng.randint(1, 160), []
    return Plan(
        kind=kind,
        request=fields(prompt, max_tokens) | {"priority": rng.randint(-1, 1)},
        max_tokens=max_tokens,
        certain=certain,
        delay_s=rng.uniform(0, 0.5),
        leave_after=rng.randint(1, 8),
        timeout_s=rng.uniform(0.005, 0.5) if kind == "deadline" else PATIENCE_S,
    )


async def read(call, leave_after=None, leave=None):
    """(status code, tokens): reads to the end, or does `leave()` after so many messages."""
    tokens, num_messages = [], 0
    try:
        async for response in call:
            tokens.extend(response.token_ids)
            num_messages += 1
            if num_messages == leave_after:
                leave()
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass  # the call keeps its code
    return await call.code(), tokens


async def run_client(method, address, shared_channel, plan):
    await asyncio.sleep(plan.delay_s)
    request = method.request(plan.request)
    if plan.kind == "disconnect":
        async with breakable(address) as (channel, cut):
            return await read(method.on(channel)(request), plan.leave_after, cut)
    call = method.on(shared_channel)(request, timeout=plan.timeout_s)
    if plan.kind == "cancel":
        return await read(call, plan.leave_after, call.cancel)
    return await read(call)


async def run_round(daemon, method, plans):
    # A few channels, each with a connection of its own, as several client processes would have.
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(daemon.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(8)
        ]
        return await asyncio.gather(
            *(
                run_client(method, daemon.address, channels[i % len(channels)], plan)
                for i, plan in enumerate(plans)
            )
        )


# The codes a client may see, by how it behaves. Whoever leaves late may have been answered already.
ALLOWED = {
    "finish": {grpc.StatusCode.OK},
    "cancel": {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED},
    "deadline": {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED},
    "disconnect": {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED},
}


def check(plan, code, tokens):
    assert code in ALLOWED[plan.kind], (plan, code)
    if code is grpc.StatusCode.OK:
        assert len(tokens) == plan.max_tokens, (plan, tokens)
    certain = plan.certain[: len(tokens)]
    assert tokens[: len(certain)] == certain, (plan, tokens)


def nothing_left(daemon):
    metrics = daemon.metrics()
    return (
        metrics.value("r1d_requests_running") == 0
        and metrics.value("r1d_requests_waiting") == 0
        and metrics.value("r1d_kv_blocks", state="used") == 0
        and metrics.value("r1d_streams_open") == 0
    )


def test_200_clients_of_whom_half_leave_early_leave_nothing_behind(start):
    print("seed", SEED)
    daemon = start(
        "--max-model-len", 256, "--block-size", 16, "--max-batch-size", 48,
        "--kv-cache-memory", "1Mi",  # 960 bytes a token: room for a fifth of a full batch, so it preempts
        "--max-num-batched-tokens", 256,
    ).wait_ready()
    method = daemon.method()
    plans = make_plans(SEED)
    resident, open_files = [], []
    for _ in range(NUM_ROUNDS):
        results = asyncio.run(run_round(daemon, method, plans))
        for plan, (code, tokens) in zip(plans, results):
            check(plan, code, tokens)
        wait_until(lambda: nothing_left(daemon), "all sequences, blocks and streams are gone")
        resident.append(daemon.resident_bytes())
        open_files.append(int(daemon.metrics().value("process_open_fds")))
        print(collections.Counter((plan.kind, code.name) for plan, (code, _) in zip(plans, results)))

    metrics = daemon.metrics()
    codes = {dict(labels)["code"] for labels in metrics.by_labels("r1d_rpc_total")
             if metrics.by_labels("r1d_rpc_total")[labels] > 0}
    assert codes <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}, codes
    assert metrics.value("r1d_finished_total", reason="error") == 0
    assert metrics.value("r1d_preemptions_total") > 0, "the load was meant to run out of blocks"
    print(f"resident {resident} bytes, open files {open_files}")
    assert open_files[-1] <= open_files[0] + 8  # the system's own sockets come and go
    if not SANITIZED:
        assert resident[-1] <= resident[-2] + RSS_GROWTH_BYTES
    assert daemon.stop() == 0, daemon.log
