"""A store as one file: it comes back as it was.

What was changed is refused; what was made elsewhere is not believed.
"""

import json
import os
import shutil
import sqlite3
import stat
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from safetensors import safe_open
from safetensors.numpy import save_file
from small import content_of, dials, proven, written

from rag_memtok.datatypes import (
    Occurrence,
    ReadableVectors,
    StoredDocument,
    sha256_of_text,
)
from rag_memtok.errors import FormatMismatch, InputRefused, UsageError
from rag_memtok.pipeline import api, bundle, tensorfile
from rag_memtok.pipeline.manifest import JOB
from rag_memtok.settings import updated
from rag_memtok.store import ownership
from rag_memtok.store.files import sibling
from rag_memtok.store.removal import UNPURGED
from rag_memtok.store.store import create, open_store

ROOT = Path(__file__).parent.parent
DEEP = "stands for JSON deeper than Python's own reader goes"
QUESTION = "Who repaired the lamp of the harbour?"


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    """A store and its export, to be read."""
    folder = tmp_path_factory.mktemp("made")
    config = dials(folder / "store", model_folder)
    api.ingest([written(folder / "docs")], config)
    return config, folder / "all.safetensors", api.export(folder / "all.safetensors", config)


@pytest.fixture
def here(made, tmp_path):
    """The settings of a new store."""
    return updated(made[0], {"store": str(tmp_path / "store")})


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Another user's machine, from here on."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other-user"))


def opened(file):
    with safe_open(file, framework="numpy") as found:
        return found.metadata(), {name: found.get_tensor(name) for name in found.keys()}


def rewritten(file, to, change, honest=True):
    """Writes an export whose content was changed by `change`.

    `honest`: with a checksum that is right for it.
    """
    metadata, parts = opened(file)
    content = json.loads(parts["content"].tobytes())
    change(content, parts, metadata)
    text = json.dumps(content).replace(json.dumps(DEEP), "[" * 100_000)
    parts["content"] = np.frombuffer(text.encode(), dtype=np.uint8)
    save_file(parts, to, metadata)
    if honest:
        with to.open("rb") as file:
            _, found = tensorfile.open_parts(to, file)
            order = [name for name in (*bundle.PARTS, bundle.READABLES) if name in found]
            metadata["sha256"] = tensorfile.digest({name: found[name] for name in order})
        save_file(parts, to, metadata)
    return to


def test_a_store_comes_back_as_it_was(made, here, tmp_path):
    config, file, done = made
    assert (done.documents, done.own) == (6, True) and done.bytes == file.stat().st_size
    found = api.import_(file, here)
    assert (found.documents, found.chunks, found.own) == (6, done.chunks, True)
    assert content_of(tmp_path / "store") == content_of(api.store_folder(config))
    proven(here)
    assert api.ask(QUESTION, here).sources[0].path == "lamp.md"
    again = api.export(tmp_path / "again.safetensors", here)
    assert (
        again.chunks == done.chunks
        and opened(tmp_path / "again.safetensors")[1].keys() == opened(file)[1].keys()
    )


def test_an_imported_store_can_be_written_to_and_has_an_id_of_its_own(made, here, tmp_path):
    api.import_(made[1], here)
    (tmp_path / "new.txt").write_text("A new text.")
    api.ingest([tmp_path / "new.txt"], here)
    proven(here)
    with (
        open_store(tmp_path / "store", write=False) as one,
        open_store(api.store_folder(made[0]), write=False) as other,
    ):
        assert (
            one.store_id != other.store_id
            and {**other.manifest, **one.manifest}.keys() == one.manifest.keys()
        )


def test_work_under_way_in_one_store_is_not_another_s(made, here, tmp_path):
    folder = shutil.copytree(api.store_folder(made[0]), tmp_path / "busy")
    with open_store(folder, write=True) as store:
        store.set_manifest(JOB, "f" * 64)
        store.set_manifest(UNPURGED, "names")
    busy = updated(made[0], {"store": str(folder)})
    api.export(tmp_path / "busy.safetensors", busy)
    api.import_(tmp_path / "busy.safetensors", here)
    with open_store(api.store_folder(here), write=False) as store:
        assert not {JOB, UNPURGED} & store.manifest.keys()


