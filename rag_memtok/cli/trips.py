"""The trips as commands: ingest, watch, ask, chat, verify, restore. Parse, one library call, print."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag_memtok.cli import console, options, views
from rag_memtok.cli.options import settings
from rag_memtok.errors import NoUsableMemory, RagMemtokError, UsageError

if TYPE_CHECKING:
    from rag_memtok.pipeline.answer import Session
    from rag_memtok.pipeline.ingest import Ingested


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: options.Store = None,
    collection: options.Collection = None,
    model: options.Model = None,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    threads: options.Threads = None,
    embedder: options.Embedder = None,
    exclude: options.Exclude = None,
    chunk_tokens: Annotated[
        int | None, typer.Option("--chunk-tokens", help="Tokens of a chunk, at most.", show_default="the store's, or 128")
    ] = None,
    tokens_per_vector: options.TokensPerVector = None,
    write: Annotated[
        str | None, typer.Option("--write", help="exact, or readable: memories that also answer.", show_default="the store's, or exact")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Another way of writing, by name.", show_default="by --write")] = None,
    template: Annotated[str | None, typer.Option("--template", help="bare or cue.", show_default="the store's, or bare")] = None,
    codec: Annotated[str | None, typer.Option("--codec", help="How vectors are stored.", show_default="the store's, or float16")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimiser steps a chunk, at most.", show_default="500, 300 to be read")
    ] = None,
    seconds_per_chunk: options.SecondsPerChunk = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Chunks written together.", show_default="8")] = None,
    processes: options.Processes = None,
    max_pins: Annotated[int | None, typer.Option("--max-pins", help="Refuse a chunk with more correction pins.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the writer.", show_default="0")] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Keep no text: dense retrieval only.")] = False,
    prune: options.Prune = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written and how long it takes.")] = False,
    skip_ok: Annotated[bool, typer.Option("--skip-ok", help="Exit 0 even if some inputs were skipped.")] = False,
    json: options.Json = False,
) -> None:
    """Write a memory for every chunk of these documents, judge it, and store it. Unchanged files cost nothing; run again to resume."""
    from rag_memtok.pipeline import api

    dials = settings(
        store=store, collection=collection, model__id=model, model__revision=revision, model__dtype=dtype, model__device=device,
        model__threads=threads, retrieve__embedder=embedder, documents__exclude=exclude or None, documents__chunk_tokens=chunk_tokens,
        memorize__tokens_per_vector=tokens_per_vector, memorize__write=write, memorize__recipe=recipe, memorize__template=template,
        memorize__codec=codec, memorize__steps=steps, memorize__seconds_per_chunk=seconds_per_chunk, memorize__batch=batch,
        memorize__processes=processes, memorize__max_pins=max_pins, memorize__seed=seed,
        memorize__keep_text=False if no_text else None,
    )  # fmt: skip
    if dry_run:
        found = api.estimate(paths, dials)
        console.put_json(asdict(found)) if json else views.put_estimate(found)
        return
    if not dials.memorize.keep_text:
        console.say("no text is kept: retrieval is by meaning alone, and an audit can show no differences in words")
    with console.bar("chunks") as show:
        done = api.ingest(paths, dials, prune, lambda at: show(at.done, at.chunks, views.standing_note(at)), console.say)
    console.put_json(asdict(done)) if json else views.put_ingested(done)
    if done.over_limit:
        raise typer.Exit(4)
    if done.skipped and not skip_ok:
        raise typer.Exit(3)


def watch(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: options.Store = None,
    collection: options.Collection = None,
    model: options.Model = None,
    device: options.Device = None,
    threads: options.Threads = None,
    exclude: options.Exclude = None,
    tokens_per_vector: options.TokensPerVector = None,
    prune: options.Prune = False,
    json: options.Json = False,
) -> None:
    """Ingest these documents, and again whenever one changes, with one model load, until Ctrl-C. Needs the extra "watch"."""
    from rag_memtok.pipeline import watch as watching

    dials = settings(
        store=store, collection=collection, model__id=model, model__device=device, model__threads=threads,
        documents__exclude=exclude or None, memorize__tokens_per_vector=tokens_per_vector,
    )  # fmt: skip
    rounds: list["Ingested"] = []
    try:
        with console.bar("chunks") as show:
            for done in watching.watch(paths, dials, prune, lambda at: show(at.done, at.chunks, views.standing_note(at)), console.say):
                if isinstance(done, RagMemtokError):
                    console.put_error(done, json)
                    continue
                rounds.append(done)
                console.put_json(asdict(done)) if json else views.put_ingested(done)
                console.say("watching; Ctrl-C ends")
    except KeyboardInterrupt:
        if not json:
            views.put_watched(rounds)
        if not rounds:
            raise  # in the middle of the first


def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads one a line from standard input.")],
    store: options.Store = None,
    collection: options.Collection = None,
    model: options.Model = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    threads: options.Threads = None,
    embedder: options.Embedder = None,
    k: options.K = None,
    read: options.Read = None,
    passages: options.Passages = None,
    adapter: options.Adapter = None,
    max_new_tokens: options.MaxNewTokens = None,
    trust_store: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Answer a question from the store, with sources."""
    from rag_memtok.pipeline import answer, api

    dials = settings(
        store=store, collection=collection, model__id=model, model__dtype=dtype, model__device=device, model__threads=threads,
        retrieve__embedder=embedder, retrieve__k=k, ask__read=read, ask__passages=passages, ask__adapter=adapter,
        ask__max_new_tokens=max_new_tokens,
    )  # fmt: skip
    if question != "-" and not question.strip():
        raise UsageError("the question is empty", remedy='rag-memtok ask "When does the warranty end?"')
    streams = sys.stdout.isatty() and not json
    failed = False
    tolerant()
    with api.session(dials, console.say, trust_store) as session:
        for one in [question] if question != "-" else (line.strip() for line in sys.stdin if line.strip()):
            try:
                found = answer.answer(session, one, (lambda text: console.put(text, end="")) if streams else lambda text: None)
            except (NoUsableMemory, UsageError) as error:  # of one question among several
                if question != "-":
                    raise
                failed = True
                console.put_error(error, json)
                continue
            console.put_json(asdict(found)) if json else views.put_answer(found, streams)
    if failed:
        raise typer.Exit(NoUsableMemory.exit_code)


