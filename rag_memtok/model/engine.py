"""Where answers are generated: the one seam between a prompt and what is said to it.

An engine is the LM of this process (`Here`), or a server that has the same model (remote.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rag_memtok.model.inject import BATCH, Said, answer_batch, answer_tokens
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Frame


@runtime_checkable
class Engine(Protocol):
    """What goes on after prompts, greedily, until the frame's end or one of the model's."""

    @property
    def context(self) -> int:
        """The most positions of a prompt and its answer."""

    def tokens(self, frame: Frame, prompt: Float[Tensor, "S d"], limit: int) -> Iterator[int]:
        """The answer, a token at a time, at most `limit`."""

    def batch(
        self, frame: Frame, prompts: Sequence[Float[Tensor, "_ d"]], limit: int
    ) -> list[Said]:
        """The answers to several prompts, each at most `limit` tokens."""


@dataclass(frozen=True, slots=True)
class Here:
    """The LM of this process."""

    lm: LM

    @property
    def context(self) -> int:
        """The model's own."""
        return self.lm.context

    def tokens(self, frame: Frame, prompt: Float[Tensor, "S d"], limit: int) -> Iterator[int]:
        """See `answer_tokens`."""
        return answer_tokens(self.lm, frame, prompt, limit)

    def batch(
        self, frame: Frame, prompts: Sequence[Float[Tensor, "_ d"]], limit: int
    ) -> list[Said]:
        """See `answer_batch`; at most BATCH prompts are answered together."""
        return [
            one
            for start in range(0, len(prompts), BATCH)
            for one in answer_batch(self.lm, frame, prompts[start : start + BATCH], limit)
        ]
