"""A store of every released format opens, verifies, and gives its documents back, for ever.

Made by tests/golden/make_store.py.
"""

import json
import re
import shutil
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


def dials(golden):
    return updated(
        Config(),
        {"store": str(golden / "store"), "model.id": str(golden / "model"), "model.threads": 1},
    )


def test_every_format_has_a_golden_store():
    assert {one.name for one in STORES.iterdir()} == {f"format-{n}" for n in range(1, FORMAT + 1)}


def test_a_format_is_a_draft_until_its_version_is_released():
    log = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    first = next(line for line in log.splitlines() if line.startswith("## "))
    assert "unreleased" in first or not DRAFT


def test_a_golden_store_is_only_read_by_what_reads(golden, tmp_path, command_line):
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
    assert content_of(golden / "store") == before
    test_a_golden_store_verifies(golden)
    test_a_golden_store_gives_its_documents_back(golden, tmp_path)
    test_a_golden_store_finds_its_words(golden)


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
        assert {(one.encoder, one.window, one.shape) for one in made.values()} == {
            ("ab" * 32, 16, (2, 4))
        }
        assert {one.packed for one in made.values()} == {bytes(range(16))}
        assert store.summary().readable == len(made) == 3
        assert documents["harbour.md"].size == 117 and documents["harbour.md"].modified > 0
        assert set(store.lacking_readables("ab" * 32, 16)) == {*store.chunk_ids()} - {*made}
        assert store.lacking_readables("ab" * 32, 8) == store.chunk_ids()


def test_a_golden_store_verifies(golden):
    audit = api.verify(dials(golden))
    assert (audit.exit_code, audit.findings, audit.checked) == (0, (), audit.chunks)
    assert audit.documents_proven == audit.documents == 3


def test_a_golden_store_gives_its_documents_back(golden, tmp_path):
    restored = api.restore(tmp_path / "restored", dials(golden))
    assert len(restored.written) == 3
    for path in restored.written:
        assert path.read_bytes() == (golden / "docs" / path.name).read_bytes()


def test_a_golden_store_finds_its_words(golden):
    found = api.ask(
        "Who wrote to the pilots?", updated(dials(golden), {"ask.max_new_tokens": 2}), trusted=True
    )
    assert found.sources[0].path == "harbour.md"


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
        assert re.search("^readable +3 chunks with vectors of an encoder", told, re.MULTILINE)
        assert status["readable"] == 3 and json.loads(found)["bytes"]["readable"] == 16
        assert "16 bytes of an encoder's vectors" in show
