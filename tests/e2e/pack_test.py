# SPDX-License-Identifier: Apache-2.0
"""`r1d pack`: served, judged and inspected like the checkpoint that it came from; refused by name when it does not fit."""

import json
import shutil
import signal
import subprocess

import pytest

import daemon as r1d
from commands_test import ANY_PORTS, refused
from daemon import GOLDEN, SANITIZED

NANO = GOLDEN.parents[2] / "models" / "r1-nano"
RAGGED = GOLDEN / "v3-ragged-fp8"
SLICES, EXPERTS = (), ("--expert-parallel",)
CASES = [(RAGGED, 2, SLICES), (RAGGED, 2, EXPERTS)]
if not SANITIZED:
    CASES += [(NANO, 1, SLICES), (NANO, 2, SLICES), (NANO, 4, SLICES), (NANO, 4, EXPERTS), (RAGGED, 4, SLICES)]


def pack(model, output, world_size, *flags):
    answer = r1d.run("pack", model, "--world-size", world_size, "--output", output, *flags)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return output


def verdicts(answer):
    """The lines of the cases, with their errors to the last digit."""
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return [line for line in answer.stdout.splitlines() if line.startswith("case")]


@pytest.mark.parametrize(("model", "world_size", "split"), CASES)
def test_golden_logits_are_those_of_the_checkpoint(model, world_size, split, tmp_path):
    packed = pack(model, tmp_path / "packed", world_size, *split)
    asked = ("--world-size", world_size, "--batch", 3, *split)
    expected = verdicts(r1d.run("golden", model, *asked))
    assert expected
    assert verdicts(r1d.run("golden", packed, *asked)) == expected


def test_a_packed_directory_is_served_with_its_text_and_refuses_what_it_is_not_packed_for(start, tmp_path):
    packed = pack(NANO, tmp_path / "nano", 2, "--verify")
    daemon = start("--world-size", 2, model=packed).wait_ready()
    question = ("generate", "--address", daemon.address, "--text", "17 + 4", "--max-tokens", 12)
    answer = r1d.run(*question)
    assert answer.returncode == 0, answer.stderr
    whole = start("--world-size", 2, model=NANO).wait_ready()
    expected = r1d.run(*question[:2], whole.address, *question[3:])
    assert answer.stdout.splitlines()[:-1] == expected.stdout.splitlines()[:-1]  # the last: how long it took
    refused("serve", "--model", packed, "--world-size", 4, *ANY_PORTS,
            saying=[packed, "packed for world size 2, asked for 4", "--world-size 2"])
    refused("serve", "--model", packed, "--world-size", 2, "--expert-parallel", "true", *ANY_PORTS,
            saying=[packed, "whole experts"])
    refused("serve", "--model", packed, "--world-size", 2, "--load-format", "safetensors", *ANY_PORTS,
            saying=[packed, "model.safetensors"])
    refused("serve", "--model", NANO, "--load-format", "packed", *ANY_PORTS, saying=[NANO, "r1dpack"])


def test_an_altered_byte_stops_the_load_by_file_and_tensor_unless_nobody_looks(start, tmp_path):
    packed = pack(NANO, tmp_path / "nano", 2)
    file = packed / "rank-01-of-02.r1dpack"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # in an expert's matrix
    file.write_bytes(content)
    words = ["rank-01-of-02.r1dpack", "section", "tensor", "checksum"]
    refused("serve", "--model", packed, "--world-size", 2, *ANY_PORTS, saying=words)
    refused("verify", packed, saying=[*words, "1 of"])
    start("--world-size", 2, "--verify-checksums", "false", model=packed).wait_ready()


def test_inspect_and_verify_tell_what_is_there(tmp_path):
    packed = pack(NANO, tmp_path / "nano", 4, "--threads", 2)
    answer = r1d.run("inspect", packed)
    assert answer.returncode == 0, answer.stderr
    for words in ("packed for world size 4", str(NANO), "world size 4", "a slice of every expert"):
        assert words in answer.stdout, answer.stdout
    refused("inspect", packed, "--world-size", 2, saying=["packed for world size 4"])
    answer = r1d.run("verify", packed)
    assert answer.returncode == 0 and "sections have their checksums" in answer.stdout, answer
    answer = r1d.run("verify", NANO)
    assert answer.returncode == 0 and "no checksums" in answer.stdout, answer


def test_what_cannot_be_packed_is_refused_and_nothing_is_overwritten(tmp_path):
    refused("pack", NANO, "--world-size", 7, "--output", tmp_path / "new", saying=["7 ranks"])
    refused("pack", tmp_path / "none", "--world-size", 2, "--output", tmp_path / "new", saying=[tmp_path / "none"])
    assert not (tmp_path / "new").exists()
    packed = pack(NANO, tmp_path / "packed", 2)
    before = {file.name: file.stat().st_mtime_ns for file in packed.iterdir()}
    refused("pack", NANO, "--world-size", 2, "--output", packed, saying=[packed, "not empty"])
    refused("pack", packed, "--world-size", 2, "--output", tmp_path / "twice", saying=[packed, "packed already"])
    assert {file.name: file.stat().st_mtime_ns for file in packed.iterdir()} == before
    (packed / "rank-00-of-02.r1dpack").unlink()
    refused("serve", "--model", packed, "--world-size", 2, *ANY_PORTS, saying=["rank-00-of-02.r1dpack", "missing"])
    edited = shutil.copytree(pack(NANO, tmp_path / "other", 2), tmp_path / "edited")
    config = json.loads((edited / "config.json").read_text())
    config["moe_intermediate_size"] *= 2
    (edited / "config.json").write_text(json.dumps(config))
    refused("serve", "--model", edited, "--world-size", 2, *ANY_PORTS, saying=["another model than config.json"])


@pytest.mark.parametrize("way", (signal.SIGTERM, signal.SIGKILL))
def test_stopped_in_the_middle_it_leaves_nothing_that_opens(way, tmp_path, monkeypatch):
    output = tmp_path / "packed"
    monkeypatch.setenv("R1D_FAULT", "checkpoint.read=delay:20ms")  # long enough to be in the middle
    packing = subprocess.Popen([r1d.BINARY, "pack", NANO, "--world-size", "2", "--output", output],
                               stderr=subprocess.PIPE, text=True)
    r1d.wait_until(lambda: any(file.stat().st_blocks for file in output.glob("*.r1d-partial")), "the first bytes")
    packing.send_signal(way)
    _, error = packing.communicate(timeout=60)
    assert packing.returncode == (1 if way == signal.SIGTERM else -way)
    if way == signal.SIGTERM:
        assert "stopped" in error
        assert not output.exists()
    else:
        assert all(file.suffix == ".r1d-partial" for file in output.iterdir())
        refused("serve", "--model", output, *ANY_PORTS, saying=[output])
    monkeypatch.delenv("R1D_FAULT")
    pack(NANO, output, 2, "--verify")
