"""Trains the family for the study of scale: `python -m training.family PACKED OUT --minutes 20`.

The same recipe at about 1, 3 and 6 million parameters, one after the other: pre-training, reading,
export. A killed run goes on where it was.
"""

import argparse
import subprocess
import sys
from pathlib import Path

SIZES = ("1M", "3M", "6M")


def command(processes: int, *args: str) -> list[str]:
    """A call of the trainer in one process or in several."""
    launch = (
        ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    return [sys.executable, *launch, "-m", "training.train", *args]


def member(
    packed: Path, out: Path, size: str, processes: int, extra: list[str], minutes: float
) -> None:
    """Trains and exports one size: two thirds of the time for pre-training, one for reading."""
    folder = out / f"run-{size}"
    common = [str(packed), str(folder), "--shape", size, *extra]
    subprocess.run(
        command(processes, *common, "--stage", "pretrain", "--minutes", str(minutes * 2 / 3)),
        check=True,
    )
    start = ["--weights", str(folder / "pretrain")]
    subprocess.run(
        command(processes, *common, "--stage", "read", "--minutes", str(minutes / 3), *start),
        check=True,
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "training.export",
            str(folder / "read"),
            str(packed),
            str(out / f"mini-{size}"),
            "--id",
            f"mini-{size}",
        ],
        check=True,
    )


def main() -> None:
    """Parses the command line and trains the sizes in turn.

    Flags it does not know go to the trainer.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30, help="for each size")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    args, extra = parser.parse_known_args()
    for size in args.sizes:
        member(
            args.packed, args.out, size, processes=args.processes, extra=extra, minutes=args.minutes
        )


if __name__ == "__main__":
    main()
