"""A chunk's tokens -> its readable vectors, in one pass: what a question is answered from.

A window of n tokens is one vector: the sum of their input embeddings, scaled to the length of one,
and what a projection makes of the hidden states that the frozen LM's first layers, under a LoRA of
their own, have at these tokens.

    R_j = 1 / sqrt(n_j) sum_s e_(j, s) + sum_s P_s h_(j, s);    where n_j = 1: R_j = e_j

A token that is alone in its window stands there as in a text, and is read as exactly: names and
numbers are.

Windows are of W tokens each, or of W on average, planned (windows.py) by what the encoder takes
each token of the vocabulary to cost.

Nothing is searched for, so that the vectors can be computed again, and are, by the audit.
"""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from rag_memtok.config import require
from rag_memtok.datatypes import ReadableVectors
from rag_memtok.errors import InputRefused, WrongModel
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.windows import count_windows, equal_windows, planned_windows
from rag_memtok.model import lora
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import in_float32

FILE = "encoder.safetensors"
CODEC = "float16"
# of its length: rounding takes 0.0005; one other token moves its vector by over 0.1 in the tests
TOLERANCE = 0.01
FORMAT, PROJECTED_ALONE = 2, 1  # in 1 a token that was alone had its projection, too
DESCRIBED = "rag-memtok encoder"  # the entry of the file's header that says what it is
PROJECTION, COSTS = "projection", "costs"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encoder:
    """The first layers of an LM with a LoRA on, and the projection of a window's hidden states.

    `projection[s]` is of the window's s-th token; it serves every window up to as many tokens.
    `costs` are of the vocabulary's tokens, of half precision, in the order of their ids; None: they
    are alike, and windows equal. `projects_alone`: what is projected of a token is added where it
    is alone in its window, too, as in files of format 1. `digest` is the sha256 of the file it was
    read from, "" while it is trained.
    """

    lm: LM
    projection: Float[Tensor, "W d d"]
    costs: Float[Tensor, " V"] | None = None
    projects_alone: bool = False
    digest: str = ""

    @property
    def max_window(self) -> int:
        """The most tokens of a window."""
        return len(self.projection)

    def plan(
        self,
        texts: Sequence[Sequence[int]],
        window: int,
        weights: Sequence[Sequence[float]] | None = None,
    ) -> list[list[int]]:
        """The tokens of each vector of some texts, `window` on average.

        Args:
            weights: how much each token counts for a question; with it, the texts share their
                vectors: one that matters more has more of them.
        """
        counts = [count_windows(len(text), window) for text in texts]
        if weights is None:
            return [self._plan_alone(*one, window) for one in zip(texts, counts, strict=True)]
        costs = [
            [cost * weight for cost, weight in zip(self._costs(text), own, strict=True)]
            for text, own in zip(texts, weights, strict=True)
        ]
        return planned_windows(costs, sum(counts), self.max_window)

    def _plan_alone(self, text: Sequence[int], count: int, window: int) -> list[int]:
        if self.costs is None:
            return equal_windows(len(text), window)
        return planned_windows([self._costs(text)], count, self.max_window)[0]

    def _costs(self, text: Sequence[int]) -> list[float]:
        if self.costs is None:
            return [1.0] * len(text)
        costs: list[float] = self.costs[list(text)].double().tolist()
        return costs

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable tensors by name."""
        return {**lora.lora_weights(self.lm), PROJECTION: self.projection}


def new_encoder(lm: LM, layers: int, rank: int, max_window: int, seed: int) -> Encoder:
    """An untrained encoder: so far it gives the scaled sums of the tokens' embeddings."""
    student = lora.fuse_lora(lora.add_lora(_first_layers(lm, layers), rank, seed))
    zeros = torch.zeros(max_window, lm.width, lm.width, device=lm.device)
    return Encoder(lm=student, projection=torch.nn.Parameter(zeros))


def _first_layers(lm: LM, layers: int) -> LM:
    """The LM's first `layers`, and its last norm; its tensors are those of `lm`, which stays."""
    shared = {id(tensor): tensor for tensor in (*lm.model.parameters(), *lm.model.buffers())}
    model: Any = copy.deepcopy(lm.model, shared)
    base = model.base_model
    name = "layers" if hasattr(base, "layers") else "h"  # GPT-2's name
    setattr(base, name, getattr(base, name)[:layers])
    model.config.num_hidden_layers = layers
    return LM(model, lm.tokenizer, lm.identity)


