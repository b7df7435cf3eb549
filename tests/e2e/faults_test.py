# SPDX-License-Identifier: Apache-2.0
"""Faults made to happen at named points: each ends what it must, with the right status, and nothing more."""

import concurrent.futures
import contextlib
import os
import queue
import signal
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import daemon as r1d
from client import Streams, failure, fields, tokens_of
from daemon import PATIENCE_S, SANITIZED, wait_until

NANO = r1d.GOLDEN.parents[2] / "models" / "r1-nano"
SERVICE = "r1d.v1.InferenceService"
CODE = grpc.StatusCode
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NUM_STREAMS = 4

pytestmark = pytest.mark.skipif("NOT compiled" in r1d.run("faults").stdout, reason="a build without fault points")


def streams_of(daemon, channel, length):
    return Streams(channel, daemon.method(), [fields([10 + i], length) for i in range(NUM_STREAMS)])


def generate(daemon, channel, length=5, **options):
    method = daemon.method()
    return tokens_of(method.call(channel, method.request(fields([5], length)), **options))


class Watch:
    """A health watch, read on a thread of its own; every status with its time."""

    def __init__(self, channel):
        self._call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        self._queue = queue.Queue()
        self.seen = []
        threading.Thread(target=self._read, daemon=True).start()
        assert self.next() == SERVING

    def _read(self):
        with contextlib.suppress(grpc.RpcError):
            for response in self._call:
                self._queue.put((response.status, time.monotonic()))

    def next(self, limit_s=PATIENCE_S):
        status, when = self._queue.get(timeout=limit_s)
        self.seen.append((status, when))
        return status

    def quiet(self):
        return self._queue.empty()


# The list and the command line.


def test_the_list_names_every_point_and_what_it_does():
    listed = r1d.run("faults")
    assert listed.returncode == 0
    for name in ("engine.step", "model.layer", "checkpoint.read", "admission.prepare", "grpc.write", "metrics.render"):
        assert f"\n{name}\n  where    " in listed.stdout


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [("engine.stop", "no such fault point"), ("engine.step=nan", "expected one of error, throw"), ("engine.step@x", "COUNT")],
)
def test_what_is_no_fault_is_refused_before_anything_is_built(spec, complaint):
    for flags, env in (["--fault", spec], {}), ([], {"R1D_FAULT": spec}):
        begin = r1d.run("serve", "--model", r1d.GOLDEN / "v3-generic-bf16", *flags, env=os.environ | env)
        assert begin.returncode == 1
        assert complaint in begin.stderr and spec in begin.stderr


def test_armed_faults_are_named_at_the_start(start):
    daemon = start("--fault", "grpc.write@0.0", env={"R1D_FAULT": "engine.sample=nan@1000000+1"}).wait_ready()
    assert "armed faults: engine.sample=nan@1000000+1, grpc.write@0.0" in daemon.log
    assert daemon.stop() == 0


# The engine: everything ends, the supervisor starts it again.


@pytest.mark.parametrize("action", ["error", "throw", "oom"])
@pytest.mark.parametrize(("point", "skip"), [("engine.step", 300), ("model.layer", 1800)])
def test_a_failed_step_ends_every_request_and_the_daemon(start, point, skip, action):
    daemon = start("--fault", f"{point}={action}@{skip}+1", "--world-size", 2).wait_ready()
    with daemon.channel() as channel:
        results = streams_of(daemon, channel, 10000).results()
        assert [code for code, _ in results] == [CODE.UNAVAILABLE] * NUM_STREAMS
    assert daemon.wait_exit() == 1
    assert "the engine failed" in daemon.log
    assert ("out of host memory" if action == "oom" else f"fault point {point}") in daemon.log


# One sequence.


