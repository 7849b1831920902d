"""The audit of the audit: faults are planted, each must be found and named.

An audit that always says yes fails here.
"""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import random_adapter
import torch

from rag_memtok.config import Config
from rag_memtok.datatypes import PROVEN, Hit, Pin, sha256_of_text
from rag_memtok.errors import InputRefused, StoreDamaged, UsageError
from rag_memtok.memory.codec import codec_named
from rag_memtok.model import lm
from rag_memtok.model.prompts import template_named
from rag_memtok.pipeline import api, readers
from rag_memtok.pipeline.audit import (
    DecodeOptions,
    audit,
    check_structure,
    describe_sample,
    draw_sample,
)
from rag_memtok.pipeline.inspect import show
from rag_memtok.pipeline.reconstruction import mark_fragile, reconstruct
from rag_memtok.settings import updated
from rag_memtok.store.schema import insert, verdict_row
from rag_memtok.store.store import open_store

TEXTS = {
    "lamp.txt": "The lamp of the harbour is red.",
    "fan.txt": "The fan is very loud today.",
    "soup.txt": "Se hornea media hora.",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("audit")
    (folder / "docs").mkdir()
    for name, text in TEXTS.items():
        (folder / "docs" / name).write_text(text)
    dials = {
        "store": str(folder / "store"),
        "model.id": str(model_folder),
        "model.threads": 1,
        "model.device": "cpu",
    }
    config = updated(
        Config(), {**dials, "memorize.tokens_per_vector": 4, "memorize.seconds_per_chunk": 0.0}
    )
    done = api.ingest([folder / "docs"], config)
    assert done.verdicts == {"exact": 3}
    return folder, config


@pytest.fixture
def planted(original, tmp_path):
    """A copy of the store, and a function that runs SQL on it behind the program's back."""
    folder, config = original
    shutil.copytree(folder / "store", tmp_path / "store")

    def sql(statement, *values):
        with closing(sqlite3.connect(tmp_path / "store" / "store.db")) as db, db:
            return db.execute(statement, values).fetchall()

    return tmp_path / "store", updated(config, {"store": str(tmp_path / "store")}), sql


@pytest.fixture(scope="module")
def loaded(model_folder):
    one = lm.load(updated(Config(), {"model.id": str(model_folder), "model.device": "cpu"}).model)
    return one, template_named("bare", one)


def forge(folder, change):
    """Rewrites every memory as `change(record)` says, with right checksums.

    This is what a bug of the writer, not of the disk, would leave.
    """
    with open_store(folder, write=False) as store:
        store_id, records = (
            store.store_id,
            {chunk_id: store.record(chunk_id) for chunk_id in store.chunk_ids()},
        )
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as db:
        for number, chunk_id in db.execute("SELECT number, id FROM chunks").fetchall():
            changed = change(records[chunk_id], records)
            insert(db, store_id, "vectors", (number, changed.codec, *changed.shape, changed.packed))
            insert(db, store_id, "pins", (number, b"".join(pin_bytes(pin) for pin in changed.pins)))
            insert(
                db,
                store_id,
                "chunks",
                (number, chunk_id, changed.tokens, changed.tokens_sha256, 1, 1),
            )
            insert(db, store_id, "verdicts", (number, *verdict_row(changed.verdict)))


def pin_bytes(pin):
    return (
        pin.position.to_bytes(4, "little")
        + pin.token.to_bytes(4, "little")
        + bytes([pin.kind == "safety"])
    )


def kinds(found):
    return {finding.kind for finding in found.findings}


def id_of(name):
    return sha256_of_text(TEXTS[name])


# --- nothing wrong


def test_a_whole_store_is_proven_from_vectors_and_pins_alone(planted):
    _, config, sql = planted
    seen = []
    found = api.verify(config, on_progress=lambda at: seen.append((at.done, at.total)))
    assert (found.exit_code, found.findings, found.counts) == (0, (), {"exact": 3})
    assert (found.documents, found.documents_checked, found.documents_proven) == (3, 3, 3)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert "fp32" in found.profile and "batch 1" in found.profile and found.sample == ""


def resealed(folder, change):
    """Rewrites every kept text as `change(text, texts)` says, with right checksums."""
    with open_store(folder, write=False) as store:
        store_id, texts = store.store_id, [store.text(one) for one in store.chunk_ids()]
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as db:
        for number, text in db.execute("SELECT chunk, text FROM texts").fetchall():
            insert(db, store_id, "texts", (number, change(text, texts)))


CHANGES = {
    "emptied": lambda text, texts: "",
    "altered": lambda text, texts: text[:-1] + "?",
    "longer": lambda text, texts: text + " And more.",
    "swapped": lambda text, texts: texts[texts.index(text) - 1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_verdict_depends_on_the_draft(planted, change):
    """Texts that somebody rewrote, seals and all, cost time and change nothing."""
    folder, config, _ = planted
    before = api.verify(config, reference=True)
    resealed(folder, change)
    for found in (api.verify(config), api.verify(config, reference=True)):
        decoded = {one.chunk_id: one.verdict for one in found.recited}
        assert decoded == {one.chunk_id: one.verdict for one in before.recited}
        assert (found.counts, found.documents_proven) == ({"exact": 3}, 3)


@pytest.mark.parametrize("has_reader", [False, True], ids=["alone", "reader"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_read_from_a_memory_never_depends_on_the_draft(
    planted, loaded, tmp_path, change, has_reader
):
    """With a reader on, one pass over all texts comes first, in its arithmetic."""
    folder, config, _ = planted
    adapter = "none"
    if has_reader:
        adapter = str(random_adapter.trained(loaded[0], tmp_path / "adapter", kind="text"))
    read = updated(config, {"ask.read": "decode", "ask.adapter": adapter})

    def passages():
        with api.session(read) as session:
            assert (session.reading is not None) == has_reader
            hits = [Hit(one, 1.0, 0.0, ()) for one in session.store.chunk_ids()]
            return [list(one.passage) for one in readers.read(session, hits, "decode")]

    with open_store(folder, write=False) as store:
        texts = [store.text(one) for one in store.chunk_ids()]
    before = passages()
    assert [loaded[0].decode(tokens) for tokens in before] == texts
    resealed(folder, change)
    assert passages() == before and len(before) == 3


def test_a_draft_changes_the_time_and_no_verdict(planted):
    folder, config, _ = planted
    drafted, reference = api.verify(config), api.verify(config, reference=True)
    assert drafted.ok and reference.ok and drafted.counts == reference.counts
    assert "draft" in drafted.profile and "draft" not in reference.profile
    forge(folder, lambda record, records: negated(record))
    drafted, reference = api.verify(config), api.verify(config, reference=True)
    assert [one.verdict for one in drafted.recited] == [one.verdict for one in reference.recited]
    assert {one.verdict.kind for one in drafted.recited} == {"mismatch"}


def test_the_kept_text_is_no_witness(planted, loaded):
    """Neither emptying nor falsifying the texts changes what a memory recites.

    That they are gone is damage of its own.
    """
    folder, config, sql = planted
    sql("UPDATE texts SET text = 'something else'")
    with open_store(folder, write=False) as store:
        falsified = [reconstruct(store, *loaded, chunk_id) for chunk_id in store.chunk_ids()]
    sql("DELETE FROM texts")
    with open_store(folder, write=False) as store:
        emptied = [reconstruct(store, *loaded, chunk_id) for chunk_id in store.chunk_ids()]
    assert falsified == emptied
    assert {one.text for one in emptied} == set(TEXTS.values()) and all(
        one.verdict.kind == "exact" for one in emptied
    )
    found = api.verify(config)
    assert found.counts == {"exact": 3} and found.documents_proven == 3
    assert kinds(found) == {"damaged"} and found.exit_code == 13


# --- faults of the disk


def flip(sql, table, column, number):
    ((value,),) = sql(f"SELECT {column} FROM {table} WHERE chunk = ?", number)
    sql(
        f"UPDATE {table} SET {column} = ? WHERE chunk = ?",
        bytes([value[0] ^ 1]) + value[1:],
        number,
    )


@pytest.mark.parametrize("table", ["vectors", "keys"])
def test_one_flipped_bit_is_damage_named_and_the_others_stand(planted, table):
    _, config, sql = planted
    ((number,),) = sql("SELECT number FROM chunks WHERE id = ?", id_of("fan.txt"))
    flip(sql, table, "packed", number)
    found = api.verify(config)
    assert found.exit_code == 13 and found.counts == {"exact": 2, "damaged": 1}
    assert (found.documents_proven, found.documents) == (2, 3)
    assert any("fan.txt" in finding.subject + finding.reason for finding in found.findings)
    assert not any(
        name in finding.subject + finding.reason
        for finding in found.findings
        for name in ("lamp.txt", "soup.txt")
    )
    assert api.verify(config, structure_only=True).exit_code == 13


def test_after_damage_the_others_answer_and_ingest_mends(planted, original):
    folder, config, sql = planted
    ((number,),) = sql("SELECT number FROM chunks WHERE id = ?", id_of("fan.txt"))
    flip(sql, "vectors", "packed", number)
    said = []
    found = api.ask("Is the lamp or the fan loud?", config, say=said.append)
    assert {source.path for source in found.sources} <= {"lamp.txt", "soup.txt"} and any(
        id_of("fan.txt")[:8] in line for line in said
    )
    restored = api.restore(folder.parent / "back", config)
    assert [path for path, _ in restored.failed] == ["fan.txt"] and len(restored.written) == 2
    assert api.ingest([original[0] / "docs"], config).chunks == 1
    assert api.verify(config).exit_code == 0


@pytest.mark.parametrize(
    "change",
    ["UPDATE words SET text = 'other' WHERE rowid = 1", "DELETE FROM words WHERE rowid = 2"],
)
def test_a_damaged_word_index_is_mended_by_ingest_without_a_model(planted, original, change):
    _, config, sql = planted
    sql(change)
    assert api.verify(config, structure_only=True).exit_code == 13
    said, gone = [], updated(config, {"model.id": "/no/such/model"})
    done = api.ingest([original[0] / "docs"], gone, say=said.append)
    assert (done.files, done.unchanged) == (0, 3) and len(said) == 1 and "word index" in said[0]
    assert api.verify(config, structure_only=True).findings == ()
    assert api.ingest([original[0] / "docs"], gone, say=said.append).files == 0 and len(said) == 1


def test_a_lost_memory_is_damage(planted):
    _, config, sql = planted
    ((number,),) = sql("SELECT number FROM chunks WHERE id = ?", id_of("fan.txt"))
    sql("DELETE FROM vectors WHERE chunk = ?", number)
    found = api.verify(config)
    assert found.exit_code == 13 and found.counts == {"exact": 2, "damaged": 1}


def test_two_memories_swapped_in_the_file_are_damage(planted):
    _, config, sql = planted
    rows = sql(
        "SELECT chunk, codec, rows, width, packed, checksum FROM vectors ORDER BY chunk LIMIT 2"
    )
    for (chunk, *_), (_, *content) in zip(rows, rows[::-1], strict=True):
        sql(
            "UPDATE vectors SET codec = ?, rows = ?, width = ?, packed = ?, checksum = ? WHERE "
            "chunk = ?",
            *content,
            chunk,
        )
    found = api.verify(config)
    assert found.exit_code == 13 and found.counts["damaged"] == 2


# --- faults with right checksums: only the decode can find them


def check_forged(planted, change, kind="mismatch", code=5, batch=1):
    folder, config, _ = planted
    forge(folder, change)
    # nothing to see without the model
    assert api.verify(config, structure_only=True).findings == ()
    found = api.verify(config, batch=batch)
    assert kinds(found) == {kind} and found.exit_code == code
    return found


def test_the_forger_forges_nothing_if_asked_to(planted):
    folder, config, _ = planted
    forge(folder, lambda record, records: record)
    assert api.verify(config).exit_code == 0


def test_two_swapped_memories_are_a_mismatch(planted):
    others = {id_of("lamp.txt"): id_of("fan.txt"), id_of("fan.txt"): id_of("lamp.txt")}

    def swapped(record, records):
        other = records[others.get(record.chunk_id, record.chunk_id)]
        return replace(record, packed=other.packed, shape=other.shape, pins=other.pins)

    found = check_forged(planted, swapped)
    assert found.counts == {"exact": 1, "mismatch": 2} and found.documents_proven == 1
    assert {finding.subject.split()[0] for finding in found.findings} == {"lamp.txt", "fan.txt"}


def of_fan(change):
    return lambda record, records: change(record) if record.chunk_id == id_of("fan.txt") else record


def negated(record):
    codec = codec_named(record.codec)
    vectors = codec.unpack(record.packed, record.shape).copy()
    vectors[0] = -vectors[0]
    return replace(record, packed=codec.pack(vectors))


@pytest.mark.parametrize(
    "change",
    [
        negated,
        lambda record: replace(record, packed=bytes(len(record.packed))),
        lambda record: replace(
            record,
            packed=codec_named("float16").pack(np.full(record.shape, np.nan, dtype=np.float32)),
        ),
        lambda record: replace(record, pins=(*record.pins, Pin(0, 99, "correction"))),
        # ends too early
        lambda record: replace(record, pins=(Pin(record.tokens - 1, 0, "correction"),)),
        # ends too late
        lambda record: replace(record, pins=(Pin(record.tokens, 99, "correction"),)),
    ],
    ids=["one vector", "zeros", "nan", "pin", "early", "late"],
)
def test_a_memory_that_decodes_to_another_text_is_a_mismatch(planted, change):
    found = check_forged(planted, of_fan(change))
    assert found.counts == {"exact": 2, "mismatch": 1} and found.documents_proven == 2


def test_the_same_text_in_other_tokens_is_a_mismatch_too(planted, loaded):
    one, template = loaded
    tokens = one.encode(TEXTS["fan.txt"])
    place = next(place for place, token in enumerate(tokens) if len(one.decode([token])) == 2)
    first, second = (one.encode(letter)[0] for letter in one.decode([tokens[place]]))
    other = [*tokens[:place], first, second, *tokens[place + 1 :], template.end]
    assert one.decode(other[:-1]) == TEXTS["fan.txt"]
    pins = tuple(Pin(position, token, "correction") for position, token in enumerate(other))
    assert check_forged(planted, of_fan(lambda record: replace(record, pins=pins))).counts == {
        "exact": 2,
        "mismatch": 1,
    }


# --- what the store says of itself is not believed


def lying(record, pins):
    """The memory without a memory: vectors of zeros, all in the pins.

    Its verdict says otherwise.
    """
    return replace(
        record,
        packed=bytes(len(record.packed)),
        pins=pins,
        verdict=replace(record.verdict, kind="exact", corrections=0),
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_pins_that_are_called_safety_are_corrections_where_they_are_needed(planted, loaded, batch):
    """Zeros, with every token as a pin, are lossless, and the audit says what that is worth.

    It does so whatever the record says.
    """
    folder, config, _ = planted
    one, template = loaded
    given = [*one.encode(TEXTS["fan.txt"]), template.end]
    pins = tuple(Pin(position, token, "safety") for position, token in enumerate(given))
    forge(folder, of_fan(lambda record: lying(record, pins)))
    found = api.verify(config, batch=batch)
    assert (found.counts, found.exit_code, found.documents_proven) == (
        {"exact": 2, "assisted": 1},
        0,
        3,
    )
    verdict = next(one.verdict for one in found.recited if one.chunk_id == id_of("fan.txt"))
    assert verdict.tokens == len(given) - 1 and verdict.corrections > verdict.safeties
    assert verdict.corrections + verdict.safeties == len(given) and verdict.reason == ""
    with open_store(folder, write=False) as store:
        tokens = show(store, one, template, id_of("fan.txt")).tokens
    assert sum(token.pin == "correction" for token in tokens) == verdict.corrections


def test_a_safety_pin_that_is_not_needed_is_no_correction(planted, loaded):
    folder, config, _ = planted
    first = loaded[0].encode(TEXTS["fan.txt"])[0]
    forge(
        folder,
        of_fan(
            lambda record: replace(
                record, pins=(Pin(0, first, "correction"), Pin(999, first, "correction"))
            )
        ),
    )
    found = api.verify(config)
    assert found.counts == {"exact": 3} and found.exit_code == 0
    verdict = next(one.verdict for one in found.recited if one.chunk_id == id_of("fan.txt"))
    assert (verdict.corrections, verdict.safeties) == (0, 1)


IMPOSSIBLE = {
    "width": lambda record: replace(record, shape=(1, 7), packed=bytes(14)),
    "no vectors": lambda record: replace(record, shape=(0, record.shape[1]), packed=b""),
    "size": lambda record: replace(record, packed=record.packed[:-1]),
    "codec": lambda record: replace(record, codec="zip"),
    "pin": lambda record: replace(record, pins=(Pin(0, 10**6, "safety"),)),
    "tokens": lambda record: replace(record, tokens=10**9),
    "less than no tokens": lambda record: replace(record, tokens=-1),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_the_model_cannot_decode_is_damage_named_and_the_others_stand(
    planted, loaded, change, batch
):
    folder, config, _ = planted
    found = check_forged(planted, of_fan(change), "damaged", 13, batch)
    assert found.counts == {"exact": 2, "damaged": 1} and found.documents_proven == 2
    assert [finding.subject for finding in found.findings] == ["fan.txt line 1"]
    said = []
    assert {
        one.path for one in api.ask("Is the lamp or the fan loud?", config, say=said.append).sources
    } <= {"lamp.txt", "soup.txt"}
    assert [line for line in said if line.startswith(f"left out: memory {id_of('fan.txt')[:12]}: ")]
    with open_store(folder, write=False) as store, pytest.raises(StoreDamaged):
        show(store, *loaded, id_of("fan.txt"))


def test_a_needed_pin_that_is_gone_is_a_mismatch(tmp_path, original):
    _, config = original
    config = updated(config, {"store": str(tmp_path / "store"), "memorize.steps": 1})
    api.ingest([original[0] / "docs"], config)
    assert api.verify(config).exit_code == 0
    with open_store(tmp_path / "store", write=False) as store:
        assert all(store.record(chunk_id).pins for chunk_id in store.chunk_ids())
    forge(tmp_path / "store", lambda record, records: replace(record, pins=record.pins[1:]))
    assert api.verify(config).counts == {"mismatch": 3}


def test_documents_whose_chunks_are_in_the_wrong_order_are_a_mismatch(tmp_path, original):
    _, config = original
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "long.txt").write_text(
        "One lamp is red. " + "Two fans are loud. " + "Three soups are hot. "
    )
    config = updated(config, {"store": str(tmp_path / "store"), "documents.chunk_tokens": 12})
    api.ingest([tmp_path / "docs"], config)
    assert api.verify(config).exit_code == 0
    with open_store(tmp_path / "store", write=False) as store:
        (document,) = store.documents()
        places = store.document_chunks(document.root, document.path)
    with open_store(tmp_path / "store", write=True) as store:
        turned = [replace(place, ordinal=len(places) - 1 - place.ordinal) for place in places]
        store.replace_file(document.root, document.file, [document], turned)
    found = api.verify(config)
    assert kinds(found) == {"mismatch"} and found.exit_code == 5
    assert (found.documents_checked, found.documents_proven) == (1, 0)
    assert found.counts == {"exact": found.chunks}
    assert api.restore(tmp_path / "back", config).written == ()


# --- faults of the model


def test_one_changed_weight_is_incomparable_and_would_have_been_a_mismatch(
    planted, loaded, model_folder, tmp_path
):
    folder, config, _ = planted
    one, template = loaded
    changed = lm.load(
        updated(Config(), {"model.id": str(model_folder), "model.device": "cpu"}).model
    )
    with torch.no_grad():
        changed.model.base_model.layers[0].mlp.down_proj.weight.mul_(-1)
    with open_store(folder, write=False) as store:
        assert audit(store, one, template).counts == {"exact": 3}
        assert audit(store, changed, template).counts == {"mismatch": 3}
        # a dropped BOS
        assert audit(store, one, template_named("sastre2025", one)).counts == {"mismatch": 3}
    shutil.copytree(model_folder, tmp_path / "changed")
    weights = tmp_path / "changed" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    found = api.verify(updated(config, {"model.id": str(tmp_path / "changed")}))
    assert (
        found.exit_code == 6
        and kinds(found) == {"incomparable"}
        and found.counts == {"incomparable": 3}
    )


def test_together_the_same_is_proven_and_the_same_is_found(planted, loaded):
    folder, config, sql = planted
    with open_store(folder, write=False) as store:
        alone, together = (audit(store, *loaded, options=DecodeOptions(batch)) for batch in (1, 2))
    assert (
        together.counts == alone.counts == {"exact": 3}
        and together.documents_proven == 3
        and together.exit_code == 0
    )
    for one, other in zip(alone.recited, together.recited, strict=True):
        assert (
            one.chunk_id == other.chunk_id and abs(one.verdict.margin - other.verdict.margin) < 1e-3
        )
    assert (
        "draft" in alone.profile
        and "at batch 1" in alone.profile
        and "batch 2," in together.profile
        and "again at batch 1" in together.profile
    )
    forge(
        folder,
        lambda record, all: (
            replace(record, packed=bytes(len(record.packed)))
            if record.chunk_id == id_of("fan.txt")
            else record
        ),
    )
    sql(
        "UPDATE vectors SET packed = zeroblob(length(packed)) WHERE chunk = (SELECT number FROM "
        "chunks WHERE id = ?)",
        id_of("soup.txt"),
    )
    found = api.verify(config, batch=8)
    assert found.counts == {"exact": 1, "mismatch": 1, "damaged": 1} and found.exit_code == 13
    assert found.counts == api.verify(config).counts


def test_a_margin_that_shrank_is_fragile_and_no_failure(planted, loaded):
    folder, _, _ = planted
    with open_store(folder, write=False) as store:
        recited = reconstruct(store, *loaded, id_of("fan.txt"))
    margin = recited.verdict.margin
    assert 0.05 < margin < 100
    assert mark_fragile(recited, margin / 2) is recited
    assert recited.written_margin == pytest.approx(margin, abs=0.01)
    assert mark_fragile(recited, margin * 2) is recited  # it was not written to lead by that
    led = replace(recited, written_margin=margin * 3)
    weak = mark_fragile(led, margin * 2)
    assert weak.verdict.kind == "fragile" and weak.text == recited.text and "fragile" not in PROVEN
    assert f"{margin * 3:.3f} when it was written" in weak.verdict.reason


# --- saying no more than was found


def test_a_part_is_never_called_all(planted):
    _, config, _ = planted
    found = api.verify(config, share=0.5)
    assert (found.checked, found.chunks, found.exit_code) == (2, 3, 6)
    assert found.documents_checked == 2 and "seed 0" in found.sample and "95 %" in found.sample
    checked = api.verify(config, structure_only=True)
    # all that was asked for
    assert (checked.checked, checked.counts, checked.exit_code, checked.findings) == (0, {}, 0, ())
    assert checked.sentence.startswith("nothing was decoded")


def test_an_interrupt_ends_the_audit_with_what_was_found(planted):
    _, config, _ = planted

    def interrupt(at):
        if at.done == 2:
            raise KeyboardInterrupt

    found = api.verify(config, on_progress=interrupt)
    assert (
        found.interrupted
        and found.exit_code == 6
        and found.checked == 2
        and found.documents_proven == 2
    )


def test_an_empty_store_proves_nothing(planted, original):
    _, config, _ = planted
    for name in TEXTS:
        api.remove(original[0] / "docs" / name, config)
    found = api.verify(config)
    assert (found.chunks, found.exit_code) == (0, 6)


def test_files_that_changed_since_are_found_against_the_folder(planted, tmp_path):
    _, config, _ = planted
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    assert api.verify(config, folder=folder).exit_code == 0
    (folder / "fan.txt").write_text("Another fan.")
    (folder / "lamp.txt").unlink()
    (folder / "new.txt").write_text("New.")
    found = api.verify(config, folder=folder)
    assert {(finding.subject, finding.reason.split(",")[0]) for finding in found.findings} == {
        ("fan.txt", "has another text than the stored one"),
        ("lamp.txt", "is in the store"),
        ("new.txt", "is not in the store"),
    }
    assert found.exit_code == 5


def test_two_folders_are_compared_each_with_its_own_documents(original, tmp_path):
    config = updated(original[1], {"store": str(tmp_path / "two")})
    folders = [tmp_path / name for name in ("one", "two-docs")]
    for folder in folders:
        (folder / "library").mkdir(parents=True)
        (folder / "library" / "left-out.txt").write_text("This was never ingested.")
        (folder / "README.md").write_text(f"This is {folder.name}.")
    (folders[1] / "more.txt").write_text("The fan is old.")
    without = updated(config, {"documents.exclude": ["library/"]})
    api.ingest(folders, without)
    for folder in folders:
        assert api.verify(without, structure_only=True, folder=folder).findings == ()
    with pytest.raises(UsageError, match=f"there are {folders[0]}, {folders[1]}"):
        api.verify(
            without,
            folder=original[0] / "docs",
            on_progress=lambda at: pytest.fail("decoded before it was refused"),
        )
    with pytest.raises(InputRefused):
        api.verify(
            without,
            folder=tmp_path / "none",
            on_progress=lambda at: pytest.fail("decoded before it was refused"),
        )
    (folders[1] / "README.md").write_text("Another text.")
    told = {
        (one.subject, one.reason)
        for one in api.verify(config, structure_only=True, folder=folders[1]).findings
    }
    assert told == {
        ("library/left-out.txt", "is not in the store"),
        ("README.md", "has another text than the stored one"),
    }


def test_a_sample_is_drawn_by_its_seed_and_never_empty():
    ids = [f"{number:02}" for number in range(50)]
    assert draw_sample(ids, 0.2, 1) == draw_sample(ids, 0.2, 1) != draw_sample(ids, 0.2, 2)
    sample = draw_sample(ids, 0.2, 1)
    assert len(sample) == 10 and sample == sorted(sample)
    assert len(draw_sample(ids, 1e-9, 0)) == 1
    assert draw_sample(ids, 1.0, 0) == ids and draw_sample([], 0.5, 0) == []
    assert draw_sample(ids[::-1], 0.2, 1) == draw_sample(ids, 0.2, 1)[::-1]
    said = describe_sample(0.5, 3, 50)
    assert "under 6.0% in all" in said and "seed 3" in said
    assert "under 100.0% in all" in describe_sample(0.5, 3, 1)
    for share in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="over 0% to 100%"):
            draw_sample(ids, share, 0)


def test_quick_looks_at_every_row(planted):
    folder, _, sql = planted
    sql("UPDATE verdicts SET margin = margin + 1")
    with open_store(folder, write=False) as store:
        findings = check_structure(store).findings
        assert len([finding for finding in findings if "verdicts" in finding.reason]) == 3
        with pytest.raises(StoreDamaged):
            store.record(id_of("fan.txt"))
