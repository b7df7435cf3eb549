# SPDX-License-Identifier: Apache-2.0
"""What the daemon writes to standard error, what it does when nobody reads that, and what never gets there."""

import fcntl
import json
import os
import pathlib
import re
import socket

import grpc
import pytest

from client import failure, fields
from grpc_call import error_details

NANO = pathlib.Path(__file__).resolve().parents[2] / "models" / "r1-nano"
SERVICE = "r1d.v1.InferenceService"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
# Put wherever a client may write something; part of no word of ours.
CANARY = "quokka"


def records_of(text):
    """The records of a JSON log; every line must be one."""
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["timestamp"]), record
        assert record["level"] in ("trace", "debug", "info", "warn", "error"), record
        assert record["stage"] and record["message"], record
        assert set(record) <= {"timestamp", "level", "stage", "message", "trace_id", "context"}, record
    return records


def call(daemon, channel, name, request, **options):
    """(responses, call) of a method that streams or not."""
    method = daemon.method(f"{SERVICE}/{name}")
    answer = method.on(channel)
    message = method.request(request)
    if method.server_streaming:
        stream = answer(message, **options)
        return list(stream), stream
    response, info = answer.with_call(message, **options)
    return [response], info


def test_a_log_that_is_no_terminal_is_json_and_follows_the_clients_trace(start):
    daemon = start().wait_ready()
    with daemon.channel() as channel:
        _, info = call(daemon, channel, "Generate", fields([3, 4, 5], 4), metadata=[("traceparent", PARENT)])
    metadata = dict(info.initial_metadata())
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", metadata["traceparent"])
    assert daemon.stop() == 0
    records = records_of(daemon.log)
    (finished,) = [record for record in records if record["message"] == "request finished"]
    assert finished["trace_id"] == TRACE
    context = finished["context"]
    assert (context["method"], context["status"]) == ("Generate", "OK")
    assert context["request_id"] == metadata["x-request-id"]
    assert (context["input_length"], context["output_length"], context["finish_reason"]) == (3, 4, "length")
    assert 0 <= context["queue_ms"] <= context["ttft_ms"] <= context["total_ms"]
    assert all("trace_id" not in record for record in records if record["message"].startswith("ready"))


def test_text_and_levels_and_the_access_record_are_choices(start):
    quiet = start("--log-format", "text", "--log-requests", "false").wait_ready()
    with quiet.channel() as channel:
        call(quiet, channel, "GenerateOnce", fields([3, 4, 5], 1))
    assert quiet.stop() == 0
    lines = quiet.log.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info  \w+: ", line) for line in lines), quiet.log
    assert "ready: " in quiet.log and "request finished" not in quiet.log
    silent = start("--log-level", "warn").wait_ready()
    assert silent.stop() == 0
    assert silent.log == ""


def test_a_log_that_nobody_reads_holds_nobody_up(start):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with open(reading, "rb") as unread, open(writing, "wb") as output:
        daemon = start("--log-level", "trace", output=output).wait_ready()
        with daemon.channel() as channel:
            for _ in range(20):  # at least twenty records each
                responses, _ = call(daemon, channel, "Generate", fields([3, 4, 5], 20))
                assert len(responses) > 0
        assert daemon.get("/livez")[0] == 200
        assert daemon.stop() == 0  # and its end does not wait for a reader either
        output.close()
        written = unread.read()
    assert len(written) > 3000  # the pipe took no further record: what is above was tried
    records_of(written[: written.rindex(b"\n")].decode())


def bad_requests():
    """(method, request) that are refused for what they hold."""
    ask = {"role": "user", "content": f"{CANARY} question"}
    tool = {"name": f"{CANARY}_tool", "description": f"{CANARY} description"}
    prompt = {"prompt": {"text": f"{CANARY} prompt"}}
    for request in (
        {"messages": [{"role": f"{CANARY} role", "content": "x"}]},
        {"messages": [{"role": f"{CANARY}\n\x1b[2J", "content": "x"}]},
        {"messages": [ask], "tools": [tool | {"parameters": f'{{"{CANARY}": '}]},
        {"messages": [ask], "tools": [tool | {"parameters": f'"{CANARY}"'}]},
        {"messages": [ask], "tools": [tool | {"parameters": f'{{"{CANARY}": 1, "{CANARY}": 2}}'}]},
        {"messages": [ask], "tools": [tool | {"parameters": json.dumps({CANARY * 1000: 1})}]},
        {"messages": [ask], "template_variables": CANARY},
        {"messages": [ask], "template_variables": f'["{CANARY}"]'},
        {"messages": [ask], "thinking_budget": -1},
        {"messages": [ask, {"role": "user", "tool_calls": [{"name": CANARY, "arguments": f"[{CANARY}"}]}]},
        {"messages": [ask], "model": f"{CANARY} model"},
        {"messages": [ask], "request_id": f"{CANARY} \u2603"},
        {"messages": [ask], "request_id": CANARY * 30},
        {"messages": [ask], "cache_salt": f"{CANARY}\n"},
        {"messages": [ask], "sampling": {"stop": [CANARY] * 100}},
        {"messages": [ask], "sampling": {"stop": [CANARY * 1000]}},
    ):
        yield "Chat", request
        yield "ChatOnce", request
        yield "Tokenize", {"chat": request}
    for request in (
        prompt | {"sampling": {"top_p": 7}},
        prompt | {"sampling": {"stop": [CANARY, ""]}},
        prompt | {"request_id": f"{CANARY}\t"},
        prompt | {"model": CANARY},
        {"prompt": {"text": CANARY * 20000}},
    ):
        yield "Generate", request
        yield "GenerateOnce", request


