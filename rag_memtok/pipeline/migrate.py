"""A store written anew for another model, or given keys of another embedder.

For another model it is made side by side, verified, then put in the place of the old one by
renaming.

    DIR             the old store, locked until the end, untouched until the switch
    DIR.migrating   the new one; a kill leaves it, and running again goes on with it
    DIR.old         the old one after the switch

Chunks keep their texts, ids and places, and what a server was sent (`uploads/`) comes along. Text
comes from the table of kept texts or, where none is kept, from the memories themselves, decoded
with the old model; either way its hash is the chunk's id. An encoder's vectors, made for the old
model, stay behind. Keys alone are changed in place, all in one transaction; no memory is touched.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rag_memtok.config import Config, Model
from rag_memtok.datatypes import Chunk, OnProgress, StoredDocument, sha256_of_text
from rag_memtok.errors import InputRefused, StoreDamaged, UsageError
from rag_memtok.memory.batch import Task, make_task
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.audit import audit, placed_chunks
from rag_memtok.pipeline.manifest import (
    KEEP_TEXT,
    complete_config,
    find_differences,
    manifest_of,
    require_same,
)
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.pipeline.reconstruction import reconstruct
from rag_memtok.pipeline.resources import (
    Components,
    Load,
    Say,
    choose_calibration,
    load_decoder,
)
from rag_memtok.pipeline.switch import (
    MIGRATING,
    OLD,
    finish_switch,
    mark_proved,
    remove_old,
    switch,
)
from rag_memtok.pipeline.writer import Writer, text_only_record
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.lines import EVERY
from rag_memtok.store import ownership
from rag_memtok.store.files import DATABASE, carry_uploads, sibling
from rag_memtok.store.store import Store, create, open_store

ENCODED = 64  # texts that an embedder gets at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """The result of a migration.

    `chunks` were written by this run; `kept` is the old store's folder, "" if there is none (any
    more).
    """

    model: str
    chunks: int
    verdicts: Mapping[str, int]
    kept: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """The result of a change of the embedder: `chunks` have new keys."""

    embedder: str
    chunks: int
    seconds: float


@dataclass(slots=True, eq=False)
class Migration:
    """A migration under way, from an old store to a new one that is open for writing."""

    old: Store
    writer: Writer
    text_of: Callable[[str], str]

    @property
    def new(self) -> Store:
        """The store that is written."""
        return self.writer.store

    def run(self) -> None:
        """Writes every memory the new store lacks, then every document."""
        missing = self.new.missing(placed_chunks(self.old))
        self.writer.expect(len(missing))
        for record in self.writer.write(self._tasks(missing)):
            keyed = replace(record, key=self._key(record.chunk_id))
            self.writer.keep(keyed, self.old.text(record.chunk_id))
            self.writer.tell()
        self._place()

    def _tasks(self, chunk_ids: tuple[str, ...]) -> Iterator[Task]:
        """Yields the tasks, one text at a time: the store need not fit into memory."""
        lm, per_vector = self.writer.lm, self.writer.config.memorize.tokens_per_vector
        for chunk_id in chunk_ids:
            text = self.text_of(chunk_id)
            tokens = tuple(lm.encode(text))
            if lm.decode(tokens) == text:
                yield make_task(chunk_id, tokens, per_vector)
            else:
                self._keep_as_text(chunk_id, text)

    def _keep_as_text(self, chunk_id: str, text: str) -> None:
        stored_text = self.old.text(chunk_id)
        if stored_text is None:
            raise InputRefused(
                f"the tokenizer of {self.writer.config.model.id} does not give chunk "
                f"{chunk_id[:12]} back, and the store keeps no text",
                remedy="migrate to a model with another tokenizer, or ingest the documents anew",
            )
        chunk = Chunk(text, 0, len(text), "")
        self.writer.keep(text_only_record(chunk, self._key(chunk_id)), stored_text)

    def _key(self, chunk_id: str) -> Float[np.ndarray, " e"] | None:
        return self.old.record(chunk_id).key

    def _place(self) -> None:
        """Gives the new store the old one's documents and no others.

        The old may have lost some since an earlier run was killed.
        """
        files: dict[tuple[str, str], list[StoredDocument]] = {}
        for document in self.old.documents():
            files.setdefault((document.root, document.file), []).append(document)
        for root, file in {
            (document.root, document.file) for document in self.new.documents()
        } - files.keys():
            self.new.remove_file(root, file)
        for (root, file), of_file in sorted(files.items()):
            places = [
                place
                for document in of_file
                for place in self.old.document_chunks(root, document.path)
            ]
            self.new.replace_file(root, file, of_file, places)
        self.new.collect()


def migrate(
    folder: Path,
    config: Config,
    *,
    drop_old: bool,
    load: Load,
    on_progress: OnProgress,
    say: Say,
) -> Migrated:
    """Rewrites every memory of the store for the model that `config` names.

    Run again, it goes on where it was.

    Raises:
        UsageError: DIR.old is in the way, or is to be removed and no migration put it there.
        WrongModel: DIR.migrating is for yet another model.
        StoreDamaged: a memory cannot be read, or the new store was not proved: nothing was
            switched.

    Cost: an ingest of the whole store and a verify; the disk of two stores.
    """
    began = time.monotonic()
    if folder.is_symlink():  # the store is moved, not what points to it
        folder = folder.resolve()
    finish_switch(folder)
    with open_store(folder, write=True) as old:
        settings = _complete_settings(config, old.manifest)
        components = load(settings)
        verdicts: Mapping[str, int] = {}
        if find_differences(old.manifest, components.lm, components.template):
            if sibling(folder, OLD).exists():
                raise UsageError(
                    f"{sibling(folder, OLD)} is in the way",
                    remedy="remove or rename it; the old store will be kept there",
                )
            verdicts = _write_new_store(
                old,
                sibling(folder, MIGRATING),
                components,
                settings=settings,
                on_progress=on_progress,
                say=say,
            )
            say(f"proved; it takes the place of {folder}")
            switch(folder)
    return Migrated(
        model=settings.model.id,
        chunks=sum(verdicts.values()),
        verdicts=verdicts,
        kept=remove_old(folder, drop=drop_old),
        seconds=time.monotonic() - began,
    )


def rekey(folder: Path, config: Config, on_progress: OnProgress) -> Rekeyed:
    """Gives every chunk a key of the embedder that `config` names.

    Raises:
        ModelUnavailable, InputRefused: see `load_embedder`.
        StoreDamaged: a chunk's text cannot be read; nothing was changed.

    Cost: an encoding of every text; where none is kept, a decode of every memory.
    """
    began = time.monotonic()
    embedder = load_embedder(config.retrieve.embedder)
    with open_store(folder, write=True) as store:
        chunk_ids = store.chunk_ids()
        if store.manifest.get("embedder_sha256") == embedder.digest:
            chunk_ids = ()
        text_of = _text_reader(store, complete_config(config, store.manifest))
        reporter = Reporter(on_progress=on_progress, total=len(chunk_ids), stage="keys")
        keys: dict[str, np.ndarray] = {}
        for start in range(0, len(chunk_ids), ENCODED):
            batch = chunk_ids[start : start + ENCODED]
            texts = [text_of(chunk_id) for chunk_id in batch]
            keys |= zip(batch, embedder.encode(texts, query=False), strict=True)
            reporter.advance(len(batch))
        if keys:
            manifest = {"embedder": embedder.id, "embedder_sha256": embedder.digest}
            store.set_keys(keys, manifest)
            open_index(store, embedder, EVERY)
    return Rekeyed(embedder.id, len(keys), time.monotonic() - began)


def _complete_settings(config: Config, manifest: Mapping[str, str]) -> Config:
    """The settings for the new model: those of the store but for what depends on the model."""
    kept = {
        key: manifest[key]
        for key in ("embedder", "template", "chunk_tokens", "codec", "write")
        if key in manifest
    }
    documents, memorize = (
        replace(config.documents, chunk_tokens=0),
        replace(config.memorize, codec="", write=""),
    )
    retrieve = replace(config.retrieve, embedder="")
    return complete_config(
        replace(config, documents=documents, memorize=memorize, retrieve=retrieve), kept
    )


def _write_new_store(
    old: Store,
    target: Path,
    components: Components,
    *,
    settings: Config,
    on_progress: OnProgress,
    say: Say,
) -> Mapping[str, int]:
    """Makes the new store or goes on with it, and proves it; returns its verdicts."""
    text_of = _text_reader(old, settings)
    if not (target / DATABASE).exists():
        create(target, _manifest_for(old, components, settings, text_of, say))
    else:
        say(f"going on with {target}")
    with open_store(target, write=True) as new:
        require_same(new.manifest, components.lm, components.template)
        per_vector = int(new.manifest["tokens_per_vector"])
        settings = replace(
            settings, memorize=replace(settings.memorize, tokens_per_vector=per_vector)
        )
        writer = Writer(
            store=new,
            lm=components.lm,
            template=components.template,
            config=settings,
            on_progress=on_progress,
        )
        Migration(old, writer, text_of).run()
        _prove(new, components, old, say)
        carry_uploads(old.folder, target)
        mark_proved(new, old)
        open_index(new, components.embedder, EVERY)
        return dict(writer.verdicts)


def _manifest_for(
    old: Store, components: Components, settings: Config, text_of: Callable[[str], str], say: Say
) -> dict[str, str]:
    """The new store's manifest.

    Who made the old one made its texts, so that is not changed, nor is whether there are any.
    """
    sample = (
        []
        if settings.memorize.tokens_per_vector
        else [components.lm.encode(text_of(chunk_id)) for chunk_id in _longest_chunks(old)]
    )
    chosen = choose_calibration(components.lm, components.template, sample, settings, say)
    settings = replace(
        settings, memorize=replace(settings.memorize, tokens_per_vector=chosen.tokens_per_vector)
    )
    manifest = manifest_of(components.lm, components.template, components.embedder, settings)
    del manifest[KEEP_TEXT]
    kept = {
        key: value
        for key, value in old.manifest.items()
        if key in (ownership.MAKER, "embedder", "embedder_sha256", KEEP_TEXT)
    }
    return manifest | kept | {"tokens_per_vector_origin": chosen.origin}


def _longest_chunks(store: Store) -> list[str]:
    """The longest chunks, to calibrate on."""
    sizes = {chunk_id: store.record(chunk_id).tokens for chunk_id in placed_chunks(store)}
    return sorted(sizes, key=lambda chunk_id: (-sizes[chunk_id], chunk_id))[:8]


def _text_reader(old: Store, settings: Config) -> Callable[[str], str]:
    """A function that gives a chunk's text: the kept one, else that of its memory.

    The old model is loaded only when the first memory has to be decoded.
    """
    loaded: list[tuple[LM, Template]] = []

    def text_of(chunk_id: str) -> str:
        text = old.text(chunk_id)
        if text is None:
            if not loaded:
                model = Model(device=settings.model.device, threads=settings.model.threads)
                loaded.append(load_decoder(old.manifest, replace(Config(), model=model)))
            text = reconstruct(old, *loaded[0], chunk_id).text
        if text is None or sha256_of_text(text) != chunk_id:
            raise StoreDamaged(
                f"the memory {chunk_id[:12]} does not give its text",
                remedy="rag-memtok verify names what is damaged",
            )
        return text

    return text_of


def _prove(new: Store, components: Components, old: Store, say: Say) -> None:
    """Refuses a new store unless every memory decodes and every document is the old one.

    Raises:
        StoreDamaged: it is not so; nothing is switched.
    """
    say("proving the new store")
    result = audit(new, components.lm, components.template)
    if result.interrupted:
        raise KeyboardInterrupt
    if (result.chunks and result.exit_code) or new.documents() != old.documents():
        first = (
            f": {result.findings[0].subject}: {result.findings[0].reason}"
            if result.findings
            else ""
        )
        raise StoreDamaged(
            f"{new.folder} is not proved{first}; {old.folder} is as it was",
            remedy=f"remove {shlex.quote(str(new.folder))} and migrate again",
        )
