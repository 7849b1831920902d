"""Whole trips on a folder of documents, with the toy model; and what stops them half way.

The trips are ingest, status, ask, verify, restore, remove.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import files
import pytest
import torch
import toy

from rag_memtok.config import Config, Memorize, Model
from rag_memtok.datatypes import PROVEN, StoredDocument
from rag_memtok.documents.names import join_name
from rag_memtok.documents.scan import scan
from rag_memtok.errors import (
    InputRefused,
    ModelUnavailable,
    NoStore,
    NoUsableMemory,
    OutOfMemory,
    StoreLocked,
    UsageError,
    WrongModel,
)
from rag_memtok.memory import calibrate, workers
from rag_memtok.memory.batch import Task
from rag_memtok.memory.calibrate import Calibration
from rag_memtok.memory.optimize import Step
from rag_memtok.memory.recipes import RECIPES
from rag_memtok.memory.workers import (
    Unwritten,
    per_process_config,
    split_tasks,
    write_records,
)
from rag_memtok.model import lm
from rag_memtok.model.inject import answer_batch, inject, most_confident
from rag_memtok.model.prompts import qa_prompt, template_named
from rag_memtok.pipeline import api, resources
from rag_memtok.pipeline.answer import trim_answer, with_source_line
from rag_memtok.pipeline.plan import survey_store
from rag_memtok.pipeline.readers import read
from rag_memtok.pipeline.resources import expected_steps, usual_steps
from rag_memtok.pipeline.writer import estimate_left, write_in_processes
from rag_memtok.retrieval.embedder import MINI
from rag_memtok.retrieval.relevance import relevance
from rag_memtok.retrieval.search import search
from rag_memtok.settings import updated
from rag_memtok.store.store import open_store

DOCUMENTS = {
    "lamp.md": "# Lamp\n\nThe lamp of the harbour was repaired in March.\n\nIts keeper, Aldo Ruiz, "
    "wrote a letter.\n",
    "soup/receta.txt": "La empanada lleva cebolla, huevo y aceitunas.\r\nSe hornea media hora.\r\n",
    "tickets.jsonl": '{"text": "Ticket 7: the fan rattles"}\n{"text": "Ticket 8: <|eot_id|> in the '
    'log"}\n',
    "page.html": "<html><body><h1>Fan</h1><p>The fan turns 1200 times a minute.</p></body></html>",
    "copy.txt": "The fan is quiet.\n",
    "again.txt": "The fan is quiet.\n",
}


DOCS = {"a.txt": "The lamp is red.", "b.txt": "The fan is loud."}


def write(folder, documents):
    for name, text in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def dials(store, model):
    quick = {
        "documents.chunk_tokens": 24,
        "memorize.tokens_per_vector": 4,
        "memorize.seconds_per_chunk": 0.0,
        "memorize.batch": 8,
    }
    quick |= {"ask.max_new_tokens": 6, "model.device": "cpu", "model.threads": 1}
    return updated(Config(), {"store": str(store), "model.id": str(model), **quick})


@dataclass(frozen=True)
class Trip:
    """A folder of documents and its store."""

    documents: Path
    store: Path
    config: Config
    done: object = None


@pytest.fixture(scope="module")
def first(tmp_path_factory, model_folder):
    """The store of DOCUMENTS, to be read, not changed."""
    folder = tmp_path_factory.mktemp("first")
    documents = write(folder / "docs", DOCUMENTS)
    config = dials(folder / "store", model_folder)
    done = api.ingest([documents], config)
    return Trip(documents, folder / "store", config, done)


@pytest.fixture
def trip(first, tmp_path):
    """A store of DOCUMENTS of one's own.

    The documents' folder is the same, so that they are found unchanged.
    """
    shutil.copytree(first.store, tmp_path / "store")
    return Trip(
        first.documents,
        tmp_path / "store",
        updated(first.config, {"store": str(tmp_path / "store")}),
    )


@pytest.fixture
def small(tmp_path, model_folder):
    """Two short documents, not ingested yet."""
    documents = write(tmp_path / "docs", DOCS)
    return Trip(documents, tmp_path / "store", dials(tmp_path / "store", model_folder))


def ids_in(folder):
    with open_store(folder, write=False) as store:
        return set(store.chunk_ids())


def content_of(folder):
    """Everything a reader of the store can see, but the times."""
    with open_store(folder, write=False) as store:
        records = {chunk_id: store.record(chunk_id) for chunk_id in store.chunk_ids()}
        memories = {
            chunk_id: (record.packed, record.pins, store.text(chunk_id))
            for chunk_id, record in records.items()
        }
        return memories, store.documents(), store.occurrences(records)


def proves_everything(config):
    found = api.verify(config)
    assert found.findings == () and found.exit_code == 0
    assert (
        found.checked == found.chunks == sum(found.counts.values()) and set(found.counts) <= PROVEN
    )
    assert found.documents == found.documents_checked == found.documents_proven
    return found


# --- the whole trip


def test_the_ingest_says_what_it_did(first):
    done = first.done
    assert (
        done.files,
        done.unchanged,
        done.removed,
        done.skipped,
        done.over_limit,
        done.reused,
    ) == (6, 0, 0, (), (), 0)
    assert done.chunks == sum(done.verdicts.values()) == len(ids_in(first.store))
    assert (
        set(done.verdicts) <= PROVEN - {"text-only"}
        and done.verdicts.get("exact", 0) >= 0.9 * done.chunks
    )
    assert done.text_positions > 3 * done.positions > 0
    assert done.tokens_per_vector == 4


def test_everything_is_proven_and_counted_once(first):
    found = proves_everything(first.config)
    assert found.counts == first.done.verdicts and found.documents == 7
    status = api.status(first.config)
    assert (status.summary.chunks, status.summary.documents, status.summary.orphans) == (
        found.chunks,
        7,
        0,
    )
    assert status.summary.verdicts == found.counts
    assert status.bytes == sum(path.stat().st_size for path in first.store.rglob("*"))
    assert status.manifest["model"] == first.config.model.id


def test_the_documents_come_back_byte_for_byte(first, tmp_path):
    restored = api.restore(tmp_path / "back", first.config)
    assert restored.failed == ()
    for name in ("lamp.md", "soup/receta.txt", "copy.txt", "again.txt"):
        assert (tmp_path / "back" / name).read_bytes() == (first.documents / name).read_bytes()
    assert (
        tmp_path / "back" / "tickets.jsonl#L2.txt"
    ).read_text() == "text: Ticket 8: <|eot_id|> in the log"
    assert len(restored.written) == len(list((tmp_path / "back").rglob("*.*"))) == 7
    # again, over the same
    assert api.restore(tmp_path / "back", first.config).written == restored.written
    (tmp_path / "back" / "copy.txt").write_text("mine")
    with pytest.raises(UsageError, match="copy.txt"):
        api.restore(tmp_path / "back", first.config)
    assert (tmp_path / "back" / "copy.txt").read_text() == "mine"


@pytest.mark.parametrize("reader", ["decode", "memory", "text", "auto"])
def test_every_reader_answers_with_the_right_source_first(first, reader):
    pieces = []
    found = api.ask(
        "Who repaired the lamp of the harbour in March?",
        updated(first.config, {"ask.read": reader}),
        pieces.append,
    )
    assert isinstance(found.answer, str) and "".join(pieces).strip() == found.answer
    source = found.sources[0]
    assert source.path == "lamp.md"
    assert source.lines == "line 3" or source.lines.startswith("lines 1")
    text = DOCUMENTS["lamp.md"][slice(*source.span)]
    assert "repaired" in text
    assert found.reader == (reader if reader != "auto" else "decode") and found.reader_reason
    assert (found.context_positions < found.text_positions / 3) == (reader == "memory")
    assert found.prompt_positions > found.context_positions
    assert [one.score for one in found.sources] == sorted(
        (one.score for one in found.sources), reverse=True
    )


def test_decoding_gives_the_answer_that_the_text_gives(first):
    questions = [
        "Who is the keeper of the lamp?",
        "¿Qué lleva la empanada de cebolla?",
        "How often does the fan turn in a minute?",
    ]
    for question in questions:
        decoded, text = (
            api.ask(question, updated(first.config, {"ask.read": reader}))
            for reader in ("decode", "text")
        )
        assert (decoded.answer, decoded.prompt_positions, decoded.sources) == (
            text.answer,
            text.prompt_positions,
            text.sources,
        )


@pytest.mark.parametrize("reader", ["decode", "memory"])
def test_apart_the_surest_of_single_answers_is_kept_with_its_one_source(first, reader):
    question, dials = (
        "Who is the keeper of the lamp?",
        updated(first.config, {"ask.read": reader, "retrieve.k": 4}),
    )
    together = api.ask(question, dials)
    pieces = []
    found = api.ask(question, updated(dials, {"ask.passages": "apart"}), pieces.append)
    assert (
        (found.passages, together.passages) == ("apart", "together")
        and len(pieces) == 1
        and pieces[0].strip() == found.answer
    )
    assert len(found.sources) == 1 < len(together.sources) and found.sources[0] in together.sources
    assert (found.context_positions, found.text_positions) == (
        together.context_positions,
        together.text_positions,
    )
    assert found.prompt_positions > together.prompt_positions
    with api.session(dials) as session:
        hits = search(
            session.store, session.index, session.embedder, question, session.config.retrieve
        )
        lm, words = session.lm, qa_prompt(session.lm)
        singles = [with_source_line(lm, words, read(session, [hit], reader)[0]) for hit in hits]
        prompts = [inject(lm, words, [one], lm.encode(question)) for one in singles]
        said = answer_batch(lm, words, prompts, dials.ask.max_new_tokens)
        answers = [lm.decode(trim_answer(lm, one.tokens)) for one in said]
        kept = most_confident(
            [(text, one.mean_logprob) for text, one in zip(answers, said, strict=True)],
            # a memory's own vectors do not say what their text is
            None
            if reader == "memory"
            else [relevance(question, session.store.text(hit.chunk_id)) for hit in hits],
        )
        assert (
            found.answer == answers[kept].strip() and found.sources[0].chunk == hits[kept].chunk_id
        )


def test_one_passage_is_neither_together_nor_apart(first):
    one = updated(first.config, {"retrieve.k": 1, "ask.passages": "apart"})
    assert api.ask("Who is the keeper of the lamp?", one).passages == "together"


def test_together_the_best_passage_stands_nearest_to_the_question(first):
    question, dials = (
        "Who is the keeper of the lamp?",
        updated(first.config, {"ask.read": "text", "retrieve.k": 3}),
    )
    with api.session(dials) as session:
        hits = search(
            session.store, session.index, session.embedder, question, session.config.retrieve
        )
        lm, words = session.lm, qa_prompt(session.lm)
        passages = [with_source_line(lm, words, read(session, [hit], "text")[0]) for hit in hits]
        prompt = inject(lm, words, passages[::-1], lm.encode(question))
        tokens = list(toy.answer_tokens(lm, words, prompt, dials.ask.max_new_tokens))
        said = lm.decode(trim_answer(lm, tokens)).strip()
    assert api.ask(question, dials).answer == said


def test_a_model_may_say_how_it_reads_best(first, tmp_path):
    model = Path(shutil.copytree(first.config.model.id, tmp_path / "model"))
    described = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**described, "rag_memtok_passages": "apart"}))
    dials = updated(first.config, {"model.id": str(model), "retrieve.k": 3})
    assert api.ask("Who is the keeper of the lamp?", dials).passages == "apart"
    assert (
        api.ask(
            "Who is the keeper of the lamp?", updated(dials, {"ask.passages": "together"})
        ).passages
        == "together"
    )


def test_the_same_text_twice_is_one_memory_with_two_places(first):
    with open_store(first.store, write=False) as store:
        both = [
            store.document_chunks(str(first.documents), name) for name in ("copy.txt", "again.txt")
        ]
        assert both[0][0].chunk_id == both[1][0].chunk_id
        assert len(store.occurrences([both[0][0].chunk_id])[both[0][0].chunk_id]) == 2


def test_what_the_store_does_not_know_is_not_answered(first, tmp_path):
    with pytest.raises(NoUsableMemory):
        api.ask("zzyzx qwrtp", first.config)
    for question in ("", " \n", "why " * 400):
        with pytest.raises(UsageError, match="valid: 1 to 256"):
            api.ask(question, first.config)
    with pytest.raises(NoStore):
        api.ask("Anything?", updated(first.config, {"store": str(tmp_path / "none")}))


def test_as_many_memories_as_fit_are_used_and_that_is_said(first):
    said = []
    config = updated(first.config, {"retrieve.k": 20, "ask.max_new_tokens": 360})
    found = api.ask("lamp fan letter cebolla ticket keeper", config, say=said.append)
    assert 0 < len(found.sources) < len(ids_in(first.store)) and any(
        "fit into the context" in line for line in said
    )
    with pytest.raises(NoUsableMemory, match="not even one"):
        api.ask("lamp", updated(config, {"ask.max_new_tokens": 500}))
    with pytest.raises(NoUsableMemory, match="not even one"):
        api.ask("lamp", updated(config, {"ask.max_new_tokens": 500, "ask.passages": "apart"}))


# --- again


def test_an_unchanged_folder_writes_nothing_and_needs_no_model(trip):
    before = content_of(trip.store)
    with open_store(trip.store, write=False) as store:
        state = store.state
    gone = updated(
        trip.config, {"model.id": "/no/such/model", "retrieve.embedder": "/no/such/embedder"}
    )
    done = api.ingest([trip.documents], gone)
    assert (done.files, done.chunks, done.unchanged, done.verdicts) == (0, 0, 6, {})
    assert api.estimate([trip.documents], gone).chunks == 0
    with open_store(trip.store, write=False) as store:
        assert store.state == state
    assert content_of(trip.store) == before


def test_an_edited_file_replaces_its_old_chunks_and_keeps_what_stayed(small):
    api.ingest([small.documents], small.config)
    old = ids_in(small.store)
    (small.documents / "a.txt").write_text("The lamp is blue.")
    done = api.ingest([small.documents], small.config)
    assert (done.files, done.unchanged, done.chunks) == (1, 1, 1)
    assert len(ids_in(small.store)) == 2 and len(ids_in(small.store) & old) == 1
    found = api.ask(
        "What is the lamp?", updated(small.config, {"ask.read": "text", "retrieve.k": 1})
    )
    assert found.sources[0].path == "a.txt"
    proves_everything(small.config)
    (small.documents / "c.txt").write_text("The lamp is blue.")  # known text, new file
    done = api.ingest([small.documents], small.config)
    assert (done.files, done.chunks, done.reused) == (1, 0, 1)


def test_an_edited_file_replaces_what_was_ingested_of_it_with_another_folder(small):
    write(small.documents, {"deep/c.txt": "The door is red.", "deep/d.txt": "The door is old."})
    api.ingest([small.documents / "deep"], small.config)
    (small.documents / "deep" / "c.txt").write_text("The door is blue.")
    api.ingest([small.documents], small.config)
    with open_store(small.store, write=False) as store:
        known = {(Path(one.root).name, one.file) for one in store.documents()}
        assert known == {
            ("docs", name) for name in ("a.txt", "b.txt", "deep/c.txt", "deep/d.txt")
        } | {("deep", "d.txt")}
        assert "The door is red." not in {store.text(chunk_id) for chunk_id in store.chunk_ids()}


@pytest.fixture
def outdated(small):
    """A store in which a.xlsx is as an older version read it, and b.txt as it is."""
    (small.documents / "a.txt").write_text("| Reading |\n| --- |\n| 3.141593e+00 |")
    api.ingest([small.documents], small.config)
    (small.documents / "a.txt").unlink()
    data = files.xlsx({"Lab": [["Reading"], [3.14159265]]})
    (small.documents / "a.xlsx").write_bytes(data)
    with open_store(small.store, write=True) as store:
        wrong = next(one for one in store.documents() if one.path == "a.txt")
        places = store.document_chunks(wrong.root, "a.txt")
        store.replace_file(
            wrong.root,
            "a.xlsx",
            [
                replace(
                    wrong,
                    file="a.xlsx",
                    path="a.xlsx",
                    file_sha256=hashlib.sha256(data).hexdigest(),
                    extractor="xlsx/1 markitdown 0.1.8 openpyxl 3.1.5 pandas 3.1.1",
                )
            ],
            [replace(place, path="a.xlsx") for place in places],
        )
        store.remove_file(wrong.root, "a.txt")
    return small


def texts_in(folder):
    with open_store(folder, write=False) as store:
        return {store.text(chunk_id) for chunk_id in store.chunk_ids()}


def test_what_an_older_version_read_is_read_again(outdated):
    said, right = [], "## Lab\n| Reading |\n| --- |\n| 3.14159265 |"
    assert api.status(outdated.config).outdated == 1
    estimated = api.estimate([outdated.documents], outdated.config)
    assert (estimated.files, estimated.unchanged) == (1, 1)
    done = api.ingest([outdated.documents], outdated.config, say=said.append)
    assert (done.files, done.unchanged, done.skipped) == (1, 1, ())
    told = "files read again because an older version of this program had read them: 1"
    assert said.count(told) == 1
    with open_store(outdated.store, write=False) as store:
        (root,) = {one.root for one in store.documents()}
        places = store.document_chunks(root, "a.xlsx")
        assert "".join(store.text(place.chunk_id) or "" for place in places) == right
    assert not any("3.141593e+00" in text for text in texts_in(outdated.store))
    assert api.status(outdated.config).outdated == 0
    proves_everything(outdated.config)
    again = api.ingest([outdated.documents], outdated.config, say=said.append)
    assert (again.files, again.unchanged, said.count(told)) == (0, 2, 1)


def test_a_library_that_changed_and_a_newer_version_are_no_reason_to_read_again(outdated):
    with open_store(outdated.store, write=True) as store:
        (old,) = (one for one in store.documents() if one.path == "a.xlsx")
        places = store.document_chunks(old.root, "a.xlsx")
    for extractor in ("xlsx/2 openpyxl 3.0.1", "xlsx/20 openpyxl 9", "scroll/1", "xlsx", ""):
        with open_store(outdated.store, write=True) as store:
            store.replace_file(old.root, "a.xlsx", [replace(old, extractor=extractor)], places)
        assert api.status(outdated.config).outdated == 0
        assert api.ingest([outdated.documents], outdated.config).files == 0


def test_what_an_older_version_read_of_a_file_with_another_folder_goes(outdated):
    api.ingest([outdated.documents.parent], outdated.config)
    with open_store(outdated.store, write=False) as store:
        assert {one.file for one in store.documents()} == {"b.txt", "docs/a.xlsx", "docs/b.txt"}
    assert not any("3.141593e+00" in text for text in texts_in(outdated.store))


def test_the_command_line_says_what_an_older_version_read(outdated, command_line):
    store = ("--store", outdated.store)
    code, out, _ = command_line("status", *store)
    assert code == 0 and "1 document that an older version of this program read otherwise" in out
    assert json.loads(command_line("status", *store, "--json")[1])["outdated"] == 1
    code, out, err = command_line("ingest", outdated.documents, *store)
    assert code == 0 and "1 new or changed, 1 unchanged" in out
    assert err.count("an older version of this program had read them: 1") == 1
    assert "outdated" not in command_line("status", *store)[1]
    assert json.loads(command_line("status", *store, "--json")[1])["outdated"] == 0


def test_a_deleted_file_is_told_and_goes_with_prune(small):
    api.ingest([small.documents], small.config)
    (small.documents / "a.txt").unlink()
    done = api.ingest([small.documents], small.config)
    assert (
        [file for _, file in done.vanished] == ["a.txt"]
        and done.removed == 0
        and len(ids_in(small.store)) == 2
    )
    done = api.ingest([small.documents], small.config, prune=True)
    assert done.removed == 1 and len(ids_in(small.store)) == 1
    assert api.ingest([small.documents], small.config, prune=True).removed == 0
    proves_everything(small.config)
    assert b"The lamp" not in (small.store / "store.db").read_bytes()


@pytest.mark.parametrize("data", [b"", b" \r\n"])
def test_a_file_that_was_emptied_is_told_and_goes_with_prune(small, data, command_line):
    api.ingest([small.documents], small.config)
    (small.documents / "a.txt").write_bytes(data)
    done = api.ingest([small.documents], small.config)
    assert (done.removed, [file for _, file in done.vanished]) == (0, ["a.txt"])
    _, _, err = command_line("ingest", small.documents, "--store", small.store)
    assert "emptied, still in the store (--prune removes them)" in err and "former" not in err
    done = api.ingest([small.documents], small.config, prune=True)
    assert done.removed == 1 and len(done.skipped) == 1
    assert b"The lamp" not in (small.store / "store.db").read_bytes()
    proves_everything(small.config)


def test_a_file_of_another_kind_that_was_emptied_goes_with_prune(small):
    (small.documents / "c.xlsx").write_bytes(files.xlsx({"Lab": [["Reading"], ["7 volts"]]}))
    api.ingest([small.documents], small.config)
    (small.documents / "c.xlsx").write_bytes(b"")
    done = api.ingest([small.documents], small.config, prune=True)
    assert (done.removed, [one.reason for one in done.skipped]) == (1, ["empty"])
    assert {one.name for one in api.documents(small.config)} == {*DOCS}


def test_what_is_skipped_and_still_answers_says_so(small):
    (small.documents / "rows.jsonl").write_text('{"text": "Ticket 7"}\n')
    api.ingest([small.documents], small.config)
    write(small.documents, {"a.txt": "The lamp\0", "rows.jsonl": "no row\n", "new.txt": "\0"})
    done = api.ingest([small.documents], small.config, prune=True)
    note = "(its former text is still in the store)"
    former = {one.path: one.reason.endswith(note) for one in done.skipped}
    assert former == {"a.txt": True, "new.txt": False, "rows.jsonl#L1": True}
    assert done.removed == 0 and len(api.documents(small.config)) == 3


def test_an_ingest_that_is_refused_prunes_nothing(small, tmp_path):
    api.ingest([small.documents], small.config)
    (small.documents / "a.txt").unlink()
    (small.documents / "c.txt").write_text("A third text.")
    before = content_of(small.store)
    other = str(toy.save(tmp_path / "other", seed=1))
    changes = [
        ({"documents.chunk_tokens": 32}, UsageError),
        ({"model.id": "/no/such"}, ModelUnavailable),
        ({"model.id": other}, WrongModel),
    ]
    for change, error in changes:
        with pytest.raises(error):
            api.ingest([small.documents], updated(small.config, change), prune=True)
        assert content_of(small.store) == before
    assert api.ingest([small.documents], small.config, prune=True).removed == 1


def test_what_is_excluded_now_or_cannot_be_looked_for_is_not_gone(small):
    write(small.documents, {"deep/c.txt": "A third text.", "deep/d.txt": "A fourth text."})
    api.ingest([small.documents], small.config)
    (small.documents / "deep" / "d.txt").unlink()
    for exclude in ("a.txt", "deep/"):
        done = api.ingest(
            [small.documents], updated(small.config, {"documents.exclude": [exclude]})
        )
        assert [file for _, file in done.vanished] == ["deep/d.txt"]
    (small.documents / ".gitignore").write_text("b.txt\n")
    if os.geteuid():
        (small.documents / "deep").chmod(0)
        assert api.ingest([small.documents], small.config, prune=True).removed == 0
        (small.documents / "deep").chmod(0o700)
    shutil.rmtree(small.documents / "deep")
    done = api.ingest([small.documents], small.config, prune=True)
    assert (
        sorted(file for _, file in done.vanished) == ["deep/c.txt", "deep/d.txt"]
        and len(ids_in(small.store)) == 2
    )


def test_a_file_is_forgotten_through_a_link_as_it_was_ingested_through_one(small, tmp_path):
    (tmp_path / "link").symlink_to(small.documents)
    (small.documents / "alias.txt").symlink_to("a.txt")
    api.ingest([tmp_path / "link"], small.config)
    assert api.remove(tmp_path / "link" / "b.txt", small.config) == (f"{small.documents}/b.txt",)
    assert api.remove(tmp_path / "link" / "alias.txt", small.config) == (
        f"{small.documents}/alias.txt",
    )
    assert api.remove(tmp_path / "link", small.config) == (f"{small.documents}/a.txt",)
    # as an ingest of the root of all folders keeps it
    with open_store(small.store, write=True) as store:
        store.replace_file(
            "/",
            "etc/a.txt",
            [StoredDocument("/", "etc/a.txt", "etc/a.txt", "0" * 64, "0" * 64, 0, 0, "text/1")],
            [],
        )
    assert api.remove(Path("/etc/a.txt"), small.config) == ("/etc/a.txt",)


def damage_document(store, file):
    """Changes a column of a document behind the store's back, and not its checksum."""
    with open_store(store, write=True) as opened:
        opened._db.execute(
            "UPDATE documents SET characters = characters + 1 WHERE file = ?", (file.encode(),)
        )


