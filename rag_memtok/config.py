"""Every setting on one page, with its default and its range. Where they come from: settings.py."""

import re
from dataclasses import dataclass, field
from typing import Literal

from rag_memtok.errors import UsageError

# without a dot: DIR.old and the like can never be one
COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# no user, password or query: a secret in it would be shown
URL = re.compile(
    r"(https?://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(/[A-Za-z0-9._~/-]*)?"
)
CHUNK_TOKENS, CODEC = 128, "float16"  # of a new store


def require(condition: bool, dial: str, value: object, valid: str) -> None:
    """Raises UsageError unless `condition` holds.

    The error names the dial, its value and the valid range.
    """
    if not condition:
        raise UsageError(
            f"{dial} is {value!r}; valid: {valid}",
            remedy="rag-memtok COMMAND --help lists every option with its range",
        )


def within(section: object, dial: str, low: int, high: int, low_means: str = "") -> None:
    """Raises UsageError unless the value that `section` has for `dial` lies between the two."""
    value = getattr(section, dial.rpartition(".")[2])
    require(low <= value <= high, dial, value, f"{low}{low_means and f' ({low_means})'} to {high}")


@dataclass(frozen=True, slots=True)
class Model:
    """The frozen LM.

    `id` is "smollm2" (the packaged one), "mini" (the embedded one), a folder, a GGUF file or a hub
    id; `revision` a hub revision; `threads` 0 leaves torch's own.

    An empty `id` and dtype "auto" are the store's, or for a new store "smollm2" where it is
    installed, else "mini", in float32. "nf4" is 4 bits a weight, and needs bitsandbytes.
    """

    id: str = ""
    revision: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        within(self, "model.threads", 0, 1024, "automatic")


@dataclass(frozen=True, slots=True)
class Documents:
    """What is read.

    `exclude` are gitignore-style patterns; `gitignore`: what a .gitignore on the way names is left
    out, too; `max_bytes` bounds one file; `chunk_tokens` one chunk.

    `chunk_tokens` 0 is the store's, or for a new store 128. `encoding` is that of all texts without
    a byte-order mark, if it is not empty.
    """

    exclude: tuple[str, ...] = ()
    encoding: str = ""
    gitignore: bool = True
    max_bytes: int = 100_000_000
    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        require(self.max_bytes >= 1, "documents.max_bytes", self.max_bytes, "1 or more")
        fits = self.chunk_tokens == 0 or 4 <= self.chunk_tokens <= 8192
        require(fits, "documents.chunk_tokens", self.chunk_tokens, "4 to 8192, or 0 (the store's)")


@dataclass(frozen=True, slots=True)
class Memorize:
    """How memories are written.

    An empty `write`, `template` or `codec` is the store's, or for a new store "exact", "bare" and
    "float16".

    `write`: "exact" memories come back as their text; "readable" ones also answer when they stand
    in a prompt, and cost more steps. An empty `recipe` is the one for that. `steps` are the most
    that a chunk takes; 0: the recipe's own number.

    `tokens_per_vector` 0 means auto: the largest that a known model holds, else a short
    calibration. `readable`: so many tokens of a chunk for each of the vectors that are read beside
    its memory; 0 makes none, -1 is as the store has them, or for a new store the most that were
    measured to be read well. `seconds_per_chunk` 0 means no bound; with one a slow machine writes
    worse memories, and says so by their verdicts. `max_pins` is the most correction pins a chunk
    may have (-1: no limit). `tau` is the margin, in logits, under which a right token is pinned all
    the same, for safety. `processes` write at the same time, each with a copy of the model: one for
    each GPU, or for a few cores. `draft` is what most steps are computed in: auto is bfloat16 where
    the hardware has it; compiled is bfloat16 in layers that torch compiles first, for a minute and
    with a C++ compiler: worth it for hundreds of chunks.
    """

    write: Literal["", "exact", "readable"] = ""
    recipe: str = ""
    template: str = ""
    tokens_per_vector: int = 0
    readable: int = -1
    steps: int = 0
    batch: int = 8
    processes: int = 1
    draft: Literal["auto", "float32", "bfloat16", "compiled"] = "auto"
    seconds_per_chunk: float = 0.0
    codec: str = ""
    tau: float = 0.1
    max_pins: int = -1
    keep_text: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, "memorize.tokens_per_vector", 0, 8192, "auto")
        within(self, "memorize.readable", -1, 64, "as the store has them")
        within(self, "memorize.steps", 0, 1_000_000, "the recipe's own")
        within(self, "memorize.batch", 1, 4096)
        within(self, "memorize.processes", 1, 1024)
        within(self, "memorize.seconds_per_chunk", 0, 1_000_000, "no bound")
        within(self, "memorize.tau", 0, 100)
        require(self.max_pins >= -1, "memorize.max_pins", self.max_pins, "-1 (no limit) or more")


