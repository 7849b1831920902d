"""Readable vectors in a store: made, read, renewed, and audited with what they are made of."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import small
from random_adapter import reading_vectors, trained

from rag_memtok.datatypes import TEXT_ONLY, Hit
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.memory.encoder import encode_planned, unpack_readable
from rag_memtok.memory.windows import count_windows
from rag_memtok.model import lora
from rag_memtok.model.lm import load
from rag_memtok.model.prompts import REFUSAL
from rag_memtok.pipeline import adapters, api
from rag_memtok.pipeline.adapters import Adapter
from rag_memtok.pipeline.answer import answer, prepare
from rag_memtok.pipeline.export_reader import export_reader
from rag_memtok.pipeline.readable import measured_shares, widest_readable_window
from rag_memtok.pipeline.readers import read
from rag_memtok.pipeline.session import reads_per_passage
from rag_memtok.retrieval.relevance import in_best_sentence, relevance, zoomed
from rag_memtok.retrieval.search import search
from rag_memtok.settings import updated
from rag_memtok.store.store import open_store

QUESTION = "When was the lamp of the harbour repaired?"


@pytest.fixture(scope="module")
def shipped(model_folder, tmp_path_factory):
    """An adapter with an encoder, as one that ships with the model."""
    lm = load(small.dials("unused", model_folder).model)
    folder = tmp_path_factory.mktemp("shipped") / "reader"
    return reading_vectors(lm, folder, share_4=0.95, share_2=0.97)


@pytest.fixture(autouse=True)
def _shipped(shipped, monkeypatch):
    monkeypatch.setattr(adapters, "SHIPPED", (shipped,))


@pytest.fixture(scope="module")
def ingested(model_folder, shipped, tmp_path_factory):
    """A new store: nothing is told, so that what was measured decides."""
    folder = tmp_path_factory.mktemp("readable")
    config = small.dials(folder / "store", model_folder)
    documents = small.written(folder / "docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "SHIPPED", (shipped,))
        api.ingest([documents], config)
    return folder


@pytest.fixture
def config(ingested, model_folder, tmp_path):
    """The dials of a copy of it."""
    shutil.copytree(ingested / "store", tmp_path / "store")
    return small.dials(tmp_path / "store", model_folder)


def records(config):
    with open_store(store(config), write=False) as opened:
        return [opened.record(one) for one in opened.chunk_ids()]


def store(config):
    return api.store_folder(config)


def told(folder, **dev):
    """A copy of the adapter that measured otherwise."""
    bond = json.loads((folder / lora.MANIFEST).read_text()) | {"dev": dev}
    (folder / lora.MANIFEST).write_text(json.dumps(bond))


def test_every_chunk_has_as_many_as_the_widest_window_that_is_read_well(config):
    found = [one for one in records(config) if one.codec != TEXT_ONLY]
    assert found and {one.readable.window for one in found} == {4}
    assert all(one.readable.shape[0] == count_windows(one.tokens, 4) for one in found)
    assert api.status(config).summary.readable == len(found)


def test_what_a_reader_of_text_measured_is_no_window(shipped, tmp_path):
    """A trained one has "share_alone" and the like, of a memory's own vectors."""
    folder = shutil.copytree(shipped, tmp_path / "adapter")
    told(folder, share_alone=0.9, share_4=0.95, share_among=0.8)
    adapter = Adapter(folder, lora.read_manifest(folder))
    assert list(measured_shares(adapter)) == [(4, 0.95)] and widest_readable_window(adapter) == 4


def test_ask_reads_them_and_shows_the_text_they_stand_for(config):
    with api.session(config) as session:
        found = answer(session, QUESTION)
        cited = [session.store.record(one.chunk) for one in found.sources]
        assert session.reading is not None
    assert found.reader == "memory + adapter" and "95% of reading text" in found.reader_reason
    assert found.refused or (found.grounded is not None and all(found.texts))
    if found.passages == "together" and cited:
        assert found.context_positions == sum(one.readable.shape[0] for one in cited)
    assert found.context_positions < found.text_positions


