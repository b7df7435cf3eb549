# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from daemon import GOLDEN, Daemon


@pytest.fixture
def start(tmp_path):
    """start(*flags, model=..., grpc_port=0, management_port=0, env={}) -> Daemon; all are gone afterwards."""
    daemons, numbers = [], itertools.count()

    def start_one(*flags, model=GOLDEN / "v3-generic-bf16", **options):
        daemons.append(Daemon(tmp_path / f"r1d{next(numbers)}", model, *flags, **options))
        return daemons[-1]

    yield start_one
    for daemon in daemons:
        daemon.kill()


@pytest.fixture(scope="session")
def session_daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("served"), GOLDEN / "v3-generic-bf16", "--max-model-len", 4096)
    yield daemon.wait_ready()
    assert daemon.stop() == 0, daemon.log


@pytest.fixture
def served(session_daemon):
    """One ready daemon with default settings, shared by tests that leave no trace in it."""
    assert session_daemon.process.poll() is None, f"an earlier test ended r1d:\n{session_daemon.log}"
    return session_daemon


@pytest.fixture
def channel(served):
    with served.channel() as channel:
        yield channel
