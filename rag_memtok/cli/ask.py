"""The commands that answer or find: ask, search, chat. Parse, one library call, print."""

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated

import typer

from rag_memtok.cli import console, options, views
from rag_memtok.config import Config
from rag_memtok.errors import NoUsableMemory, UsageError

if TYPE_CHECKING:
    from rag_memtok.datatypes import Answer
    from rag_memtok.pipeline.session import Session


@options.settings(*options.ANSWERING)
def ask(
    dials: Config,
    question: Annotated[
        list[str], typer.Argument(help="The question; - reads one a line from standard input.")
    ],
    trust_store: options.Trust = False,
    show: options.Show = False,
    json: options.Json = False,
) -> None:
    """Answer a question from the store, with sources."""
    from rag_memtok.pipeline import api

    words = one_question(question)
    if not words:
        raise UsageError(
            "the question is empty", remedy='rag-memtok ask "When does the warranty end?"'
        )
    tolerant()
    with api.session(dials, console.say, trusted=trust_store) as session:
        if words != "-":
            found = answered(session, words, json, show, {"question": words, "number": 1})
        else:
            found = all([replied(session, *one, json, show) for one in numbered(sys.stdin)])
    if not found:
        raise typer.Exit(NoUsableMemory.exit_code)


def one_question(words: list[str]) -> str:
    """The question that a shell gave word by word, as it was not in quotes.

    Raises:
        UsageError: these are several questions.
    """
    if len(words) > 1 and ("-" in words or any(" " in word.strip() for word in words)):
        raise UsageError(
            f"{len(words)} questions at once: {', '.join(words)}",
            remedy="put one question in quotes; ask - reads several, one a line",
        )
    return " ".join(words).strip()


def numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that hold a question, with their numbers from 1."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line.strip()


def replied(session: "Session", number: int, question: str, json: bool, show: bool) -> bool:
    """Answers one of several questions under its own words; whether it has an answer."""
    if not json:
        console.put(f"> {question.encode(errors='replace').decode()}")
    told = {"question": question.encode(errors="replace").decode(), "number": number}
    try:
        return answered(session, question, json, show, told)
    except (NoUsableMemory, UsageError) as error:
        if not json:
            console.put(f"  not answered: {error}")
        console.put_error(error, json, told)
        return False


def answered(
    session: "Session", question: str, json: bool, show: bool, told: dict[str, object]
) -> bool:
    """Prints the answer to a question, in JSON with what is `told`; whether it is one."""
    from rag_memtok.pipeline.answer import answer

    streams = sys.stdout.isatty() and not json
    on_text = (lambda text: console.put(text, end="")) if streams else (lambda text: None)
    found = answer(session, question, on_text)
    if json:
        console.put_json(told | asdict(found))
    else:
        views.put_answer(found, streams)
        if show:
            views.put_passages(found)
    return not found.refused


@options.settings(*options.STORE, *options.FINDING)
def search(
    dials: Config,
    question: Annotated[list[str], typer.Argument(help="Words, or a question.")],
    json: options.Json = False,
) -> None:
    """Find passages: the ones that ask would read, best first. Loads no language model."""
    from rag_memtok.pipeline import api

    hits = api.search(" ".join(question), dials)
    console.put_json({"found": [asdict(one) for one in hits]}) if json else views.put_found(hits)


@options.settings(*options.ANSWERING)
def chat(
    dials: Config,
    trust_store: options.Trust = False,
    show: options.Show = False,
    json: options.Json = False,
) -> None:
    """Answer questions one after the other, with one model load.

    /new forgets the question before, /quit or Ctrl-D ends.

    Each source has the line of it that bears on the answer. A question with few words of its own is
    looked for together with the one before it; the model itself sees only the one.
    """
    from rag_memtok.pipeline import api

    with api.session(dials, console.say, trusted=trust_store) as session:
        try:
            fine = converse(session, json, show)
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:  # SIGTERM, SIGHUP
                raise
            console.say("")
            return
    if not fine:
        raise typer.Exit(NoUsableMemory.exit_code)


def converse(session: "Session", json: bool, show: bool) -> bool:
    """Answers until the questions end; returns whether none was left without an answer.

    Only a pipe needs to know that.
    """
    from rag_memtok.pipeline.answer import answer
    from rag_memtok.retrieval.search import search_query

    streams, before, fine = sys.stdout.isatty() and not json, "", True
    on_text = (lambda text: console.put(text, end="")) if streams else (lambda text: None)
    for question in asked(json):
        if question == "/quit":
            break
        if question.startswith("/"):
            before = "" if question == "/new" else before
            console.say(
                "the next question stands alone"
                if question == "/new"
                else "/new forgets the question before, /quit ends"
            )
            continue
        if before and search_query(question, before) != question:
            console.say("looked for together with the question before; /new forgets it")
        try:
            found = answer(session, question, on_text, before)
            fine &= not found.refused or sys.stdin.isatty()
            if json:
                console.put_json({"question": question, **asdict(found)})
            else:
                views.put_answer(found, streams, () if show else snippets(found, question))
            if show and not json:
                views.put_passages(found)
        except (NoUsableMemory, UsageError) as error:
            fine = sys.stdin.isatty()
            console.put_error(error, json)
            if isinstance(error, UsageError):
                continue  # refused: the next one cannot lean on it
        before = question
    return fine


def snippets(found: "Answer", question: str) -> list[str]:
    """A line of each source's passage: about the answer, else about the question."""
    from rag_memtok.pipeline.grounding import snippet
    from rag_memtok.retrieval.search import content_words

    words = content_words(question)
    return [
        snippet(text, words, views.marked(found, source, text)) if text else ""
        for source, text in zip(found.sources, found.texts, strict=True)
    ]


def asked(json: bool) -> Iterator[str]:
    """The questions: typed, or a line each from a pipe.

    Typing has history and editing; the lines from a pipe are shown so that the dialogue can be
    read.
    """
    tolerant()
    if sys.stdin.isatty():
        with suppress(ImportError):  # a Python without it: no history, no editing
            import readline  # noqa: F401
    while True:
        try:
            question = input("> ").strip() if sys.stdin.isatty() else next(sys.stdin).strip()
        except (EOFError, StopIteration):
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return  # its terminal was closed
        if question:
            if not sys.stdin.isatty() and not json:
                console.put(f"> {question.encode(errors='replace').decode()}")
            yield question


def tolerant() -> None:
    """Lets bytes of standard input that are not UTF-8 through, as Python marks them.

    Their question is refused, not the others, too.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
