"""Keys, the index and its cache, and how dense hits and word hits become one list."""

import hashlib
import json
import logging
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from toy_embedder import VECTORS, write_embedder

from rag_memtok.config import Config, Retrieve
from rag_memtok.datatypes import Occurrence, Record, StoredDocument, Verdict, sha256_of_text
from rag_memtok.errors import InputRefused, ModelUnavailable, UsageError, WrongModel
from rag_memtok.pipeline.manifest import complete_config
from rag_memtok.retrieval import embedder as embedders
from rag_memtok.retrieval import index
from rag_memtok.retrieval.embedder import (
    INSTALL,
    PACKAGE,
    load_embedder,
    load_sentence_transformer,
)
from rag_memtok.retrieval.index import Index, build, open_index, set_threads
from rag_memtok.retrieval.search import content_words, fuse, search
from rag_memtok.store.files import write_whole
from rag_memtok.store.store import INDEX, create, open_store

TEXTS = ["the lamp warranty", "battery of the lamp", "onion soup", "soup battery soup"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return load_embedder(
        str(
            write_embedder(
                tmp_path_factory.mktemp("e") / "embedder", {"threshold": 0.6, "dense_weight": 0.4}
            )
        )
    )


def fill(folder, embedder, texts, keep_text=True, name="a.txt"):
    """Stores `texts` as one file."""
    ids = [sha256_of_text(text) for text in texts]
    with open_store(folder, write=True) as store:
        for chunk_id, text, key in zip(
            ids, texts, embedder.encode(texts, query=False), strict=True
        ):
            store.put(
                Record(
                    chunk_id, 3, "0" * 64, "float16", b"m", (1, 1), (), Verdict("exact", 3), key
                ),
                text if keep_text else None,
            )
        places = [
            Occurrence("/r", name, ordinal, chunk_id, ordinal, ordinal + 1, "line 1")
            for ordinal, chunk_id in enumerate(ids)
        ]
        store.replace_file(
            "/r",
            name,
            [StoredDocument("/r", name, name, "0", "0", len(ids), len(ids), "text/1")],
            places,
        )


@pytest.fixture
def folder(tmp_path, embedder):
    create(tmp_path / "store", {})
    fill(tmp_path / "store", embedder, TEXTS)
    return tmp_path / "store"


DEFAULTS = Retrieve()


def found(folder, embedder, question, settings=DEFAULTS):
    with open_store(folder, write=False) as store:
        return search(store, open_index(store), embedder, question, settings)


def texts_of(hits):
    return [next(text for text in TEXTS if sha256_of_text(text) == hit.chunk_id) for hit in hits]


# --- embedders


def test_both_ways_of_reading_a_static_embedding_agree(embedder):
    texts = ["the lamp", "", "unknown words; años años!", "soup " * 700, "\U0001f600"]
    function, width = load_sentence_transformer(Path(embedder.id))
    assert width == embedder.width == 16
    for query in (False, True):
        assert np.allclose(
            embedder.encode(texts, query=query), function(texts, query=query), atol=1e-5
        )


def test_keys_are_of_length_one_or_zero(embedder):
    rows = embedder.encode([*TEXTS, ""], query=True)
    assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 1, 0])
    assert embedder.encode([], query=True).shape == (0, 16)
    assert np.allclose(rows[2], (VECTORS[5] + VECTORS[4]) / np.linalg.norm(VECTORS[5] + VECTORS[4]))


def test_the_digest_is_of_what_makes_the_keys(tmp_path, embedder):
    same = load_embedder(str(write_embedder(tmp_path / "same", {"threshold": 0.1})))
    other = load_embedder(str(write_embedder(tmp_path / "other", weights=VECTORS * 1.5)))
    assert same.digest == embedder.digest != other.digest
    assert (same.threshold, same.dense_weight) == (0.1, 0.5) and (
        embedder.threshold,
        embedder.dense_weight,
    ) == (0.6, 0.4)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "a/b/c", "..", "with space", ""])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ModelUnavailable):
        load_embedder(name)


def test_pickles_and_code_are_refused(tmp_path):
    folder = write_embedder(tmp_path / "pickle")
    (folder / "1_Normalize" / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputRefused, match="pytorch_model.bin"):
        load_embedder(str(folder))
    folder = write_embedder(tmp_path / "module")
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "my_code.Module"}])
    )
    with pytest.raises(InputRefused, match="my_code"):
        load_embedder(str(folder))
    folder = write_embedder(tmp_path / "remote")
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Mine"}}))
    with pytest.raises(InputRefused, match="auto_map"):
        load_embedder(str(folder))