def encode(
    encoder: Encoder, texts: Sequence[Sequence[int]], windows: Sequence[Sequence[int]]
) -> list[Float[Tensor, "_ d"]]:
    """The readable vectors of each text, in fp32: a pass over all, padded to the longest.

    A text is read behind the token that a document begins with, on which a Llama's first position
    spends itself. What stands to the right of a position never reaches it, so padding does not.

    Args:
        windows: of `Encoder.plan`.

    Cost: the encoder's layers, once over `len(texts)` rows of the longest text.
    """
    lm = encoder.lm
    longest = max(map(len, texts))
    first = lm.eos if lm.bos is None else lm.bos
    token_ids = torch.tensor([[first, *text, *[lm.eos] * (longest - len(text))] for text in texts])
    is_token = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    is_token = is_token.to(lm.device)  # [B, T]
    embeddings = lm.embed(token_ids)  # [B, 1 + T, d]
    states = lm.hidden(embeddings)[:, 1:][is_token].float()  # [N, d], the tokens of all texts
    lengths = torch.tensor([length for text in windows for length in text], device=lm.device)
    owner = torch.arange(len(lengths), device=lm.device).repeat_interleave(lengths)  # [N]
    place = torch.arange(len(owner), device=lm.device) - (lengths.cumsum(0) - lengths)[owner]
    is_projected = encoder.projects_alone | (lengths[owner] > 1)  # [N]
    vectors = states.new_zeros(len(lengths), lm.width)
    vectors = vectors.index_add(0, owner, embeddings[:, 1:][is_token].float())
    vectors = vectors / lengths[:, None].sqrt()
    for number, projection in enumerate(encoder.projection[: int(lengths.max())]):
        here = (place == number) & is_projected
        vectors = vectors.index_add(0, owner[here], states[here] @ projection.float())
    return list(vectors.split([len(one) for one in windows]))


def encode_readable(encoder: Encoder, tokens: Sequence[int], window: int) -> ReadableVectors:
    """A chunk's readable vectors, as they are stored. Cost: the encoder's layers over its tokens.

    Raises:
        UsageError: the encoder was not made for windows of so many tokens.
    """
    require(1 <= window <= encoder.max_window, "--readable", window, f"1 to {encoder.max_window}")
    (vectors,) = encode_planned(encoder, [tokens], window)
    shape = (vectors.shape[0], vectors.shape[1])
    packed = codec_named(CODEC).pack(vectors)
    return ReadableVectors(encoder.digest, window, CODEC, packed, shape)


@torch.no_grad()
def encode_planned(
    encoder: Encoder,
    texts: Sequence[Sequence[int]],
    window: int,
    weights: Sequence[Sequence[float]] | None = None,
) -> list[Float[np.ndarray, "_ d"]]:
    """The readable vectors of each text, `window` tokens each on average.

    Args:
        window: at most the encoder's `max_window`.
        weights: see `Encoder.plan`.

    Cost: the encoder's layers, once over `len(texts)` rows of the longest text.
    """
    windows = encoder.plan(texts, window, weights)
    return [one.cpu().numpy() for one in encode(encoder, texts, windows)]


def unfold(
    encoder: Encoder,
    tokens: Sequence[int],
    vectors: Float[np.ndarray, "M d"],
    window: int,
    is_plain: Sequence[bool],
) -> Float[np.ndarray, "_ d"]:
    """A chunk's readable vectors, the plain ones of its tokens as they stand in a text.

    Every token of a window that has a plain one is plain: its embedding.

    Args:
        window: that `vectors` were made at, tokens each on average.
    """
    embeddings = encoder.lm.embed(list(tokens)).float().cpu().numpy()
    rows, start = list[np.ndarray](), 0
    for vector, length in zip(vectors, encoder.plan([tokens], window)[0], strict=True):
        end = start + length
        rows += list(embeddings[start:end]) if any(is_plain[start:end]) else [vector]
        start = end
    return np.stack(rows).astype(np.float32)


def unpack_readable(stored: ReadableVectors) -> Float[np.ndarray, "M d"]:
    """Readable vectors as they come back from their bytes.

    Raises:
        StoreDamaged: they are not as many bytes as they should be, or of no codec that is known.
    """
    return codec_named(stored.codec).unpack(stored.packed, stored.shape)


