r"""Destroys a collection over gRPC. Run it from the root of the repository:

    python3 -m venv target/venv && target/venv/bin/pip install grpcio grpcio-tools
    mkdir -p target/python
    target/venv/bin/python -m grpc_tools.protoc -I proto/collections/v1 --python_out=target/python \
        --grpc_python_out=target/python collections.proto
    PYTHONPATH=target/python target/venv/bin/python examples/destroy.py ADDRESS USER ID

ADDRESS is a gRPC target: 127.0.0.1:50051 for `collections-service dev`, or dns:///NAME:PORT for all addresses of a name.
For mutual TLS set TLS_CA, TLS_CERT and TLS_KEY to PEM files. To repeat an operation whose outcome is unknown, set
REQUEST_ID to the one that was printed.

Exit codes: 0 destroyed, 3 not found, 4 not permitted, 5 outcome unknown, 2 wrong arguments, 1 any other error.
"""

import os
import sys
import uuid
from pathlib import Path

import grpc

# Generated from proto/collections/v1, not from proto: Python has a package named `collections` of its own.
import collections_pb2
import collections_pb2_grpc

DEADLINE = 5  # seconds, for all attempts together

# Health-checked round robin, and retries of UNAVAILABLE. gRPC carries both out.
SERVICE_CONFIG = Path(__file__).parent.parent / "deploy" / "service-config.json"


def connect(address):
    options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
    if "TLS_CA" not in os.environ:
        return grpc.insecure_channel(address, options)
    ca, key, certificate = (Path(os.environ[name]).read_bytes() for name in ("TLS_CA", "TLS_KEY", "TLS_CERT"))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options)


def main():
    if len(sys.argv) != 4:
        print("usage: destroy.py ADDRESS USER ID", file=sys.stderr)
        return 2
    address, user, collection = sys.argv[1:]

    # One for the operation, the same in every attempt: without it, a retry after a lost answer gets NOT_FOUND.
    request_id = os.environ.get("REQUEST_ID") or str(uuid.uuid4())
    request = collections_pb2.DestroyRequest(id=collection, request_id=request_id)

    with connect(address) as channel:
        stub = collections_pb2_grpc.CollectionsServiceStub(channel)
        try:
            stub.Destroy(request, timeout=DEADLINE, metadata=[("x-user-id", user)])
        except grpc.RpcError as error:
            return explain(error, collection, request_id)
    print(f"destroyed {collection}")
    return 0


def explain(error, collection, request_id):
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.NOT_FOUND:
        print(f"{collection} does not exist, or was destroyed already", file=sys.stderr)
        return 3
    if code == grpc.StatusCode.PERMISSION_DENIED:
        print(f"not permitted: {details}", file=sys.stderr)
        return 4
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        print(f"outcome unknown: {details}\nto try again: REQUEST_ID={request_id}", file=sys.stderr)
        return 5
    print(f"failed: {code.name}: {details}", file=sys.stderr)
    return 1


sys.exit(main())
