# SPDX-License-Identifier: Apache-2.0
"""Raw HTTP/2 on a socket, right or wrong: what no gRPC library would send."""

import contextlib
import select
import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 0x1, 0x4


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header(name, value):
    """One header field: HPACK literal, neither indexed nor Huffman-coded. Lengths below 127."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers(path, **extra):
    fields = {
        b":method": b"POST", b":scheme": b"http", b":path": path.encode(), b":authority": b"r1d",
        b"content-type": b"application/grpc", b"te": b"trailers",
    } | {name.encode(): value for name, value in extra.items()}
    return b"".join(header(name, value) for name, value in fields.items())


def rst_stream(stream, code=8):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def window_update(stream, by):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", by))


class Client:
    """A connection to a daemon, past the handshake unless told otherwise."""

    def __init__(self, address, handshake=True, source="127.0.0.1"):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))
        self.sent_bytes = 0
        self._received = b""
        if handshake:
            self.send(PREFACE + frame(SETTINGS))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """False once the daemon has closed the connection."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        self.sent_bytes += len(data)
        return True

    def flood(self, pieces, limit_bytes, limit_s=60):
        """Sends `pieces` until the daemon closes; whether it did within the limits."""
        end = time.monotonic() + limit_s
        for piece in pieces:
            if not self.send(piece):
                return True
            self._drop_received()
            if self.sent_bytes > limit_bytes or time.monotonic() > end:
                return False
        return self.closed(end - time.monotonic())

    def closed(self, limit_s=30):
        """Reads on; whether the daemon closes the connection in time."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            self.socket.settimeout(max(end - time.monotonic(), 0.01))
            try:
                if not self.socket.recv(1 << 16):
                    return True
            except socket.timeout:
                return False
            except OSError:
                return True
        return False

    def stream_ends(self, stream, limit_s):
        """Reads on, answering pings; whether the daemon ends the stream, or the connection, in time."""
        end = time.monotonic() + limit_s
        while True:
            while (received_frame := self._next_frame()) is not None:
                kind, flags, of_stream, payload = received_frame
                if kind == PING and not flags & 1:
                    self.send(frame(PING, 1, 0, payload))
                ended = kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM)
                if of_stream == stream and ended:
                    return True
            self.socket.settimeout(max(end - time.monotonic(), 0.01))
            try:
                received = self.socket.recv(1 << 16)
            except socket.timeout:
                return False
            except OSError:
                return True
            if not received:
                return True
            self._received += received

    def _next_frame(self):
        """(type, flags, stream, payload), or None while it is not all there."""
        data = self._received
        size = 9 + int.from_bytes(data[:3], "big")
        if len(data) < 9 or len(data) < size:
            return None
        self._received = data[size:]
        return data[3], data[4], int.from_bytes(data[5:9], "big") & 0x7FFFFFFF, data[9:size]

    def _drop_received(self):
        with contextlib.suppress(OSError):
            while select.select([self.socket], [], [], 0)[0] and self.socket.recv(1 << 16):
                pass
