# SPDX-License-Identifier: Apache-2.0
"""Connections that a test can cut."""

import asyncio
import contextlib

import grpc


@contextlib.asynccontextmanager
async def breakable(address):
    """A channel and a function that cuts its connection as a pulled cable would: no goodbye."""
    host, port = address.split(":")
    sockets = []

    async def copy(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.transport.abort()

    async def relay(reader, writer):
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(host, port)
            sockets.extend((writer, far_writer))
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    def cut():
        server.close()
        for writer in sockets:
            writer.transport.abort()  # with data unread or unsent: a reset

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    relay_port = server.sockets[0].getsockname()[1]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{relay_port}") as channel:
        yield channel, cut
    cut()
