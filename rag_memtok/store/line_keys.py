"""The keys of lines: of a file's name with the headings above a chunk.

    lines.keys   a line of JSON, then of a LineKeys: starts, chunks, keys, digests

A cache of what stands in the database beside it, in a file: what only reads a store makes it, too.
The line itself is not in it, but its key leaks most of it.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from rag_memtok.store.database import Database
from rag_memtok.store.files import LINES, regular, write_whole
from rag_memtok.store.schema import format_in

RULE = "1"  # what a line is: counted up with every change of it
HEADER = 1024  # bytes of the line of JSON, filled up with spaces: what follows is aligned
DIGEST = 32  # bytes
ENCODED = 64  # lines that an embedder gets at a time

Encode = Callable[[list[str]], Float[np.ndarray, "N e"]]

log = getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LineKeys:
    """The keys of lines, and the numbers of the chunks that stand under each.

    Line i has the sha256 `digests[i]` and the chunks `chunks[starts[i]:starts[i + 1]]`. `lacking`
    more lines have no key.
    """

    starts: Int[np.ndarray, " M"]  # M = L + 1
    chunks: Int[np.ndarray, " P"]
    keys: Float[np.ndarray, "L e"]
    digests: UInt8[np.ndarray, "L 32"]
    lacking: int


def line_keys_of(db: Database, maker: str, encode: Encode, most: int) -> LineKeys:
    """See `Store.line_keys`."""
    maker = f"{RULE} {maker}"
    found = read(db.folder / LINES, {"store": db.store_id, "maker": maker})
    state, kept = found or ("", None)
    with db.reading():
        now = db.row("manifest", "key = ?", "state")[1]
        if kept and state == now and not 0 < kept.lacking <= most:
            return kept
        made = made_of(db, kept, encode, most)
    with db.reading():
        after = db.row("manifest", "key = ?", "state")[1]
    if after == now:  # else a removal may have come between
        keep(db, now, maker, made)
    return made


def keep(db: Database, state: str, maker: str, made: LineKeys) -> None:
    """Writes the file, if that can be."""
    try:
        write(db.folder / LINES, {"store": db.store_id, "maker": maker, "state": state}, made)
    except OSError as error:
        log.info("%s is kept in memory only: %s", db.folder / LINES, error)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a file had before a removal; the file itself may be gone since."""

    maker: str
    lines: LineKeys


def before_removal(db: Database) -> Kept | None:
    """What the file has, of whatever maker; nothing of it is in memory."""
    path = db.folder / LINES
    header = header_of(path)
    maker = str(header.get("maker", ""))
    found = read(path, {"store": db.store_id, "maker": maker}, mapped=True)
    return Kept(maker, found[1]) if found else None


def after_removal(db: Database, kept: Kept | None) -> None:
    """Writes the file anew, with the keys of the lines that are still there."""
    if kept and kept.maker.startswith(f"{RULE} "):
        with db.reading():
            now = db.row("manifest", "key = ?", "state")[1]
            made = made_of(db, kept.lines, lambda _: np.zeros((0, 0), dtype=np.float32), 0)
        keep(db, now, kept.maker, made)


def made_of(db: Database, kept: LineKeys | None, encode: Encode, most: int) -> LineKeys:
    """The keys of the lines that the store has now; within a transaction.

    Those that are in `kept` come from there. The others are encoded, if they are `most` at most.
    """
    known = {} if kept is None else {one.tobytes(): at for at, one in enumerate(kept.digests)}
    numbers, lines, chunks = standing(db)
    wanted = numbers.keys() - known.keys()
    lacking = 0 if len(wanted) <= most else len(wanted)
    there = [one for one in numbers if one in known or not lacking]
    rows = {one: row for row, one in enumerate(there)}
    moved = np.array([rows.get(one, -1) for one in numbers], dtype=np.int64)
    lines = moved[lines] if len(moved) else lines
    order = np.lexsort((chunks, lines))
    order = order[lines[order] >= 0]
    keys = np.zeros((len(there), 0 if kept is None else kept.keys.shape[1]), dtype=np.float32)
    if kept is not None and len(kept.keys):
        old = [(rows[one], at) for one, at in known.items() if one in rows]
        keys[[row for row, _ in old]] = kept.keys[[at for _, at in old]]
    for digests, texts in () if lacking else batches(db, set(wanted)):
        made = encode(texts)
        keys = keys if keys.shape[1] else np.zeros((len(there), made.shape[1]), dtype=np.float32)
        keys[[rows[one] for one in digests]] = made
    return LineKeys(
        np.searchsorted(lines[order], np.arange(len(there) + 1)),
        chunks[order],
        keys,
        np.frombuffer(b"".join(there), dtype=np.uint8).reshape(len(there), DIGEST),
        lacking,
    )


