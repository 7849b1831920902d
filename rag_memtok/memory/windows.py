"""How a chunk's tokens are shared out among its readable vectors: a window of tokens for each.

Windows of one length give "of the" as much room as a name or a date. Planned windows are as many,
but tokens that say little share one and those that say much have one for themselves: the sum over
the windows of the square of what their tokens cost is the smallest there is. What a token costs is
a table's; its numbers are of half precision, so that every sum is exact and every machine plans the
same.
"""

from collections.abc import Sequence

import numpy as np


def count_windows(tokens: int, window: int) -> int:
    """The number of vectors for `tokens` tokens: ceil(tokens / window)."""
    return -(-tokens // window)


def equal_windows(tokens: int, window: int) -> list[int]:
    """The tokens of each vector, `window` but for the last."""
    return [min(window, tokens - start) for start in range(0, tokens, window)]


def planned_windows(costs: Sequence[Sequence[float]], count: int, longest: int) -> list[list[int]]:
    """The tokens of each window, `count` in all, of texts whose tokens cost so much.

    A window has 1 to `longest` tokens of one text. Of equally good ones the last is the shortest.

    Cost: `count * longest` steps over all tokens.
    """
    sums = np.concatenate([[0.0], np.cumsum([cost for text in costs for cost in text])])
    within = [0, *(place for text in costs for place in range(1, len(text) + 1))]
    before = np.array(within)  # the tokens of its own text up to each
    least = np.full(len(sums), np.inf)  # of the first tokens in so many windows
    least[0] = 0.0
    lasts = []  # the length of the last of so many windows, by the tokens they end at
    for _ in range(count):
        ends = np.full((longest, len(sums)), np.inf)
        for length in range(1, min(longest, len(sums) - 1) + 1):
            ends[length - 1, length:] = np.where(
                before[length:] >= length,
                least[:-length] + (sums[length:] - sums[:-length]) ** 2,
                np.inf,
            )
        lasts.append(ends.argmin(0) + 1)
        least = ends.min(0)
    lengths, end = list[int](), len(sums) - 1
    for last in reversed(lasts):
        lengths.append(int(last[end]))
        end -= lengths[-1]
    return [_taken(lengths, len(text)) for text in costs]


def _taken(lengths: list[int], tokens: int) -> list[int]:
    """The windows of so many tokens, off the end of `lengths`."""
    taken = list[int]()
    while sum(taken) < tokens:
        taken.append(lengths.pop())
    return taken
