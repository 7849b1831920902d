"""An LM with a LoRA on its linear layers, beside the frozen one whose tensors it shares.

The only home of peft (imported when needed).

    DIR/   adapter_config.json         PEFT's own layout: its tools and vLLM can load it
           adapter_model.safetensors
           reader.json                 what it is bound to and was made of (AdapterManifest):
                                       written last, an adapter without it is none
           README.md                   its card

It is on for answering alone: the LM that writes and judges memories never has one.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rag_memtok.errors import InputRefused, WrongModel
from rag_memtok.model.adapter_manifest import (
    MANIFEST,
    AdapterManifest,
    read_described,
    read_manifest,
)
from rag_memtok.model.lm import LM, clone
from rag_memtok.model.prompts import WORDINGS, build_qa_prompt, qa_prompt
from rag_memtok.model.quantize import dequantized_weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 4096
# how PEFT calls a parameter in a file, and within a model
PREFIX, NAME = "base_model.model.", ".default."


def add_lora(lm: LM, rank: int, seed: int) -> LM:
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
        student = _inject_lora(lm, settings)
    for parameter in lora_weights(student).values():
        parameter.data = parameter.data.float()  # AdamW's steps are nothing in half precision
    return student


def _is_linear(lm: LM, module: torch.nn.Module) -> bool:
    linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    return linear and module is not lm.model.get_output_embeddings()


def _inject_lora(lm: LM, settings: Any) -> LM:
    """A second model of the same tensors, with the LoRA's beside them."""
    from peft import inject_adapter_in_model

    model: Any = inject_adapter_in_model(settings, clone(lm).model)
    return LM(model.eval(), lm.tokenizer, lm.identity)


class _LoRAProduct(torch.autograd.Function):
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
        (grad_output,), (x, weight, down, up, narrow) = gradients, ctx.saved_tensors
        grad_narrow = grad_output @ up.to(x.dtype)
        grad_x = torch.addmm(grad_output @ weight, grad_narrow, down.to(x.dtype), alpha=ctx.scaling)
        grad_down = (grad_narrow.T @ x).to(down.dtype) * ctx.scaling
        grad_up = (grad_output.T @ narrow).to(up.dtype) * ctx.scaling
        return grad_x, None, grad_down, grad_up, None


def fuse_lora(student: LM) -> LM:
    """`student` (of `add_lora`) with each adapted linear layer computed in fewer passes.

    It computes in the model's dtype whatever that of the LoRA is, so that a bfloat16 model with a
    float32 LoRA trains at bfloat16's speed. A layer whose weights are packed (nf4) stays as it is.
    """
    for module in student.model.modules():
        if (
            hasattr(module, "lora_A")
            and isinstance(module.base_layer, torch.nn.Linear)
            and not hasattr(module.base_layer.weight, "quant_state")
        ):
            module.forward = functools.partial(_fused_forward, module)
    return student


