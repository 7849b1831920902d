"""Every setting on one page: default, help, range. Where they come from: settings.py.

The command line (cli/options.py) prints the help and the default of each that it has an option for.
"""

import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv6Address
from typing import Any, Literal

from rag_memtok.errors import UsageError

# without a dot: DIR.old and the like can never be one
COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# no user, password or query: a secret in it would be shown
URL = re.compile(
    r"(https?://)?(\[(?P<ipv6>[0-9a-fA-F:.]+)\]|[\w-]{1,63}(\.[\w-]{1,63})*\.?)"
    r"(:(?P<port>\d{1,5}))?(/[\w.~/-]*)?",
    re.ASCII,
)
CHUNK_TOKENS, CODEC = 128, "float16"  # of a new store


def is_address(url: str) -> bool:
    """Whether `url` is an address that a server may have."""
    match = URL.fullmatch(url)
    try:
        IPv6Address((match and match["ipv6"]) or "::1")
    except AddressValueError:
        return False
    return match is not None and 1 <= int(match["port"] or 80) <= 65535


def require(condition: bool, dial: str, value: object, valid: str) -> None:
    """Raises UsageError unless `condition` holds.

    The error names the dial, its value and the valid range.
    """
    if not condition:
        raise UsageError(
            f"{dial} is {value!r}; valid: {valid}",
            remedy="rag-memtok config lists every setting with its value",
        )


def within(section: object, dial: str, low: int, high: int, low_means: str = "") -> None:
    """Raises UsageError unless the value that `section` has for `dial` lies between the two."""
    value = getattr(section, dial.rpartition(".")[2])
    require(low <= value <= high, dial, value, f"{low}{low_means and f' ({low_means})'} to {high}")


def setting(default: object, help: str, *, shown: str = "", option: str = "") -> Any:
    """A field: its default, and what the command line says of it.

    Args:
        shown: what is told of the default in its place ("": the default itself).
        option: what it is called there ("": as the field is); one with "--no-" turns it off.
    """
    return field(default=default, metadata={"help": help, "shown": shown, "option": option})


@dataclass(frozen=True, slots=True)
class Model:
    """The frozen LM.

    An empty `id` and dtype "auto" are the store's, or for a new store "smollm2" (the packaged one)
    where it is installed, else "mini" (the embedded one), in float32. "nf4" needs bitsandbytes.

    `recorded` is no setting: the id is only what a store says, and nothing is downloaded for it.
    """

    id: str = setting(
        "",
        "smollm2, mini, a folder, a GGUF file or a hub id.",
        shown="the store's, or smollm2 where installed",
        option="--model",
    )
    revision: str = setting("", "The model's revision on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = setting(
        "auto", "float32, bfloat16, float16 or nf4 (4 bits).", shown="the store's, or float32"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "auto, cpu, cuda or mps.")
    threads: int = setting(0, "CPU threads.", shown="automatic")
    recorded: bool = False

    def __post_init__(self) -> None:
        within(self, "model.threads", 0, 1024, "automatic")


@dataclass(frozen=True, slots=True)
class Documents:
    """What is read."""

    exclude: tuple[str, ...] = setting((), "gitignore-style pattern; may be repeated.")
    encoding: str = setting(
        "",
        "What all texts without a byte-order mark are in, such as cp1252.",
        shown="what they say, or UTF-8, or the likeliest",
    )
    gitignore: bool = setting(
        True, "Read what a .gitignore leaves out, too.", option="--no-gitignore"
    )
    max_bytes: int = setting(100_000_000, "Bytes of a file, at most.")
    chunk_tokens: int = setting(
        0, "Tokens of a chunk, at most.", shown=f"the store's, or {CHUNK_TOKENS}"
    )

    def __post_init__(self) -> None:
        within(self, "documents.max_bytes", 1, 10**15)
        fits = self.chunk_tokens == 0 or 4 <= self.chunk_tokens <= 8192
        require(fits, "documents.chunk_tokens", self.chunk_tokens, "4 to 8192, or 0 (the store's)")


