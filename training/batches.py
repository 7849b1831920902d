"""Batches of fixed length: windows of prose, and rows packed from tasks."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from training.frame import BOS, LEAD, REFUSAL, Frame, Row
from training.tasks import Tasks


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of the rows of a batch.

    `others` is how much of the tokens that are not the assistant's is scored, by chance.

    `first` is how much more an answer's first token weighs than its others: to find the place is
    what is learned, the rest is copying.
    """

    prose: float
    copy: float  # echo, recall, repeat, continue after, look up, fill gaps
    reading: float
    others: float = 1.0
    first: float = 1.0
    # this share of the copy tasks is plain repetition, which forms the copying heads
    echo: float = 0.08

    def tasks(self) -> dict[str, float]:
        """Weights of the kinds of tasks, prose left out."""
        parts = {
            "recall": 0.4,
            "lookup": 0.25,
            "continue_after": 0.15,
            "cloze": 0.15,
            "repeat": 0.05,
        }
        kinds = {kind: self.copy * (1 - self.echo) * part for kind, part in parts.items()}
        return kinds | {"echo": self.copy * self.echo, "reading": self.reading}


@dataclass(frozen=True)
class Batch:
    """Ids `[rows, length]`, the ids that follow them, and the weights of those in the loss.

    A weight of 0 means not scored.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def scored(self) -> Tensor:
        """The mask of the positions that are predicted."""
        return self.weights > 0


class Rows(IterableDataset):
    """An endless stream of (ids, weights) of length + 1 tokens each.

    Each worker and process has a seed of its own.
    """

    def __init__(self, folder: Path, mix: Mix, length: int, seed: int) -> None:
        """Remembers where things are; files are opened where the rows are made."""
        self.folder, self.mix, self.length, self.seed = folder, mix, length, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Makes rows for ever."""
        worker = torch.utils.data.get_worker_info()
        seed = self.seed * 1009 + (worker.id if worker else 0)
        self.stream = np.memmap(self.folder / "train.bin", dtype=np.uint16, mode="r")
        self.rng = random.Random(seed)
        frame = Frame(self.folder / "tokenizer.json")
        tasks, self.refusal = Tasks(frame, self.folder, seed + 1), frame.text(LEAD + REFUSAL)[0]
        while True:
            yield (
                self.prose(self.length + 1)
                if self.rng.random() < self.mix.prose
                else self.packed(tasks)
            )

    def prose(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Beginning-of-text and a window of the prose at a random place, all scored.

        So a text begins wherever one is asked for.
        """
        start = self.rng.randrange(len(self.stream) - length)
        window = self.stream[start : start + length].astype(np.int64)
        window[:1] = BOS  # of a window that is not empty
        return window, np.ones(length, dtype=np.float32)

    def packed(self, tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
        """Tasks one after the other until fewer than 90 tokens are left, then prose."""
        ids: list[int] = []
        weights: list[float] = []
        while (room := self.length + 1 - len(ids)) > 90:
            row = tasks.row(self.mix.tasks(), room)
            ids += row.ids
            weights += self.weigh(row)
        tail, tail_weights = self.prose(self.length + 1 - len(ids))
        return np.concatenate([np.array(ids, dtype=np.int64), tail]), np.concatenate(
            [np.array(weights, dtype=np.float32), tail_weights]
        )

    def weigh(self, row: Row) -> list[float]:
        """The weight of each token of a task in the loss.

        An answer's first word weighs most (but a refusal's), what is not the assistant's now and
        then.
        """
        before = (False, *row.answer)
        return [
            (1.0 if after or token == self.refusal else self.mix.first)
            if answer
            else float(self.rng.random() < self.mix.others)
            for token, answer, after in zip(row.ids, row.answer, before, strict=False)
        ]


def batches(rows: Rows, size: int, workers: int) -> Iterator[Batch]:
    """Batches of `size` rows, made by `workers` processes (0: in this one)."""
    loader = torch.utils.data.DataLoader(
        rows, batch_size=size, num_workers=workers, prefetch_factor=4 if workers else None
    )
    for ids, weights in loader:
        yield Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])