@pytest.mark.parametrize("path", ["", "a.txt"])
def test_a_file_whose_document_is_damaged_is_forgotten_too(small, path):
    api.ingest([small.documents], small.config)
    damage_document(small.store, "a.txt")
    gone = api.remove(small.documents / path, small.config)
    assert gone == tuple(f"{small.documents}/{name}" for name in ([path] if path else DOCS))
    assert b"The lamp" not in (small.store / "store.db").read_bytes()


def test_a_file_whose_document_is_damaged_is_forgotten_by_the_name_in_the_list(small):
    api.ingest([small.documents], small.config)
    damage_document(small.store, "a.txt")
    assert api.remove(Path("a.txt"), small.config) == (f"{small.documents}/a.txt",)
    assert b"The lamp" not in (small.store / "store.db").read_bytes()


def test_a_deleted_file_whose_document_is_damaged_goes_with_prune(small):
    api.ingest([small.documents], small.config)
    damage_document(small.store, "a.txt")
    (small.documents / "a.txt").unlink()
    done = api.ingest([small.documents], small.config, prune=True)
    assert done.removed == 1 and [file for _, file in done.vanished] == ["a.txt"]
    assert b"The lamp" not in (small.store / "store.db").read_bytes()
    proves_everything(small.config)


def test_a_damaged_name_that_no_file_can_have_is_that_of_a_file_that_is_gone(small):
    api.ingest([small.documents], small.config)
    with open_store(small.store, write=True) as store:
        store._db.execute("UPDATE documents SET file = x'610062' WHERE file = ?", (b"a.txt",))
    assert api.ingest([small.documents], small.config, prune=True).removed == 1
    proves_everything(small.config)