def test_the_file_is_private_and_not_overwritten(made, tmp_path):
    file = tmp_path / "export"
    api.export(file, made[0])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="in the way"):
        api.export(file, made[0])


def test_a_store_without_text_and_one_with_text_only_chunks_come_back(tmp_path, model_folder):
    lossy = toy.save(tmp_path / "lossy", lossy=True)
    for name, model, change in (
        ("bare", model_folder, {"memorize__keep_text": False}),
        ("lossy", lossy, {}),
    ):
        config = dials(tmp_path / name / "store", model, **change)
        api.ingest(
            [
                written(
                    tmp_path / name / "docs", {"a.txt": "The Lamp.", "b.txt": "the lamp is red."}
                )
            ],
            config,
        )
        api.export(tmp_path / f"{name}.safetensors", config)
        moved = updated(config, {"store": str(tmp_path / name / "moved")})
        api.import_(tmp_path / f"{name}.safetensors", moved)
        assert content_of(tmp_path / name / "moved") == content_of(tmp_path / name / "store")
        proven(moved)
    assert b"The Lamp" not in (tmp_path / "bare.safetensors").read_bytes()


def older(content, parts, metadata):
    """As the first format had it."""
    metadata["format"] = "1"
    for document in content["documents"]:
        del document["size"], document["modified"]
    for place in content["occurrences"]:
        del place["headings"]


def test_an_export_of_the_first_format_comes_back(made, here, tmp_path):
    api.import_(rewritten(made[1], tmp_path / "older", older), here, trusted=True)
    chunks, documents, places = content_of(tmp_path / "store")
    before = content_of(api.store_folder(made[0]))
    bare = {
        chunk_id: tuple(replace(one, headings="") for one in found)
        for chunk_id, found in before[2].items()
    }
    assert (chunks, places) == (before[0], bare)
    assert documents == tuple(replace(one, size=-1, modified=-1) for one in before[1])
    assert all(one.size > 0 and one.modified > 0 for one in before[1])
    proven(here)


def test_the_export_of_the_demo_comes_back(tmp_path, here):
    found = api.import_(ROOT / "data" / "demo.safetensors", here, trusted=True)
    with open_store(tmp_path / "store", write=False) as store:
        assert store.check() == () and found.chunks == len(store.chunk_ids()) > 10
        assert store.lacking_readables("0" * 64, 16) == store.chunk_ids()


@pytest.fixture
def readable(made, tmp_path):
    """A store of which two chunks have vectors of an encoder, and its export."""
    config = updated(made[0], {"store": str(tmp_path / "readable")})
    shutil.copytree(api.store_folder(made[0]), tmp_path / "readable")
    with open_store(tmp_path / "readable", write=True) as store:
        chosen = (store.chunk_ids()[0], store.chunk_ids()[2])
        store.put_readables(
            {
                one: ReadableVectors("ab" * 32, 16, "float16", bytes(range(8 * rows)), (rows, 4))
                for rows, one in enumerate(chosen, 1)
            }
        )
    api.export(tmp_path / "readable.safetensors", config)
    return tmp_path / "readable", tmp_path / "readable.safetensors"


def test_the_vectors_of_an_encoder_come_back(made, readable, here, tmp_path):
    assert api.import_(readable[1], here).own
    assert content_of(tmp_path / "store") == content_of(readable[0])
    with open_store(tmp_path / "store", write=False) as store:
        assert store.summary().readable == 2
        assert len(store.lacking_readables("ab" * 32, 16)) == len(store.chunk_ids()) - 2
    assert "readables" in opened(readable[1])[1] and "readables" not in opened(made[1])[1]


def made_by(**changes):
    return lambda content, parts, metadata: content["chunks"][0]["readable"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        made_by(encoder="../../etc"),
        made_by(window=0),
        made_by(window="16"),
        made_by(codec="pickle"),
        made_by(shape=[2, 4]),
        made_by(packed=7),
        made_by(packed=-8),
        made_by(more=1),
        lambda content, parts, metadata: content["chunks"][0].pop("readable"),
        lambda content, parts, metadata: content["chunks"][1].update(readable=None),
        lambda content, parts, metadata: parts.pop("readables"),
    ],
)
def test_vectors_of_an_encoder_that_there_cannot_be_are_refused(readable, here, tmp_path, change):
    with pytest.raises(InputRefused, match="not that of a store"):
        api.import_(rewritten(readable[1], tmp_path / "bad", change), here)