def test_what_was_not_measured_to_be_read_well_is_decoded(config, shipped, tmp_path, monkeypatch):
    other = shutil.copytree(shipped, tmp_path / "other")
    told(other, share_4=0.89)
    monkeypatch.setattr(adapters, "SHIPPED", (other,))
    with api.session(config) as session:
        found = answer(session, QUESTION)
    assert found.reader == "decode + adapter" and "89%" in found.reader_reason
    told(other)
    with api.session(config) as session:
        assert "was not measured" in answer(session, QUESTION).reader_reason
    new = updated(config, {"store": str(tmp_path / "new")})
    api.ingest([small.written(tmp_path / "docs")], new)
    assert {one.readable for one in records(new)} == {None}
    asked_for = updated(config, {"ask.read": "memory"})
    with api.session(asked_for) as session:
        assert answer(session, QUESTION).reader == "memory + adapter"


def test_the_audit_makes_them_again(config):
    found = small.proven(config)
    assert found.readable == {"same": found.checked - found.counts.get("text-only", 0)}


def swapped(config):
    """Exchanges the vectors of two chunks of as many tokens, or nearly."""
    some = [one for one in records(config) if one.readable]
    one, other = some[0], some[1]
    with open_store(store(config), write=True) as opened:
        opened.put_readables({one.chunk_id: other.readable, other.chunk_id: one.readable})
    return 2


def one_number_changed(config):
    """Gives a chunk the vectors of its text with one token changed."""
    (one,) = [r for r in records(config) if r.readable][:1]
    lm = load(config.model)
    with open_store(store(config), write=True) as opened:
        tokens = lm.encode(opened.text(one.chunk_id))
        tokens[3] = tokens[3] % 300 + 20
        encoder = adapters.load_encoder_of(adapters.shipped_adapters(lm, "").vectors, lm)
        vectors = adapters.encoders.encode_readable(encoder, tokens, 4)
        opened.put_readables({one.chunk_id: vectors})
    return 1


def cut_short(config):
    """Takes a vector from a chunk."""
    (one,) = [r for r in records(config) if r.readable][:1]
    rows, width = one.readable.shape
    packed = one.readable.packed[: -width * 2]
    with open_store(store(config), write=True) as opened:
        fewer = replace(one.readable, packed=packed, shape=(rows - 1, width))
        opened.put_readables({one.chunk_id: fewer})
    return 1


@pytest.mark.parametrize("change", [swapped, one_number_changed, cut_short])
def test_the_audit_finds_vectors_of_another_text(config, change):
    count = change(config)
    found = api.verify(config)
    assert found.readable["mismatch"] == count and found.exit_code == 5
    assert {one.kind for one in found.findings} == {"mismatch"}
    assert all("readable vectors" in one.reason for one in found.findings)
    # what the memories themselves give back is as it was
    assert found.documents_proven == found.documents and "mismatch" not in found.counts


def test_without_their_encoder_they_cannot_be_audited_and_are_not_read(config, monkeypatch):
    monkeypatch.setattr(adapters, "SHIPPED", ())
    found = api.verify(config)
    assert set(found.readable) == {"incomparable"} and found.exit_code == 6
    assert found.documents_proven == found.documents
    with api.session(config) as session:
        assert answer(session, QUESTION).reader == "decode"


def test_who_answers_changes_neither_what_is_audited_nor_what_a_store_gets(
    config, ingested, tmp_path
):
    alone = updated(config, {"ask.adapter": "none"})
    count = len(records(config))
    found = api.verify(alone)
    assert found.readable == {"same": count} and found.exit_code == 0
    more = small.written(tmp_path / "more", {"well.md": "The well behind the barn is nine deep."})
    api.ingest([more], alone)
    assert len(records(config)) > count and all(one.readable for one in records(config))


