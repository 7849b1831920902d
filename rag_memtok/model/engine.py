"""Where answers are generated: the one seam between a prompt and its answer.

An engine is the LM of this process (`LocalEngine`), or a server with the same model (remote.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rag_memtok.model.copying import Copied
from rag_memtok.model.inject import Generation, answer_batch, answer_rows, never
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import QAPrompt


@runtime_checkable
class Engine(Protocol):
    """Generates greedily after prompts, until the prompt's end token or one of the model's."""

    @property
    def context(self) -> int:
        """The most positions of a prompt and its answer."""

    def rows(
        self,
        frame: QAPrompt,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> Iterator[tuple[int, int]]:
        """The answers to several prompts as they are made, at most `limit` tokens: (row, token).

        Nothing more is wanted of a row that has `ended`. `copied` is what each answer is copied
        from, where the engine can see to that: a server cannot.
        """

    def batch(
        self,
        frame: QAPrompt,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> list[Generation]:
        """The same answers, whole."""


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """The LM of this process."""

    lm: LM

    @property
    def context(self) -> int:
        """The model's own."""
        return self.lm.context

    def rows(
        self,
        frame: QAPrompt,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> Iterator[tuple[int, int]]:
        """See `answer_rows`."""
        return answer_rows(self.lm, frame, prompts, limit, ended=ended, copied=copied)

    def batch(
        self,
        frame: QAPrompt,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> list[Generation]:
        """See `answer_batch`."""
        return answer_batch(self.lm, frame, prompts, limit, ended=ended, copied=copied)
