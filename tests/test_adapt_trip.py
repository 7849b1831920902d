"""The trip of adapt: a store's chunks and questions become an adapter.

Then ask takes it, verify never sees it, rm makes it stale.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small
import toy
from random_adapter import trained

from rag_memtok.adapt import run
from rag_memtok.config import Ask
from rag_memtok.errors import InputRefused, UsageError, WrongModel
from rag_memtok.model import lora
from rag_memtok.model.lm import load
from rag_memtok.pipeline import adapters, api
from rag_memtok.pipeline.adapters import SHIPPED, Adapters
from rag_memtok.pipeline.answer import answer
from rag_memtok.pipeline.readable import ENOUGH
from rag_memtok.pipeline.reader_choice import choose_reader
from rag_memtok.pipeline.session import reads_per_passage
from rag_memtok.settings import updated
from rag_memtok.store.files import ADAPTER, ADAPTER_WORK, EARLIER_WORK, STALE
from rag_memtok.store.store import open_store

QUICK = {
    "adapt.steps": 3,
    "adapt.batch": 4,
    "adapt.rank": 4,
    "adapt.lr": 0.05,
    "adapt.questions": 2,
    "adapt.gold": 1.0,
    "adapt.least": 0.0,
}


@pytest.fixture(scope="module")
def taught(model_folder, tmp_path_factory):
    """A store with an adapter: (dials, what adapt said of it)."""
    folder = tmp_path_factory.mktemp("school")
    config = small.dials(folder / "store", model_folder)
    documents = small.written(folder / "docs")
    api.ingest([documents], config)
    data = folder / "questions.jsonl"
    rows = [
        {"question": "When was the lamp repaired?", "answers": ["March"], "file": "docs/lamp.md"},
        {"question": "Who wrote it?", "answers": ["nobody that is named"], "file": "docs/lamp.md"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    done = run.adapt(small.dials(folder / "store", model_folder, **QUICK), data, say=said.append)
    return config, done, said


@pytest.fixture
def text_reader(config, tmp_path):
    """A shipped adapter that reads text, of the store's model."""
    return trained(load(config.model), tmp_path / "text", kind="text")


@pytest.fixture
def config(taught, tmp_path):
    """The dials of a copy of it."""
    shutil.copytree(taught[0].store, tmp_path / "store")
    return small.dials(tmp_path / "store", taught[0].model.id)


def fitting(config, share, alone=0.0):
    """Says that the adapter measured `share` among others, and `alone`."""
    path = f"{config.store}/{ADAPTER}/{lora.MANIFEST}"
    with open(path, encoding="utf-8") as file:
        bond = json.load(file)
    bond["dev"] |= {"share": share, "share_alone": alone}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(bond, file)


def test_an_adapter_is_trained_into_the_store(taught):
    config, done, said = taught
    assert done.folder.endswith(ADAPTER) and done.bond.kind == "memory" and done.unplaced == 1
    assert "1 questions are left out" in said[0] and "1 questions given" in said[1]
    assert done.bond.trained_on["gold"] > 0


def test_ask_answers_with_it_and_says_so(config):
    fitting(config, 0.95)
    said = []
    with api.session(config, said.append) as session:
        found = answer(session, "When was the lamp repaired?")
        assert session.reading is not None and session.reading.table is session.lm.table
        assert session.reading.identity.weights_sha256 != session.lm.identity.weights_sha256
    assert found.reader == "memory + adapter" and "95%" in found.reader_reason and said == []


def test_status_names_it(taught, config):
    steps = taught[1].bond.steps
    assert api.status(config).adapter.startswith(f"{steps} steps, F1 ")
    shutil.rmtree(f"{config.store}/{ADAPTER}")
    assert api.status(config).adapter == ""


def test_auto_takes_it_only_where_it_measured_well_and_loads_it_only_then(config):
    fitting(config, ENOUGH - 0.01)
    with api.session(config) as session:
        assert session.adapters.memory is not None and session.reading is None
        assert answer(session, "When was the lamp repaired?").reader == "decode"
        assert "under 90%" in choose_reader(Ask(), session.store.manifest, session.adapters, 3)[1]


def test_one_memory_alone_is_judged_by_what_was_measured_alone(config):
    fitting(config, ENOUGH - 0.01, ENOUGH)
    with api.session(config) as session:
        manifest, found = session.store.manifest, session.adapters
    assert [choose_reader(Ask(), manifest, found, k)[0] for k in (1, 2)] == ["memory", "decode"]
    # written only to be decoded
    of_model = Adapters(memory=replace(found.memory, folder=SHIPPED[0]))
    assert choose_reader(Ask(), manifest, of_model, 1)[0] == "decode"
    to_be_read = {**manifest, "write": "readable"}
    assert choose_reader(Ask(), to_be_read, of_model, 1)[0] == "memory"
    assert "not measured" in choose_reader(Ask(), to_be_read, Adapters(), 1)[1]