@pytest.mark.parametrize(
    "damage",
    ["modules.json", "0_StaticEmbedding/tokenizer.json", "0_StaticEmbedding/model.safetensors"],
)
def test_a_broken_embedder_is_named(tmp_path, damage):
    folder = write_embedder(tmp_path / "broken")
    (folder / damage).write_text("{")
    with pytest.raises(ModelUnavailable, match="broken"):
        load_embedder(str(folder))


# --- the index


def test_faiss_padding_is_dropped_and_the_order_is_by_cosine(folder, embedder):
    with open_store(folder, write=False) as store:
        nearest = open_index(store).nearest(embedder.encode(["onion soup"], query=True)[0], 50)
    assert len(nearest) == len(TEXTS) and nearest[0][0] == 3 and nearest[0][1] == pytest.approx(1)
    assert [cosine for _, cosine in nearest] == sorted(
        (cosine for _, cosine in nearest), reverse=True
    )


def in_heaps(count, seed):
    """Keys of length one in heaps, as texts about the same things are."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, 24))
    keys = centres[chance.integers(0, 40, count)] + 0.7 * chance.standard_normal((count, 24))
    return (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)


def test_beyond_so_many_keys_there_are_lists_that_find_the_nearest():
    keys, numbers = in_heaps(4000, 1), np.arange(4000, dtype=np.int64) * 3
    every, lists = Index(build(numbers, keys)), Index(build(numbers, keys, exact=3999))
    inner = faiss.downcast_index(lists.keys.index)
    assert isinstance(inner, faiss.IndexIVFFlat) and 1 <= inner.nprobe < inner.nlist
    found = there = 0
    for question in in_heaps(100, 2):
        right = {number for number, _ in every.nearest(question, 10)}
        found += len(right & {number for number, _ in lists.nearest(question, 10)})
        there += len(right)
        among = [int(number) for number in numbers[::100]]
        assert lists.nearest(question, 5, among) == every.nearest(question, 5, among)
    assert found / there >= 0.95
    again = Index(faiss.deserialize_index(faiss.serialize_index(lists.keys)))
    assert faiss.downcast_index(again.keys.index).nprobe == inner.nprobe
    assert again.nearest(keys[7], 10) == lists.nearest(keys[7], 10)


def test_words_are_asked_of_the_index_once_whatever_the_number_of_chunks(tmp_path, embedder):
    create(tmp_path / "store", {})
    fill(tmp_path / "store", embedder, TEXTS)
    with open_store(tmp_path / "store", write=False) as store:
        plans = []
        connection = store._db.connection
        connection.set_trace_callback(plans.append)
        assert store.search_words(["soup"], 5)
        connection.set_trace_callback(None)
        (query,) = [one for one in plans if "MATCH" in one and one.startswith("SELECT rowid")]
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    # "=" would be: once for each rowid
    assert [one for one in plan if b"VIRTUAL TABLE INDEX" in one and b"=" not in one]


def test_an_empty_index_and_an_empty_question_find_nothing(embedder):
    empty = Index(build(np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)))
    assert empty.nearest(embedder.encode(["soup"], query=True)[0], 5) == ()
    full = Index(build(np.array([7]), embedder.encode(["soup"], query=False)))
    assert full.nearest(np.zeros(16, dtype=np.float32), 5) == ()
    with pytest.raises(WrongModel, match="width 16.*8"):
        full.nearest(np.ones(8, dtype=np.float32), 5)


def damage_header(path, other):
    path.write_bytes(path.read_bytes().replace(b'"store": "', b'"store": "0'))


def flip_payload(path, other):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


FAULTS = {
    "missing": lambda path, other: path.unlink(),
    "empty": lambda path, other: path.write_bytes(b""),
    "truncated": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip_payload,
    "foreign": lambda path, other: path.write_bytes(other.read_bytes()),
    "header": damage_header,
    "not ours": lambda path, other: path.write_bytes(b"[]\n" + path.read_bytes()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cache_that_is_not_the_stores_is_built_anew(folder, embedder, tmp_path, fault, caplog):
    create(tmp_path / "other", {})
    fill(tmp_path / "other", embedder, TEXTS[::-1])
    caplog.set_level(logging.INFO, "rag_memtok.retrieval")
    whole = texts_of(found(folder, embedder, "soup"))
    found(tmp_path / "other", embedder, "soup")
    caplog.clear()
    # the cache was used
    assert texts_of(found(folder, embedder, "soup")) == whole and not caplog.records
    FAULTS[fault](folder / INDEX, tmp_path / "other" / INDEX)
    assert texts_of(found(folder, embedder, "soup")) == whole
    assert [record.getMessage().endswith("built anew") for record in caplog.records] == [True]
    assert (folder / INDEX).stat().st_mode & 0o777 == 0o600 and not (
        folder / f"{INDEX}.new"
    ).exists()


def test_an_older_cache_is_built_anew_and_a_restored_store_never_takes_the_newer(folder, embedder):
    found(folder, embedder, "soup")
    backup = (folder / "store.db").read_bytes()
    fill(folder, embedder, ["lamp lamp soup"], name="b.txt")
    with open_store(folder, write=False) as store:
        assert open_index(store).keys.ntotal == 5
    (folder / "store.db").write_bytes(backup)
    with open_store(folder, write=False) as store:
        assert open_index(store).keys.ntotal == 4


def test_a_removal_while_the_index_is_written_leaves_none_of_its_keys(
    folder, embedder, monkeypatch
):
    def write_late(path, content):
        with open_store(folder, write=True) as store:
            store.collect([("/r", "a.txt")])
        return write_whole(path, content)

    monkeypatch.setattr(index, "write_whole", write_late)
    with open_store(folder, write=False) as store:
        assert open_index(store).keys.ntotal == len(TEXTS)  # as it was when it was opened
    assert not (folder / INDEX).exists()


def test_an_index_that_cannot_be_cached_is_kept_in_memory(folder, embedder):
    (folder / f"{INDEX}.new").mkdir()
    assert texts_of(found(folder, embedder, "onion"))[0] == "onion soup"
    assert not (folder / INDEX).exists()


def test_threads_can_be_set():
    before = faiss.omp_get_max_threads()
    set_threads(1)
    assert faiss.omp_get_max_threads() == 1
    set_threads(before)


# --- search


@pytest.mark.parametrize(
    "question, words",
    [
        ("What is the warranty of the LAMP?", ("warranty", "lamp")),
        ("¿Cuántos años dura la garantía?", ("años", "dura", "garantía")),
        ("Who is it?", ()),
        ("error_code E-4711: 3,5 kg?!", ("error", "code", "e", "4711", "3", "5", "kg")),
        ("", ()),
    ],
)
def test_content_words(question, words):
    assert content_words(question) == words


def test_fused_order_by_hand():
    # 1: .3 * .8 + .7 * 2/4 = .59; 2: .3 * .5 = .15; 3: .7 * 4/4 = .7; 4: .7 * 3/4 = .525
    scores = fuse({1: 0.8, 2: 0.5, 4: -0.2}, {3: 4.0, 4: 3.0, 1: 2.0}, 0.3)
    assert list(scores) == [3, 1, 4, 2]
    assert list(scores.values()) == pytest.approx([0.7, 0.59, 0.525, 0.15])
    assert list(fuse({1: 0.5, 2: 0.5}, {}, 0.5)) == [1, 2]
    assert list(fuse({}, {7: 0.0}, 0.5)) == [7]


def test_hits_have_places_scores_and_cosines(folder, embedder):
    hits = found(folder, embedder, "What is the lamp warranty?", Retrieve(k=2))
    assert texts_of(hits) == ["the lamp warranty", "battery of the lamp"]
    assert hits[0].score > hits[1].score > 0 and hits[0].cosine > hits[1].cosine
    assert [one.path for one in hits[0].occurrences] == ["a.txt"]


def test_a_negative_weight_is_the_embedders_own(folder, embedder):
    def scores(weight, own):
        hits = found(
            folder,
            replace(embedder, dense_weight=own),
            "onion battery",
            Retrieve(dense_weight=weight),
        )
        return [(hit.chunk_id, hit.score) for hit in hits]

    assert scores(-1.0, 0.9) == scores(0.9, 0.5) != scores(0.1, 0.9)


def test_nothing_relevant_is_nothing(folder, embedder):
    for question in ("zebra crossing", "?!", ""):
        assert found(folder, embedder, question) == ()
    assert found(folder, embedder, "zebra soup")  # one content word is there
    assert found(folder, replace(embedder, threshold=-1.0), "zebra crossing")


def test_without_kept_text_dense_hits_alone_answer(tmp_path, embedder):
    create(tmp_path / "store", {})
    fill(tmp_path / "store", embedder, TEXTS, keep_text=False)
    assert texts_of(found(tmp_path / "store", embedder, "onion soup", Retrieve(k=1))) == [
        "onion soup"
    ]
    assert found(tmp_path / "store", embedder, "años") == ()


def test_a_damaged_word_index_leaves_the_keys(folder, embedder, caplog):
    db = sqlite3.connect(folder / "store.db")
    db.execute("UPDATE words_data SET block = x'ffffffffffffffff'")
    db.commit()
    db.close()
    assert texts_of(found(folder, embedder, "onion soup", Retrieve(k=1))) == ["onion soup"]
    assert "searching by keys alone" in caplog.text


def test_orphans_and_an_empty_store_give_no_hit(tmp_path, embedder):
    create(tmp_path / "store", {})
    assert found(tmp_path / "store", embedder, "soup") == ()
    fill(tmp_path / "store", embedder, TEXTS)
    with open_store(tmp_path / "store", write=True) as store:
        index = open_index(store)  # still knows all four
        store.remove_file("/r", "a.txt")
        assert search(store, index, embedder, "soup", Retrieve()) == ()
        assert store.collect() == 4 and search(store, index, embedder, "soup", Retrieve()) == ()


# --- the packaged embedder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of that name with other weights, which must not be imported."""
    folder = tmp_path / "site" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    write_embedder(folder / "model")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return folder / "model"


