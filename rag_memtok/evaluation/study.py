"""What an evaluation measures: which readers, at which compressions, among how many chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.config import require
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.baselines import BASELINES, Baseline, baselines_named
from rag_memtok.evaluation.cases import Sample
from rag_memtok.evaluation.results import Setting
from rag_memtok.memory.encoder import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What an evaluation measures: readers, compressions, numbers of chunks in a prompt.

    No readers: all there are adapters for. Compression 0: auto. The numbers of chunks are beside
    one alone.

    `nearest`: other chunks are those a retriever would find, else drawn by `seed`. `timed`:
    questions of each cell that are timed; `unrelated`: texts whose perplexity is measured.
    """

    readers: tuple[str, ...] = ()
    tokens_per_vector: tuple[int, ...] = (0,)
    k: tuple[int, ...] = (3, 5, 10)
    nearest: bool = True
    timed: int = 12
    unrelated: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.tokens_per_vector),
            "--tokens-per-vector",
            self.tokens_per_vector,
            "one number or more",
        )
        require(self.unrelated >= 1, "unrelated", self.unrelated, "1 or more")
        require(all(2 <= k <= 100 for k in self.k), "--k", self.k, "2 to 100 each")


def available_readers(
    readers: Sequence[str], adapters: Mapping[str, Path], encoder: Encoder | None
) -> tuple[str, ...]:
    """The readers asked for; if none are, all that are available except controls.

    Raises:
        UsageError: there is none of that name, or no adapter or encoder for it.
    """
    for name, arm in baselines_named(readers).items():
        if arm.needs == "encoded" and encoder is None:
            raise UsageError(
                f"the reader {name} needs an encoder, and the adapter for texts has none",
                remedy="--text-adapter DIR names one that has",
            )
        if arm.adapter and arm.adapter not in adapters:
            option = "--adapter" if arm.adapter == "memory" else "--text-adapter"
            raise UsageError(
                f"the reader {name} needs {option} DIR", remedy="rag-memtok adapt trains one"
            )
    return tuple(readers) or tuple(
        name
        for name, arm in BASELINES.items()
        if (not arm.adapter or arm.adapter in adapters)
        and (arm.needs != "encoded" or encoder is not None)
        and not arm.control
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Planned:
    """A result to be measured: one baseline in one setting, with its samples."""

    reader: str
    baseline: Baseline
    tokens_per_vector: int
    setting: Setting
    k: int
    samples: Sequence[Sample]


def planned_name(planned: Planned) -> str:
    """The name of a planned result in progress reports."""
    at = f" at {planned.tokens_per_vector}" if planned.tokens_per_vector else ""
    where = {
        "alone": "",
        "among": f" among {planned.k}",
        "apart": f", {planned.k} apart",
        "beside": " beside the gold text",
    }
    return f"answers: {planned.reader}{at}{where[planned.setting]}"
