"""The application, put together, and the server that runs it. The only home of uvicorn."""

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from rag_memtok import __version__
from rag_memtok.config import Config
from rag_memtok.datatypes import Progress
from rag_memtok.errors import RagMemtokError, UsageError
from rag_memtok.model.wire import header_token
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.resources import Say, store_folder
from rag_memtok.serve import openai, store_routes, uploads
from rag_memtok.serve.ending import Ending
from rag_memtok.serve.engine import Engine
from rag_memtok.serve.guard import Guard, Rules
from rag_memtok.serve.jobs import Jobs
from rag_memtok.serve.metrics import Metrics
from rag_memtok.serve.refusals import body_of, refusal_of, refusal_of_fields
from rag_memtok.serve.serving import Serving
from rag_memtok.serve.streams import ClientGone
from rag_memtok.settings import TOKEN

PAGE = Path(__file__).parent / "page"
CONNECTIONS = 1000  # at a time
GRACE = 30  # seconds that clients have to take what they were answered, at the end
SHORTEST_TOKEN = 16  # characters
HUNG_UP = 499  # what nobody reads


def application(serving: Serving | None) -> FastAPI:
    """The application with all routes, without the guard before it.

    Args:
        serving: None: only to describe the routes.
    """
    app = FastAPI(
        title="rag-memtok",
        version=__version__,
        description="A store of memory tokens: OpenAI's API and one of its own.",
        docs_url=None,  # their pages load scripts of somebody else's
        redoc_url=None,
    )
    app.state.serving = serving
    app.include_router(openai.router)
    app.include_router(store_routes.router)
    app.mount("/static", StaticFiles(directory=PAGE))
    app.add_api_route("/", _send_page, include_in_schema=False, response_class=FileResponse)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def has_route(app: FastAPI, scope: Any) -> bool:
    """Whether there is a route for a request's path and method."""
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


async def _send_page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html")


async def _refuse_error(_: Request, error: Exception) -> Response:
    status, body, headers = refusal_of(error)
    return JSONResponse(body, status, headers=dict(headers))


async def _refuse_fields(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | ValidationError)
    faults = list(error.errors())
    if isinstance(error, ValidationError):  # of a body that was read by hand
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in faults]
    return JSONResponse(refusal_of_fields(faults), 400)


async def _refuse_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    remedy = "GET /openapi.json has every path"
    body = body_of(error.status_code, "http", str(error.detail), remedy)
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _answer_nobody(_: Request, error: Exception) -> Response:
    return Response(status_code=HUNG_UP)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    RagMemtokError: _refuse_error,
    RequestValidationError: _refuse_fields,
    ValidationError: _refuse_fields,
    HTTPException: _refuse_http,
    ClientGone: _answer_nobody,
    ClientDisconnect: _answer_nobody,
    Exception: _refuse_error,
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server of that host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def rules_of(config: Config, token: str) -> Rules:
    """The rules of a server with these settings.

    Raises:
        UsageError: it can be reached from elsewhere and has no token, or one that can be guessed.
    """
    host = config.serve.host
    make = f"export {TOKEN}=$(python3 -c 'import secrets; print(secrets.token_urlsafe())')"
    if not token and not is_loopback(host):
        raise UsageError(f"others can reach {host}, and there is no token", remedy=make)
    if token and len(token) < SHORTEST_TOKEN:
        raise UsageError(f"{TOKEN} has under {SHORTEST_TOKEN} characters", remedy=make)
    names = {"localhost", host, *config.serve.names}
    return Rules(frozenset(name.lower() for name in names), token, config.serve.rate)


class Server(uvicorn.Server):
    """uvicorn's, but at a signal what runs is finished before connections are closed."""

    def __init__(self, settings: uvicorn.Config, ending: Ending) -> None:
        super().__init__(settings)
        self.ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGINT and SIGTERM; the next tick does something about it."""
        self.ending.signals.append(sig)

    async def on_tick(self, counter: int) -> bool:
        """Whether the server is to end now; asked ten times a second, in its loop."""
        self.should_exit = self.ending.handle_signals() or self.should_exit
        self.ending.leaving = await super().on_tick(counter)
        return self.ending.leaving


@contextmanager
def start_serving(
    store: MemoryStore, say: Say, describe: Callable[[Progress], str]
) -> Iterator[Serving]:
    """A store with its engine and jobs, ready; what waits is answered before it ends.

    Raises:
        InputRefused, StoreDamaged, WrongModel, ...: see `Engine.start`.
    """
    metrics = Metrics()
    engine = Engine(store, metrics, store.config.serve.places)
    try:
        engine.start()
        folder = store_folder(store.config).absolute()
        uploads.discard_unfinished(folder)
        jobs = Jobs(store, metrics)
        try:
            yield Serving(
                folder=folder,
                config=store.config,
                engine=engine,
                jobs=jobs,
                metrics=metrics,
                ending=Ending(engine=engine, jobs=jobs, say=say, describe=describe),
            )
        finally:
            jobs.close()
    finally:
        engine.close()


@contextmanager
def prepare_server(
    config: Config,
    *,
    trusted: bool,
    say: Say,
    token: str,
    describe: Callable[[Progress], str] = lambda progress: "",
) -> Iterator[tuple[Server, socket.socket]]:
    """A server that needs but be run, and the socket that it is to listen at.

    Raises:
        UsageError: the port is taken, or others can reach it and there is no token.
        InputRefused, StoreDamaged, WrongModel, ...: see `Engine.start`.
    """
    rules = rules_of(config, token)
    store = MemoryStore(config, trusted=trusted, say=say, on_progress=quiet)
    with listen(config) as listening, start_serving(store, say, describe) as serving:
        app = application(serving)
        guarded: Any = Guard(app, rules, serving.metrics, partial(has_route, app))
        settings = uvicorn.Config(
            guarded,
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE,
        )
        yield Server(settings, serving.ending), listening


def serve(config: Config, *, trusted: bool, say: Say, describe: Callable[[Progress], str]) -> int:
    """Serves a store until a signal ends it, and returns the exit code (see `Ending`).

    What was asked until then is answered, a job that runs is finished. `describe` puts the facts
    and the time left of a job's progress into words.

    The token is in the environment, where no list of processes shows it.

    Raises:
        UsageError, InputRefused, ...: see `prepare_server`.
    """
    token = header_token(os.environ.get(TOKEN, ""), TOKEN)
    ready = prepare_server(config, trusted=trusted, say=say, token=token, describe=describe)
    with ready as (server, listening):
        host, port = config.serve.host, listening.getsockname()[1]
        address = f"[{host}]" if ":" in host else host
        folder = store_folder(config)
        say(f"{folder} is served at http://{address}:{port}/; Ctrl-C ends it")
        server.run(sockets=[listening])
    say(server.ending.sentence)
    return server.ending.exit_code


@contextmanager
def listen(config: Config) -> Iterator[socket.socket]:
    """The socket that the server listens at.

    Raises:
        UsageError: it cannot be had.
    """
    host, port = config.serve.host, config.serve.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be listened at: {error.strerror}",
            remedy="name another --port, or --port 0 for any that is free",
        ) from None
    with listening:
        yield listening
