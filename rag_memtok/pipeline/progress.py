"""How long work tells where it stands: one reporter for all of it."""

import time
from dataclasses import dataclass, field

from rag_memtok.datatypes import OnProgress, Progress


def quiet(_: object) -> None:
    """Says nothing."""


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Counts what is done of `total` and tells `on_progress`.

    What is left is taken to cost what was done did, unless `known_left` says better (seconds). What
    was `ready` before it began, of an earlier run, does not count for that.
    """

    on_progress: OnProgress
    total: int
    stage: str = ""
    ready: int = 0
    known_left: float | None = None
    facts: dict[str, int | float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    done: int = 0

    def __post_init__(self) -> None:
        self.done = self.ready

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Seconds that are likely left; None while nothing can be said."""
        if self.known_left is not None:
            return self.known_left if self.done < self.total else 0.0
        new = self.done - self.ready
        return self.seconds / new * (self.total - self.done) if new else None

    def advance(self, count: int = 1, **facts: int | float) -> None:
        """Counts `count` more as done, and reports."""
        self.done += count
        self.tell(**facts)

    def tell(self, **facts: int | float) -> None:
        """Reports where the work stands, with the new `facts`."""
        self.facts |= facts
        self.on_progress(
            Progress(
                done=self.done,
                total=self.total,
                stage=self.stage,
                facts=dict(self.facts),
                seconds=self.seconds,
                seconds_left=self.seconds_left,
            )
        )
