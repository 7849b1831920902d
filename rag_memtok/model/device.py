"""What there is to compute on.

That is which device, whether it computes in bfloat16, a heap that suits training, and how several
threads share the work.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from rag_memtok.errors import DeviceUnavailable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 32 * 2**20  # bytes; glibc takes no greater threshold
NEVER = 2**31 - 1

Item = TypeVar("Item")
Result = TypeVar("Result")


def device_named(name: str) -> torch.device:
    """The device `name`; "auto" takes the best there is.

    Raises:
        DeviceUnavailable: it is not there.
    """
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present[name]:
        raise DeviceUnavailable(
            f"there is no {name} device here", remedy="--device auto takes what there is"
        )
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are computed as such, and so are quicker than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("arm_bf16"))
    return False


def keep_freed() -> bool:
    """Whether blocks of up to 32 MB now come from the heap, which no longer shrinks.

    It is False where the C library is another.

    By default a block of some megabytes is a mapping of its own: given back when freed, and paid
    for again, page by page, when next asked for. Cost: the process stays as large as it once was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return (
        mallopt is not None
        and bool(mallopt(M_MMAP_THRESHOLD, LARGEST))
        and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
    )


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What `function` gives for each of `items`, each in a thread with its share of torch's.

    One item has them all. An exception is raised when all that began have ended.

    Cost: starting the threads, some 0.1 ms each.
    """
    if len(items) < 2:
        return list(map(function, items))
    threads = torch.get_num_threads()

    def alone(item: Item) -> Result:
        torch.get_num_threads()  # a thread that has not asked yet takes the number of all later
        torch.set_num_threads(max(1, threads // len(items)))
        return function(item)

    try:
        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(threads)  # of this thread, and of those that will be started
