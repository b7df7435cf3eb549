# SPDX-License-Identifier: Apache-2.0
"""What the tests ask of a daemon."""

import concurrent.futures

import grpc


def fields(ids, max_tokens, **sampling):
    """A GenerateRequest: greedy, of exactly `max_tokens` tokens, unless `sampling` says otherwise."""
    exactly = {"temperature": 0, "ignore_eos": True, "max_tokens": max_tokens}
    return {"prompt": {"token_ids": {"ids": list(ids)}}, "sampling": exactly | sampling}


def tokens_of(responses):
    return [token for response in responses for token in response.token_ids]


def failure(call):
    """The RpcError that `call()` ends with."""
    try:
        result = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"the call went well: {result}")


class Streams:
    """Streams that are read on threads of their own, so that a test can act in their middle."""

    def __init__(self, channel, method, requests):
        self._pool = concurrent.futures.ThreadPoolExecutor(len(requests))
        self._calls = [method.on(channel)(method.request(request)) for request in requests]
        self._firsts = [self._pool.submit(next, call) for call in self._calls]
        for first in self._firsts:
            first.result()  # every stream has begun
        self._rests = [self._pool.submit(self._read, call) for call in self._calls]

    @staticmethod
    def _read(call):
        responses = []
        try:
            for response in call:
                responses.append(response)
        except grpc.RpcError:
            pass  # the call keeps its code
        return responses

    def results(self):
        """(status code, responses) of each stream, once it has ended."""
        results = [
            (call.code(), [first.result(), *rest.result()])
            for call, first, rest in zip(self._calls, self._firsts, self._rests)
        ]
        self._pool.shutdown()
        return results
