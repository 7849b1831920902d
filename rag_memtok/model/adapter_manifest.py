"""What an adapter is bound to and was made of: the file that makes a folder one.

It may be anybody's, in a store that nobody trusts yet, and is read as such.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from rag_memtok.errors import InputRefused

MANIFEST = "reader.json"
FORMAT = 1
SHIPPED_READER = "text_shipped"  # of `dev`
LARGEST = 2**20  # bytes of a file that describes an adapter: some hundred times as many as it has
LARGEST_NUMBER = 2**63  # no measurement is more; a float could not hold any integer
Kind = Literal["memory", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterManifest:
    """What an adapter reads (`kind`), what it is bound to, and what it was made of.

    `template_sha256` is that of the memories it reads, "" for text; `frame_sha256` that of the
    frame it was asked in, "" for the plain one. `passages`: whether several were measured to be
    read better "apart" or "together", "" if that was not measured. `encoder_sha256`: the encoder
    whose vectors it reads beside text, "" if it reads none. `config_sha256`: the configuration, ""
    in those made before it was written down. `dev` are measurements on chunks it was
    not trained on, shares of 1: F1 of the frozen model reading the text ("text"), of the same with
    the reader that ships with it, where one does (SHIPPED_READER), of the memories without
    ("before") and with the adapter ("after"), and the losses.
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
    config_sha256: str = ""
    format: int = FORMAT


def read_manifest(folder: Path) -> AdapterManifest | None:
    """The manifest of the adapter in `folder`; None if there is none.

    Raises:
        InputRefused: there is something else.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(read_described(path))
        if content.get("format") != FORMAT or content["kind"] not in ("memory", "text"):
            raise ValueError("of another format")
        _check_types(content)
        return AdapterManifest(**content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputRefused(
            f"{path} is not that of an adapter: {error}", remedy="rag-memtok adapt trains one"
        ) from error


def read_described(path: Path) -> bytes:
    """The content of a file that describes an adapter.

    Raises:
        ValueError: it is no plain file, or too large to be one of ours.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # a FIFO would be waited for
        raise ValueError("no plain file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"of more than {LARGEST} bytes")
    return content


def _check_types(content: Mapping[str, Any]) -> None:
    """Raises ValueError where a value is not of its field's type."""
    hints = get_type_hints(AdapterManifest)
    for name, value in content.items():
        kind = hints.get(name)
        if kind in (str, int) and type(value) is not kind:
            raise ValueError(f"{name} is a {type(value).__name__}")
    for name in ("trained_on", "dev"):
        numbers = content.get(name, {})
        if type(numbers) is not dict or not all(map(_is_number, numbers.values())):
            raise ValueError(f"{name} is not numbers by name")


def _is_number(value: object) -> bool:
    """Whether it is a number that can be shown; true and false are none."""
    return type(value) in (int, float) and not abs(value) > LARGEST_NUMBER  # type: ignore[arg-type]
