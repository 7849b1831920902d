"""The commands that write: ingest, watch. Parse, one library call, print."""

import os
import sys
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag_memtok.cli import console, ingest_views, options
from rag_memtok.config import Config
from rag_memtok.documents.names import given_path
from rag_memtok.errors import RagMemtokError, UsageError

if TYPE_CHECKING:
    from rag_memtok.pipeline.ingest import Ingested
    from rag_memtok.pipeline.writer import Engine


@options.settings(
    *options.STORE, "model.id", "model.revision", "model.dtype", "model.device", "model.threads",
    "retrieve.embedder", *options.READING, "documents.chunk_tokens", "memorize.tokens_per_vector",
    "memorize.readable", "memorize.write", "memorize.recipe", "memorize.template",
    "memorize.codec", "memorize.steps", "memorize.seconds_per_chunk", "memorize.batch",
    "memorize.processes", "memorize.max_pins", "memorize.seed", "memorize.keep_text",
    *options.CLUSTER,
)  # fmt: skip
def ingest(
    dials: Config,
    paths: options.Paths,
    name: options.Name = None,
    prune: options.Prune = False,
    dry_run: options.DryRun = False,
    skip_ok: options.SkipOk = False,
    json: options.Json = False,
) -> None:
    """Write a memory for every chunk of these documents, judge it, and store it.

    Unchanged files cost nothing; run again to resume.
    """
    from rag_memtok.pipeline import api

    paths, piped = taken_in(paths, name, dials.documents.max_bytes)
    if dry_run:
        found = api.estimate(paths, dials, piped)
        console.put_json(asdict(found)) if json else ingest_views.put_estimate(found)
        return
    if not dials.memorize.keep_text:
        console.say(
            "no text is kept: retrieval is by meaning alone, and an audit can show no differences "
            "in words"
        )
    with console.progress_bar("chunks") as on_progress, ExitStack() as opened:
        engine_used = engine_of(dials, opened)
        done = api.ingest(
            paths,
            dials,
            prune=prune,
            on_progress=on_progress,
            say=console.say,
            piped=piped,
            engine=engine_used,
        )
    console.put_json(asdict(done)) if json else ingest_views.put_ingested(done)
    if done.over_limit:
        raise typer.Exit(4)
    if done.failed or (done.skipped and not skip_ok):
        raise typer.Exit(3)


def engine_of(dials: Config, opened: ExitStack) -> "Engine":
    """What writes: processes, or a cluster, to which `opened` holds the connection."""
    if dials.cluster.engine == "ray":
        from rag_memtok.cluster.engine import writing

        return opened.enter_context(writing(dials))
    from rag_memtok.pipeline.writer import write_in_processes

    return write_in_processes


def taken_in(
    paths: list[Path], name: str | None, limit: int
) -> tuple[list[Path], dict[str, bytes]]:
    """The paths without "-", and what is on standard input for it, by its name.

    Raises:
        UsageError: "-" without a name, or a name without "-".
    """
    rest = [path for path in paths if str(path) != "-"]
    if (len(rest) < len(paths)) != (name is not None):
        raise UsageError(
            "--name is for standard input, and standard input (-) needs one",
            remedy="rag-memtok ingest - --name NOTE.md < FILE; its suffix says how it is read",
        )
    # one byte more than may be tells that it is too much
    return rest, {} if name is None else {name: sys.stdin.buffer.read(limit + 1)}


@options.settings(*options.STORE, *options.MODEL, *options.READING, "memorize.tokens_per_vector")
def watch(
    dials: Config,
    paths: Annotated[list[Path], typer.Argument(parser=given_path, help="Files and folders.")],
    prune: options.Prune = False,
    json: options.Json = False,
) -> None:
    """Ingest these documents, and again whenever one changes, with one model load, until Ctrl-C.

    Needs the extra "watch".
    """
    from rag_memtok.pipeline import watch as watching

    rounds: list["Ingested"] = []
    failure, under_way = "", False

    def begin() -> None:
        nonlocal under_way
        under_way = True

    try:
        with console.progress_bar("chunks") as on_progress:
            for done in watching.watch(
                paths,
                dials,
                prune=prune,
                on_begin=begin,
                on_progress=on_progress,
                say=console.say,
            ):
                under_way = False
                if isinstance(done, RagMemtokError):
                    failure = str(done)
                    console.put_error(done, json)
                    continue
                told = bool(rounds) and rounds[-1].ignored == done.ignored
                failure = ""
                rounds.append(done)
                if json:
                    console.put_json(asdict(done))
                else:
                    ingest_views.put_ingested(replace(done, ignored=0) if told else done)
                console.say("watching; Ctrl-C ends")
    except KeyboardInterrupt:
        cut_short = under_way or not rounds
        if not json:
            missing = [path for path in paths if not os.path.exists(path)]
            # one that is cut short ends as interrupted, whether anybody reads that or not
            with suppress(BrokenPipeError) if cut_short else nullcontext():
                ingest_views.put_watched(rounds, failure, missing, cut_short=under_way)
        if cut_short:
            raise