def test_passages_stand_as_the_reader_of_vectors_was_measured_to_be_best(
    config, shipped, tmp_path, monkeypatch
):
    """And not as that of text, which is another one here."""
    text = trained(load(config.model), tmp_path / "text", kind="text")
    vectors = shutil.copytree(shipped, tmp_path / "vectors")
    for folder, passages in ((text, "apart"), (vectors, "together")):
        bond = json.loads((folder / lora.MANIFEST).read_text()) | {"passages": passages}
        (folder / lora.MANIFEST).write_text(json.dumps(bond))
    monkeypatch.setattr(adapters, "SHIPPED", (text, vectors))
    ways = {"auto": False, "text": True, "decode": True, "memory": False, "zoomed": False}
    for way, apart in ways.items():
        with api.session(updated(config, {"ask.read": way, "retrieve.k": 3})) as session:
            assert reads_per_passage(session) is apart, way


def test_a_store_without_any_gets_them_when_it_is_told(ingested, model_folder, tmp_path):
    config = small.dials(tmp_path / "store", model_folder, memorize__readable=0)
    documents = [ingested / "docs"]
    api.ingest(documents, config)
    before = records(config)
    assert {one.readable for one in before} == {None}
    assert small.proven(config).readable == {}
    with api.session(config) as session:
        assert answer(session, QUESTION).reader == "decode + adapter"
    said = []
    wanted = updated(config, {"memorize.readable": 2})
    api.ingest(documents, wanted, say=said.append)
    after = records(config)
    assert said == [f"chunks with new readable vectors: {len(after)}"]
    assert {one.readable.window for one in after} == {2}
    assert [(r.packed, r.pins, r.verdict) for r in after] == [
        (r.packed, r.pins, r.verdict) for r in before
    ]
    api.ingest(documents, wanted, say=said.append)
    assert len(said) == 1 and small.proven(config).readable == {"same": len(after)}


def test_another_encoder_renews_them_and_writes_no_memory(
    config, ingested, shipped, tmp_path, monkeypatch
):
    lm = load(config.model)
    other = reading_vectors(lm, tmp_path / "other", seed=5, share_4=0.95)
    monkeypatch.setattr(adapters, "SHIPPED", (other,))
    with api.session(config) as session:
        assert answer(session, QUESTION).reader == "decode + adapter"  # they are not of this one
    before = records(config)
    api.ingest([ingested / "docs"], updated(config, {"memorize.readable": 4}))
    after = records(config)
    assert [one.packed for one in after] == [one.packed for one in before]
    assert {one.readable.encoder for one in after if one.readable} == {
        json.loads((other / lora.MANIFEST).read_text())["encoder_sha256"]
    }
    assert small.proven(config).readable == {"same": len([r for r in after if r.readable])}
    with api.session(config) as session:
        assert answer(session, QUESTION).reader == "memory + adapter"


def test_a_store_without_text_has_them_too_and_shows_what_a_memory_decodes_to(
    ingested, model_folder, tmp_path
):
    config = small.dials(tmp_path / "store", model_folder, memorize__keep_text=False)
    api.ingest([ingested / "docs"], config)
    small.proven(config)
    with api.session(config) as session:
        found = answer(session, "lamp harbour repaired March keeper")
    assert found.reader == "memory + adapter" and (found.refused or all(found.texts))
    api.ingest([ingested / "docs"], updated(config, {"memorize.readable": 2}))
    assert {one.readable.window for one in records(config) if one.readable} == {2}
    assert set(small.proven(config).readable) == {"same"}


def test_an_export_carries_them(config, tmp_path):
    api.export(tmp_path / "all.safetensors", config)
    there = updated(config, {"store": str(tmp_path / "there")})
    api.import_(tmp_path / "all.safetensors", there, trusted=True)
    pairs = zip(records(config), records(there), strict=True)
    assert all(one.readable == other.readable for one, other in pairs)
    small.proven(there)


