"""Limits of the system, made for real.

A disk is full or read-only, files may not grow, memory runs out.
"""

import os
import re
import resource
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import kills
from kills import Trial
from world import Scene, World

from rag_memtok.memory.batch import make_task
from rag_memtok.memory.optimize import memorize
from rag_memtok.pipeline import api

DISK = 4 * 2**20  # bytes of the small disk
SAVED = "nothing that was stored is lost"


class Unable(Exception):
    """Why a fault cannot be made here."""


@contextmanager
def small_disk(world: World) -> Iterator[Path]:
    """A tmpfs of DISK bytes.

    Raises:
        Unable: mounting is not permitted.
    """
    folder = world.folder / "disk"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Unable(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def able_to_mount() -> str:
    """Why a small disk cannot be mounted here; "" if it can."""
    if os.geteuid() != 0:
        return "only root may mount"
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True
    )
    return f"mounting is not permitted here: {done.stderr.strip()}" if done.returncode else ""


def full_disks(scene: Scene, step: int) -> Iterator[Trial]:
    """A verb on a disk with ever more bytes free, then with room.

    There are 0, `step`, 2 x `step`, ... bytes free, until there is room.
    """
    scene.ready()
    with small_disk(scene.world) as disk:
        for free in range(0, DISK, step):
            with scene.world.trial(scene.base, disk) as store:
                filler = disk / "filler"
                filler.write_bytes(b"")
                free_now = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
                with filler.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(1, free_now - free))
                child = scene.world.start(lambda: scene.run(store))
                code = child.wait()
                filler.unlink()
                trial = kills.judged(
                    scene,
                    store,
                    f"{scene.name}, {free} bytes free",
                    f"exit {code}",
                    child.acknowledged,
                )
            yield Trial(
                trial.where, trial.outcome, (*trial.wrong, *kills.unkind(code, child.output))
            )
            if code == 0:
                return


def small_files(scene: Scene, step: int) -> Iterator[Trial]:
    """A verb in a process whose files may not grow over a size, as under a quota.

    The sizes are every multiple of `step` up to the one that is enough.
    """
    scene.ready()
    for size in range(step, DISK, step):
        with scene.world.trial(scene.base) as store:
            child = scene.world.start(
                lambda size=size: (limited(resource.RLIMIT_FSIZE, size), scene.run(store))
            )
            code = child.wait()
            trial = kills.judged(
                scene,
                store,
                f"{scene.name}, files up to {size} bytes",
                f"exit {code}",
                child.acknowledged,
            )
        yield Trial(trial.where, trial.outcome, (*trial.wrong, *kills.unkind(code, child.output)))
        if code == 0:
            return


def little_memory(scene: Scene, step: int, tries: int) -> Iterator[Trial]:
    """A verb in a process that may have 0, `step`, 2 x `step`, ... bytes more than it has.

    It ends with 21 and what to do, or done.
    """
    scene.ready()
    for number in range(tries):
        with scene.world.trial(scene.base) as store:
            more = number * step
            child = scene.world.start(
                lambda more=more: (limited(resource.RLIMIT_AS, mapped() + more), scene.run(store))
            )
            code = child.wait()
            trial = kills.judged(
                scene,
                store,
                f"{scene.name}, {more} bytes of memory more",
                f"exit {code}",
                child.acknowledged,
            )
        told = code == 0 or (code == 21 and "\n  next: " in child.output)
        yield Trial(
            trial.where,
            trial.outcome,
            trial.wrong if told else (*trial.wrong, f"it ended with {code}: {child.output[-400:]}"),
        )
        if code == 0:
            return


def limited(what: int, value: int) -> None:
    """Sets a limit of this process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(what, (value, value))


def mapped() -> int:
    """The bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def read_only(scene: Scene) -> Iterator[Trial]:
    """A verb on a disk that is mounted read-only is refused with 20; reading goes on."""
    scene.ready()
    with small_disk(scene.world) as disk, scene.world.trial(scene.base, disk) as store:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            yield from refused(scene, store, "on a read-only disk", 20, SAVED, lambda work: work)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def no_permission(scene: Scene) -> Iterator[Trial]:
    """A verb by a user who may read the store, but not write to it, is refused with 23.

    Reading goes on.
    """
    if os.geteuid() != 0:
        raise Unable("only root can become another user")
    scene.ready()
    with scene.world.trial(scene.base) as store:

        def as_nobody(work: Callable[[], object]) -> Callable[[], object]:
            def their_work() -> object:
                os.setgid(65534), os.setuid(65534)
                return work()

            return their_work

        for path in (scene.world.folder, store.parent):
            path.chmod(0o755)
        for path in (store, *store.iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
            os.chown(path, 65534, 65534)
        yield from refused(
            scene, store, "in a folder without permission to write", 23, "chmod", as_nobody
        )


def refused(
    scene: Scene,
    store: Path,
    where: str,
    code: int,
    words: str,
    as_whom: Callable[[Callable[[], object]], Callable[[], object]],
) -> Iterator[Trial]:
    """The verb is refused with `code` and says `words`.

    Verify still proves everything and the index still answers.
    """
    world = scene.world
    child = world.start(as_whom(lambda: scene.run(store)))
    found = child.wait()
    wrong = (
        [] if found == code and words in child.output else [f"exit {found}: {child.output[-300:]}"]
    )
    yield Trial(f"{scene.name} {where}", f"exit {found}", tuple(wrong))
    reader = world.start(as_whom(lambda: proven(world, store)))
    found = reader.wait()
    yield Trial(f"verify {where}", f"exit {found}", () if found == 0 else (reader.output[-300:],))
    if api.status(world.config(store)).summary.chunks != len(scene.before[0]):
        yield Trial(f"status {where}", "wrong", ("another number of chunks",))


def proven(world: World, store: Path) -> int:
    """An audit that tells what it finds; 1 if that is anything."""
    wrong = world.broken(store)
    os.write(1, "".join(f"{one}\n" for one in wrong).encode())
    return int(bool(wrong))


def rows_at_once(world: World, batch: int, more: int) -> tuple[int, int]:
    """Writes 24 long memories, `batch` at a time, in `more` bytes of memory.

    Returns the exit code, and how many rows took a step together.
    """
    model, template = world.equipment.lm, world.equipment.template
    tasks = [
        make_task(str(number), tuple(3 + (number * place) % 90 for place in range(400)), 8)
        for number in range(24)
    ]
    settings = replace(world.config(world.folder / "none").memorize, batch=batch, steps=1)

    def work() -> None:
        # oneDNN tells that it will do without; in a test that would be an error
        warnings.simplefilter("ignore")
        limited(resource.RLIMIT_AS, mapped() + more)
        rows = []
        written = list(
            memorize(
                model,
                template,
                tasks,
                settings,
                on_step=lambda progress: rows.append(progress.rows),
            )
        )
        assert len(written) == len(tasks)
        os.write(1, f"rows {max(rows)}".encode())

    child = world.start(work)
    code = child.wait()
    assert code in (0, 21), f"exit code {code} with {more} bytes: {child.output[-1500:]}"
    return code, sum(map(int, re.findall(r"rows (\d+)", child.output)))
