# SPDX-License-Identifier: Apache-2.0
"""`r1d golden`: the recorded logits and tokens, through the real engine, in every way a sequence can run."""

import json
import shutil
import struct

import pytest

import daemon as r1d
from daemon import GOLDEN, SANITIZED

NANO = GOLDEN.parents[2] / "models" / "r1-nano"
CHECKPOINTS = ("v3-generic-bf16", "v3-r1heads-fp8", "v3-ragged-fp8", "v3-noqlora-bf16")
WORLD_SIZES = (1, 2, 4)
if SANITIZED:  # the arithmetic is judged elsewhere; here it is the memory and the threads
    CHECKPOINTS, WORLD_SIZES = ("v3-ragged-fp8",), (2,)
MODES = {
    "alone": (),
    "batched": ("--batch", 4),
    "chunked": ("--chunk", 7),
    "batched and chunked": ("--chunk", 33, "--batch", 3),
    "after a prefix hit": ("--prefix-hit",),
    "after preemption": ("--preempt",),
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.replace(" ", "_"))
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_golden(checkpoint, world_size, mode):
    answer = r1d.run("golden", GOLDEN / checkpoint, "--world-size", world_size, *MODES[mode])
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("dtype", ("bf16", "fp8"))
@pytest.mark.parametrize("mode", ("batched and chunked", "after a prefix hit", "after preemption"), ids=lambda mode: mode.replace(" ", "_"))
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_golden_with_a_cache_of_fewer_bits(checkpoint, mode, dtype):
    answer = r1d.run("golden", GOLDEN / checkpoint, "--kv-cache-dtype", dtype, *MODES[mode])
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_an_fp8_cache_leaves_a_trained_models_answers_alone():
    answer = r1d.run("golden", NANO, "--kv-cache-dtype", "fp8", "--tolerance", 3e-2)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count("tokens all match") == 6


@pytest.mark.parametrize("world_size", (1, 8))
def test_the_model_that_ships_is_what_transformers_computes(world_size):
    answer = r1d.run("golden", NANO, "--world-size", world_size, "--batch", 3)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "case 5" in answer.stdout


def test_small_blocks_and_whole_experts_change_nothing():
    answer = r1d.run("golden", GOLDEN / "v3-ragged-fp8", "--block-size", 3, "--batch", 2)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(GOLDEN / "v3-generic-bf16", tmp_path / "model")


def test_one_wrong_weight_matrix_is_noticed(copy):
    name = "model.layers.1.self_attn.o_proj.weight"
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    with (copy / index["weight_map"][name]).open("r+b") as shard:
        (header_bytes,) = struct.unpack("<Q", shard.read(8))
        begin, end = json.loads(shard.read(header_bytes))[name]["data_offsets"]
        shard.seek(8 + header_bytes + begin)
        old = shard.read(end - begin)
        shard.seek(8 + header_bytes + begin)
        shard.write(old[::-1])
    answer = r1d.run("golden", copy)
    assert answer.returncode == 1, answer.stdout + answer.stderr


def test_a_truncated_shard_is_named(copy):
    shard = copy / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    answer = r1d.run("golden", copy)
    assert answer.returncode == 1
    assert shard.name in answer.stderr


def test_a_checkpoint_without_golden_data_is_refused_by_name(copy):
    (copy / "golden.json").unlink()
    answer = r1d.run("golden", copy)
    assert answer.returncode == 1
    assert "golden.json" in answer.stderr
