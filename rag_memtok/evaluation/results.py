"""What an evaluation found: every answer, and the table that is made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rag_memtok.evaluation.cases import PLACES, place_name
from rag_memtok.evaluation.memory_cache import Kept
from rag_memtok.evaluation.metrics import Interval, Score, interval, paired
from rag_memtok.evaluation.predictions import Cost

Setting = Literal["alone", "among", "apart", "beside"]
TEXTS = ("text", "text+adapter")


@dataclass(frozen=True, slots=True)
class Cell:
    """The answers and scores of all questions for one way of reading.

    `tokens_per_vector` 0: does not depend on it. `dropped`: other chunks that found no room, in
    all.

    Settings: the gold chunk `alone`; `among` k - 1 others; each of these k `apart`; the gold text
    with something irrelevant `beside` it.
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


@dataclass(frozen=True, slots=True)
class Writing:
    """What the memories at one compression are, and took.

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
        """How many times fewer positions."""
        return self.text_positions / self.positions


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Nats a token of unrelated texts with something before them, one number a text."""

    before: str
    adapter: str
    tokens_per_vector: int
    nats: tuple[float, ...]


@dataclass(frozen=True, slots=True)
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
    cells: tuple[Cell, ...]
    writings: tuple[Writing, ...]
    disturbances: tuple[Disturbance, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """A cell in numbers: shares 0 to 1, positions, costs.

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
class Shift:
    """Unrelated text after something: nats a token.

    `more` is how many more than after nothing, paired.
    """

    before: str
    tokens_per_vector: int
    nats: float
    more: Interval


def rows(found: Evaluation) -> list[Row]:
    """The table, cell by cell."""
    return [row(found, cell) for cell in found.cells]


def row(found: Evaluation, cell: Cell) -> Row:
    """The table row of a cell: means with intervals."""
    scores, groups = cell.scores, found.gold
    basis = baseline(found, cell)
    f1 = interval(cell.f1, groups)
    return Row(
        reader=cell.reader,
        tokens_per_vector=cell.tokens_per_vector,
        setting=cell.setting,
        k=cell.k,
        em=interval([one.em for one in scores], groups),
        f1=f1,
        difference=paired(cell.f1, basis.f1, groups) if basis else interval([], []),
        share=f1.mean / best if (best := best_text(found, cell)) else float("nan"),
        refused=interval([one.refused for one in scores], groups),
        numbers=interval([one.numbers for one in scores], groups),
        names=interval([one.names for one in scores], groups),
        places=means_by([place_name(number) for number in range(len(scores))], cell.f1, PLACES)
        if cell.setting == "among"
        else {},
        sources=means_by(found.sources, cell.f1, sorted(set(found.sources)))
        if any(found.sources)
        else {},
        context=fmean(cell.context),
        prompt=fmean(cell.prompt),
        dropped=cell.dropped,
        cost=cell.cost,
    )


def baseline(found: Evaluation, cell: Cell) -> Cell | None:
    """What a cell is compared with: the text in the same setting.

    Beside the gold text it is nothing, read by the same model.
    """

    def same(other: Cell) -> bool:
        if cell.setting == "beside":
            return other.reader.startswith("nothing") and other.adapter == cell.adapter
        return other.reader == "text"

    alike = (other for other in found.cells if (other.setting, other.k) == (cell.setting, cell.k))
    return next((other for other in alike if same(other)), None)


def best_text(found: Evaluation, cell: Cell) -> float:
    """The F1 of the best reader of texts in the same setting; 0 if there is none."""
    alike = [
        other
        for other in found.cells
        if (other.setting, other.k) == (cell.setting, cell.k) and other.reader in TEXTS
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


def shifts(found: Evaluation) -> list[Shift]:
    """How much harder unrelated texts are to predict, by what stands before them."""
    plain = {one.adapter: one.nats for one in found.disturbances if one.before == "nothing"}
    shown = []
    for one in found.disturbances:
        more = paired(one.nats, plain[one.adapter], range(len(one.nats)))
        shown.append(
            Shift(
                one.before + ("+adapter" if one.adapter else ""),
                one.tokens_per_vector,
                fmean(one.nats),
                more,
            )
        )
    return shown


def writing(compression: int, kept: Mapping[str, Kept], text_positions: int) -> Writing:
    """The memories at one compression, counted."""
    verdicts = [one.verdict for one in kept.values()]
    return Writing(
        tokens_per_vector=compression,
        chunks=len(kept),
        verdicts=dict(sorted(Counter(verdict.kind for verdict in verdicts).items())),
        corrections=sum(verdict.corrections for verdict in verdicts),
        safeties=sum(verdict.safeties for verdict in verdicts),
        positions=sum(len(one.memory.vectors) for one in kept.values()),
        text_positions=text_positions,
        steps=sum(one.steps for one in kept.values()),
        seconds=sum(one.seconds for one in kept.values()),
    )
