"""Prompts -> answers, in batches of like length; and what a prompt costs.

The answers are kept in a file so that a run can go on where it was.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rag_memtok.datatypes import OnProgress
from rag_memtok.model.generate import Continuation
from rag_memtok.model.inject import BATCH, Passage, answer_batch, embedded, greedy, inject, surest
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import GAP, Frame, digest_of
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.store.files import write_whole

POSITIONS = 8192  # of a batch, at most, beside its BATCH prompts


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What stands in a prompt beside the frame: passages in their order, and the question's tokens.

    `unpack` is what has to be done before there are such passages, for its time; it is called by
    `costs` alone. A question is asked in one prompt or, where passages are read apart, in several.
    """

    passages: Sequence[Passage]
    question: tuple[int, ...]
    unpack: Callable[[], object] | None = None

    @property
    def context(self) -> int:
        """Positions the passages take."""
        return sum(len(passage) for passage in self.passages)

    def positions(self, frame: Frame) -> int:
        """Positions of the whole prompt."""
        return (
            frame.overhead
            + self.context
            + len(frame.between) * (len(self.passages) - 1)
            + len(self.question)
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one answer, alone in its batch.

    It is milliseconds to unpack passages, take in the prompt, say the answer; bytes of KV cache.
    """

    unpack_ms: float
    prefill_ms: float
    decode_ms: float
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its mean token probability (`inject.Said`)."""

    answer: str
    sureness: float


@dataclass(slots=True, eq=False)
class Replies:
    """Answers by one LM, at most `limit` tokens each.

    `file`: those there are, a JSON line each; their keys name the LM.
    """

    lm: LM
    frame: Frame
    limit: int
    file: Path | None
    known: dict[str, Reply] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in (
            self.file.read_bytes().splitlines() if self.file and self.file.is_file() else []
        ):
            try:
                row = json.loads(line)
                self.known[row["key"]] = Reply(row["answer"], row["sureness"])
            # torn when the run was killed: answered again
            except (ValueError, KeyError, TypeError):
                continue

    def to(
        self, questions: Sequence[Sequence[Prompt]], name: str, on_progress: OnProgress
    ) -> list[str]:
        """Answers each question's prompts, and keeps the surest answer.

        Equal prompts, and those that the file has, are answered only once.

        Cost: what `answer_batch` costs, in batches of at most 16 rows and 8192 positions.
        """
        keys = [[self.key(prompt) for prompt in prompts] for prompts in questions]
        asked = dict(zip(chain(*keys), chain(*questions), strict=True))
        missing = {key: prompt for key, prompt in asked.items() if key not in self.known}
        reporter = Reporter(on_progress, len(asked), name, ready=len(asked) - len(missing))
        reporter.tell()
        for batch in batches(missing, lambda prompt: prompt.positions(self.frame)):
            self._keep(dict(zip(batch, self._answered(list(batch.values())), strict=True)))
            reporter.advance(len(batch))
        found = [[self.known[key] for key in some] for some in keys]
        return [some[surest([(one.answer, one.sureness) for one in some])].answer for some in found]

    def _answered(self, prompts: Sequence[Prompt]) -> list[Reply]:
        rows = [inject(self.lm, self.frame, prompt.passages, prompt.question) for prompt in prompts]
        said = answer_batch(self.lm, self.frame, rows, self.limit)
        return [Reply(self.lm.decode(one.tokens).strip(), one.sureness) for one in said]

    def _keep(self, answers: Mapping[str, Reply]) -> None:
        self.known |= answers
        if self.file:
            if not self.file.exists():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.file, b"")
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(
                    "\n" + json.dumps({"key": key, **asdict(reply)})
                    for key, reply in answers.items()
                )

    def key(self, prompt: Prompt) -> str:
        """What an answer is kept by: the LM, the frame, the bound, and the whole prompt."""
        identity = self.lm.identity
        whole = hashlib.sha256(
            digest_of(
                (
                    identity.weights_sha256,
                    identity.tokenizer_sha256,
                    identity.dtype,
                    self.frame,
                    self.limit,
                )
            ).encode()
        )
        for passage in (*prompt.passages, prompt.question):
            vectors = isinstance(passage, np.ndarray)
            content = np.ascontiguousarray(
                passage, dtype=np.float32 if vectors else "<u4"
            ).tobytes()
            whole.update(
                f"{'vectors' if vectors else 'tokens'} {len(passage)}\n".encode() + content
            )
        return whole.hexdigest()


