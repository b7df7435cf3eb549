# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, and how it refuses."""

import json
import shutil
import socket
import time

import pytest

import daemon as r1d
from daemon import GOLDEN, SANITIZED

MODEL = GOLDEN / "v3-generic-bf16"
DOORS = ("--grpc-address", "--management-address")
ANY_PORTS = [word for door in DOORS for word in (door, "127.0.0.1:0")]


def refused(*arguments, saying):
    """Runs r1d, which must fail soon, saying why on standard error."""
    begin = time.monotonic()
    answer = r1d.run(*arguments)
    assert answer.returncode not in (0, None) and answer.returncode > 0, answer
    assert time.monotonic() - begin < (60 if SANITIZED else 3)
    for words in saying:
        assert str(words) in answer.stderr, answer.stderr
    assert len(answer.stderr.splitlines()) < 12, answer.stderr  # the reason, not a page of help
    return answer


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(MODEL, tmp_path / "model")


def test_a_missing_model_is_named(tmp_path):
    refused("serve", "--model", tmp_path / "none", *ANY_PORTS, saying=[tmp_path / "none"])


def test_no_model_at_all_names_the_key():
    refused("serve", *ANY_PORTS, saying=["model"])


def test_an_unknown_flag_is_named_with_its_neighbour():
    refused("serve", "--model", MODEL, "--max-batch-sise", 4, saying=["--max-batch-sise", "--max-batch-size?"])
    refused("generate", "--text", "a", "--max_tokens=4", saying=["--max-tokens?"])


