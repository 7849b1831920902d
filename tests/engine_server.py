"""A small HTTP server that speaks vLLM's wire: a toy LM behind it, and faults in front of it.

It is a real server on a real socket. What it is asked is kept, and what it does wrong is told to
it request by request.
"""

import base64
import io
import json
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.lm import LM

NAME = "reader-0"
EMBEDS = "You must set `--enable-prompt-embeds` to input `prompt_embeds`."


@dataclass
class Engine:
    """What the server is: its model, its settings, and the faults that are still to come.

    `faults` are taken one a completion: a callable gets the handler and the event lines that would
    be the reply, and replies in their place; None is no fault. `for_ever` is one for all the rest.
    """

    lm: LM
    name: str = NAME
    adapters: tuple[str, ...] = ()  # served beside the base, and in truth the same model
    length: int = 512
    token: str = ""
    healthy: bool = True
    faults: list = field(default_factory=list)
    for_ever: object = None
    bodies: list = field(default_factory=list)
    paths: list = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)  # lets what is stuck go

    def fault(self):
        return self.faults.pop(0) if self.faults else self.for_ever

    def said(self, prompt, body):
        """The greedy tokens of one prompt, ends included, and their log-probabilities."""
        run, ends = KVDecoder(self.lm, [prompt.to(self.lm.table.dtype)]), body["stop_token_ids"]
        stops = set(ends) | (set() if body["ignore_eos"] else {self.lm.eos})
        tokens, nats = [], []
        while len(tokens) < body["max_tokens"]:
            weights = run.logits[0].log_softmax(-1)
            tokens.append(int(weights.argmax()))
            nats.append(float(weights.max()))
            if tokens[-1] in stops:
                return tokens, nats, "stop"
            run.feed(tokens[-1:])
        return tokens, nats, "length"


def tensor_of(packed: str) -> torch.Tensor:
    return torch.load(io.BytesIO(base64.b64decode(packed, validate=True)), weights_only=True)


class Handler(BaseHTTPRequestHandler):
    """The paths of vLLM that are used."""

    def log_message(self, *_):
        pass

    @property
    def engine(self) -> Engine:
        return self.server.engine

    def reply(self, status, content, kind="application/json"):
        packed = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have gone
            self.wfile.write(packed)

    def error(self, status, message):
        self.reply(status, {"error": {"message": message, "code": status}})

    def allowed(self):
        self.engine.paths.append(self.path)
        wanted = f"Bearer {self.engine.token}"
        if self.engine.token and self.headers.get("Authorization") != wanted:
            self.error(401, "Unauthorized")
            return False
        return True

    def do_GET(self):  # noqa: N802
        if not self.allowed():
            return
        if self.path == "/health":
            self.reply(200 if self.engine.healthy else 503, b"")
        elif self.path == "/v1/models":
            card = {"id": self.engine.name, "max_model_len": self.engine.length}
            beside = [{"id": name, "max_model_len": None} for name in self.engine.adapters]
            self.reply(200, {"object": "list", "data": [card, *beside]})
        else:
            self.error(404, "Not Found")

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.engine.bodies.append(body)
        prompts = [tensor_of(one) for one in body["prompt_embeds"]]
        if problem := self.problem(body, prompts):
            self.error(*problem)
            return
        said = [self.engine.said(prompt, body) for prompt in prompts]
        events = [
            event_of(index, token, reason if place == len(tokens) - 1 else None)
            for index, (tokens, _, reason) in enumerate(said)
            for place, token in enumerate(tokens)
        ]
        whole = {
            "choices": [choice_of(index, *one) for index, one in reversed(list(enumerate(said)))]
        }
        if fault := self.engine.fault():
            fault(self, events, whole)
        elif body.get("stream"):
            self.stream(events)
        else:
            self.reply(200, whole)

    def problem(self, body, prompts):
        width, longest = self.engine.lm.width, max(map(len, prompts))
        if body["model"] not in (self.engine.name, *self.engine.adapters):
            return 404, f"The model `{body['model']}` does not exist."
        if any(one.shape[1] != width for one in prompts):
            return 400, f"`prompt_embeds` hidden_size does not match the hidden_size {width}."
        if longest + body["max_tokens"] > self.engine.length:
            return 400, f"This model's maximum context length is {self.engine.length} tokens."
        return None

    def stream(self, events, whole=True):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()
        if whole:
            self.wfile.write(b"data: [DONE]\n\n")


def event_of(index, token, reason):
    return {"choices": [{"index": index, "token_ids": [token], "finish_reason": reason}]}


def choice_of(index, tokens, nats, reason):
    told = {"token_logprobs": nats}
    return {"index": index, "token_ids": tokens, "logprobs": told, "finish_reason": reason}


# --- faults


def status(code, message="EngineCore encountered an issue."):
    """Answers with an error."""
    return lambda handler, events, whole: handler.error(code, message)


def cut(after):
    """Lets the connection break after so many events."""

    def fault(handler, events, whole):
        handler.stream(events[:after], whole=False)
        handler.connection.shutdown(socket.SHUT_RDWR)

    return fault


def stuck(handler, events, whole):
    """Says nothing until the test is over."""
    handler.engine.done.wait()


def replied(change):
    """Answers with something else: JSON that `change` made of the whole reply, or bytes."""
    return lambda handler, events, whole: handler.reply(200, change(whole))


def streamed(change):
    """Streams what `change` made of the events."""
    return lambda handler, events, whole: handler.stream(change(events))


@contextmanager
def serving(engine: Engine):
    """Runs a server on a free port; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.engine, server.daemon_threads = engine, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        engine.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
