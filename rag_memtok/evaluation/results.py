"""Results of an evaluation: every answer, and the table that is made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rag_memtok.evaluation.cases import PLACES, place_name
from rag_memtok.evaluation.memory_cache import CachedMemory
from rag_memtok.evaluation.metrics import Interval, Score, interval, paired_difference
from rag_memtok.evaluation.predictions import Cost

Setting = Literal["alone", "among", "apart", "beside"]
TEXTS = ("text", "text+adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answers and scores of all questions for one baseline in one setting.

    `tokens_per_vector` 0: does not depend on it. `dropped`: distractors that did not fit, in all.

    Settings: "alone", the gold chunk; "among", k chunks concatenated in one prompt; "apart", one
    prompt per passage; "beside", the gold text after a distractor.
    """

    reader: str
    adapter: str
    tokens_per_vector: int
    setting: Setting
    k: int
    answers: tuple[str, ...]
    scores: tuple[Score, ...]
    context: tuple[int, ...]
    prompt: tuple[int, ...]
    dropped: int
    cost: Cost | None = None

    @property
    def f1(self) -> list[float]:
        """F1 of each question."""
        return [one.f1 for one in self.scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    """Statistics of the memories at one compression.

    Counts by verdict, pins, positions instead of the text's, steps and seconds.
    """

    tokens_per_vector: int
    chunks: int
    verdicts: dict[str, int]
    corrections: int
    safeties: int
    positions: int
    text_positions: int
    steps: int
    seconds: float

    @property
    def factor(self) -> float:
        """The compression factor in positions."""
        return self.text_positions / self.positions


@dataclass(frozen=True, slots=True)
class OffTopicPerplexity:
    """Perplexity of unrelated texts after a prefix: nats a token, one number a text."""

    before: str
    adapter: str
    tokens_per_vector: int
    nats: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of an evaluation: questions, cells, writings, disturbances.

    `gold` are the questions' chunks: their answers are drawn together in a bootstrap.
    """

    model: str
    weights_sha256: str
    template: str
    recipe: str
    questions: tuple[str, ...]
    golds: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]
    gold: tuple[str, ...]
    whole: tuple[bool, ...]
    cells: tuple[Result, ...]
    writings: tuple[MemoryStats, ...]
    disturbances: tuple[OffTopicPerplexity, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A result in numbers: shares 0 to 1, positions, costs.

    `difference` is F1 minus that of the text (of nothing beside the gold text), paired; `share`
    that of the best reader of texts.
    """

    reader: str
    tokens_per_vector: int
    setting: Setting
    k: int
    em: Interval
    f1: Interval
    difference: Interval
    share: float
    refused: Interval
    numbers: Interval
    names: Interval
    places: dict[str, float]
    sources: dict[str, float]
    context: float
    prompt: float
    dropped: int
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class OffTopicRow:
    """Off-topic perplexity after one kind of prefix: nats a token.

    `more` is the paired difference to no prefix.
    """

    before: str
    tokens_per_vector: int
    nats: float
    more: Interval


def table_rows(evaluation: Evaluation) -> list[Row]:
    """The table, a row for each result."""
    return [table_row(evaluation, result) for result in evaluation.cells]


def table_row(evaluation: Evaluation, result: Result) -> Row:
    """The table row of a result: means with intervals."""
    scores, groups = result.scores, evaluation.gold
    reference = reference_result(evaluation, result)
    f1 = interval(result.f1, groups)
    return Row(
        reader=result.reader,
        tokens_per_vector=result.tokens_per_vector,
        setting=result.setting,
        k=result.k,
        em=interval([one.em for one in scores], groups),
        f1=f1,
        difference=paired_difference(result.f1, reference.f1, groups)
        if reference
        else interval([], []),
        share=f1.mean / best if (best := best_text(evaluation, result)) else float("nan"),
        refused=interval([one.refused for one in scores], groups),
        numbers=interval([one.numbers for one in scores], groups),
        names=interval([one.names for one in scores], groups),
        places=means_by([place_name(number) for number in range(len(scores))], result.f1, PLACES)
        if result.setting == "among"
        else {},
        sources=means_by(evaluation.sources, result.f1, sorted(set(evaluation.sources)))
        if any(evaluation.sources)
        else {},
        context=fmean(result.context),
        prompt=fmean(result.prompt),
        dropped=result.dropped,
        cost=result.cost,
    )


def reference_result(evaluation: Evaluation, result: Result) -> Result | None:
    """The result that `result` is compared with: the text in the same setting.

    With a distractor it is none before the gold text, read by the same model.
    """

    def same(other: Result) -> bool:
        if result.setting == "beside":
            return other.reader.startswith("nothing") and other.adapter == result.adapter
        return other.reader == "text"

    alike = (
        other
        for other in evaluation.cells
        if (other.setting, other.k) == (result.setting, result.k)
    )
    return next((other for other in alike if same(other)), None)


def best_text(evaluation: Evaluation, result: Result) -> float:
    """The F1 of the best reader of texts in the same setting; 0 if there is none."""
    alike = [
        other
        for other in evaluation.cells
        if (other.setting, other.k) == (result.setting, result.k) and other.reader in TEXTS
    ]
    return max((fmean(other.f1) for other in alike), default=0.0)


def means_by(
    names: Sequence[str], values: Sequence[float], order: Sequence[str]
) -> dict[str, float]:
    """The mean of the values of each name."""
    grouped = {
        name: [value for other, value in zip(names, values, strict=True) if other == name]
        for name in order
    }
    return {name: fmean(some) for name, some in grouped.items() if some}


def off_topic_rows(evaluation: Evaluation) -> list[OffTopicRow]:
    """Off-topic perplexity by what stands before the text."""
    plain = {
        measured.adapter: measured.nats
        for measured in evaluation.disturbances
        if measured.before == "nothing"
    }
    result = []
    for measured in evaluation.disturbances:
        more = paired_difference(measured.nats, plain[measured.adapter], range(len(measured.nats)))
        result.append(
            OffTopicRow(
                measured.before + ("+adapter" if measured.adapter else ""),
                measured.tokens_per_vector,
                fmean(measured.nats),
                more,
            )
        )
    return result


def memory_stats(
    compression: int, memories: Mapping[str, CachedMemory], text_positions: int
) -> MemoryStats:
    """Counts the memories at one compression."""
    verdicts = [memory.verdict for memory in memories.values()]
    return MemoryStats(
        tokens_per_vector=compression,
        chunks=len(memories),
        verdicts=dict(sorted(Counter(verdict.kind for verdict in verdicts).items())),
        corrections=sum(verdict.corrections for verdict in verdicts),
        safeties=sum(verdict.safeties for verdict in verdicts),
        positions=sum(len(memory.memory.vectors) for memory in memories.values()),
        text_positions=text_positions,
        steps=sum(memory.steps for memory in memories.values()),
        seconds=sum(memory.seconds for memory in memories.values()),
    )