def test_minilm_means_one_set_of_weights_and_others_can_be_given_by_their_path(
    package, monkeypatch
):
    with pytest.raises(InputRefused, match="not what minilm means") as caught:
        load_embedder("minilm")
    assert str(package) in caught.value.remedy
    assert load_embedder(str(package)).width == VECTORS.shape[1]
    monkeypatch.setattr(embedders, "SHA256", hashlib.sha256(b"weights").hexdigest())
    assert load_embedder("minilm").id == "minilm" and PACKAGE not in sys.modules


def test_a_new_store_takes_minilm_where_its_package_is_and_an_old_one_keeps_its_own(package):
    assert complete_config(Config(), {}).retrieve.embedder == "minilm"
    assert complete_config(Config(), {"embedder": "mini"}).retrieve.embedder == "mini"
    asked_for = Config(retrieve=Retrieve(embedder="mini"))
    assert complete_config(asked_for, {}).retrieve.embedder == "mini"
    (package / "model.safetensors").unlink()
    assert complete_config(Config(), {}).retrieve.embedder == "mini"


def test_without_the_package_it_is_said_how_to_get_minilm():
    with pytest.raises(ModelUnavailable, match="not installed") as caught:
        load_embedder("minilm")
    assert INSTALL in caught.value.remedy


