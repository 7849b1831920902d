"""How a chunk's tokens are shared out among its readable vectors: a window of tokens for each.

Windows of one length give "of the" as much room as a name or a date. Planned windows are as many,
and none is longer than MOST tokens, but what a language model expects is put together and what it
does not stands alone: the sum over the windows of the square of their costs is the smallest there
is, a token's cost being the bits in which the model alone would code it and BASE more.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.model.lm import LM

BASE = 4.0  # bits: a token that was expected takes its place as well
MOST = 8  # tokens of a planned window


def count_windows(tokens: int, window: int) -> int:
    """The number of vectors for `tokens` tokens: ceil(tokens / window)."""
    return -(-tokens // window)


def equal_windows(tokens: int, window: int) -> list[int]:
    """The tokens of each vector, `window` but for the last."""
    return [min(window, tokens - start) for start in range(0, tokens, window)]


def planned_windows(lm: LM, tokens: Sequence[int], window: int) -> list[int]:
    """The tokens of each of as many vectors, the unexpected ones in shorter windows.

    Cost: a pass of the LM over the tokens.
    """
    count, most = count_windows(len(tokens), window), max(MOST, window)
    return share_out((nats(lm, tokens) / math.log(2) + BASE).tolist(), count, most)


@torch.inference_mode()
def nats(lm: LM, tokens: Sequence[int]) -> Float[Tensor, " T"]:
    """How little each token is expected after those before it. Cost: a pass of the LM."""
    first = lm.eos if lm.bos is None else lm.bos
    scores = lm.logits(lm.hidden(lm.embed([first, *tokens[:-1]])[None])[0])
    return torch.nn.functional.cross_entropy(
        scores.float(), torch.tensor(list(tokens), device=lm.device), reduction="none"
    )


def share_out(costs: Sequence[float], count: int, most: int) -> list[int]:
    """The lengths of `count` windows of 1 to `most` tokens whose squared costs sum up to least.

    Of equals the shorter window at the end. Cost: `count * most` steps over all tokens.
    """
    total = len(costs)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    least = np.full(total + 1, np.inf)  # of the first tokens in so many windows
    least[0] = 0.0
    lasts = []  # the length of the last of so many windows, by the tokens they end at
    for _ in range(count):
        ends = np.full((most, total + 1), np.inf)
        for length in range(1, min(most, total) + 1):
            ends[length - 1, length:] = least[:-length] + (sums[length:] - sums[:-length]) ** 2
        lasts.append(ends.argmin(0) + 1)
        least = ends.min(0)
    lengths, end = list[int](), total
    for last in reversed(lasts):
        lengths.append(int(last[end]))
        end -= lengths[-1]
    return lengths[::-1]
