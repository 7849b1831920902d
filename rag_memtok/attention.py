"""Attention for drafts on a CPU: eager attention's arithmetic in fewer passes over the scores, which are most of its time."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def lean(
    module: torch.nn.Module,
    query: Float[Tensor, "B H S D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    attention_mask: Float[Tensor, "_ _ S T"] | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "B S H D"], None]:
    """Attention as transformers asks for it, for sequences that share one mask (of the first it is taken for all) and no dropout.

    The scale and the mask are part of the product, the softmax is taken in the model's own dtype, and heads that share keys are not copied.
    """
    batch, heads, length, width = query.shape
    groups = batch * key.shape[1]
    queries = query.reshape(groups, -1, width)
    keys, values = key.reshape(groups, -1, width), value.reshape(groups, -1, width)
    mask = query.new_zeros(1, 1) if attention_mask is None else attention_mask[0, 0].repeat(heads // key.shape[1], 1)
    scores = torch.baddbmm(mask, queries, keys.mT, alpha=width**-0.5 if scaling is None else scaling)
    found = torch.bmm(scores.softmax(-1), values)
    return found.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None
