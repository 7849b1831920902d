"""Bytes that changed behind the store's back.

Each change is detected, harmless, or silent, and silent must not happen.

Silent is a wrong memory, text, citation or verdict that no one is told of. The store is a small
one, packed into pages of 512 bytes, so that most of its bytes mean something.
"""

import itertools
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kills import Trial
from world import World

from rag_memtok.datatypes import ReadableVectors
from rag_memtok.errors import RagMemtokError, StoreDamaged
from rag_memtok.pipeline import api
from rag_memtok.pipeline.audit import check_structure
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.search import content_words, search_words
from rag_memtok.store.files import DATABASE, INDEX
from rag_memtok.store.formats import COLUMNS, KEY_COLUMNS, PARTS
from rag_memtok.store.store import Store, open_store

DOCUMENTS = {
    "a.txt": "The lamp is quiet.\n",
    "b.txt": "The lamp is quiet.\n",
    "c.txt": "Se hornea media hora y lleva huevo.\n\nIts keeper of the harbour wrote a letter.\n",
}
OLDER = {name: text for name, text in DOCUMENTS.items() if name != "c.txt"}
OTHER = {"a.txt": "Another lamp.\n", "d.txt": "Nothing else.\n"}
QUESTIONS = ("Who wrote a letter?", "Is the lamp quiet?")


@dataclass(frozen=True)
class Truth:
    """What a whole store tells: single answers and lists.

    Single answers must never be wrong; lists may be shorter, but not in silence.
    """

    answers: dict[object, object]
    lists: dict[str, object]


def small_store(world: World, name: str, documents: dict[str, str]) -> Path:
    """A store of these documents in small pages, with its index."""
    store = world.folder / name
    world.write(documents)
    api.ingest([world.documents], world.config(store), load=world.load)
    with open_store(store, write=True) as opened:
        opened.put_readables(
            {
                one: ReadableVectors(one, 16, "float16", bytes.fromhex(one), (4, 4))
                for one in opened.chunk_ids()
            }
        )
    sql(store, "PRAGMA page_size = 512", "VACUUM")
    with open_store(store, write=False) as opened:
        open_index(opened)
    return store