@pytest.mark.parametrize(("action", "code"), [("nan", CODE.INTERNAL), ("throw", CODE.INTERNAL), ("oom", CODE.RESOURCE_EXHAUSTED)])
def test_a_fault_of_one_sequence_ends_that_one_alone(start, action, code):
    daemon = start("--fault", f"engine.sample={action}@2000+1").wait_ready()
    check_one_of_many(daemon, code)


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("grpc.event=oom@2000+1", CODE.RESOURCE_EXHAUSTED),
        ("grpc.event=throw@2000+1", CODE.INTERNAL),
        ("grpc.message=oom@150+1", CODE.RESOURCE_EXHAUSTED),
        ("grpc.message=throw@150+1", CODE.INTERNAL),
        ("grpc.write@150+1", CODE.CANCELLED),
    ],
)
def test_a_fault_of_one_stream_ends_that_one_alone(start, spec, code):
    # Behind the first message of each stream, which Streams waits for; tokens may share a message.
    check_one_of_many(start("--fault", spec).wait_ready(), code)


def check_one_of_many(daemon, code):
    with daemon.channel() as channel:
        results = streams_of(daemon, channel, 1000).results()
        codes = [code for code, _ in results]
        assert sorted(codes, key=str) == sorted([code] + [CODE.OK] * (NUM_STREAMS - 1), key=str)
        assert all(len(tokens_of(responses)) == 1000 for code, responses in results if code is CODE.OK)
        assert len(generate(daemon, channel)) == 5
        wait_until(lambda: daemon.metrics().value("r1d_kv_blocks", state="used") == 0, "its blocks are free")
    assert daemon.stop() == 0, daemon.log


@pytest.mark.parametrize(("action", "code"), [("oom", CODE.RESOURCE_EXHAUSTED), ("throw", CODE.INTERNAL), ("error", CODE.INTERNAL)])
@pytest.mark.parametrize("point", ["admission.prepare", "admission.submit", "grpc.handler"])
def test_a_fault_of_one_call_ends_that_one_alone(start, point, action, code):
    daemon = start("--fault", f"{point}={action}@{NUM_STREAMS}+2").wait_ready()
    with daemon.channel() as channel:
        streams = streams_of(daemon, channel, 400)
        once = daemon.method(f"{SERVICE}/GenerateOnce")
        assert failure(lambda: generate(daemon, channel)).code() is code
        assert failure(lambda: once.on(channel)(once.request(fields([5], 5)))).code() is code
        assert len(generate(daemon, channel)) == 5
        assert all(code is CODE.OK and len(tokens_of(got)) == 400 for code, got in streams.results())
    assert daemon.stop() == 0, daemon.log


def test_an_answer_in_one_piece_ends_alone_too(start):
    daemon = start("--fault", "grpc.message=oom@1").wait_ready()
    once = daemon.method(f"{SERVICE}/GenerateOnce")
    with daemon.channel() as channel:
        assert failure(lambda: once.on(channel)(once.request(fields([5], 5)))).code() is CODE.RESOURCE_EXHAUSTED
        assert len(once.on(channel)(once.request(fields([5], 5))).choices[0].token_ids) == 5
    assert daemon.stop() == 0, daemon.log


def test_calls_that_need_no_engine_fail_alone(start):
    daemon = start("--fault", "admission.prepare=oom@1", "--fault", "grpc.handler=throw@2+1", model=NANO).wait_ready()
    tokenize, info = (daemon.method(f"{SERVICE}/{name}") for name in ("Tokenize", "GetServerInfo"))

    def ask(method, channel, **request):
        return method.on(channel)(method.request(request))

    with daemon.channel() as channel:
        assert failure(lambda: ask(tokenize, channel, text="hello")).code() is CODE.RESOURCE_EXHAUSTED
        assert ask(tokenize, channel, text="hello").token_ids
        assert failure(lambda: ask(info, channel)).code() is CODE.INTERNAL
        assert ask(info, channel).world_size == 1
    assert daemon.stop() == 0, daemon.log


# The management port.


