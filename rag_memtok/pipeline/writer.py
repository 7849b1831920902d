"""Tasks -> judged records -> a store: what an ingest and a migration share."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Chunk, OnProgress, Record, Verdict, sha256_of_tokens
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import Step
from rag_memtok.memory.workers import Unwritten, write_records
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.pipeline.resources import usual_steps
from rag_memtok.store.store import Store


def write_in_processes(writer: "Writer", tasks: Iterable[Task]) -> Iterator[Record]:
    """The engine of one machine: writes and judges in this process, or in several."""
    return write_records(writer.lm, writer.template, writer.config, tasks, writer.tell_step)


Engine = Callable[["Writer", Iterable[Task]], Iterator[Record | Unwritten]]


@dataclass(slots=True, eq=False, kw_only=True)
class Writer:
    """Writes memories into an open store, counts verdicts, and tells how far it is.

    `engine` turns tasks into judged records, wherever that is done; `unwritten` are the reasons
    why it could not, by chunk.
    """

    store: Store
    lm: LM
    template: Template
    config: Config
    on_progress: OnProgress
    engine: Engine = write_in_processes
    unwritten: dict[str, str] = field(default_factory=dict)
    verdicts: Counter[str] = field(default_factory=Counter)
    reporter: Reporter = field(init=False)
    usual_steps: int = 0

    def __post_init__(self) -> None:
        self.usual_steps = usual_steps(self.lm, self.template, self.config)
        self.expect(0)

    def expect(self, chunks: int) -> None:
        """Begins to count `chunks` that are to be written."""
        self.reporter = Reporter(
            on_progress=self.on_progress, total=chunks, facts={"exact": 0, "step": 0}
        )

    def write(self, tasks: Iterable[Task]) -> Generator[Record, None, None]:
        """Writes and judges `tasks`; yields each record as it is done, for `keep`.

        Raises:
            ChunkDoesNotFit, OutOfMemory: see `write_records`.
        """
        for outcome in self.engine(self, tasks):
            if isinstance(outcome, Unwritten):
                self.unwritten[outcome.chunk_id] = outcome.reason
            else:
                yield outcome

    def keep(self, record: Record, text: str | None) -> None:
        """Stores a record, its text too unless that is None, and counts it."""
        self.store.put(record, text)
        self.verdicts[record.verdict.kind] += 1
        self.reporter.done = self.verdicts.total()
        self.reporter.facts["exact"] = self.verdicts["exact"]

    def tell(self) -> None:
        """Reports how far it is."""
        self.reporter.tell()

    def tell_step(self, step: Step) -> None:
        """Reports a step of the work."""
        reporter = self.reporter
        reporter.known_left = estimate_left(
            step, done=reporter.done, total=reporter.total, usual=self.usual_steps
        )
        reporter.tell(step=step.steps)


def estimate_left(step: Step, *, done: int, total: int, usual: int) -> float | None:
    """Seconds until all of `total` chunks are written; None where nothing can be said yet.

    Rows share their steps, and end together: what ended says too little of what is under way. So
    steps are counted. A chunk takes the `usual` number until what has been spent says otherwise: no
    more than all of it on the `done`, no less than it would be if the rows under way were three
    quarters through. Where none is known (0), they are taken to be halfway.
    """
    if not step.row_steps or not (done or usual):
        return None
    most = step.row_steps / done if done else float(usual)
    least = step.row_steps / (done + 0.75 * step.rows)
    each = max(min(usual or step.row_steps / (done + 0.5 * step.rows), most), least)
    return step.seconds * max(0.0, total * each / step.row_steps - 1)


def text_only_record(chunk: Chunk, key: np.ndarray | None) -> Record:
    """The record of a chunk that the tokenizer would not give back: its text, without vectors."""
    return Record(
        chunk_id=chunk.id,
        tokens=0,
        tokens_sha256=sha256_of_tokens(()),
        codec=TEXT_ONLY,
        packed=chunk.text.encode(),
        shape=(0, 0),
        pins=(),
        verdict=Verdict("text-only", 0),
        key=key,
    )
