"""What the server counts, as Prometheus reads it."""

import threading
from collections import defaultdict
from collections.abc import Callable

Labels = tuple[tuple[str, str], ...]
# name: kind, help
METRICS = {
    "requests_total": ("counter", "Requests by route and status."),
    "questions_total": ("counter", "Questions by what came of them."),
    "answer_seconds_sum": ("counter", "Seconds from a question's arrival to its answer."),
    "answer_seconds_count": ("counter", "Answers."),
    "batches_total": ("counter", "Batches of questions that shared forward passes."),
    "batched_questions_total": ("counter", "Questions in these batches."),
    "jobs_total": ("counter", "Jobs by kind and how they ended."),
    "questions_waiting": ("gauge", "Questions in the queue."),
    "jobs_waiting": ("gauge", "Jobs in the queue."),
}


class Metrics:
    """Counters of all threads, and gauges that are asked when they are read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, int | float]] = defaultdict(lambda: defaultdict(int))
        self._gauges: dict[str, Callable[[], int]] = {}

    def count(self, name: str, by: int | float = 1, **labels: str) -> None:
        """Adds to a counter of METRICS."""
        assert name in METRICS, name
        with self._lock:
            self._counts[name][tuple(sorted(labels.items()))] += by

    def gauge(self, name: str, now: Callable[[], int]) -> None:
        """Has a gauge of METRICS asked whenever it is read."""
        assert name in METRICS, name
        self._gauges[name] = now

    def value(self, name: str, **labels: str) -> int | float:
        """The value of a counter."""
        with self._lock:
            return self._counts[name][tuple(sorted(labels.items()))]

    def text(self) -> str:
        """All metrics in Prometheus' text format."""
        with self._lock:
            counts = {name: dict(rows) for name, rows in self._counts.items()}
        rows = counts | {name: {(): now()} for name, now in self._gauges.items()}
        lines = []
        for name, (kind, help_) in METRICS.items():
            lines += [f"# HELP rag_memtok_{name} {help_}", f"# TYPE rag_memtok_{name} {kind}"]
            lines += [
                f"rag_memtok_{name}{_format_labels(labels)} {value!r}"
                for labels, value in sorted(rows.get(name, {}).items())
            ]
        return "\n".join(lines) + "\n"


def _format_labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
