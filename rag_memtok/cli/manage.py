"""What is done with a store, as commands: parse, one library call, print.

The commands are status list show config rm export export-reader import migrate adapt.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from rag_memtok.cli import console, options, views
from rag_memtok.config import Config
from rag_memtok.documents.names import given_path
from rag_memtok.errors import UsageError
from rag_memtok.settings import load, updated


@options.settings(*options.STORE)
def status(dials: Config, json: options.Json = False) -> None:
    """Say what is in the store. Loads no model."""
    from rag_memtok.pipeline import api

    found = api.status(dials)
    if not json:
        views.put_status(found)
        return
    verdicts, manifest = found.summary.verdicts, found.manifest
    console.put_json(
        {
            "chunks": found.summary.chunks,
            "documents": found.summary.documents,
            "exact": verdicts.get("exact", 0),
            "pinned": verdicts.get("pinned", 0),
            "assisted": verdicts.get("assisted", 0),
            "text_only": verdicts.get("text-only", 0),
            "damaged": verdicts.get("damaged", 0),
            "readable": found.summary.readable,
            "unfinished": found.summary.orphans,
            "outdated": found.outdated,
            "adapter": found.adapter,
            "model": manifest["model"],
            "format": int(manifest["format"]),
            "generation": found.generation,
            "tokens_per_vector": int(manifest["tokens_per_vector"]),
            "bytes": found.bytes,
        }
    )


@options.settings(*options.STORE)
def list_(
    dials: Config,
    documents: Annotated[
        bool, typer.Option("--documents", help="The documents; what is listed if nothing is said.")
    ] = False,
    chunks: Annotated[bool, typer.Option("--chunks", help="The chunks, with their ids.")] = False,
    collections: Annotated[
        bool, typer.Option("--collections", help="The stores under --store.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List what is in the store: documents, chunks and their verdicts. Loads no model."""
    from rag_memtok.pipeline import api

    if collections:
        stores = api.collections(dials)
        console.put_json(
            {"collections": [asdict(one) for one in stores]}
        ) if json else views.put_collections(stores)
        return
    answer: dict[str, object] = {}
    if documents or not chunks:
        papers = api.documents(dials)
        answer["documents"] = [
            asdict(one.document) | {"name": one.name, "verdicts": dict(one.verdicts)}
            for one in papers
        ]
        if not json:
            views.put_documents(papers)
    if chunks:
        pieces = api.chunks(dials)
        answer["chunks"] = [asdict(one) for one in pieces]
        if not json:
            views.put_chunks(pieces)
    if json:
        console.put_json(answer)


@options.settings(*options.STORE, *options.MODEL)
def show(
    dials: Config,
    chunk: Annotated[
        str,
        typer.Argument(
            help="The beginning of a chunk's id, as list --chunks and ask --json give it."
        ),
    ],
    json: options.Json = False,
) -> None:
    """Decode one memory and show it.

    Shown are its tokens, by how much each leads, its pins, and its bytes against its text's.
    """
    from rag_memtok.pipeline import api

    found = api.show(chunk, dials)
    console.put_json(asdict(found)) if json else views.put_shown(found)
    if not found.verdict.proven and found.verdict.kind != "fragile":
        raise typer.Exit(5)


