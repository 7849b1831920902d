"""Safetensors files and JSON read and written piece by piece, for what does not fit into memory."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

PIECE = 2**20
MAX_VALUE = 2**26  # bytes of one value in JSON
KINDS = {"U8": ("uint8", 1), "F32": ("float32", 4)}  # numpy's name, bytes
ALIGNMENT = 8  # of what follows the header
DECODER = json.JSONDecoder()


@dataclass(slots=True, eq=False, kw_only=True)
class Part:
    """A tensor's `size` bytes in a file, from `start` on: a row, or a table `width` wide.

    `at` is how many were taken.
    """

    file: BinaryIO
    size: int = 0
    start: int = 0
    kind: str = "U8"
    width: int = -1  # of a table; -1: a row
    at: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        count = self.size // KINDS[self.kind][1]
        if self.width < 0:
            return (count,)
        return (count // self.width if self.width else 0, self.width)

    @property
    def is_finished(self) -> bool:
        """Whether all of it was read, and nothing beyond it."""
        return self.at == self.size

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self.file.write(data)
        self.size += len(data)

    def read(self, at: int, count: int) -> bytes:
        """Up to `count` bytes from `at` on."""
        self.file.seek(self.start + at)
        return self.file.read(max(0, min(count, self.size - at)))

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= count <= self.size - self.at:
            raise ValueError("more bytes than there are")
        self.at += count
        return self.read(self.at - count, count)

    def pieces(self) -> Iterator[bytes]:
        """Yields all of it, piece by piece."""
        for at in range(0, self.size, PIECE):
            yield self.read(at, PIECE)


def digest(parts: Mapping[str, Part]) -> str:
    """One sha256 over the tensors, each with its name and shape, in the order given."""
    whole = hashlib.sha256()
    for name, part in parts.items():
        whole.update(f"{name} {KINDS[part.kind][0]} {part.shape}\n".encode())
        for piece in part.pieces():
            whole.update(piece)
    return whole.hexdigest()


def pieces(parts: Mapping[str, Part], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """Yields a safetensors file, piece by piece: parts of wide numbers first, then by name."""
    ordered = sorted(parts, key=lambda name: (-KINDS[parts[name].kind][1], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in ordered:
        part, begin = parts[name], end
        end += part.size
        header[name] = {"dtype": part.kind, "shape": part.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        yield from parts[name].pieces()


def open_parts(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, Part]]:
    """The metadata and parts of a safetensors file.

    Raises:
        ValueError: it is none, or only a part of one, or has tensors of other kinds.
    """
    try:
        with safe_open(path, framework="numpy"):  # refuses what is not whole
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    parts = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in KINDS or len(entry["shape"]) > 2:
            raise ValueError(f"a tensor {name} of {entry['dtype']} {entry['shape']}")
        width = entry["shape"][1] if len(entry["shape"]) == 2 else -1
        parts[name] = Part(
            file=file,
            size=end - begin,
            start=8 + length + begin,
            kind=entry["dtype"],
            width=width,
        )
    return metadata, parts


class JsonStream:
    """JSON of ASCII, as `json.dumps` writes it, read value by value.

    `read` gives bytes: from where on, how many.
    """

    def __init__(self, read: Callable[[int, int], bytes], position: int = 0) -> None:
        self._read, self._end, self._text, self._at = read, position, "", 0

    @property
    def position(self) -> int:
        """The number of bytes that were read."""
        return self._end - len(self._text) + self._at

    def restart_at(self, position: int) -> "JsonStream":
        """Another stream over the same bytes, from `position` on."""
        return JsonStream(self._read, position)

    def expect(self, text: str) -> None:
        """Reads exactly this.

        Raises:
            ValueError: it is something else.
        """
        if not self._starts_with(text):
            raise ValueError(f"no {text!r} where it has to be")
        self._at += len(text)

    def value(self) -> Any:
        """Reads an object.

        Raises:
            ValueError: there is none, or none that is whole.
        """
        if not self._starts_with("{"):
            raise ValueError("no object where it has to be")
        while True:
            try:
                value, self._at = DECODER.raw_decode(self._text, self._at)
                return value
            except ValueError:
                if len(self._text) - self._at > MAX_VALUE or not self._read_more():
                    raise

    def array(self, before: str) -> Iterator[Any]:
        """Reads an array of objects, one by one, after what stands `before` it."""
        self.expect(before + "[")
        while not self._starts_with("]"):
            yield self.value()
            if not self._starts_with("]"):
                self.expect(", ")
        self.expect("]")

    def _starts_with(self, text: str) -> bool:
        while len(self._text) - self._at < len(text) and self._read_more():
            pass
        return self._text.startswith(text, self._at)

    def _read_more(self) -> bool:
        piece = self._read(self._end, PIECE)
        self._end += len(piece)
        self._text, self._at = self._text[self._at :] + piece.decode("ascii"), 0
        return bool(piece)
