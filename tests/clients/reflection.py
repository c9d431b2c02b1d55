"""Destroys collections over gRPC, knowing nothing of the service but its name: reflection.py ADDRESS [ID USER]...

Prints a line for each of two health checks and for each destroy: gRPC status, what became of it (destroyed, or the
reason in google.rpc.ErrorInfo), and what the client shows. `run` compares the lines
with what it expects.
"""

import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

SERVICE = "collections.v1.CollectionsService"
WAIT = 10


def line(status, code, shown):
    print(status, code, str(shown).strip().replace("\n", "\\n"), sep="\t")


def reason(error):
    """The reason in the details that came with a status (grpc-status-details-bin), or `-`."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return "-"


with grpc.insecure_channel(sys.argv[1]) as channel:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
        line(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), "-", answer)

    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services(), "reflection does not list the service"
    method = DescriptorPool(database).FindServiceByName(SERVICE).FindMethodByName("Destroy")
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    destroy = channel.unary_unary(f"/{SERVICE}/Destroy", request.SerializeToString, response.FromString)

    for id, user in zip(sys.argv[2::2], sys.argv[3::2]):
        metadata = [("x-user-id", user)] if user else []
        try:
            answer = destroy(request(id=id), metadata=metadata, timeout=WAIT)
            line("OK", "destroyed" if answer.destroyed else "-", answer)
        except grpc.RpcError as error:
            line(error.code().name, reason(error), f"{type(error).__name__}: {error.details()}")
