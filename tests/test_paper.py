"""The paper's protocol.

Tested are its texts, its numbers against a recomputation, going on with a run, tables and charts.
"""

import json
import statistics
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.config import Memorize
from rag_memtok.datatypes import sha256_of_text
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.evaluation import paper
from rag_memtok.evaluation.corpora import (
    Corpus,
    cut_texts,
    from_csv,
    from_documents,
    load_corpora,
    spread_evenly,
)
from rag_memtok.evaluation.paper import Protocol, Trial
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import RECIPES
from rag_memtok.model.prompts import template_named

CORPORA = (
    Corpus("short", ("The lamp of the harbour", "La empanada lleva")),
    Corpus("long", ("Question: who wrote the letter? Answer",)),
)
PROTOCOL = Protocol(recipe="cross-entropy", vectors=2, steps=60, batch=4)
ENGLISH = "The lamp of the harbour was repaired in March, and it is red. " * 3
SPANISH = "La lámpara de la casa se arregla en el mes de marzo y es de las rojas. " * 3


def quiet(standing):
    pass


# --- texts


def test_a_csv_gives_its_chunks(tmp_path):
    file = tmp_path / "chunks.csv"
    file.write_text(
        '\ufeffpath,chunk\na,"one, two\nthree"\nb,\nc,ñandú\nd,"one, two\nthree"\ne,last\n',
        encoding="utf-8",
    )
    assert from_csv(file, 20) == Corpus("chunks", ("one, two\nthree", "ñandú", "last"))
    assert from_csv(file, 2).texts == ("one, two\nthree", "ñandú")


@pytest.mark.parametrize("content", [b"", b"path,text\na,b\n", b"chunk\n\xff\xfe\n"])
def test_a_csv_without_chunks_is_refused(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputRefused, match=r"x\.csv") as refused:
        from_csv(tmp_path / "x.csv", 20)
    assert refused.value.remedy


def test_a_csv_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputRefused, match="nowhere"):
        load_corpora(tmp_path / "nowhere.csv", None, [100], 20)
    with pytest.raises(UsageError, match="no texts"):
        load_corpora(None, None, [100], 20)