def _fused_forward(module: Any, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
    base, flat = module.base_layer, x.reshape(-1, x.shape[-1])
    if module.disable_adapters:
        return base(x)
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    output = _LoRAProduct.apply(flat, base.weight, down, up, module.scaling["default"])
    output = output if base.bias is None else output + base.bias
    return output.view(*x.shape[:-1], -1)


@contextmanager
def switched_off(reader: LM) -> Iterator[LM]:
    """`reader` (of `load_adapter`) without its adapter: the base, in the reader's arithmetic.

    Cost: nothing; the two share their weights. Nothing else may use the reader meanwhile.
    """
    adapted: list[Any] = [one for one in reader.model.modules() if hasattr(one, "lora_A")]
    for module in adapted:
        module.enable_adapters(False)
    try:
        yield reader
    finally:
        for module in adapted:
            module.enable_adapters(True)  # which has them trained, too
            module.requires_grad_(False)


def lora_weights(lm: LM) -> dict[str, torch.nn.Parameter]:
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
    parameters = lora_weights(lm)
    if {name: value.shape for name, value in values.items()} != {
        name: value.shape for name, value in parameters.items()
    }:
        raise InputRefused(
            "these are not the weights of an adapter of this model and rank",
            remedy="rag-memtok adapt trains one",
        )
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def half_precision_weights(lm: LM) -> dict[str, Tensor]:
    """The LoRA's weights as they are stored: in half precision."""
    return {
        name: parameter.detach().to("cpu", torch.float16, copy=True).contiguous()
        for name, parameter in lora_weights(lm).items()
    }


def adapter_files(lm: LM, manifest: AdapterManifest) -> dict[str, bytes]:
    """The files of an adapter by name, the one that makes it valid last."""
    model: Any = lm.model
    settings = model.peft_config["default"].to_dict()
    config = {
        key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()
    } | {"inference_mode": True}
    packed = save(half_precision_weights(lm), {"format": "pt"})
    described = json.dumps(config, indent=2, sort_keys=True, default=str).encode()
    complete = replace(
        manifest,
        adapter_sha256=hashlib.sha256(packed).hexdigest(),
        config_sha256=hashlib.sha256(described).hexdigest(),
    )
    return {
        CONFIG: described,
        WEIGHTS: packed,
        MANIFEST: json.dumps(asdict(complete), indent=2).encode(),
    }


def find_mismatches(manifest: AdapterManifest, lm: LM, template_sha256: str) -> list[str]:
    """What an adapter is bound to and does not match here, both values named.

    `template_sha256` is the memories'.
    """
    prompt_sha256 = manifest.frame_sha256 or build_qa_prompt(lm, WORDINGS["plain"]).digest
    pairs = {
        "the model's weights": (manifest.weights_sha256, lm.identity.weights_sha256),
        "the tokenizer": (manifest.tokenizer_sha256, lm.identity.tokenizer_sha256),
        "the question's frame": (prompt_sha256, qa_prompt(lm).digest),
        "the memories' template": (
            manifest.template_sha256,
            template_sha256 if manifest.kind == "memory" else "",
        ),
    }
    return [
        f"{what} ({theirs[:16]} of the adapter, {ours[:16]} here)"
        for what, (theirs, ours) in pairs.items()
        if theirs != ours
    ]


def load_adapter(lm: LM, folder: Path, template_sha256: str | None = None) -> LM:
    """An LM that answers with the LoRA in `folder` on.

    `lm` stays as it is, and the weights they share are in memory once.

    Its identity has a weight hash of its own, so that nothing takes it for the LM that writes and
    judges.

    Args:
        template_sha256: of the memories it is to read; None does not ask.

    Raises:
        WrongModel: it was made for other weights, another tokenizer or other memories.
        InputRefused: there is no adapter, or not what its manifest says.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputRefused(f"there is no adapter in {folder}", remedy="rag-memtok adapt trains one")
    wanted = manifest.template_sha256 if template_sha256 is None else template_sha256
    if different := find_mismatches(manifest, lm, wanted):
        raise WrongModel(
            f"the adapter in {folder} was made for {manifest.model}, which is not what is here: "
            f"{'; '.join(different)}",
            remedy="--adapter none asks without one; rag-memtok adapt trains one for this model",
        )
    settings = _load_config(folder, manifest)
    try:
        reader = _inject_lora(lm, settings)
    except (ValueError, TypeError, KeyError) as error:
        raise _refuse_config(folder, error) from error
    set_weights(reader, _load_weights(folder / WEIGHTS, manifest))
    reader.model.requires_grad_(False)
    for parameter in lora_weights(reader).values():
        parameter.data = parameter.data.to(lm.table.dtype)
    if manifest.kind == "text":
        fuse_lora(reader)
    weights_sha256 = hashlib.sha256(
        f"{lm.identity.weights_sha256} {manifest.adapter_sha256}".encode()
    ).hexdigest()
    return replace(reader, identity=replace(lm.identity, weights_sha256=weights_sha256))


def merge_lora(reader: LM) -> dict[str, Tensor]:
    """The weights of a plain model that answers as `reader` (of `load_adapter`) does, by name.

    To each layer's own the product of its LoRA is added, in float32.

    Cost: the adapted weights once more.
    """
    weights = dequantized_weights(reader.model)
    for name, module in reader.model.named_modules():
        if hasattr(module, "lora_A"):
            base = weights[f"{name}.base_layer.weight"].float()
            weights[f"{name}.base_layer.weight"] = base + module.get_delta_weight("default").float()
    return {
        name.replace(".base_layer.", "."): value
        for name, value in weights.items()
        if ".lora_" not in name
    }


def rank_of(folder: Path, manifest: AdapterManifest) -> int:
    """The rank of the LoRA in `folder`.

    Raises:
        InputRefused: there is none, or not what its manifest says.
    """
    rank: int = _load_config(folder, manifest).r
    return rank


def _load_config(folder: Path, manifest: AdapterManifest) -> Any:
    """PEFT's configuration of what `add_lora` makes: nothing else in the file is believed."""
    from peft import LoraConfig

    try:
        described = read_described(folder / CONFIG)
        # adapters of before have no checksum of it
        if manifest.config_sha256 not in ("", hashlib.sha256(described).hexdigest()):
            raise ValueError("its content is not what its checksum says")
        content = json.loads(described)
        if not _is_lora(content):
            raise ValueError("not a LoRA as rag-memtok makes them")
        kept = {
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
        return LoraConfig(**kept)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refuse_config(folder, error) from error


def _is_lora(content: Mapping[str, Any]) -> bool:
    """Whether a configuration has the values that `add_lora` gives one, each of its type."""
    rank, alpha, modules = content["r"], content["lora_alpha"], content["target_modules"]
    return (
        content["peft_type"] == "LORA"
        and type(rank) is int
        and 1 <= rank <= MAX_RANK
        and type(alpha) in (int, float)
        and alpha == 2 * rank
        and type(modules) is list
        and all(isinstance(name, str) for name in modules)
    )


def _refuse_config(folder: Path, error: Exception) -> InputRefused:
    return InputRefused(
        f"{folder / CONFIG} is not that of a LoRA: {error}", remedy="rag-memtok adapt trains one"
    )


def _load_weights(path: Path, manifest: AdapterManifest) -> dict[str, Tensor]:
    try:
        packed = path.read_bytes()
        if hashlib.sha256(packed).hexdigest() != manifest.adapter_sha256:
            raise ValueError("its content is not what its checksum says")
        return load(packed)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputRefused(
            f"{path} is refused: {error}",
            remedy="rag-memtok adapt trains one; --adapter none asks without",
        ) from error
