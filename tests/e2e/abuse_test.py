# SPDX-License-Identifier: Apache-2.0
"""Clients that attack the HTTP/2 layer: each is cut, the daemon stays small, a victim hears nothing of it."""

import contextlib
import itertools
import threading
import time

import grpc
import pytest

import http2
from client import failure, fields, tokens_of
from daemon import SANITIZED, wait_until

GENERATE_ONCE = "/r1d.v1.InferenceService/GenerateOnce"
# All attacks together. What gRPC alone took for the first three: 192 MB in 0.3 s, one core, 4 GB in 8 s.
RSS_GROWTH_BYTES = 64 << 20
VICTIM_TOKENS = 64
VICTIM_PROMPT = [5, 6, 7, 8]


class Victim:
    """An ordinary client on a connection of its own: one stream after another, each compared with the first."""

    def __init__(self, daemon):
        self._method = daemon.method()
        self._channel = daemon.channel()
        self._expected = self._stream()
        self._stop = threading.Event()
        self.num_streams, self.faults = 0, []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _stream(self):
        call = self._method.on(self._channel)(self._method.request(fields(VICTIM_PROMPT, VICTIM_TOKENS)), timeout=60)
        return tokens_of(call)

    def _run(self):
        while not self._stop.is_set():
            try:
                tokens = self._stream()
            except grpc.RpcError as error:
                self.faults.append(f"{error.code().name}: {error.details()}")
                return
            if tokens != self._expected:
                self.faults.append(f"{tokens} instead of {self._expected}")
            self.num_streams += 1

    def end(self):
        self._stop.set()
        self._thread.join()
        self._channel.close()
        assert not self.faults, self.faults
        assert self.num_streams > 0


class Memory:
    """The daemon's largest resident size while the block runs, looked at every 20 ms."""

    def __init__(self, daemon):
        self._daemon = daemon
        self._stop = threading.Event()
        self.before = self.largest = daemon.resident_bytes()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self._stop.wait(0.02):
            self.largest = max(self.largest, self._daemon.resident_bytes())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    @property
    def growth(self):
        return self.largest - self.before


def open_block(stream=1):
    return http2.frame(http2.HEADERS, 0, stream, http2.request_headers(GENERATE_ONCE))


def endless_continuation():
    yield open_block()
    for number in itertools.count():
        fields_ = b"".join(http2.header(b"x%d-%d" % (number, i), b"v" * 100) for i in range(10))
        yield http2.frame(http2.CONTINUATION, 0, 1, fields_)


def one_header_of_a_gigabyte():
    yield open_block()
    # A name, then a value whose length is announced as 2^30.
    yield http2.frame(http2.CONTINUATION, 0, 1, b"\x00\x01x" + b"\x7f\x81\xff\xff\xff\x03")
    while True:
        yield http2.frame(http2.CONTINUATION, 0, 1, b"v" * 16384)


def rapid_reset():
    block = http2.request_headers(GENERATE_ONCE)
    for stream in itertools.count(1, 2):
        yield http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block) + http2.rst_stream(stream)


def server_made_resets():
    """A window widened by nothing: gRPC resets the stream itself."""
    block = http2.request_headers(GENERATE_ONCE)
    for stream in itertools.count(1, 2):
        yield http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block) + http2.window_update(stream, 0)


def frames(*arguments):
    def flood():
        yield http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.request_headers(GENERATE_ONCE))
        while True:
            yield http2.frame(*arguments) * 100

    return flood


def wrong_order():
    yield open_block() + http2.frame(http2.PING, 0, 0, b"01234567")