@given(texts=st.lists(st.text("ab \n", max_size=40), max_size=4), length=st.integers(1, 9))
def test_cutting_gives_every_stretch_of_that_length_once(texts, length):
    found = cut_texts(texts, length)
    assert all(len(part) == length and part.strip() for part in found) and len(found) == len(
        set(found)
    )
    for text in texts:
        for start in range(0, len(text) // length * length, length):
            assert text[start : start + length] in found or not text[start : start + length].strip()


@given(count=st.integers(0, 40), limit=st.integers(1, 50))
def test_spread_takes_as_many_as_there_may_be_in_order(count, limit):
    texts = [str(number) for number in range(count)]
    found = spread_evenly(texts, limit)
    assert len(found) == min(count, limit) == len(set(found)) and list(found) == sorted(
        found, key=int
    )


def test_documents_are_cut_by_language(tmp_path):
    (tmp_path / "one.txt").write_text(ENGLISH)
    (tmp_path / "dos.txt").write_text(SPANISH)
    found = {corpus.name: corpus.texts for corpus in from_documents(tmp_path, [50, 150, 5000], 2)}
    assert list(found) == [
        "English, 50 characters",
        "English, 150 characters",
        "Spanish, 50 characters",
        "Spanish, 150 characters",
    ]
    assert found["Spanish, 150 characters"] == (SPANISH[:150],)
    assert found["English, 50 characters"] == (ENGLISH[:50], ENGLISH[50:100])
    with pytest.raises(InputRefused, match="5000"):
        from_documents(tmp_path, [5000], 2)


# --- the numbers


def recomputed(one, text):
    """Accuracy, the smallest lead and whether the greedy decode is the text.

    They are found by transformers' own forward pass and generation.
    """
    template, recipe = template_named("bare", one), replace(RECIPES["cross-entropy"], steps=60)
    tokens = tuple(one.encode(text))
    settings = Memorize(seconds_per_chunk=0.0, batch=1)
    (written,) = memorize(
        one, template, [Task(sha256_of_text(text), tokens, 2)], settings, recipe=recipe
    )
    prompt = torch.cat([one.embed([one.bos]), torch.from_numpy(written.vectors)])
    with torch.no_grad():
        logits = one.model(inputs_embeds=torch.cat([prompt, one.embed(tokens)])[None]).logits[0, 2:]
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        generated = one.model.generate(
            inputs_embeds=prompt[None],
            attention_mask=mask,
            max_new_tokens=len(tokens) + 1,
            do_sample=False,
            pad_token_id=2,
        )
    wanted = torch.tensor([*tokens, one.eos])
    right = logits.gather(1, wanted[:, None])[:, 0]
    lead = right - logits.scatter(1, wanted[:, None], -torch.inf).max(1).values
    return {
        "accuracy": float((logits.argmax(-1) == wanted).float().mean()),
        "free": generated[0].tolist() == wanted.tolist(),
        "margin": float(lead.min()),
        "steps": written.steps,
        "tokens": len(tokens),
    }


@pytest.fixture(scope="module")
def tried(toy_lm):
    return list(paper.run(toy_lm, CORPORA, PROTOCOL, None, quiet))


def test_the_tables_numbers_are_those_of_a_recomputation(toy_lm, tried):
    rows = paper.table_rows(tried)
    assert [(row.corpus, row.model, row.texts) for row in rows] == [
        ("short", "toy-llama", 2),
        ("long", "toy-llama", 1),
    ]
    for row, corpus in zip(rows, CORPORA, strict=True):
        expected = [recomputed(toy_lm, text) for text in corpus.texts]
        assert row.accuracy == pytest.approx(statistics.fmean(one["accuracy"] for one in expected))
        assert row.exact == sum(one["accuracy"] == 1 for one in expected)
        assert row.free == sum(one["free"] for one in expected)
        assert row.steps == statistics.median(one["steps"] for one in expected)
        assert row.tokens == statistics.fmean(one["tokens"] for one in expected)
        assert row.characters == statistics.fmean(map(len, corpus.texts))
        smallest = min((one["margin"] for one in expected if one["free"]), default=None)
        assert row.margin == (None if smallest is None else pytest.approx(smallest, abs=0.02))
        assert row.parameters == toy_lm.parameters and row.seconds > 0
    assert sum(row.exact for row in rows) > 0, "a test of nothing"


def test_a_text_that_does_not_fit_is_counted_with_what_is_right(toy_lm):
    (trial,) = paper.run(toy_lm, [CORPORA[1]], replace(PROTOCOL, vectors=1, steps=2), None, quiet)
    assert (
        trial.wrong > 0
        and not trial.free
        and trial.margin < 0
        and 0 <= trial.accuracy < 1
        and trial.steps <= 3
    )  # with the one after a draft
    (row,) = paper.table_rows([trial])
    assert (row.exact, row.free, row.margin) == (0, 0, None)


@pytest.mark.parametrize(
    ("recipe", "steps", "budget"),
    [("sastre2025", 0, 3000), ("sastre2025", 50, 50), ("margin", 0, RECIPES["margin"].steps)],
)
def test_a_text_takes_the_recipes_own_number_of_steps_unless_told(recipe, steps, budget):
    assert Protocol(recipe=recipe, steps=steps).budget == budget


# --- going on


def test_a_run_goes_on_where_it_was(toy_lm, tried, tmp_path):
    out, seen = tmp_path / "new" / "trials.jsonl", []
    first = paper.run(toy_lm, CORPORA, PROTOCOL, out, quiet)
    kept = next(first)
    first.close()
    with out.open("a") as file:
        file.write(json.dumps(asdict(tried[-1]))[:60])  # cut off
    found = list(paper.run(toy_lm, CORPORA, replace(PROTOCOL, batch=1), out, seen.append))
    assert found[0] == kept and {trial.text for trial in found} == {trial.text for trial in tried}
    assert seen[0].done == 1 and seen[-1].done == seen[-1].total == 3
    before = out.read_text()
    again = list(paper.run(toy_lm, CORPORA, PROTOCOL, out, quiet))
    assert {trial.key for trial in again} == {
        trial.key for trial in found
    } and out.read_text() == before
    assert [
        trial.wrong
        for trial in paper.run(toy_lm, CORPORA[:1], replace(PROTOCOL, steps=1), out, quiet)
    ] != [0, 0]


def test_time_left_is_never_less_than_nothing_and_ends_at_nothing(toy_lm):
    seen = []
    list(paper.run(toy_lm, CORPORA, replace(PROTOCOL, steps=3), None, seen.append))
    left = [standing.seconds_left for standing in seen if standing.seconds_left is not None]
    assert left and min(left) >= 0 and left[-1] == 0


def test_a_file_of_something_else_is_not_added_to(toy_lm, tmp_path):
    (tmp_path / "notes.txt").write_text("my notes\n")
    with pytest.raises(UsageError, match="notes"):
        list(paper.run(toy_lm, CORPORA, PROTOCOL, tmp_path / "notes.txt", quiet))
    assert (tmp_path / "notes.txt").read_text() == "my notes\n"


# --- charts


def trial(model, parameters, tokens, wrong, corpus="c"):
    return Trial(
        model=model,
        weights=model,
        dtype="float32",
        parameters=parameters,
        corpus=corpus,
        text=f"{tokens}",
        protocol=PROTOCOL,
        characters=4 * tokens,
        tokens=tokens,
        wrong=wrong,
        free=wrong == 0,
        steps=9,
        seconds=1.0,
        margin=0.5,
    )


def test_charts_show_size_and_length():
    trials = [trial("big", 2_000_000, length, 0) for length in range(9, 19)]
    trials += [
        trial("small", 1_000_000, length, length + 1 if length > 13 else 0)
        for length in range(9, 19)
    ]
    found = paper.make_charts(trials)
    (line,) = found["figure2.png"].lines
    assert (line.name, line.x, line.y) == ("c", [1.0, 2.0], [5.0, 10.0])
    small, big = found["figure3.png"].lines
    assert (small.name, small.x, small.y) == ("small", [11.0, 16.0], [1.0, 0.0])
    assert big.y == [1.0, 1.0] and all(
        low <= mean <= high for low, mean, high in zip(small.low, small.y, small.high, strict=True)
    )
    assert list(paper.make_charts(trials[:10])) == ["figure3.png"]


def test_models_of_a_table_stand_by_size_under_their_corpus():
    trials = [
        trial("b", 3, 9, 0, "second"),
        trial("a", 5, 9, 0, "first"),
        trial("c", 1, 9, 0, "first"),
        trial("b", 3, 9, 1, "first"),
    ]
    assert [(row.corpus, row.model) for row in paper.table_rows(trials)] == [
        ("second", "b"),
        ("first", "c"),
        ("first", "b"),
        ("first", "a"),
    ]
