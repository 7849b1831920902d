"""Prompts -> predictions, in batches of like length; and what a prompt costs.

The answers are kept in a file so that a run can go on where it was.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rag_memtok.datatypes import OnProgress
from rag_memtok.errors import UsageError
from rag_memtok.model.adapter_manifest import read_manifest
from rag_memtok.model.copying import Copied, copied_from
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.inject import (
    BATCH,
    Passage,
    answer_batch,
    decode_greedily,
    embed,
    inject,
    most_confident,
)
from rag_memtok.model.lm import LM
from rag_memtok.model.lora import load_adapter
from rag_memtok.model.precision import for_reading
from rag_memtok.model.prompts import GAP, QAPrompt, digest_of
from rag_memtok.pipeline.adapters import shipped_adapters
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.store.files import write_whole

POSITIONS = 8192  # of a batch, at most, beside its BATCH prompts


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prompt:
    """The contents of a QA prompt: passages in their order, and the question's tokens.

    `text` is what the answer is copied from; "": it is free. `relevance` is that of the passages to
    the question, beside other prompts of it. `unpack` is what has to be done before
    there are such passages, for its time; it is called by `measure_costs` alone. A question is
    asked in one prompt, or in one prompt per passage.
    """

    passages: Sequence[Passage]
    question: tuple[int, ...]
    text: str = ""
    relevance: float = 0.0
    unpack: Callable[[], object] | None = None

    def copied(self, lm: LM) -> Copied | None:
        """What the answer is copied from."""
        return copied_from(lm, self.text) if self.text else None

    @property
    def context(self) -> int:
        """Positions the passages take."""
        return sum(len(passage) for passage in self.passages)

    def positions(self, frame: QAPrompt) -> int:
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
class Prediction:
    """An answer with its mean log-probability in nats (`inject.Generation`)."""

    answer: str
    mean_logprob: float


def complete_adapters(
    named: Mapping[str, Path], lm: LM, template_sha256: str
) -> Mapping[str, Path]:
    """The adapters that are named, and for what they do not read those that ship with the model.

    One for texts that has an encoder reads its vectors, too.

    Raises:
        UsageError: one of them reads something else than what it is named for.
    """
    bonds = {kind: read_manifest(folder) for kind, folder in named.items()}
    for kind, bond in bonds.items():
        if bond is not None and bond.kind != kind:
            raise UsageError(
                f"the adapter in {named[kind]} reads {bond.kind}, not {kind}",
                remedy="--adapter DIR names one for memories, --text-adapter DIR one for texts",
            )
    shipped = shipped_adapters(lm, template_sha256)
    found = {"text": shipped.text, "vectors": shipped.vectors}
    folders = {kind: adapter.folder for kind, adapter in found.items() if adapter}
    text = bonds.get("text")
    own = {"vectors": named["text"]} if text and text.encoder_sha256 else {}
    return {**folders, **own, **named}


def load_models(lm: LM, adapters: Mapping[str, Path], template_sha256: str) -> dict[str, LM]:
    """`lm` by the name "", and with each of `adapters` on by its name.

    Raises:
        WrongModel: an adapter is of another model or of other memories.
    """
    models = {"": lm}
    loaded: dict[tuple[Path, bool], LM] = {}  # one that reads texts and vectors is loaded once
    for kind, folder in adapters.items():
        key = folder, kind == "memory"
        if key not in loaded:
            base = lm if kind == "memory" else for_reading(lm)
            loaded[key] = load_adapter(base, folder, template_sha256)
        models[kind] = loaded[key]
    return models


@dataclass(slots=True, eq=False, kw_only=True)
class Predictor:
    """Answers prompts with one LM, at most `limit` tokens each.

    `file`: keeps the predictions, a JSON line each; their keys name the LM.
    """

    lm: LM
    frame: QAPrompt
    limit: int
    file: Path | None
    known: dict[str, Prediction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in (
            self.file.read_bytes().splitlines() if self.file and self.file.is_file() else []
        ):
            try:
                row = json.loads(line)
                self.known[row["key"]] = Prediction(row["answer"], row["sureness"])
            # torn when the run was killed: answered again
            except (ValueError, KeyError, TypeError):
                continue

    def predict(
        self, questions: Sequence[Sequence[Prompt]], name: str, on_progress: OnProgress
    ) -> list[str]:
        """Answers each question's prompts, and returns the most confident answer of each.

        Equal prompts, and those that the file has, are answered only once.

        Cost: what `answer_batch` costs, in batches of at most 16 rows and 8192 positions.
        """
        keys = [[self.key(prompt) for prompt in prompts] for prompts in questions]
        asked = dict(zip(chain(*keys), chain(*questions), strict=True))
        missing = {key: prompt for key, prompt in asked.items() if key not in self.known}
        reporter = Reporter(
            on_progress=on_progress, total=len(asked), stage=name, ready=len(asked) - len(missing)
        )
        reporter.tell()
        for batch in make_batches(missing, lambda prompt: prompt.positions(self.frame)):
            self._save(dict(zip(batch, self._predict_batch(list(batch.values())), strict=True)))
            reporter.advance(len(batch))
        found = [[self.known[key] for key in predictions] for predictions in keys]
        return [
            predictions[
                most_confident(
                    [(prediction.answer, prediction.mean_logprob) for prediction in predictions],
                    [prompt.relevance for prompt in prompts],
                )
            ].answer
            for prompts, predictions in zip(questions, found, strict=True)
        ]

    def _predict_batch(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        rows = [inject(self.lm, self.frame, prompt.passages, prompt.question) for prompt in prompts]
        copied = [prompt.copied(self.lm) for prompt in prompts]
        generations = answer_batch(self.lm, self.frame, rows, self.limit, copied=copied)
        return [
            Prediction(self.lm.decode(generation.tokens).strip(), generation.mean_logprob)
            for generation in generations
        ]

    def _save(self, answers: Mapping[str, Prediction]) -> None:
        self.known |= answers
        if self.file:
            if not self.file.exists():
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(self.file, b"")
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(
                    "\n"
                    + json.dumps(
                        {"key": key, "answer": reply.answer, "sureness": reply.mean_logprob}
                    )
                    for key, reply in answers.items()
                )

    def key(self, prompt: Prompt) -> str:
        """The key of a prediction: a hash of the LM as it computes, the limit, the whole prompt."""
        identity = self.lm.identity
        whole = hashlib.sha256(
            digest_of(
                (
                    identity.weights_sha256,
                    identity.tokenizer_sha256,
                    identity.dtype,
                    str(self.lm.table.dtype),  # a reader of text may be in bfloat16
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
        if prompt.text:
            whole.update(f"copied {prompt.text}".encode())
        return whole.hexdigest()


def make_batches(
    prompts: Mapping[str, Prompt], length: Callable[[Prompt], int]
) -> list[dict[str, Prompt]]:
    """Batches of prompts of like length, the longest first.

    The time left is then over-estimated rather than under-estimated.
    """
    order = sorted(prompts, key=lambda key: -length(prompts[key]))
    result: list[dict[str, Prompt]] = []
    while order:
        rows = max(1, min(BATCH, POSITIONS // max(1, length(prompts[order[0]]))))
        result.append({key: prompts[key] for key in order[:rows]})
        del order[:rows]
    return result


def measure_costs(
    predictors: Sequence[Predictor],
    questions: Sequence[Sequence[Sequence[Prompt]]],
    on_progress: OnProgress,
) -> list[Cost]:
    """Measures each group of `questions` with its `predictors`.

    Costs are medians, measured one at a time, the groups in turn so that noise hits all alike.

    Cost: each question once, and one more to warm up.
    """
    measured: list[list[Cost]] = [[] for _ in questions]
    longest = max(map(len, questions), default=0)
    reporter = Reporter(on_progress=on_progress, total=sum(map(len, questions)), stage="timing")
    for turn in range(longest):
        for index, group in enumerate(questions):
            if turn < len(group):
                if not turn and not index:
                    time_question(predictors[index], group[turn])
                measured[index].append(time_question(predictors[index], group[turn]))
                reporter.advance()
    return [median_cost(group_costs) for group_costs in measured]


def median_cost(costs: Sequence[Cost]) -> Cost:
    """The median cost of several answers."""
    if not costs:
        return Cost(float("nan"), float("nan"), float("nan"), 0)
    return Cost(
        unpack_ms=median(cost.unpack_ms for cost in costs),
        prefill_ms=median(cost.prefill_ms for cost in costs),
        decode_ms=median(cost.decode_ms for cost in costs),
        kv_bytes=round(median(cost.kv_bytes for cost in costs)),
    )


def time_question(predictor: Predictor, prompts: Sequence[Prompt]) -> Cost:
    """The cost of one question: all its prompts in one batch, until each has its answer."""
    first = time.perf_counter()
    for prompt in prompts:
        if prompt.unpack:
            prompt.unpack()
    began = time.perf_counter()
    decoder = KVDecoder(
        predictor.lm,
        [
            inject(predictor.lm, predictor.frame, prompt.passages, prompt.question)
            for prompt in prompts
        ],
    )
    decoder.logits[0, 0].item()  # waits for the device
    prefilled, size = time.perf_counter(), kv_bytes(decoder)
    copied = [prompt.copied(predictor.lm) for prompt in prompts]
    for _ in decode_greedily(decoder, predictor.frame, predictor.limit, copied=copied):
        pass
    decoded = time.perf_counter()
    return Cost(
        1000 * (began - first), 1000 * (prefilled - began), 1000 * (decoded - prefilled), size
    )


def kv_bytes(decoder: KVDecoder) -> int:
    """Bytes of the keys and values that a decode in progress keeps."""
    cache: Any = decoder.cache
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.inference_mode()
def mean_nats(lm: LM, before: Passage, text: Sequence[int]) -> float:
    """Mean negative log-likelihood of `text`, in nats a token, after `before` and an empty line.

    Cost: one forward pass.
    """
    start = [] if lm.bos is None else [lm.bos]
    parts: list[Passage] = [start, before, lm.encode_frame(GAP), text]
    whole = torch.cat([embed(lm, part) for part in parts])
    logits = lm.logits(lm.hidden(whole[None])[0, -len(text) - 1 : -1])
    return float(
        torch.nn.functional.cross_entropy(logits, torch.tensor(list(text), device=lm.device))
    )