def good_requests():
    sampling = {"temperature": 0, "max_tokens": 40, "stop": [f"{CANARY} stop"]}
    messages = [
        {"role": "system", "content": f"{CANARY} system"},
        {"role": "user", "content": f"{CANARY} <think> What is 12 + 7?"},
    ]
    tool = {"name": f"{CANARY}_tool", "description": CANARY, "parameters": json.dumps({CANARY: CANARY})}
    variables = json.dumps({f"{CANARY}_variable": CANARY})
    yield "Chat", {"messages": messages, "sampling": sampling, "tools": [tool], "cache_salt": CANARY}
    yield "ChatOnce", {"messages": messages, "sampling": sampling, "template_variables": variables}
    yield "Generate", {"prompt": {"text": f"{CANARY} prompt"}, "sampling": sampling}
    yield "Tokenize", {"text": f"{CANARY} text"}


def metadata():
    return [
        ("traceparent", f"00-{CANARY}"),
        ("tracestate", f"{CANARY}=1"),
        ("x-request-id", CANARY * 30),
        (f"x-{CANARY}", CANARY),
        ("x-binary-bin", CANARY.encode() + b"\xff"),
        ("authorization", f"Bearer {CANARY}"),
    ]


def everything_an_error_says(error):
    trailers = [(key, value) for key, value in error.trailing_metadata() or ()]
    return f"{error.details()} {error_details(error)} {trailers}"


def send_raw(port, *pieces):
    """Bytes to a port, and whatever comes back until it is closed or silent."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass
    return answer.decode(errors="replace")


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def raw_garbage():
    """Bytes that are no call, for the gRPC port."""
    word = CANARY.encode()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    pair = b"\x00" + bytes([len(word)]) + word + bytes([len(word)]) + word  # a literal header field
    yield (b"GET /" + word + b" HTTP/1.1\r\nHost: " + word + b"\r\n\r\n",)
    yield (preface, frame(1, 5, 1, pair))  # no method, no path
    yield (preface, frame(1, 5, 1, pair[:-2]))  # cut short
    yield (preface, frame(1, 5, 1, b"\x82\x86\x44" + bytes([len(word) + 1]) + b"/" + word + pair * 1000))
    yield (preface, frame(0, 1, 1, word))  # data of no stream


def invalid_utf8(daemon, channel):
    """A message whose text is not UTF-8, which no generated code would send."""
    method = daemon.method(f"{SERVICE}/GenerateOnce")
    message = method.request({"prompt": {"text": f"{CANARY}~~"}}).SerializeToString().replace(b"~~", b"\xff\xfe")
    return channel.unary_unary(method.path)(message)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_what_clients_write_shows_up_nowhere(start, log_format):
    daemon = start("--log-level", "trace", "--log-format", log_format, model=NANO).wait_ready()
    options = [("grpc.primary_user_agent", CANARY)]
    said = []  # to clients, other than answers
    outputs = []
    num_refused = 0
    with grpc.insecure_channel(daemon.address, options=options) as channel:
        for name, request in good_requests():
            responses, info = call(daemon, channel, name, request, metadata=metadata())
            said += [info.initial_metadata(), info.trailing_metadata()]
            for response in responses:
                choices = getattr(response, "choices", [])
                outputs += [text for choice in choices for text in (choice.message.reasoning, choice.message.content)]
        for name, request in bad_requests():
            try:
                call(daemon, channel, name, request, metadata=metadata())
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), (name, request)
                said.append(everything_an_error_says(error))
                num_refused += 1
            else:
                assert name == "Tokenize", (name, request)  # which does not look at all of it
        for path in (f"/{SERVICE}/{CANARY}", f"/{CANARY}.Service/Method"):
            said.append(everything_an_error_says(failure(lambda p=path: channel.unary_unary(p)(b""))))
        said.append(everything_an_error_says(failure(lambda: invalid_utf8(daemon, channel))))
    for pieces in raw_garbage():
        said.append(send_raw(daemon.ports["grpc"], *pieces))
    word = CANARY.encode()
    said.append(send_raw(daemon.ports["management"], b"GET /" + word + b" HTTP/1.1\r\nHost: " + word + b"\r\n\r\n"))
    said.append(send_raw(daemon.ports["management"], word * 10 + b"\r\n\r\n"))

    with daemon.channel() as channel:  # somebody else
        said.append(everything_an_error_says(
            failure(lambda: call(daemon, channel, "GenerateOnce", {"prompt": {"text": "x"}, "sampling": {"n": 99}}))))
    metrics = daemon.get("/metrics")[1:]
    assert daemon.stop() == 0
    if log_format == "json":
        records = records_of(daemon.log)
        refused = [record for record in records if record.get("context", {}).get("status") not in (None, "OK")]
        assert len(refused) >= num_refused > 40
        assert all(re.fullmatch("[0-9a-f]{32}", record["trace_id"]) for record in refused)
    assert "request refused" in daemon.log and "request finished" in daemon.log
    for place, text in (("log", daemon.log), ("metrics", str(metrics)), *(("answer", str(text)) for text in said)):
        assert CANARY not in text.lower(), (place, [line for line in text.splitlines() if CANARY in line.lower()])
    spoken = [output for output in outputs if len(output) > 12]
    assert spoken and not any(output in daemon.log or json.dumps(output)[1:-1] in daemon.log for output in spoken)


def test_a_field_that_holds_a_label_is_logged_escaped(start):
    daemon = start("--log-format", "text").wait_ready()
    label = 'a" trace_id=0 \\'
    with daemon.channel() as channel:
        call(daemon, channel, "GenerateOnce", fields([3, 4, 5], 1) | {"request_id": label})
    assert daemon.stop() == 0
    assert 'client_request_id="a\\" trace_id=0 \\\\"' in daemon.log
