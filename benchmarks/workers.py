"""Workers of a Ray cluster against processes of one machine: the same chunks, as many workers.

    python -m benchmarks.workers --counts 1,2,4

Every row writes the documents of DATA anew, into a store of its own, in a process of its own:
`--processes N` of one thread each, or N workers of one core on a Ray cluster of this machine, which
runs before the clock does. The clock has in it what a user waits for: workers load the model, write
and judge; one process commits. More workers than cores measure what that costs, not a gain.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rag_memtok.cli.console import say
from rag_memtok.cli.tables import put_markdown
from rag_memtok.config import Config
from rag_memtok.datatypes import Progress
from rag_memtok.pipeline import api
from rag_memtok.pipeline.writer import Engine, write_in_processes
from rag_memtok.settings import here

DATA = Path(__file__).parent.parent / "data" / "docs"
ENGINES = ("processes", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row: chunks written, seconds in all and until the first chunk was committed."""

    engine: str
    workers: int
    chunks: int
    failed: int
    seconds: float
    first: float


@contextmanager
def engine_named(name: str, workers: int, config: Config) -> Iterator[Engine]:
    """What writes: processes of this machine, or a cluster of so many cores that runs already."""
    if name == "processes":
        yield write_in_processes
        return
    from rag_memtok.cluster.engine import writing
    from rag_memtok.cluster.pool import ENVIRONMENT, LOCAL, import_ray

    ray = import_ray(ENVIRONMENT | {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4})
    ray.init(**LOCAL, num_cpus=workers, log_to_driver=False, logging_level="error")
    try:
        with writing(config) as engine:
            yield engine
    finally:
        ray.shutdown()


def measure(name: str, workers: int, args: argparse.Namespace, folder: Path) -> Measured:
    """Writes the documents once."""
    config = here(
        store=folder / "store",
        model=args.model,
        embedder="mini",
        threads=workers if name == "processes" else 1,
        processes=workers,
        batch=args.batch,
        tokens_per_vector=args.tokens_per_vector,
    )
    arrivals: list[float] = []

    def on_progress(progress: Progress) -> None:
        if progress.done and not arrivals:
            arrivals.append(time.monotonic())

    with engine_named(name, workers, config) as engine:
        began = time.monotonic()
        done = api.ingest([args.data], config, on_progress=on_progress, engine=engine)
        seconds = time.monotonic() - began
    return Measured(
        engine=name,
        workers=workers,
        chunks=api.status(config).summary.chunks,
        failed=len(done.failed),
        seconds=round(seconds, 1),
        first=round(arrivals[0] - began, 1) if arrivals else seconds,
    )


def in_a_process(name: str, workers: int, rest: Sequence[str]) -> Measured:
    """The row, measured in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.workers", *rest, "--row", name, str(workers)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    measured = Measured(**json.loads(done.stdout.splitlines()[-1]))
    say(str(measured))
    return measured


def table(rows: Sequence[Measured]) -> None:
    """Prints what was measured, each engine beside the other."""
    names = ("workers", *(f"{name}, {what}" for name in ENGINES for what in ("s", "chunks/min")))
    lines = []
    for workers in dict.fromkeys(row.workers for row in rows):
        pair = {row.engine: row for row in rows if row.workers == workers}
        cells = [(row.seconds, 60 * row.chunks / row.seconds) for row in map(pair.get, ENGINES)]
        overhead = 100 * (cells[1][0] / cells[0][0] - 1)
        numbers = [f"{number:.1f}" for cell in cells for number in cell]
        lines.append([str(workers), *numbers, f"{overhead:+.0f} %"])
    put_markdown([*names, "ray against processes"], lines)


def main() -> None:
    """Measures one row, or all and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="1,2,4", help="of workers (1,2,4)")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens-per-vector", type=int, default=8)
    parser.add_argument("--row", nargs=2, metavar=("ENGINE", "WORKERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(args.row[0], int(args.row[1]), args, Path(folder))
        print(json.dumps(asdict(found)))
        return
    print(f"{platform.processor() or platform.machine()}, {time.strftime('%d %B %Y')}")
    counts = [int(count) for count in args.counts.split(",")]
    rows = [in_a_process(name, n, sys.argv[1:]) for n in counts for name in ENGINES]
    table(rows)


if __name__ == "__main__":
    main()
