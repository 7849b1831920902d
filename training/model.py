"""Shapes of the models, and how weights are built, saved and found again."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from training.frame import BOS, EOS, PAD

logging.disable_progress_bar()


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama; `width / heads` is 64 where it can be."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int = 8192
    context: int = 2048


SHAPES = {
    "1M": Shape(96, 3, 3, 1, 256),
    "3M": Shape(192, 4, 3, 1, 512),
    "6M": Shape(256, 6, 4, 2, 640),
    "mini-1": Shape(384, 5, 6, 3, 768),  # two CPU cores: 9.8M parameters
    "mini-gpu": Shape(384, 8, 6, 3, 1024),  # one GPU: 16.1M parameters
    "tiny": Shape(64, 2, 2, 1, 128, context=512),  # tests
}


@dataclass(frozen=True)
class State:
    """The state of a stage, from which a run is resumed."""

    stage: str
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def build(shape: Shape, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """An untrained model whose words start near their own variants.

    The variants are those with a space or a capital letter.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.hidden,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    share_variants(model.model.embed_tokens.weight.data, tokenizer)
    return model


def share_variants(embedding: Tensor, tokenizer: Tokenizer, share: float = 0.7) -> None:
    """Gives ` Word`, `Word` and `word` a common part, in place.

    An answer's first word has no space before it, the passage's has.

    The rows keep their variance: share * common + sqrt(1 - share^2) * own.
    """
    common: dict[str, int] = {}
    original = embedding.clone()
    for word, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        first = common.setdefault(word.removeprefix("Ġ").lower(), index)
        if first != index:
            embedding[index] = share * original[first] + (1 - share**2) ** 0.5 * original[index]


def parameters(model: LlamaForCausalLM) -> int:
    """Number of parameters, the tied embedding counted once."""
    return sum(p.numel() for p in model.parameters())


def save(model: LlamaForCausalLM, state: State, folder: Path) -> None:
    """Writes bf16 weights and the state.

    It does so in a way that a kill at any moment leaves one whole checkpoint.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.save_pretrained(
        fresh, state_dict=weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    )
    (fresh / "state.json").write_text(json.dumps(asdict(state)))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)


def find(folder: Path) -> Path | None:
    """The newest whole checkpoint at `folder`, if there is one."""
    for candidate in (
        folder,
        folder.with_name(folder.name + ".new"),
        folder.with_name(folder.name + ".old"),
    ):
        if (candidate / "state.json").exists():
            return candidate
    return None


def load(folder: Path) -> tuple[LlamaForCausalLM, State]:
    """Model in fp32 and state of a checkpoint."""
    state = State(**json.loads((folder / "state.json").read_text()))
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), state


def load_embedding(folder: Path) -> np.ndarray:
    """The embedding rows of a checkpoint, `[vocabulary, width]`, in fp32."""
    return (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        .model.embed_tokens.weight.detach()
        .numpy()
    )
