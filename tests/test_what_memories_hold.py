"""What the benchmarks count, on examples that can be counted by hand, and against transformers."""

import math
import zlib

import numpy as np
import pytest
import torch

from benchmarks import compression, embeddings
from rag_memtok.config import Memorize
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import memorize
from rag_memtok.model.prompts import template_named

TEXT = "The lamp of the harbour was repaired in March."


def test_the_nearest_is_by_cosine_and_recall_counts_queries():
    rows = np.array([[9.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    ranked = embeddings.nearest(np.array([[1.0, 0.1], [0.0, 5.0]]), rows)
    assert ranked.tolist() == [[0, 2, 1], [1, 2, 0]]
    right = [frozenset({2}), frozenset({0, 1})]
    assert [embeddings.recall(ranked, right, k) for k in (1, 2)] == [0.5, 1.0]


def test_a_row_does_not_vote_for_its_own_file():
    rows, labels = (
        np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.2], [0.0, 9.0]]),
        ["a", "a", "b", "b", "alone"],
    )
    # both of "a" are nearer to "b" or to nothing; "alone" is not asked
    assert embeddings.centroid_accuracy(rows, labels) == 0.5
    assert embeddings.centroid_accuracy(rows[:2], ["a", "a"]) == 1.0


def test_a_near_duplicate_lacks_every_seventh_word():
    assert embeddings.nearly("1 2 3 4 5 6 7 8 9") == "1 2 3 4 5 6 8 9"


def test_sample_questions_have_passages_with_their_answers(toy_lm):
    trials = embeddings.trials_of(toy_lm, 12)
    assert (
        len(trials.passages) >= 12
        and len(trials.duplicates) == len(trials.questions) == len(trials.right) == 6
    )
    assert all(trials.right) and max(map(max, trials.right)) < len(trials.passages)


def test_the_code_length_is_the_models_loss(toy_lm):
    tokens = toy_lm.encode(TEXT)
    ids = torch.tensor([[toy_lm.bos, *tokens, toy_lm.eos]])
    with torch.no_grad():
        loss = float(toy_lm.model(ids, labels=ids).loss) * (len(tokens) + 1)
    assert compression.code_length(toy_lm, tokens) == pytest.approx(loss / math.log(2), rel=1e-4)


def test_a_memory_is_charged_its_bytes_and_its_pins(toy_lm):
    template, tokens = template_named("bare", toy_lm), tuple(toy_lm.encode(TEXT))
    (one,) = memorize(
        toy_lm, template, [Task("x", tokens, len(tokens))], Memorize(seconds_per_chunk=0.0)
    )
    found = {
        row.way: row
        for row in compression.sizes(toy_lm, template, TEXT, tokens, one.vectors, one.vectors)
    }
    assert found["utf-8"].bits == 8 * len(TEXT) and found["zlib -9"].bits == 8 * len(
        zlib.compress(TEXT.encode(), 9)
    )
    price = math.ceil(math.log2(len(tokens) + 1)) + math.ceil(math.log2(len(toy_lm.table)))
    nothing, memory, small = (
        found[way] for way in ("no memory + pins", "memory, float16 + pins", "memory, int8 + pins")
    )
    assert nothing.bits == nothing.pins >= price * nothing.corrections > 0
    assert (
        memory.corrections == 0
        and memory.pins % price == 0
        and memory.bits - memory.pins == 16 * one.vectors.size
    )
    assert small.bits - small.pins == 8 * one.vectors.size + 32 * len(one.vectors)
