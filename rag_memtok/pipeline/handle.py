"""The front door: a store to hold, opened once and asked many times.

    import rag_memtok as rm

    with rm.open("./store") as store:
        store.ingest("./docs")
        print(store.ask("When does the warranty end?").answer)

Settings are those of the command line, as keywords: `k=5`, `tokens_per_vector=8`, `model="mini"`.
What is said meanwhile goes to the logger "rag_memtok".
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache, partial
from logging import getLogger
from threading import RLock

from rag_memtok.config import Config
from rag_memtok.datatypes import Answer, OnProgress, Source
from rag_memtok.documents.names import given_path
from rag_memtok.errors import NoStore, UsageError
from rag_memtok.model import lm
from rag_memtok.pipeline import api, resources
from rag_memtok.pipeline.answer import answer, quotations
from rag_memtok.pipeline.audit import Audit
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.resources import LoadLM, Say, store_folder
from rag_memtok.pipeline.restore import Restored
from rag_memtok.pipeline.session import Session, load_adapted
from rag_memtok.settings import here
from rag_memtok.store.files import database_identity

PathLike = str | os.PathLike[str]

log = getLogger("rag_memtok")


class MemoryStore:
    """A store to hold: what it has loaded for one call stays loaded for the next.

    Nothing is opened or loaded before it is needed, and the folder need not be there yet. Several
    threads may call it, and take turns. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        config: Config,
        *,
        trusted: bool,
        say: Say,
        on_progress: OnProgress,
        load_lm: LoadLM = lm.load,
    ) -> None:
        if config.cluster.engine != "processes":
            raise UsageError(
                f"cluster.engine is {config.cluster.engine!r}; a held store works in its process",
                remedy="rag-memtok ingest --engine ray, or rag_memtok.cluster.engine in Python",
            )
        self.config = config
        self._trusted, self._say, self._on_progress = trusted, say, on_progress
        self._load_lm = lru_cache(maxsize=1)(load_lm)
        self._load = lru_cache(maxsize=1)(partial(resources.load, load_lm=self._load_lm))
        self._adapt = lru_cache(maxsize=1)(load_adapted)
        self._turn = RLock()  # SQLite's connection, the tokenizer and the model serve one at once
        self._opened = ExitStack()
        self._session: Session | None = None
        self._identity: tuple[int, int] | None = None  # of the database it was opened after

    def ingest(self, *paths: PathLike, prune: bool = False) -> Ingested:
        """Writes a memory for every chunk of every new or changed file under `paths`.

        Raises:
            InputRefused, WrongModel, UsageError, ...: see `api.ingest`.
        """
        files = [given_path(path) for path in paths]
        with self._turn:
            return api.ingest(
                files,
                self.config,
                prune=prune,
                on_progress=self._on_progress,
                say=self._say,
                load=self._load,
            )

    def ask(
        self, question: str, on_text: Callable[[str], None] = quiet, *, before: str = ""
    ) -> Answer:
        """Answers a question; `on_text` gets the answer piece by piece.

        `before` is the question before this one in a dialogue: it may help to find memories.

        Raises:
            NoUsableMemory: nothing relevant is in the store.
            NoStore, InputRefused, ...: see `api.session`.
        """
        with self._turn:
            return answer(self.session(), question, on_text, before)

    def quotations(self, question: str) -> list[tuple[str, Source]]:
        """The chunks relevant to a question, best first: text and citation."""
        with self._turn:
            return quotations(self.session(), question)

    def verify(
        self,
        *,
        quick: bool = False,
        sample: float = 1.0,
        seed: int = 0,
        batch: int = 1,
        reference: bool = False,
        against: PathLike | None = None,
        report: PathLike | None = None,
    ) -> Audit:
        """The reconstruction audit; `.ok` says whether all that was asked for is proven.

        Args:
            quick: structure and checksums alone; decodes nothing.
            sample: the share of the chunks, drawn with `seed`.
            batch: chunks decoded together, without drafts, if that is more than 1.
            reference: decode every memory token by token, alone.
            against: a folder to compare the documents with.
            report: a file for the audit as an HTML page.
        """
        folder, page = (None if path is None else given_path(path) for path in (against, report))
        with self._turn:
            return api.verify(
                self.config,
                structure_only=quick,
                share=sample,
                seed=seed,
                folder=folder,
                on_progress=self._on_progress,
                page=page,
                batch=batch,
                reference=reference,
                load_lm=self._load_lm,
            )

    def restore(self, to: PathLike) -> Restored:
        """Writes the documents back from their memories alone.

        Raises:
            UsageError: a file of that name with other content is in the way, or `to` is empty.
        """
        with self._turn:
            return api.restore(given_path(to), self.config, self._on_progress, self._load_lm)

    def status(self) -> api.Status:
        """The store at a glance. Loads no model."""
        return api.status(self.config)

    def session(self) -> Session:
        """The session that questions are asked with; a new one when the store has changed.

        Another store in its place is such a change, as a migration puts it there. What is done with
        a session is for one thread at a time.
        """
        with self._turn:
            # Before anything is read of the file that is open: a journal beside the one in its
            # place would be taken for its own, and rolled back into it.
            identity = database_identity(store_folder(self.config))
            if self._identity != identity or (
                self._session and self._session.store.state != self._session.state
            ):
                self.close()
            if self._session is None:
                self._session = self._opened.enter_context(
                    api.session(
                        self.config,
                        self._say,
                        trusted=self._trusted,
                        load=self._load,
                        adapt=self._adapt,
                    )
                )
                self._identity = identity
            return self._session

    def beside(self, on_progress: OnProgress) -> "MemoryStore":
        """The same store for another thread; the weights are in memory once."""
        return MemoryStore(
            self.config,
            trusted=self._trusted,
            say=self._say,
            on_progress=on_progress,
            load_lm=lambda settings: lm.clone(self._load_lm(settings)),
        )

    def close(self) -> None:
        """Lets go of the store's file; the model stays loaded, and the next question reopens."""
        with self._turn:
            self._session = None
            self._opened.close()

    def __enter__(self) -> "MemoryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        folder = str(store_folder(self.config))
        try:
            status = self.status()
        except NoStore:
            return f"MemoryStore({folder!r}, nothing in it yet)"
        model = f"{status.manifest.get('model')} {status.manifest.get('revision', '')}".strip()
        size = f"{status.summary.documents} documents, {status.summary.chunks} chunks"
        return f"MemoryStore({folder!r}, {size}, {model})"


