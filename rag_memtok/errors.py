"""What can go wrong that is not a bug, each with its exit code. The codes are a contract.

    RagMemtokError
    |-- UsageError           2   an option or argument out of its range
    |   `-- ChunkDoesNotFit  2   a chunk and its memory exceed the LM's context
    |-- NoUsableMemory       7   nothing in the store can answer
    |-- NoStore             10   there is no store at this path
    |-- StoreLocked         11   another process writes to the store
    |-- StoreDamaged        13   the store's bytes are not what was written
    |-- FormatMismatch      14   the store is of another format version
    |-- WrongModel          15   the store is bound to another model, tokenizer or template
    |-- ModelUnavailable    16   the model is missing, gated, or the hub is out of reach
    |-- EngineUnavailable   17   the server that answers is away, dead, silent or makes no sense
    |-- DiskFailure         20   disk full, quota, read-only, or an I/O error
    |-- OutOfMemory         21   a batch of one does not fit
    |-- DeviceUnavailable   22   the device asked for is not there
    |-- PermissionRefused   23   the operating system, or a server, refused access
    |-- InputRefused        24   nothing to read, or something this program will not open
    |-- Busy                25   a server has no place for one more request
    `-- ClusterUnavailable  26   the cluster is out of reach, refuses, or its workers give nothing

Codes without an exception: 0 done, 1 a bug (a traceback), 3 some inputs skipped, 4 more correction
pins than --max-pins allows, 5 verify found a mismatch, 6 not fully proved, 128+N ended by signal N.
An expected failure of one chunk is a Verdict, never an exception.
"""

import errno
import unicodedata
from collections.abc import Mapping
from typing import ClassVar, TypeVar

T = TypeVar("T")


def escaped(text: str) -> str:
    r"""`text` with every control and format character written out, as `\x1b`.

    Newline and tab are not.
    """
    kept = ("\n", "\t")
    return "".join(
        letter
        if letter in kept or unicodedata.category(letter)[0] != "C"
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out.

    The errors that say so are Python's own, torch's for a device, or those without a class, of
    torch's and oneDNN's on a CPU.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = (
        "can't allocate memory",
        "not enough memory",
        "bad_alloc",
        "could not create a",
        "could not execute a primitive",
    )
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)


class RagMemtokError(Exception):
    """Base of everything this package raises on purpose.

    The message says what happened and to what; `remedy` what to do next.
    """

    exit_code: ClassVar[int] = 1
    name: ClassVar[str] = "error"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(RagMemtokError):
    """An option or argument out of its range."""

    exit_code, name = 2, "usage"


def named(kind: str, table: Mapping[str, T], name: str) -> T:
    """Returns the row `name` of a table of what there is of a `kind`.

    Raises:
        UsageError: there is none of that name; those there are are told.
    """
    if name not in table:
        raise UsageError(f"no {kind} {name!r}; there are {', '.join(table)}")
    return table[name]


class ChunkDoesNotFit(UsageError):
    """A chunk and its memory exceed the LM's context."""


class NoUsableMemory(RagMemtokError):
    """Nothing in the store can answer the question."""

    exit_code, name = 7, "no-usable-memory"


class NoStore(RagMemtokError):
    """There is no store at this path."""

    exit_code, name = 10, "no-store"


class StoreLocked(RagMemtokError):
    """Another process writes to the store."""

    exit_code, name = 11, "locked"


class StoreDamaged(RagMemtokError):
    """The store's bytes are not what was written."""

    exit_code, name = 13, "damaged"


class FormatMismatch(RagMemtokError):
    """The store is of another format version."""

    exit_code, name = 14, "format"


class WrongModel(RagMemtokError):
    """The store is bound to another model, tokenizer or template."""

    exit_code, name = 15, "wrong-model"


class ModelUnavailable(RagMemtokError):
    """The model is missing, gated, or the hub is out of reach."""

    exit_code, name = 16, "model-unavailable"


class EngineUnavailable(RagMemtokError):
    """The server that answers is away, dead, silent or makes no sense."""

    exit_code, name = 17, "engine-unavailable"


class DiskFailure(RagMemtokError):
    """Disk full, quota, read-only, or an I/O error."""

    exit_code, name = 20, "disk"


class OutOfMemory(RagMemtokError):
    """A batch of one does not fit."""

    exit_code, name = 21, "memory"


class DeviceUnavailable(RagMemtokError):
    """The device asked for is not there."""

    exit_code, name = 22, "device"


class PermissionRefused(RagMemtokError):
    """The operating system, or a server, refused access."""

    exit_code, name = 23, "permission"


class InputRefused(RagMemtokError):
    """Nothing to read, or something this program will not open."""

    exit_code, name = 24, "input-refused"


class ClusterUnavailable(RagMemtokError):
    """The cluster is out of reach, refuses, or its workers give nothing."""

    exit_code, name = 26, "cluster"


class Busy(RagMemtokError):
    """A server has no place for one more request; it may have one after `seconds`."""

    exit_code, name = 25, "busy"

    def __init__(self, message: str, remedy: str = "", seconds: int = 1) -> None:
        super().__init__(message, remedy)
        self.seconds = seconds
