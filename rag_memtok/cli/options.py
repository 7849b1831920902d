"""The options that commands share: one for each setting of config.py, and a few switches."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from rag_memtok.config import Config
from rag_memtok.documents.names import given_path
from rag_memtok.settings import asked, dials

Command = Callable[..., None]

STORE = ("store", "collection")
MODEL = ("model.id", "model.device", "model.threads")
FINDING = ("retrieve.embedder", "retrieve.k", "retrieve.within")
ANSWERING = (
    *STORE, "model.id", "model.dtype", "model.device", "model.threads", *FINDING,
    "ask.read", "ask.zoom", "ask.passages", "ask.adapter", "ask.max_new_tokens",
    "ask.engine", "ask.url", "ask.probe_lora",
)  # fmt: skip
READING = ("documents.exclude", "documents.encoding", "documents.gitignore")
CLUSTER = ("cluster.engine", "cluster.address", "cluster.chunk_timeout")
OF_STORE = "the store's, or "

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[
    str | None,
    typer.Option("--name", help="What standard input (-) is to be called, such as NOTE.md."),
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Remove from the store what is gone from the folders.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-store",
        envvar="RAG_MEMTOK_TRUST_STORE",
        help="Read a store that was not made here.",
    ),
]
Show = Annotated[
    bool, typer.Option("--show", help="Show the passages, too, the answer >>marked<< in them.")
]
Paths = Annotated[
    list[Path],
    typer.Argument(
        parser=given_path, help="Files and folders; - is standard input, and needs --name."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be written and how long it takes.")
]
SkipOk = Annotated[bool, typer.Option("--skip-ok", help="Exit 0 even if some inputs were skipped.")]


def settings(*names: str) -> Callable[[Command], Command]:
    """Gives a command the options of these settings, by dotted name.

    What they and the environment and the file come to is its first argument, a Config.
    """
    return flags(*names, made=lambda given: asked(given, os.environ, Path.cwd()))


def flags(
    *names: str, made: Callable[[Mapping[str, object]], object] = lambda given: given
) -> Callable[[Command], Command]:
    """As `settings`, but the first argument is the options that were given, with their values."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**values: Any) -> None:
            given = {name: flag(name, values.pop(keyword(name))) for name in names}
            set_here = {name: value for name, value in given.items() if value is not None}
            command(made(set_here), **values)

        own = list(inspect.signature(command).parameters.values())[1:]
        plain = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        shared = [parameter(name, "store" in names) for name in names]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*plain[: arguments(own)], *shared, *plain[arguments(own) :]]
        )
        run.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        return run

    return decorate


def arguments(own: list[inspect.Parameter]) -> int:
    """How many parameters, the first ones, have no default."""
    return sum(one.default is inspect.Parameter.empty for one in own)


def keyword(name: str) -> str:
    """A setting's name as a parameter's."""
    return name.replace(".", "__")


def flag(name: str, value: object) -> object:
    """The setting's value that an option's `value` stands for; None: it was not given."""
    if isinstance(value, bool):
        return not field_of(name).default if value else None
    return value or None if isinstance(value, list) else value


def parameter(name: str, stored: bool) -> inspect.Parameter:
    """The option of a setting, as a command's parameter.

    `stored`: the command has a store, whose value goes over the default.
    """
    found, kind = field_of(name), dials()[name]
    told = found.metadata
    words = told["option"].split("/") if told["option"] else [f"--{found.name.replace('_', '-')}"]
    shown = told["shown"] if stored else told["shown"].removeprefix(OF_STORE)
    shown = shown or (f"{found.default:g}" if kind in (int, float) else str(found.default))
    default: bool | None = None
    annotation: Any = (kind if kind in (int, float) else str) | None
    if kind is bool:
        default, annotation, shown = False, bool, ""
    elif get_origin(kind) is tuple:
        annotation, shown = list[str] | None, ""
    option = typer.Option(*words, help=told["help"], show_default=shown or kind is bool)
    return inspect.Parameter(
        keyword(name),
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )


def field_of(name: str) -> Field[Any]:
    """The field of config.py that a dotted name means."""
    section, _, last = name.rpartition(".")
    kind = get_type_hints(Config)[section] if section else Config
    return next(one for one in fields(kind) if one.name == last)
