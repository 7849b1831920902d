"""Nodes of a Ray cluster killed while they write: `python tests/faults/nodes.py [options]`.

    python tests/faults/nodes.py --chunks 2000 --minutes 10 --every 30 60

Three nodes on this machine, a toy model, a store. Once writers have begun to deliver, a node is
killed every so many seconds and another takes its place, until all is written. Nothing may be lost,
nothing twice, and the audit, held by the cluster's own workers, must prove all.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
os.environ["RAY_worker_niceness"] = "0"  # Ray's workers stand behind all else, by 15
os.environ.setdefault("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import small  # noqa: E402
import toy  # noqa: E402
from kills import Trial  # noqa: E402
from limits import Unable  # noqa: E402

from rag_memtok.cli import console  # noqa: E402
from rag_memtok.cluster.engine import reciting, writing  # noqa: E402
from rag_memtok.cluster.pool import ENVIRONMENT, import_ray  # noqa: E402
from rag_memtok.config import Config  # noqa: E402
from rag_memtok.datatypes import PROVEN, Progress  # noqa: E402
from rag_memtok.pipeline import api  # noqa: E402
from rag_memtok.store.store import open_store  # noqa: E402

TRIES = 5  # Ray gives a node half a minute to start


@dataclass
class Nodes:
    """Nodes of a cluster on this machine: a head without workers, and `count` of one core."""

    cluster: Any
    count: int
    running: list[Any] = field(default_factory=list)

    def fill(self) -> None:
        """Starts as many as there are to be."""
        while len(self.running) < self.count:
            self.running.append(started(lambda: self.cluster.add_node(num_cpus=1)))

    def kill(self, number: int) -> None:
        """Kills one, without a word to it, and starts another."""
        self.cluster.remove_node(self.running.pop(number), allow_graceful=False)
        self.fill()


def started(start: Any) -> Any:
    """What starts a node, tried again where Ray was not patient enough for a busy machine.

    Raises:
        Unable: it was not in TRIES tries.
    """
    for left in reversed(range(TRIES)):
        try:
            return start()
        except Exception as error:
            if not left:
                reason = str(error).partition("\n")[0]
                raise Unable(f"Ray started no node in {TRIES} tries: {reason}") from error
    raise AssertionError


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """A cluster of `count` nodes on this machine."""
    import_ray(ENVIRONMENT)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    made = Nodes(started(lambda: Cluster(initialize_head=True, head_node_args=head)), count)
    try:
        made.fill()
        yield made
    finally:
        made.cluster.shutdown()


@dataclass
class Killer:
    """Kills a node every `low` to `high` seconds, for `seconds` from the first delivery on.

    It is asked at every progress, in the main thread: Ray starts nodes in no other.
    """

    nodes: Nodes
    low: float
    high: float
    chance: random.Random
    seconds: float
    killed: int = 0
    next: float = 0.0
    until: float = 0.0

    def __call__(self, standing: Progress) -> None:
        now = time.monotonic()
        if not standing.done:
            return
        if not self.until:
            self.until = now + self.seconds
            self.next = now + self.chance.uniform(self.low, self.high)
        elif self.next <= now < self.until:
            self.nodes.kill(self.chance.randrange(len(self.nodes.running)))
            self.killed += 1
            self.next = time.monotonic() + self.chance.uniform(self.low, self.high)
            console.say(f"killed {self.killed}; {standing.done} of {standing.total} chunks")


def documents(chunks: int) -> dict[str, str]:
    """Files of ten chunks; the toy's chunks are a sentence each."""
    lines = [f"Machine {number} stands in hall {number % 17}." for number in range(chunks)]
    return {
        f"{start}.txt": "\n\n".join(lines[start : start + 10]) for start in range(0, chunks, 10)
    }


def wrong_in(config: Config, expected: dict[str, str], chunks: int) -> list[str]:
    """All that is not as it must be."""
    wrong = []
    with reciting(config) as recite:
        audit = api.verify(config, reconstruct=recite)
    if audit.exit_code or not set(audit.counts) <= PROVEN:
        wrong.append(f"the audit: {audit.sentence}; {audit.findings[:3]}")
    with open_store(Path(config.store), write=False) as store:
        ids, papers = store.chunk_ids(), store.documents()
        if len(ids) != len(set(ids)) or len(ids) != audit.chunks:
            wrong.append(f"{len(ids)} chunks, {len(set(ids))} different, {audit.chunks} in place")
        if sorted(one.file for one in papers) != sorted(expected):
            wrong.append(f"{len(papers)} documents instead of {len(expected)}")
        for one in papers:
            places = store.document_chunks(one.root, one.path)
            if "".join(store.text(place.chunk_id) or "" for place in places) != expected[one.file]:
                wrong.append(f"{one.file} has another text")
    if len(ids) < chunks:
        wrong.append(f"{len(ids)} chunks of at least {chunks}")
    return wrong


def campaign(
    folder: Path, chunks: int, minutes: float, every: tuple[float, float], seed: int = 0
) -> Iterator[Trial]:
    """Writes once, under fire for up to `minutes`."""
    model = toy.save(folder / "toy")
    expected = documents(chunks)
    docs = small.written(folder / "docs", expected)
    with nodes(3) as three:
        config = small.dials(
            folder / "store", model, cluster__engine="ray",
            cluster__address=three.cluster.address, documents__chunk_tokens=16,
        )  # fmt: skip
        killer = Killer(three, *every, random.Random(seed), 60 * minutes)
        rounds, wrong = 0, list[str]()
        with writing(config) as engine:
            while True:
                rounds += 1
                done = api.ingest([docs], config, on_progress=killer, engine=engine)
                if not done.failed:
                    break
                if rounds == TRIES:
                    wrong.append(f"{len(done.failed)} files failed: {done.failed[0].reason}")
                    break
        wrong += wrong_in(config, expected, chunks)
        where = f"{killer.killed} nodes killed, {rounds} ingests, {len(expected)} files"
        yield Trial(where, "all written" if not wrong else "wrong", tuple(wrong))


def main() -> int:
    """Prints what came of it; 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=2000, help="at least so many")
    parser.add_argument("--minutes", type=float, default=10, help="kill for so long")
    parser.add_argument("--every", type=float, nargs=2, default=(30, 60), help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CONFIG_HOME"] = f"{folder}/user"
        (trial,) = campaign(Path(folder), options.chunks, options.minutes, tuple(options.every))
    console.put(f"{trial.where}: {trial.outcome}")
    for line in trial.wrong:
        console.put(f"LOST: {line}")
    return int(bool(trial.wrong))


if __name__ == "__main__":
    sys.exit(main())
