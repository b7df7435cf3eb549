# SPDX-License-Identifier: Apache-2.0
"""Mixed load with rude clients on a real daemon, for as long as one likes. See scripts/soak."""

import argparse
import asyncio
import dataclasses
import pathlib
import re
import signal
import sys
import tempfile
import time

import grpc

from clients import ALLOWED, Clients, Code, Judge, Stream
from daemon import Daemon, run, wait_until
from questions import SERVICE, make_questions

ROOT = pathlib.Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "r1-nano"
METHODS = ("Generate", "GenerateOnce", "Chat", "Tokenize", "Detokenize")

# What resident memory may grow between the end of the warm-up and the end of the load: the allocator's arenas and
# the free lists of gRPC still settle then. A leak of 100 bytes a request passes this in 15 minutes.
RSS_GROWTH_BYTES = 24 << 20
WARM_UP_SHARE = 1 / 3
MORE_FILES = 8  # the system's own sockets come and go
FLAGS = (
    "--max-model-len", 2048, "--max-batch-size", 24, "--block-size", 16, "--kv-cache-memory", "48Mi",
    "--max-num-batched-tokens", 512, "--stream-buffer-tokens", 256,
)
# Rare enough that most requests go well; each is one request's trouble and nobody else's.
FAULTS = (
    "engine.sample=nan@0.0005", "engine.sample=oom@0.0005", "admission.prepare=oom@0.005",
    "admission.submit=error@0.005", "grpc.handler=throw@0.005", "grpc.event=oom@0.0005",
    "model.layer=delay:3ms@0.002",
)


@dataclasses.dataclass
class Sample:
    at_s: float
    resident_bytes: int
    open_files: int
    threads: int


class Watcher:
    """Looks at the process itself, not through its own port."""

    def __init__(self, daemon):
        self._pid, self._start, self.samples = daemon.process.pid, time.monotonic(), []

    def look(self):
        status = pathlib.Path(f"/proc/{self._pid}/status").read_text()
        number = lambda name: int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1])
        files = sum(1 for _ in pathlib.Path(f"/proc/{self._pid}/fd").iterdir())
        self.samples.append(Sample(time.monotonic() - self._start, number("VmRSS") * 1024, files, number("Threads")))
        return self.samples[-1]

    async def watch(self, stopping, judge):
        while not stopping.is_set():
            sample = self.look()
            if len(self.samples) % 12 == 1:
                outcomes = sum(judge.outcomes.values())
                print(f"{sample.at_s:6.0f} s  {sample.resident_bytes / 2**20:7.1f} MiB  {sample.open_files:4d} files  "
                      f"{sample.threads:3d} threads  {outcomes} outcomes  {len(judge.wrong)} wrong", flush=True)
            try:
                await asyncio.wait_for(stopping.wait(), 5)
            except asyncio.TimeoutError:
                pass

    def growth(self):
        """(bytes from the end of the warm-up to the end, bytes an hour by least squares over that time)."""
        last = self.samples[-1].at_s
        kept = [s for s in self.samples if s.at_s >= last * WARM_UP_SHARE]
        mean_at = sum(s.at_s for s in kept) / len(kept)
        mean_bytes = sum(s.resident_bytes for s in kept) / len(kept)
        spread = sum((s.at_s - mean_at) ** 2 for s in kept)
        slope = sum((s.at_s - mean_at) * (s.resident_bytes - mean_bytes) for s in kept) / spread if spread else 0
        return kept[-1].resident_bytes - kept[0].resident_bytes, slope * 3600


def takes_reloads(daemon):
    """Whether the process waits for SIGHUP instead of dying of it."""
    status = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    blocked = int(re.search(r"^SigBlk:\s+([0-9a-f]+)", status, re.MULTILINE)[1], 16)
    return bool(blocked >> (signal.SIGHUP - 1) & 1)


async def reload(daemon, stopping):
    while not stopping.is_set():
        daemon.signal(signal.SIGHUP)
        try:
            await asyncio.wait_for(stopping.wait(), 3)
        except asyncio.TimeoutError:
            pass


async def learn(daemon, clients, questions):
    """The answers of a daemon that has nothing else to do; asked twice, they are the same."""
    async with grpc.aio.insecure_channel(daemon.address) as channel:
        for kind, asked in questions.items():
            for question in asked:
                answers = []
                for _ in range(2):
                    stream = await Stream(question.num_sequences).read(clients.call(channel, question))
                    assert stream.code is Code.OK, (kind, question, stream.code, stream.details)
                    answers.append(tuple(tuple(tokens) for tokens in stream.tokens))
                assert answers[0] == answers[1], f"{kind}: two answers to one question: {answers}"
                question.answer = answers[0]


