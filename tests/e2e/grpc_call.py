#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calls any gRPC method of a server that offers reflection, with JSON in and JSON out, a line a message.

    grpc_call.py ADDRESS                          lists the services
    grpc_call.py ADDRESS SERVICE/METHOD [JSON]    calls; JSON is the request, default {}

No generated code: the descriptors come from the server, as with grpcurl. Exit status: 0, or 1 when
the call ends with an error, which goes to standard error as CODE: message, then its details.
"""

import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2  # noqa: F401  registers the detail types for printing
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status


class Services:
    """What a server's reflection tells of its services. Threads: read-only once a method was found."""

    def __init__(self, channel):
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = descriptor_pool.DescriptorPool(self._database)

    def names(self):
        return sorted(self._database.get_services())

    def method(self, path):
        """`path` is SERVICE/METHOD; KeyError when the server has no such method."""
        service_name, _, method_name = path.partition("/")
        service = self._pool.FindServiceByName(service_name)
        if method_name not in service.methods_by_name:
            known = ", ".join(method.name for method in service.methods)
            raise KeyError(f"{service_name} has no method '{method_name}'; it has {known}")
        return Method(service.methods_by_name[method_name])


class Method:
    """One method: its request and response types, and callables on a channel, plain or aio."""

    def __init__(self, descriptor):
        self.path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        self.server_streaming = descriptor.server_streaming
        if descriptor.client_streaming:
            raise KeyError(f"{self.path} streams from the client, which this tool does not do")
        self._request_type = message_factory.GetMessageClass(descriptor.input_type)
        self._response_type = message_factory.GetMessageClass(descriptor.output_type)

    def request(self, fields):
        """A request message from a dictionary; json_format.ParseError names what does not fit."""
        return json_format.ParseDict(fields, self._request_type())

    def parse_request(self, text):
        return json_format.Parse(text, self._request_type())

    def on(self, channel):
        kind = channel.unary_stream if self.server_streaming else channel.unary_unary
        return kind(
            self.path,
            request_serializer=self._request_type.SerializeToString,
            response_deserializer=self._response_type.FromString,
        )

    def call(self, channel, request, **options):
        """The responses of a call on a plain channel, one after another."""
        answer = self.on(channel)(request, **options)
        return answer if self.server_streaming else iter([answer])


def to_line(message):
    return json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True)


def error_details(error):
    """The google.rpc details that came with an error, unpacked: BadRequest, RetryInfo, ..."""
    status = rpc_status.from_call(error)
    details = []
    for packed in status.details if status else []:
        name = packed.type_url.rpartition(".")[2]
        if detail_type := getattr(error_details_pb2, name, None):
            details.append(detail_type.FromString(packed.value))
    return details


def main(arguments):
    if not 1 <= len(arguments) <= 3 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    address, *call = arguments
    with grpc.insecure_channel(address) as channel:
        try:
            services = Services(channel)
            if not call:
                print("\n".join(services.names()))
                return 0
            method = services.method(call[0])
            request = method.parse_request(call[1] if len(call) > 1 else "{}")
            for response in method.call(channel, request):
                print(to_line(response), flush=True)
        except (KeyError, json_format.ParseError) as error:
            print(f"grpc_call.py: {error.args[0]}", file=sys.stderr)
            return 1
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            for detail in error_details(error):
                print(f"  {detail.DESCRIPTOR.name} {to_line(detail)}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