def open(
    store: PathLike | None = None,
    *,
    trust: bool = False,
    say: Say = log.warning,
    on_progress: OnProgress = quiet,
    **settings: object,
) -> MemoryStore:
    """A store to hold, at the folder `store`, else at that of the settings (`.rag-memtok`).

    Args:
        trust: ask a store that was not made here: whoever wrote its memories can steer answers.
        settings: those of the command line; they win over `RAG_MEMTOK_*` and rag-memtok.toml.

    Raises:
        UsageError: no such setting, or a value out of its range.
    """
    return MemoryStore(
        here(store=store, **settings), trusted=trust, say=say, on_progress=on_progress
    )


def _one_call(settings: dict[str, object]) -> MemoryStore:
    return open(**settings)  # type: ignore[arg-type]


def ingest(*paths: PathLike, prune: bool = False, **settings: object) -> Ingested:
    """Writes a memory for every chunk of every new or changed file under `paths`.

    Several calls in a row: `open` keeps the model loaded.
    """
    with _one_call(settings) as store:
        return store.ingest(*paths, prune=prune)


def ask(question: str, **settings: object) -> Answer:
    """Answers one question from a store. Several in a row: `open` keeps the model loaded."""
    with _one_call(settings) as store:
        return store.ask(question)


def verify(**settings: object) -> Audit:
    """The reconstruction audit of a store: every chunk, every document."""
    with _one_call(settings) as store:
        return store.verify()


def restore(to: PathLike, **settings: object) -> Restored:
    """Writes the documents of a store back from their memories alone."""
    with _one_call(settings) as store:
        return store.restore(to)