@dataclass(frozen=True, slots=True)
class Memorize:
    """How memories are written.

    `write`: "exact" memories come back as their text; "readable" ones also answer when they stand
    in a prompt, and cost more steps. `tokens_per_vector` 0 is the largest that a known model holds,
    else a short calibration. `readable` 0 makes no vectors, -1 is as the store has them, or for a
    new store the most that were measured to be read well. With a bound of seconds a slow machine
    writes worse memories, and says so by their verdicts. `draft` is what most steps are computed
    in: auto is bfloat16 where the hardware has it; compiled is bfloat16 in layers that torch
    compiles first, for a minute and with a C++ compiler: worth it for hundreds of chunks.
    """

    write: Literal["", "exact", "readable"] = setting(
        "", "exact, or readable: memories that also answer.", shown="the store's, or exact"
    )
    recipe: str = setting("", "Another way of writing, by name.", shown="by --write")
    template: str = setting(
        "", "bare or cue; a recipe may have its own.", shown="the store's, or bare"
    )
    tokens_per_vector: int = setting(0, "Text tokens a memory vector holds; 0 finds out.")
    readable: int = setting(
        -1,
        "Tokens for each of the vectors that are read beside a memory; 0: none.",
        shown="the store's",
    )
    steps: int = setting(0, "Optimizer steps a chunk, at most.", shown="500, 300 to be read")
    batch: int = setting(8, "Chunks written together.")
    processes: int = setting(1, "Processes that write, each with the model; one a GPU.")
    draft: Literal["auto", "float32", "bfloat16", "compiled"] = setting(
        "auto", "What most steps are computed in: auto, float32, bfloat16 or compiled."
    )
    seconds_per_chunk: float = setting(0.0, "Seconds a chunk, at most; 0: no bound.")
    codec: str = setting("", "How vectors are stored.", shown=f"the store's, or {CODEC}")
    tau: float = setting(0.1, "Logits; a right token that leads by this or less is pinned.")
    max_pins: int = setting(-1, "Refuse a chunk with more correction pins.", shown="-1: no limit")
    keep_text: bool = setting(True, "Keep no text: dense retrieval only.", option="--no-text")
    seed: int = setting(0, "Seed of what is drawn.")

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
    """How chunks are found. `recorded` is no setting: as in `Model`, of the embedder."""

    embedder: str = setting(
        "",
        "mini, minilm, or a sentence-transformers folder or id.",
        shown="the store's, or minilm where its package is, else mini",
    )
    k: int = setting(3, "How many memories to use.", option="-k/--k")
    dense_weight: float = setting(
        -1.0, "The keys' share of the fused score.", shown="-1: the embedder's best, or 0.5"
    )
    within: str = setting("", "A folder or file: search only what is stored of it.", option="--in")
    recorded: bool = False

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

    `passages` "auto" is what was measured to be better for the reader of text, else for the model,
    else together. A server's token, if it wants one, is in the environment variable
    RAG_MEMTOK_ENGINE_TOKEN and nowhere else.
    """

    read: Literal["auto", "memory", "unfolded", "zoomed", "decode", "text"] = setting(
        "auto",
        "memory, unfolded (readable vectors, the best sentence as text), zoomed (vectors made for "
        "the question), decode, text or auto.",
    )
    zoom: int = setting(4, "Tokens for each vector of --read zoomed, on average.")
    passages: Literal["auto", "together", "apart"] = setting(
        "auto",
        "Several memories: together in a prompt, apart (the surest answer is kept) or auto.",
    )
    adapter: str = setting(
        "auto", "An adapter's folder, none, or auto: the store's, or the model's."
    )
    max_new_tokens: int = setting(64, "Tokens of the answer, at most.")
    max_question_tokens: int = setting(256, "Tokens of a question, at most.")
    engine: Literal["here", "vllm"] = setting(
        "here", "What generates: the model here, or the same one in a vLLM server."
    )
    url: str = setting("http://127.0.0.1:8000", "Where that server is.")
    probe_lora: bool = setting(
        False,
        "Take the adapter that the server has beside its base model, if it lives through a "
        "probe. That may end the server: not one that others use.",
    )
    engine_seconds: float = setting(120.0, "Seconds of silence after which it counts as gone.")

    def __post_init__(self) -> None:
        seconds, fits = self.engine_seconds, is_address(self.url)
        require(0 < seconds <= 86_400, "ask.engine_seconds", seconds, "above 0, to 86400")
        within(self, "ask.zoom", 1, 64)
        require(fits, "ask.url", self.url, "[http[s]://]HOST[:PORT][/PATH]")
        within(self, "ask.max_new_tokens", 1, 8192)
        within(self, "ask.max_question_tokens", 1, 8192)


@dataclass(frozen=True, slots=True)
class Adapt:
    """How an adapter is trained, to read memories or, for comparison, texts (`kind`).

    It ends after `steps` or `minutes`, or when the loss on chunks set aside has not fallen
    `patience` times. Of questions with a known answer only they count that the model answers from
    the text with an F1 of `least`, for it cannot teach the others.
    """

    kind: Literal["memory", "text"] = setting("memory", "What it reads: memory or text.")
    steps: int = setting(600, "Steps, at most.")
    minutes: float = setting(0.0, "Minutes of training, at most; 0: no bound.")
    batch: int = setting(16, "Prompts of a step.")
    lr: float = setting(1e-3, "The learning rate.")
    rank: int = setting(16, "The adapter's rank.")
    questions: int = setting(6, "Questions made by rule of each chunk.")
    gold: float = setting(0.5, "The share of known answers that are taught as they are.")
    least: float = setting(0.5, "F1 with which the model has to answer a question itself.")
    patience: int = setting(4, "Measurements without a gain after which it ends.")
    seed: int = setting(0, "Seed of what is drawn.")

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
class Cluster:
    """Who writes memories, and decodes them for an audit.

    Without an `address` Ray is started on this machine, for the time of the command. A worker that
    has done no chunk for `chunk_timeout` seconds is ended, and what it had is given to others.
    """

    engine: Literal["processes", "ray"] = setting(
        "processes", "processes of this machine, or ray: workers of a cluster."
    )
    address: str = setting("", "The Ray cluster's HOST:PORT, or auto.", shown="one started here")
    chunk_timeout: float = setting(
        3600.0, "Seconds after which a chunk is given to another worker of a cluster; 0: never."
    )

    def __post_init__(self) -> None:
        within(self, "cluster.chunk_timeout", 0, 1_000_000, "never")


@dataclass(frozen=True, slots=True)
class Serve:
    """How a store is served."""

    host: str = setting("127.0.0.1", "Where to listen.")
    port: int = setting(8420, "The port; 0: any that is free.")
    roots: tuple[str, ...] = setting(
        (), "A folder whose paths may be ingested; may be repeated.", option="--root"
    )
    names: tuple[str, ...] = setting(
        (), "Another name of this machine; may be repeated.", option="--name"
    )
    places: int = setting(128, "Questions that may wait.")
    rate: float = setting(100.0, "Requests a second of one address; 0: no limit.")
    max_upload: int = setting(100_000_000, "Bytes of an upload, at most.", shown="100000000")

    def __post_init__(self) -> None:
        within(self, "serve.port", 0, 65535, "any that is free")
        within(self, "serve.places", 1, 100_000)
        within(self, "serve.rate", 0, 1_000_000, "no limit")
        require(self.max_upload >= 1, "serve.max_upload", self.max_upload, "1 or more")


@dataclass(frozen=True, slots=True)
class Config:
    """All dials.

    `store` is a store's folder or, with `collection`, the folder that holds several stores, each of
    its own name.
    """

    store: str = setting(".rag-memtok", "The store's folder.")
    collection: str = setting("", "One of several stores under --store, by name.")
    model: Model = field(default_factory=Model)
    documents: Documents = field(default_factory=Documents)
    memorize: Memorize = field(default_factory=Memorize)
    retrieve: Retrieve = field(default_factory=Retrieve)
    ask: Ask = field(default_factory=Ask)
    adapt: Adapt = field(default_factory=Adapt)
    cluster: Cluster = field(default_factory=Cluster)
    serve: Serve = field(default_factory=Serve)

    def __post_init__(self) -> None:
        named = bool(self.store) and "\0" not in self.store
        require(named, "store", self.store, "a folder; the current one is .")
        named = not self.collection or COLLECTION.fullmatch(self.collection) is not None
        require(
            named,
            "collection",
            self.collection,
            "1 to 64 letters, digits, - and _, the first a letter or digit",
        )
