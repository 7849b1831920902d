"""How a chunk's tokens are shared out among its readable vectors."""

import itertools

import numpy as np
import pytest
import torch
import toy

from rag_memtok.memory.windows import (
    MOST,
    count_windows,
    equal_windows,
    nats,
    planned_windows,
    share_out,
)

TEXT = "The library opens at nine. Members may borrow 12 books for 28 days."


@pytest.mark.parametrize(("tokens", "window"), [(1, 4), (4, 4), (5, 4), (128, 8), (7, 1)])
def test_equal_windows_hold_every_token_once(tokens, window):
    found = equal_windows(tokens, window)
    assert sum(found) == tokens and len(found) == count_windows(tokens, window)
    assert set(found[:-1]) <= {window} and 1 <= found[-1] <= window


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("tokens", "count", "most"), [(9, 3, 4), (8, 2, 4), (7, 4, 8), (5, 5, 3)])
def test_no_other_windows_have_a_smaller_sum_of_squares(seed, tokens, count, most):
    costs = np.random.default_rng(seed).uniform(0, 10, tokens).tolist()

    def sum_of(lengths):
        ends = itertools.accumulate(lengths)
        return sum(
            sum(costs[end - size : end]) ** 2 for end, size in zip(ends, lengths, strict=True)
        )

    every = [
        one for one in itertools.product(range(1, most + 1), repeat=count) if sum(one) == tokens
    ]
    found = share_out(costs, count, most)
    assert tuple(found) in every
    assert sum_of(found) == pytest.approx(min(map(sum_of, every)))


def test_what_costs_much_stands_alone():
    assert share_out([1.0, 1.0, 1.0, 9.0, 1.0, 1.0], 3, 4) == [3, 1, 2]


def test_nats_are_those_of_the_text_alone_and_sum_up_to_its_likelihood():
    lm = toy.lm_of("llama")
    tokens = lm.encode(TEXT)
    found = nats(lm, tokens)
    opening = lm.eos if lm.bos is None else lm.bos
    with torch.no_grad():
        scores = lm.logits(lm.hidden(lm.embed([opening, *tokens])[None])[0])[:-1]
    wanted = -scores.log_softmax(-1)[range(len(tokens)), tokens]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("window", [2, 4, 8, 12])
def test_planned_windows_are_as_many_as_equal_ones(window):
    lm = toy.lm_of("llama")
    tokens = lm.encode(TEXT)
    found = planned_windows(lm, tokens, window)
    assert sum(found) == len(tokens) and len(found) == count_windows(len(tokens), window)
    assert 1 <= min(found) and max(found) <= max(MOST, window)