def batches(
    prompts: Mapping[str, Prompt], length: Callable[[Prompt], int]
) -> list[dict[str, Prompt]]:
    """Prompts of like length together, the longest first.

    So what is left gets done faster, not slower, than was told.
    """
    order = sorted(prompts, key=lambda key: -length(prompts[key]))
    made: list[dict[str, Prompt]] = []
    while order:
        rows = max(1, min(BATCH, POSITIONS // max(1, length(prompts[order[0]]))))
        made.append({key: prompts[key] for key in order[:rows]})
        del order[:rows]
    return made


def costs(
    replies: Sequence[Replies],
    questions: Sequence[Sequence[Sequence[Prompt]]],
    on_progress: OnProgress,
) -> list[Cost]:
    """Measures each group of `questions` with its `replies`.

    Costs are medians, measured one at a time, the groups in turn so that noise hits all alike.

    Cost: each question once, and one more to warm up.
    """
    found: list[list[Cost]] = [[] for _ in questions]
    longest = max(map(len, questions), default=0)
    reporter = Reporter(on_progress, sum(map(len, questions)), "timing")
    for turn in range(longest):
        for index, group in enumerate(questions):
            if turn < len(group):
                if not turn and not index:
                    timed(replies[index], group[turn])
                found[index].append(timed(replies[index], group[turn]))
                reporter.advance()
    return [typical(some) for some in found]


def typical(some: Sequence[Cost]) -> Cost:
    """The median cost of several answers."""
    if not some:
        return Cost(float("nan"), float("nan"), float("nan"), 0)
    return Cost(
        unpack_ms=median(one.unpack_ms for one in some),
        prefill_ms=median(one.prefill_ms for one in some),
        decode_ms=median(one.decode_ms for one in some),
        kv_bytes=round(median(one.kv_bytes for one in some)),
    )


def timed(replies: Replies, prompts: Sequence[Prompt]) -> Cost:
    """What one question costs, alone: all its prompts in a batch, until each has its answer."""
    first = time.perf_counter()
    for prompt in prompts:
        if prompt.unpack:
            prompt.unpack()
    began = time.perf_counter()
    run = Continuation(
        replies.lm,
        [inject(replies.lm, replies.frame, prompt.passages, prompt.question) for prompt in prompts],
    )
    run.logits[0, 0].item()  # waits for the device
    taken_in, size = time.perf_counter(), kv_bytes(run)
    for _ in greedy(run, replies.frame, replies.limit):
        pass
    said = time.perf_counter()
    return Cost(1000 * (began - first), 1000 * (taken_in - began), 1000 * (said - taken_in), size)


def kv_bytes(run: Continuation) -> int:
    """Bytes of the keys and values that a decode in progress keeps."""
    cache: Any = run.cache
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.inference_mode()
def nats(lm: LM, before: Passage, text: Sequence[int]) -> float:
    """Nats a token of `text`, mean, with `before` and an empty line before it.

    Cost: one forward pass.
    """
    start = [] if lm.bos is None else [lm.bos]
    stretches: list[Passage] = [start, before, lm.encode_frame(GAP), text]
    whole = torch.cat([embedded(lm, stretch) for stretch in stretches])
    logits = lm.logits(lm.hidden(whole[None])[0, -len(text) - 1 : -1])
    return float(
        torch.nn.functional.cross_entropy(logits, torch.tensor(list(text), device=lm.device))
    )