async def load(daemon, clients, judge, watcher, seconds):
    tasks = [asyncio.create_task(clients.run()), asyncio.create_task(watcher.watch(clients.stopping, judge))]
    if takes_reloads(daemon):
        tasks.append(asyncio.create_task(reload(daemon, clients.stopping)))
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    clients.stopping.set()
    await asyncio.gather(*tasks)


def nothing_left(daemon):
    metrics = daemon.metrics()
    return all(
        metrics.value(name, **labels) == 0
        for name, labels in (
            ("r1d_requests_running", {}), ("r1d_requests_waiting", {}), ("r1d_streams_open", {}),
            ("r1d_kv_blocks", {"state": "used"}), ("r1d_connections", {"state": "open"}),
            ("r1d_connections", {"state": "handshake"}),
        )
    )


async def drain(daemon, clients, questions):
    """SIGTERM in the middle of streams: each that has begun is finished, tokens and all."""
    asked = [question for kind in ("greedy", "several", "chat") for question in questions[kind]]
    begun = asyncio.Semaphore(0)

    async def one(channel, question):
        call = clients.call(channel, question, timeout=120)
        stream = await Stream(question.num_sequences).read(call, 1, begun.release)
        begun.release()
        clients.check("drain", question, stream, ALLOWED["whole"])

    async with grpc.aio.insecure_channel(daemon.address) as channel:
        streams = [asyncio.create_task(one(channel, question)) for question in asked]
        for _ in asked:
            await begun.acquire()
        daemon.signal(signal.SIGTERM)
        await asyncio.gather(*streams)


def judge_resources(judge, watcher, files_before):
    growth, an_hour = watcher.growth()
    files = watcher.look().open_files
    print(f"resident: {growth / 2**20:+.1f} MiB after the warm-up ({an_hour / 2**20:+.1f} MiB an hour by least squares); "
          f"files {files_before} -> {files}", flush=True)
    judge.expect(growth <= RSS_GROWTH_BYTES, f"resident memory grew by {growth} bytes after the warm-up")
    judge.expect(files <= files_before + MORE_FILES, f"{files} open files, {files_before} before the load")


def run_phase(folder, questions, seconds, seed, faults):
    """One daemon from start to exit; the list of what was wrong."""
    print(f"== {seconds:.0f} s {'with ' + ' '.join(faults) if faults else 'without faults'}", flush=True)
    daemon = Daemon(folder, NANO, *FLAGS, *(flag for fault in faults for flag in ("--fault", fault)))
    try:
        daemon.wait_ready()
        judge = Judge(bool(faults))
        methods = {name: daemon.method(f"{SERVICE}/{name}") for name in METHODS}

        def fresh_clients():
            return Clients(daemon, methods, questions, judge, seed)

        if not faults:
            asyncio.run(learn(daemon, fresh_clients(), questions))
        wait_until(lambda: nothing_left(daemon), "the daemon is at rest")
        watcher = Watcher(daemon)
        files_before = watcher.look().open_files
        asyncio.run(load(daemon, fresh_clients(), judge, watcher, seconds))
        wait_until(lambda: nothing_left(daemon), "no request, block, stream or connection is left")
        judge_resources(judge, watcher, files_before)
        asyncio.run(drain(daemon, fresh_clients(), questions))
        status = daemon.wait_exit()
        judge.expect(status == 0, f"exit status {status}:\n{daemon.log[-4000:]}")
        for (kind, outcome), count in sorted(judge.outcomes.items()):
            print(f"  {kind:14} {outcome:20} {count}")
        return judge.wrong
    except Exception:
        print(daemon.log[-4000:])
        raise
    finally:
        daemon.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with_faults = run("faults").returncode == 0  # compiled in
    questions = make_questions(options.seed)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        clean = options.seconds * (2 / 3 if with_faults else 1)
        wrong += run_phase(pathlib.Path(folder, "clean"), questions, clean, options.seed, ())
        if with_faults:
            wrong += run_phase(pathlib.Path(folder, "faults"), questions, options.seconds - clean, options.seed, FAULTS)
    for line in wrong[:20]:
        print(line)
    print(f"soak: {len(wrong)} wrong" if wrong else "soak: all right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
