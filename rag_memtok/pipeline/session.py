"""What stays loaded between questions, with the adapter on that its reader needs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from rag_memtok.config import Config, require
from rag_memtok.errors import UsageError
from rag_memtok.memory.encoder import Encoder
from rag_memtok.model import lora
from rag_memtok.model.engine import Engine, LocalEngine
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import for_reading
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.adapters import Adapter, Adapters, load_encoder_of
from rag_memtok.pipeline.reader_choice import choose_reader, vector_reader
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.index import Index
from rag_memtok.store.store import Store


@runtime_checkable
class Adapt(Protocol):
    """What gives the LM with an adapter on."""

    def __call__(
        self, lm: LM, template_sha256: str, folder: Path, *, quick: bool, adapter_sha256: str
    ) -> LM:
        """See `load_adapted`."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Session:
    """The store, models and settings that stay loaded between questions.

    `reading` is the LM with that one of the `adapters` on that reads as the session's reader does:
    it answers, and does nothing else; None: there is none. `encoder` is what makes vectors for a
    question, and plans windows, where these are read. `remote` is the server that answers in its
    place, if one does. `state` is the store's from before its index was opened: what was written
    meanwhile makes it another.
    """

    store: Store
    lm: LM
    template: Template
    embedder: Embedder
    index: Index
    state: str
    config: Config
    on_warning: Callable[[str], None] = lambda message: None
    adapters: Adapters = Adapters()
    reading: LM | None = None
    encoder: Encoder | None = None
    remote: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine that generates answers."""
        return self.remote or LocalEngine(self.reading or self.lm)


def reads_per_passage(session: Session) -> bool:
    """Whether each of several passages gets a prompt of its own.

    It is as the settings say; `auto`: where the reader that reads, that of vectors or of text, else
    the model, was measured to be better so.
    """
    adapters, manifest = session.adapters, session.store.manifest
    read_as = choose_reader(session.config.ask, manifest, adapters, 1)[0]
    reader = vector_reader(read_as, manifest, adapters) or adapters.text
    setting: str = session.config.ask.passages
    if setting == "auto" and reader is not None and reader.manifest.passages:
        setting = reader.manifest.passages
    return session.config.retrieve.k > 1 and (
        setting == "apart" or (setting == "auto" and session.lm.reads_per_passage)
    )


def reader_of(session: Session) -> tuple[str, str]:
    """The reader that answers with the session's adapters at hand, and why."""
    config = session.config
    return choose_reader(
        config.ask,
        session.store.manifest,
        session.adapters,
        1 if reads_per_passage(session) else config.retrieve.k,
    )


def load_adapted(
    lm: LM, template_sha256: str, folder: Path, *, quick: bool, adapter_sha256: str
) -> LM:
    """The LM with an adapter on; the adapter's hash tells it from one in the same folder before.

    `quick`: in the arithmetic in which texts are read here.

    Raises:
        WrongModel, InputRefused: see `lora.load_adapter`.
    """
    return lora.load_adapter(for_reading(lm) if quick else lm, folder, template_sha256)


def with_adapters(session: Session, adapters: Adapters, load: Adapt = load_adapted) -> Session:
    """The session with its adapters, and the LM with the one on that its reader needs.

    Args:
        load: gives the LM that reads, which may be loaded already.

    Raises:
        WrongModel, InputRefused: see `lora.load_adapter`.
        UsageError: vectors are to be made for a question, or stored ones unfolded, and there is no
            encoder for such, or no such vectors.
    """
    equipped = replace(session, adapters=adapters)
    chosen = active_adapter(equipped)
    reader = reader_of(equipped)[0]
    if reader in ("zoomed", "unfolded"):
        encoder = _load_encoder(equipped, reader)
        if reader == "zoomed":
            zoom, most = session.config.ask.zoom, encoder.max_window
            require(zoom <= most, "ask.zoom", zoom, f"1 to {most} with this encoder")
        equipped = replace(equipped, encoder=encoder)
    if chosen is None:
        return equipped
    manifest = chosen.manifest
    quick = manifest.kind == "text" and session.config.ask.engine == "here"
    reading = load(
        session.lm,
        session.template.digest,
        chosen.folder,
        quick=quick,
        adapter_sha256=manifest.adapter_sha256,
    )
    return replace(equipped, reading=reading)


def active_adapter(session: Session) -> Adapter | None:
    """The adapter of the session that is on when its reader reads; None: it has none."""
    reader, adapters = reader_of(session)[0], session.adapters
    return vector_reader(reader, session.store.manifest, adapters) or adapters.of(reader)


def _load_encoder(session: Session, reader: str) -> Encoder:
    adapter = vector_reader(reader, session.store.manifest, session.adapters)
    encoder = load_encoder_of(adapter, session.lm)
    if encoder is None and reader == "unfolded":
        raise UsageError(
            "the store has no readable vectors that a reader here reads: --read unfolded cannot be "
            "had",
            remedy="leave it out; rag-memtok ingest DOCUMENTS --readable 3 gives a store such",
        )
    if encoder is None:
        raise UsageError(
            f"there is no encoder for {session.lm.identity.id}: --read zoomed cannot be had",
            remedy="leave it out, or name the folder of an encoder and its reader: --adapter",
        )
    return encoder
