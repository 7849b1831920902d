"""The command line: parse, one library call, print. The only home of typer; commands import what they need, so --help is quick."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from rag_memtok import __version__, config, terminal
from rag_memtok.errors import DiskFailure, NoUsableMemory, OutOfMemory, PermissionRefused, RagMemtokError, UsageError


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
    name="rag-memtok", cls=Commands, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None
)

StoreOption = Annotated[str | None, typer.Option("--store", help="The store's folder.", show_default=".rag-memtok")]
ModelOption = Annotated[str | None, typer.Option("--model", help="mini, a folder or a hub id.", show_default="the store's, or mini")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="The model's revision on the hub.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.", show_default="the store's, or float32")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.", show_default="auto")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads.", show_default="automatic")]
EmbedderOption = Annotated[
    str | None, typer.Option("--embedder", help="mini, or a sentence-transformers folder or id.", show_default="the store's, or mini")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def settings(**flags: object) -> config.Config:
    """The effective settings: `flags` are dials with `__` for the dot, None where not given."""
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return config.load(given, os.environ, Path.cwd())


@app.command(epilog="Example: rag-memtok ingest ./docs --exclude 'drafts/'")
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: StoreOption = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    embedder: EmbedderOption = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="gitignore-style pattern; may be repeated.")] = None,
    chunk_tokens: Annotated[int | None, typer.Option("--chunk-tokens", help="Tokens of a chunk, at most.", show_default="128")] = None,
    tokens_per_vector: Annotated[
        int | None, typer.Option("--tokens-per-vector", help="Text tokens a memory vector holds; 0 finds out.", show_default="0")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="How memories are written.", show_default="margin")] = None,
    template: Annotated[str | None, typer.Option("--template", help="bare or cue.", show_default="the store's, or bare")] = None,
    codec: Annotated[str | None, typer.Option("--codec", help="How vectors are stored.", show_default="float16")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps a chunk, at most.", show_default="300")] = None,
    seconds_per_chunk: Annotated[
        float | None, typer.Option("--seconds-per-chunk", help="Seconds a chunk, at most; 0: no bound.", show_default="3")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Chunks written together.", show_default="8")] = None,
    max_pins: Annotated[int | None, typer.Option("--max-pins", help="Refuse a chunk with more correction pins.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the writer.", show_default="0")] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Keep no text: dense retrieval only.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove from the store what is gone from the folders.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written and how long it takes.")] = False,
    skip_ok: Annotated[bool, typer.Option("--skip-ok", help="Exit 0 even if some inputs were skipped.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a memory for every chunk of these documents, judge it, and store it. Unchanged files cost nothing; run again to resume."""
    from rag_memtok import pipeline

    dials = settings(
        store=store, model__id=model, model__revision=revision, model__dtype=dtype, model__device=device, model__threads=threads,
        retrieve__embedder=embedder, documents__exclude=exclude or None, documents__chunk_tokens=chunk_tokens,
        memorize__tokens_per_vector=tokens_per_vector, memorize__recipe=recipe, memorize__template=template, memorize__codec=codec,
        memorize__steps=steps, memorize__seconds_per_chunk=seconds_per_chunk, memorize__batch=batch, memorize__max_pins=max_pins,
        memorize__seed=seed, memorize__keep_text=False if no_text else None,
    )  # fmt: skip
    if dry_run:
        found = pipeline.estimate(paths, dials)
        terminal.put_json(asdict(found)) if json else terminal.put_estimate(found)
        return
    if not dials.memorize.keep_text:
        terminal.say("no text is kept: retrieval is by meaning alone, and an audit can show no differences in words")
    with terminal.bar("chunks") as show:
        done = pipeline.ingest(paths, dials, prune, lambda at: show(at.done, at.chunks, terminal.standing_note(at)), terminal.say)
    terminal.put_json(asdict(done)) if json else terminal.put_ingested(done)
    if done.over_limit:
        raise typer.Exit(4)
    if done.skipped and not skip_ok:
        raise typer.Exit(3)


