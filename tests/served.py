"""A real server of a toy's store on a free port of this machine, and requests to it as they are."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

from small import dials

from rag_memtok.errors import escaped
from rag_memtok.serve import app

HANGS = 600  # seconds after which a request is not slow but stuck
JSON = {"Content_Type": "application/json"}


def until(condition):
    """Waits for what has to come; a test that waits for ever has failed."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@dataclass(frozen=True)
class Reply:
    """A status, the headers by their lower-case names, the body."""

    status: int
    headers: dict
    text: str

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def error(self):
        """The error, which must be in OpenAI's shape and say what to do."""
        told = self.json["error"]
        assert set(told) == {"message", "type", "param", "code", "remedy"}
        assert told["message"] and told["remedy"] and told["message"] == escaped(told["message"])
        return told


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    port: int
    server: object

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def send(self, method, path, body=None, **headers):
        """One request; a header's name has _ for -, and None leaves it out."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named = {name: value for name, value in named.items() if value is not None}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANGS)
        try:
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            told = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, told, reply.read().decode())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.send("GET", path, **headers)

    def post(self, path, body, **headers):
        return self.send("POST", path, json.dumps(body), **(JSON | headers))

    def upload(self, name, content, **headers):
        return self.send("POST", "/ingest", content, X_Rag_Memtok_Name=name, **headers)

    def ended(self, id):
        """A job once it has ended, by its events."""
        told = self.get(f"/jobs/{id}/events").text
        return json.loads(told.strip().rpartition("data: ")[2])


def settings(store, model, **changes):
    """The settings of a small store on a free port, without a limit of requests."""
    return dials(store, model, **{"serve__port": 0, "serve__rate": 0.0, "retrieve__k": 2} | changes)


@contextmanager
def served(config, trusted=False, token=""):
    """Runs a server in a thread; once this is left it has ended."""
    ready = app.prepare_server(config, trusted=trusted, say=lambda words: None, token=token)
    with ready as (server, listening):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(listening.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join()
