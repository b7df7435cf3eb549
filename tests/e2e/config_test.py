# SPDX-License-Identifier: Apache-2.0
"""`r1d config`."""

import pathlib
import resource

import pytest

import daemon as r1d
from daemon import GOLDEN, SANITIZED

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "r1d.yaml"
MODEL = GOLDEN / "v3-generic-bf16"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("MODEL_PATH", "INFERENCE_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(tmp_path):
    """write(text) -> the path of a configuration file."""

    def write_one(text):
        path = tmp_path / "r1d.yaml"
        path.write_text(text)
        return path

    return write_one


def check(*arguments):
    """(exit status, everything that was printed) of `r1d config check`."""
    answer = r1d.run("config", "check", *arguments)
    return answer.returncode, answer.stdout + answer.stderr


def test_the_example_is_good_and_says_what_it_leaves_open():
    status, text = check(EXAMPLE)
    assert status == 0, text
    assert f"{EXAMPLE}: ok" in text
    assert "--model DIR" in text
    status, text = check(EXAMPLE, "--model", MODEL)
    assert status == 0 and text == f"{EXAMPLE}: ok\n"


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("scheduler:\n  max_batch_sise: 4\n", [":2: ", "scheduler.max_batch_sise", "scheduler.max_batch_size?"]),
        ("engine:\n\n  world_size: two\n", [":3: ", "engine.world_size", "whole number", "two"]),
        ("max_tokns: 4\n", [":1: ", "scheduler.max_tokens?"]),
        ("scheduler:\n  max_tokens: 64\n  max_num_batched_tokens: 65\n", [":3: ", "disagree", ":2"]),
        ("scheduler:\n  max_tokens: 63\n", [":2: ", "max_num_batched_tokens", "max_batch_size", "(default)"]),
        ("model:\n  load_format: dummy\n", [":2: ", "model.config_file", "model.load_format"]),
        ("engine:\n  device: cuda\n  kv_cache_dtype: f32\n", [":3: ", "engine.device", "r1d.yaml:2)"]),
        ("server:\n  grpc_address: 0.0.0.0:8081\n", [":2: ", "server.management_address"]),
    ],
)
def test_a_bad_file_is_refused_with_its_line(write, text, saying):
    path = write(text)
    status, printed = check(path)
    assert status == 1, printed
    assert len(printed.splitlines()) == 1, printed
    for words in [str(path), *saying]:
        assert words in printed, printed


def test_every_error_is_told_a_line_each_and_in_order(write, monkeypatch):
    path = write(
        "engine:\n  world_size: two\nlog:\n  colour: red\n  level: loud\nscheduler:\n  block_size: [16]\n"
        "server:\n  grpc_address: 0.0.0.0:8081\n"
    )
    monkeypatch.setenv("R1D_ENGINE__WORD_SIZE", "2")
    answers = {check(path, "--max-batch-size", "many") for _ in range(3)}
    assert len(answers) == 1, answers
    status, printed = answers.pop()
    assert status == 1
    expected = [
        (f"r1d: {path}:2: engine.world_size: ", "expected a whole number"),
        (f"r1d: {path}:4: unknown key", "did you mean log."),
        (f"r1d: {path}:5: log.level: ", "expected one of trace, debug, info"),
        (f"r1d: {path}:7: scheduler.block_size: ", "found a list"),
        ("r1d: unknown environment variable", "R1D_ENGINE__WORLD_SIZE?"),
        ("r1d: flag --max-batch-size: ", "expected a whole number"),
        (f"r1d: {path}:9: server.management_address: ", "another address"),
    ]
    lines = printed.splitlines()
    assert len(lines) == len(expected), printed
    for line, (begin, words) in zip(lines, expected):
        assert line.startswith(begin) and words in line, printed


def test_a_text_that_stops_being_yaml_is_judged_as_far_as_it_goes(write):
    path = write("log:\n  level: [\n")
    status, printed = check(path)
    assert status == 1
    lines = printed.splitlines()
    assert len(lines) == 2, printed
    assert f"{path}:2: log.level: expected a plain value" in lines[0] and "not YAML" in lines[1], printed


def test_wrong_usage_has_a_status_of_its_own(tmp_path):
    assert check()[0] == 2
    assert check(EXAMPLE, "--max-batch-sise", 4)[0] == 2
    status, text = check(tmp_path / "none.yaml")
    assert status == 1 and "none.yaml" in text


def test_a_check_takes_no_time_and_opens_no_model(write, tmp_path):
    path = write(f"model:\n  path: {tmp_path}/none\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, text = check(path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert status == 0, text
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"r1d config check: {seconds * 1e3:.0f} ms of CPU time")
    assert seconds < (2 if SANITIZED else 0.2)


def test_show_says_where_each_value_came_from(write, monkeypatch):
    path = write("model:\n  name: ours\nscheduler:\n  max_tokens: 4096\n")
    monkeypatch.setenv("MODEL_PATH", str(MODEL))
    monkeypatch.setenv("INFERENCE_MODE", "tensor_parallel")
    monkeypatch.setenv("R1D_LOG__LEVEL", "warn")
    shown = r1d.run("config", "show", path, "--max-batch-size", 5)
    assert shown.returncode == 0, shown.stderr
    lines = [line.strip() for line in shown.stdout.splitlines()]
    for line in (
        f'path: "{MODEL}"  # environment MODEL_PATH',
        f'name: "ours"  # {path}:2',
        "inference_mode: tensor_parallel  # environment INFERENCE_MODE",
        "max_batch_size: 5  # flag --max-batch-size",
        f"max_num_batched_tokens: 4096  # {path}:4",
        "level: warn  # environment R1D_LOG__LEVEL",
        "block_size: 64  # default",
    ):
        assert line in lines, shown.stdout
    again = r1d.run("config", "show", write(shown.stdout))
    values = [line.split("  #")[0] for line in shown.stdout.splitlines()]
    assert [line.split("  #")[0] for line in again.stdout.splitlines()] == values


def test_another_inference_mode_is_refused_naming_the_one_there_is(monkeypatch):
    monkeypatch.setenv("INFERENCE_MODE", "pipeline_parallel")
    answer = r1d.run("serve", "--model", MODEL, "--check-config")
    assert answer.returncode == 1
    for words in ("INFERENCE_MODE", "pipeline_parallel", "expected tensor_parallel"):
        assert words in answer.stderr, answer.stderr


def test_a_flag_given_empty_overrides_the_file(write):
    path = write("model:\n  name: ours\n")
    shown = r1d.run("config", "show", path, "--model-name", "")
    assert '  name: ""  # flag --model-name' in shown.stdout, shown.stdout
