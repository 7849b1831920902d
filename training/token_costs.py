"""What a token of the vocabulary costs a reader of vectors, by which their windows are planned.

It is the mean of the bits in which the model alone would code it, wherever it stands in texts like
those that are read, and BASE more: a token that was expected takes its place as well. Digits are
never expected, endings of words mostly are, whatever their number: so windows planned by it are as
good as those planned by the bits of each token in its own text, which would cost a pass of the
whole model and could not be planned again exactly.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.evaluation.baselines import nats
from rag_memtok.model.lm import LM

TEXTS = 2500  # that are measured, drawn at random
BASE = 3.0  # bits
FEW = 3  # a token seen so often is half itself, half what the rare ones cost on average


def token_costs(lm: LM, texts: Sequence[str], seed: int = 0) -> Float[Tensor, " V"]:
    """The cost of each token id, in bits, of half precision. Cost: a pass over each of the texts.

    A token that was seen seldom is taken to cost what those do that were seen once or twice.
    """
    chosen = random.Random(seed).sample(list(texts), min(TEXTS, len(texts)))
    sums, counts = np.zeros(len(lm.table)), np.zeros(len(lm.table))
    for text in chosen:
        tokens = lm.encode(text)
        np.add.at(sums, tokens, nats(lm, tokens).double().cpu().numpy() / math.log(2))
        np.add.at(counts, tokens, 1)
    seldom = (counts > 0) & (counts < FEW)
    rare = sums[seldom].sum() / max(1, counts[seldom].sum())
    return torch.from_numpy((sums + FEW * rare) / (counts + FEW) + BASE).half()
