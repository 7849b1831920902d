"""Where settings come from: keywords or flags > environment > rag-memtok.toml > defaults.

A variable is named after its dial: `RAG_MEMTOK_STORE`, `RAG_MEMTOK_MODEL_DTYPE`. The file has one
table per class of config.py:

    store = ".rag-memtok"
    [memorize]
    tokens_per_vector = 8
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rag_memtok.config import Config, require
from rag_memtok.errors import UsageError

FILE_NAME = "rag-memtok.toml"


PREFIX = "RAG_MEMTOK_"
TOKEN = "RAG_MEMTOK_SERVE_TOKEN"  # a secret, and no setting: nothing prints it
SIMILAR = 0.75  # of what a variable and a setting are called
SPINS = "1000"  # of a thread at a barrier: benchmarks/log.md
# what has a use only where another setting has this value
ONLY_WITH = {
    "ask.zoom": ("ask.read", "zoomed"),
    "ask.url": ("ask.engine", "vllm"),
    "ask.engine_seconds": ("ask.engine", "vllm"),
    "ask.probe_lora": ("ask.engine", "vllm"),
    "cluster.address": ("cluster.engine", "ray"),
    "cluster.chunk_timeout": ("cluster.engine", "ray"),
}


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
            hints = get_type_hints(kind)
            named |= {
                f"{section.name}.{one.name}": hints[one.name]
                for one in fields(kind)
                if one.metadata  # else nothing that a user sets
            }
    return named


def updated(config: Config, values: Mapping[str, object]) -> Config:
    """Returns `config` with the dotted dials in `values` set.

    Raises:
        UsageError: an unknown dial, or a value out of its range.
    """
    known, nested = dials(), dict[str, dict[str, Any]]()
    for dial, value in values.items():
        if dial not in known:
            raise UsageError(
                f"there is no setting {dial!r}{_meant(dial, known)}",
                remedy="rag-memtok config lists every setting",
            )
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

    Unknown ones are left alone, they may be another program's, unless they are nearly one of ours.

    Raises:
        UsageError: one looks like a misspelt setting.
    """
    known = {variable_of(dial): dial for dial in dials()}
    ours = [name.removeprefix(PREFIX) for name in known]
    for name in environment:
        if name.startswith(PREFIX) and name not in known and name != TOKEN:
            near = _meant(name.removeprefix(PREFIX), ours, SIMILAR)
            if near:
                raise UsageError(
                    f"there is no setting {name}{near}", remedy=f"mend it, or unset {name}"
                )
    return {dial: environment[name] for name, dial in known.items() if name in environment}


def _meant(name: str, known: Iterable[str], similar: float = 0.6) -> str:
    """The nearest of what there is, as a question; "" if nothing is near."""
    near = get_close_matches(name, list(known), 3, similar)
    return f"; did you mean {', '.join(near)}?" if near else ""


def from_file(path: Path) -> dict[str, object]:
    """The dials set in a `rag-memtok.toml`, empty if there is none.

    Raises:
        UsageError: the file is not TOML.
    """
    if not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
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

    Raises:
        UsageError: an unknown setting, or a value out of its range, and where it is set.
    """
    config = Config()
    for where, values in layers(flags, environment, folder).items():
        try:
            config = updated(config, values)
        except UsageError:
            _tell_where(config, where, values, folder)
            raise
    return config


def _tell_where(config: Config, where: str, values: Mapping[str, object], folder: Path) -> None:
    """Raises the error of the first of a layer's values that is refused, with where it is set."""
    for dial, value in values.items() if where != "flag" else ():
        try:
            updated(config, {dial: value})
        except UsageError as error:
            place = variable_of(dial) if where == "variable" else f"{folder / FILE_NAME}"
            remedy = f"unset {place}" if where == "variable" else f"remove it from {place}"
            raise UsageError(f"{error} (set in {place})", remedy=f"mend it, or {remedy}") from None


def variable_of(dial: str) -> str:
    """The environment variable of a dial."""
    return PREFIX + dial.replace(".", "_").upper()


def asked(flags: Mapping[str, object], environment: Mapping[str, str], folder: Path) -> Config:
    """As `load`, for flags or keywords that somebody gave now.

    A variable or the file may hold an address for when it is wanted; a flag is wanted.

    Raises:
        UsageError: a flag of no use beside the other settings, too.
    """
    config = load(flags, environment, folder)
    for dial, (other, wanted) in ONLY_WITH.items():
        if dial in flags and (value := value_of(config, other)) != wanted:
            raise UsageError(
                f"{dial} is {flags[dial]!r}, which {other} {value!r} has no use for",
                remedy=f"{_engine_remedy(other, wanted)}, or leave it out",
            )
    return config


def _engine_remedy(dial: str, wanted: str) -> str:
    if dial == "cluster.engine":  # a store that is held in Python works in its process
        return f"rag-memtok ingest or rag-memtok verify with --engine {wanted}"
    return f"--engine {wanted} ({dial.replace('.', '__')}={wanted!r} in Python)"


def named_dials(values: Mapping[str, object]) -> dict[str, object]:
    """The dials that keywords name, without those that are None.

    `memorize__steps` is memorize.steps; `steps` alone is found where it stands first, in the order
    of this file; `model` is model.id.

    Raises:
        UsageError: none of that name; the nearest are told.
    """
    short = {name.rpartition(".")[2]: name for name in reversed(dials())}
    names = {name.replace(".", "__"): name for name in dials()}
    known = short | names | {"model": "model.id"}
    found = {}
    for keyword, value in values.items():
        if keyword not in known:
            near = _meant(keyword, known) or f"; did you mean {', '.join(short)}?"
            raise UsageError(f"there is no setting {keyword!r}{near}")
        if value is not None:
            found[known[keyword]] = str(value) if isinstance(value, Path) else value
    return found


def here(**keywords: object) -> Config:
    """The effective settings: keywords over the environment over ./rag-memtok.toml.

    Raises:
        UsageError: an unknown setting, a value out of its range, or a keyword of no use.
    """
    return asked(named_dials(keywords), os.environ, Path.cwd())


def share_cores() -> None:
    """Lets OpenMP's threads wait a little before they sleep; to be called before torch is loaded.

    As it is made, libgomp spins so long at every barrier that two processes of as many threads as
    there are cores bring each other to a stand. A setting of the user's own stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


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
