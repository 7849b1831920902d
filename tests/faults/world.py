"""A small world for faults to happen in.

It has documents, a toy model, and a warm parent whose forked children are the processes that die.

A child is a process of its own with the command line's own exit codes (`cli.run`); it only skips
the seconds that imports and the model take. Its memories are written one at a time on one thread,
so that every store of the same documents has the same bytes in it.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import copytree, rmtree

import small
import toy
from older import to_format_1

from rag_memtok.cli import app
from rag_memtok.pipeline import api, resources
from rag_memtok.pipeline.audit import audit, check_structure
from rag_memtok.pipeline.manifest import complete_config
from rag_memtok.retrieval.index import open_index, set_threads
from rag_memtok.store.files import DATABASE, INDEX, NEW, OURS
from rag_memtok.store.store import open_store

TIME = 1_700_000_000_000_000_000  # of every document, in nanoseconds
FIRST = {
    "lamp.txt": "The lamp of the harbour was repaired.\n\nIts keeper wrote a Quarterdeck letter.\n",
    "soup.txt": "La empanada lleva cebolla.\r\nSe hornea \U0001f95f media hora.\r\n",
    "old.txt": "The Xylophonist is quiet.\n",
    "copy.txt": "Se hornea media hora.\n",
    "again.txt": "Se hornea media hora.\n",
    "tickets.jsonl": '{"text": "Ticket 7"}\n{"text": "<|eot_id|> in the log"}\n',
}
EDITED = FIRST | {
    "lamp.txt": "The lamp of the harbour was repaired.\n\nIts keeper wrote no letter.\n",
    "added.txt": "A new document.\n",
}
FEWER = {name: text for name, text in FIRST.items() if name not in ("old.txt", "again.txt")}


@dataclass(frozen=True)
class Verb:
    """Something that is done to a store.

    It says to which store (None: there is none yet), with which documents, and how.
    """

    before: Mapping[str, str] | None
    documents: Mapping[str, str]
    run: Callable[["World", Path], object]
    forgotten: str = ""  # a word that must be nowhere in the store's files afterwards
    older: bool = False  # the store before it is of format 1


def ingest(world: "World", store: Path) -> None:
    api.ingest(
        [world.documents], world.config(store), on_progress=world.acknowledge, load=world.load
    )


def prune(world: "World", store: Path) -> None:
    api.ingest(
        [world.documents],
        world.config(store),
        prune=True,
        on_progress=world.acknowledge,
        load=world.load,
    )


def delete(world: "World", store: Path) -> None:
    api.remove(world.documents / "old.txt", world.config(store))


def index(world: "World", store: Path) -> None:
    with suppress(OSError):  # ours: a disk that refuses it leaves the index, which is as good
        (store / INDEX).unlink(missing_ok=True)
    with open_store(store, write=False) as opened:
        open_index(opened)


# The writing of an adapter gets a row here when there is one.
VERBS = {
    "ingest": Verb(None, FIRST, ingest),
    "update": Verb(FIRST, EDITED, ingest, "Quarterdeck"),
    "delete": Verb(FIRST, FIRST, delete, "Xylophonist"),
    "prune": Verb(FIRST, FEWER, prune, "Xylophonist"),
    "index write": Verb(FIRST, FIRST, index),
    "upgrade": Verb(FIRST, EDITED, ingest, "Quarterdeck", older=True),
}


@dataclass(frozen=True)
class Child:
    """A process that was started."""

    pid: int
    told: Path

    @property
    def output(self) -> str:
        """What it said so far, on stdout and stderr."""
        return self.told.read_text(errors="replace")

    @property
    def acknowledged(self) -> int:
        """How many chunks it has said are written."""
        counts = [
            int(line.partition(" ")[2])
            for line in self.output.splitlines()
            if line.startswith("acknowledged ")
        ]
        return max(counts, default=0)

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; -9 if SIGKILL ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class World:
    """The documents, the model, and where stores are made.

    The documents are one folder, rewritten for every trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.documents, self.pid = folder, folder / "docs", os.getpid()
        self.model = toy.save(folder / "model")
        self.equipment = resources.load(complete_config(self.config(folder / "none"), {}))
        set_threads(1)

    def config(self, store: Path, **changes):
        return small.dials(
            store,
            self.model,
            memorize__batch=1,
            memorize__steps=6,
            documents__chunk_tokens=16,
            **changes,
        )

    def load(self, settings):
        return self.equipment

    def acknowledge(self, standing) -> None:
        if os.getpid() != self.pid:
            os.write(1, f"acknowledged {standing.done}\n".encode())
            while (self.folder / "gate").exists():
                time.sleep(0.01)

    def write(self, documents: Mapping[str, str]) -> None:
        """Makes the documents' folder hold just these, always of the same time."""
        rmtree(self.documents, ignore_errors=True)
        small.written(self.documents, documents)
        for name in documents:
            os.utime(self.documents / name, ns=(TIME, TIME))

    def start(self, work: Callable[[], object], **environment: str) -> Child:
        """Does `work` in a child."""
        handle, told = tempfile.mkstemp(dir=self.folder)
        with warnings.catch_warnings():
            # Python warns of a fork where there are threads: these are asleep
            warnings.simplefilter("ignore")
            pid = os.fork()
        if not pid:
            code = 1
            try:
                os.dup2(handle, 1), os.dup2(handle, 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                os.environ.update(environment)
                signal.signal(signal.SIGTERM, app.terminate)
                code = as_main(work)
                sys.stdout.flush(), sys.stderr.flush()
            except BaseException:
                with suppress(OSError):
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)  # whatever happens: the child must not go on as its parent
        os.close(handle)
        return Child(pid, Path(told))

    @contextmanager
    def trial(self, base: Path | None = None, place: Path | None = None) -> Iterator[Path]:
        """A store of its own, a copy of `base`, gone afterwards.

        It is in the folder `place` if that is told.
        """
        with tempfile.TemporaryDirectory(dir=place or self.folder) as folder:
            store = Path(folder) / "store"
            if base is not None:
                copytree(base, store)
            yield store

    @cached_property
    def base(self) -> Path:
        """A store of FIRST, to be copied."""
        self.write(FIRST)
        ingest(self, self.folder / "base")
        return self.folder / "base"

    @cached_property
    def older(self) -> Path:
        """The same in format 1, which has its own index no more."""
        older = Path(copytree(self.base, self.folder / "older"))
        (older / INDEX).unlink()
        return to_format_1(older)

    def broken(self, store: Path) -> list[str]:
        """What an audit of the store finds; documents that are not there yet are no finding."""
        with open_store(store, write=False) as opened:
            found = audit(opened, self.equipment.lm, self.equipment.template)
            open_index(opened)
        wrong = [f"{one.kind}: {one.subject}: {one.reason}" for one in found.findings]
        if found.documents_proven != found.documents:
            wrong.append(f"{found.documents_proven} of {found.documents} documents are proven")
        return wrong

    @cached_property
    def scenes(self) -> dict[str, "Scene"]:
        """Each verb with the store before it and what has to come of it."""
        return {name: Scene.of(self, name) for name in VERBS}


