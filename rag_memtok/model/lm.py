"""The frozen causal LM: found, loaded, hashed, run.

The home of transformers (imported when a model is loaded: it costs seconds).
"""

import copy
import errno
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rag_memtok import config
from rag_memtok.child import told
from rag_memtok.errors import ModelUnavailable, OutOfMemory, RagMemtokError, out_of_memory
from rag_memtok.model import gguf
from rag_memtok.model.chat_date import PINNED_DATE, on_pinned_day
from rag_memtok.model.device import device_named, keep_freed
from rag_memtok.model.folders import (
    hash_files,
    local_path,
    read_config,
    resolve_gguf,
    weight_files,
)
from rag_memtok.model.quantize import NF4, loading_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = Path(__file__).parent.parent / "mini" / "lm"
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
UNWANTED = ["*/*", "consolidated*"]
# transformers' names of the model classes that are tried
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The identity of an LM: what a memory is bound to.

    With other weights, another tokenizer or another arithmetic, it is noise.

    `id` is what loads it, from any folder; `revision` the hub's, or the version of the embedded
    model.
    """

    id: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    dtype: str

    @property
    def title(self) -> str:
        """`id` and `revision` as files tell them that go to others: of a path its last part."""
        name = Path(self.id).name if self.id.startswith("/") else self.id
        return f"{name} {self.revision}".strip()


def _decode(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    return str(
        tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )


@lru_cache(maxsize=2)  # of the tokenizer: no weights are kept
def _spellings(tokenizer: "PreTrainedTokenizerBase", count: int) -> Mapping[str, Sequence[int]]:
    found: dict[str, list[int]] = {}
    for token in range(count):
        found.setdefault(_decode(tokenizer, [token]), []).append(token)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class LM:
    """A frozen causal LM with its tokenizer.

    Its parameters never require gradients and are never written to.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    identity: Identity

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.table.device

    @property
    def table(self) -> Float[Tensor, "V d"]:
        """The input embeddings."""
        weight: Tensor = self.model.get_input_embeddings().weight  # type: ignore[assignment]
        return weight

    @property
    def is_tied(self) -> bool:
        """Whether the input embeddings are the output layer's weights, too."""
        return self.model.get_output_embeddings().weight is self.table

    @property
    def width(self) -> int:
        """Returns d, the width of an input embedding."""
        return self.table.shape[1]

    @property
    def context(self) -> int:
        """The most positions of a sequence."""
        return int(self.model.config.max_position_embeddings)

    @property
    def reads_per_passage(self) -> bool:
        """Whether it answers better from one passage in a prompt.

        This holds as far as its makers measured: `rag_memtok_passages` in its config.json.
        """
        return getattr(self.model.config, "rag_memtok_passages", "") == "apart"

    @property
    def frame_name(self) -> str:
        """Which of `prompts.WORDINGS` it is asked in: `rag_memtok_frame` in its config.json."""
        return getattr(self.model.config, "rag_memtok_frame", "sourced")

    @property
    def parameters(self) -> int:
        """The number of parameters, tied ones once, packed ones each."""
        return self.model.num_parameters()

    @property
    def bos(self) -> int | None:
        """The token every sequence begins with, if the tokenizer has one."""
        return self.tokenizer.bos_token_id

    @property
    def text_prefix(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts before a text unless told otherwise.

        That is a BOS with Llama's, nothing with GPT-2's.
        """
        return tuple(self.tokenizer("", add_special_tokens=True)["input_ids"])

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Every token that ends an answer."""
        ends = self.model.generation_config.eos_token_id if self.model.generation_config else None
        return frozenset([self.eos] + ([ends] if isinstance(ends, int) else list(ends or [])))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in which nothing is special.

        `<|eot_id|>` in a document is ten characters.
        """
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]

    def encode_frame(self, text: str) -> list[int]:
        """Tokens of our own words around a text, in which control tokens are control tokens."""
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=False, verbose=False
        )["input_ids"]

    def chat(self, messages: list[dict[str, str]], *, begin: bool) -> str:
        """Messages as the chat template has them; "" if it refuses or cannot take such messages.

        `begin`: the reply's beginning, too.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=begin,
                    date_string=PINNED_DATE,
                    chat_template=on_pinned_day(self.tokenizer.chat_template),
                    enable_thinking=False,
                )
            )
        except Exception as error:  # a template is a program of somebody else's
            if out_of_memory(error):
                raise
            return ""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, unpolished.

        `decode(encode(text)) == text` holds wherever the tokenizer is lossless.
        """
        return _decode(self.tokenizer, tokens)

    @property
    def spellings(self) -> Mapping[str, Sequence[int]]:
        """The tokens that decode to each string. Cost: a decode of every one, kept."""
        return _spellings(self.tokenizer, len(self.table))

    def embed(self, tokens: Sequence[int] | Int[Tensor, "..."]) -> Float[Tensor, "... d"]:
        """The input embeddings of `tokens`, in the model's dtype."""
        return torch.nn.functional.embedding(
            torch.as_tensor(tokens, dtype=torch.long, device=self.device), self.table
        )

    def hidden(self, embeddings: Float[Tensor, "B S d"]) -> Float[Tensor, "B S d"]:
        """The last hidden states over `embeddings`, without a padding mask.

        What stands to the right of a position never reaches it.
        """
        return self.model.base_model(
            inputs_embeds=embeddings.to(self.table.dtype), use_cache=False
        ).last_hidden_state

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        """The logits over the vocabulary, in fp32."""
        return self.raw_logits(hidden).float()

    def raw_logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        """The logits in the model's own dtype: cheaper in bfloat16, enough to find a rival."""
        return self.model.get_output_embeddings()(hidden)