def test_a_scrape_that_cannot_be_rendered_is_answered_500(start):
    daemon = start("--fault", "metrics.render=oom@1", "--fault", "http.handler=throw@0.5").wait_bound()

    def statuses(path, count):
        return [daemon.get(path)[0] for _ in range(count)]

    wait_until(lambda: daemon.get("/readyz")[0] == 200, "ready, said half of the time")
    assert set(statuses("/livez", 20)) == {200, 500}
    assert set(statuses("/metrics", 20)) == {200, 500}
    with daemon.channel() as channel:
        assert len(generate(daemon, channel)) == 5
    assert daemon.stop() == 0, daemon.log


# Loading.


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("checkpoint.read=error", "failed (8 times): Input/output error (fault point checkpoint.read)"),
        ("checkpoint.read=short@5+1", "bytes too early"),
        ("checkpoint.read=throw@5+1", "fault point checkpoint.read"),
        ("checkpoint.read=oom@5+1", "out of host memory"),
        ("load.start=error", "fault point load.start"),
        ("load.start=throw", "fault point load.start"),
        ("load.start=oom", "out of host memory"),
    ],
)
def test_a_failed_load_is_the_end_and_says_why(start, spec, complaint):
    daemon = start("--fault", spec, "--world-size", 2)
    assert daemon.wait_exit() == 1
    last = daemon.log.splitlines()[-1]
    assert last.startswith("r1d: ") and complaint in last, daemon.log


def test_a_read_that_fails_and_then_works_is_tried_again(start):
    daemon = start("--fault", "checkpoint.read=error@3+2", "--world-size", 2).wait_ready()
    assert daemon.log.count("failed (once): Input/output error (fault point checkpoint.read); tried again in 50 ms") == 2
    metrics = daemon.metrics()
    assert metrics.value("r1d_load_retries", cause="io") == 2
    assert metrics.value("r1d_load_retries", cause="stale") == metrics.value("r1d_load_retries", cause="timeout") == 0
    size = sum(file.stat().st_size for file in (r1d.GOLDEN / "v3-generic-bf16").glob("model-*.safetensors"))
    assert 0.9 * size < metrics.value("r1d_load_bytes") <= size
    assert metrics.value("r1d_load_bytes_per_second") > 0
    assert '"message":"weights read"' in daemon.log
    with daemon.channel() as channel:
        assert len(generate(daemon, channel)) == 5
    assert daemon.stop() == 0, daemon.log


def test_a_stop_does_not_wait_for_reads_to_be_tried_again(start):
    daemon = start("--fault", "checkpoint.read=error")
    wait_until(lambda: "tried again in 3200 ms" in daemon.log, "the longest pause")
    begin = time.monotonic()
    assert daemon.stop() == 0, daemon.log
    assert SANITIZED or time.monotonic() - begin < 2.5


def test_a_stop_does_not_wait_for_a_read_that_never_ends(start):
    daemon = start("--fault", "checkpoint.read=hang@5+1").wait_bound()
    wait_until(lambda: daemon.metrics().value("r1d_load_progress_ratio") > 0, "some weights")
    assert daemon.stop() == 1
    assert "a read of the model does not end; leaving without it" in daemon.log


def test_reading_past_the_page_cache_serves_the_same_model(start):
    answers = []
    for mode in ("cached", "direct"):
        daemon = start("--load-mode", mode, "--load-threads", 3, "--world-size", 4).wait_ready()
        assert f'"mode":"{mode}","threads":3' in daemon.log or "cannot be read past the page cache" in daemon.log
        with daemon.channel() as channel:
            answers.append(generate(daemon, channel, length=20))
        assert daemon.stop() == 0, daemon.log
    assert answers[0] == answers[1] and len(answers[0]) == 20


# A step that stands still.