def chat(
    store: options.Store = None,
    collection: options.Collection = None,
    model: options.Model = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    threads: options.Threads = None,
    embedder: options.Embedder = None,
    k: options.K = None,
    read: options.Read = None,
    passages: options.Passages = None,
    adapter: options.Adapter = None,
    max_new_tokens: options.MaxNewTokens = None,
    trust_store: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Answer questions one after the other, with one model load. /new forgets the question before, /quit or Ctrl-D ends.

    A question with few words of its own is looked for together with the one before it; the model itself sees only the one.
    """
    from rag_memtok.pipeline import api

    dials = settings(
        store=store, collection=collection, model__id=model, model__dtype=dtype, model__device=device, model__threads=threads,
        retrieve__embedder=embedder, retrieve__k=k, ask__read=read, ask__passages=passages, ask__adapter=adapter,
        ask__max_new_tokens=max_new_tokens,
    )  # fmt: skip
    with api.session(dials, console.say, trust_store) as session:
        try:
            answered = converse(session, json)
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:  # SIGTERM
                raise
            console.say("")
            return
    if not answered:
        raise typer.Exit(NoUsableMemory.exit_code)


def converse(session: "Session", json: bool) -> bool:
    """Answers until the questions end; returns whether none failed, which only a pipe needs to know."""
    from rag_memtok.pipeline.answer import answer, looked_for

    streams, before, fine = sys.stdout.isatty() and not json, "", True
    on_text = (lambda text: console.put(text, end="")) if streams else (lambda text: None)
    for question in asked(json):
        if question == "/quit":
            break
        if question.startswith("/"):
            before = "" if question == "/new" else before
            console.say("the next question stands alone" if question == "/new" else "/new forgets the question before, /quit ends")
            continue
        if before and looked_for(question, before) != question:
            console.say("looked for together with the question before; /new forgets it")
        try:
            found = answer(session, question, on_text, before)
            console.put_json({"question": question, **asdict(found)}) if json else views.put_answer(found, streams)
        except (NoUsableMemory, UsageError) as error:
            fine = sys.stdin.isatty()
            console.put_error(error, json)
            if isinstance(error, UsageError):
                continue  # refused: the next one cannot lean on it
        before = question
    return fine


def asked(json: bool) -> Iterator[str]:
    """The questions: typed, with history and editing, or a line each from a pipe, which are shown so that the dialogue can be read."""
    tolerant()
    if sys.stdin.isatty():
        with suppress(ImportError):  # a Python without it: no history, no editing
            import readline  # noqa: F401
    while True:
        try:
            question = input("> ").strip() if sys.stdin.isatty() else next(sys.stdin).strip()
        except (EOFError, StopIteration):
            return
        if question:
            if not sys.stdin.isatty() and not json:
                console.put(f"> {question.encode(errors='replace').decode()}")
            yield question


def verify(
    store: options.Store = None,
    collection: options.Collection = None,
    model: options.Model = None,
    device: options.Device = None,
    threads: options.Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="Structure and checksums only; loads no model.")] = False,
    sample: Annotated[str | None, typer.Option("--sample", help="A share of the chunks, such as 5%.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Chunks decoded together; 1 is the reference profile.")] = 1,
    against: Annotated[Path | None, typer.Option("--against", help="Compare the documents with this folder.")] = None,
    exclude: options.Exclude = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the audit as an HTML page, too.")] = None,
    json: options.Json = False,
) -> None:
    """Prove that nothing was lost: decode every memory, rejoin every document, compare."""
    from rag_memtok.pipeline import api

    dials = settings(
        store=store, collection=collection, model__id=model, model__device=device, model__threads=threads,
        documents__exclude=exclude or None,
    )  # fmt: skip
    with console.bar("chunks") as show:
        found = api.verify(dials, quick, share_of(sample), seed, against, lambda done, total: show(done, total, ""), report, batch)
    if json:
        console.put_json(
            {"counts": dict(found.counts), "documents": found.documents, "profile": found.profile,
             "failing": [asdict(one) for one in found.findings], "chunks": found.chunks, "checked": found.checked,
             "documents_checked": found.documents_checked, "documents_proven": found.documents_proven,
             "sample": found.sample, "seconds": found.seconds}
        )  # fmt: skip
    else:
        views.put_audit(found)
    raise typer.Exit(found.exit_code)


def tolerant() -> None:
    """Lets bytes of standard input that are not UTF-8 through, as Python marks them: their question is refused, not the others, too."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def share_of(sample: str | None) -> float:
    """`5%` or `0.05` as a share.

    Raises:
        UsageError: it is neither.
    """
    if sample is None:
        return 1.0
    try:
        return float(sample[:-1]) / 100 if sample.endswith("%") else float(sample)
    except ValueError:
        raise UsageError(f"--sample is {sample!r}; valid: a share such as 5%") from None


def restore(
    to: Annotated[Path, typer.Option("--to", help="The folder to write into.")],
    store: options.Store = None,
    collection: options.Collection = None,
    model: options.Model = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Write the documents back from their memories alone."""
    from rag_memtok.pipeline import api

    dials = settings(store=store, collection=collection, model__id=model, model__device=device, model__threads=threads)
    with console.bar("chunks") as show:
        done = api.restore(to, dials, lambda count, total: show(count, total, ""))
    console.put_list("not restored", [f"{path}: {reason}" for path, reason in done.failed])
    console.put(f"{len(done.written)} documents written to {to}")
    raise typer.Exit(done.exit_code)
