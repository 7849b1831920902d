"""A store rewritten for another model.

It is proven, switched at once, and gone on with after a kill at any moment.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from older import to_format_1
from small import content_of, dials, proven, written
from toy_embedder import write_embedder

from rag_memtok.datatypes import ReadableVectors
from rag_memtok.errors import (
    InputRefused,
    NoStore,
    StoreDamaged,
    StoreLocked,
    UsageError,
    WrongModel,
)
from rag_memtok.pipeline import api
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.switch import MIGRATING, OLD
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.settings import updated
from rag_memtok.store.files import sibling
from rag_memtok.store.schema import insert
from rag_memtok.store.store import open_store

QUESTION = "Who repaired the lamp of the harbour?"

# Migrates, and kills itself when the time has come: at a number of chunks, or at a message.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from small import dials
from rag_memtok.pipeline import api
store, model, chunks, words = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

def die(now):
    if now:
        os.kill(os.getpid(), signal.SIGKILL)

api.migrate(
    dials(store, model, memorize__batch=1),
    on_progress=lambda at: die(at.done == chunks),
    say=lambda line: die(line.startswith(words)),
)
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Toy B: other weights, the same tokenizer."""
    return toy.save(tmp_path_factory.mktemp("other") / "toy-b", seed=1)


@pytest.fixture(scope="module")
def ready(tmp_path_factory, model_folder, other):
    """A folder with documents and a store of toy A, and what killed migrations to toy B left.

    One was killed after 2 chunks, one at the end.
    """
    whole = tmp_path_factory.mktemp("whole")
    api.ingest([written(whole / "docs")], dials(whole / "store", model_folder))
    killed = {}
    for name, when in (("early", {"chunks": 2}), ("late", {"words": "proved"})):
        killed[name] = tmp_path_factory.mktemp(name) / "all"
        shutil.copytree(whole, killed[name])
        kill(dials(killed[name] / "store", model_folder), other, **when)
    return {"whole": whole, **killed}


@pytest.fixture
def store(ready, model_folder, tmp_path):
    """The settings of a store of toy A."""
    return copied(ready["whole"], tmp_path, model_folder)


@pytest.fixture
def early(ready, model_folder, tmp_path):
    """A store whose migration was killed after 2 chunks."""
    return copied(ready["early"], tmp_path, model_folder)


@pytest.fixture
def late(ready, model_folder, tmp_path):
    """A store whose migration was killed when the new one was proved."""
    return copied(ready["late"], tmp_path, model_folder)


def copied(folder, to_folder, model):
    shutil.copytree(folder, to_folder, dirs_exist_ok=True)
    return dials(to_folder / "store", model)


def to(config, model):
    return updated(config, {"model.id": str(model)})