# name -> (what is sent, why the daemon says it cut the connection)
FLOODS = {
    "endless CONTINUATION": (endless_continuation, "header_block"),
    "a header of a gigabyte": (one_header_of_a_gigabyte, "header_block"),
    "rapid reset": (rapid_reset, "reset_rate"),
    "resets by the server": (server_made_resets, "frame"),
    "SETTINGS": (frames(http2.SETTINGS, 0, 0, b"\x00\x04\x00\x01\x00\x00"), "control_rate"),
    "PING": (frames(http2.PING, 0, 0, b"01234567"), "control_rate"),
    "WINDOW_UPDATE": (frames(http2.WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x01"), "control_rate"),
    "PRIORITY": (frames(http2.PRIORITY, 0, 1, b"\x00\x00\x00\x00\x10"), "control_rate"),
    "empty DATA": (frames(http2.DATA, 0, 1), "control_rate"),
    "unknown frames": (frames(0xFA, 0, 0, b"grease"), "control_rate"),
    "PING within headers": (wrong_order, "frame"),
}


@pytest.fixture
def daemon(start):
    return start("--max-model-len", 4096).wait_ready()


@pytest.fixture
def victim(daemon):
    one = Victim(daemon)
    yield one
    one.end()


def refused(daemon, reason):
    return daemon.metrics().value("r1d_connections_refused_total", reason=reason)


def test_floods_are_cut_and_leave_no_memory_behind(daemon, victim):
    with Memory(daemon) as memory:
        for name, (flood, reason) in FLOODS.items():
            before = refused(daemon, reason)
            num_streams = victim.num_streams
            for _ in range(3):
                with http2.Client(daemon.address) as client:
                    assert client.flood(flood(), limit_bytes=64 << 20), f"{name}: not cut"
            assert refused(daemon, reason) == before + 3, name
            print(f"{name}: cut; victim {victim.num_streams - num_streams} streams")
    print(f"resident: {memory.before >> 20} MiB, at most {memory.growth >> 20} MiB more")
    if not SANITIZED:
        assert memory.growth <= RSS_GROWTH_BYTES


def test_many_attackers_at_once(daemon, victim):
    def attack(number):
        flood, _ = list(FLOODS.values())[number % len(FLOODS)]
        for _ in range(5):
            with http2.Client(daemon.address, source="127.0.0.2") as client:
                cut.append(client.flood(flood(), limit_bytes=64 << 20))

    cut = []
    threads = [threading.Thread(target=attack, args=(i,)) for i in range(10)]
    with Memory(daemon) as memory:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert cut == [True] * 50
    print(f"resident: {memory.before >> 20} MiB, at most {memory.growth >> 20} MiB more")
    if not SANITIZED:
        assert memory.growth <= RSS_GROWTH_BYTES


def test_a_compressed_message_is_refused_before_it_is_inflated(daemon, victim):
    bomb = bytes(200 << 20)  # 200 KB on the wire
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with Memory(daemon) as memory, daemon.channel() as channel:
            call = channel.unary_unary(GENERATE_ONCE)
            error = failure(lambda: call(bomb, compression=compression, timeout=60))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error
        if not SANITIZED:
            assert memory.growth <= 16 << 20, memory.growth


def test_headers_that_unpack_to_much_stay_small(daemon, victim):
    """Each request repeats a long entry of the HPACK table a thousand times."""
    entry = b"\x40\x01x" + b"\x7f" + b"\xa1\x1e" + b"v" * 4000  # 127 + 33 + 30 * 128 = 4000
    block = http2.request_headers(GENERATE_ONCE) + entry + b"\xbe" * 8000
    with Memory(daemon) as memory:
        for _ in range(20):
            with http2.Client(daemon.address) as client:
                for stream in range(1, 101, 2):
                    if not client.send(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)):
                        break
    if not SANITIZED:
        assert memory.growth <= RSS_GROWTH_BYTES


def test_slow_clients_do_not_stay(daemon, victim):
    beginnings = [b"", http2.PREFACE[:10], http2.PREFACE, http2.PREFACE + http2.frame(http2.SETTINGS)[:5]]
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(100):
            client = stack.enter_context(http2.Client(daemon.address, handshake=False))
            client.send(beginnings[number % len(beginnings)])
            clients.append(client)
        slow = stack.enter_context(http2.Client(daemon.address))
        slow.send(open_block())
        wait_until(lambda: daemon.metrics().value("r1d_connections", state="handshake") >= 100, "100 handshakes are open")
        assert all(client.closed() for client in [*clients, slow])
    assert time.monotonic() - begin < 30
    assert refused(daemon, "timeout") >= 101


def test_one_address_cannot_take_every_connection(daemon, victim):
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(http2.Client(daemon.address, source="127.0.0.2"))
        with http2.Client(daemon.address, source="127.0.0.3") as other:
            other.send(http2.frame(http2.PING, 0, 0, b"01234567"))
            assert not other.closed(limit_s=0.5)
        wait_until(lambda: refused(daemon, "address_limit") >= 600 - 512, "the last of them turned away")


def test_requests_with_strange_headers_do_no_harm(daemon, victim):
    strange = [
        http2.request_headers(GENERATE_ONCE, te=b"deflate"),
        http2.request_headers(GENERATE_ONCE).replace(b"\x04http", b"\x04http" + http2.header(b":scheme", b"http")),
        http2.request_headers(GENERATE_ONCE).replace(b"POST", b"BREW"),
        http2.header(b":path", b"/"),
        http2.header(b":status", b"200"),
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ]
    for block in strange:
        with http2.Client(daemon.address) as client:
            client.send(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, block))
            client.send(http2.frame(http2.PING, 0, 0, b"01234567"))
            client.closed(limit_s=0.3)
    assert daemon.get("/livez")[0] == 200