@pytest.mark.parametrize(
    ("wanted", "read", "reader"),
    [
        ("none", "memory", "memory"),
        ("auto", "memory", "memory + adapter"),
        ("auto", "text", "text"),
    ],
)
def test_a_reader_that_is_asked_for(config, wanted, read, reader):
    dials = updated(config, {"ask.read": read, "ask.adapter": wanted})
    assert api.ask("When was the lamp repaired?", dials).reader == reader


def test_verdicts_are_those_without_it(taught, config):
    with open_store(api.store_folder(config), write=False) as store:
        before = [store.record(chunk_id).verdict for chunk_id in store.chunk_ids()]
    found = small.proven(config)
    shutil.rmtree(f"{config.store}/{ADAPTER}")
    without = small.proven(config)
    assert found.counts == without.counts and len(before) == found.chunks


def test_removing_a_document_makes_it_stale(config):
    fitting(config, 0.95)
    folder = api.store_folder(config) / ADAPTER
    for work in (ADAPTER_WORK, EARLIER_WORK):
        (folder / work).mkdir()
        (folder / work / "taught-0123456789abcdef.safetensors").write_bytes(b"text of a chunk")
    with open_store(api.store_folder(config), write=False) as store:
        file = next(one for one in store.documents() if one.file == "lamp.md")
    api.remove(Path(file.root) / file.file, config)
    assert "stale" in api.status(config).adapter
    assert (folder / STALE).exists()
    assert not (folder / ADAPTER_WORK).exists() and not (folder / EARLIER_WORK).exists()
    said = []
    found = api.ask("What rattles?", config, say=said.append)
    assert found.reader == "decode" and "have been removed" in said[0]
    small.proven(config)


def test_chunks_removed_while_it_is_trained_end_nothing_and_come_back_in_no_file(config):
    folder = api.store_folder(config) / ADAPTER
    removed = []

    def remove_one(progress):
        if not removed and progress.stage == "teaching" and progress.done:
            with open_store(api.store_folder(config), write=False) as store:
                file = next(one for one in store.documents() if one.file == "lamp.md")
            removed.append(api.remove(Path(file.root) / file.file, config))

    said = []
    dials = updated(config, QUICK)
    run.adapt(dials, say=said.append, on_progress=remove_one)
    assert removed and "removed meanwhile" in said[-1]
    assert (folder / STALE).exists() and not (folder / ADAPTER_WORK).exists()


def test_one_for_another_model_is_left_out_or_refused(config, tmp_path):
    fitting(config, 0.95)
    bond = json.loads((tmp_path / "store" / ADAPTER / lora.MANIFEST).read_text()) | {
        "weights_sha256": "0" * 64
    }
    (tmp_path / "store" / ADAPTER / lora.MANIFEST).write_text(json.dumps(bond))
    said = []
    assert api.ask("What rattles?", config, say=said.append).reader == "decode"
    assert "left out" in said[0] and "weights" in said[0]
    named = updated(
        config, {"ask.adapter": str(tmp_path / "store" / ADAPTER), "ask.read": "memory"}
    )
    with pytest.raises(WrongModel, match="weights"):
        api.ask("What rattles?", named)
    with pytest.raises(InputRefused, match="no adapter"):
        api.ask("What rattles?", updated(config, {"ask.adapter": str(tmp_path)}))


def test_those_shipped_are_taken_where_they_fit(config, tmp_path, monkeypatch, taught, text_reader):
    shutil.move(f"{config.store}/{ADAPTER}", tmp_path / "shipped")
    monkeypatch.setattr(adapters, "SHIPPED", (tmp_path / "shipped", text_reader))
    digest = taught[1].bond.template_sha256
    said = []
    with api.session(config) as session:
        found = session.adapters
        assert found.memory is not None and found.memory.folder == tmp_path / "shipped"
        assert found.text is not None and found.text.folder == text_reader
        other = adapters.find_adapters("auto", tmp_path, toy.lm_of(seed=3), digest, said.append)
        assert other == Adapters() and said == []
        monkeypatch.setattr(adapters, "SHIPPED", (tmp_path / "nowhere",))
        none = adapters.find_adapters("auto", tmp_path, session.lm, digest, said.append)
        assert none == Adapters() and said == []


@pytest.mark.parametrize(
    ("read", "reader"),
    [("memory", "memory + adapter"), ("text", "text + adapter"), ("decode", "decode + adapter")],
)
def test_each_reader_has_the_adapter_that_reads_as_it_does(
    config, monkeypatch, text_reader, read, reader
):
    monkeypatch.setattr(adapters, "SHIPPED", (text_reader,))
    dials = updated(config, {"ask.read": read})
    assert api.ask("When was the lamp repaired?", dials).reader == reader
    with api.session(dials) as session:
        chosen = session.adapters.of(read)
        own = lora.load_adapter(session.lm, chosen.folder, session.template.digest)
        assert session.reading.identity == own.identity != session.lm.identity


