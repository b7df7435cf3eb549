# SPDX-License-Identifier: Apache-2.0
"""Faults made to happen at named points: each ends what it must, with the right status, and nothing more."""

import concurrent.futures
import contextlib
import os
import queue
import shutil
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


@pytest.mark.parametrize("action", ["error", "throw"])
@pytest.mark.parametrize(("point", "skip"), [("engine.step", 300), ("model.layer", 1800)])
def test_a_failed_step_ends_every_request_and_the_daemon(start, point, skip, action):
    daemon = start("--fault", f"{point}={action}@{skip}+1", "--world-size", 2).wait_ready()
    with daemon.channel() as channel:
        results = streams_of(daemon, channel, 10000).results()
        assert [code for code, _ in results] == [CODE.UNAVAILABLE] * NUM_STREAMS
    assert daemon.wait_exit() == 1
    assert "the engine failed" in daemon.log
    assert f"fault point {point}" in daemon.log


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


# Ranks that lose each other: what ran ends, what waits goes on, or the process ends.

QUICK = ("--liveness-timeout", "1s", "--recovery-timeout", "1s")
NUM_WAITING = 3
# Steps of some milliseconds, so that all four are there long before the fault.
SLOW_LAYERS, SLOW_COLLECTIVES = "model.layer=delay:2ms", "ops.collective=delay:1ms"
# Collectives of a rank in a step of the model: the embedding, two a layer, the logits.
COLLECTIVES, LAYERS = 8, 3


class Crowd:
    """One request that runs and three that wait behind it, then whatever the faults make of them."""

    def __init__(self, start, world_size, *faults, **options):
        flags = [part for fault in faults for part in ("--fault", fault)]
        self.daemon = start("--world-size", world_size, "--max-batch-size", 1, *QUICK, *flags, **options).wait_ready()
        self._prompts = [[20 + i, 3, 5] for i in range(NUM_WAITING)]

    def ask(self, channel, prompt, length):
        method = self.daemon.method()
        return tokens_of(method.call(channel, method.request(fields(prompt, length))))

    def alone(self):
        """The tokens that the waiting requests get from an engine that is well; 24 steps."""
        with self.daemon.channel() as channel:
            return [self.ask(channel, prompt, 8) for prompt in self._prompts]

    def run(self):
        """(the running stream's code, for each waiting one its tokens or the code it failed with)."""
        with self.daemon.channel() as channel, concurrent.futures.ThreadPoolExecutor(NUM_WAITING) as pool:
            running = Streams(channel, self.daemon.method(), [fields([10], 10000)])
            waiting = [pool.submit(self._outcome, channel, prompt) for prompt in self._prompts]
            ((code, _),) = running.results()
            return code, [outcome.result() for outcome in waiting]

    def _outcome(self, channel, prompt):
        try:
            return self.ask(channel, prompt, 8)
        except grpc.RpcError as error:
            return error.code()


def private_model(tmp_path):
    """A copy of the model that a test may spoil, and what spoils it: its weights are gone from then on."""
    model = tmp_path / "model"
    shutil.copytree(r1d.GOLDEN / "v3-generic-bf16", model)

    def spoil():
        for shard in model.glob("model-*.safetensors"):
            os.truncate(shard, 0)

    return model, spoil


# Hits of a rank in 24 steps alone, and 100 of the stream that runs.
def hits_until_fault(a_step):
    return a_step * (NUM_WAITING * 8 + 100)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    ("spec", "a_step", "cause"),
    [
        ("ops.collective=hang", COLLECTIVES, "stall"),
        ("ops.collective=error", COLLECTIVES, "communicator"),
        ("ops.collective=oom", COLLECTIVES, "memory"),
    ],
)
def test_what_waits_behind_a_failed_step_runs_after_it_without_a_new_load(start, tmp_path, spec, a_step, cause, world_size):
    model, spoil = private_model(tmp_path)
    fault = f"{spec}@rank{world_size - 1}@{hits_until_fault(a_step)}+1"
    crowd = Crowd(start, world_size, SLOW_LAYERS, fault, model=model)
    daemon = crowd.daemon
    spoil()
    before = daemon.metrics()
    alone = crowd.alone()
    with daemon.channel() as other:
        watch = Watch(other)
        assert crowd.run() == (CODE.UNAVAILABLE, alone)
        if cause == "stall":
            assert (watch.next(), watch.next()) == (NOT_SERVING, SERVING)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, "ready again")
    assert daemon.get("/livez")[0] == 200
    after = daemon.metrics()
    assert after.value("r1d_engine_recoveries_total", cause=cause) == 1
    assert after.value("r1d_stalls_total") == (1 if cause == "stall" else 0)
    assert after.value("r1d_load_seconds") == before.value("r1d_load_seconds")
    assert after.value("r1d_kv_blocks", state="used") == 0
    assert daemon.log.count('"the engine has recovered"') == 1
    assert crowd.alone() == alone, "and so do those that come later"
    assert daemon.stop() == 0, daemon.log


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_that_hangs_in_its_own_work_costs_the_process(start, world_size):
    fault = f"model.layer=hang@rank{world_size - 1}@{LAYERS * 100}+1"
    crowd = Crowd(start, world_size, SLOW_COLLECTIVES, fault)
    code, outcomes = crowd.run()
    ended = time.monotonic()
    assert (code, outcomes) == (CODE.UNAVAILABLE, [CODE.UNAVAILABLE] * NUM_WAITING)
    assert crowd.daemon.wait_exit() == 1
    assert time.monotonic() - ended < (60 if SANITIZED else 6)
    assert "the engine hangs: an aborted step has not ended for 1000 ms" in crowd.daemon.log


@pytest.mark.parametrize(("action", "complaint"), [("error", "it does not recover"), ("hang", "the engine hangs")])
def test_ranks_that_do_not_meet_again_cost_the_process(start, action, complaint):
    fault = f"ops.collective=error@rank1@{COLLECTIVES * 50}+1"
    crowd = Crowd(start, 2, SLOW_LAYERS, fault, f"engine.rejoin={action}@rank0")
    assert crowd.run() == (CODE.UNAVAILABLE, [CODE.UNAVAILABLE] * NUM_WAITING)
    assert crowd.daemon.wait_exit() == 1
    assert complaint in crowd.daemon.log


def test_a_fault_that_comes_back_for_the_fourth_time_costs_the_process(start):
    crowd = Crowd(start, 2, SLOW_LAYERS, f"ops.collective=error@rank1@{COLLECTIVES * 50}+4")
    assert crowd.run() == (CODE.UNAVAILABLE, [CODE.UNAVAILABLE] * NUM_WAITING)
    assert crowd.daemon.wait_exit() == 1
    assert crowd.daemon.log.count('"the engine has recovered"') == 3
    assert "(the engine has recovered 3 times in 10 minutes)" in crowd.daemon.log


def test_a_rank_that_takes_the_process_with_it_is_an_unavailable_server(start):
    daemon = start("--world-size", 2, "--fault", f"model.layer=kill@rank1@{LAYERS * 300}+1").wait_ready()
    with daemon.channel() as channel:
        results = streams_of(daemon, channel, 10000).results()
        assert [code for code, _ in results] == [CODE.UNAVAILABLE] * NUM_STREAMS
    assert daemon.wait_exit() == -signal.SIGKILL


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