def distance(encoder: Encoder, tokens: Sequence[int], stored: ReadableVectors) -> float:
    """The largest relative distance of a stored vector from what `tokens` give.

    It is inf where the shapes differ. Up to TOLERANCE they are the same.
    """
    stored_vectors = unpack_readable(stored)
    (vectors,) = encode_planned(encoder, [tokens], stored.window)
    if stored_vectors.shape != vectors.shape:
        return float("inf")
    distances = np.linalg.norm(stored_vectors - vectors, axis=1) / np.linalg.norm(vectors, axis=1)
    return float(np.nan_to_num(distances, nan=np.inf).max())


def pack(encoder: Encoder) -> bytes:
    """The file of an encoder: its weights in half precision, bound to the LM they belong to."""
    identity, model = encoder.lm.identity, encoder.lm.model
    weights: dict[str, Tensor] = {
        **lora.half_precision_weights(encoder.lm),
        PROJECTION: encoder.projection.detach().to("cpu", torch.float16).contiguous(),
    }
    if encoder.costs is not None:
        weights[COSTS] = encoder.costs.to("cpu", torch.float16)
    rank = next(tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name)
    metadata = {
        "format": PROJECTED_ALONE if encoder.projects_alone else FORMAT,
        "weights_sha256": identity.weights_sha256,
        "tokenizer_sha256": identity.tokenizer_sha256,
        "layers": model.config.num_hidden_layers,
        "rank": rank,
    }
    # one entry: safetensors writes several in no order, and the file's hash is a name
    return save(weights, {DESCRIBED: json.dumps(metadata, sort_keys=True)})


def load_encoder(lm: LM, file: Path) -> Encoder:
    """The encoder in `file`, beside the LM whose first layers it takes.

    Raises:
        InputRefused: there is none, or it is damaged.
        WrongModel: it is of another model or tokenizer.
    """
    try:
        content = file.read_bytes()
        with safe_open(file, framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {})[DESCRIBED])
        file_format = metadata.get("format")
        if file_format not in (FORMAT, PROJECTED_ALONE):
            raise ValueError("of another format")
        values = load(content)
        layers, rank = int(metadata["layers"]), int(metadata["rank"])
        max_window, costs = len(values[PROJECTION]), values.pop(COSTS, None)
        if costs is not None and not _are_costs(costs, len(lm.table)):
            raise ValueError("its costs are not those of this vocabulary")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputRefused(
            f"{file} is no encoder: {error}", remedy="install the package anew"
        ) from error
    for key in ("weights_sha256", "tokenizer_sha256"):
        theirs, ours = metadata.get(key, ""), getattr(lm.identity, key)
        if theirs != ours:
            raise WrongModel(
                f"the encoder {file} is of another model ({key} {theirs[:16]}, here {ours[:16]})",
                remedy="use the model it was made for",
            )
    # cut first, so that only what is left is copied
    encoder = new_encoder(in_float32(_first_layers(lm, layers)), layers, rank, max_window, seed=0)
    set_parameters(encoder, values)
    digest = hashlib.sha256(content).hexdigest()
    projects_alone = file_format == PROJECTED_ALONE
    frozen = replace(encoder, costs=costs, projects_alone=projects_alone, digest=digest)
    for parameter in frozen.parameters.values():
        parameter.requires_grad_(False)
    return frozen


def _are_costs(costs: Tensor, tokens: int) -> bool:
    """Whether there is a cost above nothing for each token of a vocabulary."""
    known = costs.dtype == torch.float16 and costs.shape == (tokens,)
    return known and bool((costs.isfinite() & (costs > 0)).all())


@torch.no_grad()
def set_parameters(encoder: Encoder, values: Mapping[str, Tensor]) -> None:
    """Gives the encoder other weights, by the names of `Encoder.parameters`.

    Raises:
        InputRefused: they are not those of an encoder of this shape.
    """
    lora_weights = {name: tensor for name, tensor in values.items() if name != PROJECTION}
    lora.set_weights(encoder.lm, lora_weights)
    if values[PROJECTION].shape != encoder.projection.shape:
        raise InputRefused(
            f"its projection is {tuple(values[PROJECTION].shape)}, not "
            f"{tuple(encoder.projection.shape)}",
            remedy="install the package anew",
        )
    encoder.projection.copy_(values[PROJECTION])
