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


def planned_windows(costs: Sequence[float], count: int, longest: int) -> list[int]:
    """The tokens of each of `count` windows, 1 to `longest`, for tokens that cost so much.

    Of equally good ones the last window is the shortest.

    Cost: `count * longest` steps over all tokens.
    """
    total = len(costs)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    least = np.full(total + 1, np.inf)  # of the first tokens in so many windows
    least[0] = 0.0
    lasts = []  # the length of the last of so many windows, by the tokens they end at
    for _ in range(count):
        ends = np.full((longest, total + 1), np.inf)
        for length in range(1, min(longest, total) + 1):
            ends[length - 1, length:] = least[:-length] + (sums[length:] - sums[:-length]) ** 2
        lasts.append(ends.argmin(0) + 1)
        least = ends.min(0)
    lengths, end = list[int](), total
    for last in reversed(lasts):
        lengths.append(int(last[end]))
        end -= lengths[-1]
    return lengths[::-1]
