"""Tasks -> judged records -> a store: what an ingest and a migration share."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Chunk, OnProgress, Record, Verdict, sha256_of_tokens
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import Step
from rag_memtok.memory.workers import records
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.store.store import Store


@dataclass(slots=True, eq=False)
class Writer:
    """Writes memories into an open store, counts verdicts, and tells how far it is."""

    store: Store
    lm: LM
    template: Template
    config: Config
    on_progress: OnProgress
    verdicts: Counter[str] = field(default_factory=Counter)
    reporter: Reporter = field(init=False)

    def __post_init__(self) -> None:
        self.expect(0)

    def expect(self, chunks: int) -> None:
        """Begins to count: so many chunks are to be written."""
        self.reporter = Reporter(self.on_progress, chunks, facts={"exact": 0, "step": 0})

    def write(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Writes and judges `tasks`; yields each record as it is done, for `keep`.

        Raises:
            ChunkDoesNotFit, OutOfMemory: see `records`.
        """
        return records(self.lm, self.template, self.config, tasks, self._stepped)

    def keep(self, record: Record, text: str | None) -> None:
        """Stores a record, its text too unless that is None, and counts it."""
        self.store.put(record, text)
        self.verdicts[record.verdict.kind] += 1
        self.reporter.done = self.verdicts.total()
        self.reporter.facts["exact"] = self.verdicts["exact"]

    def tell(self) -> None:
        """Tells how far it is."""
        self.reporter.tell()

    def _stepped(self, step: Step) -> None:
        self.reporter.tell(step=step.steps)


def text_only_record(chunk: Chunk, key: np.ndarray | None) -> Record:
    """A chunk the tokenizer would not give back, kept as its text."""
    verdict = Verdict("text-only", 0)
    packed = chunk.text.encode()
    return Record(chunk.id, 0, sha256_of_tokens(()), TEXT_ONLY, packed, (0, 0), (), verdict, key)
