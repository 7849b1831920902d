"""The header of a GGUF file, read with every count, length and offset checked against its size.

A file may come from anyone, and libraries believe what it says of itself.
"""

import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rag_memtok.errors import InputRefused

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")  # as llama.cpp names them; mistral is a llama
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
LISTS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")
LARGEST = 1 << 40  # elements of a tensor


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file: `values` by key, and the number of elements of its tensors."""

    values: Mapping[str, Any]
    elements: int

    @property
    def quantization(self) -> str:
        """The type of most tensors, such as "Q4_1"."""
        from gguf import LlamaFileType

        with suppress(ValueError, KeyError, TypeError):
            return LlamaFileType(int(self.values["general.file_type"])).name.split("_", 1)[1]
        return "unknown types"


class Broken(Exception):
    """Why a file is no GGUF file that this program reads, in words for the user."""


@dataclass(slots=True)
class Cursor:
    """A place in the file; nothing behind its end can be asked for."""

    data: mmap.mmap
    at: int = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if not 0 <= count <= len(self.data) - self.at:
            raise Broken("it ends within its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        """The next `count` numbers of a struct kind, little-endian."""
        self.room(count, struct.calcsize(kind))
        return struct.unpack(f"<{count}{kind}", self.take(count * struct.calcsize(kind)))

    def number(self, kind: str) -> Any:
        """The next number."""
        return self.numbers(kind)[0]

    def text(self) -> str:
        """The next string."""
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise Broken("a name in its header is not UTF-8") from None

    def room(self, count: int, each: int) -> None:
        """Refuses a count of things of `each` bytes, at least, that cannot follow."""
        if count * each > len(self.data) - self.at:
            raise Broken("a count in its header is larger than the file")

    def value(self, kind: int, *, keep: bool) -> Any:
        """The next value; of an array only the length, unless it is to be kept."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise Broken(f"a value of type {kind}, which there is not")
        inner, count = self.numbers("I")[0], self.number("Q")
        if inner in SCALARS:
            found: Sequence[Any] = self.numbers(SCALARS[inner], count)
        elif inner == STRING:
            self.room(count, 8)
            found = [self.text() for _ in range(count)]
        else:
            raise Broken(f"an array of type {inner}, which is not read here")
        return list(found) if keep else len(found)


def read_header(file: Path) -> Header:
    """Reads a file's header, and checks that all it speaks of is in the file.

    Raises:
        InputRefused: it is no GGUF file, a part of one, or of a kind that is not read here.

    Cost: walks the header in Python, a third of a second for 50,000 words.
    """
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size < 24:
                raise Broken("it is too short for a GGUF file")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _read(Cursor(data))
        _require_known(header.values)
    except (Broken, struct.error, OverflowError, MemoryError) as error:
        raise refused(file, str(error) or type(error).__name__) from None
    return header


def _read(cursor: Cursor) -> Header:
    if cursor.take(4) != b"GGUF":
        raise Broken("it does not begin as a GGUF file does")
    if (number := cursor.number("I")) not in (2, 3):
        raise Broken(f"it is of GGUF version {number}; 2 and 3 are read here")
    tensors, pairs = cursor.numbers("Q", 2)
    cursor.room(pairs, 13)
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key, kind = cursor.text(), cursor.number("I")
        if key in values:
            raise Broken(f"{key!a} stands twice in its header")
        values[key] = cursor.value(kind, keep=key in LISTS)
    return Header(values, _measured(cursor, tensors, values.get("general.alignment", 32)))


def _measured(cursor: Cursor, count: int, alignment: Any) -> int:
    """The number of elements of all tensors, each of which has to lie within the file."""
    from gguf import GGML_QUANT_SIZES

    if not isinstance(alignment, int) or not 0 < alignment <= 65536 or alignment & (alignment - 1):
        raise Broken(f"its alignment is {alignment!a}")
    cursor.room(count, 24)
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    names, ends, elements = set(), [0], 0
    for _ in range(count):
        name, dimensions = cursor.text(), cursor.number("I")
        shape = cursor.numbers("Q", dimensions) if 0 < dimensions <= 4 else ()
        kind, offset = cursor.number("I"), cursor.number("Q")
        size = prod(shape)
        if name in names or not shape or not 0 < size < LARGEST:
            raise Broken(f"the tensor {name[:64]!a} has an impossible name or shape")
        if kind not in sizes or shape[0] % sizes[kind][0] or offset % alignment:
            raise Broken(f"the tensor {name[:64]!a} is of an unknown type, or stands askew")
        names.add(name)
        elements += size
        ends.append(offset + size // sizes[kind][0] * sizes[kind][1])
    start = -(-cursor.at // alignment) * alignment
    if start + max(ends) > len(cursor.data):
        raise Broken("its tensors reach beyond its end")
    return elements


def _require_known(values: Mapping[str, Any]) -> None:
    """Refuses by its name what is not read here."""
    if (parts := values.get("split.count", 1)) != 1:
        raise Broken(f"it is one of {parts} parts of a split model: merge them first")
    if (architecture := values.get("general.architecture")) not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise Broken(f"its model class {architecture!a} is not known here; there are {known}")
    if not all(isinstance(values.get(key), list) for key in LISTS):
        raise Broken("it has no vocabulary with merges and types")


def refused(file: Path, why: str) -> InputRefused:
    """The error for a model file that is not read, and why."""
    return InputRefused(
        f"the model file {file} is refused: {why}", remedy="name another --model, or fetch it again"
    )
