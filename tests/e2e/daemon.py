# SPDX-License-Identifier: Apache-2.0
"""A real r1d process on loopback, every port chosen by the system."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import time

import grpc

import exposition
from grpc_call import Services

BINARY = os.environ.get("R1D_BINARY", "build/release/r1d")
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "golden"
# Sanitizers slow everything down and keep freed memory: limits are stretched, sizes not judged.
SANITIZED = bool(os.environ.get("R1D_SANITIZED"))
PATIENCE_S = 600 if SANITIZED else 60
GENERATE = "r1d.v1.InferenceService/Generate"


def wait_until(condition, what, limit_s=PATIENCE_S):
    """Polls until `condition()` is true and returns what it gave."""
    deadline = time.monotonic() + limit_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.01)
    return result


def run(*arguments, limit_s=PATIENCE_S, **options):
    """Runs `r1d ARGUMENTS` to its end."""
    command = [BINARY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, **options)


class Daemon:
    """`r1d serve` on a model. Lifecycle: construct (starts) -> wait_ready() -> stop() or kill()."""

    def __init__(self, folder, model, *flags, grpc_port=0, management_port=0, env=None, output=None):
        """`output`: a file for standard output and error in place of the one that `log` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        self._port_file = folder / "ports.json"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    BINARY, "serve", "--model", str(model),
                    "--grpc-address", f"127.0.0.1:{grpc_port}",
                    "--management-address", f"127.0.0.1:{management_port}",
                    "--port-file", str(self._port_file),
                    *map(str, flags),
                ],
                stdin=subprocess.DEVNULL, stdout=output or log, stderr=output or log, env=os.environ | (env or {}),
            )

    @property
    def log(self):
        return self._log.read_text(errors="replace")

    @property
    def ports(self):
        return json.loads(self._port_file.read_text())

    @property
    def address(self):
        return f"127.0.0.1:{self.ports['grpc']}"

    def _running(self):
        assert self.process.poll() is None, f"r1d ended with {self.process.returncode}:\n{self.log}"
        return True

    def wait_bound(self):
        """Until both listeners are there; the model may still be loading."""
        wait_until(lambda: self._running() and self._port_file.exists(), "both listeners bound")
        return self

    def wait_ready(self):
        self.wait_bound()
        wait_until(lambda: self._running() and self.get("/readyz")[0] == 200, "/readyz answers 200")
        return self

    def request(self, method, path, body=None):
        """(status, headers, text) from the management port."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.ports["management"], timeout=PATIENCE_S)
        ) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()

    def get(self, path):
        return self.request("GET", path)

    def metrics(self):
        status, headers, text = self.get("/metrics")
        assert status == 200, text
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4"), headers["Content-Type"]
        return exposition.parse(text)

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    def channel(self):
        return grpc.insecure_channel(self.address)

    def method(self, path=GENERATE):
        """The method's types, by reflection."""
        with self.channel() as channel:
            return Services(channel).method(path)

    def signal(self, number):
        self.process.send_signal(number)

    def wait_exit(self, limit_s=PATIENCE_S):
        return self.process.wait(timeout=limit_s)

    def stop(self):
        """SIGTERM; the exit status, which must be 0 unless a test expects otherwise."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def golden_cases(name):
    return json.loads((GOLDEN / name / "golden.json").read_text())["cases"]


def certain_tokens(case):
    """The reference's greedy tokens as far as rounding cannot change them.

    `gap` is the distance of the two best logits; where it is within 1e-3 of the row's spread (the
    error allowed to float32 arithmetic) a different token is no fault, and what follows is open.
    """
    certain = []
    for token, gap in zip(case["greedy"], case["gap"]):
        if gap < 4e-3 * case["logit_std"]:
            break
        certain.append(token)
    return certain
