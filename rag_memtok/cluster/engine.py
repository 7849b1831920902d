"""The engines of a cluster: `ingest` writes with one, and `verify` recites with the other.

The process that runs them has the store, reads the documents, and commits; workers have the model.
What the store has is not written again, so that a job goes on wherever anything of it was lost.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rag_memtok import errors
from rag_memtok.cluster.actors import Job
from rag_memtok.cluster.pool import WorkerPool, connected, current_pool, map_rows
from rag_memtok.cluster.rows import (
    STORED,
    TASK,
    Row,
    recited_from_row,
    record_from_row,
    record_row,
    task_row,
)
from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Record
from rag_memtok.errors import RagMemtokError, StoreDamaged
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import Step
from rag_memtok.memory.workers import Unwritten
from rag_memtok.model.folders import local_path
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.audit import Checked, DecodeOptions, Reconstruct, reconstruct_here
from rag_memtok.pipeline.manifest import JOB, complete_config, job_fingerprint
from rag_memtok.pipeline.reconstruction import BATCH
from rag_memtok.pipeline.writer import Engine, Writer
from rag_memtok.store.ownership import MAKER
from rag_memtok.store.store import Store

REFILL = 4  # batches' worth of chunks that a worker is given at once
WAVE = 20_000  # chunks that an audit has in memory


@contextmanager
def writing(config: Config) -> Iterator[Engine]:
    """The engine of an ingest: the workers of the cluster that `config` names.

    Raises:
        ClusterUnavailable: it is out of reach.
        UsageError: ray is not installed.
    """
    with connected(config.cluster):
        yield write


@contextmanager
def reciting(config: Config) -> Iterator[Reconstruct]:
    """The engine of an audit: see `writing`."""

    def recite(
        store: Store, lm: LM, template: Template, chunk_ids: Sequence[str], how: DecodeOptions
    ) -> Iterator[Sequence[Checked]]:
        settings = complete_config(config, store.manifest)
        for start in range(0, len(chunk_ids), WAVE):
            wave = chunk_ids[start : start + WAVE]
            yield from _recite(store, lm, template, wave, how=how, settings=settings)

    with connected(config.cluster):
        yield recite


def write(writer: Writer, tasks: Iterable[Task]) -> Iterator[Record | Unwritten]:
    """Has the workers write and judge `tasks`; the store remembers the job from then on.

    The ingest that ends with nothing missing, by whichever engine, forgets it.

    Raises:
        ClusterUnavailable: no worker delivered anything.
        ChunkDoesNotFit, WrongModel, ModelUnavailable, ...: what a worker refused.
    """
    longest_first = sorted(tasks, key=lambda task: -len(task.tokens))
    if not longest_first:
        return
    pool = current_pool(writer.config)
    job = Job(
        work="write",
        config=worker_config(writer.config, pool),
        template=writer.template.name,
        manifest=manifest_for_workers(writer.store),
    )
    writer.store.set_manifest(JOB, job_fingerprint(writer.config))
    items, steps = {task.key: task_row(task) for task in longest_first}, 0
    size = chunks_at_once(len(items), REFILL * writer.config.memorize.batch, pool)
    for row in map_rows(job, items, TASK, size, pool):
        if row["failed"]:
            yield Unwritten(row["chunk"], failure_reason(row))
        else:
            steps = max(steps, row["steps"])
            writer.tell_step(Step(rows=0, right=0, steps=steps, seconds=0.0))
            yield record_from_row(row)


def _recite(
    store: Store,
    lm: LM,
    template: Template,
    chunk_ids: Sequence[str],
    *,
    how: DecodeOptions,
    settings: Config,
) -> Iterator[Sequence[Checked]]:
    """Recites chunks on the cluster; here those that cannot go there, or do not come back."""
    pool, items, here = current_pool(settings), dict[str, Row](), list[str]()
    for chunk_id in chunk_ids:
        if (row := _stored_row(store, chunk_id)) is None:
            here.append(chunk_id)
        else:
            items[chunk_id] = row
    job = Job(
        work="recite",
        config=worker_config(settings, pool),
        template=template.name,
        manifest=manifest_for_workers(store),
        batch=how.batch,
        reference=how.reference,
    )
    for row in map_rows(job, items, STORED, chunks_at_once(len(items), 2 * BATCH, pool), pool):
        if row["failed"]:
            failure_reason(row)
            here.append(row["chunk"])
        else:
            yield [recited_from_row(row)]
    yield from reconstruct_here(store, lm, template, here, how)


def _stored_row(store: Store, chunk_id: str) -> Row | None:
    """The row of a chunk to be recited elsewhere; None: it is damaged, or text alone."""
    try:
        record, text = store.record(chunk_id), store.text(chunk_id)
    except StoreDamaged:
        return None
    return None if record.codec == TEXT_ONLY else record_row(record) | {"text": text}


def manifest_for_workers(store: Store) -> Mapping[str, str]:
    """The part of a store's manifest that workers are told: all but whose it is."""
    return {key: value for key, value in store.manifest.items() if key != MAKER}


def worker_config(config: Config, pool: WorkerPool) -> Config:
    """The settings of one worker, with paths that hold in any folder."""
    model = replace(config.model, id=str(local_path(config.model.id) or config.model.id))
    if not pool.gpus:
        model = replace(model, threads=pool.cpus)
    return replace(
        config,
        store=str(Path(config.store).absolute()),
        model=model,
        memorize=replace(config.memorize, processes=1),
        ask=replace(config.ask, adapter=absolute_path(config.ask.adapter)),
    )


def absolute_path(name: str) -> str:
    """A path that is there, absolute; other names as they are, "auto" and "none" in any case."""
    is_path = name not in ("", "auto", "none") and Path(name).exists()
    return str(Path(name).absolute()) if is_path else name


def chunks_at_once(count: int, most: int, pool: WorkerPool) -> int:
    """The number of chunks that a worker is given at once, `most` at most.

    It is low enough for each worker to get some, twice.
    """
    return max(1, min(most, count // (2 * pool.size)))


def failure_reason(row: Row) -> str:
    """The reason for which a chunk was given up.

    Raises:
        RagMemtokError: the worker's own, where no other worker would do better.
    """
    kind = getattr(errors, row["error"], None) if row["error"] else None
    if kind is not None and issubclass(kind, RagMemtokError) and kind is not errors.OutOfMemory:
        raise kind(row["reason"], remedy=row["remedy"])
    return row["reason"]