def test_a_deleted_file_ingested_with_a_folder_above_goes_with_prune(small):
    within, beside = small.documents / "within", small.documents / "beside"
    for folder in (within, beside):
        folder.mkdir()
        (folder / "key.md").write_text(f"The key of {folder.name} hangs behind the door.")
        (folder / "stays.md").write_text(f"A stone lies {folder.name}.")
    api.ingest([small.documents], small.config)
    (within / "key.md").unlink(), (beside / "key.md").unlink()
    assert api.ingest([within], small.config, prune=True).removed == 1
    names = {one.name for one in api.documents(small.config)}
    assert "within/key.md" not in names and {"within/stays.md", "beside/key.md"} <= names


def test_a_deleted_file_of_a_folder_within_goes_with_prune(small):
    write(small.documents, {"sub/c.txt": "The third lamp.", "sub/d.txt": "A fourth text."})
    api.ingest([small.documents / "sub"], small.config)
    api.ingest([small.documents / "a.txt"], small.config)
    done = api.ingest([small.documents], small.config, prune=True)
    assert (done.removed, done.vanished) == (0, ())
    (small.documents / "sub" / "c.txt").unlink()
    done = api.ingest([small.documents], small.config, prune=True)
    assert done.removed == 2  # that of either root
    with open_store(small.store, write=False) as store:
        assert {join_name(one.root, one.file) for one in store.documents()} == {
            f"{small.documents}/{name}" for name in (*DOCS, "sub/d.txt")
        }
    assert b"third lamp" not in (small.store / "store.db").read_bytes()


