"""Memory vectors <-> bytes. What was packed is what gets judged, so a codec may round as it likes: the price is counted in pins."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rag_memtok.errors import StoreDamaged, UsageError


@dataclass(frozen=True, slots=True)
class Codec:
    """`pack` takes fp32 `M d` and gives bytes; `unpack` takes those and the shape and gives fp32 `M d`."""

    pack: Callable[[Float[np.ndarray, "M d"]], bytes]
    unpack: Callable[[bytes, tuple[int, int]], Float[np.ndarray, "M d"]]


def as_dtype(name: str) -> Codec:
    """A codec that stores every number as the little-endian numpy dtype `name`; numbers out of its range go to its largest."""
    kind, largest = np.dtype(name), np.finfo(name).max

    def pack(vectors: Float[np.ndarray, "M d"]) -> bytes:
        return np.clip(vectors, -largest, largest).astype(kind).tobytes()

    def unpack(packed: bytes, shape: tuple[int, int]) -> Float[np.ndarray, "M d"]:
        if len(packed) != shape[0] * shape[1] * kind.itemsize:
            raise StoreDamaged(f"a memory of shape {shape} has {len(packed)} bytes, not {shape[0] * shape[1] * kind.itemsize}")
        return np.frombuffer(packed, dtype=kind).reshape(shape).astype(np.float32)

    return Codec(pack, unpack)


CODECS: dict[str, Codec] = {"float32": as_dtype("<f4"), "float16": as_dtype("<f2")}


def codec_named(name: str) -> Codec:
    """Returns the codec `name`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in CODECS:
        raise UsageError(f"no codec {name!r}; there are {', '.join(CODECS)}")
    return CODECS[name]