def clone(lm: LM) -> LM:
    """The same LM with a configuration and a tokenizer of its own, for another thread.

    `reference_profile` changes the one, and a tokenizer cannot be used by two at once. The weights
    are in memory once.
    """
    shared = {id(tensor): tensor for tensor in (*lm.model.parameters(), *lm.model.buffers())}
    model: Any = copy.deepcopy(lm.model, shared)
    return LM(model, copy.deepcopy(lm.tokenizer), lm.identity)


def load(settings: config.Model) -> LM:
    """Loads the LM that `settings` names.

    That is "mini" (embedded), "smollm2" (packaged), a folder, a GGUF file, or a hub id, which is
    downloaded once, safetensors only; not if it is only what a store says (`recorded`).

    Raises:
        ModelUnavailable: no such folder or hub id, gated, offline, or a model class that is not in
            FAMILIES.
        InputRefused: the folder holds pickled weights or wants to run code of its own.
        DeviceUnavailable: the device asked for is not there.
        UsageError: 4-bit weights without bitsandbytes.
        OutOfMemory: it does not fit.
    """
    device = device_named(settings.device)
    if device.type == "cpu":
        keep_freed()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    path = local_path(settings.id)
    folder = resolve_gguf(path) if path else _folder(settings)
    description = read_config(folder, FAMILIES)
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    tokenizer, model = _from_folder(folder, dtype, device)
    identity = Identity(
        id=str(path or settings.id or "mini"),
        revision=description.get("rag_memtok_id", settings.revision),
        weights_sha256=hash_files(weight_files(folder, description)),
        tokenizer_sha256=_hash_tokenizer(tokenizer),
        dtype=dtype,
    )
    return LM(model if dtype == NF4 else model.to(device), tokenizer, identity)


def default_id() -> str:
    """The model of a new store, if none is named: the packaged one where it is installed."""
    return "smollm2" if gguf.is_installed() else "mini"


def _folder(settings: config.Model) -> Path:
    if settings.id in ("", "mini"):
        return EMBEDDED
    if settings.id == "smollm2":
        return gguf.packaged_folder()
    if settings.id.startswith(("/", ".", "~")) or settings.id.count("/") > 1:
        raise ModelUnavailable(
            f"there is no model folder {settings.id}",
            remedy="check the path, or give a hub id such as OWNER/NAME",
        )
    return _download(settings)


def _download(settings: config.Model) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                settings.id,
                revision=settings.revision or None,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                local_files_only=settings.recorded,
            )
        )
    except errors.GatedRepoError as error:
        remedy = f"accept its licence on the hub page of {settings.id}, then run: hf auth login"
        raise ModelUnavailable(f"the model {settings.id} is gated", remedy) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        if settings.recorded:
            raise _not_here(settings.id) from error
        raise ModelUnavailable(
            f"the hub has no model {settings.id} {settings.revision}".rstrip(),
            "check the id and --revision",
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        if settings.recorded:
            raise _not_here(settings.id) from error
        remedy = (
            "connect once to download it, or give --model a folder; the embedded model needs "
            "no network: --model mini"
        )
        raise ModelUnavailable(
            f"the model {settings.id} is not on this machine and the hub is out of reach", remedy
        ) from error


def _not_here(name: str) -> ModelUnavailable:
    """The error for a store's word, which may be a folder of its maker's: nothing is fetched."""
    return ModelUnavailable(
        f"the store was written with the model {name}, which is not on this machine",
        remedy=f"give its folder or file: --model PATH; or download it: --model {name}",
    )


def _from_folder(folder: Path, dtype: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        options: dict[str, Any] = {
            "use_safetensors": True,
            "local_files_only": True,
            "output_loading_info": True,
        }
        options |= loading_options(device) if dtype == NF4 else {"dtype": getattr(torch, dtype)}
        model_and_info: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, **options
        )
    except RagMemtokError:
        raise
    except Exception as error:  # libraries raise anything over a folder that is not whole
        if out_of_memory(error):
            raise OutOfMemory(
                f"the model in {folder} does not fit into memory",
                remedy="a smaller --model, or --dtype bfloat16",
            ) from error
        reason = next(iter(str(error).strip().splitlines()), "") or told(error)
        raise ModelUnavailable(
            f"the model in {folder} does not load: {reason}", remedy="is the folder complete?"
        ) from error
    model, loaded = model_and_info
    # transformers would go on with random numbers in their place
    if missing := sorted(loaded["missing_keys"]):
        raise ModelUnavailable(
            f"{folder} lacks weights: {', '.join(missing[:3])}", remedy="is the folder complete?"
        )
    return tokenizer, model.eval().requires_grad_(False)


def _hash_tokenizer(tokenizer: Any) -> str:
    """Digest of the tokenizer's rules and its chat template."""
    return hashlib.sha256(
        (tokenizer.backend_tokenizer.to_str() + "\0" + str(tokenizer.chat_template)).encode()
    ).hexdigest()