def test_what_was_ingested_of_a_folder_within_alone_goes_with_prune_of_the_outer(small):
    write(small.documents, {"sub/c.txt": "The third lamp."})
    api.ingest([small.documents / "sub"], small.config)
    (small.documents / "sub" / "c.txt").unlink()
    assert api.ingest([small.documents], small.config, prune=True).removed == 1
    assert {one.name for one in api.documents(small.config)} == {*DOCS}


def test_a_part_of_a_file_is_not_forgotten_and_its_file_is_by_its_name(small, tmp_path):
    rows = write(tmp_path / "rows", {"t.jsonl": '{"text": "Ticket 7"}\n{"text": "Ticket 8"}\n'})
    api.ingest([small.documents, rows], small.config)
    assert [one.name for one in api.documents(small.config)][2:] == ["t.jsonl#L1", "t.jsonl#L2"]
    for part in ("t.jsonl#L1", rows / "t.jsonl#L2"):
        with pytest.raises(UsageError, match="part of t.jsonl") as refused:
            api.remove(Path(part), small.config)
        assert refused.value.remedy == "rag-memtok rm t.jsonl forgets all 2 documents of the file"
    assert len(api.documents(small.config)) == 4
    assert api.remove(Path("t.jsonl"), small.config) == (f"{rows}/t.jsonl",)
    assert [one.name for one in api.documents(small.config)] == [*DOCS]


