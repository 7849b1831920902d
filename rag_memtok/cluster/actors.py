"""A worker of the cluster: it loads the model once, and writes or recites its chunks.

It never sees the store. A chunk that fails comes back as a row with its reason.
"""

import faulthandler
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rag_memtok.cluster.rows import (
    RECITED,
    WRITTEN,
    Row,
    RowShelf,
    Table,
    recited_row,
    record_row,
    rows_of,
    table_of,
    task_from_row,
)
from rag_memtok.config import Config
from rag_memtok.errors import RagMemtokError, WrongModel
from rag_memtok.memory.encoder import Encoder
from rag_memtok.memory.optimize import Step
from rag_memtok.memory.workers import write_records
from rag_memtok.model import lm as models
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template, template_named
from rag_memtok.pipeline.audit import DecodeOptions, reconstruct_here
from rag_memtok.pipeline.manifest import installed_versions, require_same
from rag_memtok.pipeline.readable import WINDOW, Encoding, encoder_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The job that every worker is told.

    `work` names a row of WORK. `config` is complete, for one process; `manifest` is the store's,
    and `versions` those of the libraries where it is: the worker has to have the same. `batch` and
    `reference` say how chunks are recited, as in `DecodeOptions`.
    """

    work: str
    config: Config
    template: str
    manifest: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    batch: int = 1
    reference: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tools:
    """The model that a worker has loaded, with what goes with it.

    `encoder` makes the store's readable vectors, if it has any.
    """

    lm: LM
    template: Template
    encoder: Encoder | None


def load_tools(job: Job) -> Tools:
    """Loads the model, template and encoder of the store's memories.

    Raises:
        WrongModel: it is another here, or the libraries are of other versions.
        ModelUnavailable, ...: see `lm.load`.
    """
    here = installed_versions()
    if different := [
        f"{name} {here.get(name)} instead of {version}"
        for name, version in job.versions.items()
        if here.get(name) != version
    ]:
        raise WrongModel(
            f"a worker has other libraries: {', '.join(different)}",
            remedy="install the same versions on every machine",
        )
    lm = models.load(job.config.model)
    template = template_named(job.template, lm)
    require_same(job.manifest, lm, template)
    return Tools(lm, template, encoder_for(lm, template, job.config, job.manifest))


def write_chunks(job: Job, tools: Tools, rows: Sequence[Row]) -> Iterator[Row]:
    """Writes the tasks in `rows`, refilling the batch from them, and judges each.

    Readable vectors are made, too, where the store has them.
    """
    tasks = {row["chunk"]: task_from_row(row) for row in rows}
    encoding = Encoding(tools.encoder, int(job.manifest[WINDOW])) if tools.encoder else None
    steps = 0

    def on_step(step: Step) -> None:
        nonlocal steps
        steps = step.steps

    for record in write_records(tools.lm, tools.template, job.config, tasks.values(), on_step):
        if encoding is not None:
            record = replace(record, readable=encoding.of(tasks[record.chunk_id].tokens))
        yield record_row(record) | {"steps": steps}


def recite_chunks(job: Job, tools: Tools, rows: Sequence[Row]) -> Iterator[Row]:
    """Recites the chunks in `rows` from vectors and pins, and compares their readable vectors."""
    shelf = RowShelf(job.manifest, {row["chunk"]: row for row in rows})
    how = DecodeOptions(job.batch, job.reference, tools.encoder)
    for some in reconstruct_here(shelf, tools.lm, tools.template, list(shelf.rows), how):
        yield from map(recited_row, some)


Work = Callable[[Job, Tools, Sequence[Row]], Iterator[Row]]
WORK: Mapping[str, tuple[object, Work]] = {
    "write": (WRITTEN, write_chunks),
    "recite": (RECITED, recite_chunks),
}


class Worker:
    """A model that was loaded once, and what is done with it for tables of chunks.

    It is watched: if none of its chunks is done for `chunk_timeout` seconds, the process ends
    itself, even where it hangs in a library. Whoever gave it chunks gives them to others.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tools: Tools | None = None
        self.failure: Exception | None = None
        try:
            self.tools = load_tools(job)
        except Exception as error:  # told with every chunk; Ray would start it for ever
            self.failure = error

    def __call__(self, table: Table) -> Iterator[Table]:
        """A table for each chunk, as it is done."""
        schema, work = WORK[self.job.work]
        rows, done, error = rows_of(table), set[str](), self.failure
        if self.tools is not None:
            try:
                for row in self._watch(work(self.job, self.tools, rows)):
                    done.add(row["chunk"])
                    yield table_of([row | {"failed": False}], schema)
            except Exception as caught:
                error = caught
        for row in rows:
            if row["chunk"] not in done:
                yield table_of([failure_row(row["chunk"], error)], schema)

    def _watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yields `rows`; ends the process where the next one takes too long."""
        limit = self.job.config.cluster.chunk_timeout
        try:
            if limit:
                faulthandler.dump_traceback_later(limit, exit=True)
            for row in rows:
                if limit:
                    faulthandler.dump_traceback_later(limit, exit=True)
                yield row
        finally:
            faulthandler.cancel_dump_traceback_later()


def failure_row(chunk_id: str, error: Exception | None) -> Row:
    """The row of a chunk that did not come about."""
    ours = isinstance(error, RagMemtokError)
    return {
        "chunk": chunk_id,
        "failed": True,
        "error": type(error).__name__ if ours else "",
        "reason": f"{error}" if ours else f"{type(error).__name__}: {error}",
        "remedy": error.remedy if isinstance(error, RagMemtokError) else "",
    }
