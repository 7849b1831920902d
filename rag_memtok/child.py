"""A child process with limits of memory, time and output, for files that may come from anyone.

The parent starts a module with `run`; the module's own main calls `confine` before it looks at
anything. Standard library only, so that a child loads no more than it needs.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

WAIT = 6  # seconds of the clock for each of the CPU: a busy machine is no reason to give up
NO_MEMORY = 9  # the child's exit code when it has too little of it even to say so
# each thread would reserve memory
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take.

    `memory` is address space in bytes, `seconds` CPU time, `output` bytes of its answer and of
    every file it writes.
    """

    memory: int = 2 << 30
    seconds: int = 20
    output: int = 64 << 20


def run(module: str, words: Sequence[str], data: bytes, limits: Limits) -> tuple[int, bytes]:
    """Runs `python -m module WORDS LIMITS` with `data` on its standard input.

    Returns its exit code (-N: ended by signal N; SIGXCPU also where the clock ended it) and what it
    wrote, which is at most a byte over the limit.

    Cost: starting it, 0.2 s and its imports; at most `limits`, six times its seconds where the
        machine is busy.
    """
    # -P: a module of that name in the working folder is not the one that is meant
    command = [sys.executable, "-P", "-m", module, *words, *map(str, astuple(limits))]
    home = os.pathsep.join(
        filter(None, [str(Path(__file__).absolute().parent.parent), os.environ.get("PYTHONPATH")])
    )
    environment: Mapping[str, str] = {
        **os.environ,
        **dict.fromkeys(THREADS, "1"),
        "PYTHONPATH": home,
    }
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=os.sep,
        env=environment,
    ) as child:
        assert child.stdin and child.stdout
        clock = threading.Timer(WAIT * limits.seconds, child.kill)
        feeder = threading.Thread(target=_feed, args=(child.stdin, data))
        try:
            clock.start()
            feeder.start()
            reply = child.stdout.read(limits.output + 1)
            if len(reply) > limits.output:
                child.kill()
                return 0, reply
            code = child.wait()
            return code if clock.is_alive() else -signal.SIGXCPU, reply
        finally:  # also on Ctrl-C
            child.kill()
            child.wait()
            clock.cancel()
            feeder.join()


def _feed(stdin: IO[bytes], data: bytes) -> None:
    """Writes the data to the child, which may have ended by then."""
    with contextlib.suppress(OSError), stdin:
        stdin.write(data)


def confine(limits: Limits) -> None:
    """Bounds CPU time, memory and what is written, here and for all it may start.

    The parent decides what comes of a Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bounds = {
        resource.RLIMIT_CPU: limits.seconds,
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.output,
    }
    for which, limit in bounds.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(which, (limit, limit + (which == resource.RLIMIT_CPU)))


def told(error: Exception) -> str:
    """An error on one short line: its words may come from the file."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return f"{type(error).__name__} {' '.join(words.split())[:120]}".strip()
