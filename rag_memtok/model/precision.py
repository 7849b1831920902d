"""The same LM in other arithmetic: the judge's fp32, the optimizer's low precision.

Low precision is bfloat16, with an attention of ours on a CPU, or compiled.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.errors import UsageError
from rag_memtok.model.device import has_bfloat16
from rag_memtok.model.lm import LM
from rag_memtok.model.quantize import dequantized_config, dequantized_weights


@contextlib.contextmanager
def reference_profile(lm: LM) -> Iterator[LM]:
    """Gives `lm` in the arithmetic of the judge.

    That is fp32 over the weights as stored, TF32 off, eager attention.

    Cost: nothing for an fp32 model; for another dtype a copy of the weights in fp32 while the
        context is open.
    """
    exactly = in_float32(lm)
    attention = exactly.model.config._attn_implementation
    precision = torch.get_float32_matmul_precision()
    exactly.model.set_attn_implementation("eager")
    torch.set_float32_matmul_precision("highest")
    try:
        yield exactly
    finally:
        exactly.model.set_attn_implementation(attention)
        torch.set_float32_matmul_precision(precision)


def in_float32(lm: LM) -> LM:
    """`lm` itself, or a copy of it in fp32 where its dtype is another.

    Whoever judges many memories takes it once: `reference_profile` makes nothing of an fp32 model.

    Cost: nothing, or the weights once more.
    """
    return lm if lm.table.dtype == torch.float32 else copy_in_dtype(lm, torch.float32)


def copy_in_dtype(lm: LM, dtype: torch.dtype) -> LM:
    """A copy of `lm` that computes in `dtype`, on a CPU in lean attention if that is bfloat16.

    Cost: the weights once more.
    """
    weights = {name: value.to(dtype) for name, value in dequantized_weights(lm.model).items()}
    model: Any = type(lm.model)(dequantized_config(lm.model))
    computed = {name: value for name, value in model.named_buffers() if name not in weights}
    model = model.to(device=lm.device, dtype=dtype)
    # the rotary frequencies: rounded to bfloat16 they lose their place within some hundred
    # positions
    for name, value in computed.items():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, value.to(lm.device))
    model.load_state_dict(weights)
    model.tie_weights()
    if lm.device.type == "cpu":
        model.set_attn_implementation(
            _register_lean_attention() if dtype == torch.bfloat16 else "eager"
        )
    return LM(model.eval().requires_grad_(False), lm.tokenizer, lm.identity)


def uses_low_precision(lm: LM, wish: str) -> bool:
    """Whether most steps are taken in bfloat16: only for an fp32 LM.

    With `wish` "auto" only where the hardware computes in it.
    """
    return lm.table.dtype == torch.float32 and (
        wish in ("bfloat16", "compiled") or (wish == "auto" and has_bfloat16(lm.device))
    )


def low_precision_copy(lm: LM, wish: str) -> LM:
    """A copy of `lm` in bfloat16, for the low-precision phase.

    Cost: the weights once more, and what `compile_layers` costs if that is the wish.
    """
    draft = copy_in_dtype(lm, torch.bfloat16)
    return compile_layers(draft) if wish == "compiled" else draft


def for_reading(lm: LM) -> LM:
    """`lm` in the arithmetic in which texts are read to answer a question.

    It is bfloat16 where the hardware multiplies it and the weights are numbers of that type, so
    that nothing but the arithmetic changes; else as it is.

    Cost: the weights in half their size once more, and a look at each.
    """
    if lm.table.dtype != torch.float32 or not has_bfloat16(lm.device) or not _is_bfloat16(lm):
        return lm
    fast = copy_in_dtype(lm, torch.bfloat16)
    fast.model.set_attn_implementation("sdpa")  # rows of several lengths, each with its own mask
    return fast


def _is_bfloat16(lm: LM) -> bool:
    return all(
        torch.equal(parameter, parameter.to(torch.bfloat16).to(parameter.dtype))
        for parameter in lm.model.parameters()
    )


def compile_layers(lm: LM) -> LM:
    """The same LM, its layers compiled by torch from here on.

    They are compiled for any number of sequences of any length.

    Raises:
        UsageError: it does not compile here; a C++ compiler is missing, say.

    Cost: about a minute; torch keeps what it made, so less the next time.
    """
    lm.model.base_model.compile(dynamic=True)
    try:
        for batch, length in ((2, 24), (3, 40)):
            inputs = torch.zeros(
                batch, length, lm.width, dtype=lm.table.dtype, device=lm.device, requires_grad=True
            )
            torch.autograd.grad(lm.hidden(inputs).sum(), inputs)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"the model does not compile here: {reason}",
            remedy="install a C++ compiler, or leave memorize.draft at auto",
        ) from error
    return lm


def _register_lean_attention() -> str:
    """The name under which transformers knows lean attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register("lean", lean_attention)
    AttentionMaskInterface.register("lean", eager_mask)
    return "lean"


def lean_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B H S D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    attention_mask: Float[Tensor, "_ _ S T"] | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "B S H D"], None]:
    """Attention as transformers asks for it, for sequences that share one mask and no dropout.

    The mask of the first is taken for all.

    The scale and the mask are part of the product, the softmax is taken in the model's own dtype,
    and heads that share keys are not copied.
    """
    batch, heads, length, width = query.shape
    groups = batch * key.shape[1]
    queries = query.reshape(groups, -1, width)
    keys, values = key.reshape(groups, -1, width), value.reshape(groups, -1, width)
    mask = (
        query.new_zeros(1, 1)
        if attention_mask is None
        else attention_mask[0, 0].repeat(heads // key.shape[1], 1)
    )
    scores = torch.baddbmm(
        mask, queries, keys.mT, alpha=width**-0.5 if scaling is None else scaling
    )
    found = torch.bmm(scores.softmax(-1), values)
    return found.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None
