"""The store against kills, flipped bits, other writers and what is not a store.

The faults are made for real.
"""

import inspect
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from rag_memtok.datatypes import (
    Occurrence,
    Pin,
    ReadableVectors,
    Record,
    StoredDocument,
    Verdict,
    sha256_of_text,
)
from rag_memtok.errors import (
    FormatMismatch,
    NoStore,
    PermissionRefused,
    StoreDamaged,
    StoreLocked,
    UsageError,
)
from rag_memtok.store.database import open_database
from rag_memtok.store.files import drop_uploads
from rag_memtok.store.formats import COLUMNS
from rag_memtok.store.integrity import PAGE, check_words
from rag_memtok.store.store import create, open_store
from rag_memtok.store.terms import terms_of
from rag_memtok.store.words import search_index

ROOT = "/documents"
PINS = (Pin(1, 70_000, "correction"), Pin(3, 2, "safety"))
READABLE = ReadableVectors("ab" * 32, 16, "float16", bytes(range(16)), (2, 4))


def record_of(text, size=64, keyed=True):
    seed = int(sha256_of_text(text)[:8], 16)
    packed = np.random.default_rng(seed).bytes(size)
    key = np.random.default_rng(seed).standard_normal(8, dtype=np.float32) if keyed else None
    verdict = Verdict("pinned", 5, 1, 1, float("inf"), "")
    return Record(
        sha256_of_text(text),
        5,
        sha256_of_text(text[::-1]),
        "float16",
        packed,
        (2, size // 4),
        PINS,
        verdict,
        key,
    )


def fields_of(record):
    return [getattr(record, name) for name in Record.__slots__ if name != "key"]


def same(one, other):
    return fields_of(one) == fields_of(other) and np.array_equal(one.key, other.key)


def file_of(name, texts):
    """The document `name` made of `texts`, and its occurrences."""
    whole, occurrences, start = "".join(texts), [], 0
    for ordinal, text in enumerate(texts):
        occurrences.append(
            Occurrence(
                ROOT,
                name,
                ordinal,
                sha256_of_text(text),
                start,
                start + len(text),
                f"line {ordinal + 1}",
            )
        )
        start += len(text)
    return StoredDocument(
        ROOT,
        name,
        name,
        sha256_of_text(whole),
        sha256_of_text(ascii(name) + whole),
        len(texts),
        len(whole),
        "text/1",
    ), occurrences


def ingest(store, name, texts, keep_text=True):
    for text in texts:
        store.put(record_of(text), text if keep_text else None)
    document, occurrences = file_of(name, texts)
    store.replace_file(ROOT, name, [document], occurrences)


@pytest.fixture
def folder(tmp_path):
    create(tmp_path / "store", {"model": "toy"})
    return tmp_path / "store"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A store of two files and three chunks, to be copied, not changed."""
    folder = tmp_path_factory.mktemp("three") / "store"
    create(folder, {"model": "toy"})
    with open_store(folder, write=True) as store:
        ingest(store, "a.txt", ["apple one ", "brick two "])
        ingest(store, "b.txt", ["brick two ", "candle three "])
        store.put_readables({sha256_of_text("apple one "): READABLE})
    return folder


@pytest.fixture
def copy(three, tmp_path):
    return Path(shutil.copytree(three, tmp_path / "copy"))


def sql(folder, *statements):
    """Changes the database behind the store's back."""
    db = sqlite3.connect(folder / "store.db", isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


# --- made, opened, refused


def test_a_new_store_is_private_and_knows_what_it_is_bound_to(folder):
    with open_store(folder, write=False) as store:
        assert (
            store.manifest["model"] == "toy"
            and store.manifest["format"] == "2"
            and len(store.store_id) == 32
        )
        assert store.generation == 1 and store.check() == () and store.documents() == ()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "store.db": 0o600,
        "lock": 0o600,
        ".gitignore": 0o600,
    }
    assert (folder / ".gitignore").read_text() == "*\n"


def test_journals_are_private_too(folder):
    with open_store(folder, write=True) as store, store._db.writing():
        store._db.insert("manifest", ("key", "value"))
        assert (folder / "store.db-journal").stat().st_mode & 0o777 == 0o600


def test_a_store_is_made_only_where_nothing_is_lost(folder, tmp_path):
    with pytest.raises(UsageError, match="already"):
        create(folder, {})
    (tmp_path / "mine.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="valid: a new or empty folder"):
            create(path, {})
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_making_goes_on_after_a_kill(tmp_path):
    (tmp_path / "store.db.new").write_bytes(b"half")
    (tmp_path / "store.db.new-journal").write_bytes(b"half")
    with pytest.raises(NoStore), open_store(tmp_path, write=False):
        pass
    create(tmp_path, {"model": "toy"})
    with open_store(tmp_path, write=False) as store:
        assert store.check() == ()


@pytest.mark.parametrize("path", ["missing", "file", "file/below"])
def test_no_store(tmp_path, path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NoStore), open_store(tmp_path / path, write=False):
        pass
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not SQLite at all" * 100, b"SQLite format 3\0" + bytes(4096)]
)
def test_what_is_not_sqlite_is_refused(folder, content):
    (folder / "store.db").write_bytes(content)
    with pytest.raises(StoreDamaged), open_store(folder, write=False):
        pass


def test_another_programs_database_is_refused(tmp_path):
    sql(
        tmp_path,
        "CREATE TABLE manifest (key TEXT, value TEXT)",
        "INSERT INTO manifest VALUES ('format', '1')",
    )
    with (
        pytest.raises(StoreDamaged, match="not a database of rag-memtok"),
        open_store(tmp_path, write=True),
    ):
        pass


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER INSERT ON chunks BEGIN DELETE FROM texts; END",
        "CREATE VIEW evil AS SELECT * FROM texts",
        "CREATE TABLE evil (x)",
        "CREATE INDEX evil ON chunks (tokens)",
    ],
)
def test_what_we_did_not_make_is_refused(copy, statement):
    sql(copy, statement)
    with pytest.raises(StoreDamaged, match="evil"), open_store(copy, write=False):
        pass


