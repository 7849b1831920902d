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
from starlette.routing import Match

from rag_memtok import __version__
from rag_memtok.config import Config
from rag_memtok.datatypes import Progress
from rag_memtok.errors import RagMemtokError, UsageError
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.resources import Say, store_folder
from rag_memtok.serve import openai, store_routes
from rag_memtok.serve.ending import Ending
from rag_memtok.serve.engine import Engine
from rag_memtok.serve.guard import Guard, Rules
from rag_memtok.serve.jobs import Jobs
from rag_memtok.serve.metrics import Metrics
from rag_memtok.serve.refusals import body_of, refusal_of, refusal_of_fields
from rag_memtok.serve.serving import Serving
from rag_memtok.serve.streams import Gone
from rag_memtok.settings import TOKEN

PAGE = Path(__file__).parent / "page"
CONNECTIONS = 1000  # at a time
GRACE = 30  # seconds that clients have to take what they were answered, at the end
SHORTEST_TOKEN = 16  # characters
HUNG_UP = 499  # what nobody reads


def application(serving: Serving | None) -> FastAPI:
    """The routes over what is served, if only to describe them, without the guard before them."""
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
    app.add_api_route("/", _page, include_in_schema=False, response_class=FileResponse)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def handles(app: FastAPI, scope: Any) -> bool:
    """Whether a route is there for a request's path and method."""
    return any(one.matches(scope)[0] is Match.FULL for one in app.routes)


async def _page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html")


async def _refused(_: Request, error: Exception) -> Response:
    status, body, headers = refusal_of(error)
    return JSONResponse(body, status, headers=dict(headers))


async def _misshapen(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | ValidationError)
    faults = list(error.errors())
    if isinstance(error, ValidationError):  # of a body that was read by hand
        faults = [{**one, "loc": ("body", *one["loc"])} for one in faults]
    return JSONResponse(refusal_of_fields(faults), 400)


async def _plain(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    remedy = "GET /openapi.json has every path"
    body = body_of(error.status_code, "http", str(error.detail), remedy)
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _gone(_: Request, error: Exception) -> Response:
    return Response(status_code=HUNG_UP)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    RagMemtokError: _refused,
    RequestValidationError: _misshapen,
    ValidationError: _misshapen,
    HTTPException: _plain,
    Gone: _gone,
    Exception: _refused,
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server of that host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def rules_of(config: Config, token: str) -> Rules:
    """Who may ask a server of these settings.

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
        self.should_exit = self.ending.look() or self.should_exit
        self.ending.leaving = await super().on_tick(counter)
        return self.ending.leaving


@contextmanager
def serving(store: MemoryStore, say: Say, noted: Callable[[Progress], str]) -> Iterator[Serving]:
    """A store with its engine and jobs, ready; what waits is answered before it ends.

    Raises:
        InputRefused, StoreDamaged, WrongModel, ...: see `Engine.start`.
    """
    metrics = Metrics()
    engine = Engine(store, metrics, store.config.serve.places)
    try:
        engine.start()
        jobs = Jobs(store, metrics)
        try:
            yield Serving(
                folder=store_folder(store.config).absolute(),
                config=store.config,
                engine=engine,
                jobs=jobs,
                metrics=metrics,
                ending=Ending(engine, jobs, say, noted),
            )
        finally:
            jobs.close()
    finally:
        engine.close()


@contextmanager
def ready(
    config: Config,
    trusted: bool,
    say: Say,
    token: str,
    noted: Callable[[Progress], str] = lambda at: "",
) -> Iterator[tuple[Server, socket.socket]]:
    """A server that needs but be run, and the socket that it is to listen at.

    Raises:
        UsageError: the port is taken, or others can reach it and there is no token.
        InputRefused, StoreDamaged, WrongModel, ...: see `Engine.start`.
    """
    rules = rules_of(config, token)
    store = MemoryStore(config, trusted=trusted, say=say, on_progress=quiet)
    with bound(config) as listening, serving(store, say, noted) as here:
        app = application(here)
        guarded: Any = Guard(app, rules, here.metrics, partial(handles, app))
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
        yield Server(settings, here.ending), listening


def serve(config: Config, trusted: bool, say: Say, noted: Callable[[Progress], str]) -> int:
    """Serves a store until a signal ends it, and returns the exit code (see `Ending`).

    What was asked until then is answered, a job that runs is finished. `noted` puts the facts and
    the time left of a job's progress into words.

    The token is in the environment, where no list of processes shows it.

    Raises:
        UsageError, InputRefused, ...: see `ready`.
    """
    token = os.environ.get(TOKEN, "")
    with ready(config, trusted, say, token, noted) as (server, listening):
        host, port = config.serve.host, listening.getsockname()[1]
        address = f"[{host}]" if ":" in host else host
        folder = store_folder(config)
        say(f"{folder} is served at http://{address}:{port}/; Ctrl-C ends it")
        server.run(sockets=[listening])
    say(server.ending.sentence)
    return server.ending.exit_code


@contextmanager
def bound(config: Config) -> Iterator[socket.socket]:
    """The socket that is listened at.

    Raises:
        UsageError: it cannot be had.
    """
    host, port = config.serve.host, config.serve.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be listened at: {error.strerror}",
            remedy="name another --port, or --port 0 for any that is free",
        ) from None
    with found:
        yield found
