"""A store of format 1 is read as it is, and becomes one of the present by its first write.

Whatever happens meanwhile, it is one or the other.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from older import to_format_1
from test_store import ROOT, fields_of, file_of, ingest, record_of, sql

from rag_memtok.datatypes import ReadableVectors, sha256_of_text
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.store.files import COPY, CRASH_AT, DATABASE, NEW
from rag_memtok.store.formats import CURRENT, FORMAT_1, VERSION
from rag_memtok.store.schema import connect, expected_objects, schema_objects
from rag_memtok.store.store import create, open_store

GOLDEN = Path(__file__).parent / "golden" / "stores" / "format-1" / "store"
TEXTS = {"a.txt": ["apple one ", "brick two "], "caf\udce9 b.txt": ["brick two ", "candle three "]}
IDS = [sha256_of_text(text) for texts in TEXTS.values() for text in texts]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A store of format 1, to be copied, not changed."""
    folder = tmp_path_factory.mktemp("two") / "store"
    create(folder, {"model": "toy"})
    with open_store(folder, write=True) as store:
        for name, texts in TEXTS.items():
            ingest(store, name, texts)
        ingest(store, "gone.txt", ["gone with the last place"])
        store.remove_file(ROOT, "gone.txt")
        store.collect()
    return to_format_1(folder)


@pytest.fixture
def old(two, tmp_path):
    return Path(shutil.copytree(two, tmp_path / "old"))


def version(folder):
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def told(store):
    """All that a reader is told of chunks, documents and places."""
    chunks = {one: (fields_of(store.record(one)), store.text(one)) for one in store.chunk_ids()}
    places = [store.document_chunks(one.root, one.path) for one in store.documents()]
    return chunks, store.documents(), places, store.occurrences(IDS), store.keys()[1].tolist()


def content(folder):
    with open_store(folder, write=False) as store:
        assert store.check() == ()
        return told(store)


def write(folder):
    """The smallest write there is."""
    with open_store(folder, write=True) as store:
        store.set_manifest("seed", "1")


def left(folder):
    return sorted(one.name for one in folder.iterdir() if one.name.startswith("store.db"))


def test_the_format_1_of_these_tests_is_that_of_the_golden_store(two):
    for folder in (two, GOLDEN):
        with closing(sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True)) as db:
            db.text_factory = bytes
            assert schema_objects(db) == expected_objects(FORMAT_1) != expected_objects(CURRENT)


def test_format_1_is_read_without_a_changed_byte(old):
    before = (old / DATABASE).read_bytes()
    with open_store(old, write=False) as store:
        assert store.manifest["format"] == "1" and store.check() == ()
        assert {(one.size, one.modified) for one in store.documents()} == {(-1, -1)}
        assert [one.path for one in store.documents()] == list(TEXTS)
        assert {one.headings for one in store.occurrences(IDS)[IDS[1]]} == {""}
        assert store.record(IDS[0]).readable is None and store.text(IDS[0]) == "apple one "
        assert store.search_words(["apple"], 9) and store.search_names(["txt"], 9) == {}
        assert store.lacking_readables("0" * 64, 16) == store.chunk_ids()
        assert store.summary().chunks == 3 and store.summary().readable == 0
    with open_store(old, write=True) as store:  # a writer that has nothing to write
        assert store.collect() == 0 and not store.mend_words() and not store.missing(IDS)
    assert (old / DATABASE).read_bytes() == before and version(old) == 1


def test_the_first_write_upgrades_and_changes_nothing_that_was_told(old):
    before, mode = content(old), (old / DATABASE).stat().st_mode
    with open_store(old, write=False) as store:
        numbers = store.keys()[0].tolist()
    write(old)
    assert version(old) == VERSION and content(old) == before and left(old) == [DATABASE]
    assert (old / DATABASE).stat().st_mode == mode
    with open_store(old, write=True) as store:
        assert store.manifest["format"] == "2" and store.keys()[0].tolist() == numbers
        assert len(store.search_names(["caf"], 9)) == 2 == len(store.search_names(["a"], 9))
        ingest(store, "d.txt", ["date four "])
        assert store.keys()[0].tolist() == [*numbers, 5]  # 4 was another's
        made = ReadableVectors("0" * 64, 16, "float16", b"1234", (1, 2))
        store.put_readables({IDS[0]: made})
        assert store.record(IDS[0]).readable == made and store.check() == ()
    with closing(connect(old / DATABASE, "rw")) as db:
        (number,) = db.execute("SELECT max(number) FROM documents").fetchone()
        assert number == 4  # 3 was another's, too