def test_removing_a_file_or_a_folder_forgets_it(small):
    write(small.documents, {"deep/c.txt": "A third text.", "deep/d.txt": "The fan is loud."})
    api.ingest([small.documents], small.config)
    with pytest.raises(UsageError, match="e.txt"):
        api.remove(small.documents / "e.txt", small.config)
    with pytest.raises(UsageError):
        api.remove(small.documents / "dee", small.config)
    assert api.remove(small.documents / "deep", small.config) == tuple(
        f"{small.documents}/deep/{name}.txt" for name in "cd"
    )
    assert len(ids_in(small.store)) == 2  # one of the two texts is in b.txt too
    assert (small.documents / "deep" / "c.txt").exists()
    api.remove(small.documents / "b.txt", small.config)
    assert len(ids_in(small.store)) == 1
    proves_everything(small.config)


def test_without_a_number_of_threads_torch_keeps_its_own(small):
    before = torch.get_num_threads()
    api.ingest([small.documents], updated(small.config, {"model.threads": 0}))
    assert torch.get_num_threads() == before == 1


def test_a_memory_that_is_to_be_read_is_expected_to_take_all_steps():
    recorded = Calibration(4, "known", 110)
    assert [expected_steps(Memorize(steps=steps), recorded) for steps in (50, 300, 0)] == [
        50,
        110,
        110,
    ]
    assert expected_steps(Memorize(write="readable"), recorded) == RECIPES["readable"].steps
    assert expected_steps(Memorize(), None) == RECIPES["margin"].steps


def test_an_estimate_writes_nothing(small):
    found = api.estimate([small.documents], small.config)
    assert (found.files, found.chunks, found.unchanged) == (2, 2, 0) and found.seconds > 0
    assert not small.store.exists()
    api.ingest([small.documents / "a.txt"], small.config)
    before = content_of(small.store)
    found = api.estimate([small.documents], small.config)
    assert (found.files, found.chunks, found.unchanged) == (1, 1, 1)
    assert content_of(small.store) == before


# --- half way


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_ingest_keeps_what_is_done_and_goes_on(first, model_folder, tmp_path, after):
    config = updated(dials(tmp_path / "store", model_folder), {"memorize.batch": 2})
    calls = itertools.count()

    def interrupt(standing):
        if standing.done > after or next(calls) > 5000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.ingest([first.documents], config, on_progress=interrupt)
    kept = ids_in(tmp_path / "store")
    assert len(kept) == after + 1
    partial = api.verify(config)
    assert not {finding.kind for finding in partial.findings} & {"mismatch", "damaged"}
    done = api.ingest([first.documents], config)
    assert done.chunks == first.done.chunks - len(kept)
    assert ids_in(tmp_path / "store") == ids_in(first.store)
    (_, documents, places), (_, their_documents, their_places) = (
        content_of(tmp_path / "store"),
        content_of(first.store),
    )
    assert (documents, places) == (their_documents, their_places)
    proves_everything(config)


def test_alone_and_on_one_thread_two_ingests_are_bit_identical(small, tmp_path):
    stores = [tmp_path / name for name in ("one", "two")]
    for store in stores:
        api.ingest(
            [small.documents],
            updated(small.config, {"store": str(store), "memorize.batch": 1, "model.threads": 1}),
        )
    one, two = map(content_of, stores)
    assert one == two


# --- several processes


@pytest.fixture
def crew(first, tmp_path):
    """The settings of `first`, written by two processes into a store that is not there yet."""
    return updated(
        first.config,
        {
            "store": str(tmp_path / "crew"),
            "memorize.processes": 2,
            "memorize.batch": 1,
            "model.threads": 1,
        },
    )