def kill(config, model, chunks=-1, words="nothing"):
    """Runs a migration that is killed."""
    words = [config.store, str(model), str(chunks), words, str(Path(__file__).parent)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def texts(content):
    """What a migration must not change: ids and kept texts, keys, documents, places."""
    chunks, documents, places = content
    return {chunk_id: chunk[5:7] for chunk_id, chunk in chunks.items()}, documents, places


@pytest.mark.parametrize("keep_text", [True, False])
def test_keys_are_made_anew_and_no_memory_is_touched(tmp_path, model_folder, keep_text):
    config = dials(tmp_path / "store", model_folder, memorize__keep_text=keep_text)
    api.ingest([written(tmp_path / "docs")], config)
    before, steps = content_of(tmp_path / "store"), []
    folder = write_embedder(tmp_path / "embedder", {"threshold": -1.0})
    changed = updated(config, {"retrieve.embedder": str(folder)})
    done = api.rekey(changed, steps.append)
    assert done.chunks == len(before[0]) == steps[-1].done
    after = content_of(tmp_path / "store")
    assert after[1:] == before[1:]
    embedder = load_embedder(str(folder))
    for chunk_id, chunk in after[0].items():
        assert (*chunk[:5], chunk[6]) == (*before[0][chunk_id][:5], before[0][chunk_id][6])
        with open_store(tmp_path / "store", write=False) as store:
            text = store.text(chunk_id)
        if text is not None:
            key = embedder.encode([text], query=False)[0]
            assert np.array_equal(np.frombuffer(chunk[5], dtype="<f4"), key)
    proven(config)
    # the store's embedder is the new one, and another is refused
    assert api.status(config).manifest["embedder"] == str(folder)
    assert api.ask("Which lamp?", config).sources
    with pytest.raises(WrongModel, match="keys are of the embedder"):
        api.ask("Which lamp?", updated(config, {"retrieve.embedder": "mini"}))
    assert api.rekey(changed).chunks == 0
    assert api.rekey(updated(config, {"retrieve.embedder": "mini"})).chunks == done.chunks
    assert content_of(tmp_path / "store") == before


def test_an_embedder_that_is_gone_is_not_needed_to_leave_it(tmp_path, model_folder, command_line):
    folder = write_embedder(tmp_path / "embedder", {"threshold": -1.0})
    config = dials(
        tmp_path / "store", model_folder, memorize__keep_text=False, retrieve__embedder=str(folder)
    )
    api.ingest([written(tmp_path / "docs")], config)
    shutil.rmtree(folder)
    assert api.rekey(updated(config, {"retrieve.embedder": "mini"})).chunks > 0
    shutil.copytree(model_folder, tmp_path / "other")
    where = ("--store", tmp_path / "store", "--model", tmp_path / "other", "--embedder", "mini")
    assert command_line("migrate", *where)[0] == 0


def test_a_text_that_is_lost_changes_no_key(tmp_path, model_folder):
    config = dials(tmp_path / "store", model_folder)
    api.ingest([written(tmp_path / "docs")], config)
    with sqlite3.connect(tmp_path / "store" / "store.db") as db:
        db.execute("UPDATE texts SET text = 'other' WHERE chunk = (SELECT max(chunk) FROM texts)")
    before = api.status(config).manifest
    changed = updated(config, {"retrieve.embedder": str(write_embedder(tmp_path / "embedder"))})
    with pytest.raises(StoreDamaged):
        api.rekey(changed)
    assert api.status(config).manifest == before


def test_the_command_makes_keys_anew(tmp_path, model_folder, command_line):
    config = dials(tmp_path / "store", model_folder)
    api.ingest([written(tmp_path / "docs")], config)
    where = ("--store", tmp_path / "store")
    folder = write_embedder(tmp_path / "embedder")
    assert command_line("migrate", *where)[0] == 2
    code, out, _ = command_line("migrate", *where, "--embedder", folder, "--json")
    assert code == 0 and json.loads(out)["keys"]["embedder"] == str(folder)
    code, out, _ = command_line("migrate", *where, "--embedder", folder)
    assert code == 0 and "no keys to make" in out
    code, out, _ = command_line("migrate", *where, "--embedder", "mini")
    assert code == 0 and "have keys of mini" in out


def test_every_memory_is_rewritten_and_proven(store, other, tmp_path):
    before, steps = content_of(tmp_path / "store"), []
    done = api.migrate(to(store, other), on_progress=steps.append)
    after = content_of(tmp_path / "store")
    assert done.chunks == len(before[0]) == sum(done.verdicts.values()) == steps[-1].done and texts(
        after
    ) == texts(before)
    assert all(after[0][chunk_id][0] != before[0][chunk_id][0] for chunk_id in before[0])
    assert proven(to(store, other)).counts == done.verdicts
    # the store's model is the new one; still one's own
    assert api.ask(QUESTION, to(store, "")).sources[0].path == "lamp.md"
    with pytest.raises(WrongModel):
        api.ask(QUESTION, store)
    assert done.kept == str(tmp_path / "store.old") and content_of(tmp_path / "store.old") == before
    proven(updated(store, {"store": done.kept}))
    assert not sibling(tmp_path / "store", MIGRATING).exists()
    manifest = api.status(store).manifest
    assert (manifest["model"], manifest["migrated_from"]) == (str(other), store.model.id)


def kill_in_a_write(folder):
    """Leaves a store as a kill does in the middle of a write that was too large for the memory."""
    database, kept = folder / "store.db", folder.with_name("kept")
    kept.mkdir()
    with pytest.raises(KeyboardInterrupt), open_store(folder, write=True) as store:
        store._db.execute("PRAGMA cache_size = 1")
        with store.together():
            store._db.execute("UPDATE vectors SET packed = zeroblob(length(packed))")
            store._db.execute("UPDATE texts SET text = hex(zeroblob(50000))")
            for file in folder.glob("store.db*"):
                shutil.copy(file, kept)
            raise KeyboardInterrupt
    for file in kept.iterdir():
        os.replace(file, folder / file.name)
    journal = database.with_name("store.db-journal").read_bytes()
    assert journal[0] and b"0" * 1000 in database.read_bytes()


@pytest.mark.parametrize("killed", [False, True])
def test_a_store_that_is_held_is_the_new_one_after_the_switch(store, other, tmp_path, killed):
    config, before = to(store, ""), content_of(tmp_path / "store")
    with MemoryStore(config, trusted=False, say=print, on_progress=lambda at: None) as held:
        assert held.session().config.model.id == store.model.id
        api.migrate(to(store, other))
        if killed:  # the journal there is not that of the database that is open here
            kill_in_a_write(tmp_path / "store")
        assert held.session().config.model.id == str(other)
        assert held.ask(QUESTION).sources[0].path == "lamp.md"
    assert content_of(tmp_path / "store.old") == before
    proven(to(store, other))


def test_what_a_server_was_sent_comes_along(model_folder, other, tmp_path):
    config = dials(tmp_path / "store", model_folder)
    uploads = tmp_path / "store" / "uploads"
    sent = {"lamp.md": "The lamp is red.\n", "notes/fan.txt": "The fan is loud.\n"}
    (tmp_path / "store").mkdir()
    api.ingest([written(uploads, sent)], config)
    (uploads / "link.md").symlink_to(other / "config.json")
    stale = sibling(tmp_path / "store", MIGRATING) / "uploads"
    written(stale, {"gone.md": "Of a run that was killed.\n"})
    papers = content_of(tmp_path / "store")[1]
    times = {name: (uploads / name).stat().st_mtime_ns for name in sent}
    api.migrate(to(config, other), drop_old=True)
    config = to(config, "")
    assert {str(one.relative_to(uploads)) for one in uploads.rglob("*") if not one.is_dir()} == set(
        sent
    )
    assert [uploads.stat().st_mode & 0o777, (uploads / "notes").stat().st_mode & 0o777] == [
        0o700
    ] * 2
    for name, text in sent.items():
        kept = (uploads / name).stat()
        assert (uploads / name).read_text() == text
        assert (kept.st_mode & 0o777, kept.st_mtime_ns) == (0o600, times[name])
    assert content_of(tmp_path / "store")[1] == papers
    assert {source.file for source in api.ask("Which lamp?", config).sources} == {""}
    assert api.ingest([uploads], config).unchanged == 2
    (uploads / "lamp.md").write_text("The lamp is green.\n")
    assert api.ingest([uploads], config).files == 1
    done = api.restore(tmp_path / "back", config)
    assert not done.failed and (tmp_path / "back" / "lamp.md").read_text() == "The lamp is green.\n"
    assert (tmp_path / "back" / "notes" / "fan.txt").read_text() == sent["notes/fan.txt"]
    proven(config)


def test_the_vectors_of_an_encoder_are_not_those_of_another_model(store, other, tmp_path):
    made = ReadableVectors("ab" * 32, 16, "float16", bytes(8), (1, 4))
    with open_store(tmp_path / "store", write=True) as old:
        old.put_readables({one: made for one in old.chunk_ids()})
    before = content_of(tmp_path / "store")
    api.migrate(to(store, other))
    assert texts(content_of(tmp_path / "store")) == texts(before)
    with open_store(tmp_path / "store", write=False) as new:
        assert new.summary().readable == 0
        assert new.lacking_readables("ab" * 32, 16) == new.chunk_ids()
    with open_store(sibling(tmp_path / "store", OLD), write=False) as kept:
        assert kept.summary().readable == len(kept.chunk_ids())


def test_a_store_of_format_1_is_migrated_to_one_of_the_present(store, other, tmp_path):
    to_format_1(tmp_path / "store")
    before = (tmp_path / "store" / "store.db").read_bytes()
    api.migrate(to(store, other))
    proven(to(store, other))
    with open_store(tmp_path / "store", write=False) as new:
        assert new.manifest["format"] == "2" and {one.size for one in new.documents()} == {-1}
    assert (sibling(tmp_path / "store", OLD) / "store.db").read_bytes() == before


def test_again_there_is_nothing_to_do_and_the_old_can_be_dropped(store, other, tmp_path):
    api.migrate(to(store, other))
    before = content_of(tmp_path / "store")
    again = api.migrate(to(store, other))
    assert (again.chunks, again.kept) == (0, str(tmp_path / "store.old"))
    assert api.migrate(to(store, other), drop_old=True).kept == ""
    assert not (tmp_path / "store.old").exists() and content_of(tmp_path / "store") == before


def test_a_store_that_no_migration_put_there_is_not_dropped(store, other, model_folder, tmp_path):
    shutil.copytree(tmp_path / "store", tmp_path / "store.old")
    before = content_of(tmp_path / "store.old")
    with pytest.raises(UsageError, match="store.old is kept"):
        api.migrate(store, drop_old=True)  # nothing to rewrite
    shutil.rmtree(tmp_path / "store.old")
    api.migrate(to(store, other), drop_old=True)
    another = dials(tmp_path / "another", model_folder)
    api.ingest([tmp_path / "docs"], another)  # of the model that the store was migrated from
    os.rename(tmp_path / "another", tmp_path / "store.old")
    with pytest.raises(UsageError, match="store.old is kept") as refused:
        api.migrate(to(store, other), drop_old=True)
    assert str(tmp_path / "store.old") in refused.value.remedy
    assert texts(content_of(tmp_path / "store.old"))[0] == texts(before)[0]


def test_a_store_behind_a_link_is_migrated_where_it_is(store, other, tmp_path):
    before = content_of(tmp_path / "store")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link"
    link.symlink_to(tmp_path / "store")
    config = to(updated(store, {"store": str(link)}), other)
    assert api.migrate(config).kept == str(tmp_path / "store.old")
    assert link.readlink() == tmp_path / "store" and os.listdir(tmp_path / "links") == ["link"]
    assert content_of(tmp_path / "store.old") == before
    assert api.migrate(config, drop_old=True).kept == ""
    proven(config)
    assert not (tmp_path / "store.old").exists()


def test_a_store_without_text_is_decoded_with_its_old_model(tmp_path, model_folder, other):
    config = dials(tmp_path / "store", model_folder, memorize__keep_text=False)
    api.ingest([written(tmp_path / "docs")], config)
    api.migrate(to(config, other), drop_old=True)
    proven(to(config, other))
    assert api.restore(tmp_path / "back", to(config, other)).failed == ()
    assert (tmp_path / "back" / "lamp.md").read_bytes() == (
        tmp_path / "docs" / "lamp.md"
    ).read_bytes()
    again = written(tmp_path / "docs", {"lamp.md": "The lamp of the harbour is new."})
    assert api.ingest([again], dials(tmp_path / "store", other)).files == 1
    assert not any(b"harbour" in path.read_bytes() for path in (tmp_path / "store").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "docs", "store"]


def test_memories_that_can_be_read_are_written_to_be_read_for_the_new_model_too(
    tmp_path, model_folder, other
):
    config = dials(tmp_path / "store", model_folder, memorize__write="readable", memorize__steps=20)
    api.ingest([written(tmp_path / "docs", {"a.txt": "The lamp is red."})], config)
    told = updated(to(config, other), {"memorize.write": ""})
    api.migrate(told)
    manifest = api.status(told).manifest
    assert [manifest[key] for key in ("model", "write", "recipe", "template")] == [
        str(other),
        "readable",
        "readable",
        "cue",
    ]
    assert manifest["keep_text"] == "True"
    proven(told)


def test_a_kill_in_the_middle_loses_nothing_and_the_next_run_goes_on(early, other, tmp_path):
    before = content_of(tmp_path / "store")
    proven(early)
    with open_store(tmp_path / "store.migrating", write=False) as half:
        assert len(half.chunk_ids()) == 2 and half.documents() == () and half.check() == ()
    done = api.migrate(to(early, other))
    assert done.chunks == len(before[0]) - 2
    assert texts(content_of(tmp_path / "store")) == texts(before)
    proven(to(early, other))


@pytest.mark.parametrize("renamed", [False, True])
def test_a_kill_at_the_switch_leaves_one_or_the_other(late, ready, other, tmp_path, renamed):
    before = content_of(ready["whole"] / "store")
    assert content_of(tmp_path / "store") == before
    if renamed:  # what a kill between the two renames leaves
        os.rename(tmp_path / "store", tmp_path / "store.old")
        with pytest.raises(NoStore):
            api.status(late)
    done = api.migrate(to(late, other))
    assert done.chunks == 0 and texts(content_of(tmp_path / "store")) == texts(before)
    proven(to(late, other))
    assert content_of(tmp_path / "store.old") == before


def test_an_unproved_store_never_takes_the_place(early, other, tmp_path):
    os.rename(tmp_path / "store", tmp_path / "somewhere")
    with pytest.raises(NoStore):
        api.migrate(to(early, other))
    assert (tmp_path / "store.migrating").exists() and not (tmp_path / "store").exists()


def test_what_was_removed_since_the_kill_does_not_come_back(late, ready, other, tmp_path):
    with open_store(tmp_path / "store", write=True) as opened:
        opened.remove_file(str(ready["whole"] / "docs"), "lamp.md")
        opened.collect()
    api.migrate(to(late, other), drop_old=True)
    assert [one.document.path for one in api.documents(late)] == [
        "again.txt", "copy.txt", "soup/receta.txt", "tickets.jsonl#L1", "tickets.jsonl#L2",
    ]  # fmt: skip
    proven(to(late, other))
    assert b"Aldo Ruiz" not in (tmp_path / "store" / "store.db").read_bytes()


def test_a_half_migration_to_a_third_model_is_refused(early, tmp_path):
    with pytest.raises(WrongModel, match="weights"):
        api.migrate(to(early, toy.save(tmp_path / "toy-c", seed=2)))
    assert api.verify(early, structure_only=True).findings == ()


def test_what_is_in_the_way_is_never_overwritten(store, other, tmp_path):
    (tmp_path / "store.old").mkdir()
    with pytest.raises(UsageError, match="store.old is in the way"):
        api.migrate(to(store, other))
    proven(store)
    assert not sibling(tmp_path / "store", MIGRATING).exists() and OLD == ".old"


def test_nobody_else_writes_meanwhile(store, other, tmp_path):
    with open_store(tmp_path / "store", write=True), pytest.raises(StoreLocked):
        api.migrate(to(store, other))

    def write(standing):
        with pytest.raises(StoreLocked):
            api.remove(tmp_path, store)

    api.migrate(to(store, other), on_progress=write)


def test_a_damaged_memory_stops_it_with_the_old_store_as_it_was(store, other, tmp_path):
    with open_store(tmp_path / "store", write=True) as opened:
        chunk_id = opened.chunk_ids()[0]
        db = opened._db
        number = db.row("chunks", "id = ?", chunk_id)[0]
        db.execute("UPDATE texts SET text = 'other' WHERE chunk = ?", (number,))
    with pytest.raises(StoreDamaged):
        api.migrate(to(store, other))
    # and a false text with a right checksum
    with open_store(tmp_path / "store", write=True) as opened:
        insert(opened._db.connection, opened.store_id, "texts", (number, "other"))
    with pytest.raises(StoreDamaged, match="does not give its text"):
        api.migrate(to(store, other))
    assert not (tmp_path / "store.old").exists()


def test_text_that_the_new_tokenizer_loses_is_kept_as_text_or_refused(tmp_path, model_folder):
    lossy = toy.save(tmp_path / "lossy", lossy=True)
    documents = written(
        tmp_path / "docs", {"capital.txt": "The Lamp.", "small.txt": "the lamp is red."}
    )
    kept, bare = (
        dials(tmp_path / "kept", model_folder),
        dials(tmp_path / "bare", model_folder, memorize__keep_text=False),
    )
    for config in (kept, bare):
        api.ingest([documents], config)
    assert api.migrate(to(kept, lossy)).verdicts["text-only"] == 1
    assert proven(to(kept, lossy)).counts["text-only"] == 1
    with pytest.raises(InputRefused, match="keeps no text"):
        api.migrate(to(bare, lossy))
    proven(bare)


def test_another_class_of_model_and_its_own_tokens_per_vector(store, tmp_path):
    gpt2 = toy.save(tmp_path / "gpt2", kind="gpt2")
    free = replace(to(store, gpt2), memorize=replace(store.memorize, tokens_per_vector=0, steps=60))
    said = []
    api.migrate(free, say=said.append)
    proven(to(store, ""))
    manifest = api.status(store).manifest
    assert "calibrated" in manifest["tokens_per_vector_origin"] and any(
        "finding out" in line for line in said
    )
