# SPDX-License-Identifier: Apache-2.0
"""The gRPC API, as a client meets it."""

import json
import pathlib
import subprocess
import sys

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

import daemon as r1d
from client import Streams, failure, fields, tokens_of
from daemon import GENERATE, certain_tokens, golden_cases
from grpc_call import error_details

CASES = golden_cases("v3-generic-bf16")
SERVICE = "r1d.v1.InferenceService"


def grpc_call(*arguments):
    script = pathlib.Path(__file__).with_name("grpc_call.py")
    return subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True, text=True, timeout=r1d.PATIENCE_S, check=False,
    )


def generate(served, channel, request):
    method = served.method()
    return list(method.call(channel, method.request(request), timeout=r1d.PATIENCE_S))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"prompt of {len(case['prompt'])}")
def test_a_stock_client_streams_the_golden_tokens(served, case):
    certain = certain_tokens(case)
    request = fields(case["prompt"], len(case["greedy"]))
    answer = grpc_call(served.address, GENERATE, json.dumps(request))
    assert answer.returncode == 0, answer.stderr
    messages = [json.loads(line) for line in answer.stdout.splitlines()]
    tokens = [token for message in messages for token in message.get("token_ids", [])]
    assert tokens[: len(certain)] == certain
    assert len(tokens) == len(case["greedy"])
    assert messages[-1]["finish"]["reason"] == "FINISH_REASON_LENGTH"
    assert messages[-1]["finish"]["usage"]["prompt_tokens"] == len(case["prompt"])
    assert messages[-1]["finish"]["usage"]["output_tokens"] == len(tokens)
    assert messages[0]["request_id"]


def test_the_command_line_client_prints_the_golden_tokens(served):
    case = CASES[1]
    certain = certain_tokens(case)
    answer = r1d.run("generate", "--address", served.address,
                     "--token-ids", ",".join(map(str, case["prompt"])), "--max-tokens", len(certain))
    assert answer.returncode == 0, answer.stderr
    printed = [int(word) for word in answer.stdout.replace(",", " ").split() if word.isdigit()]
    assert printed[: len(certain)] == certain


def test_reflection_lists_every_service(served):
    answer = grpc_call(served.address)
    assert answer.returncode == 0, answer.stderr
    assert {SERVICE, "grpc.health.v1.Health"} <= set(answer.stdout.split())


def test_one_answer_carries_what_the_stream_does(served, channel):
    request = fields(CASES[1]["prompt"], 12, logprobs=2)
    streamed = generate(served, channel, request)
    once = served.method(f"{SERVICE}/GenerateOnce")
    (answer,) = once.call(channel, once.request(request), timeout=r1d.PATIENCE_S)
    (choice,) = answer.choices
    assert list(choice.token_ids) == tokens_of(streamed)
    logprobs = [entry for response in streamed for entry in response.logprobs]
    assert [entry.token_id for entry in logprobs] == list(choice.token_ids)
    assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in logprobs)
    assert all(entry.top[0].token_id == entry.token_id for entry in logprobs)  # greedy
    assert answer.usage.output_tokens == 12


def test_the_same_seed_gives_the_same_tokens(served, channel):
    request = fields(CASES[2]["prompt"], 24, temperature=1, seed=7)
    other = fields(CASES[2]["prompt"], 24, temperature=1, seed=8)
    first = tokens_of(generate(served, channel, request))
    assert first == tokens_of(generate(served, channel, request))
    assert first != tokens_of(generate(served, channel, other))


def test_several_sequences_of_a_prompt_are_told_apart(served, channel):
    responses = generate(served, channel, fields(CASES[1]["prompt"], 10, temperature=1, seed=3, n=3))
    for index in range(3):
        mine = [response for response in responses if response.index == index]
        assert len(tokens_of(mine)) == 10
        assert [response.HasField("finish") for response in mine] == [False] * (len(mine) - 1) + [True]


def test_a_stop_token_ends_the_sequence_and_is_not_among_the_output(served, channel):
    certain = certain_tokens(CASES[0])
    stop = next(token for token in certain if certain.index(token) >= 3)
    responses = generate(served, channel, fields(CASES[0]["prompt"], 32, stop_token_ids=[stop]))
    assert tokens_of(responses) == certain[: certain.index(stop)]
    assert responses[-1].finish.stop_token_id == stop


def test_the_model_and_the_server_say_what_they_are(served, channel):
    get_model = served.method(f"{SERVICE}/GetModel")
    (model,) = get_model.call(channel, get_model.request({}))
    assert (model.name, model.architecture) == ("v3-generic-bf16", "DeepseekV3ForCausalLM")
    assert (model.vocab_size, model.num_layers, model.max_model_len) == (512, 3, 4096)
    get_info = served.method(f"{SERVICE}/GetServerInfo")
    (info,) = get_info.call(channel, get_info.request({}))
    assert info.version == r1d.run("version").stdout.split()[1]
    assert info.limits.max_model_len == 4096