def as_main(work: Callable[[], object]) -> int:
    """`cli.main` around `work`, with its exit code."""
    try:
        os.write(1, b"ready\n")
        return app.run(work)
    except KeyboardInterrupt as again:
        return app.interrupted(again)


@dataclass(frozen=True)
class Scene:
    """A verb, the store before it (None: none yet), and what is in the store before and after."""

    world: World
    name: str
    base: Path | None
    before: tuple
    after: tuple

    @classmethod
    def of(cls, world: World, name: str) -> "Scene":
        verb = VERBS[name]
        base = (world.older if verb.older else world.base) if verb.before else None
        before = small.content_of(base) if base else ({}, (), {})
        world.write(verb.documents)
        with world.trial(base) as store:
            verb.run(world, store)
            after = small.content_of(store)
            assert not world.broken(store), world.broken(store)
        return cls(world, name, base, before, after)

    def run(self, store: Path) -> None:
        """The verb itself."""
        VERBS[self.name].run(self.world, store)

    def ready(self) -> None:
        """Puts the documents there as the verb finds them."""
        self.world.write(VERBS[self.name].documents)

    def wrong_now(self, store: Path, acknowledged: int) -> list[str]:
        """What of a store must not be as it is, after the verb ended anywhere."""
        if not (store / DATABASE).exists():
            return ["the store is gone"] if self.base or acknowledged else []
        wrong = self.world.broken(store)
        chunks, documents, _ = small.content_of(store)
        (old, old_documents, _), (new, new_documents, _) = self.before, self.after
        if changed := [
            one for one, content in chunks.items() if content not in (old.get(one), new.get(one))
        ]:
            wrong.append(f"{len(changed)} chunks are neither as before nor as after")
        if gone := [one for one in old.keys() & new.keys() if one not in chunks]:
            wrong.append(f"{len(gone)} chunks that stay were lost")
        if len(chunks.keys() - old.keys()) < acknowledged:
            wrong.append(
                f"{acknowledged} chunks were acknowledged, {len(chunks.keys() - old.keys())} are "
                "there"
            )
        if [one for one in documents if one not in (*old_documents, *new_documents)]:
            wrong.append("a document is neither as before nor as after")
        if {(one.root, one.file) for one in old_documents} & {
            (one.root, one.file) for one in new_documents
        } - {(one.root, one.file) for one in documents}:
            wrong.append("a file that stays was lost")
        return wrong

    def wrong_after(self, store: Path) -> list[str]:
        """Runs the verb again, to its end, and says what is not as if nothing had happened."""
        again = self.world.start(lambda: self.run(store))
        code = again.wait()
        done = self.name == "delete" and code == 2 and "the store has nothing of" in again.output
        if code and not done:
            return [f"the next run ended with {code}: {again.output[-300:]}"]
        with open_store(store, write=False) as opened:
            wrong = [str(one) for one in check_structure(opened).findings]
        # which was audited: the same bits decode to the same texts
        if small.content_of(store) != self.after:
            wrong.append("the next run did not end with the same chunks, texts and citations")
        return wrong + leftovers(store, VERBS[self.name].forgotten)


def leftovers(store: Path, forgotten: str) -> list[str]:
    """Files that should not be there, and deleted text that still is."""
    wrong = [
        f"{path.name} is left"
        for path in store.iterdir()
        if path.name not in OURS or path.name.endswith((NEW, "-journal"))
    ]
    if forgotten:
        trace = forgotten.lower().encode()
        wrong += [
            f"deleted text is in {path.name}"
            for path in store.iterdir()
            if trace in path.read_bytes().lower()
        ]
    return wrong
