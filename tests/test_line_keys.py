"""The keys of file names and headings: what they find, and that they go with their places."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from older import to_format_1
from small import DOCUMENTS, dials, written
from test_store import ROOT, file_of, record_of
from toy_embedder import write_embedder

from rag_memtok.config import Retrieve
from rag_memtok.datatypes import sha256_of_text
from rag_memtok.pipeline import api
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.lines import EVERY, FEW, open_lines
from rag_memtok.retrieval.search import search
from rag_memtok.settings import updated
from rag_memtok.store import line_keys
from rag_memtok.store.files import LINES
from rag_memtok.store.store import create, open_store
from rag_memtok.store.terms import query_words, terms_of

MINI = load_embedder("mini")
LIFE = {"Birth": "In 1850 on a farm.", "School": "From 1857 in Kiel.", "Death": "In 1912 at home."}
QUESTION = "Who died?"


def put(store, name, headed):
    """A file in which each text stands below its heading."""
    texts = list(headed.values())
    for text in texts:
        key = MINI.encode([text], query=False)[0]
        store.put(replace(record_of(text), key=key), text)
    document, places = file_of(name, texts)
    places = [replace(one, headings=above) for one, above in zip(places, headed, strict=True)]
    store.replace_file(ROOT, name, [document], places)


@pytest.fixture
def folder(tmp_path):
    """A store of a life, and of one text that stands in two files below other headings."""
    create(tmp_path / "store", {})
    with open_store(tmp_path / "store", write=True) as store:
        put(store, "life.md", LIFE)
        put(store, "one.md", {"Spain": "It rains."})
        put(store, "two.md", {"France": "It rains."})
    return tmp_path / "store"


def opened(folder, embedder=MINI, most=FEW):
    """The lines of a store: {digest: (its key, its chunks)}."""
    with open_store(folder, write=False) as store:
        known = open_lines(store, embedder, most).line_keys
    return {
        digest.tobytes(): (key, known.chunks[start:end].tolist())
        for digest, key, start, end in zip(
            known.digests, known.keys, known.starts, known.starts[1:], strict=False
        )
    }


def counted():
    """What an embedder is asked to encode, and that embedder."""
    asked = []

    def encode(texts, query):
        asked.extend(texts)
        return MINI.function(texts, query=query)

    return asked, replace(MINI, function=encode)


def digests(*lines):
    return {line_keys.digest_of(line.encode()) for line in lines}


ALL = digests(
    "life.md > Birth", "life.md > School", "life.md > Death", "one.md > Spain", "two.md > France"
)


def hits(folder, question, lines=True, **settings):
    with open_store(folder, write=False) as store:
        index = open_index(store, MINI if lines else None)
        return search(store, index, MINI, question, Retrieve(**settings))


# --- what they find


def test_a_question_without_a_word_of_a_heading_finds_what_stands_below_it(folder):
    assert not set(terms_of(" ".join((*LIFE, *LIFE.values()))).split()) & set(
        terms_of(" ".join(query_words(QUESTION))).split()
    )
    assert not any(
        hit.chunk_id == sha256_of_text(LIFE["Death"]) for hit in hits(folder, QUESTION, False)[:1]
    )
    first = hits(folder, QUESTION)[0]
    assert first.chunk_id == sha256_of_text(LIFE["Death"])
    key = MINI.encode([QUESTION], query=True)[0]
    line = MINI.encode(["life.md > Death"], query=False)[0]
    text = MINI.encode([LIFE["Death"]], query=False)[0]
    assert first.cosine == pytest.approx(max(line @ key, text @ key), abs=1e-5)
    assert line @ key > max(text @ key, MINI.threshold)


def test_one_key_is_of_all_chunks_below_its_line_and_a_chunk_has_its_nearest(folder):
    lines = opened(folder)
    assert set(lines) == ALL
    spain, france = (
        lines[one][1] for one in map(one_digest, ("one.md > Spain", "two.md > France"))
    )
    assert spain == france and len(spain) == 1
    with open_store(folder, write=False) as store:
        known = open_lines(store, MINI)
    key = MINI.encode(["one.md > Spain"], query=False)[0]
    assert known.cosines_of(key, spain)[spain[0]] == pytest.approx(1.0, abs=1e-5)
    assert known.nearest(key, 1) == known.cosines_of(key, spain)
    assert len(known.nearest(key, 9)) == 4  # chunks, not lines
    assert set(known.nearest(key, 9, among=[1, 2])) == {1, 2}
    assert known.nearest(np.zeros(256, dtype=np.float32), 9) == {}


def one_digest(line):
    return line_keys.digest_of(line.encode())


def test_within_a_folder_only_its_chunks_are_found(folder):
    with open_store(folder, write=True) as store:
        put(store, "other/life.md", {"Death": "In 1700 at sea."})
    found = hits(folder, QUESTION, within="other")
    assert [hit.chunk_id for hit in found] == [sha256_of_text("In 1700 at sea.")]


# --- how they come and go


def test_they_are_kept_privately_and_made_once(folder, monkeypatch):
    first = opened(folder)
    assert (folder / LINES).stat().st_mode & 0o777 == 0o600
    content = (folder / LINES).read_bytes()
    assert b"life" not in content and b"Death" not in content
    refuse = replace(MINI, function=lambda texts, query: pytest.fail("encoded again"))
    assert set(opened(folder, refuse)) == set(first)
    with open_store(folder, write=True) as store:
        store.set_manifest("seed", "7")  # another state, the same lines
    again = opened(folder, refuse)
    assert all(np.array_equal(first[one][0], again[one][0]) for one in ALL)
    with open_store(folder, write=True) as store:
        put(store, "three.md", {"Spain": "It snows."})
    asked = []
    telling = replace(
        MINI, function=lambda texts, query: asked.extend(texts) or MINI.function(texts, query=query)
    )
    assert set(opened(folder, telling)) == ALL | digests("three.md > Spain")
    assert asked == ["three.md > Spain"]


def test_a_key_goes_with_the_last_place_below_its_line(folder):
    key = opened(folder)[one_digest("one.md > Spain")][0]
    with open_store(folder, write=True) as store:
        put(store, "life.md", {**LIFE, "Late": "It rains."})
        store.collect([(ROOT, "one.md")])
        # before anything opens them, and though the chunk stays
        assert key.tobytes() not in (folder / LINES).read_bytes()
        assert one_digest("one.md > Spain") not in (folder / LINES).read_bytes()
        assert one_digest("two.md > France") in (folder / LINES).read_bytes()
    assert set(opened(folder)) == ALL - digests("one.md > Spain") | digests("life.md > Late")
    with open_store(folder, write=True) as store:
        store.collect([(ROOT, name) for name in ("life.md", "two.md")])
    assert opened(folder) == {} and hits(folder, QUESTION) == ()


def test_a_removal_while_the_file_is_written_leaves_none_of_its_keys(folder, monkeypatch):
    written_late = line_keys.write

    def write(*file):
        monkeypatch.setattr(line_keys, "write", written_late)
        with open_store(folder, write=True) as store:
            store.collect([(ROOT, "one.md")])
        written_late(*file)

    monkeypatch.setattr(line_keys, "write", write)
    assert set(opened(folder)) == ALL and not (folder / LINES).exists()
    assert set(opened(folder)) == ALL - digests("one.md > Spain") and (folder / LINES).exists()


def test_more_than_a_few_wait_for_an_ingest_which_is_said(folder, caplog):
    assert opened(folder, most=4) == {}
    assert "5 file names and headings" in caplog.text and "rag-memtok ingest PATH" in caplog.text
    assert hits(folder, "It rains.")
    assert set(opened(folder, most=EVERY)) == ALL
    caplog.clear()
    with open_store(folder, write=True) as store:
        put(store, "three.md", {"Spain": "It snows.", "Italy": "Sun."})
    assert set(opened(folder, most=1)) == ALL and "2 file names" in caplog.text


def test_those_of_another_embedder_are_made_anew(folder, tmp_path):
    before = opened(folder)
    other = load_embedder(str(write_embedder(tmp_path / "embedder")))
    after = opened(folder, other)
    assert set(after) == set(before) and {len(key) for key, _ in after.values()} == {16}


def test_those_of_another_rule_are_made_anew(folder, monkeypatch):
    opened(folder)
    asked = []
    telling = replace(
        MINI, function=lambda texts, query: asked.extend(texts) or MINI.function(texts, query=query)
    )
    monkeypatch.setattr(line_keys, "RULE", "2")
    assert set(opened(folder, telling)) == ALL and len(asked) == len(ALL)


def header_lies(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"shape": [5, ', b'"shape": [9, '))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
    "no header": lambda path: path.write_bytes(b"[]" + path.read_bytes()[2:]),
    "header lies": header_lies,
    "a link": lambda path: (path.unlink(), path.symlink_to("store.db")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_said_and_made_anew(folder, damage, caplog):
    whole = opened(folder)
    content, database = (folder / LINES).read_bytes(), (folder / "store.db").read_bytes()
    DAMAGE[damage](folder / LINES)
    assert (folder / LINES).read_bytes() != content
    again = opened(folder)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the keys of names and headings are made anew" in caplog.text
    assert set(again) == set(whole) == ALL
    assert all(np.array_equal(again[one][0], whole[one][0]) for one in ALL)
    assert not (folder / LINES).is_symlink()
    assert (folder / "store.db").read_bytes() == database  # nothing is written through a link
    DAMAGE[damage](folder / LINES)
    with open_store(folder, write=True) as store:  # a removal is not kept from its work
        assert store.collect([(ROOT, "life.md")]) == 3 and store.check() == ()
    assert set(opened(folder)) == digests("one.md > Spain", "two.md > France")


def test_a_file_of_another_store_is_not_taken(folder, tmp_path, caplog):
    create(tmp_path / "other", {})
    with open_store(tmp_path / "other", write=True) as store:
        put(store, "life.md", {"Birth": LIFE["Birth"]})
    opened(tmp_path / "other")
    shutil.copy(tmp_path / "other" / LINES, folder / LINES)
    assert set(opened(folder)) == ALL and not caplog.records


def test_where_it_cannot_be_kept_it_is_in_memory(folder):
    (folder / f"{LINES}.new").mkdir()
    assert set(opened(folder)) == ALL and not (folder / LINES).exists()


# --- the commands


@pytest.fixture
def config(tmp_path, model_folder):
    found = dials(tmp_path / "store", model_folder)
    api.ingest([written(tmp_path / "docs")], found)
    return found


def lines_in(config):
    """How many lines have a key, without anything being made."""
    header = line_keys.read_header(Path(config.store) / LINES)
    return header.get("shape", [0])[0], header.get("maker")


def test_an_ingest_gives_new_lines_their_keys_and_one_of_nothing_new_mends_them(config, tmp_path):
    there = lines_in(config)
    assert there[0] == 6 and there[1] == f"{line_keys.RULE} {MINI.digest}"
    (tmp_path / "store" / LINES).unlink()
    assert api.ingest([tmp_path / "docs"], config).unchanged == len(DOCUMENTS)
    assert lines_in(config) == there
    api.remove(tmp_path / "docs" / "copy.txt", config)
    assert lines_in(config)[0] == 5
    (tmp_path / "docs" / "again.txt").unlink()
    (tmp_path / "docs" / "copy.txt").unlink()
    api.ingest([tmp_path / "docs"], config, prune=True)
    assert lines_in(config)[0] == 4


def test_another_embedder_makes_them_too(config, tmp_path):
    other = write_embedder(tmp_path / "embedder", {"threshold": -1.0})
    changed = updated(config, {"retrieve.embedder": str(other)})
    api.rekey(changed)
    assert lines_in(config) == (6, f"{line_keys.RULE} {load_embedder(str(other)).digest}")
    assert api.search("lamp", config)


def test_an_embedder_that_is_gone_keeps_no_ingest_of_nothing_new_from_its_end(config, tmp_path):
    other = write_embedder(tmp_path / "embedder")
    api.rekey(updated(config, {"retrieve.embedder": str(other)}))
    (tmp_path / "store" / LINES).unlink()
    shutil.rmtree(other)
    said = []
    done = api.ingest([tmp_path / "docs"], config, say=said.append)
    assert done.unchanged == len(DOCUMENTS)
    assert len(said) == 1 and said[0].startswith("names and headings have no keys")


def test_a_file_of_export_has_none_and_they_come_with_the_first_question(config, tmp_path):
    api.export(tmp_path / "all.safetensors", config)
    moved = updated(config, {"store": str(tmp_path / "moved")})
    api.import_(tmp_path / "all.safetensors", moved)
    assert lines_in(moved)[0] == 0
    assert api.search("When was the lamp repaired?", moved) == api.search(
        "When was the lamp repaired?", config
    )
    assert lines_in(moved) == lines_in(config)


def test_a_store_of_format_1_has_those_of_its_names(config, tmp_path):
    (tmp_path / "store" / LINES).unlink()
    folder = to_format_1(tmp_path / "store")
    before = (folder / "store.db").read_bytes()
    assert api.search("When was the lamp repaired?", config)
    assert (folder / "store.db").read_bytes() == before
    assert set(opened(folder)) == digests(*(one.document.path for one in api.documents(config)))
