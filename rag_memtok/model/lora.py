"""An LM with a LoRA on its linear layers, beside the frozen one whose tensors it shares.

The only home of peft (imported when needed).

    DIR/   adapter_config.json         PEFT's own layout: its tools and vLLM can load it
           adapter_model.safetensors
           reader.json                 what it is bound to and was made of (Bond): written last,
                                       an adapter without it is none
           README.md                   its card

It is on for answering alone: the LM that writes and judges memories never has one.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rag_memtok.errors import InputRefused, WrongModel
from rag_memtok.model.lm import LM, twin
from rag_memtok.model.prompts import WORDINGS, frame, framed
from rag_memtok.model.quantize import dense

CONFIG, WEIGHTS, BOND = "adapter_config.json", "adapter_model.safetensors", "reader.json"
FORMAT = 1
# how PEFT calls a parameter in a file, and within a model
PREFIX, NAME = "base_model.model.", ".default."
Kind = Literal["memory", "text"]


@dataclass(frozen=True, slots=True)
class Bond:
    """What an adapter reads (`kind`), what it is noise without, and what it was made of.

    `template_sha256` is that of the memories it reads, "" for text; `frame_sha256` that of the
    frame it was asked in, "" for `plain`. `passages`: whether several were measured to be read
    better "apart" or "together", "" if that was not measured. `encoder_sha256`: the encoder whose
    vectors it reads beside text, "" if it reads none. `dev` are measurements on chunks it
    was not trained on, shares of 1: F1 of the frozen model reading the text ("text"), of the
    memories without ("before") and with the adapter ("after"), and the losses.
    """

    kind: Kind
    model: str
    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str
    adapter_sha256: str
    steps: int
    trained_on: Mapping[str, int] = field(default_factory=dict)
    dev: Mapping[str, float] = field(default_factory=dict)
    frame_sha256: str = ""
    passages: str = ""
    encoder_sha256: str = ""
    format: int = FORMAT


def started(lm: LM, rank: int, seed: int) -> LM:
    """An LM with a new LoRA, to be trained: so far it answers as `lm` does.

    It shares the tensors of `lm` and leaves it as it was.
    """
    from peft import LoraConfig

    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in lm.model.named_modules()
            if _is_linear(lm, module)
        }
    )
    transposed = any(type(module).__name__ == "Conv1D" for module in lm.model.modules())
    base = Path(lm.identity.id)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=linear,
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
        base_model_name_or_path=base.name if base.is_absolute() else lm.identity.id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = _injected(lm, settings)
    for parameter in weights(student).values():
        parameter.data = parameter.data.float()  # AdamW's steps are nothing in half precision
    return student


def _is_linear(lm: LM, module: torch.nn.Module) -> bool:
    linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    return linear and module is not lm.model.get_output_embeddings()


def _injected(lm: LM, settings: Any) -> LM:
    """A second model of the same tensors, with the LoRA's beside them."""
    from peft import inject_adapter_in_model

    model: Any = inject_adapter_in_model(settings, twin(lm).model)
    return LM(model.eval(), lm.tokenizer, lm.identity)


class _Product(torch.autograd.Function):
    """`x W^T + scaling (x A^T) B^T`, the second product added in place to the first.

    No gradient is made for W, which is frozen. Cost: beside W's products, one pass over x, the
    result and each of their gradients; as PEFT computes it, five passes and what autograd keeps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        narrow = x @ down.to(x.dtype).T
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scaling = scaling
        return torch.addmm(x @ weight.T, narrow, up.to(x.dtype).T, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,), (x, weight, down, up, narrow) = gradients, ctx.saved_tensors
        back = given @ up.to(x.dtype)
        to_x = torch.addmm(given @ weight, back, down.to(x.dtype), alpha=ctx.scaling)
        to_down = (back.T @ x).to(down.dtype) * ctx.scaling
        to_up = (given.T @ narrow).to(up.dtype) * ctx.scaling
        return to_x, None, to_down, to_up, None


def lean(student: LM) -> LM:
    """`student` (of `started`) with each adapted linear layer computed in fewer passes.

    It computes in the model's dtype whatever that of the LoRA is, so that a bfloat16 model with a
    float32 LoRA trains at bfloat16's speed.
    """
    for module in student.model.modules():
        if hasattr(module, "lora_A") and isinstance(module.base_layer, torch.nn.Linear):
            module.forward = functools.partial(_leanly, module)
    return student


def _leanly(module: Any, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
    base, flat = module.base_layer, x.reshape(-1, x.shape[-1])
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    made = _Product.apply(flat, base.weight, down, up, module.scaling["default"])
    made = made if base.bias is None else made + base.bias
    return made.view(*x.shape[:-1], -1)


def weights(lm: LM) -> dict[str, torch.nn.Parameter]:
    """The LoRA's parameters, by the names PEFT gives them in a file."""
    named = lm.model.named_parameters()
    return {
        PREFIX + name.replace(NAME, "."): parameter for name, parameter in named if ".lora_" in name
    }


@torch.no_grad()
def set_weights(lm: LM, values: Mapping[str, Float[Tensor, "..."]]) -> None:
    """Gives the LoRA other weights.

    Raises:
        InputRefused: they are not those of a LoRA of this shape.
    """
    own = weights(lm)
    if {name: value.shape for name, value in values.items()} != {
        name: value.shape for name, value in own.items()
    }:
        raise InputRefused(
            "these are not the weights of an adapter of this model and rank",
            remedy="rag-memtok adapt trains one",
        )
    for name, parameter in own.items():
        parameter.copy_(values[name])


