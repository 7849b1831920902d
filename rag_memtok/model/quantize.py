"""Weights of 4 bits each (NF4): how they are loaded, and read back as numbers.

Needs bitsandbytes; the only home of it.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
"""

import copy
import importlib.util
from typing import Any

import torch
from torch import Tensor

from rag_memtok.errors import UsageError

NF4 = "nf4"  # a model's dtype: the linear layers in 4 bits, the rest and the arithmetic in float16


def loading_options(device: torch.device) -> dict[str, Any]:
    """The options with which transformers packs the weights while it loads them.

    It is as in the public code of arXiv:2506.15001.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "weights of 4 bits need bitsandbytes",
            remedy="pip install bitsandbytes, or take --dtype float16",
        )
    method = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float16",
    }
    return {"dtype": torch.float16, "quantization_config": method, "device_map": {"": device}}


def dequantized_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights by name; those in 4 bits as the numbers they stand for."""
    packed = {
        name: module
        for name, module in model.named_modules()
        if hasattr(getattr(module, "weight", None), "quant_state")
    }
    if not packed:
        return model.state_dict()
    # the state dict has them beside the packed weights
    scales = tuple(f"{name}.weight." for name in packed)
    numbers = {f"{name}.weight": dequantize(module) for name, module in packed.items()}
    return {
        name: value for name, value in model.state_dict().items() if not name.startswith(scales)
    } | numbers


def dequantize(module: Any) -> Tensor:
    """The weights of one packed layer, as that layer had them before.

    GPT-2's are kept the other way round.
    """
    from bitsandbytes.functional import dequantize_4bit

    numbers: Tensor = dequantize_4bit(module.weight.data, module.weight.quant_state)
    return (
        numbers.T if getattr(module, "source_cls", type(module)).__name__ == "Conv1D" else numbers
    )


def dequantized_config(model: Any) -> Any:
    """The configuration of `model`, for a copy of it that is not packed."""
    settings = copy.deepcopy(model.config)
    settings.__dict__.pop("quantization_config", None)
    return settings
