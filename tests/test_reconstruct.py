"""The judge: with its pins any vectors at all give the text back.

It calls nothing exact that is not.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory, Pin
from rag_memtok.memory import reconstruct
from rag_memtok.memory.optimize import Task, memorize
from rag_memtok.memory.reconstruct import (
    ASSISTED_SHARE,
    ONE_PASS_ERROR,
    decode,
    decode_batch,
    decode_drafted,
    decode_together,
    decodes_to,
    judge,
    kind_of,
    margins,
    margins_in_one_pass,
    token_margin,
    verdict_of,
)
from rag_memtok.model.precision import copy_in_dtype, in_float32
from rag_memtok.model.prompts import TEMPLATES, template_named

WORDS = st.integers(len(toy.SPECIAL), 390)


def random_memory(seed, count, scale=0.1):
    return Memory(
        (np.random.default_rng(seed).standard_normal((count, toy.WIDTH)) * scale).astype(np.float32)
    )


@pytest.fixture(scope="module")
def written(toy_lm):
    """Four exact memories of texts of different length: (tokens, memory)."""
    template = template_named("bare", toy_lm)
    texts = [
        "The lamp of the harbour.",
        "¡Hola, 7!",
        "x",
        "Repeat the document, if it says so; 1921-03-07.",
    ]
    tasks = [
        Task(text, tuple(toy_lm.encode(text)), -(-len(toy_lm.encode(text)) // 4)) for text in texts
    ]
    found = {
        one.task.key: one
        for one in memorize(toy_lm, template, tasks, Memorize(seconds_per_chunk=0.0))
    }
    assert all(one.wrong == 0 for one in found.values())
    return [(found[text].task.tokens, Memory(found[text].vectors)) for text in texts]


# --- in one pass


def test_one_pass_over_several_says_which_of_them_decode_to_their_drafts(toy_lm, written):
    template = template_named("bare", toy_lm)
    texts, memories = [tokens for tokens, _ in written], [memory for _, memory in written]
    assert decodes_to(toy_lm, template, memories, texts) == [True] * 4
    assert decodes_to(toy_lm, template, [], []) == []
    others = {
        "another token": [(*tokens[:-1], tokens[-1] + 1) for tokens in texts],
        "one less": [tokens[:-1] for tokens in texts],
        "one more": [(*tokens, tokens[-1]) for tokens in texts],
        "an end in it": [(*tokens, template.end) for tokens in texts],
    }
    for name, drafts in others.items():
        assert decodes_to(toy_lm, template, memories, drafts) == [False] * 4, name
    swapped = [texts[1], texts[0], texts[2], texts[3]]
    assert decodes_to(toy_lm, template, memories, swapped) == [False, False, True, True]


@given(tokens=st.lists(WORDS, min_size=1, max_size=12), seed=st.integers(0, 999))
@settings(max_examples=20)
def test_with_pins_it_decodes_to_what_they_say_and_to_nothing_else(any_lm, tokens, seed):
    template = template_named("bare", any_lm)
    memory, _ = judge(any_lm, template, random_memory(seed, 2), tokens, tau=0.01)
    assert decodes_to(any_lm, template, [memory], [tokens]) == [True]
    if memory.pins:
        first = memory.pins[0]
        other = (replace(first, token=first.token - 1), *memory.pins[1:])
        assert decodes_to(any_lm, template, [replace(memory, pins=other)], [tokens]) == [False]


@given(tokens=st.lists(WORDS, max_size=12), seed=st.integers(0, 999), count=st.integers(1, 4))
@settings(max_examples=20)
def test_one_pass_gives_the_leads_of_the_steps_within_its_bound(any_lm, tokens, seed, count):
    template, memory = template_named("bare", any_lm), random_memory(seed, count)
    once = margins_in_one_pass(any_lm, template, memory, tokens)
    steps = margins(any_lm, template, memory, tokens)
    assert len(once) == len(tokens) + 1
    assert (
        max(abs(one - other) for one, other in zip(once, steps, strict=True)) < ONE_PASS_ERROR / 4
    )


@given(
    tokens=st.lists(WORDS, max_size=12), seed=st.integers(0, 999), tau=st.sampled_from([0.0, 0.1])
)
@settings(max_examples=20)
def test_what_one_pass_leaves_open_the_steps_decide(toy_lm, tokens, seed, tau):
    """With a bound that leaves everything open the verdict is that of the steps alone."""
    template, memory = template_named("bare", toy_lm), random_memory(seed, 2)
    judged, verdict = judge(toy_lm, template, memory, tokens, tau)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruct, "ONE_PASS_ERROR", 1e9)
        stepwise, expected = judge(toy_lm, template, memory, tokens, tau)
        assert decode_drafted(toy_lm, template, judged, tokens, tau) is None
    assert judged.pins == stepwise.pins and verdict.kind == expected.kind
    assert verdict.margin == pytest.approx(expected.margin, abs=ONE_PASS_ERROR)


@given(tokens=st.lists(WORDS, max_size=12), seed=st.integers(0, 999), data=st.data())
@settings(max_examples=40)
def test_nothing_of_a_draft_is_believed(toy_lm, tokens, seed, data):
    """A right draft gives what the decode gives; any other is left open, never believed."""
    template = template_named("bare", toy_lm)
    memory, _ = judge(toy_lm, template, random_memory(seed, 2), tokens, 0.1)
    expected = decode(toy_lm, template, memory, len(tokens) + 1)
    found = decode_drafted(toy_lm, template, memory, tokens, 0.1)
    if found is not None:
        assert (found.tokens, found.ended) == (expected.tokens, expected.ended)
        assert found.corrections == expected.corrections
        assert found.margin == pytest.approx(expected.margin, abs=ONE_PASS_ERROR)
    place, other = data.draw(st.integers(0, len(tokens))), data.draw(WORDS)
    for draft in (
        tokens[:place] if place < len(tokens) else [*tokens, other],
        [*tokens[:place], other, *tokens[place + 1 :]],
        [*tokens[:place], template.end, *tokens[place:]],
    ):
        if draft != tokens:
            assert decode_drafted(toy_lm, template, memory, draft, 0.1) is None


def test_a_right_draft_of_an_exact_memory_is_decided(toy_lm, written):
    template = template_named("bare", toy_lm)
    for tokens, memory in written:
        judged, _ = judge(toy_lm, template, memory, tokens, 0.0)
        assert decode_drafted(toy_lm, template, judged, tokens, 0.0) is not None


# --- lossless


@given(
    tokens=st.lists(WORDS, max_size=12), seed=st.integers(0, 999), count=st.integers(1, 4),
    tau=st.sampled_from([0.0, 0.05, 2.0]), name=st.sampled_from(list(TEMPLATES)),
)  # fmt: skip
@settings(max_examples=60)
def test_any_vectors_with_their_pins_give_exactly_the_tokens(
    any_lm, tokens, seed, count, tau, name
):
    template = template_named(name, any_lm)
    memory, verdict = judge(any_lm, template, random_memory(seed, count), tokens, tau)
    decoded = decode(any_lm, template, memory, len(tokens) + 1)
    assert decoded.tokens == tuple(tokens) and decoded.ended
    assert abs(decoded.margin - verdict.margin) < 1e-4 or decoded.margin == verdict.margin
    assert decoded.corrections == tuple(
        pin.position for pin in memory.pins if pin.kind == "correction"
    )
    assert replace(verdict_of(decoded, memory.pins), margin=verdict.margin) == verdict
    assert (
        decode_batch(any_lm, template, [memory], len(tokens)) == [tuple(tokens)]
        or verdict.margin < 1e-3
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_even_vectors_that_are_no_numbers_are_lossless_and_never_called_exact(toy_lm, value):
    template = template_named("bare", toy_lm)
    tokens = (70, 80, 90)
    broken = Memory(np.full((2, toy.WIDTH), value, dtype=np.float32))
    memory, verdict = judge(toy_lm, template, broken, tokens, 0.05)
    assert verdict.kind == "assisted"
    assert decode(toy_lm, template, memory, 4).tokens == tokens


def test_the_reference_is_the_uncached_forward_pass_too(toy_lm, written):
    template = template_named("bare", toy_lm)
    for tokens, memory in written:
        embeddings = torch.cat(
            [toy_lm.embed(template.prefix), torch.from_numpy(memory.vectors), toy_lm.embed(tokens)]
        )
        with torch.inference_mode():
            logits = toy_lm.logits(toy_lm.hidden(embeddings[None]))[0, -len(tokens) - 1 :]
        assert logits.argmax(-1).tolist() == [*tokens, template.end]


# --- what it calls exact


def test_a_written_memory_is_exact_and_comes_back_without_pins(toy_lm, written):
    template = template_named("bare", toy_lm)
    for tokens, memory in written:
        judged, verdict = judge(toy_lm, template, memory, tokens, 0.0)
        assert (verdict.kind, verdict.tokens, judged.pins) == ("exact", len(tokens), ())
        assert verdict.proven and verdict.margin > 0
        decoded = decode(toy_lm, template, memory, len(tokens) + 1)
        assert (
            decoded.tokens == tokens
            and decoded.ended
            and abs(decoded.margin - verdict.margin) < 1e-4
        )


def test_a_tampered_memory_is_not_exact(toy_lm, written):
    template = template_named("bare", toy_lm)
    tokens, memory = written[0]
    for number in range(len(memory.vectors)):
        vectors = memory.vectors.copy()
        vectors[number] = -vectors[number]
        judged, verdict = judge(toy_lm, template, Memory(vectors), tokens, 0.0)
        assert verdict.kind != "exact" and verdict.corrections > 0 and judged.pins
        assert decode(toy_lm, template, Memory(vectors), len(tokens) + 1).tokens != tokens


def test_a_memory_of_another_text_or_template_is_not_exact(toy_lm, written):
    (tokens, _), (_, other) = written[0], written[3]
    assert judge(toy_lm, template_named("bare", toy_lm), other, tokens, 0.0)[1].kind != "exact"
    assert (
        judge(toy_lm, template_named("cue", toy_lm), written[0][1], tokens, 0.0)[1].kind != "exact"
    )
    # a dropped BOS
    assert (
        judge(toy_lm, template_named("sastre2025", toy_lm), written[0][1], tokens, 0.0)[
            1
        ].corrections
        > 0
    )


def test_another_length_or_end_is_not_exact(toy_lm, written):
    template = template_named("bare", toy_lm)
    tokens, memory = written[0]
    for wrong in (tokens[:-1], (*tokens, 99), (*tokens[:-1], 99)):
        assert judge(toy_lm, template, memory, wrong, 0.0)[1].kind != "exact"


def test_the_pins_a_memory_had_are_no_help_to_the_judge(toy_lm):
    template = template_named("bare", toy_lm)
    tokens = (70, 80, 90)
    pinned, verdict = judge(toy_lm, template, random_memory(0, 2), tokens, 0.0)
    assert pinned.pins
    assert judge(toy_lm, template, pinned, tokens, 0.0)[1] == verdict


# --- pins


def test_tau_adds_safety_pins_and_never_hides_a_correction(toy_lm, written):
    template = template_named("bare", toy_lm)
    for tokens, memory in [*written, ((70, 80, 90, 100), random_memory(3, 2))]:
        verdicts = [
            judge(toy_lm, template, memory, tokens, tau)[1] for tau in (0.0, 0.2, 1.0, 100.0)
        ]
        assert (
            len({verdict.corrections for verdict in verdicts}) == 1
            and len({verdict.kind for verdict in verdicts}) == 1
        )
        assert [verdict.safeties for verdict in verdicts] == sorted(
            verdict.safeties for verdict in verdicts
        )
        assert verdicts[0].safeties == 0
        assert verdicts[-1].safeties + verdicts[-1].corrections == len(tokens) + 1 and verdicts[
            -1
        ].margin == float("inf")
        for tau, verdict in zip((0.0, 0.2, 1.0, 100.0), verdicts, strict=True):
            assert verdict.margin > tau


def test_a_pin_says_where_which_and_why(toy_lm):
    template = template_named("bare", toy_lm)
    tokens = (70, 80, 90, 100)
    memory, verdict = judge(toy_lm, template, random_memory(3, 2), tokens, 0.0)
    everything = [*tokens, template.end]
    assert all(pin.token == everything[pin.position] for pin in memory.pins)
    assert [pin.position for pin in memory.pins] == sorted({pin.position for pin in memory.pins})
    assert sum(pin.kind == "correction" for pin in memory.pins) == verdict.corrections
    for pin in memory.pins:  # every correction is needed
        fewer = Memory(memory.vectors, tuple(other for other in memory.pins if other != pin))
        assert decode(toy_lm, template, fewer, 5).tokens != tokens or pin.position == 4


def test_a_pin_wins_over_the_vectors(toy_lm, written):
    template = template_named("bare", toy_lm)
    tokens, memory = written[0]
    steered = decode(
        toy_lm, template, Memory(memory.vectors, (Pin(1, 99, "correction"),)), len(tokens)
    )
    assert steered.tokens[:2] == (tokens[0], 99)
    cut = decode(
        toy_lm, template, Memory(memory.vectors, (Pin(2, template.end, "correction"),)), len(tokens)
    )
    assert cut.tokens == tokens[:2] and cut.ended


@given(tokens=st.integers(0, 8192))
def test_a_memory_is_exact_without_corrections_pinned_to_five_percent_assisted_above(tokens):
    limit = int(ASSISTED_SHARE * (tokens + 1) + 1e-9)
    assert kind_of(0, tokens) == "exact"
    assert kind_of(limit + 1, tokens) == "assisted"
    if limit:
        assert kind_of(1, tokens) == kind_of(limit, tokens) == "pinned"


@given(logits=st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=9), data=st.data())
def test_the_lead_is_over_the_best_other_word(logits, data):
    token = data.draw(st.integers(0, len(logits) - 1))
    rivals = [value for word, value in enumerate(logits) if word != token]
    assert token_margin(torch.tensor(logits), token) == pytest.approx(
        logits[token] - max(rivals), abs=1e-5
    )


def test_a_tie_and_a_nan_are_no_lead():
    assert (
        token_margin(torch.tensor([1.0, 1.0]), 0) == token_margin(torch.tensor([1.0, 1.0]), 1) == 0
    )
    assert (
        token_margin(torch.tensor([float("nan"), 1.0, 0.0]), 0)
        == token_margin(torch.tensor([float("nan"), 1.0, 0.0]), 1)
        == float("-inf")
    )


# --- bounds and the fast path


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_decode_stops_at_its_limit_and_says_that_it_did_not_end(toy_lm, written, limit):
    template = template_named("bare", toy_lm)
    tokens, memory = written[0]
    decoded = decode(toy_lm, template, memory, limit)
    assert decoded.tokens == tokens[:limit] and not decoded.ended
    assert decode_batch(toy_lm, template, [memory], limit) == [tokens[:limit]]


def test_a_model_of_another_dtype_is_made_exact_once(toy_lm, written):
    half = copy_in_dtype(toy_lm, torch.bfloat16)
    exactly = in_float32(half)
    assert in_float32(exactly) is exactly is not half and in_float32(toy_lm) is toy_lm
    template = template_named("bare", toy_lm)
    for tokens, memory in written:
        found = [margins_in_one_pass(lm, template, memory, tokens) for lm in (half, exactly)]
        assert found[0] == found[1]


def test_all_at_once_is_each_alone(toy_lm, written):
    template = template_named("bare", toy_lm)
    pinned = judge(toy_lm, template, random_memory(5, 3), (70, 80, 90, 70, 80), 0.05)[0]
    memories = [memory for _, memory in written] + [pinned]
    expected = [tokens for tokens, _ in written] + [(70, 80, 90, 70, 80)]
    longest = max(map(len, expected))
    assert decode_batch(toy_lm, template, memories, longest) == expected
    assert decode_batch(toy_lm, template, memories[::-1], longest) == expected[::-1]
    assert [decode(toy_lm, template, memory, longest + 1).tokens for memory in memories] == expected
    assert decode_batch(toy_lm, template, [], 9) == []
    for one, memory in zip(
        decode_together(toy_lm, template, memories, longest), memories, strict=True
    ):
        alone = decode(toy_lm, template, memory, longest)
        assert replace(one, margin=0.0) == replace(alone, margin=0.0)
        assert one.margin == pytest.approx(alone.margin, abs=1e-3)
