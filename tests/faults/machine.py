"""The store always tells what a dictionary would.

Meanwhile files are written, edited, deleted, ingested, pruned, forgotten, killed half way.
"""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from kills import Trial
from world import World

from rag_memtok.config import Retrieve
from rag_memtok.pipeline import api
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.search import search
from rag_memtok.store.files import CRASH_AT, DATABASE
from rag_memtok.store.store import open_store

NAMES = st.sampled_from(["a.txt", "b.txt", "c.txt"])
WORDS = ("lamp", "keeper", "harbour", "cebolla", "letter", "huevo")
TEXTS = st.lists(
    st.sampled_from([f"The {word} of {word} is here. " for word in WORDS]), min_size=1, max_size=3
).map("".join)


class AgainstADictionary(RuleBasedStateMachine):
    """`files` are in the folder, `stored` is what the store has to tell.

    An edit to None deletes.
    """

    world: World
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=self.world.folder)
        self.store = Path(self.folder.name) / "store"
        self.files: dict[str, str] = {}
        self.stored: dict[str, str] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(text=TEXTS)
    def begin(self, text):
        self.edited({"a.txt": text}, prune=False, crash_at=None)

    @rule(
        edits=st.dictionaries(NAMES, st.none() | TEXTS, min_size=1),
        prune=st.booleans(),
        crash_at=st.none() | st.integers(1, 80),
    )
    def ingest(self, edits, prune, crash_at):
        self.edited(edits, prune, crash_at)

    def edited(self, edits, prune, crash_at):
        """Edits files and ingests them, perhaps killed on the way, and then again."""
        self.files = {name: text for name, text in (self.files | edits).items() if text is not None}
        if not self.files:
            return  # nothing to read: refused, see the matrix
        self.world.write(self.files)
        before, after = dict(self.stored), ({} if prune else self.stored) | self.files
        if (
            crash_at
            and self.run(lambda: self.ingested(prune), crash_at) == -signal.SIGKILL
            and (self.store / DATABASE).exists()
        ):
            for name, text in self.told().items():
                assert text in (before.get(name), after.get(name))
            assert (before.keys() & after.keys()) <= self.told().keys()
        assert self.run(lambda: self.ingested(prune)) == 0
        self.stored = after

    @rule(name=NAMES, crash_at=st.none() | st.integers(1, 8))
    def forget(self, name, crash_at):
        if name not in self.stored:
            return
        code = self.run(
            lambda: api.remove(self.world.documents / name, self.world.config(self.store)), crash_at
        )
        assert code == 0 or (crash_at and code == -signal.SIGKILL)
        if code and name in self.told():
            assert (
                self.run(
                    lambda: api.remove(self.world.documents / name, self.world.config(self.store))
                )
                == 0
            )
        del self.stored[name]

    def ingested(self, prune: bool) -> None:
        api.ingest(
            [self.world.documents], self.world.config(self.store), prune=prune, load=self.world.load
        )

    def run(self, work, crash_at: int | None = None) -> int:
        AgainstADictionary.steps += 1
        return self.world.start(work, **({CRASH_AT: str(crash_at)} if crash_at else {})).wait()

    def told(self) -> dict[str, str]:
        """The documents, put together from the kept texts."""
        with open_store(self.store, write=False) as store:
            places = {
                one.path: store.document_chunks(one.root, one.path) for one in store.documents()
            }
            return {
                path: "".join(store.text(place.chunk_id) or "" for place in found)
                for path, found in places.items()
            }

    @invariant()
    def it_tells_what_the_dictionary_does(self):
        if not (self.store / DATABASE).exists():
            assert not self.stored
            return
        assert self.told() == self.stored and self.world.broken(self.store) == []
        with open_store(self.store, write=False) as store:
            index = open_index(store)
            for word in WORDS:
                hits = search(
                    store,
                    index,
                    self.world.equipment.embedder,
                    f"{word}?",
                    Retrieve(k=9, dense_weight=0.0),
                )
                cited = {
                    place.path
                    for hit in hits
                    for place in hit.occurrences
                    if word in (store.text(hit.chunk_id) or "")
                }
                assert cited == {name for name, text in self.stored.items() if word in text}


def against_a_dictionary(world: World, examples: int, steps: int) -> Iterator[Trial]:
    """One try, of many steps; what fails is told with the shortest way to it."""
    AgainstADictionary.world, AgainstADictionary.steps = world, 0
    quiet = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    wrong = []
    try:
        run_state_machine_as_test(AgainstADictionary, settings=quiet)
    except AssertionError as error:
        wrong.append("\n".join([str(error), *getattr(error, "__notes__", [])]))
    yield Trial(
        "against a dictionary",
        f"as the dictionary, after each of {AgainstADictionary.steps} runs",
        tuple(wrong),
    )
