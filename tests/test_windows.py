"""How a chunk's tokens are shared out among its readable vectors."""

import itertools

import numpy as np
import pytest

from rag_memtok.memory.windows import count_windows, equal_windows, planned_windows


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
    found = planned_windows([costs], count, most)[0]
    assert tuple(found) in every
    assert sum_of(found) == pytest.approx(min(map(sum_of, every)))


def test_what_costs_much_stands_alone():
    assert planned_windows([[1.0, 1.0, 1.0, 9.0, 1.0, 1.0]], 3, 4) == [[3, 1, 2]]


@pytest.mark.parametrize("seed", range(8))
def test_texts_share_their_windows_and_none_has_tokens_of_two(seed):
    draw = np.random.default_rng(seed)
    texts = [draw.uniform(0, 10, size).tolist() for size in (5, 1, 3)]

    def sum_of(windows):
        whole = 0.0
        for costs, lengths in zip(texts, windows, strict=True):
            ends = list(itertools.accumulate(lengths))
            sizes = zip(ends, lengths, strict=True)
            whole += sum(sum(costs[end - size : end]) ** 2 for end, size in sizes)
        return whole

    def ways(tokens):
        for count in range(1, tokens + 1):
            for one in itertools.product(range(1, 5), repeat=count):
                if sum(one) == tokens:
                    yield one

    every = [
        one
        for one in itertools.product(*(list(ways(len(text))) for text in texts))
        if sum(map(len, one)) == 4
    ]
    found = planned_windows(texts, 4, 4)
    assert tuple(map(tuple, found)) in every
    assert sum_of(found) == pytest.approx(min(map(sum_of, every)))