def test_who_writes_a_memory_makes_no_difference(first, crew, tmp_path):
    seen = []
    done = api.ingest([first.documents], crew, on_progress=seen.append)
    assert seen[-1].done == seen[-1].total == done.chunks
    alone = updated(crew, {"store": str(tmp_path / "alone"), "memorize.processes": 1})
    assert dict(done.verdicts) == dict(api.ingest([first.documents], alone).verdicts)
    assert content_of(tmp_path / "crew") == content_of(tmp_path / "alone")
    assert multiprocessing.active_children() == []


def test_what_a_process_cannot_do_is_raised_by_the_caller(toy_lm, crew):
    nowhere = updated(crew, {"model.id": "./nowhere"})
    tasks = [Task(str(number), (70, 71, 72), 1) for number in range(3)]
    with pytest.raises(ModelUnavailable, match="nowhere") as caught:
        list(
            write_records(
                toy_lm, template_named("bare", toy_lm), nowhere, tasks, lambda progress: None
            )
        )
    assert caught.value.remedy and "Traceback" in caught.value.__notes__[0]
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_process_that_was_killed_is_told_and_the_next_run_goes_on(first, crew, tmp_path):
    def kill(progress):
        for child in multiprocessing.active_children()[:1]:
            child.kill()

    with pytest.raises(OutOfMemory, match="signal 9"):
        api.ingest([first.documents], crew, on_progress=kill)
    assert multiprocessing.active_children() == []
    api.ingest([first.documents], crew)
    assert ids_in(tmp_path / "crew") == ids_in(first.store)
    proves_everything(crew)


def die_amid_a_message(pipe):
    os.write(pipe.fileno(), struct.pack("!i", 1000) + b"of these, so many")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_amid_a_message_is_told():
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=die_amid_a_message, args=(theirs,))
    process.start()
    theirs.close()
    with pytest.raises(OutOfMemory, match="signal 9"):
        list(workers._receive({ours: process}))


def test_an_interrupt_ends_every_process(first, crew):
    def interrupt(standing):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.ingest([first.documents], crew, on_progress=interrupt)
    assert multiprocessing.active_children() == []


def test_the_shares_are_alike_and_the_threads_are_shared(crew):
    tasks = [Task(str(length), (70,) * length, 1) for length in (1, 9, 5, 7, 3)]
    shares = split_tasks(
        tasks, updated(crew, {"model.threads": 4, "memorize.processes": 2}), "bare"
    )
    assert [[len(task.tokens) for task in share.tasks] for share in shares] == [[9, 5, 1], [7, 3]]
    assert [share.config.model.threads for share in shares] == [2, 2]
    assert [
        share.number
        for share in split_tasks(tasks[:1], updated(crew, {"memorize.processes": 3}), "bare")
    ] == [0]
    assert (
        per_process_config(
            updated(crew, {"memorize.processes": 1, "model.threads": 0})
        ).model.threads
        == 0
    )


def test_progress_counts_up_to_all(small):
    seen = []
    api.ingest([small.documents], small.config, on_progress=seen.append)
    assert (seen[-1].done, seen[-1].total, seen[-1].seconds_left) == (2, 2, 0)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    for fact in ("exact", "step"):
        assert [one.facts[fact] for one in seen] == sorted(one.facts[fact] for one in seen)


@pytest.mark.parametrize(
    ("rows", "steps", "done", "usual", "left"),
    [
        (7, 20, 0, 80, 60.0),  # a quarter of what is usual: three times as long again
        (7, 79, 0, 80, 79 / 3),  # more than three quarters: as if they were just those
        (7, 200, 0, 80, 200 / 3),  # not as usual at all
        (7, 20, 0, 0, None),  # nothing known, nothing done
        (0, 80, 7, 80, 0.0),
    ],
)
def test_the_time_left_is_told_by_steps_where_chunks_share_them(rows, steps, done, usual, left):
    step = Step(rows=rows, right=0, steps=steps, seconds=float(steps), row_steps=7 * steps)
    found = estimate_left(step, done=done, total=7, usual=usual)
    assert found == (None if left is None else pytest.approx(left))


def test_the_time_left_is_within_what_was_spent_on_chunks_that_are_done():
    """One of seven ended at step 68, the others were nearly through: no six times as long."""
    step = Step(rows=6, right=0, steps=68, seconds=170.0, row_steps=7 * 68)
    assert estimate_left(step, done=1, total=7, usual=79) < 60
    assert 120 < estimate_left(step, done=1, total=7, usual=0) < 180  # not knowing what is usual
    # a long run: 100 of 200 done in 77 steps each
    late = Step(rows=8, right=3, steps=1000, seconds=1000.0, row_steps=8000)
    for usual in (0, 40, 300):
        assert estimate_left(late, done=100, total=200, usual=usual) == pytest.approx(950, abs=80)


@pytest.mark.parametrize("each, said", [(0.1, ""), (9.0, "about 2 min here"), (90.0, "Ctrl-C")])
def test_what_takes_long_is_said_before_it_begins(first, tmp_path, monkeypatch, each, said):
    lines = []
    monkeypatch.setattr(resources, "estimate_seconds", lambda *_: each)
    config = updated(dials(tmp_path / "store", first.config.model.id), {"memorize.batch": 2})

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.ingest([first.documents], config, on_progress=stop, say=lines.append)
    assert (said in lines[-1]) if said else not [line for line in lines if " min here" in line]


def test_a_second_writer_is_refused_and_readers_go_on(trip):
    with open_store(trip.store, write=True), pytest.raises(StoreLocked, match="process"):
        api.ingest([trip.documents], trip.config)
    with open_store(trip.store, write=True):
        assert api.status(trip.config).summary.documents == 7


def test_one_bad_file_never_stops_the_rest(small):
    (small.documents / "bad.txt").write_bytes(b"\xc3\xa9 caf\xe9")
    (small.documents / "picture.png").write_bytes(b"\x89PNG")
    (small.documents / "empty.txt").write_bytes(b"")
    done = api.ingest([small.documents], small.config)
    assert done.files == 2 and {one.path for one in done.skipped} >= {"bad.txt", "picture.png"}
    proves_everything(small.config)
    with pytest.raises(InputRefused):
        api.ingest(
            [small.documents / "bad.txt"], updated(small.config, {"store": str(small.store) + "2"})
        )
    assert not Path(str(small.store) + "2").exists()


def test_a_file_of_a_later_century_is_written(small, command_line):
    os.utime(small.documents / "a.txt", ns=(0, 10_413_792_000 * 10**9))
    api.ingest([small.documents], small.config)
    code, out, _ = command_line("ingest", small.documents, "--store", small.store)
    assert code == 0 and "2 files unchanged" in out
    with open_store(small.store, write=False) as store:
        stored = {one.file: (one.size, one.modified) for one in store.documents()}
    assert stored["a.txt"] == (16, -1) and stored["b.txt"][1] > 0


