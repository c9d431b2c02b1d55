"""Hooks of schemathesis for this API: how requests are signed, and which collections exist."""

import itertools
import os

import schemathesis
from requests_oauthlib import OAuth1

DESTROY = "/1.1/collections/destroy.json"
# The collections that tests/openapi imports.
live = itertools.cycle(range(1, 1001))
turns = itertools.count()


class Signature(OAuth1):
    """Signs POST requests.

    Other methods are refused with or without a signature, and the library does not sign them when they have a body.
    """

    def __call__(self, request):
        if request.method != "POST":
            return request
        signed = super().__call__(request)
        # The library makes bytes of them, which schemathesis cannot report.
        signed.headers = {to_text(name): to_text(value) for name, value in signed.headers.items()}
        return signed


def to_text(value):
    return value.decode("latin-1") if isinstance(value, bytes) else value


if "OPENAPI_SIGN" in os.environ:
    names = ("CONSUMER_KEY", "CONSUMER_SECRET", "TOKEN", "TOKEN_SECRET")
    schemathesis.auth.set_from_requests(Signature(*(os.environ[f"OAUTH_{name}"] for name in names)))


@schemathesis.hook
def before_call(context, case, kwargs):
    """Adjusts the ids of valid requests where OpenAPI cannot express a constraint.

    The id in the query and the id in the form are the same one, and at most 9223372036854775807. Every other request names a
    collection that exists.
    """
    if case.operation.path != DESTROY or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    form = case.body if isinstance(case.body, dict) else {}
    given = [part for part in (case.query, form) if part and "id" in part]
    if next(turns) % 2 == 0:
        chosen = f"custom-{next(live)}"
    else:
        chosen = given[0]["id"][:25] if given else None
    for part in given:
        part["id"] = chosen