def sql(store: Path, *statements: str) -> None:
    """Changes the database behind the program's back."""
    with closing(sqlite3.connect(store / DATABASE, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            db.execute(statement)


def truth_of(store: Store, embedder: Embedder, names: Truth | None = None) -> Truth:
    """All that a reader is told; an answer is None where it is told of damage.

    `names`: ask for the chunks and documents of this one.
    """
    documents = store.documents() if names is None else names.lists["documents"]
    ids = store.chunk_ids() if names is None else names.lists["ids"]
    answers: dict[object, object] = {}
    for one in ids:
        answers["record", one] = refused(lambda one=one: fields_of(store, one))
        # which may be lost: it is made again
        answers["readable", one] = refused(lambda one=one: store.record(one).readable)
        answers["text", one] = refused(lambda one=one: store.text(one))
    for one in documents:
        answers["places", one.root, one.path] = refused(
            lambda one=one: store.document_chunks(one.root, one.path)
        )
    for question in QUESTIONS:
        answers["hits", question] = refused(
            lambda question=question: cited(store, embedder, question)
        )
    return Truth(
        answers,
        {
            "documents": store.documents(skip_damaged=True),
            "ids": store.chunk_ids(),
            "occurrences": store.occurrences(ids),
            "summary": refused(
                lambda: (lambda one: (one.chunks, one.orphans, one.documents, one.verdicts))(
                    store.summary()
                )
            ),
        },
    )


def fields_of(store: Store, chunk_id: str) -> tuple:
    record = store.record(chunk_id)
    key = None if record.key is None else record.key.tobytes()
    return (
        record.tokens,
        record.tokens_sha256,
        record.codec,
        record.packed,
        record.shape,
        record.pins,
        record.verdict,
        key,
    )


def cited(store: Store, embedder: Embedder, question: str) -> dict[str, tuple]:
    """What an answer would cite; its order is no promise, since both indexes are caches."""
    hits = search_words(store, content_words(question), 9)
    dense = [
        number
        for number, _ in open_index(store).nearest(embedder.encode([question], query=True)[0], 9)
    ]
    ids = store.ids_of([*hits, *dense])
    return {one: store.text(one) for one in ids.values()}


def allowed(name: object, value: object, truth: object) -> bool:
    """Whether an answer may be given: the truth, none where damage was told, or fewer hits."""
    return (
        value is None
        or value == truth
        or (isinstance(value, dict) and isinstance(truth, dict) and value.items() <= truth.items())
    )


def refused(question: Callable[[], object]) -> object:
    """The answer; None where the store says that it is damaged."""
    try:
        return question()
    except StoreDamaged:
        return None


class Bench:
    """A small store that is whole, and a copy of it to be changed."""

    def __init__(self, world: World) -> None:
        self.world, self.copy, self.embedder = (
            world,
            world.folder / "changed",
            world.equipment.embedder,
        )
        self.older = (small_store(world, "whole", OLDER) / INDEX).read_bytes()
        self.whole, self.other = (
            small_store(world, "whole", DOCUMENTS),
            small_store(world, "other", OTHER),
        )
        self.bytes = (self.whole / DATABASE).read_bytes()
        self.truth, self.others = self.truth_in(self.whole), self.truth_in(self.other)
        assert (
            all(value is not None for value in self.truth.answers.values())
            and self.outcome_of(lambda: None)[0] == "harmless"
        )

    def truth_in(self, folder: Path) -> Truth:
        with open_store(folder, write=False) as store:
            return truth_of(store, self.embedder)

    def fresh(self) -> None:
        """Makes the copy whole again."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.whole, self.copy)

    def outcome_of(
        self, change: Callable[[], object], truth: Truth | None = None
    ) -> tuple[str, tuple[str, ...]]:
        """Changes a fresh copy and says what came of it: detected, harmless, or wrong and how."""
        truth = truth or self.truth
        self.fresh()
        change()
        try:
            with open_store(self.copy, write=False) as store:
                problems = check_structure(store).findings
                told = truth_of(store, self.embedder, truth)
        except RagMemtokError as error:
            return f"refused ({error.name})", ()
        except Exception as error:
            return "crash", (f"{type(error).__name__}: {error}",)
        wrong = [
            f"{name} is wrong"
            for name, value in told.answers.items()
            if not allowed(name, value, truth.answers[name])
        ]
        if not problems and told.lists != truth.lists:
            wrong.append("a list is short, and check finds nothing")
        if wrong:
            return "silent", tuple(wrong)
        return ("detected" if problems else "harmless"), ()

    def trial(self, where: str, change: Callable[[], object], truth: Truth | None = None) -> Trial:
        return Trial(where, *self.outcome_of(change, truth))

    def flipped(self, position: int) -> None:
        """One bit of the byte at `position`, always the same one."""
        byte = self.bytes[position] ^ (1 << random.Random(position).randrange(8))
        with (self.copy / DATABASE).open("r+b") as file:
            file.seek(position)
            file.write(bytes([byte]))

    # --- the faults

    def flips(self, share: float, seed: int = 0) -> Iterator[Trial]:
        """A bit of every byte, or of a share of them."""
        positions = range(len(self.bytes))
        for position in (
            positions
            if share >= 1
            else sorted(random.Random(seed).sample(positions, int(share * len(self.bytes))))
        ):
            yield self.trial(f"byte {position}", lambda position=position: self.flipped(position))

    def truncations(self, step: int) -> Iterator[Trial]:
        """The database cut short."""
        for length in range(0, len(self.bytes), step):
            yield self.trial(
                f"cut to {length} bytes",
                lambda length=length: (self.copy / DATABASE).write_bytes(self.bytes[:length]),
            )

    def swaps(self) -> Iterator[Trial]:
        """Two rows of a table swapped, and rows whose content alone is another's."""
        for table in PARTS:
            for one, two in itertools.combinations((1, 2, 3), 2):
                turned = [
                    f"UPDATE {table} SET chunk = {new} WHERE chunk = {old}"
                    for old, new in ((one, -1), (two, one), (-1, two))
                ]
                yield self.trial(
                    f"{table} {one} and {two} swapped",
                    lambda turned=turned: sql(self.copy, *turned),
                )
        for table, columns in COLUMNS.items():
            stolen = (
                f"INSERT OR REPLACE INTO {table} SELECT {', '.join(columns)}, checksum FROM "
                f"other.{table}"
            )
            for limit in (1, 2):
                change = (f"ATTACH '{self.other / DATABASE}' AS other", f"{stolen} LIMIT {limit}")
                yield self.trial(
                    f"rows of {table} from another store",
                    lambda change=change: sql(self.copy, *change),
                )

    def losses(self) -> Iterator[Trial]:
        """Each row of each table gone, and a document's places turned round."""
        for table, columns in COLUMNS.items():
            names = columns[: KEY_COLUMNS.get(table, 1)]
            with closing(sqlite3.connect(self.whole / DATABASE)) as db:
                rows = db.execute(
                    f"SELECT {', '.join(f'quote({name})' for name in names)} FROM {table}"
                ).fetchall()
            for row in rows:
                which = " AND ".join(
                    f"{name} = {value}" for name, value in zip(names, row, strict=True)
                )
                yield self.trial(
                    f"{table}: {which} gone",
                    lambda change=f"DELETE FROM {table} WHERE {which}": sql(self.copy, change),
                )
        turned = (
            "UPDATE occurrences SET ordinal = {} WHERE ordinal = {} AND document = (SELECT "
            "max(document) FROM occurrences)"
        )
        yield self.trial(
            "a document reordered",
            lambda: sql(self.copy, *(turned.format(*pair) for pair in ((9, 0), (0, 1), (1, 9)))),
        )

    def strangers(self) -> Iterator[Trial]:
        """The index of another store, an older one, a damaged one, none."""
        other, own = (self.other / INDEX).read_bytes(), (self.whole / INDEX).read_bytes()
        yield self.trial(
            "the index of another store", lambda: (self.copy / INDEX).write_bytes(other)
        )
        yield self.trial("no index", lambda: (self.copy / INDEX).unlink())
        yield self.trial("an empty index", lambda: (self.copy / INDEX).write_bytes(b""))
        for position in range(0, len(own), max(1, len(own) // 60)):
            changed = own[:position] + bytes([own[position] ^ 1]) + own[position + 1 :]
            yield self.trial(
                f"byte {position} of the index",
                lambda changed=changed: (self.copy / INDEX).write_bytes(changed),
            )
        yield self.trial("an older index", lambda: (self.copy / INDEX).write_bytes(self.older))
        yield self.trial(
            "the database of another store",
            lambda: shutil.copy(self.other / DATABASE, self.copy / DATABASE),
            self.others,
        )