def test_a_file_with_the_name_of_anothers_part_is_skipped_with_its_reason(small, command_line):
    write(
        small.documents, {"t.jsonl": '{"n": "one"}\n', "t.jsonl#L1": "two", "t.jsonl#L2": "three"}
    )
    given = sorted(small.documents.iterdir())
    done = api.ingest(given, small.config)
    reason = "its name is that of a part of t.jsonl: rename one of them"
    assert [(one.path, one.reason) for one in done.skipped] == [("t.jsonl#L1", reason)]
    assert done.files == 4 and done.unchanged == 0
    code, _, err = command_line("ingest", *given, "--store", small.store)
    assert code == 3 and reason in err
    write(small.documents, {"t.jsonl": '{"n": "one"}\n{"n": "other"}\n'})
    done = api.ingest(given, small.config)
    assert [(one.path, one.reason) for one in done.skipped] == [
        ("t.jsonl", "its part t.jsonl#L2 has the name of a file: rename one of them"),
        ("t.jsonl#L1", reason),
    ]
    with open_store(small.store, write=False) as store:
        stored = {one.path: one.file for one in store.documents()}
    assert stored == {name: name for name in ("a.txt", "b.txt", "t.jsonl#L2")} | {
        "t.jsonl#L1": "t.jsonl"
    }
    proves_everything(small.config)


def test_nothing_is_created_where_nothing_can_be_read_or_loaded(small):
    with pytest.raises(InputRefused):
        api.ingest([small.documents / "none"], small.config)
    with pytest.raises(ModelUnavailable):
        api.ingest([small.documents], updated(small.config, {"model.id": "/no/such/model"}))
    assert not small.store.exists()


# --- text that is kept, or not


def test_without_text_the_memories_answer_and_the_text_is_nowhere(small):
    config = updated(small.config, {"memorize.keep_text": False})
    api.ingest([small.documents], config)
    proves_everything(config)
    assert not any(
        b"The lamp" in path.read_bytes() for path in small.store.rglob("*") if path.is_file()
    )
    one = "The lamp is red."
    found = api.ask(one, updated(config, {"retrieve.k": 1}))
    assert found.sources[0].path == "a.txt"
    with pytest.raises(UsageError, match="keeps no text"):
        api.ask(one, updated(config, {"ask.read": "text"}))
    assert api.restore(small.store.parent / "back", config).failed == ()
    assert (small.store.parent / "back" / "a.txt").read_text() == one


def test_a_store_that_was_made_without_text_never_gets_any(small):
    without = updated(small.config, {"memorize.keep_text": False})
    api.ingest([small.documents], without)
    (small.documents / "a.txt").write_text("The lamp is blue.")
    # as watch does, which cannot say --no-text
    assert api.ingest([small.documents], small.config).files == 1
    assert not any(
        b"The lamp" in path.read_bytes() for path in small.store.rglob("*") if path.is_file()
    )
    (small.documents / "a.txt").write_text("The lamp is green.")
    assert api.ingest([small.documents], without).files == 1


def test_a_store_with_text_refuses_to_keep_none_unless_it_is_too_old_to_know(small):
    without = updated(small.config, {"memorize.keep_text": False})
    api.ingest([small.documents], small.config)
    (small.documents / "a.txt").write_text("The lamp is blue.")
    for trip in (api.ingest, api.estimate):
        with pytest.raises(UsageError, match="this store keeps it"):
            trip([small.documents], without)
    with open_store(small.store, write=True) as store:
        store._db.execute("DELETE FROM manifest WHERE key = 'keep_text'")
    api.ingest([small.documents], without)
    assert (
        b"The lamp is blue" not in (small.store / "store.db").read_bytes()
        and b"The fan" in (small.store / "store.db").read_bytes()
    )
    proves_everything(small.config)


def test_text_that_the_tokenizer_does_not_give_back_is_kept_as_text(tmp_path):
    documents = write(
        tmp_path / "docs", {"capital.txt": "The Lamp.", "small.txt": "the lamp is red."}
    )
    config = dials(tmp_path / "store", toy.save(tmp_path / "lossy", lossy=True))
    done = api.ingest([documents], config)
    assert done.verdicts["text-only"] == 1 and sum(done.verdicts.values()) == 2
    assert proves_everything(config).counts["text-only"] == 1
    for reader in ("decode", "memory", "text"):
        found = api.ask("Which lamp?", updated(config, {"ask.read": reader}))
        assert {one.path for one in found.sources} == set(("capital.txt", "small.txt"))
    api.restore(tmp_path / "back", config)
    assert (tmp_path / "back" / "capital.txt").read_text() == "The Lamp."
    without = updated(config, {"memorize.keep_text": False, "store": str(tmp_path / "other")})
    done = api.ingest([documents], without)
    assert done.files == 1 and [one.path for one in done.skipped] == ["capital.txt"]
    assert b"The Lamp." not in (tmp_path / "other" / "store.db").read_bytes()


def test_what_is_done_of_a_file_that_was_given_up_is_kept_until_it_is_not_wanted(small):
    """The engine gives up one chunk of the file; the next ingest writes that one alone."""

    def gives_up(writer, tasks):
        first, *rest = tasks
        yield Unwritten(first.key, "its worker ended without a word")
        yield from write_in_processes(writer, rest)

    def standing():
        with open_store(small.store, write=False) as store:
            return store.summary().chunks, store.summary().orphans

    api.ingest([small.documents], small.config)
    before, _ = standing()
    large = small.documents / "large.txt"
    large.write_text("\n\n".join(f"The fan of room {n} turns {n * 7} times." for n in range(6)))
    done = api.ingest([small.documents], small.config, engine=gives_up)
    assert len(done.failed) == 1 and done.files == 0 and done.chunks > 2
    assert standing() == (before, done.chunks)
    again = api.ingest([small.documents], small.config)
    assert (again.files, again.chunks, again.reused) == (1, 1, done.chunks)
    assert standing() == (before + done.chunks + 1, 0)
    large.write_text(large.read_text().replace("room", "hall"))
    api.ingest([small.documents], small.config, engine=gives_up)
    large.unlink()
    api.ingest([small.documents], small.config, prune=True)
    assert standing() == (before, 0)
    proves_everything(small.config)


