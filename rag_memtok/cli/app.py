"""The command line: its commands, errors, signals and exit codes.

It says which commands there are, and what every one of them does with errors and signals.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from rag_memtok import __version__
from rag_memtok.cli import ask, console, evaluate, ingest, manage, serve, verify
from rag_memtok.errors import (
    DiskFailure,
    OutOfMemory,
    PermissionRefused,
    RagMemtokError,
    UsageError,
    out_of_memory,
)
from rag_memtok.settings import share_cores


class Ended(Exception):
    """Carries an interrupt or a closed pipe past typer, which would end with codes of its own."""


class Commands(TyperGroup):
    """The commands, run so that `run` sees why one ended."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise Ended from error


app = typer.Typer(
    name="rag-memtok",
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Name, function, example.
COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("ingest", ingest.ingest, "rag-memtok ingest ./docs --exclude 'drafts/'"),
    ("ask", ask.ask, 'rag-memtok ask "When does the warranty end?"'),
    ("search", ask.search, 'rag-memtok search "warranty"'),
    ("chat", ask.chat, "rag-memtok chat --k 5"),
    ("verify", verify.verify, "rag-memtok verify --sample 5%"),
    ("restore", verify.restore, "rag-memtok restore --to ./restored"),
    ("serve", serve.serve, "rag-memtok serve --port 8420"),
    ("watch", ingest.watch, "rag-memtok watch ./docs --prune"),
    ("status", manage.status, "rag-memtok status --json"),
    ("list", manage.list_, "rag-memtok list --chunks"),
    ("show", manage.show, "rag-memtok show 3fa9"),
    ("config", manage.config, "rag-memtok config --json"),
    ("adapt", manage.adapt, "rag-memtok adapt --data questions.jsonl --minutes 30"),
    ("rm", manage.rm, "rag-memtok rm docs/old-handbook.md"),
    ("export", manage.export, "rag-memtok export handbook.safetensors"),
    ("export-reader", manage.export_reader, "rag-memtok export-reader ./reader --dtype bfloat16"),
    ("import", manage.import_, "rag-memtok import handbook.safetensors --store handbook"),
    ("eval", evaluate.eval_, "rag-memtok eval questions.jsonl --work eval --out eval.json"),
    ("migrate", manage.migrate, "rag-memtok migrate --model HuggingFaceTB/SmolLM2-360M-Instruct"),
    ("paper", evaluate.paper, "rag-memtok paper --docs data/docs --chars 50 --figures figures"),
)
for name, function, example in COMMANDS:
    app.command(name, epilog=f"Example: {example}")(function)


def show_version(wanted: bool) -> bool:
    """Prints the version and ends."""
    if wanted:
        console.put(f"rag-memtok {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Retrieval-augmented generation over memory tokens: audited, lossless, readable."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends the work as Ctrl-C does."""


class HungUp(KeyboardInterrupt):
    """SIGHUP, the terminal is no more: ends the work as Ctrl-C does."""


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM."""
    raise Terminated


def hang_up(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGHUP."""
    for stream in console.closed_terminals():
        console.discard(stream)
    raise HungUp


def expected(error: BaseException) -> RagMemtokError | None:
    """What the system's own errors mean; None for a bug."""
    if isinstance(error, RagMemtokError):
        return error
    if hasattr(error, "format_message"):  # what typer's parser raises
        return UsageError(
            error.format_message(), remedy="rag-memtok COMMAND --help lists every option"
        )
    if out_of_memory(error):
        return OutOfMemory(
            "out of memory", remedy="a smaller --batch, fewer --chunk-tokens, or a smaller --model"
        )
    if isinstance(error, PermissionError):
        return PermissionRefused(told(error), remedy="check the permissions of that path")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(told(error), remedy="a shorter name")
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
    ):
        return DiskFailure(told(error), remedy="free some space, or name another --store")
    return None


def told(error: OSError) -> str:
    """What the system says of a file; of one that is open it does not say the name."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def main() -> None:
    """Runs a command and exits with its code."""
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, hang_up)
    open_streams()
    share_cores()
    try:
        code = run(lambda: app(standalone_mode=False))
    except KeyboardInterrupt as again:  # while the first one was told
        code = interrupted(again)
    sys.exit(code)


def open_streams() -> None:
    r"""Gives the process the standard streams it was started without.

    There is nothing to read, and what is written is lost. A stream of another encoding than UTF-8,
    or one that is strict, gets what it cannot say written out, as `\u20ac`.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and (
            stream.errors == "strict" or not console.is_unicode(stream.encoding)
        ):
            stream.reconfigure(errors="backslashreplace")


def interrupted(error: KeyboardInterrupt) -> int:
    """The exit code of an end by SIGTERM, SIGHUP or Ctrl-C."""
    return {Terminated: 143, HungUp: 129}.get(type(error), 130)


def run(command: Callable[[], Any]) -> int:
    """Runs `command` and returns the exit code.

    Whatever it raises on purpose is told, a bug is a traceback. Where nobody reads what is told of
    an end, it ends with its code all the same.
    """
    try:
        try:
            code = command()
        except Ended as ended:
            raise (ended.__cause__ or ended) from None
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as ended:
        return ended.exit_code
    except KeyboardInterrupt as interrupt:
        with suppress(BrokenPipeError):
            console.say("interrupted; what is done is kept: run the same command again to go on")
        return interrupted(interrupt)
    except typer.Abort:
        return 130
    except BrokenPipeError:
        console.discard()
        return 141
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer does not say where it is from
            with suppress(BrokenPipeError):
                console.say(str(error))
            return UsageError.exit_code
        if isinstance(error, OSError) and console.terminal_closed(error):
            console.discard()
            return 141
        known = expected(error)
        if known is None:
            raise
        console.put_last_error(known, "--json" in sys.argv)
        return known.exit_code
