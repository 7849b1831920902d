"""The command that serves: serve. Parse, one library call."""

import typer

from rag_memtok.cli import console, options
from rag_memtok.config import Config
from rag_memtok.errors import UsageError

SERVING = (
    "serve.host", "serve.port", "serve.roots", "serve.names", "serve.places", "serve.rate",
    "serve.max_upload",
)  # fmt: skip


@options.settings(*options.ANSWERING, *SERVING)
def serve(dials: Config, trust_store: options.Trust = False) -> None:
    """Serve the store: a page to ask, OpenAI's API under /v1, and an API of its own.

    Beyond this machine (--host) it takes a token, in the variable RAG_MEMTOK_SERVE_TOKEN. Needs the
    extra "serve".
    """
    try:
        from rag_memtok.serve import app
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"to serve needs {missing.name}", remedy="pip install 'rag-memtok[serve]'"
        ) from None
    raise typer.Exit(app.serve(dials, trusted=trust_store, say=console.say, describe=console.noted))
