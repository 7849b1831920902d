"""Memory vectors <-> bytes.

What was packed is what gets judged, so a codec may round as it likes: the price is counted in pins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.errors import StoreDamaged, named


@dataclass(frozen=True, slots=True)
class Codec:
    """`pack` makes bytes of fp32 `M d`; `unpack` makes fp32 `M d` of those and the shape."""

    pack: Callable[[Float[np.ndarray, "M d"]], bytes]
    unpack: Callable[[bytes, tuple[int, int]], Float[np.ndarray, "M d"]]

    def round_trip(self, vectors: Float[Tensor, "M d"]) -> Float[Tensor, "M d"]:
        """The vectors as they come back from their bytes."""
        packed = self.pack(vectors.cpu().numpy())
        return torch.tensor(
            self.unpack(packed, (vectors.shape[0], vectors.shape[1])), device=vectors.device
        )


def dtype_codec(name: str) -> Codec:
    """A codec that stores every number as the little-endian numpy dtype `name`.

    Numbers out of its range go to its largest.
    """
    kind, largest = np.dtype(name), np.finfo(name).max

    def pack(vectors: Float[np.ndarray, "M d"]) -> bytes:
        return np.clip(vectors, -largest, largest).astype(kind).tobytes()

    def unpack(packed: bytes, shape: tuple[int, int]) -> Float[np.ndarray, "M d"]:
        require_bytes(packed, shape, shape[0] * shape[1] * kind.itemsize)
        return np.frombuffer(packed, dtype=kind).reshape(shape).astype(np.float32)

    return Codec(pack, unpack)


def clamp_finite(vectors: Float[np.ndarray, "M d"], largest: float) -> Float[np.ndarray, "M d"]:
    """The vectors in fp32, clamped to `largest` either way; NaN becomes 0."""
    return np.clip(
        np.nan_to_num(vectors, nan=0.0, posinf=largest, neginf=-largest), -largest, largest
    ).astype(np.float32)


BFLOAT16_LARGEST = float(np.uint32(0x7F7F0000).view(np.float32))


def pack_bfloat16(vectors: Float[np.ndarray, "M d"]) -> bytes:
    """The upper 16 bits of each fp32 number, rounded to nearest, ties to even; little-endian."""
    bits = clamp_finite(vectors, BFLOAT16_LARGEST).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def unpack_bfloat16(packed: bytes, shape: tuple[int, int]) -> Float[np.ndarray, "M d"]:
    """The inverse: exact."""
    require_bytes(packed, shape, 2 * shape[0] * shape[1])
    return (np.frombuffer(packed, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)


# An int8 scale has 17 significant bits, so that 127 times it is exact in fp32: what was unpacked
# packs to the same bytes.
SCALE_BITS = np.uint32(0xFFFFFF80)
SMALLEST_SCALE = np.float32(2.0**-126)
LARGEST_SCALE = ((np.finfo(np.float32).max / np.float32(127)).view(np.uint32) & SCALE_BITS).view(
    np.float32
)


def pack_int8(vectors: Float[np.ndarray, "M d"]) -> bytes:
    """M scales, little-endian fp32, then M rows of d signed bytes.

    A number is its byte times the scale of its row.

    The scale is a 127th of the row's largest number, rounded up to 17 significant bits; a byte is
    rounded to nearest, ties to even.
    """
    rows = clamp_finite(vectors, float(LARGEST_SCALE * np.float32(127)))
    wanted = np.maximum(np.abs(rows).max(axis=1, initial=0) / np.float32(127), SMALLEST_SCALE)
    scales = (wanted.view(np.uint32) + ~SCALE_BITS & SCALE_BITS).view(np.float32)
    return (
        scales.astype("<f4").tobytes() + np.rint(rows / scales[:, None]).astype(np.int8).tobytes()
    )


def unpack_int8(packed: bytes, shape: tuple[int, int]) -> Float[np.ndarray, "M d"]:
    """The inverse, up to the rounding."""
    rows, width = shape
    require_bytes(packed, shape, rows * (4 + width))
    scales, numbers = (
        np.frombuffer(packed, "<f4", rows),
        np.frombuffer(packed, np.int8, offset=4 * rows),
    )
    return numbers.reshape(shape).astype(np.float32) * scales[:, None].astype(np.float32)


GROUP = 32  # numbers that share a scale in four bits
INT4_MAX = 7  # the largest of four bits with a sign, zero in the middle
# scales of normal float16
MIN_INT4_SCALE, MAX_INT4_SCALE = np.float32(2.0**-14), np.float32(2.0**15)


def pack_int4(vectors: Float[np.ndarray, "M d"]) -> bytes:
    """Packs numbers at 4.5 bits each: scales, then a number in half a byte.

    Scales are of GROUP numbers each, little-endian float16. A row is filled up with zeros.
    """
    groups = split_groups(clamp_finite(vectors, float(MAX_INT4_SCALE) * INT4_MAX))
    wanted = np.clip(
        np.abs(groups).max(axis=1, initial=0) / INT4_MAX, MIN_INT4_SCALE, MAX_INT4_SCALE
    )
    scales = wanted.astype("<f2")
    scales = np.where(
        scales.astype(np.float32) < wanted, np.nextafter(scales, np.float16(np.inf)), scales
    ).astype("<f2")
    codes = (np.rint(groups / scales.astype(np.float32)[:, None]) + INT4_MAX).astype(np.uint8)
    return scales.tobytes() + (codes[:, ::2] | codes[:, 1::2] << 4).tobytes()


def unpack_int4(packed: bytes, shape: tuple[int, int]) -> Float[np.ndarray, "M d"]:
    """The inverse, up to the rounding."""
    rows, width = shape
    groups = rows * -(-width // GROUP)
    require_bytes(packed, shape, groups * (2 + GROUP // 2))
    scales = np.frombuffer(packed, "<f2", groups).astype(np.float32)
    halves = np.frombuffer(packed, np.uint8, offset=2 * groups).reshape(groups, GROUP // 2)
    codes = (
        np.stack([halves & 15, halves >> 4], axis=-1).reshape(groups, GROUP).astype(np.float32)
        - INT4_MAX
    )
    return (codes * scales[:, None]).reshape(rows, -1)[:, :width].astype(np.float32)


def split_groups(vectors: Float[np.ndarray, "M d"]) -> Float[np.ndarray, "N g"]:
    """The numbers of every row, GROUP at a time, the last group filled up with zeros."""
    return np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % GROUP))).reshape(-1, GROUP)


def require_bytes(packed: bytes, shape: tuple[int, int], size: int) -> None:
    """Raises StoreDamaged unless `packed` has `size` bytes."""
    if len(packed) != size:
        raise StoreDamaged(f"a memory of shape {shape} has {len(packed)} bytes, not {size}")


CODECS: dict[str, Codec] = {
    "float32": dtype_codec("<f4"),
    "float16": dtype_codec("<f2"),
    "bfloat16": Codec(pack_bfloat16, unpack_bfloat16),
    "int8": Codec(pack_int8, unpack_int8),
    "int4": Codec(pack_int4, unpack_int4),
}


def codec_named(name: str) -> Codec:
    """Returns the codec `name`.

    Raises:
        UsageError: there is none of that name.
    """
    return named("codec", CODECS, name)
