# SPDX-License-Identifier: Apache-2.0
import pathlib
import sys

import pytest

TREE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "tests" / "e2e"), str(TREE / "tools" / "packaging")]

from daemon import GOLDEN, Daemon  # noqa: E402  (the path comes first)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    """One ready daemon: what its management port has is what the manifests may name."""
    served = Daemon(tmp_path_factory.mktemp("served"), GOLDEN / "v3-generic-bf16", "--max-model-len", 256)
    yield served.wait_ready()
    assert served.stop() == 0, served.log