def test_they_are_refused_where_there_is_no_encoder(config, ingested, monkeypatch, tmp_path):
    monkeypatch.setattr(adapters, "SHIPPED", ())
    new = updated(config, {"store": str(tmp_path / "new"), "memorize.readable": 4})
    with pytest.raises(UsageError, match="--readable cannot be had"):
        api.ingest([ingested / "docs"], new)
    assert not (tmp_path / "new").exists()


def test_an_encoder_that_is_not_the_readers_is_refused(config, shipped, tmp_path, monkeypatch):
    other = shutil.copytree(shipped, tmp_path / "other")
    content = bytearray((other / "encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "encoder.safetensors").write_bytes(bytes(content))
    monkeypatch.setattr(adapters, "SHIPPED", (other,))
    with pytest.raises(InputRefused, match="not the one its reader was trained with"):
        api.verify(config)


def test_the_vectors_in_the_prompt_are_the_stored_ones(config):
    with api.session(config) as session:
        hits = search(
            session.store, session.index, session.embedder, QUESTION, session.config.retrieve
        )
        for one in read(session, hits, "memory"):
            assert np.array_equal(one.passage, unpack_readable(one.record.readable))


@pytest.mark.parametrize("passages", ["together", "apart"])
def test_what_is_said_from_them_is_copied_from_the_text_that_is_kept(config, passages):
    asked = updated(config, {"ask.read": "memory", "ask.passages": passages, "retrieve.k": 3})
    with api.session(asked) as session:
        texts = [session.store.text(one.hit.chunk_id) for one in prepare(session, QUESTION).used]
        whole = texts if passages == "apart" else ["\n".join(texts)]
        assert [one.text for one in prepare(session, QUESTION).copied] == [
            " ".join(text.split()) for text in whole
        ]


def test_what_is_said_is_free_where_a_text_is_lacking(config):
    def copied():
        with api.session(asked) as session:
            prepared = prepare(session, QUESTION)
            return [source is not None for source in prepared.copied], prepared.used

    asked = updated(config, {"ask.read": "memory", "ask.passages": "together", "retrieve.k": 3})
    found, used = copied()
    assert found == [True]
    with closing(sqlite3.connect(store(config) / "store.db")) as db, db:
        chunk = "(SELECT number FROM chunks WHERE id = ?)"
        db.execute(
            f"UPDATE texts SET text = 'x' || text WHERE chunk = {chunk}", (used[0].hit.chunk_id,)
        )
    found, used = copied()
    assert found == [False] and len(used) == 3


@pytest.mark.parametrize("passages", ["together", "apart"])
def test_unfolded_reads_the_stored_vectors_and_the_best_sentence_as_text(config, passages):
    dials = {"ask.read": "unfolded", "ask.passages": passages, "retrieve.k": 3}
    with api.session(updated(config, dials)) as session:
        lm, found = session.lm, answer(session, QUESTION)
        some = prepare(session, QUESTION).used
        texts = [lm.encode(session.store.text(one.record.chunk_id)) for one in some]
        groups = [[text] for text in texts] if passages == "apart" else [texts]
        plain = [own for group in groups for own in in_best_sentence(lm, group, QUESTION)]
        plans = [session.encoder.plan([text], 4)[0] for text in texts]
    fitting = [relevance(QUESTION, one.text) > 0 for one in some]
    assert any(fitting) and sum(map(any, plain)) == (sum(fitting) if passages == "apart" else 1)
    for one, text, own, windows in zip(some, texts, plain, plans, strict=True):
        stored, rows, start = unpack_readable(one.record.readable), [], 0
        for vector, length in zip(stored, windows, strict=True):
            tokens = text[start : start + length]
            spelt = any(own[start : start + length])
            rows += list(lm.embed(tokens).numpy()) if spelt else [vector]
            start += length
        assert np.array_equal(one.passage, np.stack(rows))
        assert len(stored) <= len(rows) < len(text) or not any(own)
    assert found.reader == "unfolded + adapter" and [one.text for one in some] == [
        lm.decode(text) for text in texts
    ]
    assert found.context_positions == sum(len(one.passage) for one in some)
    said, whole = (" ".join(one.split()) for one in (found.answer, "\n".join(o.text for o in some)))
    assert said in whole or REFUSAL.startswith(said)


def test_unfolded_needs_readable_vectors_and_the_text(config, ingested, model_folder, tmp_path):
    without = small.dials(tmp_path / "without", model_folder, memorize__readable=0)
    bare = small.dials(tmp_path / "bare", model_folder, memorize__keep_text=False)
    for made, missing in ((without, "no readable vectors"), (bare, "keeps no text")):
        api.ingest([ingested / "docs"], made)
        with (
            pytest.raises(UsageError, match=missing),
            api.session(updated(made, {"ask.read": "unfolded"})) as session,
        ):
            answer(session, QUESTION)


def test_vectors_that_cannot_be_of_the_text_are_named_and_the_text_is_read(config):
    cut_short(config)
    said = []
    dials = updated(config, {"ask.read": "unfolded", "retrieve.k": 50})
    with api.session(dials, said.append) as session:
        hits = [Hit(one, 1.0, 1.0, ()) for one in session.store.chunk_ids()]
        some = read(session, hits, "unfolded", QUESTION)
        (named,) = [one for one in said if "read as text" in one]
        (cut,) = [one for one in some if not isinstance(one.passage, np.ndarray)]
        assert cut.record.chunk_id[:12] in named
        assert list(cut.passage) == session.lm.encode(cut.text) and len(some) == len(hits)


def test_auto_reads_unfolded_where_that_was_measured_to_be_read_well(
    config, shipped, ingested, model_folder, tmp_path, monkeypatch
):
    other = shutil.copytree(shipped, tmp_path / "other")
    monkeypatch.setattr(adapters, "SHIPPED", (other,))
    bare = small.dials(tmp_path / "bare", model_folder, memorize__keep_text=False)
    told(other, share_4=0.95)
    api.ingest([ingested / "docs"], bare)
    for made, passages, share, reader in (
        (config, "apart", 0.91, "unfolded + adapter"),
        (config, "apart", 0.89, "decode + adapter"),
        (config, "together", 0.91, "decode + adapter"),
        (bare, "apart", 0.91, "decode + adapter"),
    ):
        told(other, unfold_4=share)
        with api.session(updated(made, {"ask.passages": passages, "retrieve.k": 2})) as session:
            found = answer(session, QUESTION)
        assert found.reader == reader, (passages, share)
        assert (reader[0] == "u") == ("best sentence as text, measured 91%" in found.reader_reason)


def zooming(config, window=2, **dials):
    """The dials of asking for vectors that are made for the question."""
    return updated(config, {"ask.read": "zoomed", "ask.zoom": window, "retrieve.k": 3, **dials})


def found_for(session, question):
    settings = session.config.retrieve
    return search(session.store, session.index, session.embedder, question, settings)


@pytest.mark.parametrize("passages", ["together", "apart"])
def test_zoomed_reads_vectors_made_for_the_question(config, passages):
    with api.session(zooming(config, **{"ask.passages": passages})) as session:
        found = answer(session, QUESTION)
        hits = found_for(session, QUESTION)
        some = read(session, hits, "zoomed", QUESTION, apart=passages == "apart")
        texts = [session.lm.encode(session.store.text(one.record.chunk_id)) for one in some]
        groups = [[one] for one in texts] if passages == "apart" else [texts]
        expected = [
            vectors
            for group in groups
            for vectors in encode_planned(
                session.encoder, group, 2, zoomed(session.lm, group, QUESTION)
            )
        ]
    assert len(some) == 3
    assert all(
        np.array_equal(*one) for one in zip([r.passage for r in some], expected, strict=True)
    )
    count = sum(count_windows(len(text), 2) for text in texts)
    assert found.context_positions == sum(len(one.passage) for one in some) == count
    assert found.reader == "zoomed + adapter" and found.text_positions == sum(map(len, texts))
    assert [one.text for one in some] == [session.lm.decode(text) for text in texts]
    said = " ".join(found.answer.split())
    whole = " ".join("\n".join(one.text for one in some).split())
    assert said in whole or REFUSAL.startswith(said)
    assert "2 tokens each" in found.reader_reason and "not measured" in found.reader_reason


def test_zoomed_vectors_differ_with_the_question(config):
    with api.session(zooming(config)) as session:
        hits = found_for(session, QUESTION)
        texts = [session.store.text(hit.chunk_id) for hit in hits]
        last = texts[-1].split(".")[-2]
        for_one, for_other = (
            read(session, hits, "zoomed", question) for question in (QUESTION, last)
        )
    assert [len(one.passage) for one in for_one] != [len(one.passage) for one in for_other]


def test_zoomed_says_what_it_was_measured_to_reach(config, shipped, tmp_path, monkeypatch):
    other = shutil.copytree(shipped, tmp_path / "other")
    told(other, zoom_2=0.84, zoom_4=0.76)
    monkeypatch.setattr(adapters, "SHIPPED", (other,))
    for window, share in ((2, "84%"), (4, "76%")):
        with api.session(zooming(config, window)) as session:
            assert share in answer(session, QUESTION).reader_reason


def test_auto_takes_zoomed_where_it_was_measured_to_be_read_well(
    config, shipped, ingested, tmp_path, monkeypatch
):
    other = shutil.copytree(shipped, tmp_path / "other")
    monkeypatch.setattr(adapters, "SHIPPED", (other,))
    new = updated(config, {"store": str(tmp_path / "new"), "memorize.readable": 0})
    told(other, zoom_2=0.95, zoom_4=0.91)
    api.ingest([ingested / "docs"], new)
    for passages, shares, reader in (
        ("apart", {"zoom_4": 0.91}, "zoomed + adapter"),
        ("together", {"zoom_4": 0.91}, "decode + adapter"),
        ("apart", {"zoom_2": 0.95, "zoom_4": 0.89}, "decode + adapter"),
    ):
        told(other, **shares)
        with api.session(updated(new, {"ask.passages": passages, "retrieve.k": 2})) as session:
            found = answer(session, QUESTION)
        assert found.reader == reader, (passages, shares)
        assert (passages == "apart") == (f"{shares['zoom_4']:.0%}" in found.reader_reason)


def test_zoomed_reads_what_memories_decode_to_where_no_text_is_kept(
    config, ingested, model_folder, tmp_path
):
    bare = small.dials(tmp_path / "bare", model_folder, memorize__keep_text=False)
    api.ingest([ingested / "docs"], bare)
    made = []
    for one in (config, bare):
        with api.session(zooming(one)) as session:
            found = read(session, found_for(session, QUESTION), "zoomed", QUESTION)
            made.append({r.record.chunk_id: r.passage for r in found})
            assert answer(session, QUESTION).reader == "zoomed + adapter"
    assert made[0].keys() == made[1].keys()
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


def test_zoomed_needs_an_encoder_for_windows_as_wide(config, monkeypatch):
    with pytest.raises(UsageError, match="ask.zoom is 5; valid: 1 to 4 with this encoder"):
        api.ask(QUESTION, zooming(config, 5))
    monkeypatch.setattr(adapters, "SHIPPED", ())
    with pytest.raises(UsageError, match="--read zoomed cannot be had"):
        api.ask(QUESTION, zooming(config))


def test_the_reader_of_zoomed_vectors_is_what_an_export_merges(
    config, shipped, tmp_path, monkeypatch
):
    text = trained(load(config.model), tmp_path / "text", kind="text")
    monkeypatch.setattr(adapters, "SHIPPED", (text, shipped))
    for place in (store(config), tmp_path / "none"):
        for way, folder in (("zoomed", shipped), ("text", text)):
            settings = updated(config, {"ask.read": way, "store": str(place)})
            made = export_reader(
                tmp_path / f"{way} {place.name}", settings, "float32", print, trusted=False
            )
            assert made.adapter == str(folder), (way, place)