@pytest.mark.parametrize("passages", ["together", "apart", ""])
def test_passages_are_read_as_the_reader_of_text_was_measured_to_be_best(
    config, monkeypatch, text_reader, passages
):
    bond = json.loads((text_reader / lora.MANIFEST).read_text()) | {"passages": passages}
    (text_reader / lora.MANIFEST).write_text(json.dumps(bond))
    monkeypatch.setattr(adapters, "SHIPPED", (text_reader,))
    dials = updated(config, {"ask.read": "text", "retrieve.k": 3})
    with api.session(dials) as session:
        assert reads_per_passage(session) == (passages == "apart")
    with api.session(updated(dials, {"ask.passages": "apart"})) as session:
        assert reads_per_passage(session)


def test_one_trained_in_another_frame_is_left_out_or_refused(config, tmp_path):
    fitting(config, 0.95)
    file = tmp_path / "store" / ADAPTER / lora.MANIFEST
    bond = json.loads(file.read_text())
    for frame_sha256 in ("0" * 64, ""):
        file.write_text(json.dumps(bond | {"frame_sha256": frame_sha256}))
        said = []
        assert api.ask("What rattles?", config, say=said.append).reader == "decode"
        assert "left out" in said[0] and "the question's frame" in said[0]
    named = updated(config, {"ask.adapter": str(file.parent), "ask.read": "memory"})
    with pytest.raises(WrongModel, match="frame"):
        api.ask("What rattles?", named)


def test_given_questions_find_the_chunk_that_answers_them(tmp_path):
    texts = {
        "a": "The lamp was repaired in March.",
        "b": "The lamp was sold in May.",
        "c": "Fans rattle.",
    }
    rows = [
        {
            "question": "When was the lamp sold?",
            "answers": ["May"],
            "context": "\n".join(texts.values()),
        },
        {"question": "When was the lamp repaired?", "answers": None, "context": texts["a"]},
        {"question": "What do fans do?", "answers": [], "context": texts["c"]},
        {"question": "When was it lost?", "answers": ["June"], "context": texts["c"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, unplaced = run.read_questions(tmp_path / "rows.jsonl", texts)
    assert [(one.chunk_id, one.answers) for one in found] == [
        ("b", ("May",)),
        ("a", ()),
        ("c", (run.UNSAID,)),
    ] and unplaced == 1


def test_a_bad_row_is_named_by_its_line(tmp_path):
    good = {"question": "What do fans do?", "answers": [], "context": "Fans rattle."}
    lines = ["", json.dumps(good), "", json.dumps(good | {"question": ""})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputRefused, match="line 4: no question"):
        run.read_questions(tmp_path / "rows.jsonl", {"a": "Fans rattle."})


def test_one_that_reads_text_needs_a_folder(config, tmp_path):
    dials = updated(config, QUICK | {"adapt.kind": "text"})
    with pytest.raises(UsageError, match="no place in the store"):
        run.adapt(dials)
    done = run.adapt(dials, out=tmp_path / "reader")
    text = updated(config, {"ask.adapter": done.folder, "ask.read": "text"})
    assert api.ask("What rattles?", text).reader == "text + adapter"
    assert not (tmp_path / "store" / ADAPTER / ADAPTER_WORK).exists()


def test_a_folder_of_other_things_is_refused_before_anything_is_loaded(config, tmp_path):
    mine = tmp_path / "mine"
    (mine / "work").mkdir(parents=True)
    files = {mine / "README.md": "my notes", mine / "work" / "thesis.txt": "my thesis"}
    for file, text in files.items():
        file.write_text(text)
    absent = updated(config, {"model.id": str(tmp_path / "no model")})
    with pytest.raises(UsageError, match="there is something in"):
        run.adapt(absent, out=mine)
    with pytest.raises(UsageError, match="there is something in"):
        run.adapt(absent, out=mine / "README.md")
    (mine / lora.MANIFEST).write_text("{}")  # a manifest of something else
    with pytest.raises(InputRefused, match="not that of an adapter"):
        run.adapt(absent, out=mine)
    assert {file: file.read_text() for file in files} == files


def test_a_shipped_one_that_is_damaged_is_told_and_left_out(config, tmp_path, monkeypatch):
    shutil.rmtree(f"{config.store}/{ADAPTER}")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / lora.MANIFEST).write_text("{}")
    monkeypatch.setattr(adapters, "SHIPPED", (tmp_path / "shipped",))
    said = []
    assert api.ask("What rattles?", config, say=said.append).reader == "decode"
    assert "asking without it" in said[0]