def test_the_store_is_read_for_damage_once_however_many_roots_there_are(small):
    api.ingest([small.documents], small.config)
    told = []
    other = write(small.documents.parent / "other", {"c.txt": "new"})
    with open_store(small.store, write=False) as store:
        store._db.connection.set_trace_callback(told.append)
        paths = [small.documents / "a.txt", small.documents, other]
        scanned = scan(paths, small.config.documents, small.store)
        assert len({file.root for file in scanned.files}) == 2
        survey_store(scanned, paths, store, small.config)
    assert sum("FROM vectors WHERE chunk >" in statement for statement in told) == 1


def test_a_chunk_with_more_pins_than_the_user_allows_keeps_its_file_out(small):
    (small.documents / "c.txt").write_text("zq 8842 WXYZ /// 3f9a")
    hard = {"memorize.steps": 1, "memorize.max_pins": 0}
    done = api.ingest([small.documents], updated(small.config, hard))
    assert (
        len(done.over_limit) == 3
        and done.files == 0
        and "--max-pins is 0" in done.over_limit[0].reason
    )
    assert done.chunks == 0  # what was not kept is not called written
    done = api.ingest([small.documents], updated(small.config, {**hard, "memorize.max_pins": -1}))
    assert done.over_limit == () and done.files == 3 and done.verdicts.get("exact", 0) < 3
    proves_everything(small.config)


# --- another model


def test_another_model_is_refused_by_everything_and_called_incomparable(trip, tmp_path):
    other = updated(trip.config, {"model.id": str(toy.save(tmp_path / "other", seed=1))})
    (tmp_path / "new.txt").write_text("New text.")
    before = content_of(trip.store)
    for refused in (
        lambda: api.ask("Who repaired the lamp?", other),
        lambda: api.ingest([tmp_path / "new.txt"], other),
        lambda: api.restore(tmp_path / "back", other),
    ):
        with pytest.raises(WrongModel, match="weights .*in the store, .* here"):
            refused()
    found = api.verify(other)
    assert (
        found.exit_code == 6
        and [finding.kind for finding in found.findings] == ["incomparable"]
        and found.checked == 0
    )
    assert api.verify(other, structure_only=True).findings == ()
    assert content_of(trip.store) == before and not (tmp_path / "back").exists()


@pytest.mark.parametrize("change", [{"model.dtype": "bfloat16"}, {"memorize.template": "cue"}])
def test_another_dtype_or_template_is_another_model(trip, change):
    with pytest.raises(WrongModel):
        api.ask("Who repaired the lamp?", updated(trip.config, change))
    assert api.verify(updated(trip.config, change)).exit_code == 6


def test_another_tokenizer_is_another_model(trip, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trip.config.model.id, folder)
    # the same, elsewhere
    assert api.verify(updated(trip.config, {"model.id": str(folder)})).exit_code == 0
    toy.tokenizer(chat=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(WrongModel, match="the tokenizer"):
        api.ask("Who repaired the lamp?", updated(trip.config, {"model.id": str(folder)}))


def test_another_embedder_is_refused(trip, tmp_path):
    shutil.copytree(MINI, tmp_path / "embedder")
    same = updated(trip.config, {"retrieve.embedder": str(tmp_path / "embedder")})
    assert api.ask("Who repaired the lamp?", same).sources
    (tmp_path / "embedder" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(WrongModel, match="embedder"):
        api.ask("Who repaired the lamp?", same)


def test_the_store_remembers_its_model(trip):
    named = api.ask(
        "Who repaired the lamp?",
        updated(trip.config, {"model.id": "", "memorize.tokens_per_vector": 0}),
    )
    assert named.sources[0].path == "lamp.md"
    assert api.verify(updated(trip.config, {"model.id": ""})).exit_code == 0


# --- other ways of writing


@pytest.mark.parametrize(
    "change",
    [
        {"memorize.template": "cue"},
        {"memorize.codec": "float32"},
        {"memorize.recipe": "sastre2025", "documents.chunk_tokens": 8},
        {"model.dtype": "bfloat16"},
    ],
)
def test_a_store_written_in_another_way_is_proven_and_answers(small, change):
    api.ingest([small.documents], updated(small.config, change))
    as_written = updated(small.config, {"model.id": "", "documents.chunk_tokens": 0})
    proves_everything(as_written)
    assert api.ask("What is the lamp?", as_written).sources[0].path == "a.txt"
    (small.documents / "c.txt").write_text("One more.")
    api.ingest([small.documents], as_written)
    proves_everything(as_written)


def test_a_model_without_rotary_positions_is_written_and_verified(small, tmp_path):
    config = updated(small.config, {"model.id": str(toy.save(tmp_path / "gpt2", kind="gpt2"))})
    done = api.ingest([small.documents], config)
    assert done.verdicts == {"exact": 2}
    proves_everything(config)


def test_an_unknown_model_is_calibrated_and_the_store_says_so(small):
    said = []
    config = updated(small.config, {"memorize.tokens_per_vector": 0, "memorize.steps": 60})
    done = api.ingest([small.documents], config, say=said.append)
    manifest = api.status(config).manifest
    assert done.tokens_per_vector == int(manifest["tokens_per_vector"]) in (2, 4, 8)
    assert "calibrated" in manifest["tokens_per_vector_origin"] and any(
        "exact" in line for line in said
    )
    proves_everything(config)


def test_what_is_known_of_the_embedded_model_follows_from_the_steps_the_recipe_and_the_codec():
    """More steps fit more tokens into a vector; fewer than any record has take the least.

    What nobody measured is not known.
    """
    model = lm.load(Model(id="mini", threads=1))
    template = template_named("bare", model)
    found = {
        steps: calibrate.find_known(model, template, 128, Memorize(steps=steps))
        for steps in (0, 60, 300, 1000)
    }
    chosen = [
        row["tokens_per_vector"]
        for row in json.loads(calibrate.KNOWN.read_text())
        if (row["model"], row["template"], row["recipe"]) == ("mini-1", "bare", "margin")
    ]
    assert len(chosen) > 1 and found[60].tokens_per_vector == found[300].tokens_per_vector == min(
        chosen
    )
    assert found[1000].tokens_per_vector == found[0].tokens_per_vector == max(chosen)
    assert calibrate.find_known(model, template, 128, Memorize(codec="float16")) == found[0]
    assert calibrate.find_known(
        model, template, 128, Memorize(codec="int4")
    ).tokens_per_vector < max(chosen)
    assert calibrate.find_known(model, template, 96, Memorize()) is None
    assert calibrate.find_known(model, template, 128, Memorize(recipe="cross-entropy")) is None
    # what holds more tokens a vector holds fewer in no more steps; not the other way round
    config = updated(Config(), {"documents.chunk_tokens": 128})
    steps = [
        usual_steps(model, template, updated(config, {"memorize.tokens_per_vector": size}))
        for size in (0, 2, max(chosen), max(chosen) + 1)
    ]
    assert steps == [found[0].steps] * 3 + [0]
