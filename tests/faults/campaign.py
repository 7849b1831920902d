"""The fault campaign.

To run it: `python tests/faults/campaign.py [--long] [--only WORDS] [--no-cluster] [--seconds N]
[--out NAME]`.

Makes every fault of FAULTS, many times, and prints one table: fault, tries, outcome, lost. Lost
counts the tries after which anything was not as it must be: a chunk, a text, a citation, a verdict,
an exit code, a message. It ends with 1 if there was one, or if a fault that can be made here was
never tried. `make faults` takes about twelve
minutes, `make faults-long` hours. NAME.json and NAME.md get the table, and NAME.json every try that
lost.
"""

import argparse
import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
sys.path.insert(0, str(Path(__file__).parent.parent))

import errno  # noqa: E402

import corruption  # noqa: E402
import crowd  # noqa: E402
import fuzz  # noqa: E402
import kills  # noqa: E402
import limits  # noqa: E402
import machine  # noqa: E402
import torch  # noqa: E402
import tracer  # noqa: E402
from kills import Trial  # noqa: E402
from limits import Unable  # noqa: E402
from world import VERBS, World  # noqa: E402

from rag_memtok.cli import console  # noqa: E402


@dataclass(frozen=True)
class Bench:
    """What every fault is made with; `long` is for the campaign of hours."""

    world: World
    long: bool
    cluster: bool = True
    store: list[corruption.Bench] = field(default_factory=list)

    @property
    def small(self) -> corruption.Bench:
        """The small store that is corrupted, made when it is first needed."""
        if not self.store:
            self.store.append(corruption.Bench(self.world))
        return self.store[0]

    def numbers(self, stride: int) -> Iterator[int]:
        """1, 2, 3, ... in the long campaign, else one in `stride`."""
        return itertools.count(1, 1 if self.long else stride)


def marks(bench: Bench, verb: str) -> Iterator[Trial]:
    return kills.at_marks(bench.world.scenes[verb], itertools.count(1))