@dataclass(frozen=True, slots=True)
class Retrieve:
    """How chunks are found.

    `embedder` is "mini", "minilm" or a sentence-transformers id or folder, `dense_weight` its share
    of the fused score.

    An empty `embedder` is the store's, or "mini"; `dense_weight` -1 is what the embedder recorded
    as its best, or 0.5. `within` is the file or folder of the store that is searched ("": all).
    """

    embedder: str = ""
    k: int = 3
    dense_weight: float = -1.0
    within: str = ""

    def __post_init__(self) -> None:
        within(self, "retrieve.k", 1, 1000)
        weight = self.dense_weight
        require(
            0 <= weight <= 1 or weight == -1,
            "retrieve.dense_weight",
            weight,
            "0 to 1, or -1 (the embedder's own)",
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """How questions are answered.

    `adapter` is "auto" (the store's, or the one shipped with the model), "none", or a folder.

    `passages`: all in one prompt, or each in its own, where the surest answer is kept; "auto" is
    what was measured to be better for the model, else together.

    `engine` is what generates: the model of this process ("here"), or the same model in a vLLM
    server ("vllm") at `url`, which counts as gone after `engine_seconds` of silence. Its token, if
    it wants one, is in the environment variable RAG_MEMTOK_ENGINE_TOKEN and nowhere else.
    """

    read: Literal["auto", "memory", "decode", "text"] = "auto"
    passages: Literal["auto", "together", "apart"] = "auto"
    adapter: str = "auto"
    max_new_tokens: int = 64
    max_question_tokens: int = 256
    engine: Literal["here", "vllm"] = "here"
    url: str = "http://127.0.0.1:8000"
    engine_seconds: float = 120.0

    def __post_init__(self) -> None:
        seconds = self.engine_seconds
        require(0 < seconds <= 86_400, "ask.engine_seconds", seconds, "above 0, to 86400")
        within(self, "ask.max_new_tokens", 1, 8192)
        within(self, "ask.max_question_tokens", 1, 8192)
        fits = URL.fullmatch(self.url) is not None
        require(fits, "ask.url", self.url, "[http[s]://]HOST[:PORT][/PATH]")


@dataclass(frozen=True, slots=True)
class Adapt:
    """How an adapter is trained, to read memories or, for comparison, texts (`kind`).

    It ends after `steps` or `minutes` (0: no bound), or when the loss on chunks set aside has not
    fallen `patience` times. `questions` are made by rule of each chunk; of those with a known
    answer only they count that the model answers from the text with an F1 of `least`, for it cannot
    teach the others, and the share `gold` of them learns the known answer, not the model's own.
    """

    kind: Literal["memory", "text"] = "memory"
    steps: int = 600
    minutes: float = 0.0
    batch: int = 16
    lr: float = 1e-3
    rank: int = 16
    questions: int = 6
    gold: float = 0.5
    least: float = 0.5
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, "adapt.steps", 1, 1_000_000)
        within(self, "adapt.minutes", 0, 100_000, "no bound")
        within(self, "adapt.batch", 1, 4096)
        require(0 < self.lr <= 1, "adapt.lr", self.lr, "above 0, to 1")
        within(self, "adapt.rank", 1, 512)
        within(self, "adapt.questions", 0, 1000)
        within(self, "adapt.gold", 0, 1)
        within(self, "adapt.least", 0, 1)
        within(self, "adapt.patience", 1, 1000)


@dataclass(frozen=True, slots=True)
class Config:
    """All dials.

    `store` is a store's folder or, with `collection`, the folder that holds several stores, each of
    its own name.
    """

    store: str = ".rag-memtok"
    collection: str = ""
    model: Model = field(default_factory=Model)
    documents: Documents = field(default_factory=Documents)
    memorize: Memorize = field(default_factory=Memorize)
    retrieve: Retrieve = field(default_factory=Retrieve)
    ask: Ask = field(default_factory=Ask)
    adapt: Adapt = field(default_factory=Adapt)

    def __post_init__(self) -> None:
        named = not self.collection or COLLECTION.fullmatch(self.collection) is not None
        require(
            named,
            "collection",
            self.collection,
            "1 to 64 letters, digits, - and _, the first a letter or digit",
        )