# --- within a folder or a file, and near-duplicates


def test_what_is_searched_can_be_a_folder_a_file_or_a_name(tmp_path, embedder):
    create(tmp_path / "store", {})
    texts = {"a/x.txt": "onion soup", "a/y.txt": "battery soup", "b/x.txt": "lamp soup"}
    for name, text in texts.items():
        fill(tmp_path / "store", embedder, [text], name=name)
    fill(tmp_path / "store", embedder, ["onion soup"], name="b/z.txt")

    def files(within):
        hits = found(tmp_path / "store", embedder, "onion soup", Retrieve(within=within))
        return {place.path for hit in hits for place in hit.occurrences}

    assert files("/r/a") == files("a") == {"a/x.txt", "a/y.txt"}
    assert files("/r/b/x.txt") == files("b/x.txt") == {"b/x.txt"}
    assert files("/r") == files("") == {*texts, "b/z.txt"}
    with pytest.raises(UsageError, match="nothing of"):
        files("/r/c")
    with pytest.raises(UsageError, match="nothing of"):
        files("a/x")


def test_a_hit_that_says_no_more_than_a_better_one_is_folded_into_it(tmp_path, embedder):
    create(tmp_path / "store", {})
    texts = [
        "The onion soup costs 5 euros.",
        "the  ONION soup costs 5 euros",
        "onion soup costs 5",
        "The onion soup costs 6 euros.",
    ]
    fill(tmp_path / "store", embedder, texts)
    with open_store(tmp_path / "store", write=False) as store:
        hits = search(store, open_index(store), embedder, "the onion soup costs", Retrieve(k=9))
        told = [store.text(hit.chunk_id) for hit in hits]
    assert texts[3] in told and len(set(told) & set(texts[:2])) == 1


def test_without_kept_text_nothing_is_folded(tmp_path, embedder):
    create(tmp_path / "store", {})
    fill(tmp_path / "store", embedder, ["onion soup", "Onion soup"], keep_text=False)
    assert len(found(tmp_path / "store", embedder, "onion soup")) == 2
