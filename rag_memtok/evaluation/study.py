"""What an evaluation measures: which readers, at which compressions, among how many chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.config import require
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.baselines import ARMS, arms_named
from rag_memtok.memory.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Study:
    """What is measured: readers, compressions, numbers of chunks in a prompt.

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


def possible(
    readers: Sequence[str], adapters: Mapping[str, Path], encoder: Encoder | None
) -> tuple[str, ...]:
    """The readers asked for; all that can be but controls, if none are.

    Raises:
        UsageError: there is none of that name, or no adapter or encoder for it.
    """
    for name, arm in arms_named(readers).items():
        if arm.adapter and arm.adapter not in adapters:
            option = {"memory": "--adapter", "text": "--text-adapter"}[arm.adapter]
            raise UsageError(
                f"the reader {name} needs {option} DIR", remedy="rag-memtok adapt trains one"
            )
        if arm.needs == "encoded" and encoder is None:
            raise UsageError(
                f"the reader {name} needs an encoder, and the adapter for texts has none",
                remedy="--text-adapter DIR names one that has",
            )
    return tuple(readers) or tuple(
        name
        for name, arm in ARMS.items()
        if (not arm.adapter or arm.adapter in adapters)
        and (arm.needs != "encoded" or encoder is not None)
        and not arm.control
    )
