"""The command that serves: serve. Parse, one library call."""

from pathlib import Path
from typing import Annotated

import typer

from rag_memtok.cli import console, options
from rag_memtok.errors import UsageError
from rag_memtok.settings import here


def serve(
    store: options.Store = None,
    collection: options.Collection = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Where to listen.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", help="The port; 0: any that is free.", show_default="8420"),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option("--root", help="A folder whose paths may be ingested; may be repeated."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Another name of this machine; may be repeated."),
    ] = None,
    places: Annotated[
        int | None,
        typer.Option("--places", help="Questions that may wait.", show_default="128"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", help="Requests a second of one address; 0: no limit.", show_default="100"
        ),
    ] = None,
    max_upload: Annotated[
        int | None,
        typer.Option("--max-upload", help="Bytes of an upload.", show_default="100000000"),
    ] = None,
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
) -> None:
    """Serve the store: a page to ask, OpenAI's API under /v1, and an API of its own.

    Beyond this machine (--host) it takes a token, in the variable RAG_MEMTOK_SERVE_TOKEN. Needs the
    extra "serve".
    """
    dials = here(
        store=store, collection=collection, serve__host=host, serve__port=port,
        serve__roots=None if root is None else [str(one) for one in root], serve__names=name,
        serve__places=places, serve__rate=rate, serve__max_upload=max_upload, model__id=model,
        model__dtype=dtype, model__device=device, model__threads=threads,
        retrieve__embedder=embedder, retrieve__k=k, ask__read=read, ask__passages=passages,
        ask__adapter=adapter, ask__max_new_tokens=max_new_tokens,
    )  # fmt: skip
    try:
        from rag_memtok.serve import app
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"to serve needs {missing.name}", remedy="pip install 'rag-memtok[serve]'"
        ) from None
    app.serve(dials, trust_store, console.say)
