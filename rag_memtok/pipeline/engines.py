"""Which engine generates: the model of this process, or a server that has the same one."""

import os
from dataclasses import replace

from rag_memtok.model import remote
from rag_memtok.model.wire import TOKEN, Server
from rag_memtok.pipeline.readers import Session


def with_engine(session: Session) -> Session:
    """The session with the server that its settings name, proved to have the session's model.

    Raises:
        WrongModel, EngineUnavailable, PermissionRefused: see `remote.connected`.
    """
    settings = session.config.ask
    if settings.engine == "here":
        return session
    url = settings.url if "://" in settings.url else f"http://{settings.url}"
    server = Server(url, settings.engine_seconds, os.environ.get(TOKEN, ""))
    return replace(session, remote=remote.connect(server, session.reading or session.lm))
