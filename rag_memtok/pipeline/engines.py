"""Which engine generates: the model of this process, or a server that has the same one."""

import os
from dataclasses import replace

from rag_memtok.errors import UsageError
from rag_memtok.model.connect import ServedAdapter, connect, connect_adapter
from rag_memtok.model.lora import rank_of
from rag_memtok.model.wire import TOKEN, Server, header_token
from rag_memtok.pipeline.session import Session, active_adapter


def with_engine(session: Session) -> Session:
    """The session with the server that its settings name, proved to have the session's model.

    Raises:
        WrongModel, EngineUnavailable, PermissionRefused: see `connect` and, with
            `ask.probe_lora`, `connect_adapter`.
        UsageError: an adapter's server is to be probed, and none is on.
    """
    settings = session.config.ask
    if settings.engine == "here":
        return session
    url = settings.url if "://" in settings.url else f"http://{settings.url}"
    token = header_token(os.environ.get(TOKEN, ""), TOKEN)
    server = Server(url, settings.engine_seconds, token)
    lm, adapter = session.reading or session.lm, active_adapter(session)
    if not settings.probe_lora:
        return replace(session, remote=connect(server, lm))
    if adapter is None:
        raise UsageError(
            "--probe-lora: no adapter is on when this store is read", remedy="leave it out"
        )
    folder = adapter.folder.absolute()
    rank = rank_of(folder, adapter.manifest)
    served = ServedAdapter(adapter.manifest.adapter_sha256, str(folder), rank)
    return replace(session, remote=connect_adapter(server, lm, served))