@options.flags(
    *options.STORE, "model.id", "model.revision", "model.dtype", "model.device", "model.threads",
    "retrieve.embedder",
)  # fmt: skip
def config(
    given: Mapping[str, object],
    drop_cache: Annotated[
        bool, typer.Option("--drop-cache", help="Remove converted models; they are made again.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Say every setting's effective value, and where it comes from.

    That is a flag, variable, file, store or default.
    """
    from rag_memtok.model import gguf
    from rag_memtok.pipeline import api

    if drop_cache:
        views.put_cache(gguf.cache(), gguf.drop_cache(), gone=True)
        return
    found = api.effective(given, os.environ, Path.cwd(), load(given, os.environ, Path.cwd()))
    console.put_json(
        {one.name: {"value": one.value, "from": one.origin} for one in found}
    ) if json else views.put_settings(found)
    if not json:
        views.put_cache(gguf.cache(), gguf.cache_bytes())


@options.settings(*options.STORE)
def rm(
    dials: Config,
    path: Annotated[
        Path, typer.Argument(parser=given_path, help="A file or folder, as it was ingested.")
    ],
) -> None:
    """Forget a file or folder: its documents, and every memory no other document has.

    The files themselves stay, but for those that a server was sent: its copies go, too.
    """
    from rag_memtok.pipeline import api

    for name in api.remove(path, dials):
        console.put(f"forgot {name}")


@options.settings(*options.STORE)
def export(
    dials: Config,
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    json: options.Json = False,
) -> None:
    """Write the whole store into one file (safetensors): to move it, to give it away.

    It is its documents' text.
    """
    from rag_memtok.pipeline import api

    done = api.export(file, dials)
    console.put_json(asdict(done)) if json else views.put_exported(done)


@options.settings(*options.STORE, "model.id", "model.threads", "ask.adapter")
def export_reader(
    dials: Config,
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="What the weights are written in."),
    ] = "float32",
    trust_store: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Write the model that answers, its reader merged, for a server; say how to start one.

    That is for `ask --engine vllm`. It is the store's model, or a new store's where there is none.
    """
    from rag_memtok.pipeline.export_reader import export_reader

    done = export_reader(folder, dials, dtype, console.say, trusted=trust_store)
    console.put_json(asdict(done)) if json else views.put_exported_reader(done)


@options.settings(*options.STORE)
def import_(
    dials: Config,
    file: Annotated[Path, typer.Argument(help="A file of export.")],
    trust_store: Annotated[
        bool, typer.Option("--trust-store", help="Take it as your own, whoever made it.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make a store from an exported file. What does not match its checksum is refused."""
    from rag_memtok.pipeline import api

    done = api.import_(file, dials, trusted=trust_store)
    console.put_json(asdict(done)) if json else views.put_imported(done)


@options.settings(
    *options.STORE, "model.revision", "model.dtype", "model.device", "model.threads",
    "memorize.tokens_per_vector", "memorize.seconds_per_chunk", "memorize.processes",
)  # fmt: skip
def migrate(
    dials: Config,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The new model: smollm2, mini, a folder, a GGUF file, a hub id."
        ),
    ] = None,
    embedder: Annotated[
        str | None, typer.Option("--embedder", help="The new embedder: other keys, same memories.")
    ] = None,
    drop_old: Annotated[
        bool,
        typer.Option(
            "--drop-old", help="Remove the old store in the end; else it is kept in DIR.old."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Rewrite every memory for another model, or make every key anew with another embedder.

    Memories are written beside the old store and proved, then it is switched. Run again to resume.
    """
    from rag_memtok.pipeline import api

    if not model and not embedder:
        raise UsageError("nothing to migrate to", remedy="--model NAME, --embedder NAME, or both")
    wanted = {"model.id": model, "retrieve.embedder": embedder}
    dials = updated(dials, {name: value for name, value in wanted.items() if value})
    with console.progress_bar("chunks") as on_progress:
        done = None
        # keys first: the old embedder need not be there any more
        keyed = api.rekey(dials, on_progress) if embedder else None
        if model:
            done = api.migrate(dials, drop_old=drop_old, on_progress=on_progress, say=console.say)
    if json:
        written = asdict(done) if done else {}
        console.put_json(written | ({"keys": asdict(keyed)} if keyed else {}))
        return
    if done:
        views.put_migrated(done)
    if keyed:
        views.put_rekeyed(keyed)


@options.settings(
    *options.STORE, *options.MODEL, "adapt.kind", "adapt.steps", "adapt.minutes", "adapt.batch",
    "adapt.questions", "adapt.seed",
)  # fmt: skip
def adapt(
    dials: Config,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Questions: rows of question, answers and context or file."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The adapter's folder.", show_default="in the store"),
    ] = None,
    trust_store: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Train an adapter (LoRA) with which the model reads this store's memories.

    `ask` takes it by itself. Run again to resume.
    """
    from rag_memtok.adapt import run

    with console.progress_bar("done") as on_progress:
        done = run.adapt(
            dials, data, out, on_progress=on_progress, say=console.say, trusted=trust_store
        )
    console.put_json(asdict(done)) if json else views.put_adapted(done)