def test_a_reader_goes_on_while_another_upgrades(old):
    with open_store(old, write=False) as reader:
        before = told(reader)
        write(old)
        assert told(reader) == before and reader.check() == ()
        assert reader.manifest["format"] == "2"


DAMAGE = [
    "UPDATE documents SET sha256 = 'x' WHERE number = 1",
    "UPDATE documents SET sha256 = CAST(x'ff61' AS TEXT) WHERE number = 1",
    "DELETE FROM documents WHERE number = 1",
    "UPDATE occurrences SET locator = 'line 9' WHERE document = 1 AND ordinal = 0",
    "UPDATE occurrences SET chunk = 99 WHERE document = 1 AND ordinal = 0",
    "DELETE FROM occurrences WHERE document = 1 AND ordinal = 1",
    "UPDATE vectors SET packed = zeroblob(64) WHERE chunk = 1",
    "DELETE FROM texts WHERE chunk = 1",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_stays_damage_and_is_mended_as_ever(old, damage):
    sql(old, "PRAGMA foreign_keys = OFF", damage)
    with open_store(old, write=False) as store:
        # the word index is made anew
        before = {(one.table, one.row) for one in store.check() if one.table != "words"}
    write(old)
    with open_store(old, write=True) as store:
        after = {(one.table, one.row) for one in store.check()}
        assert before <= after and version(old) == VERSION
        assert list(store.file_hashes(ROOT)) == ["caf\udce9 b.txt"]
        if "DELETE FROM documents" not in damage:  # whose places are nobody's, as in any format
            ingest(store, "a.txt", TEXTS["a.txt"])
            store.mend_words()
            assert store.check() == ()


def test_a_damaged_word_index_does_not_keep_a_store_from_being_upgraded(old):
    sql(old, "UPDATE words_data SET block = x'ffffffffffffffff'")
    with open_store(old, write=True) as store:
        assert store.mend_words() and store.check() == ()
        assert len(store.search_words(["apple"], 9)) == 1
    assert version(old) == VERSION


def test_no_store_is_made_beside_the_copy_of_another(old):
    (old / DATABASE).rename(old / COPY)
    with pytest.raises(UsageError, match=f"it holds '{COPY}'"):
        create(old, {})
    assert (old / COPY).exists()


def in_a_child(folder, code, **environment):
    """Runs `code` on a store; returns how it ended and what it said."""
    script = (
        "import sys; from pathlib import Path; from rag_memtok.store.store import open_store; "
        "folder = Path(sys.argv[1])\n" + code
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout + done.stderr


WRITE = "with open_store(folder, write=True) as store: store.set_manifest('seed', '1')"


@pytest.mark.slow
def test_a_kill_at_every_step_leaves_one_or_the_other_and_the_next_write_goes_on(two, tmp_path):
    before, steps = content(two), {}
    for step in range(1, 99):
        folder = Path(shutil.copytree(two, tmp_path / f"{step}"))
        code, output = in_a_child(folder, WRITE, **{CRASH_AT: str(step)})
        if code == 0:
            break
        assert code == -signal.SIGKILL, output
        steps[output.rpartition("killed: ")[2].strip()] = version(folder)
        assert content(folder) == before
        assert set(left(folder)) <= {DATABASE, f"{DATABASE}-journal", COPY, COPY + NEW}
        assert all((folder / name).stat().st_mode & 0o777 == 0o600 for name in left(folder))
        write(folder)
        assert version(folder) == VERSION and content(folder) == before
        assert left(folder) == [DATABASE]
    assert steps["renamed"] == steps["row of occurrences"] == 1
    assert steps["upgraded"] == steps["copy removed"] == steps["transaction begun"] == VERSION
    assert code == 0 and len(steps) >= 9


def test_the_copy_is_what_the_store_was(old):
    before = (old / DATABASE).read_bytes()
    told_before = content(old)
    for number in range(1, 20):
        _, output = in_a_child(old, WRITE, **{CRASH_AT: str(number)})
        if "upgrade begun" in output:
            break
        assert "killed: " in output, output
    # but for SQLite's own count of changes, in the header
    assert (old / COPY).read_bytes()[100:] == before[100:]
    with open_store(old, write=True):
        assert left(old) == [DATABASE]  # of no use any more
    assert content(old) == told_before


def overwritten(folder, table):
    """Damages the first page of a table."""
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
    with (folder / DATABASE).open("r+b") as file:
        file.seek((page - 1) * 16384)
        file.write(b"\xff" * 64)


def test_a_copy_stays_where_the_store_is_not_whole(old):
    shutil.copy(old / DATABASE, old / COPY)
    overwritten(old, "keys")
    with (
        pytest.raises(StoreDamaged, match="before its upgrade") as caught,
        open_store(old, write=True),
    ):
        pass
    assert caught.value.remedy == f"mv {old / COPY} {old / DATABASE}"
    os.replace(old / COPY, old / DATABASE)
    assert content(old)[0].keys() == set(IDS)


def test_damage_that_is_older_than_the_upgrade_is_no_reason_to_keep_a_copy(old):
    overwritten(old, "keys")
    write(old)
    assert version(old) == VERSION and left(old) == [DATABASE]
    with open_store(old, write=True) as store:
        assert {one.table for one in store.check()} == {"store.db", "keys", "chunks"}
        assert store.text(IDS[0]) == "apple one "


LIMITED = """
import resource, signal
from rag_memtok.errors import DiskFailure
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_store(folder, write=True) as store:
    size = (folder / "store.db").stat().st_size + int({room})
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # a write beyond it fails
    try:
        store.set_manifest("seed", "1")
    except DiskFailure as error:
        print(error, "|", error.exit_code)
"""


@pytest.mark.parametrize("room", [-300_000, -20_000, 0, 20_000])
def test_a_disk_that_takes_no_more_leaves_format_1(old, room):
    before = content(old)
    code, output = in_a_child(old, LIMITED.format(room=room))
    assert code == 0 and "nothing that was stored is lost" in output and output.endswith("| 20\n")
    assert version(old) == 1 and left(old) == [DATABASE] and content(old) == before
    write(old)
    assert content(old) == before


def test_what_is_removed_after_an_upgrade_is_in_no_file(old):
    assert b"candle" in (old / DATABASE).read_bytes()
    with open_store(old, write=True) as store:
        assert store.collect([(ROOT, "caf\udce9 b.txt")]) == 1 and store.check() == ()
    assert left(old) == [DATABASE]
    for trace in (b"candle", b"caf\xe9", record_of("candle three ").packed[:16]):
        assert trace not in (old / DATABASE).read_bytes()
    assert file_of("a.txt", TEXTS["a.txt"])[0].sha256.encode() in (old / DATABASE).read_bytes()


def test_an_index_made_by_other_rules_is_no_damage_and_is_made_anew(tmp_path):
    create(tmp_path / "store", {"model": "toy"})
    with open_store(tmp_path / "store", write=True) as store:
        ingest(store, "a.txt", TEXTS["a.txt"])
        store.set_manifest("terms", "0, of another version")
    sql(tmp_path / "store", "UPDATE words SET text = 'other'")
    with open_store(tmp_path / "store", write=True) as store:
        assert store.check() == () and not store.search_words(["apple"], 9)
        assert store.mend_words() == "made by other rules"
        assert len(store.search_words(["apple"], 9)) == 1
        assert store.check() == () and not store.mend_words()