def test_an_unknown_subcommand_is_named():
    refused("sevre", saying=["sevre"])


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-batch-size", "0"),
        ("--max-batch-size", "many"),
        ("--world-size", "3"),
        ("--batch-timeout", "10 parsecs"),
        ("--kv-cache-memory", "lots"),
        ("--grpc-address", "localhost"),
        ("--log-level", "loud"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(flag, value):
    refused("serve", "--model", MODEL, flag, value, saying=[flag, value])


def ports_with(door, address):
    return [word for other in DOORS for word in (other, address if other == door else "127.0.0.1:0")]


@pytest.mark.parametrize("door", DOORS)
def test_a_taken_port_is_named(door):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused("serve", "--model", MODEL, *ports_with(door, address), saying=[address])


def test_two_daemons_do_not_share_a_port(start):
    first = start().wait_ready()
    for door, port in zip(DOORS, (first.ports["grpc"], first.ports["management"])):
        address = f"127.0.0.1:{port}"
        refused("serve", "--model", MODEL, *ports_with(door, address), saying=[address])
    assert first.get("/readyz")[0] == 200


def test_a_broken_model_config_is_named(model):
    (model / "config.json").write_text('{"model_type": "deepseek_v3", ')
    refused("serve", "--model", model, *ANY_PORTS, saying=["config.json"])


def test_an_absent_shard_is_named(model):
    (model / "model-00003-of-00003.safetensors").unlink()
    refused("serve", "--model", model, *ANY_PORTS, saying=["model-00003-of-00003.safetensors"])


def test_a_misspelt_key_in_the_file_is_named_with_line_and_neighbour(tmp_path):
    file = tmp_path / "r1d.yaml"
    file.write_text("scheduler:\n  max_batch_sise: 4\n")
    refused("serve", "--config", file, "--check-config",
            saying=["r1d.yaml", "2", "scheduler.max_batch_sise", "max_batch_size"])


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    file = tmp_path / "r1d.yaml"
    file.write_text("scheduler: [\n")
    refused("serve", "--config", file, "--check-config", saying=["r1d.yaml"])


def test_a_missing_config_file_is_named(tmp_path):
    refused("serve", "--config", tmp_path / "none.yaml", "--check-config", saying=["none.yaml"])


def test_a_good_configuration_is_checked_and_printed_whole(tmp_path):
    file = tmp_path / "r1d.yaml"
    file.write_text(f"model:\n  path: {MODEL}\nscheduler:\n  max_batch_size: 4\n  block_size: 32\n")
    checked = r1d.run("serve", "--config", file, "--check-config")
    assert checked.returncode == 0, checked.stderr
    printed = r1d.run("serve", "--config", file, "--max-batch-size", 5, "--print-config")
    assert printed.returncode == 0, printed.stderr
    assert "max_batch_size: 5" in printed.stdout  # the flag comes before the file,
    assert "block_size: 32" in printed.stdout  # the file before the default
    again = tmp_path / "again.yaml"
    again.write_text(printed.stdout)
    assert r1d.run("serve", "--config", again, "--print-config").stdout == printed.stdout


def test_the_environment_stands_between_flags_and_file(tmp_path, monkeypatch):
    file = tmp_path / "r1d.yaml"
    file.write_text(f"model:\n  path: {MODEL}\nscheduler:\n  max_batch_size: 4\n")
    monkeypatch.setenv("R1D_SCHEDULER__MAX_BATCH_SIZE", "6")
    assert "max_batch_size: 6" in r1d.run("serve", "--config", file, "--print-config").stdout
    printed = r1d.run("serve", "--config", file, "--max-batch-size", 7, "--print-config")
    assert "max_batch_size: 7" in printed.stdout


def test_inspect_tells_the_shape_and_what_a_rank_needs():
    answer = r1d.run("inspect", MODEL, "--world-size", 2)
    assert answer.returncode == 0, answer.stderr
    for words in ("DeepseekV3ForCausalLM", "bf16", "world size 2"):
        assert words.lower() in answer.stdout.lower(), answer.stdout
    assert "960" in answer.stdout, answer.stdout  # (64 + 16) values of 4 bytes, 3 layers


def test_inspect_refuses_what_cannot_be_cut():
    answer = refused("inspect", MODEL, "--world-size", 8, saying=["8"])
    assert "4" in answer.stderr  # heads


def test_make_checkpoint_writes_a_model_that_loads_and_leaves_other_directories_alone(tmp_path):
    config = GOLDEN / "v3-r1heads-fp8" / "config.json"
    made = r1d.run("make-checkpoint", tmp_path / "made", "--model-config", config, "--layers", 3,
                   "--dense-layers", 2, "--experts", 8, "--shard-size", "1MB")
    assert made.returncode == 0, made.stderr
    inspected = r1d.run("inspect", tmp_path / "made").stdout
    for words in ("3: 2 dense, 1 MoE", "8 routed", "F8_E4M3"):
        assert words in inspected, inspected
    refused("make-checkpoint", tmp_path / "made", "--model-config", config, saying=[tmp_path / "made", "not empty"])
    refused("make-checkpoint", tmp_path / "odd", "--model-config", config, "--experts", 7, saying=["n_routed_experts"])
    refused("make-checkpoint", tmp_path / "odd", "--model-config", tmp_path / "none", saying=[tmp_path / "none"])
    assert not (tmp_path / "odd").exists()


R1 = ("--model-config", GOLDEN.parents[2] / "configs" / "models" / "deepseek-r1.json")


def test_plan_prints_what_a_rank_takes_and_what_fits_beside_it():
    answer = r1d.run("plan", *R1, "--gpu", "h200", "--world-size", 8, "--max-model-len", 32768)
    assert answer.returncode == 0, answer.stderr
    for words in ("81.76 GB", "70,272 bytes", "of 32,768 tokens", "slices of all experts", "whole experts"):
        assert words in answer.stdout, answer.stdout
    answer = r1d.run("plan", MODEL, "--gpu", "cpu", "--max-num-batched-tokens", 64, "--json")
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["fits"] and told["kv_cache"]["bytes_per_token"] == 960, told


def test_plan_refuses_with_the_sum():
    words = ["does not fit: a rank of 8 takes", "experts 81.76 GB", "h100-80gb has", "engine.world_size 16"]
    refused("plan", *R1, "--gpu", "h100-80gb", "--world-size", 8, saying=words)
    answer = refused("plan", *R1, "--gpu", "h100-80gb", "--world-size", 8, "--json", saying=words)
    told = json.loads(answer.stdout)
    assert not told["fits"] and words[0] in told["reason"]
    refused("plan", *R1, "--gpu", "h200", "--world-size", 3, saying=["num_attention_heads 128", "3 ranks"])
    refused("plan", *R1, "--gpu", "h300", saying=["h300", "h200"])
    refused("plan", *R1, "--gpu", "h200", "--kv-cache-dtype", "f32", saying=["engine.kv_cache_dtype"])


def test_the_daemon_refuses_what_the_plan_refuses_in_the_same_words():
    words = ["the model does not fit: a rank of 1 takes", "KV cache at least", "to spare"]
    limits = ("--max-model-len", 256, "--kv-cache-memory", "16384Gi")
    refused("plan", MODEL, "--gpu", "cpu", *limits, saying=words)
    refused("serve", "--model", MODEL, "--device", "cpu", *limits, *ANY_PORTS, saying=words)


def test_the_daemon_tells_its_plan_and_what_it_took(start):
    daemon = start("--world-size", 2).wait_ready()
    for words in ("memory plan: attention ", "latent cache ", "memory in use: "):
        assert words in daemon.log, daemon.log
    metrics = daemon.metrics()
    kinds = ("latent_cache", "activations", "workspaces", "collectives")
    for rank in ("0", "1"):
        for kind in kinds:
            planned = metrics.value("r1d_memory_planned_bytes", kind=kind)
            assert planned > 0 and metrics.value("r1d_memory_used_bytes", rank=rank, kind=kind) == planned, kind
    weights = ("attention", "experts", "shared_experts", "dense", "routers", "embeddings", "norms")
    planned = sum(metrics.value("r1d_memory_planned_bytes", kind=kind) for kind in weights)
    assert metrics.value("r1d_memory_used_bytes", rank="0", kind="weights") == planned
    assert metrics.value("r1d_memory_measured_bytes") > 0


def test_help_lists_the_subcommands_and_version_tells_one():
    answer = r1d.run("--help")
    assert answer.returncode == 0
    for command in ("serve", "inspect", "plan", "golden", "generate", "version"):
        assert command in answer.stdout
    version = r1d.run("version")
    assert version.returncode == 0
    assert (GOLDEN.parents[2] / "VERSION").read_text().strip() in version.stdout
    serve = r1d.run("serve", "--help")
    assert serve.returncode == 0
    for flag in ("--model", "--max-batch-size", "--kv-cache-memory", "--drain-timeout"):
        assert flag in serve.stdout