@app.command(epilog='Example: rag-memtok ask "When does the warranty end?"')
def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads one a line from standard input.")],
    store: StoreOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    embedder: EmbedderOption = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="How many memories to use.", show_default="3")] = None,
    read: Annotated[str | None, typer.Option("--read", help="memory, decode, text or auto.", show_default="auto")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="Tokens of the answer, at most.", show_default="64")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Answer a question from the store, with sources."""
    from rag_memtok import answer, pipeline

    dials = settings(
        store=store, model__id=model, model__dtype=dtype, model__device=device, model__threads=threads, retrieve__embedder=embedder,
        retrieve__k=k, ask__read=read, ask__max_new_tokens=max_new_tokens,
    )  # fmt: skip
    if question != "-" and not question.strip():
        raise UsageError("the question is empty", remedy='rag-memtok ask "When does the warranty end?"')
    streams = sys.stdout.isatty() and not json
    failed = False
    with pipeline.session(dials, terminal.say) as session:
        for one in [question] if question != "-" else (line.strip() for line in sys.stdin if line.strip()):
            try:
                found = answer.answer(session, one, (lambda text: terminal.put(text, end="")) if streams else lambda text: None)
            except NoUsableMemory as error:
                if question != "-":
                    raise
                failed = True
                terminal.put_error(error, json)
                continue
            terminal.put_json(asdict(found)) if json else terminal.put_answer(found, streams)
    if failed:
        raise typer.Exit(NoUsableMemory.exit_code)


@app.command(epilog="Example: rag-memtok verify --sample 5%")
def verify(
    store: StoreOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Structure and checksums only; loads no model.")] = False,
    sample: Annotated[str | None, typer.Option("--sample", help="A share of the chunks, such as 5%.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample.")] = 0,
    against: Annotated[Path | None, typer.Option("--against", help="Compare the documents with this folder.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the audit as an HTML page, too.")] = None,
    json: JsonOption = False,
) -> None:
    """Prove that nothing was lost: decode every memory, rejoin every document, compare."""
    from rag_memtok import pipeline

    dials = settings(store=store, model__id=model, model__device=device, model__threads=threads)
    with terminal.bar("chunks") as show:
        found = pipeline.verify(dials, quick, share_of(sample), seed, against, lambda done, total: show(done, total, ""), report)
    if json:
        terminal.put_json(
            {"counts": dict(found.counts), "documents": found.documents, "profile": found.profile,
             "failing": [asdict(one) for one in found.findings], "chunks": found.chunks, "checked": found.checked,
             "documents_proven": found.documents_proven, "sample": found.sample, "seconds": found.seconds}
        )  # fmt: skip
    else:
        terminal.put_audit(found)
    code = found.exit_code
    if quick and code == 6 and not found.findings and found.chunks:
        code = 0  # nothing more was asked for
    raise typer.Exit(code)


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


@app.command(epilog="Example: rag-memtok restore --to ./restored")
def restore(
    to: Annotated[Path, typer.Option("--to", help="The folder to write into.")],
    store: StoreOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Write the documents back from their memories alone."""
    from rag_memtok import pipeline

    dials = settings(store=store, model__id=model, model__device=device, model__threads=threads)
    with terminal.bar("chunks") as show:
        done = pipeline.restore(to, dials, lambda count, total: show(count, total, ""))
    terminal.put_list("not restored", [f"{path}: {reason}" for path, reason in done.failed])
    terminal.put(f"{len(done.written)} documents written to {to}")
    if done.failed:
        raise typer.Exit(5)


@app.command(epilog="Example: rag-memtok status --json")
def status(store: StoreOption = None, json: JsonOption = False) -> None:
    """Say what is in the store. Loads no model."""
    from rag_memtok import pipeline

    found = pipeline.status(settings(store=store))
    if not json:
        terminal.put_status(found)
        return
    verdicts, manifest = found.summary.verdicts, found.manifest
    terminal.put_json(
        {"chunks": found.summary.chunks, "documents": found.summary.documents, "exact": verdicts.get("exact", 0),
         "pinned": verdicts.get("pinned", 0), "assisted": verdicts.get("assisted", 0), "text_only": verdicts.get("text-only", 0),
         "model": manifest["model"], "format": int(manifest["format"]), "generation": found.generation,
         "tokens_per_vector": int(manifest["tokens_per_vector"]), "bytes": found.bytes}
    )  # fmt: skip


@app.command(epilog="Example: rag-memtok rm docs/old-handbook.md")
def rm(path: Annotated[Path, typer.Argument(help="A file or folder, as it was ingested.")], store: StoreOption = None) -> None:
    """Forget a file or folder: its documents, and every memory no other document has. The files themselves stay."""
    from rag_memtok import pipeline

    for name in pipeline.remove(path, settings(store=store)):
        terminal.put(f"forgot {name}")


def show_version(wanted: bool) -> bool:
    """Prints the version and ends."""
    if wanted:
        terminal.put(f"rag-memtok {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Retrieval-augmented generation over memory tokens: audited, lossless, readable."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends the work as Ctrl-C does."""


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM."""
    raise Terminated


def translated(error: BaseException) -> RagMemtokError | None:
    """What the system's own errors mean; None for a bug."""
    if isinstance(error, RagMemtokError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("out of memory", remedy="a smaller --batch, fewer --chunk-tokens, or a smaller --model")
    if isinstance(error, PermissionError):
        return PermissionRefused(f"{error.filename}: {error.strerror}", remedy="check the permissions of that path")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return DiskFailure(f"{error.filename}: {error.strerror}", remedy="free some space, or name another --store")
    return None


def main() -> None:
    """Runs a command and exits with its code."""
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(lambda: app(standalone_mode=False)))


def run(command: Callable[[], Any]) -> int:
    """Runs `command` and returns the exit code; whatever it raises on purpose is told, a bug is a traceback."""
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
        terminal.say("interrupted; what is done is kept: run the same command again to go on")
        return 143 if isinstance(interrupt, Terminated) else 130
    except typer.Abort:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again while it ends
        return 141
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            terminal.say(f"error: {error.format_message()}")
            return int(error.exit_code)
        known = translated(error)
        if known is None:
            raise
        terminal.put_error(known, "--json" in sys.argv)
        return known.exit_code
