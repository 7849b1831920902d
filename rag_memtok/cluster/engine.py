"""The engines of a cluster: what `ingest` writes with, and what `verify` recites with.

The process that runs them has the store, reads the documents, and commits; workers have the model.
What the store has is not written again, so that a job goes on wherever anything of it was lost.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rag_memtok import errors
from rag_memtok.cluster.actors import Job
from rag_memtok.cluster.pool import Crew, connected, crew_here, mapped
from rag_memtok.cluster.rows import STORED, TASK, Row, recited_in, record_in, record_row, task_row
from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Record
from rag_memtok.errors import RagMemtokError, StoreDamaged
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import Step
from rag_memtok.memory.workers import Unwritten
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
    """What an ingest writes with: the workers of the cluster that `config` names.

    Raises:
        ClusterUnavailable: it is out of reach.
        UsageError: ray is not installed.
    """
    with connected(config.cluster):
        yield write


@contextmanager
def reciting(config: Config) -> Iterator[Reconstruct]:
    """What an audit recites with: see `writing`."""

    def recite(
        store: Store, lm: LM, template: Template, chunk_ids: Sequence[str], how: DecodeOptions
    ) -> Iterator[Sequence[Checked]]:
        settings = complete_config(config, store.manifest)
        for start in range(0, len(chunk_ids), WAVE):
            wave = chunk_ids[start : start + WAVE]
            yield from _recited(store, lm, template, wave, how, settings)

    with connected(config.cluster):
        yield recite


def write(writer: Writer, tasks: Iterable[Task]) -> Iterator[Record | Unwritten]:
    """Has the workers write and judge `tasks`; the store remembers the job until all is written.

    Raises:
        ClusterUnavailable: no worker delivered anything.
        ChunkDoesNotFit, WrongModel, ModelUnavailable, ...: what a worker refused.
    """
    longest_first = sorted(tasks, key=lambda task: -len(task.tokens))
    if not longest_first:
        return
    crew = crew_here(writer.config)
    job = Job(
        work="write",
        config=for_a_worker(writer.config, crew),
        template=writer.template.name,
        manifest=told(writer.store),
    )
    writer.store.set_manifest(JOB, job_fingerprint(writer.config))
    items, steps, whole = {task.key: task_row(task) for task in longest_first}, 0, True
    size = share(len(items), REFILL * writer.config.memorize.batch, crew)
    for row in mapped(job, items, TASK, size, crew):
        if row["failed"]:
            whole = False
            yield Unwritten(row["chunk"], reason_of(row))
        else:
            steps = max(steps, row["steps"])
            writer.tell_step(Step(0, 0, steps, 0.0))
            yield record_in(row)
    if whole:
        writer.store.set_manifest(JOB, "")


def _recited(
    store: Store,
    lm: LM,
    template: Template,
    chunk_ids: Sequence[str],
    how: DecodeOptions,
    settings: Config,
) -> Iterator[Sequence[Checked]]:
    """Recites chunks on the cluster; here those that cannot go there, or do not come back."""
    crew, items, here = crew_here(settings), dict[str, Row](), list[str]()
    for chunk_id in chunk_ids:
        if (row := _stored_row(store, chunk_id)) is None:
            here.append(chunk_id)
        else:
            items[chunk_id] = row
    job = Job(
        work="recite",
        config=for_a_worker(settings, crew),
        template=template.name,
        manifest=told(store),
        batch=how.batch,
        reference=how.reference,
    )
    for row in mapped(job, items, STORED, share(len(items), 2 * BATCH, crew), crew):
        if row["failed"]:
            reason_of(row)
            here.append(row["chunk"])
        else:
            yield [recited_in(row)]
    yield from reconstruct_here(store, lm, template, here, how)


def _stored_row(store: Store, chunk_id: str) -> Row | None:
    """A chunk to be recited elsewhere; None: it is damaged, or text alone."""
    try:
        record, text = store.record(chunk_id), store.text(chunk_id)
    except StoreDamaged:
        return None
    return None if record.codec == TEXT_ONLY else record_row(record) | {"text": text}


def told(store: Store) -> Mapping[str, str]:
    """What a worker is told of a store: all that it is bound to, not whose it is."""
    return {key: value for key, value in store.manifest.items() if key != MAKER}


def for_a_worker(config: Config, crew: Crew) -> Config:
    """The settings of one worker, with paths that hold in any folder."""
    model = replace(config.model, id=absolute(config.model.id))
    if not crew.gpus:
        model = replace(model, threads=crew.cpus)
    return replace(
        config,
        store=str(Path(config.store).absolute()),
        model=model,
        memorize=replace(config.memorize, processes=1),
        ask=replace(config.ask, adapter=absolute(config.ask.adapter)),
    )


def absolute(name: str) -> str:
    """A path that is there, absolute; other names as they are."""
    return str(Path(name).absolute()) if name and Path(name).exists() else name


def share(count: int, most: int, crew: Crew) -> int:
    """How many chunks a worker is given at once: few enough for each to get some, twice."""
    return max(1, min(most, count // (2 * crew.size)))


def reason_of(row: Row) -> str:
    """Why a chunk was given up.

    Raises:
        RagMemtokError: the worker's own, where no other worker would do better.
    """
    kind = getattr(errors, row["error"], None) if row["error"] else None
    if kind is not None and issubclass(kind, RagMemtokError) and kind is not errors.OutOfMemory:
        raise kind(row["reason"], remedy=row["remedy"])
    return row["reason"]