def standing(
    db: Database,
) -> tuple[dict[bytes, int], Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """The digest of each line that the store has, with its number, and where chunks stand.

    That is: of each line and chunk below it, once, the line's number and the chunk's.
    """
    numbers: dict[bytes, int] = {}
    lines, chunks = array("q"), array("q")
    for line, chunk in each_line(db):
        lines.append(numbers.setdefault(digest_of(line), len(numbers)))
        chunks.append(chunk)
    pairs = np.unique(np.array([lines, chunks], dtype=np.int64).reshape(2, -1), axis=1)
    return numbers, pairs[0], pairs[1]


def each_line(db: Database) -> Iterator[tuple[bytes, int]]:
    """Each place's line, as in the index of names (words.py), and the number of its chunk."""
    headings = "headings" if "headings" in format_in(db.connection).columns["occurrences"] else "''"
    query = f"""SELECT CAST(path AS BLOB), CAST({headings} AS BLOB), CAST(chunk AS INTEGER)
        FROM documents CROSS JOIN occurrences ON document = number"""
    for path, above, chunk in db.execute(query):
        yield (path + b" > " + above if above else path), chunk


def batches(db: Database, wanted: set[bytes]) -> Iterator[tuple[Sequence[bytes], list[str]]]:
    """The lines of these digests, some at a time, with their digests."""

    def new() -> Iterator[tuple[bytes, str]]:
        for line, _ in each_line(db):
            if (digest := digest_of(line)) in wanted:
                wanted.remove(digest)
                yield digest, line.decode(errors="replace")

    lines = new()
    while some := list(islice(lines, ENCODED)):
        yield [digest for digest, _ in some], [line for _, line in some]


def digest_of(line: bytes) -> bytes:
    """What a line is known by."""
    return hashlib.sha256(line).digest()


# --- the file


def write(path: Path, bound: Mapping[str, str], lines: LineKeys) -> None:
    """Writes a file of lines' keys.

    Raises:
        OSError: it could not be written.
    """
    arrays = (
        lines.starts.astype("<i8"),
        lines.chunks.astype("<i8"),
        np.ascontiguousarray(lines.keys, dtype="<f4"),
        np.ascontiguousarray(lines.digests),
    )
    payload = [one.reshape(-1).view(np.uint8).data for one in arrays]
    whole = hashlib.sha256()
    for part in payload:
        whole.update(part)
    shape = {"shape": [*lines.keys.shape, len(lines.chunks)], "lacking": lines.lacking}
    header = json.dumps({**bound, **shape, "sha256": whole.hexdigest()}).encode()
    write_whole(path, (header.ljust(HEADER - 1) + b"\n", *payload))


def header_of(path: Path) -> dict[str, Any]:
    """The line of JSON; an empty one if there is none."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(HEADER))
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def read(path: Path, bound: Mapping[str, str], mapped: bool = False) -> tuple[str, LineKeys] | None:
    """The state that a file is of, and what it has: None unless it is whole and `bound` so.

    `mapped`: what it has stays on the disk, which may drop the file's name meanwhile.
    """
    if not path.exists() and not path.is_symlink():
        return None
    header = header_of(path) if regular(path) else {}
    if header and any(header.get(key) != value for key, value in bound.items()):
        log.info("%s is of another store or embedder: made anew", path)
        return None
    try:
        return str(header["state"]), payload_of(path, header, mapped)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        log.warning("%s is damaged: the keys of names and headings are made anew", path)
        return None


def payload_of(path: Path, header: Mapping[str, Any], mapped: bool) -> LineKeys:
    """What a file has.

    Raises:
        OSError, ValueError, KeyError, TypeError: they are not those that its header tells of.
    """
    count, width, places = (int(one) for one in header["shape"])
    shapes = [(count + 1,), (places,), (count, width), (count, DIGEST)]
    sizes = [8 * (count + 1), 8 * places, 4 * count * width, DIGEST * count]
    if min(count, width, places) < 0 or path.stat().st_size != HEADER + sum(sizes):
        raise ValueError(f"{path} has another size")
    read_in: Any = np.memmap if mapped else np.fromfile
    data = read_in(path, dtype=np.uint8, offset=HEADER)
    if hashlib.sha256(data.data).hexdigest() != header["sha256"]:
        raise ValueError(f"{path} has other bytes")
    parts = np.split(np.asarray(data), np.cumsum(sizes)[:-1])
    kinds = ("<i8", "<i8", "<f4", "u1")
    starts, chunks, keys, digests = (
        part.view(kind).reshape(shape)
        for part, kind, shape in zip(parts, kinds, shapes, strict=True)
    )
    return LineKeys(starts, chunks, keys, digests, int(header["lacking"]))