def calls(bench: Bench, verdict: int | str, stride: int) -> Iterator[Trial]:
    if reason := tracer.able():
        raise Unable(reason)
    for verb in VERBS:
        yield from kills.at_calls(
            bench.world.scenes[verb],
            bench.numbers(stride if verb in ("ingest", "update", "upgrade") else stride // 2),
            verdict,
        )


def random_kills(bench: Bench) -> Iterator[Trial]:
    return kills.at_random(list(bench.world.scenes.values()), 2000 if bench.long else 60, seed=7)


def over_verbs(
    bench: Bench, fault: Callable[..., Iterator[Trial]], *values: int
) -> Iterator[Trial]:
    for verb in ("ingest", "update", "delete", "upgrade"):
        yield from fault(bench.world.scenes[verb], *values)


def refusals(bench: Bench) -> Iterator[Trial]:
    for verb in ("update", "delete", "upgrade"):
        yield from limits.read_only(bench.world.scenes[verb])
        yield from limits.no_permission(bench.world.scenes[verb])


def killed_nodes(bench: Bench) -> Iterator[Trial]:
    if not bench.cluster:
        raise Unable("--no-cluster")
    if find_spec("ray") is None:
        raise Unable("ray is not installed: pip install '.[cluster]'")
    import nodes  # it needs what comes with ray

    chunks, minutes, every = (2000, 10, (30, 60)) if bench.long else (200, 1, (2, 8))
    with tempfile.TemporaryDirectory(dir=bench.world.folder) as folder:
        yield from nodes.campaign(Path(folder), chunks, minutes, every)


FAULTS: dict[str, Callable[[Bench], Iterator[Trial]]] = {
    **{
        f"SIGKILL at every marked step of {verb}": lambda bench, verb=verb: marks(bench, verb)
        for verb in VERBS
    },
    "SIGKILL before a system call that writes": lambda bench: calls(bench, "kill", 24),
    "SIGKILL in the middle of a write": lambda bench: calls(bench, "tear", 24),
    "the n-th write fails: no space": lambda bench: calls(bench, errno.ENOSPC, 24),
    "the n-th write fails: I/O error": lambda bench: calls(bench, errno.EIO, 24),
    "SIGKILL at a random moment": random_kills,
    "Ctrl-C, Ctrl-C twice, SIGTERM": lambda bench: kills.interrupts(
        bench.world.scenes["ingest"], 300 if bench.long else 12, seed=3
    ),
    "a full disk (tmpfs)": lambda bench: over_verbs(
        bench, limits.full_disks, (4 if bench.long else 48) * 1024
    ),
    "files may not grow (RLIMIT_FSIZE)": lambda bench: over_verbs(
        bench, limits.small_files, (4 if bench.long else 48) * 1024
    ),
    "memory runs out (RLIMIT_AS)": lambda bench: over_verbs(
        bench, limits.little_memory, (1 if bench.long else 12) * 2**20, 200
    ),
    "read-only disk, no permission": refusals,
    "a bit flipped in store.db": lambda bench: bench.small.flips(1.0 if bench.long else 0.02),
    "store.db cut short": lambda bench: bench.small.truncations(16 if bench.long else 512),
    "rows swapped, rows of another store": lambda bench: bench.small.swaps(),
    "a row gone, a document reordered": lambda bench: bench.small.losses(),
    "index.faiss damaged, older, another's": lambda bench: bench.small.strangers(),
    "six writers": lambda bench: crowd.writers(bench.world.scenes["update"], 6),
    "twenty readers and a verify during an ingest": lambda bench: crowd.readers(
        bench.world.scenes["update"], 20
    ),
    "edits, deletions, kills against a dictionary": lambda bench: machine.against_a_dictionary(
        bench.world, *((200, 30) if bench.long else (12, 8))
    ),
    "any bytes as a document": lambda bench: fuzz.loaders(bench.world, 600 if bench.long else 8),
    "any bytes in store.db": lambda bench: fuzz.store_readers(
        bench.small, 600 if bench.long else 8
    ),
    "any bytes in rag-memtok.toml": lambda bench: fuzz.settings_file(
        bench.world, 600 if bench.long else 3
    ),
    # the last: Ray's threads stay in this process
    "nodes of a Ray cluster killed while they write": killed_nodes,
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    tries: int
    outcome: str
    lost: int
    seconds: float
    losses: tuple[Trial, ...] = ()
    unable: bool = False

    @property
    def failed(self) -> bool:
        """Whether a try lost anything, or none was made although it can be made here."""
        return bool(self.lost) or not (self.tries or self.unable)


def row_of(name: str, bench: Bench, deadline: float) -> Row:
    """Makes one fault as often as it can be made before `deadline`."""
    began, outcomes, losses, note = time.monotonic(), Counter[str](), [], ""
    unable = False
    try:
        for trial in FAULTS[name](bench):
            outcomes[trial.outcome] += 1
            if trial.wrong:
                losses.append(trial)
                console.say(f"  LOST {trial.where}: {'; '.join(trial.wrong)[:1000]}")
            if time.monotonic() > deadline:
                note = "; cut short by --seconds"
                break
    except Unable as reason:
        note, unable = f"; not made: {reason}", True
    if not outcomes and not unable:
        note = "; nothing was tried"
    told = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    return Row(
        name,
        sum(outcomes.values()),
        (told + note).removeprefix("; "),
        len(losses),
        time.monotonic() - began,
        tuple(losses),
        unable,
    )


def markdown(rows: list[Row]) -> str:
    lines = [f"| {row.fault} | {row.tries} | {row.outcome} | {row.lost} |" for row in rows]
    return "\n".join(["| fault | tries | outcome | lost |", "|---|--:|---|--:|", *lines]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--long", action="store_true", help="every step, every byte, 2,000 random kills: hours"
    )
    parser.add_argument("--only", default="", help="the faults with these words in their name")
    parser.add_argument(
        "--no-cluster", action="store_true", help="without Ray's nodes, slow to start when busy"
    )
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="begin no new try after so many seconds"
    )
    parser.add_argument("--out", type=Path, help="write NAME.json and NAME.md as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # ignored in what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.disable(logging.CRITICAL)  # thousands of warnings of damage that was made on purpose
    chosen = [name for name in FAULTS if options.only in name]
    if not chosen:
        parser.error(f"no fault has {options.only!r} in its name; there are: {', '.join(FAULTS)}")
    rows = []
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CONFIG_HOME"] = f"{folder}/user"
        bench = Bench(World(Path(folder)), options.long, not options.no_cluster)
        for number, name in enumerate(chosen, 1):
            rows.append(row_of(name, bench, deadline))
            console.say(
                f"{number} of {len(chosen)}, {rows[-1].seconds:.0f} s: {name}: {rows[-1].tries} "
                f"tries, {rows[-1].lost} lost"
                + ("; nothing was tried" if rows[-1].failed and not rows[-1].lost else "")
            )
    console.put_columns(
        [
            ("fault", "tries", "outcome", "lost"),
            *((row.fault, row.tries, row.outcome, row.lost) for row in rows),
        ]
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{options.out}.json").write_text(
            json.dumps([asdict(row) for row in rows], indent=1) + "\n"
        )
        Path(f"{options.out}.md").write_text(markdown(rows))
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