def rounded(lm: LM) -> dict[str, Tensor]:
    """The LoRA's weights as they are stored: in half precision."""
    return {
        name: parameter.detach().to("cpu", torch.float16, copy=True).contiguous()
        for name, parameter in weights(lm).items()
    }


def files(lm: LM, bond: Bond) -> dict[str, bytes]:
    """What to write for an adapter, file by file, the one that makes it valid last."""
    model: Any = lm.model
    settings = model.peft_config["default"].to_dict()
    plain = {
        key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()
    } | {"inference_mode": True}
    packed = save(rounded(lm), {"format": "pt"})
    whole = replace(bond, adapter_sha256=hashlib.sha256(packed).hexdigest())
    described = json.dumps(plain, indent=2, sort_keys=True, default=str)
    return {
        CONFIG: described.encode(),
        WEIGHTS: packed,
        BOND: json.dumps(asdict(whole), indent=2).encode(),
    }


def bond_of(folder: Path) -> Bond | None:
    """What the adapter in `folder` is bound to; None if there is none.

    Raises:
        InputRefused: there is something else.
    """
    try:
        content = json.loads((folder / BOND).read_text(encoding="utf-8"))
        if content.get("format") != FORMAT or content["kind"] not in ("memory", "text"):
            raise ValueError("of another format")
        return Bond(**content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputRefused(
            f"{folder / BOND} is not that of an adapter: {error}",
            remedy="rag-memtok adapt trains one",
        ) from error


def mismatches(bond: Bond, lm: LM, template_sha256: str) -> list[str]:
    """What an adapter is bound to and is not here, both values named.

    `template_sha256` is the memories'.
    """
    asked_in = bond.frame_sha256 or framed(lm, WORDINGS["plain"]).digest
    pairs = {
        "the model's weights": (bond.weights_sha256, lm.identity.weights_sha256),
        "the tokenizer": (bond.tokenizer_sha256, lm.identity.tokenizer_sha256),
        "the question's frame": (asked_in, frame(lm).digest),
        "the memories' template": (
            bond.template_sha256,
            template_sha256 if bond.kind == "memory" else "",
        ),
    }
    return [
        f"{what} ({theirs[:16]} of the adapter, {ours[:16]} here)"
        for what, (theirs, ours) in pairs.items()
        if theirs != ours
    ]


def adapted(lm: LM, folder: Path, template_sha256: str | None = None) -> LM:
    """An LM that answers with the LoRA in `folder` on.

    `lm` stays as it is, and the weights they share are in memory once.

    Its identity has a weight hash of its own, so that nothing takes it for the LM that writes and
    judges.

    Args:
        template_sha256: of the memories it is to read; None does not ask.

    Raises:
        WrongModel: it was made for other weights, another tokenizer or other memories.
        InputRefused: there is no adapter, or not what its bond says.
    """
    bond = bond_of(folder)
    if bond is None:
        raise InputRefused(f"there is no adapter in {folder}", remedy="rag-memtok adapt trains one")
    wanted = bond.template_sha256 if template_sha256 is None else template_sha256
    if different := mismatches(bond, lm, wanted):
        raise WrongModel(
            f"the adapter in {folder} was made for {bond.model}, which is not what is here: "
            f"{'; '.join(different)}",
            remedy="--adapter none asks without one; rag-memtok adapt trains one for this model",
        )
    reader = _injected(lm, _settings(folder))
    set_weights(reader, _stored(folder / WEIGHTS, bond))
    reader.model.requires_grad_(False)
    for parameter in weights(reader).values():
        parameter.data = parameter.data.to(lm.table.dtype)
    if bond.kind == "text":
        lean(reader)
    own = hashlib.sha256(f"{lm.identity.weights_sha256} {bond.adapter_sha256}".encode()).hexdigest()
    return replace(reader, identity=replace(lm.identity, weights_sha256=own))


def merged(reader: LM) -> dict[str, Tensor]:
    """The weights of a plain model that answers as `reader` (of `adapted`) does, by name.

    To each layer's own the product of its LoRA is added, in float32.

    Cost: the adapted weights once more.
    """
    found = dense(reader.model)
    for name, module in reader.model.named_modules():
        if hasattr(module, "lora_A"):
            own = found[f"{name}.base_layer.weight"].float()
            found[f"{name}.base_layer.weight"] = own + module.get_delta_weight("default").float()
    return {
        name.replace(".base_layer.", "."): value
        for name, value in found.items()
        if ".lora_" not in name
    }


def _settings(folder: Path) -> Any:
    """PEFT's configuration of what `started` makes: nothing else in the file is believed."""
    from peft import LoraConfig

    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if (
            content["peft_type"] != "LORA"
            or not 1 <= content["r"] <= 4096
            or not all(isinstance(one, str) for one in content["target_modules"])
        ):
            raise ValueError("not a LoRA")
        known = {
            key: content[key]
            for key in (
                "r",
                "lora_alpha",
                "target_modules",
                "fan_in_fan_out",
                "task_type",
                "base_model_name_or_path",
            )
        }
        return LoraConfig(**known)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputRefused(
            f"{folder / CONFIG} is not that of a LoRA: {error}",
            remedy="rag-memtok adapt trains one",
        ) from error


def _stored(path: Path, bond: Bond) -> dict[str, Tensor]:
    try:
        packed = path.read_bytes()
        if hashlib.sha256(packed).hexdigest() != bond.adapter_sha256:
            raise ValueError("its content is not what its checksum says")
        return load(packed)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputRefused(
            f"{path} is refused: {error}",
            remedy="rag-memtok adapt trains one; --adapter none asks without",
        ) from error
