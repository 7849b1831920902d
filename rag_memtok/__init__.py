"""Retrieval-augmented generation over memory tokens.

    import rag_memtok as rm

    rm.ingest("./docs")
    rm.ask("When does the warranty end?").answer
    rm.verify().ok

`rm.open("./store")` keeps the model loaded for many questions. Everything here is imported when it
is first used (PEP 562): the command line's help loads no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_memtok.config import Config as Config
    from rag_memtok.datatypes import Answer as Answer
    from rag_memtok.pipeline.audit import Audit as Audit
    from rag_memtok.pipeline.handle import MemoryStore as MemoryStore
    from rag_memtok.pipeline.handle import ask as ask
    from rag_memtok.pipeline.handle import ingest as ingest
    from rag_memtok.pipeline.handle import open as open
    from rag_memtok.pipeline.handle import restore as restore
    from rag_memtok.pipeline.handle import verify as verify
    from rag_memtok.serve.client import Client as Client

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Audit",
    "Client",
    "Config",
    "MemoryStore",
    "__version__",
    "ask",
    "ingest",
    "open",
    "restore",
    "verify",
]
HOMES = {  # the rest: handle
    "Answer": "datatypes",
    "Audit": "pipeline.audit",
    "Client": "serve.client",
    "Config": "config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.settings").share_cores()
    return getattr(import_module(f"{__name__}.{HOMES.get(name, 'pipeline.handle')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
