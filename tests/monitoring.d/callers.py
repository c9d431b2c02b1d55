"""Callers of the program: over gRPC with a client certificate, and over REST with an OAuth 1.0a signature."""

import base64
import hashlib
import hmac
import http.client
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlencode

import grpc

METHOD = "/collections.v1.CollectionsService/Destroy"
ORIGIN = "https://api.example.com"
PATH = "/1.1/collections/destroy.json"


def message(id, request_id):
    """A DestroyRequest: two fields of text."""
    fields = ((0x0A, id), (0x12, request_id))
    return b"".join(bytes((tag, len(text))) + text.encode() for tag, text in fields if text)


class GrpcCaller:
    """One calling service: its connection and its calls."""

    def __init__(self, address, certificates, name):
        authority, certificate, key = certificates.files(name)
        credentials = grpc.ssl_channel_credentials(
            authority.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.secure_channel(address, credentials, options)
        self.destroy = self.channel.unary_unary(METHOD)

    def call(self, id, user, request_id="", timeout=10):
        """The name of the call's status."""
        return self.start(id, user, request_id, timeout).code().name

    def start(self, id, user, request_id="", timeout=10):
        """The call, whose `code()` waits for its end."""
        metadata = (("x-user-id", str(user)),)
        return self.destroy.future(message(id, request_id), metadata=metadata, timeout=timeout)

    def close(self):
        self.channel.close()


class RestCaller:
    """A 1.1 client."""

    def __init__(self, address, consumer, token):
        self.address, self.consumer, self.token = address, consumer, token

    def call(self, id):
        """The response's status."""
        parameters = {
            "oauth_consumer_key": self.consumer[0],
            "oauth_nonce": secrets.token_hex(8),
            "oauth_signature_method": "HMAC-SHA1",
            "oauth_timestamp": str(int(time.time())),
            "oauth_token": self.token[0],
            "oauth_version": "1.0",
        }
        pairs = sorted({**parameters, "id": id}.items())
        base = "&".join(quote(text, safe="") for text in ("POST", ORIGIN + PATH, urlencode(pairs, quote_via=quote)))
        key = f"{self.consumer[1]}&{self.token[1]}".encode()
        digest = hmac.new(key, base.encode(), hashlib.sha1).digest()
        parameters["oauth_signature"] = base64.b64encode(digest).decode()
        fields = ", ".join(f'{name}="{quote(value, safe="")}"' for name, value in parameters.items())
        headers = {"authorization": f"OAuth {fields}", "content-type": "application/x-www-form-urlencoded"}
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request("POST", PATH, urlencode({"id": id}), headers)
            return connection.getresponse().status
        finally:
            connection.close()


def together(calls):
    """Makes the calls, several at one time, and counts their results."""
    results = {}
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda call: call(), calls):
            results[result] = results.get(result, 0) + 1
    return results


class Forwarder:
    """Forwards connections to an address, from a loopback address of its own: another client, to the program."""

    def __init__(self, address, source):
        host, port = address.rsplit(":", 1)
        self.upstream, self.source = (host, int(port)), source
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.upstream, source_address=(self.source, 0))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self.copy, args=(one, other), daemon=True).start()

    @staticmethod
    def copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.close()