@pytest.mark.parametrize(
    "version, words, remedy",
    [
        (0, "format 0, this program reads 1 to 2", "that wrote it"),
        (3, "format 3, this program reads 1 to 2", "that wrote it"),
        (9002, r"unfinished store format 2 \(draft 9\)", "ingest again"),
    ],
)
def test_another_format_is_refused(copy, version, words, remedy):
    sql(copy, f"PRAGMA user_version = {version}")
    with (
        pytest.raises(FormatMismatch, match=words) as caught,
        open_store(copy, write=False),
    ):
        pass
    assert caught.value.exit_code == 14 and remedy in caught.value.remedy


def test_a_link_or_fifo_in_the_stores_place_is_refused(folder, tmp_path):
    os.replace(folder / "store.db", tmp_path / "elsewhere")
    (folder / "store.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreDamaged, match="plain file"), open_store(folder, write=False):
        pass
    (folder / "store.db").unlink()
    os.mkfifo(folder / "store.db")
    with pytest.raises(StoreDamaged, match="plain file"), open_store(folder, write=False):
        pass


def child(code, *arguments):
    """Starts Python on `code`, with the helpers above at hand.

    It does so without the time that pytest takes to import.
    """
    imports = """
        import itertools, os, sys, time
        from pathlib import Path
        import numpy as np
        from rag_memtok.datatypes import Occurrence, Pin, Record, StoredDocument, Verdict
        from rag_memtok.datatypes import sha256_of_text
        from rag_memtok.store.store import open_store
        ROOT, folder = "/documents", Path(sys.argv[1])
        PINS = (Pin(1, 70_000, "correction"), Pin(3, 2, "safety"))
    """
    helpers = "\n".join(map(inspect.getsource, (record_of, file_of, ingest)))
    command = [
        sys.executable,
        "-c",
        "\n".join((textwrap.dedent(imports), helpers, textwrap.dedent(code))),
        *map(str, arguments),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_store_is_refused_by_name(folder):
    try:
        pid = os.fork()
        if not pid:
            os.chmod(folder.parent, 0o755)
            os.setuid(65534)
            try:
                with open_store(folder, write=False):
                    os._exit(1)
            except PermissionRefused as error:
                os._exit(error.exit_code if str(folder) in str(error) else 2)
            finally:
                os._exit(3)
    finally:
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == PermissionRefused.exit_code


# --- what is put is what is read


def test_a_chunk_comes_back_as_it_was_put(folder):
    text = "Ünï\r\ncode \U0001f600 e\u0301 \x01 end"
    with open_store(folder, write=True) as store:
        store.put(record_of(text), text)
        generation = store.generation
        # an id is its content: there is nothing to write
        store.put(replace(record_of(text), tokens=99), "other")
        assert store.generation == generation
    with open_store(folder, write=False) as store:
        assert same(store.record(sha256_of_text(text)), record_of(text))
        assert store.text(sha256_of_text(text)) == text
        assert store.missing([sha256_of_text(text), "other"]) == ("other",)
        assert store.check() == ()


def test_text_only_and_textless_and_keyless_chunks(folder):
    plain = Record(
        sha256_of_text("plain"),
        3,
        "0" * 64,
        "text",
        b"plain",
        (0, 0),
        (),
        Verdict("text-only", 3, margin=-0.0),
        None,
    )
    with open_store(folder, write=True) as store:
        store.put(plain, "plain")
        store.put(record_of("silent"), None)
        assert same(store.record(plain.chunk_id), plain) and store.text(plain.chunk_id) == "plain"
        assert store.text(sha256_of_text("silent")) is None
        assert store.check() == ()
        with pytest.raises(StoreDamaged, match="not there"):
            store.record("0" * 64)


def test_vectors_of_an_encoder_come_with_their_chunk_or_later(folder):
    other = replace(READABLE, encoder="cd" * 32, window=8, packed=bytes(24), shape=(3, 4))
    one, two, three = ids = [sha256_of_text(text) for text in ("one", "two", "three")]
    with open_store(folder, write=True) as store:
        store.put(replace(record_of("one"), readable=READABLE), "one")
        for text in ("two", "three"):
            store.put(record_of(text), text)
        assert [store.record(chunk).readable for chunk in ids] == [READABLE, None, None]
        assert store.lacking_readables(READABLE.encoder, 16) == (two, three)
        store.put_readables({two: READABLE, three: other})
        assert store.lacking_readables(READABLE.encoder, 16) == (three,)
        assert store.lacking_readables(READABLE.encoder, 8) == (one, two, three)
        store.put_readables({one: other})  # in place of what there was
        assert [store.record(chunk).readable for chunk in ids] == [other, READABLE, other]
        assert store.lacking_readables(other.encoder, 8) == (two,)
        assert store.summary().readable == 3 and store.summary().bytes["readables"] > 24 + 16 + 24
        assert store.check() == ()


def test_vectors_of_an_encoder_are_put_all_or_none(copy):
    brick = sha256_of_text("brick two ")
    with open_store(copy, write=True) as store:
        state = store.state
        with pytest.raises(StoreDamaged, match="not there"):
            store.put_readables({brick: READABLE, "0" * 64: READABLE})
        assert store.record(brick).readable is None and store.state == state


def test_vectors_of_an_encoder_go_with_their_chunk(copy):
    assert READABLE.packed in (copy / "store.db").read_bytes()
    with open_store(copy, write=True) as store:
        assert store.collect([(ROOT, "a.txt")]) == 1 and store.check() == ()
        assert store.summary().readable == 0
    content = (copy / "store.db").read_bytes()
    assert READABLE.packed not in content and READABLE.encoder.encode() not in content


def test_damaged_vectors_of_an_encoder_are_lacking_and_can_be_made_again(copy):
    sql(copy, "UPDATE readables SET packed = zeroblob(16) WHERE chunk = 1")
    apple = sha256_of_text("apple one ")
    with open_store(copy, write=True) as store:
        assert apple in store.lacking_readables(READABLE.encoder, READABLE.window)
        store.put_readables({apple: READABLE})
        assert store.record(apple).readable == READABLE and store.check() == ()


def test_chunks_are_found_by_the_names_of_their_files_and_headings(copy):
    with open_store(copy, write=True) as store:
        store.put(record_of("date four "), "date four ")
        assert tuple(store.search_names(["txt"], 9)) == (2, 1, 3)
        assert tuple(store.search_names(["b"], 1)) == (3,)
        document, places = file_of("a.txt", ["apple one ", "brick two "])
        places = [replace(places[0], headings="Fruit > Pomes"), places[1]]
        store.replace_file(ROOT, "a.txt", [document], places)
        assert tuple(store.search_names(["pomes"], 9)) == (1,) and store.check() == ()
        assert store.document_chunks(ROOT, "a.txt")[0].headings == "Fruit > Pomes"
        assert store.search_names(["date"], 9) == store.search_names([], 9) == {}
        store.remove_file(ROOT, "a.txt")
        assert tuple(store.search_names(["pomes", "a"], 9)) == () and store.check() == ()
        assert set(store.search_names(["b"], 9)) == {2, 3}


def test_nothing_of_an_old_name_is_left_though_its_chunks_stay(copy):
    with open_store(copy, write=True) as store:
        ingest(store, "Xylophonist quarterdeck.txt", ["apple one ", "brick two "])
        assert b"quarterdeck" in (copy / "store.db").read_bytes()
        store.remove_file(ROOT, "Xylophonist quarterdeck.txt")
        assert store.collect() == 0
        assert set(store.search_names(["a"], 9)) == {1, 2} and store.check() == ()
    content = (copy / "store.db").read_bytes().lower()
    assert b"xylophonist" not in content and b"quarterdeck" not in content


def test_old_names_are_purged_once_however_many_files_change(copy):
    """It costs the whole index each time. What a kill leaves goes with the next `collect`."""
    told = []
    with open_store(copy, write=True) as store:
        store._db.connection.set_trace_callback(told.append)
        for name in ("a.txt", "b.txt", "Xylophonist quarterdeck.txt"):
            ingest(store, name, ["apple one ", "brick two ", "candle three "])
        for name in ("a.txt", "Xylophonist quarterdeck.txt"):
            store.remove_file(ROOT, name)
    with open_store(copy, write=True) as store:
        store._db.connection.set_trace_callback(told.append)
        assert store.collect() == store.collect() == 0 and store.check() == ()
    assert sum("VALUES ('optimize')" in statement for statement in told) == 1
    content = (copy / "store.db").read_bytes().lower()
    assert b"xylophonist" not in content and b"quarterdeck" not in content


def test_a_name_goes_with_a_chunk_that_lost_its_place(copy):
    sql(copy, "DELETE FROM occurrences WHERE document = 1 AND ordinal = 0")
    with open_store(copy, write=True) as store:
        assert tuple(store.search_names(["a"], 9)) == (2,)  # 1 has no place
        assert store.collect() == 1
        assert "names" not in {problem.table for problem in store.check()}
    with closing(sqlite3.connect(copy / "store.db")) as db:
        assert db.execute("SELECT rowid FROM names ORDER BY rowid").fetchall() == [(2,), (3,)]


def test_a_damaged_index_of_names_is_built_anew(copy):
    sql(copy, "UPDATE names_data SET block = x'ffffffffffffffff'")
    with open_store(copy, write=True) as store:
        assert {problem.table for problem in store.check()} == {"names"}
        with pytest.raises(StoreDamaged):
            store.search_names(["txt"], 9)
        assert store.mend_words() and not store.mend_words()
        assert store.check() == () and tuple(store.search_names(["txt"], 9)) == (2, 1, 3)


def test_an_interrupt_while_words_are_indexed_is_no_damage(copy):
    """SQLite tells of any exception in a function that it calls as an error of its own."""

    def interrupt(frame, event, argument):
        if event == "call" and frame.f_code is inspect.unwrap(terms_of).__code__:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    with open_store(copy, write=True) as store:
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                ingest(store, "c.txt", ["date four "])
        finally:
            sys.setprofile(None)
        assert store.check() == () and len(store.documents()) == 2
        ingest(store, "c.txt", ["date four "])
        assert store.check() == () and len(store.search_words(["date"], 9)) == 1


def test_a_files_hash_is_looked_up_however_many_files_there_are(folder):
    """Otherwise an ingest of a folder that has not changed grows with the square of its files."""

    def steps_of_a_lookup(store):
        hashes, steps = store.file_hashes(ROOT), []
        store._db.connection.set_progress_handler(lambda: steps.append(1) and 0, 1)
        assert hashes["7.txt"]
        store._db.connection.set_progress_handler(None, 0)
        return len(steps)

    with open_store(folder, write=True) as store:
        for number in range(10):
            ingest(store, f"{number}.txt", ["some text"])
        few = steps_of_a_lookup(store)
        for number in range(10, 200):
            ingest(store, f"{number}.txt", ["some text"])
        assert steps_of_a_lookup(store) < 2 * few


def test_names_that_are_not_utf8_come_back(folder):
    name = os.fsdecode(b"caf\xe9\n\x1b[31m.txt")
    with open_store(folder, write=True) as store:
        ingest(store, name, ["some text"])
        (document,) = store.documents()
        assert document == file_of(name, ["some text"])[0]
        assert store.file_hashes(ROOT) == {name: document.file_sha256}
        assert [one.path for one in store.document_chunks(ROOT, name)] == [name]


def test_a_shared_chunk_has_both_places_and_goes_with_the_last(copy):
    shared = sha256_of_text("brick two ")
    with open_store(copy, write=True) as store:
        assert [(one.path, one.ordinal) for one in store.occurrences([shared])[shared]] == [
            ("a.txt", 1),
            ("b.txt", 0),
        ]
        store.remove_file(ROOT, "b.txt")
        assert store.collect() == 1 and store.text(shared) == "brick two "
        store.remove_file(ROOT, "a.txt")
        assert store.collect() == 2 and store.chunk_ids() == () and store.check() == ()


def test_orphans_are_stored_but_never_found(folder):
    with open_store(folder, write=True) as store:
        store.put(record_of("lonely orphan"), "lonely orphan")
        assert tuple(store.search_words(["orphan"], 9)) == () and len(store.keys()[0]) == 0
        assert store.missing([sha256_of_text("lonely orphan")]) == ()
        assert (store.summary().chunks, store.summary().orphans) == (0, 1)
        ingest(store, "a.txt", ["lonely orphan"])
        assert len(store.search_words(["orphan"], 9)) == 1 and len(store.keys()[0]) == 1


def test_numbers_lead_back_to_their_chunks_and_are_never_used_again(copy):
    with open_store(copy, write=True) as store:
        numbers, keys = store.keys()
        for number, key in zip(numbers, keys, strict=True):
            assert np.array_equal(store.record(store.ids_of([int(number)])[number]).key, key)
        store.remove_file(ROOT, "b.txt")
        store.collect()
        ingest(store, "c.txt", ["date four "])
        assert max(store.keys()[0]) > max(numbers)
        assert store.ids_of([int(max(numbers))]) == {}


def test_a_file_is_replaced_whole_or_not_at_all(copy):
    document, occurrences = file_of("a.txt", ["apple one ", "never stored"])
    with open_store(copy, write=True) as store:
        before = store.documents(), store.document_chunks(ROOT, "a.txt"), store.state
        with pytest.raises(StoreDamaged, match="not there"):
            store.replace_file(ROOT, "a.txt", [document], occurrences)
        with pytest.raises(ValueError, match="not whole"):
            store.replace_file(ROOT, "a.txt", [document], occurrences[:1])
        assert (store.documents(), store.document_chunks(ROOT, "a.txt"), store.state) == before


def test_the_manifest_can_be_changed(copy):
    with open_store(copy, write=True) as store:
        store.set_manifest("adapter", "stale")
        assert store.manifest["adapter"] == "stale" and store.check() == ()


@pytest.mark.parametrize(
    "terms",
    [
        ['"'],
        ["AND", "apple"],
        ["(", "*", "NEAR(", "apple"],
        ["a:b", "\0", "apple\0"],
        [],
        ["x"] * 3000,
    ],
)
def test_raw_terms_never_raise(three, terms):
    with open_store(three, write=False) as store:
        found = store.search_words(terms, 9)
    assert bool(found) == any("apple" in term for term in terms)


def test_words_are_found_without_their_accents_best_first(folder):
    with open_store(folder, write=True) as store:
        ingest(store, "a.txt", ["la canción de José", "canción canción", "otra cosa"])
        assert tuple(store.search_words(["cancion"], 9)) == (2, 1)
        assert tuple(store.search_words(["JOSE", "canción"], 1)) == (1,)


def test_what_most_chunks_say_finds_none_of_many_unless_it_is_all_that_is_asked(folder):
    texts = ["log apple", "log apple pear", "log apple tree", "log fig", "log", "kiwi"]
    with open_store(folder, write=True) as store:
        ingest(store, "a.txt", texts)

    def found(words, limit=9, large=6):
        with open_database(folder, write=False) as db, db.reading():
            return search_index(db.connection, "words", words, limit, large)

    small = found(["log", "apple", "fig", "plum"], large=7)
    many = found(["log", "apple", "fig", "plum"])
    assert set(small) == {1, 2, 3, 4, 5} and set(many) == {1, 2, 3, 4}
    assert list(many) == list(small)[:4]
    assert many == pytest.approx({number: small[number] for number in many}, abs=1e-5)
    assert set(found(["log", "plum"])) == {1, 2, 3, 4, 5}  # nothing else is there
    assert set(found(["log", "fig"], limit=-1)) == {1, 2, 3, 4, 5}  # all are wanted
    assert set(found(["apple", "fig"])) == {1, 2, 3, 4}  # half is not most


def test_words_that_no_chunk_has_change_no_score(folder):
    with open_store(folder, write=True) as store:
        ingest(store, "a.txt", ["la canción de José", "canción canción", "otra cosa"])
        assert store.search_words(["cancion", "plum"], 9) == store.search_words(["cancion"], 9)


def test_nothing_of_a_deleted_text_is_left_in_the_folder(folder):
    secrets = [f"Xylophonist{n} Quarterdeck{n} memorandum" for n in range(30)]
    with open_store(folder, write=True) as store:
        ingest(store, "kept.txt", ["something kept"])
        ingest(store, "secret-name.txt", secrets)
        (folder / "index.faiss").write_bytes(b"keys of deleted text")
        assert b"Xylophonist7" in (folder / "store.db").read_bytes()
        packed = store.record(sha256_of_text(secrets[7])).packed
        store.remove_file(ROOT, "secret-name.txt")
        assert store.collect() == 30 and store.check() == ()
        assert not (folder / "index.faiss").exists()
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    for trace in (
        b"Xylophonist",
        b"xylophonist",
        b"quarterdeck",
        b"memorandum",
        b"secret-name",
        packed[:16],
        sha256_of_text(secrets[7]).encode(),
    ):
        assert trace not in content
    assert b"something kept" in content


def test_no_file_goes_but_what_a_server_was_sent(folder, tmp_path):
    sent, outside = folder / "uploads", tmp_path / "outside"
    for path in (sent / "a" / "fan.md", outside / "lamp.md", folder / "uploads2" / "lamp.md"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("The lamp is red.")
    (sent / "out").symlink_to(outside)
    (sent / "link.md").symlink_to(outside / "lamp.md")
    for name in ("../store.db", "../../outside/lamp.md", "../uploads2/lamp.md", "out/lamp.md"):
        drop_uploads(folder, [f"{sent}/{name}"])
    drop_uploads(folder, [f"{sent}/link.md", f"{sent}/a", str(sent), f"{outside}/lamp.md", "a"])
    assert (folder / "store.db").exists() and (sent / "link.md").is_symlink()
    assert (outside / "lamp.md").exists() and (folder / "uploads2" / "lamp.md").exists()
    drop_uploads(folder, [f"{sent}/a/fan.md", f"{sent}/gone.md"])
    assert not (sent / "a" / "fan.md").exists()
    shutil.rmtree(sent)
    sent.symlink_to(outside)
    drop_uploads(folder, [f"{sent}/lamp.md"])
    assert (outside / "lamp.md").exists()


# --- bytes that changed


CHANGES = [
    "UPDATE manifest SET value = 'tiny' WHERE key = 'model'",
    "UPDATE documents SET sha256 = 'x' WHERE number = 1",
    "UPDATE chunks SET tokens = 6 WHERE number = 1",
    "UPDATE occurrences SET locator = 'line 9' WHERE document = 1 AND ordinal = 0",
    "UPDATE texts SET text = 'apple two ' WHERE chunk = 1",
    "UPDATE texts SET text = CAST(x'ff61' AS TEXT) WHERE chunk = 1",
    "UPDATE vectors SET packed = zeroblob(64) WHERE chunk = 1",
    "UPDATE vectors SET codec = 'float32' WHERE chunk = 1",
    "UPDATE pins SET packed = x'' WHERE chunk = 1",
    "UPDATE keys SET packed = zeroblob(32) WHERE chunk = 1",
    "UPDATE verdicts SET kind = 'exact' WHERE chunk = 1",
    "UPDATE readables SET packed = zeroblob(16) WHERE chunk = 1",
    "UPDATE readables SET encoder = 'another' WHERE chunk = 1",
    "UPDATE readables SET chunk = 2 WHERE chunk = 1",
    "UPDATE documents SET size = 9 WHERE number = 1",
    "UPDATE documents SET modified = 9 WHERE number = 1",
    "UPDATE occurrences SET headings = 'Intro' WHERE document = 1 AND ordinal = 0",
    "DELETE FROM vectors WHERE chunk = 1",
    "DELETE FROM pins WHERE chunk = 1",
    "DELETE FROM keys WHERE chunk = 1",
    "DELETE FROM texts WHERE chunk = 1",
    "DELETE FROM words WHERE rowid = 1",
    "DELETE FROM names WHERE rowid = 1",
    "UPDATE names SET text = 'c.txt' WHERE rowid = 1",
    "DELETE FROM occurrences WHERE document = 1 AND ordinal = 0",
    "DELETE FROM occurrences WHERE document = 1 AND ordinal = 1",
    "DELETE FROM documents WHERE number = 1",
    "DELETE FROM chunks WHERE number = 1",
]


@pytest.mark.parametrize("change", CHANGES)
def test_check_names_every_changed_row(copy, change):
    sql(copy, "PRAGMA foreign_keys = OFF", change)
    with open_store(copy, write=False) as store:
        found = store.check()
    table = change.split()[2 if "DELETE" in change else 1]
    consequence = (
        {"documents": "occurrences", "chunks": "occurrences", "occurrences": "documents"}
        if "DELETE" in change
        else {}
    )
    assert consequence.get(table, table) in {problem.table for problem in found}


@pytest.mark.parametrize("table", ["vectors", "pins", "keys", "verdicts", "readables"])
def test_a_damaged_row_fails_its_chunk_alone_and_names_the_repair(copy, table):
    sql(copy, f"UPDATE {table} SET checksum = zeroblob(32) WHERE chunk = 1")
    apple, brick = sha256_of_text("apple one "), sha256_of_text("brick two ")
    with open_store(copy, write=False) as store:
        with pytest.raises(
            StoreDamaged, match=f"table {table}, row 1, chunk '{apple}', of '{ROOT}/a.txt'"
        ) as caught:
            store.record(apple)
        assert f"rag-memtok ingest {ROOT}/a.txt --store {copy}" in caught.value.remedy
        assert same(store.record(brick), record_of("brick two "))
        assert [(problem.table, problem.chunk_id) for problem in store.check()] == [(table, apple)]


@pytest.mark.parametrize(
    "table",
    [
        "chunks",
        "texts",
        "vectors",
        "pins",
        "keys",
        "verdicts",
        "readables",
        "occurrences",
        "documents",
    ],
)
def test_the_repair_command_repairs(copy, table):
    key = "document" if table == "occurrences" else COLUMNS[table][0]
    sql(copy, f"UPDATE {table} SET checksum = zeroblob(32) WHERE {key} = 1")
    with open_store(copy, write=True) as store:
        assert list(store.file_hashes(ROOT)) == ["b.txt"]  # so that a.txt is ingested again
        ingest(store, "a.txt", ["apple one ", "brick two "])
        assert store.check() == () and len(store.file_hashes(ROOT)) == 2


@pytest.mark.parametrize("table", ["chunks", "texts", "vectors", "pins", "keys", "verdicts"])
def test_damage_in_a_chunk_is_that_of_every_file_with_it(copy, table):
    """Otherwise to ingest the other files mends nothing, as they count as unchanged."""
    key = COLUMNS[table][0]
    sql(copy, f"UPDATE {table} SET checksum = zeroblob(32) WHERE {key} = 2")
    with open_store(copy, write=True) as store:
        ingest(store, "c.txt", ["date four "])
        assert list(store.file_hashes(ROOT)) == ["c.txt"]
        ingest(store, "b.txt", ["brick two ", "candle three "])
        assert store.check() == () and len(store.file_hashes(ROOT)) == 3


@pytest.mark.parametrize("table", ["texts", "vectors", "keys", "verdicts", "pins"])
def test_swapped_rows_are_found(copy, table):
    if table in ("verdicts", "pins"):  # of these all three are alike but for their place
        sql(
            copy,
            f"DELETE FROM {table} WHERE chunk = 2",
            f"UPDATE {table} SET chunk = 2 WHERE chunk = 1",
        )
    else:
        sql(
            copy,
            *(
                f"UPDATE {table} SET chunk = {new} WHERE chunk = {old}"
                for old, new in ((1, 9), (2, 1), (9, 2))
            ),
        )
    with open_store(copy, write=False) as store:
        assert {problem.row for problem in store.check() if problem.table == table} == {"1", "2"}


def test_rows_of_another_store_are_found(copy, folder):
    with open_store(folder, write=True) as store:
        ingest(store, "a.txt", ["apple one ", "brick two "])
    sql(
        copy,
        f"ATTACH '{folder / 'store.db'}' AS other",
        "REPLACE INTO vectors SELECT * FROM other.vectors WHERE chunk = 1",
    )
    with open_store(copy, write=False) as store, pytest.raises(StoreDamaged, match="vectors"):
        store.record(sha256_of_text("apple one "))


def everything(store):
    """All that a reader may be told, with damage as what it is."""
    told = {}
    for chunk_id in map(sha256_of_text, ("apple one ", "brick two ", "candle three ")):
        for verb in (
            lambda chunk_id: fields_of(store.record(chunk_id)),
            store.text,
            lambda chunk_id: store.record(chunk_id).key.tobytes(),
        ):
            try:
                told[chunk_id, len(told)] = verb(chunk_id)
            except StoreDamaged:
                told[chunk_id, len(told)] = None
    for name in ("a.txt", "b.txt"):
        try:
            told[name] = store.document_chunks(ROOT, name)
        except StoreDamaged:
            told[name] = None
    return told


def test_a_flipped_byte_is_detected_or_harmless(copy):
    database = copy / "store.db"
    whole = database.read_bytes()
    with open_store(copy, write=False) as store:
        truth = everything(store)
    random, seen = np.random.default_rng(0), 0
    used = [position for position, byte in enumerate(whole) if byte]
    for position in random.choice(used, 120, replace=False):
        database.write_bytes(
            whole[:position]
            + bytes([whole[position] ^ (1 << random.integers(8))])
            + whole[position + 1 :]
        )
        try:
            with open_store(copy, write=False) as store:
                told, problems = everything(store), store.check()
        except (StoreDamaged, FormatMismatch):
            seen += 1
            continue
        for what, value in told.items():
            assert value is None or value == truth[what], position
        assert problems or told == truth, position
        seen += bool(problems)
    assert seen > 60


def test_a_chunks_id_that_is_no_text_any_more_is_damage(copy):
    """A flipped bit of a record's header makes a number of it; no statement can."""
    database = copy / "store.db"
    content = database.read_bytes()
    at = content.index(sha256_of_text("apple one ").encode())
    # the record's header: its size, number (NULL, the rowid), id (a text of 64 bytes: 0x81 0x0d)
    kinds = content.rindex(b"\0\x81\x0d", at - 16, at)
    database.write_bytes(content[: kinds + 1] + b"\x01" + content[kinds + 2 :])
    with open_store(copy, write=False) as store:
        found = store.check()
        assert {"chunks"} <= {one.table for one in found}
        assert all(isinstance(one.chunk_id, str | None) for one in found)
        with pytest.raises(StoreDamaged):
            store.record(sha256_of_text("apple one "))


def test_a_truncated_database_is_damaged(copy):
    whole = (copy / "store.db").read_bytes()
    for part in (0.1, 0.5, 0.97):
        (copy / "store.db").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(StoreDamaged), open_store(copy, write=False) as store:
            if store.check():
                raise StoreDamaged("found by check")


def test_a_damaged_word_index_is_built_anew(copy):
    sql(copy, "UPDATE words_data SET block = x'ffffffffffffffff'")
    with open_store(copy, write=True) as store:
        assert "words" in {problem.table for problem in store.check()}
        with pytest.raises(StoreDamaged):
            store.search_words(["apple"], 9)
        assert store.mend_words() and not store.mend_words()
        assert store.check() == () and tuple(store.search_words(["apple"], 9)) == (1,)
    with open_store(copy, write=False) as store:
        assert len(store.search_words(["brick", "candle"], 9)) == 2


def test_the_word_indexes_are_checked_in_pages(folder):
    """A writer's COMMIT waits for each read transaction, and not for ever."""
    with open_store(folder, write=True) as store:
        for number in range(3 * PAGE // 2):
            store.put(record_of(f"text {number} "), f"text {number} ")
    sql(folder, f"DELETE FROM words WHERE rowid IN (1, {PAGE}, {PAGE + 1})")
    told, sizes = [], []
    with open_store(folder, write=False) as store:
        connection = store._db.connection
        connection.set_trace_callback(told.append)
        found = tuple(check_words(connection, "words"))
        connection.set_trace_callback(None)
    for statement in told:
        sizes += [0] if statement == "BEGIN DEFERRED" else []
        sizes[-1] += "SELECT text FROM words WHERE rowid" in statement
    assert sizes == [PAGE, PAGE // 2, 0]
    assert [problem.row for problem in found] == ["1", str(PAGE), str(PAGE + 1)]


# --- other processes


def test_the_second_writer_is_told_who_writes_and_readers_go_on(copy):
    with open_store(copy, write=True) as store:
        ingest(store, "c.txt", ["date four "])
        before = store.generation
        with (
            pytest.raises(StoreLocked, match=f"process {os.getpid()}, started 20..-.*is writing"),
            open_store(copy, write=True),
        ):
            pass
        code = (
            "with open_store(folder, write=False) as store: print(store.generation, "
            "len(store.documents()), store.check())"
        )
        assert child(code, copy).communicate()[0].split() == [str(before), "3", "()"]
    with open_store(copy, write=True) as store:
        assert store.generation == before


def test_readers_see_whole_generations_while_another_process_writes(folder, tmp_path):
    code = """
    with open_store(folder, write=True) as store:
        for round in itertools.count():
            parts = range(1 + round % 3)
            ingest(store, "a.txt", [f"version {round} part {part} " for part in parts])
            store.collect()
            if Path(sys.argv[2]).exists():
                break
            time.sleep(0.05)  # memorising takes its time
    """
    seen, deadline = set(), time.monotonic() + 600
    with child(code, folder, tmp_path / "enough") as writer:
        while writer.poll() is None:
            assert time.monotonic() < deadline, "the same version all the time"
            with open_store(folder, write=False) as store, store._db.reading():
                for document in store.documents():
                    texts = [
                        store.text(one.chunk_id) for one in store.document_chunks(ROOT, "a.txt")
                    ]
                    assert sha256_of_text("".join(texts)) == document.sha256
                    seen.add(texts[0])
            if len(seen) > 2:
                (tmp_path / "enough").touch()
    assert writer.returncode == 0 and len(seen) > 2


KILLED = """
import signal
count, last = 0, int(sys.argv[2])
def step(statement):
    global count
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
with open_store(folder, write=True) as store:
    store._db.connection.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit
    store._db.connection.set_trace_callback(step)
    {verb}
"""
PUT = 'store.put(record_of("new", size=200_000), "new")'
REPLACE = (
    'store.replace_file(ROOT, "a.txt", *(lambda one: ([one[0]], one[1]))(file_of("a.txt", '
    '["candle three "])))'
)
REMOVE = 'store.remove_file(ROOT, "a.txt"), store.collect()'


@pytest.mark.parametrize(
    "verb, steps", [(PUT, range(8, 32, 6)), (REPLACE, range(5, 16, 5)), (REMOVE, range(5, 38, 11))]
)
def test_a_killed_write_leaves_the_old_or_the_new_state(three, tmp_path, verb, steps):
    hot = 0
    for step in steps:
        folder = Path(shutil.copytree(three, tmp_path / f"{step}"))
        process = child(KILLED.format(verb=verb), folder, step)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        journal = folder / "store.db-journal"
        hot += journal.exists() and journal.stat().st_size > 0
        with open_store(folder, write=False) as reader:  # it too rolls back what was left
            assert reader.check() == ()
            new, first = (
                sha256_of_text("new"),
                [
                    one.chunk_id
                    for path in reader.documents()[:1]
                    for one in reader.document_chunks(ROOT, path.path)
                ],
            )
            assert (
                new not in reader.chunk_ids()
                or same(reader.record(new), record_of("new", size=200_000))
                and reader.text(new) == "new"
            )
            assert len(reader.chunk_ids()) in (
                (3, 4) if verb == PUT else (3, 2) if verb == REMOVE else (3,)
            )
            assert first[:1] in (
                [sha256_of_text("apple one ")],
                [sha256_of_text("candle three ")],
                [sha256_of_text("brick two ")],
            )
        with open_store(folder, write=True) as store:
            ingest(store, "c.txt", ["and it goes on"])
            assert store.check() == ()
    assert hot or verb != PUT


@pytest.mark.parametrize("room", [0, 20_000, 200_000])
def test_a_disk_that_takes_no_more_loses_nothing(copy, room):
    code = """
    import resource
    from rag_memtok.errors import DiskFailure
    with open_store(folder, write=True) as store:
        size = (folder / "store.db").stat().st_size + int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # a write beyond it fails
        try:
            store.put(record_of("new", size=400_000), "new")
        except DiskFailure as error:
            print(error, "|", error.exit_code)
        print(len(store.chunk_ids()), store.check())
    """
    lines = child(code, copy, room).communicate()[0].splitlines()
    assert re.fullmatch(
        r".*nothing that was stored is lost. Free: [0-9.]+ MiB, enough for any write: [0-9.]+ MiB "
        r"\| 20",
        lines[0],
    )
    assert lines[1:] == ["3 ()"]


# --- against a dictionary


class AgainstADictionary(RuleBasedStateMachine):
    """Ingest, remove, collect and reopen; the store always tells what a dictionary would."""

    names, texts = (
        st.sampled_from(["a", "b", "c"]),
        st.lists(st.sampled_from([f"text {n} " for n in range(6)]), max_size=4),
    )

    def __init__(self):
        super().__init__()
        self.folder = AgainstADictionary.folder / str(
            len(list(AgainstADictionary.folder.iterdir()))
        )
        create(self.folder, {})
        self.files, self.chunks = {}, set()

    @rule(name=names, texts=texts)
    def ingest(self, name, texts):
        with open_store(self.folder, write=True) as store:
            ingest(store, name, texts)
        self.files[name] = texts
        self.chunks |= set(texts)

    @rule(name=names)
    def remove(self, name):
        with open_store(self.folder, write=True) as store:
            store.remove_file(ROOT, name)
        self.files.pop(name, None)

    @rule()
    def collect(self):
        used = {text for texts in self.files.values() for text in texts}
        with open_store(self.folder, write=True) as store:
            assert store.collect() == len(self.chunks - used)
        self.chunks = used

    @invariant()
    def told_alike(self):
        with open_store(self.folder, write=False) as store:
            assert {store.text(chunk_id) for chunk_id in store.chunk_ids()} == self.chunks
            found = {
                one.path: [
                    store.text(place.chunk_id) for place in store.document_chunks(ROOT, one.path)
                ]
                for one in store.documents()
            }
            assert found == self.files
            used = {text for texts in self.files.values() for text in texts}
            assert {
                store.text(chunk_id)
                for chunk_id in store.ids_of(map(int, store.keys()[0])).values()
            } == used
            assert len(store.search_words(["text"], 99)) == len(used) and store.check() == ()


def test_the_store_tells_what_a_dictionary_would(tmp_path):
    AgainstADictionary.folder = tmp_path
    quiet = settings(
        max_examples=6,
        stateful_step_count=8,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=HealthCheck,
    )
    run_state_machine_as_test(AgainstADictionary, settings=quiet)