def test_a_stalled_step_flips_health_and_ends_requests_but_not_the_daemon(start):
    daemon = start("--liveness-timeout", "1500ms", "--fault", "model.layer=hang@900+1").wait_ready()
    with daemon.channel() as channel, daemon.channel() as other:
        watch = Watch(other)
        results = streams_of(daemon, channel, 10000).results()
        assert [code for code, _ in results] == [CODE.UNAVAILABLE] * NUM_STREAMS
        assert watch.next() == NOT_SERVING
        assert [daemon.get(path)[0] for path in ("/livez", "/readyz", "/health", "/startupz")] == [503, 503, 503, 200]
        assert daemon.get("/livez?verbose")[2].startswith("[+]model ok\n[-]engine no step moves\n")
        assert daemon.metrics().value("r1d_ready") == 0
        error = failure(lambda: generate(daemon, channel))
        assert error.code() is CODE.UNAVAILABLE and "stands still" in error.details()
        begin = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 1, "it does not wait for what never ends"
        assert time.monotonic() - begin < (60 if SANITIZED else 10)


def test_a_step_that_moves_again_serves_again(start):
    daemon = start("--liveness-timeout", "1s", "--fault", "engine.step=delay:4s@300+1").wait_ready()
    with daemon.channel() as channel, daemon.channel() as other:
        watch = Watch(other)
        results = streams_of(daemon, channel, 10000).results()
        assert [code for code, _ in results] == [CODE.UNAVAILABLE] * NUM_STREAMS
        assert (watch.next(), watch.next()) == (NOT_SERVING, SERVING)
        wait_until(lambda: daemon.get("/livez")[0] == 200, "alive again")
        assert len(generate(daemon, channel)) == 5
        wait_until(lambda: daemon.metrics().value("r1d_kv_blocks", state="used") == 0, "no request is left behind")
        assert daemon.metrics().value("r1d_ready") == 1
    assert daemon.stop() == 0, daemon.log


def test_a_stalled_step_is_noticed_within_ten_seconds_by_default(start):
    daemon = start("--fault", "engine.step=hang@20+1").wait_ready()
    with daemon.channel() as channel, daemon.channel() as other:
        watch = Watch(other)
        method = daemon.method()
        call = method.on(channel)(method.request(fields([5], 10000)))
        last = time.monotonic()
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                last = time.monotonic()
        ended = time.monotonic()
        assert call.code() is CODE.UNAVAILABLE
        assert watch.next() == NOT_SERVING
        assert daemon.get("/livez")[0] == 503
        for when in (ended, watch.seen[-1][1]):
            assert 7 < when - last < (60 if SANITIZED else 10.5)


def test_slow_layers_and_a_long_prefill_are_no_stall(start):
    # A step takes 1.8 s, longer than the limit; a layer 0.6 s. The prompt takes three steps.
    daemon = start(
        "--liveness-timeout", "1500ms", "--fault", "model.layer=delay:600ms", "--max-num-batched-tokens", 64
    ).wait_ready()
    with daemon.channel() as channel, daemon.channel() as other:
        watch = Watch(other)
        method = daemon.method()
        requests = [method.request(fields(range(20, 20 + length), 1)) for length in (150, 7)]
        probes = []
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            answers = [pool.submit(lambda r=r: list(method.call(channel, r))) for r in requests]
            while not all(answer.done() for answer in answers):
                probes.append(daemon.get("/livez")[0])
                time.sleep(0.1)
        assert [len(tokens_of(answer.result())) for answer in answers] == [1, 1]
        assert len(probes) > 20 and set(probes) == {200}
        assert watch.quiet()
    assert "no step has moved" not in daemon.log
    assert daemon.stop() == 0


def test_a_process_that_was_stopped_is_not_taken_for_stalled(start):
    daemon = start("--liveness-timeout", "1s").wait_ready()
    method = daemon.method()
    with daemon.channel() as channel:
        call = method.on(channel)(method.request(fields([5], 3000)))
        next(call)
        daemon.signal(signal.SIGSTOP)
        time.sleep(2)
        daemon.signal(signal.SIGCONT)
        rest = list(call)
        assert call.code() is CODE.OK and len(tokens_of(rest)) > 0
    assert "no step has moved" not in daemon.log
    assert daemon.stop() == 0