@pytest.mark.parametrize(
    ("field", "request_fields"),
    [
        ("prompt", {}),
        ("prompt.token_ids", fields([], 1)),
        ("prompt.token_ids.ids[1]", fields([5, 512], 1)),
        ("prompt.token_ids.ids[0]", fields([-1], 1)),
        ("prompt.token_ids", fields([7] * 4096, 1)),
        ("prompt.text", {"prompt": {"text": "hello"}}),
        ("sampling.temperature", fields([5], 1, temperature=2.5)),
        ("sampling.temperature", fields([5], 1, temperature="NaN")),
        ("sampling.top_p", fields([5], 1, top_p=0)),
        ("sampling.top_k", fields([5], 1, top_k=-1)),
        ("sampling.min_p", fields([5], 1, min_p=1)),
        ("sampling.repetition_penalty", fields([5], 1, repetition_penalty=0)),
        ("sampling.frequency_penalty", fields([5], 1, frequency_penalty=-3)),
        ("sampling.presence_penalty", fields([5], 1, presence_penalty=3)),
        ("sampling.logit_bias", fields([5], 1, logit_bias={"600": 1})),
        ("sampling.logprobs", fields([5], 1, logprobs=1000)),
        ("sampling.stop_token_ids[0]", fields([5], 1, stop_token_ids=[512])),
        ("sampling.min_tokens", fields([5], 4, min_tokens=5)),
        ("sampling.max_tokens", fields([5], 0)),
        ("sampling.n", fields([5], 1, n=0)),
        ("cache_salt", fields([5], 1) | {"cache_salt": "x" * 5000}),
        ("request_id", fields([5], 1) | {"request_id": "x" * 5000}),
        ("priority", fields([5], 1) | {"priority": 2**31 - 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_field_is_named(served, channel, field, request_fields):
    error = failure(lambda: generate(served, channel, request_fields))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    assert field in error.details()
    (bad,) = [d for d in error_details(error) if isinstance(d, error_details_pb2.BadRequest)]
    assert bad.field_violations[0].field.startswith(field)


def test_another_model_is_not_found(served, channel):
    error = failure(lambda: generate(served, channel, fields([5], 1) | {"model": "gpt"}))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "model" in error.details() and "v3-generic-bf16" in error.details()


def test_a_passed_deadline_ends_the_stream(served, channel):
    method = served.method()
    call = method.on(channel)(method.request(fields([5], 4000)), timeout=0.3)
    error = failure(lambda: list(call))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_compressed_and_oversized_messages_are_refused(served, channel):
    method = served.method()
    small, large = method.request(fields([5] * 1000, 1)), method.request(fields([], 1))
    large.prompt.token_ids.ids.extend([500] * 4_000_000)
    error = failure(lambda: list(method.call(channel, small, compression=grpc.Compression.Gzip)))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    error = failure(lambda: list(method.call(channel, large)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_full_queue_refuses_and_says_when_to_come_back(start):
    long = 500 if r1d.SANITIZED else 8000  # still running when the fourth request comes
    daemon = start("--max-batch-size", 1, "--max-waiting-requests", 2, "--max-model-len", 8192).wait_ready()
    method = daemon.method()
    with daemon.channel() as channel:
        running = Streams(channel, method, [fields([5], long)])
        waiting = [method.on(channel)(method.request(fields([6], 1))) for _ in range(2)]
        r1d.wait_until(lambda: daemon.metrics().value("r1d_requests_waiting") == 2, "two requests wait")
        error = failure(lambda: list(method.call(channel, method.request(fields([7], 1)))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        (retry,) = [d for d in error_details(error) if isinstance(d, error_details_pb2.RetryInfo)]
        assert retry.retry_delay.ToMilliseconds() > 0
        assert [len(tokens_of(call)) for call in waiting] == [1, 1]  # they were only late
        assert [code for code, _ in running.results()] == [grpc.StatusCode.OK]


def test_a_slow_reader_is_cut_and_stalls_nobody(start):
    # The buffer holds all that the others are sent: only the reader that never reads can overrun it.
    daemon = start("--stream-buffer-tokens", 256, "--max-model-len", 8192).wait_ready()
    method = daemon.method()
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(daemon.address, options=narrow) as slow, daemon.channel() as fast:
        unread = method.on(slow)(method.request(fields([5], 8000, logprobs=20)))
        others = Streams(fast, method, [fields([6], 200), fields([7], 200)])
        assert [code for code, _ in others.results()] == [grpc.StatusCode.OK] * 2
        r1d.wait_until(lambda: daemon.metrics().value("r1d_slow_consumers_total") == 1, "the reader is cut")
        r1d.wait_until(lambda: daemon.metrics().value("r1d_requests_running") == 0, "its sequence ends")
        assert failure(lambda: list(unread)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health_knows_the_services(served, channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    error = failure(lambda: health.Check(health_pb2.HealthCheckRequest(service="other")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="other"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
