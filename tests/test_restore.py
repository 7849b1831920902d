"""The documents written back: never outside the folder, and whatever is not there is named."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from small import dials, written

from rag_memtok.datatypes import Chunk, Occurrence, StoredDocument, sha256_of_text
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.model.prompts import template_named
from rag_memtok.pipeline import api
from rag_memtok.pipeline.manifest import REQUIRED
from rag_memtok.pipeline.restore import folder_for_root, restore_documents
from rag_memtok.pipeline.writer import text_only_record
from rag_memtok.store.store import create, open_store


def store_of(folder, *documents):
    """A store, as anyone could have made it, of documents (root, path, text, extractor).

    The documents are each one chunk kept as text.
    """
    create(folder, dict.fromkeys(REQUIRED, "1"))
    with open_store(folder, write=True) as store:
        for root, path, text, *extractor in documents:
            chunk, digest = Chunk(text, 0, len(text), "line 1"), sha256_of_text(text)
            store.put(text_only_record(chunk, np.ones(4, dtype=np.float32)), text)
            document = StoredDocument(
                root, path, path, digest, digest, 1, len(text), *(extractor or ["text/1"])
            )
            store.replace_file(
                root,
                path,
                [document],
                [Occurrence(root, path, 0, chunk.id, 0, len(text), "line 1")],
            )
    return folder


@pytest.fixture
def restored(toy_lm):
    """Restores a store into a folder."""

    def run(folder, to):
        with open_store(folder, write=False) as store:
            return restore_documents(
                store, toy_lm, template_named("bare", toy_lm), to, lambda at: None
            )

    return run


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("root", ["/a/..", "..", "/a/../..", "/", ""])
def test_a_root_without_a_name_leads_nowhere_else(restored, tmp_path, root):
    store = store_of(
        tmp_path / "store",
        (root, ".ssh/authorized_keys", "a key\n"),
        ("/b", "lamp.md", "The lamp.\n"),
    )
    (tmp_path / "home").mkdir()
    restored(store, tmp_path / "home" / "to")
    assert files_in(tmp_path / "home") == {
        "to/root/.ssh/authorized_keys": "a key\n",
        "to/b/lamp.md": "The lamp.\n",
    }


@pytest.mark.parametrize(
    "path",
    [
        "../lamp.md",
        "/tmp/lamp.md",
        "../b-2/lamp.md",
        "lamp\0.md",
        r"lamp\x41.md",
        "link/lamp.md",
        "",
        ".",
    ],
)
@pytest.mark.parametrize("roots", [1, 2])
def test_a_path_that_leads_out_is_refused(restored, tmp_path, path, roots):
    store = store_of(
        tmp_path / "store",
        ("/a/b", path, "mine\n"),
        *[("/c/b", "fan.md", "The fan.\n")][: roots - 1],
    )
    inside = tmp_path / "home" / "to" / folder_for_root("/a/b", ["/a/b", "/c/b"][:roots])
    inside.mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path)
    with pytest.raises(InputRefused, match="outside"):
        restored(store, tmp_path / "home" / "to")
    assert files_in(tmp_path / "home") == {}


def test_a_folder_put_in_place_of_a_roots_is_not_followed(restored, tmp_path):
    store = store_of(
        tmp_path / "store", ("/a", "lamp.md", "The lamp.\n"), ("/b", "fan.md", "The fan.\n")
    )
    (tmp_path / "to").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputRefused):
        restored(store, tmp_path / "to")
    assert files_in(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE documents SET characters = 99 WHERE path = CAST('fan.md' AS BLOB)",
        "UPDATE chunks SET tokens = 99 WHERE number = 2",
        "UPDATE vectors SET rows = 99 WHERE chunk = 2",
        "DELETE FROM occurrences WHERE chunk = 2",
    ],
    ids=["document", "chunk", "vectors", "place"],
)
def test_a_document_lost_to_damage_is_named_and_the_exit_code_says_so(restored, tmp_path, damage):
    store = store_of(
        tmp_path / "store", ("/a", "lamp.md", "The lamp.\n"), ("/a", "fan.md", "The fan.\n")
    )
    with closing(sqlite3.connect(store / "store.db")) as db, db:
        assert db.execute(damage).rowcount == 1
    done = restored(store, tmp_path / "to")
    assert files_in(tmp_path / "to") == {"lamp.md": "The lamp.\n"}
    assert [path.rpartition("/")[2] for path, reason in done.failed] == ["fan.md"] and all(
        reason for _, reason in done.failed
    )
    assert done.exit_code == 13


def test_of_two_documents_of_one_name_the_very_file_gets_it_and_the_rest_goes_on(
    restored, tmp_path
):
    documents = (
        ("/a", "a.html", "The page.\n", "html/1"),
        ("/a", "a.html.txt", "My notes.\n"),
        ("/a", "z.md", "The last.\n"),
    )
    store = store_of(tmp_path / "store", *documents, ("/a", "z.md/fan.md", "In a file.\n"))
    for _ in range(2):  # again, over the same
        done = restored(store, tmp_path / "to")
        assert files_in(tmp_path / "to") == {"a.html.txt": "My notes.\n", "z.md": "The last.\n"}
        assert {path for path, reason in done.failed if "another document" in reason} == {
            "a.html",
            "z.md/fan.md",
        }
        assert done.exit_code == 5


@pytest.mark.parametrize("path", ["notes", "notes/lamp.md/fan.md", "notes/lamp.md"])
def test_what_was_there_before_is_not_touched(restored, tmp_path, path):
    store = store_of(tmp_path / "store", ("/a", path, "The lamp.\n"))
    (tmp_path / "to" / "notes").mkdir(parents=True)
    (tmp_path / "to" / "notes" / "lamp.md").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        restored(store, tmp_path / "to")
    assert files_in(tmp_path / "to") == {"notes/lamp.md": "mine"}


def test_what_a_restore_that_was_cut_short_left_is_completed(restored, tmp_path):
    store = store_of(tmp_path / "store", ("/a", "lamp.md", "The lamp.\n"))
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "lamp.md").write_text("The l")
    restored(store, tmp_path / "to")
    assert files_in(tmp_path / "to") == {"lamp.md": "The lamp.\n"}


def test_a_text_goes_into_its_encoding_and_one_that_cannot_is_named(tmp_path, restored):
    store = store_of(
        tmp_path / "store",
        ("/docs", "bad.txt", "日本", "text/1 cp1252"),
        ("/docs", "good.txt", "Größe – 5 €", "text/1 cp1252"),
        ("/docs", "odd.txt", "Größe", "text/1 rot13"),
        ("/docs", "page.html", "Größe", "html/3 cp1252"),
    )
    found = restored(store, tmp_path / "to")
    assert found.failed == (("bad.txt", "its text cannot be written in cp1252"),)
    assert (tmp_path / "to" / "good.txt").read_bytes() == "Größe – 5 €".encode("cp1252")
    assert (tmp_path / "to" / "odd.txt").read_text(encoding="utf-8") == "Größe"
    assert (tmp_path / "to" / "page.html.txt").read_text(encoding="utf-8") == "Größe"


def test_a_name_that_becomes_too_long_fails_alone(tmp_path, model_folder):
    name = "x" * 250 + ".html"
    pages = dict.fromkeys(("a.html", name, "z.html"), "<p>The lamp of the harbour is red.</p>\n")
    config = dials(tmp_path / "store", model_folder)
    api.ingest([written(tmp_path / "docs", pages)], config)
    for _ in range(2):  # again, over the same
        done = api.restore(tmp_path / "to", config)
        assert set(files_in(tmp_path / "to")) == {"a.html.txt", "z.html.txt"}
        assert [path for path, _ in done.failed] == [name] and "too long" in done.failed[0][1]
        assert done.exit_code == 5
