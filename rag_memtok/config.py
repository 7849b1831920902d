"""Every dial on one page.

Flags win over `RAG_MEMTOK_*` variables, those over `rag-memtok.toml`, that over the defaults here.

A variable is named after its dial: `RAG_MEMTOK_STORE`, `RAG_MEMTOK_MODEL_DTYPE`. The file has one
table per class:

    store = ".rag-memtok"
    [memorize]
    tokens_per_vector = 8
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rag_memtok.errors import UsageError

FILE_NAME = "rag-memtok.toml"
PREFIX = "RAG_MEMTOK_"
# without a dot: DIR.old and the like can never be one
COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
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

    `id` is "mini" (the embedded one), a folder or a hub id; `revision` a hub revision; `threads` 0
    leaves torch's own.

    An empty `id` and dtype "auto" are the store's, or for a new store "mini" in float32. "nf4" is 4
    bits a weight, and needs bitsandbytes.
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

    `exclude` are gitignore-style patterns; `max_bytes` bounds one file; `chunk_tokens` one chunk.

    `chunk_tokens` 0 is the store's, or for a new store 128.
    """

    exclude: tuple[str, ...] = ()
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
    calibration. `seconds_per_chunk` 0 means no bound. `max_pins` is the most correction pins a
    chunk may have (-1: no limit). `tau` is the margin, in logits, under which a right token is
    pinned all the same, for safety. `processes` write at the same time, each with a copy of the
    model: one for each GPU, or for a few cores. `draft` is what most steps are computed in: auto is
    bfloat16 where the hardware has it; compiled is bfloat16 in layers that torch compiles first,
    for a minute and with a C++ compiler: worth it for hundreds of chunks.
    """

    write: Literal["", "exact", "readable"] = ""
    recipe: str = ""
    template: str = ""
    tokens_per_vector: int = 0
    steps: int = 0
    batch: int = 8
    processes: int = 1
    draft: Literal["auto", "float32", "bfloat16", "compiled"] = "auto"
    seconds_per_chunk: float = 90.0
    codec: str = ""
    tau: float = 0.1
    max_pins: int = -1
    keep_text: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, "memorize.tokens_per_vector", 0, 8192, "auto")
        within(self, "memorize.steps", 0, 1_000_000, "the recipe's own")
        within(self, "memorize.batch", 1, 4096)
        within(self, "memorize.processes", 1, 1024)
        within(self, "memorize.seconds_per_chunk", 0, 1_000_000, "no bound")
        within(self, "memorize.tau", 0, 100)
        require(self.max_pins >= -1, "memorize.max_pins", self.max_pins, "-1 (no limit) or more")


@dataclass(frozen=True, slots=True)
class Retrieve:
    """How chunks are found.

    `embedder` is "mini" or a sentence-transformers id or folder, `dense_weight` its share of the
    fused rank.

    An empty `embedder` is the store's, or "mini"; `dense_weight` -1 is what the embedder recorded
    as its best, or 0.3.
    """

    embedder: str = ""
    k: int = 3
    dense_weight: float = -1.0
    rank_constant: int = 60

    def __post_init__(self) -> None:
        within(self, "retrieve.k", 1, 1000)
        weight = self.dense_weight
        require(
            0 <= weight <= 1 or weight == -1,
            "retrieve.dense_weight",
            weight,
            "0 to 1, or -1 (the embedder's own)",
        )
        within(self, "retrieve.rank_constant", 1, 10_000)


@dataclass(frozen=True, slots=True)
class Ask:
    """How questions are answered.

    `adapter` is "auto" (the store's, or the one shipped with the model), "none", or a folder.

    `passages`: all in one prompt, or each in its own, where the surest answer is kept; "auto" is
    what was measured to be better for the model, else together.
    """

    read: Literal["auto", "memory", "decode", "text"] = "auto"
    passages: Literal["auto", "together", "apart"] = "auto"
    adapter: str = "auto"
    max_new_tokens: int = 64
    max_question_tokens: int = 256

    def __post_init__(self) -> None:
        within(self, "ask.max_new_tokens", 1, 8192)
        within(self, "ask.max_question_tokens", 1, 8192)


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


def coerce(text: str, kind: Any, dial: str) -> object:
    """Returns `text`, a variable's or a flag's value, as `kind`.

    Raises:
        UsageError: it does not read as one.
    """
    if get_origin(kind) is tuple:
        return tuple(part for part in text.split(os.pathsep) if part)
    if kind is bool:
        require(text.lower() in {"0", "1", "true", "false"}, dial, text, "true or false")
        return text.lower() in {"1", "true"}
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            require(False, dial, text, f"a number ({kind.__name__})")
    return text


def check(value: object, kind: Any, dial: str) -> object:
    """Returns `value` as the type `kind` of `dial`, refusing what does not fit."""
    if isinstance(value, str) and kind is not str and get_origin(kind) is not Literal:
        value = coerce(value, kind, dial)
    if get_origin(kind) is Literal:
        require(value in get_args(kind), dial, value, ", ".join(map(str, get_args(kind))))
    elif get_origin(kind) is tuple:
        require(
            isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
            dial,
            value,
            "a list of strings",
        )
        value = tuple(value)  # type: ignore[arg-type]
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    else:
        require(type(value) is kind, dial, value, f"a value of type {kind.__name__}")
    return value


def dials() -> dict[str, type]:
    """Every dial's dotted name and type: "store", "model.id", ..."""
    named: dict[str, type] = {}
    for section in fields(Config):
        kind = get_type_hints(Config)[section.name]
        if kind is str:
            named[section.name] = kind
        else:
            named |= {f"{section.name}.{name}": hint for name, hint in get_type_hints(kind).items()}
    return named


def updated(config: Config, values: Mapping[str, object]) -> Config:
    """Returns `config` with the dotted dials in `values` set.

    Raises:
        UsageError: an unknown dial, or a value out of its range.
    """
    known, nested = dials(), dict[str, dict[str, Any]]()
    for dial, value in values.items():
        require(dial in known, "setting", dial, ", ".join(known))
        section, _, name = dial.rpartition(".")
        nested.setdefault(section, {})[name] = check(value, known[dial], dial)
    sections = {
        section: replace(getattr(config, section), **changes)
        for section, changes in nested.items()
        if section
    }
    return replace(config, **sections, **nested.get("", {}))


def from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """The dials set by `RAG_MEMTOK_*` variables.

    Unknown ones are left alone: they may be another program's.
    """
    return {
        dial: environment[name]
        for dial in dials()
        if (name := PREFIX + dial.replace(".", "_").upper()) in environment
    }


def from_file(path: Path) -> dict[str, object]:
    """The dials set in a `rag-memtok.toml`, empty if there is none.

    Raises:
        UsageError: the file is not TOML.
    """
    if not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", remedy=f"mend or remove {path}"
        ) from error
    flat: dict[str, object] = {}
    for name, value in tables.items():
        flat |= (
            {f"{name}.{inner}": item for inner, item in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def layers(
    flags: Mapping[str, object], environment: Mapping[str, str], folder: Path
) -> dict[str, Mapping[str, object]]:
    """What is set, by where it is set, the weakest first."""
    return {
        "file": from_file(folder / FILE_NAME),
        "variable": from_environment(environment),
        "flag": flags,
    }


def load(flags: Mapping[str, object], environment: Mapping[str, str], folder: Path) -> Config:
    """Returns the effective settings.

    `flags` go over `environment` over `folder`'s rag-memtok.toml over the defaults.
    """
    config = Config()
    for values in layers(flags, environment, folder).values():
        config = updated(config, values)
    return config


def value_of(config: Config, dial: str) -> object:
    """The value of a dotted dial."""
    section, _, name = dial.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


def origins(
    flags: Mapping[str, object], environment: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """Where the effective value of each dial comes from.

    It is "flag", "variable", "file" or "default".
    """
    found = dict.fromkeys(dials(), "default")
    for where, values in layers(flags, environment, folder).items():
        found |= dict.fromkeys(values, where)
    return found
