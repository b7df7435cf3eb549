# SPDX-License-Identifier: Apache-2.0
"""Start, drain, second signal, sudden death."""

import signal
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client import Streams, fields, tokens_of
from daemon import SANITIZED, wait_until

NUM_STREAMS = 8
# Long enough that the streams still run when the signal comes and the checks after it are made.
LONG = 500 if SANITIZED else 4000
FLAGS = ("--max-model-len", LONG + 100)


def requests(count=NUM_STREAMS):
    return [fields([10 + i], LONG) for i in range(count)]


def test_sigterm_lets_running_streams_finish_and_refuses_new_ones(start):
    daemon = start(*FLAGS).wait_ready()
    method = daemon.method()
    with daemon.channel() as channel:
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
            for service in ("", "r1d.v1.InferenceService")
        ]
        assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 2
        streams = Streams(channel, method, requests())

        daemon.signal(signal.SIGTERM)

        assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
        # Health speaks first, so that balancers have turned away before anyone is refused.
        error = wait_until(lambda: refused(method, channel), "a new request is refused")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "drain" in error.details()
        assert daemon.get("/readyz")[0] == 503
        assert daemon.get("/livez")[0] == 200
        assert daemon.metrics().value("r1d_ready") == 0
        for code, responses in streams.results():
            assert code is grpc.StatusCode.OK
            assert len(tokens_of(responses)) == LONG
            assert responses[-1].HasField("finish")
    assert daemon.wait_exit() == 0, daemon.log


def refused(method, channel):
    """The error of a short request, or None where it was still taken."""
    try:
        list(method.call(channel, method.request(fields([9], 1))))
    except grpc.RpcError as error:
        return error
    return None


def test_what_outlasts_the_drain_limit_is_cancelled(start):
    daemon = start(*FLAGS, "--drain-timeout", "50ms").wait_ready()
    with daemon.channel() as channel:
        streams = Streams(channel, daemon.method(), requests())
        daemon.signal(signal.SIGTERM)
        results = streams.results()
        assert [code for code, _ in results] == [grpc.StatusCode.UNAVAILABLE] * NUM_STREAMS
        assert all(0 < len(tokens_of(responses)) < LONG for _, responses in results)
    assert daemon.wait_exit() == 0, daemon.log


def test_a_second_signal_ends_the_daemon_at_once(start):
    daemon = start(*FLAGS).wait_ready()
    with daemon.channel() as channel:
        streams = Streams(channel, daemon.method(), requests())
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: daemon.get("/readyz")[0] == 503, "the drain has begun")
        begin = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() != 0
        assert time.monotonic() - begin < (20 if SANITIZED else 2)
        assert all(code is grpc.StatusCode.UNAVAILABLE for code, _ in streams.results())


def test_a_signal_right_after_the_start_ends_it_cleanly(start):
    daemon = start().wait_bound()
    assert daemon.stop() == 0, daemon.log


def test_an_idle_daemon_stops_at_once_on_ctrl_c(start):
    daemon = start().wait_ready()
    daemon.signal(signal.SIGINT)
    assert daemon.wait_exit(limit_s=60 if SANITIZED else 5) == 0, daemon.log


def test_a_killed_daemon_blocks_no_restart_on_its_ports(start):
    first = start(*FLAGS).wait_ready()
    ports = first.ports
    with first.channel() as channel:
        streams = Streams(channel, first.method(), requests(2))
        first.kill()  # SIGKILL, with connections open
        assert all(code is grpc.StatusCode.UNAVAILABLE for code, _ in streams.results())
    again = start(grpc_port=ports["grpc"], management_port=ports["management"]).wait_ready()
    assert again.ports == ports
    with again.channel() as channel:
        method = again.method()
        assert len(tokens_of(method.call(channel, method.request(fields([5], 4))))) == 4


def test_a_request_before_the_model_is_loaded_or_after_is_answered_and_never_hangs(start):
    daemon = start().wait_bound()
    with daemon.channel() as channel:
        method = daemon.method()
        error = refused(method, channel)  # None: the model was faster
        assert error is None or error.code() is grpc.StatusCode.UNAVAILABLE
    daemon.wait_ready()
    with daemon.channel() as channel:
        assert refused(daemon.method(), channel) is None