@pytest.fixture
def heavy(made, tmp_path):
    """A store of 200 chunks with 100 kB of vectors each."""
    with open_store(api.store_folder(made[0]), write=False) as store:
        manifest, some = store.manifest, store.record(store.chunk_ids()[0])
    kept = {key: value for key, value in manifest.items() if key not in bundle.RESERVED}
    create(tmp_path / "heavy", kept)
    packed = bytes(100_000)
    with open_store(tmp_path / "heavy", write=True) as store, store.together():
        for number in range(200):
            text = f"Chunk {number}."
            chunk_id = sha256_of_text(text)
            store.put(
                replace(
                    some, chunk_id=chunk_id, codec="float16", packed=packed, shape=(50, 1000),
                    readable=None,
                ),
                text,
            )  # fmt: skip
            paper = StoredDocument("/r", f"{number}", f"{number}", chunk_id, "", 1, 10, "text/1")
            store.add_document(
                paper, [Occurrence("/r", f"{number}", 0, chunk_id, 0, len(text), "")]
            )
    return updated(made[0], {"store": str(tmp_path / "heavy")})


def peak_of(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_neither_export_nor_import_has_the_store_in_memory(heavy, here, tmp_path):
    out = tmp_path / "heavy.safetensors"
    assert peak_of(lambda: api.export(out, heavy)) < 10e6 < out.stat().st_size
    assert peak_of(lambda: api.import_(out, here)) < 10e6
    assert content_of(tmp_path / "store") == content_of(api.store_folder(heavy))


def test_json_is_read_value_by_value_wherever_it_is_cut():
    values = [{"text": 'a "[{} é \\', "n": number} for number in range(9)]
    text = json.dumps({"first": {"a": [1]}, "list": values, "none": []}).encode()
    for size in (1, 2, 7, 1000):
        stream = tensorfile.JsonStream(lambda at, _, size=size: text[at : at + size])
        stream.expect('{"first": ')
        assert stream.value() == {"a": [1]}
        begun = stream.position
        assert list(stream.array(', "list": ')) == values
        assert list(stream.array(', "none": ')) == []
        assert next(stream.restart_at(begun).array(', "list": ')) == values[0]
        stream.expect("}")
        with pytest.raises(ValueError, match="where it has to be"):
            stream.value()


# --- damage and deceit


def test_one_changed_byte_of_the_content_is_refused_one_of_the_header_never_believed(
    made, here, tmp_path
):
    whole = made[1].read_bytes()
    content = 8 + int.from_bytes(whole[:8], "little")
    for place in (0, 9, 60, 200, content - 1, content, len(whole) // 2, len(whole) - 1):
        (tmp_path / "bad").write_bytes(
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        )
        try:
            # it hit the seal: nobody's own
            assert not api.import_(tmp_path / "bad", here).own and place < content
            shutil.rmtree(tmp_path / "store")
        except (InputRefused, FormatMismatch):
            pass
    for cut in (0, 100, len(whole) - 1):
        (tmp_path / "bad").write_bytes(whole[:cut])
        with pytest.raises(InputRefused):
            api.import_(tmp_path / "bad", here)
    assert (
        not (tmp_path / "store").exists()
        and not sibling(tmp_path / "store", bundle.IMPORTING).exists()
    )


def test_a_tampered_vector_is_refused_by_its_checksum(made, here, tmp_path):
    def change(content, parts, metadata):
        parts["vectors"] = parts["vectors"].copy()
        parts["vectors"][7] ^= 1

    with pytest.raises(InputRefused, match="checksum"):
        api.import_(rewritten(made[1], tmp_path / "bad", change, honest=False), here)


def test_a_tampered_export_with_a_new_checksum_is_no_longer_ones_own(made, here, tmp_path):
    def change(content, parts, metadata):
        content["manifest"]["seed"] = "99"

    assert not api.import_(rewritten(made[1], tmp_path / "bad", change), here).own
    with pytest.raises(InputRefused, match="not made here"):
        api.ask(QUESTION, here)


def chunk(**changes):
    return lambda content, parts, metadata: content["chunks"][0].update(changes)


def longer(content, parts, metadata):
    parts["vectors"] = np.append(parts["vectors"], np.uint8(0))


@pytest.mark.parametrize(
    "change",
    [
        chunk(text="Another text."),
        chunk(codec="pickle"),
        chunk(shape=[1, 1]),
        chunk(bytes=-4),
        chunk(tokens="7"),
        chunk(pins=[{"position": 2**40, "token": 1, "kind": "safety"}]),
        chunk(pins=[{"position": 1, "token": 1, "kind": "hope"}]),
        chunk(
            verdict={
                "kind": "perfect",
                "tokens": 1,
                "corrections": 0,
                "safeties": 0,
                "margin": 1.0,
                "reason": "",
            }
        ),
        chunk(verdict={"kind": "exact"}),
        chunk(keyed=False),
        chunk(id="0" * 64),
        chunk(pins=DEEP),
        lambda content, parts, metadata: content["manifest"].update(seed=DEEP),
        lambda content, parts, metadata: content["documents"][0].update(extractor=DEEP),
        lambda content, parts, metadata: content["documents"].pop(),
        lambda content, parts, metadata: content["documents"][0].update(chunks=7),
        lambda content, parts, metadata: content["documents"][0].update(file=3),
        lambda content, parts, metadata: content["occurrences"].pop(),
        lambda content, parts, metadata: content["occurrences"][0].update(chunk_id="f" * 64),
        lambda content, parts, metadata: content["chunks"].pop(),
        lambda content, parts, metadata: content["manifest"].update(seed=1),
        lambda content, parts, metadata: content.pop("manifest"),
        longer,
    ],
)
def test_what_is_not_a_store_is_refused_even_with_a_right_checksum(made, here, tmp_path, change):
    with pytest.raises(InputRefused, match="not that of a store"):
        api.import_(rewritten(made[1], tmp_path / "bad", change), here)
    assert (
        not (tmp_path / "store").exists()
        and not sibling(tmp_path / "store", bundle.IMPORTING).exists()
    )


def test_other_files_and_formats_are_refused(made, here, tmp_path, model_folder):
    with pytest.raises(InputRefused, match="not an export"):
        api.import_(model_folder / "model.safetensors", here)
    with pytest.raises(InputRefused, match="no file"):
        api.import_(tmp_path / "none", here)
    newer = rewritten(
        made[1], tmp_path / "newer", lambda content, parts, metadata: metadata.update(format="3")
    )
    with pytest.raises(FormatMismatch, match="format 3.*reads 1 and 2"):
        api.import_(newer, here)


def test_nothing_is_imported_over_something(made, here, tmp_path):
    api.import_(made[1], here)
    before = content_of(tmp_path / "store")
    with pytest.raises(UsageError, match="in the way"):
        api.import_(made[1], here)
    assert content_of(tmp_path / "store") == before


def test_what_a_killed_import_left_is_no_obstacle(made, here, tmp_path):
    shutil.copytree(api.store_folder(made[0]), sibling(tmp_path / "store", bundle.IMPORTING))
    (tmp_path / "store").mkdir()
    api.import_(made[1], here)
    proven(here)
    assert not sibling(tmp_path / "store", bundle.IMPORTING).exists()


# --- who made it


def test_a_foreign_store_is_verified_but_not_asked_unless_trusted(made, here, tmp_path, elsewhere):
    assert not api.import_(made[1], here).own
    proven(here)
    assert api.restore(tmp_path / "back", here).failed == ()
    with pytest.raises(InputRefused, match="not made here") as refused:
        api.ask(QUESTION, here)
    assert "--trust-store" in refused.value.remedy
    assert api.ask(QUESTION, here, trusted=True).sources[0].path == "lamp.md"
    with pytest.raises(InputRefused):
        api.ask(QUESTION, here)  # once is not for ever


def test_import_with_trust_makes_it_ones_own(made, here, tmp_path, elsewhere):
    assert api.import_(made[1], here, trusted=True).own
    assert api.ask(QUESTION, here).sources
    again = updated(here, {"store": str(tmp_path / "again")})
    api.export(tmp_path / "mine", here)
    assert api.import_(tmp_path / "mine", again).own


def test_exporting_a_foreign_store_does_not_launder_it(made, here, tmp_path, elsewhere):
    api.import_(made[1], here)
    assert not api.export(tmp_path / "theirs", here).own
    again = updated(here, {"store": str(tmp_path / "again")})
    assert not api.import_(tmp_path / "theirs", again).own


def test_a_copied_folder_is_foreign_to_another_user(made, here, tmp_path, monkeypatch):
    shutil.copytree(api.store_folder(made[0]), tmp_path / "store")
    assert api.ask(QUESTION, here).sources
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other-user"))
    with pytest.raises(InputRefused, match="not made here"):
        api.ask(QUESTION, here)
    (tmp_path / "docs").mkdir()
    # to add to it does not make it one's own
    api.ingest([written(tmp_path / "docs", {"z.txt": "One more."})], here)
    with pytest.raises(InputRefused, match="not made here"):
        api.ask(QUESTION, here)


def test_a_team_has_a_mark_of_its_own(made, here, tmp_path, elsewhere, monkeypatch):
    monkeypatch.setenv(ownership.OWNER_FILE, str(tmp_path / "team"))
    assert api.import_(made[1], here, trusted=True).own
    assert api.ask(QUESTION, here).sources and (tmp_path / "team").exists()
    monkeypatch.delenv(ownership.OWNER_FILE)
    with pytest.raises(InputRefused, match="not made here"):
        api.ask(QUESTION, here)


def test_the_secret_is_private_and_stays_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = ownership.load_secret()
    assert first == ownership.load_secret() and len(first) == ownership.SECRET_BYTES
    assert stat.S_IMODE(ownership.secret_path().stat().st_mode) == 0o600
    assert [path.name for path in ownership.secret_path().parent.iterdir()] == ["owner"]


@pytest.mark.parametrize("content", ["", "zz", "00"])
def test_without_a_whole_secret_nothing_is_ones_own(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    ownership.secret_path().parent.mkdir()
    ownership.secret_path().write_text(content)
    assert not ownership.is_made_here(ownership.new_maker()) and not ownership.is_signed(
        "store", "", ""
    )


def test_where_nothing_can_be_kept_a_store_is_made_all_the_same_and_that_is_said(
    tmp_path, monkeypatch, model_folder
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert ownership.load_secret() is None and not ownership.is_made_here(ownership.new_maker())
    config, said = dials(tmp_path / "store", model_folder), []
    api.ingest([written(tmp_path / "docs", {"a.txt": "The lamp is red."})], config, say=said.append)
    assert any("--trust-store" in line for line in said)
    assert api.ask("What is the lamp?", config, trusted=True).sources


def test_a_snapshot_is_of_one_generation_though_another_writes(made, tmp_path):
    shutil.copytree(made[0].store, tmp_path / "busy")
    with (
        open_store(tmp_path / "busy", write=False) as reader,
        closing(sqlite3.connect(tmp_path / "busy" / "store.db", timeout=0.05)) as db,
    ):
        with reader.snapshot():
            before = reader.documents()
            with pytest.raises(sqlite3.OperationalError, match="locked"), db:
                db.execute("DELETE FROM documents")
            assert reader.documents() == before
        with db:
            db.execute("DELETE FROM occurrences")
        assert reader.occurrences(reader.chunk_ids()).values() and not any(
            reader.occurrences(reader.chunk_ids()).values()
        )


def test_a_signature_of_a_store_is_none_of_an_export(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    nonce, _, signature = ownership.new_maker()[ownership.MAKER].partition(" ")
    assert ownership.is_signed("store", nonce, signature) and not ownership.is_signed(
        "export", nonce, signature
    )
    assert os.environ["XDG_CONFIG_HOME"] == str(tmp_path)
