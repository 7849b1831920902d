"""A store of every released format opens, verifies, and gives its documents back, for ever.

Made by tests/golden/make_store.py.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small import content_of

from rag_memtok.config import Config
from rag_memtok.pipeline import api
from rag_memtok.settings import updated
from rag_memtok.store.formats import DRAFT, FORMAT
from rag_memtok.store.store import open_store

STORES = Path(__file__).parent / "golden" / "stores"


@pytest.fixture(params=sorted(folder.name for folder in STORES.iterdir()))
def golden(request, tmp_path):
    """A copy, so that a migration or a lock cannot change the original."""
    return Path(shutil.copytree(STORES / request.param, tmp_path / request.param))


def reader_of(golden):
    """The reader that a store's readable vectors are for."""
    return str(golden / "reader") if (golden / "reader").exists() else "auto"


def dials(golden):
    named = {"store": golden / "store", "model.id": golden / "model"}
    named = {name: str(path) for name, path in named.items()}
    return updated(Config(), named | {"ask.adapter": reader_of(golden), "model.threads": 1})


def test_every_format_has_a_golden_store():
    assert {one.name for one in STORES.iterdir()} == {f"format-{n}" for n in range(1, FORMAT + 1)}


def test_a_format_is_a_draft_until_its_version_is_released():
    log = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    first = next(line for line in log.splitlines() if line.startswith("## "))
    assert "unreleased" in first or not DRAFT


def test_a_golden_store_is_only_read_by_what_reads(golden, tmp_path, command_line, monkeypatch):
    monkeypatch.setenv("RAG_MEMTOK_ASK_ADAPTER", reader_of(golden))
    database = golden / "store" / "store.db"
    before = database.read_bytes()
    where = ("--store", golden / "store")
    assert command_line("verify", *where, "--model", golden / "model")[0] == 0
    for command in (("status",), ("list",), ("list", "--chunks"), ("search", "Who wrote?")):
        assert command_line(*command, *where)[0] == 0, command
    for command in (("export", tmp_path / "all"), ("restore", "--to", tmp_path / "back")):
        more = ("--model", golden / "model") if command[0] == "restore" else ()
        assert command_line(*command, *where, *more)[0] == 0, command
    _, out, _ = command_line("list", "--chunks", "--json", *where)
    shown = json.loads(out)["chunks"][0]["chunk_id"][:12]
    assert command_line("show", shown, *where, "--model", golden / "model")[0] == 0
    assert database.read_bytes() == before
    assert not database.with_name("store.db-journal").exists()


def test_a_golden_store_can_be_written_to_and_verifies_again(golden, tmp_path):
    before = content_of(golden / "store")
    with open_store(golden / "store", write=True) as store:
        store.set_manifest("seed", "7")
        assert store.manifest["format"] == str(FORMAT) and store.check() == ()
        assert len(store.search_names(["harbour"], 9)) == 3
    assert without_headings(content_of(golden / "store")) == without_headings(before)
    test_a_golden_store_verifies(golden)
    test_a_golden_store_gives_its_documents_back(golden, tmp_path)
    test_a_golden_store_finds_its_words(golden)


def without_headings(content):
    """An upgrade adds them."""
    chunks, documents, places = content
    bare = {
        chunk_id: [replace(one, headings="") for one in found] for chunk_id, found in places.items()
    }
    return chunks, documents, bare


def test_an_upgrade_takes_headings_from_the_kept_texts(tmp_path):
    folder = shutil.copytree(STORES / "format-1" / "store", tmp_path / "store")
    with open_store(folder, write=True) as store:
        store.set_manifest("seed", "7")
        (document,) = (one for one in store.documents() if one.path == "harbour.md")
        places = store.document_chunks(document.root, document.path)
        assert {one.headings for one in places} == {"Harbour"} and store.check() == ()


def test_an_export_of_a_golden_store_comes_back(golden, tmp_path):
    api.export(tmp_path / "all", dials(golden))
    api.import_(tmp_path / "all", updated(dials(golden), {"store": str(tmp_path / "new")}))
    assert content_of(tmp_path / "new") == content_of(golden / "store")


def test_what_format_2_has_more_is_in_its_golden_store(tmp_path):
    folder = shutil.copytree(STORES / "format-2" / "store", tmp_path / "store")
    with open_store(folder, write=False) as store:
        documents = {one.path: one for one in store.documents()}
        places = store.document_chunks(documents["harbour.md"].root, "harbour.md")
        assert {one.headings for one in places} == {"Harbour > The lamp"}
        made = {one.chunk_id: store.record(one.chunk_id).readable for one in places}
        encoder = store.manifest["encoder_sha256"]
        assert {(one.encoder, one.window) for one in made.values()} == {(encoder, 4)}
        assert {one.shape[1] for one in made.values()} == {128}
        assert store.summary().readable == len(store.chunk_ids()) == 5
        assert documents["harbour.md"].size == 117 and documents["harbour.md"].modified > 0
        assert store.lacking_readables(encoder, 4) == ()
        assert store.lacking_readables(encoder, 8) == store.chunk_ids()


def test_a_golden_store_verifies(golden):
    audit = api.verify(dials(golden))
    assert (audit.exit_code, audit.findings, audit.checked) == (0, (), audit.chunks)
    assert audit.documents_proven == audit.documents == 3
    assert audit.readable == ({} if golden.name == "format-1" else {"same": audit.chunks})


def test_a_golden_store_gives_its_documents_back(golden, tmp_path):
    restored = api.restore(tmp_path / "restored", dials(golden))
    assert len(restored.written) == 3
    for path in restored.written:
        assert path.read_bytes() == (golden / "docs" / path.name).read_bytes()


def test_a_golden_store_finds_its_words(golden):
    found = api.search("Who wrote to the pilots?", dials(golden))
    assert found[0].source.path == "harbour.md"
    # the toy answers anything
    answered = api.ask(
        "Who wrote to the pilots?", updated(dials(golden), {"ask.max_new_tokens": 2}), trusted=True
    )
    reader = "decode" if golden.name == "format-1" else "decode + adapter"
    assert answered.reader == reader and answered.context_positions


def test_an_encoders_vectors_are_counted(golden, command_line):
    where = ("--store", golden / "store")
    _, told, _ = command_line("status", *where)
    status, chunks = (
        json.loads(command_line(*command, *where, "--json")[1])
        for command in (("status",), ("list", "--chunks"))
    )
    shown = (chunks["chunks"][0]["chunk_id"][:12], *where, "--model", golden / "model")
    (_, show, _), (_, found, _) = (
        command_line("show", *shown),
        command_line("show", *shown, "--json"),
    )
    if golden.name == "format-1":
        assert "readable" not in told + show and status["readable"] == 0
        assert "readable" not in json.loads(found)["bytes"]
    else:
        assert re.search("^readable +5 chunks with vectors of an encoder", told, re.MULTILINE)
        assert status["readable"] == 5
        size = json.loads(found)["bytes"]["readable"]
        assert size % 256 == 0 and f"{size} bytes of an encoder's vectors" in show
