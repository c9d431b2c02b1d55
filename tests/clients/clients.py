"""Destroys collections through one Python client: clients.py CLIENT [ID TOKEN_SECRET]...

Prints a line a destroy: HTTP status, what became of it (destroyed, or the 1.1 error code), and what the client shows;
`-` for what a client does not show. `run` compares the lines with what it expects.
"""

import sys
from os import environ

REST = environ["REST"]
KEY, SECRET, TOKEN = environ["CONSUMER_KEY"], environ["CONSUMER_SECRET"], environ["TOKEN"]


def twitter(id, token_secret):
    from twitter import OAuth, Twitter, TwitterHTTPError

    api = Twitter(domain=REST, secure=False, auth=OAuth(TOKEN, token_secret, KEY, SECRET))
    try:
        # A plain `id` would become a part of the path: `_id` is this client's way to name the parameter.
        answer = api.collections.destroy(_id=id)
        return None, answer, answer
    except TwitterHTTPError as error:
        return error.e.code, error.response_data, error


def requests_oauthlib(id, token_secret):
    from requests_oauthlib import OAuth1Session

    session = OAuth1Session(KEY, SECRET, TOKEN, token_secret)
    answer = session.post(f"http://{REST}/1.1/collections/destroy.json", data={"id": id})
    return answer.status_code, answer.json(), f"{answer!r} {answer.text}"


def twython(id, token_secret):
    from twython import Twython, TwythonError

    api = Twython(KEY, SECRET, TOKEN, token_secret)
    api.api_url = f"http://{REST}/%s"
    try:
        answer = api.post("collections/destroy", {"id": id})
        return None, answer, answer
    except TwythonError as error:
        return error.error_code, None, error


def tweepy(id, token_secret):
    from tweepy import API, HTTPException, OAuth1UserHandler
    from tweepy.parsers import JSONParser

    api = API(OAuth1UserHandler(KEY, SECRET, TOKEN, token_secret), parser=JSONParser())
    try:
        answer = api.request("POST", "collections/destroy", params={"id": id})
        return None, answer, answer
    except HTTPException as error:
        return error.response.status_code, {"errors": error.api_errors}, error


def TwitterAPI(id, token_secret):
    from TwitterAPI import TwitterAPI

    answer = TwitterAPI(KEY, SECRET, TOKEN, token_secret).request("collections/destroy", {"id": id})
    return answer.status_code, answer.json(), f"{answer.status_code} {answer.text}"


destroy = globals()[sys.argv[1]]
for id, token_secret in zip(sys.argv[2::2], sys.argv[3::2]):
    status, body, shown = destroy(id, token_secret)
    code = "destroyed" if body == {"destroyed": True} else body["errors"][0]["code"] if body else "-"
    if isinstance(shown, Exception):
        shown = f"{type(shown).__name__}: {shown}"
    print(status or "-", code, str(shown).replace("\n", "\\n"), sep="\t")
