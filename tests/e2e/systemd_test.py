# SPDX-License-Identifier: Apache-2.0
"""What the daemon tells its supervisor over NOTIFY_SOCKET, and the unit file."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import grpc
import pytest

import daemon as r1d
from client import failure, fields, tokens_of
from daemon import PATIENCE_S

UNIT = pathlib.Path(__file__).resolve().parents[2] / "configs" / "systemd" / "r1d.service"
EXPOSURE = 20  # of 100: what systemd-analyze calls 2.0, "OK"


class Supervisor:
    """The reading end of a NOTIFY_SOCKET. Messages are dictionaries, in the order they came."""

    def __init__(self, name):
        self.name = name
        self.messages = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)

    def env(self, **more):
        return {"NOTIFY_SOCKET": self.name} | more

    def receive(self, limit_s=PATIENCE_S):
        """The next message, or None."""
        self._socket.settimeout(limit_s)
        try:
            text = self._socket.recv(65536).decode()
        except TimeoutError:
            return None
        message = dict(line.split("=", 1) for line in text.split("\n"))
        self.messages.append(message)
        return message

    def wait_for(self, key, value=""):
        """Reads until a message has `key` with a value that contains `value`."""
        while message := self.receive():
            if key in message and value in message[key]:
                return message
        raise AssertionError(f"no {key}={value} came; there were {self.messages}")

    def rest(self, limit_s=0.2):
        """What comes until nothing does for so long."""
        messages = []
        end = time.monotonic() + PATIENCE_S
        while message := self.receive(limit_s):
            messages.append(message)
            assert time.monotonic() < end, f"no end of {messages[-3:]}"
        return messages

    def close(self):
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def any_supervisor(request):
    with _supervisor(request.param == "abstract") as supervisor:
        yield supervisor


@pytest.fixture
def supervisor():
    with _supervisor(abstract=False) as supervisor:
        yield supervisor


@contextlib.contextmanager
def _supervisor(abstract):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders have too long names
        supervisor = Supervisor(f"@r1d-test-{os.getpid()}" if abstract else f"{folder}/notify")
        try:
            yield supervisor
        finally:
            supervisor.close()


def test_a_life_is_loading_ready_stopping(start, any_supervisor):
    daemon = start(env=any_supervisor.env())
    ready = any_supervisor.wait_for("READY", "1")
    assert ready["STATUS"].startswith("serving ")
    before = any_supervisor.messages[:-1]
    assert all(message.keys() <= {"STATUS", "EXTEND_TIMEOUT_USEC"} for message in before)
    assert any(re.fullmatch(r"loading .*: \d+ %", message.get("STATUS", "")) for message in before)
    assert any(int(message.get("EXTEND_TIMEOUT_USEC", 0)) >= 60_000_000 for message in before)
    assert daemon.get("/readyz")[0] == 200  # at once
    daemon.signal(signal.SIGTERM)
    stopping = any_supervisor.receive()
    assert stopping["STOPPING"] == "1"
    assert daemon.wait_exit() == 0
    # Off, as nobody asked for it.
    assert not any("WATCHDOG" in message for message in [*any_supervisor.messages, *any_supervisor.rest()])


def test_the_drain_asks_for_the_time_it_may_take(start, supervisor):
    daemon = start("--drain-timeout", "30m", env=supervisor.env())
    supervisor.wait_for("READY", "1")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    assert any(int(message.get("EXTEND_TIMEOUT_USEC", 0)) > 1800_000_000 for message in supervisor.rest())


def test_the_watchdog_is_fed_while_there_is_nothing_to_do_and_while_steps_move(start, supervisor):
    daemon = start(env=supervisor.env(WATCHDOG_USEC="400000"))
    supervisor.wait_for("READY", "1")
    for _ in range(3):
        supervisor.wait_for("WATCHDOG", "1")
    method = daemon.method()
    with daemon.channel() as channel:
        call = method.on(channel)(method.request(fields([7], 100000)))
        next(call)
        for _ in range(3):
            supervisor.wait_for("WATCHDOG", "1")
        assert call.is_active()
        call.cancel()


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(start, supervisor):
    daemon = start("--liveness-timeout", "100ms", env=supervisor.env(WATCHDOG_USEC="100000", WATCHDOG_PID="1"))
    supervisor.wait_for("READY", "1")
    assert supervisor.rest(0.5) == []
    assert daemon.stop() == 0


def test_a_stalled_engine_starves_the_watchdog(start, supervisor):
    daemon = start(
        "--liveness-timeout", "1s", "--fault", "model.layer=hang@30+1", env=supervisor.env(WATCHDOG_USEC="400000")
    )
    supervisor.wait_for("READY", "1")
    method = daemon.method()
    with daemon.channel() as channel:
        call = method.on(channel)(method.request(fields([7], 1000)))
        next(call)
        supervisor.wait_for("STATUS", "stalled")
        assert supervisor.rest(1.5) == []  # neither a beat nor anything else
        assert failure(lambda: list(call)).code() is grpc.StatusCode.UNAVAILABLE  # read to the end: the status comes last
    daemon.kill()


def test_a_slow_load_asks_for_more_time_as_it_goes_on(start, supervisor):
    start("--fault", "checkpoint.read=delay:450ms", "--load-threads", 1, env=supervisor.env())
    supervisor.wait_for("READY", "1")
    assert sum("EXTEND_TIMEOUT_USEC" in message for message in supervisor.messages) >= 4
    shares = [int(found[1]) for m in supervisor.messages if (found := re.search(r": (\d+) %", m.get("STATUS", "")))]
    assert shares == sorted(shares) and len(set(shares)) >= 3, shares


def test_a_load_that_stands_still_asks_for_nothing(start, supervisor):
    daemon = start("--fault", "checkpoint.read=hang@5+1", env=supervisor.env()).wait_bound()
    supervisor.wait_for("EXTEND_TIMEOUT_USEC")
    supervisor.rest(1)
    assert supervisor.rest(2.5) == []
    assert (daemon.get("/livez")[0], daemon.get("/readyz")[0], daemon.get("/startupz")[0]) == (200, 503, 503)
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGINT)  # another one, as two of a kind may arrive as one
    assert daemon.wait_exit() != 0


@pytest.mark.parametrize("name", ["relative", "/nowhere/notify", "/" + "x" * 200])
def test_a_socket_that_nobody_listens_on_is_a_warning(start, name):
    daemon = start(env={"NOTIFY_SOCKET": name}).wait_ready()
    assert daemon.stop() == 0
    assert f"NOTIFY_SOCKET {name}: " in daemon.log


def test_a_supervisor_that_stops_reading_blocks_nothing(start, supervisor):
    daemon = start("--liveness-timeout", "100ms", env=supervisor.env(WATCHDOG_USEC="40000")).wait_ready()
    time.sleep(1)  # a hundred beats, more than a socket holds
    method = daemon.method()
    with daemon.channel() as channel:
        assert len(tokens_of(method.call(channel, method.request(fields([7], 20))))) == 20
    assert daemon.stop() == 0


@pytest.fixture(scope="module")
def unit_here(tmp_path_factory):
    """The unit with paths of this machine: systemd-analyze looks whether the programs exist."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    text = UNIT.read_text()
    assert text.count("/usr/local/bin/r1d ") == 1
    here = tmp_path_factory.mktemp("unit") / "r1d.service"
    here.write_text(text.replace("/usr/local/bin/r1d ", f"{pathlib.Path(r1d.BINARY).resolve()} "))
    return here


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_systemd_finds_no_fault_with_the_unit(unit_here):
    result = analyze("verify", "--man=no", unit_here)
    ours = [line for line in result.stderr.splitlines() if "r1d" in line]
    assert (result.returncode, ours) == (0, [])


def test_the_unit_is_hardened(unit_here):
    result = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", unit_here)
    assert result.returncode == 0, result.stdout[-300:]


def test_the_units_times_fit_the_daemons_defaults():
    unit = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    seconds = {"s": 1, "m": 60, "min": 60, "ms": 0.001}

    def to_s(text):
        number, suffix = re.fullmatch(r"(\d+)([a-z]+)", text).groups()
        return int(number) * seconds[suffix]

    defaults = dict(re.findall(r"^\| `([\w.]+)` \| `[^`]*` \| `([^`]*)`", CONFIGURATION.read_text(), re.MULTILINE))
    assert to_s(unit["TimeoutStopSec"]) > to_s(defaults["server.drain_timeout"])
    own = to_s(defaults["server.liveness_timeout"]) + to_s(defaults["server.recovery_timeout"])
    assert to_s(unit["WatchdogSec"]) > own, "a hung engine ends by itself, with every request answered"


CONFIGURATION = UNIT.parents[2] / "docs" / "configuration.md"
