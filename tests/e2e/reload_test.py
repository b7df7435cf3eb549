# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: what may change does, while requests go on."""

import signal

import grpc
import pytest

from client import Streams, failure, fields, tokens_of
from daemon import SANITIZED, wait_until

LONG = 500 if SANITIZED else 4000
FLAGS = ("--max-model-len", LONG + 100)
INFO = "r1d.v1.InferenceService/GetServerInfo"


class Configured:
    """A daemon with a configuration file that the test rewrites."""

    def __init__(self, start, path, text, *flags):
        self.path = path
        self.write(text)
        self.daemon = start("--config", path, *FLAGS, *flags)

    def write(self, text):
        self.path.write_text(text)

    def reload(self, text, saying):
        """Rewrites the file, sends SIGHUP and waits for a line that says so."""
        self.write(text)
        known = self.daemon.log.count(saying)
        self.daemon.signal(signal.SIGHUP)
        wait_until(lambda: self.daemon.log.count(saying) > known, f"the log says {saying}")

    def limits(self):
        method = self.daemon.method(INFO)
        with self.daemon.channel() as channel:
            (answer,) = method.call(channel, method.request({}))
            return answer.limits


@pytest.fixture
def configured(start, tmp_path):
    def make(text, *flags):
        return Configured(start, tmp_path / "r1d.yaml", text, *flags)

    return make


def test_a_level_and_limits_change_while_streams_go_on(configured):
    served = configured("log:\n  level: error\n")
    daemon = served.daemon.wait_ready()
    assert "ready:" not in daemon.log  # an info record
    method = daemon.method()
    with daemon.channel() as channel:
        streams = Streams(channel, method, [fields([10 + i], LONG) for i in range(4)])
        served.reload(
            "server:\n  max_request_time: 90s\n  stream_buffer_tokens: 8000\nlog:\n  level: info\n",
            "configuration reloaded: server.stream_buffer_tokens: 4096 -> 8000",
        )
        assert f"log.level: error -> info ({served.path}:5)" in daemon.log
        assert f"server.max_request_time: 1h -> 90s ({served.path}:2)" in daemon.log
        limits = served.limits()
        assert (limits.stream_buffer_tokens, limits.max_request_seconds) == (8000, 90)
        served.reload("log:\n  level: info\n", "stream_buffer_tokens: 8000 -> 4096 (default)")
        assert served.limits().max_request_seconds == 3600
        for code, responses in streams.results():
            assert code is grpc.StatusCode.OK
            assert len(tokens_of(responses)) == LONG
    served.reload("log:\n  level: error\n", "log.level: info -> error")
    assert daemon.stop() == 0, daemon.log
    assert "draining" not in daemon.log


def test_the_waiting_queue_takes_as_many_as_the_file_says_now(configured):
    served = configured("scheduler:\n  max_waiting_requests: 8\n", "--max-batch-size", 1)
    daemon = served.daemon.wait_ready()
    method = daemon.method()
    with daemon.channel() as channel:
        running = Streams(channel, method, [fields([5], LONG)])
        waiting = [method.on(channel)(method.request(fields([6 + i], 1))) for i in range(3)]
        wait_until(lambda: daemon.metrics().value("r1d_requests_waiting") == 3, "three requests wait")
        served.reload("scheduler:\n  max_waiting_requests: 2\n", "max_waiting_requests: 8 -> 2")
        refused = failure(lambda: list(method.call(channel, method.request(fields([9], 1)))))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 may" in refused.details()
        served.reload("", "max_waiting_requests: 2 -> 1024")
        taken = method.on(channel)(method.request(fields([10], 1)))
        for call in (*waiting, taken):  # what waited before the change waits on
            assert len(tokens_of(list(call))) == 1
        assert running.results()[0][0] is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("log:\n  level: debug\nscheduler:\n  max_waiting_request: 2\n", ":4: unknown key"),
        ("log:\n  level: loud\n", ":2: log.level: expected one of"),
        ("log:\n  level: debug\nscheduler:\n  max_num_batched_tokens: 1\n", ":4: scheduler.max_num_batched_tokens"),
        ("log: {", "not YAML"),
    ],
)
def test_a_bad_file_changes_nothing_and_is_named_with_its_line(configured, text, saying):
    served = configured("scheduler:\n  max_waiting_requests: 9\n")
    daemon = served.daemon.wait_ready()
    served.reload(text, "configuration not reloaded, the one in force stays")
    assert f"{served.path}:" in daemon.log
    assert saying in daemon.log
    assert "reloaded:" not in daemon.log
    # The old one is in force: the next good file differs from it alone.
    served.reload("scheduler:\n  max_waiting_requests: 9\n", "configuration reloaded: nothing changed")
    assert daemon.stop() == 0, daemon.log


def test_what_cannot_change_waits_for_a_restart_and_the_rest_changes(configured):
    served = configured("")
    daemon = served.daemon.wait_ready()
    served.reload(
        "engine:\n  world_size: 2\nscheduler:\n  max_waiting_requests: 7\n",
        "configuration: a restart is needed for engine.world_size: 1 -> 2",
    )
    assert "configuration reloaded: scheduler.max_waiting_requests: 1024 -> 7" in daemon.log
    assert daemon.stop() == 0, daemon.log


def test_flags_win_over_the_file_also_after_a_reload(configured):
    served = configured("", "--max-waiting-requests", 3)
    served.daemon.wait_ready()
    served.reload("scheduler:\n  max_waiting_requests: 7\n", "configuration reloaded: nothing changed")


def test_a_signal_while_loading_is_answered_later_and_ends_nothing(configured):
    served = configured("")
    daemon = served.daemon.wait_bound()
    for _ in range(3):
        daemon.signal(signal.SIGHUP)
    daemon.wait_ready()
    wait_until(lambda: "configuration reloaded" in daemon.log, "the signal is answered")
    assert daemon.stop() == 0, daemon.log


def test_a_signal_during_the_drain_changes_nothing(configured):
    served = configured("")
    daemon = served.daemon.wait_ready()
    method = daemon.method()
    with daemon.channel() as channel:
        streams = Streams(channel, method, [fields([5], LONG)])
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: daemon.get("/readyz")[0] == 503, "the drain has begun")
        daemon.signal(signal.SIGHUP)
        ((code, responses),) = streams.results()
        assert code is grpc.StatusCode.OK and len(tokens_of(responses)) == LONG
    assert daemon.wait_exit() == 0, daemon.log
    assert "reloaded" not in daemon.log
