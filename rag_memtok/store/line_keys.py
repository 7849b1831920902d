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
from rag_memtok.store.files import LINES, is_regular_file, write_whole
from rag_memtok.store.schema import format_in

RULE = "1"  # what a line is: counted up with every change of it
HEADER = 1024  # bytes of the line of JSON, filled up with spaces: what follows is aligned
DIGEST = 32  # bytes
ENCODED = 64  # lines that an embedder gets at a time

Encode = Callable[[list[str]], Float[np.ndarray, "N e"]]

log = getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
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


def load_line_keys(db: Database, maker: str, encode: Encode, most: int) -> LineKeys:
    """See `Store.line_keys`."""
    maker = f"{RULE} {maker}"
    state, cached = read(db.folder / LINES, {"store": db.store_id, "maker": maker}) or ("", None)
    with db.reading():
        now = db.row("manifest", "key = ?", "state")[1]
        if cached and state == now and not 0 < cached.lacking <= most:
            return cached
        line_keys = build_line_keys(db, cached, encode, most)
    if _state_of(db) == now:  # else a removal may have come between
        save_if_possible(db, now, maker, line_keys)
        if _state_of(db) != now:  # and it may have come while there was no file for it to see
            (db.folder / LINES).unlink(missing_ok=True)
    return line_keys


def _state_of(db: Database) -> str:
    with db.reading():
        return str(db.row("manifest", "key = ?", "state")[1])


def save_if_possible(db: Database, state: str, maker: str, line_keys: LineKeys) -> None:
    """Writes the file; where that cannot be, it is logged."""
    binding = {"store": db.store_id, "maker": maker, "state": state}
    try:
        write(db.folder / LINES, binding, line_keys)
    except OSError as error:
        log.info("%s is kept in memory only: %s", db.folder / LINES, error)


@dataclass(frozen=True, slots=True, eq=False)
class PreviousLineKeys:
    """The content of a file before a removal; the file itself may be gone since."""

    maker: str
    lines: LineKeys


def read_before_removal(db: Database) -> PreviousLineKeys | None:
    """The content of the file, of whatever maker; it is mapped, not read into memory."""
    path = db.folder / LINES
    maker = str(read_header(path).get("maker", ""))
    content = read(path, {"store": db.store_id, "maker": maker}, mapped=True)
    return PreviousLineKeys(maker, content[1]) if content else None


def rewrite_after_removal(db: Database, previous: PreviousLineKeys | None) -> None:
    """Writes the file anew, with the keys of the lines that are still there."""
    if previous and previous.maker.startswith(f"{RULE} "):
        with db.reading():
            now = db.row("manifest", "key = ?", "state")[1]
            line_keys = build_line_keys(
                db, previous.lines, lambda _: np.zeros((0, 0), dtype=np.float32), 0
            )
        save_if_possible(db, now, previous.maker, line_keys)


def build_line_keys(db: Database, cached: LineKeys | None, encode: Encode, most: int) -> LineKeys:
    """The keys of the lines that the store has now; within a transaction.

    Those that are in `cached` come from there. The others are encoded, if they are `most` at most.
    """
    old_rows = (
        {} if cached is None else {row.tobytes(): at for at, row in enumerate(cached.digests)}
    )
    numbers, lines, chunks = read_lines(db)
    new = numbers.keys() - old_rows.keys()
    lacking = 0 if len(new) <= most else len(new)
    digests = [digest for digest in numbers if digest in old_rows or not lacking]
    rows = {digest: row for row, digest in enumerate(digests)}
    renumbered = np.array([rows.get(digest, -1) for digest in numbers], dtype=np.int64)
    lines = renumbered[lines] if len(renumbered) else lines
    order = np.lexsort((chunks, lines))
    order = order[lines[order] >= 0]
    width = 0 if cached is None else cached.keys.shape[1]
    keys = np.zeros((len(digests), width), dtype=np.float32)  # [L, e]
    if cached is not None and len(cached.keys):
        moves = [(rows[digest], at) for digest, at in old_rows.items() if digest in rows]
        keys[[row for row, _ in moves]] = cached.keys[[at for _, at in moves]]
    for batch, texts in () if lacking else batch_lines(db, set(new)):
        encoded = encode(texts)  # [N, e]
        if not keys.shape[1]:
            keys = np.zeros((len(digests), encoded.shape[1]), dtype=np.float32)
        keys[[rows[digest] for digest in batch]] = encoded
    return LineKeys(
        starts=np.searchsorted(lines[order], np.arange(len(digests) + 1)),
        chunks=chunks[order],
        keys=keys,
        digests=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), DIGEST),
        lacking=lacking,
    )


def read_lines(
    db: Database,
) -> tuple[dict[bytes, int], Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """The digest of each line of the store with its number; and the pairs of line and chunk.

    The pairs are two arrays: the numbers of lines, those of the chunks below. Each pair is once.
    """
    numbers: dict[bytes, int] = {}
    lines, chunks = array("q"), array("q")
    for line, chunk in each_line(db):
        lines.append(numbers.setdefault(digest_of(line), len(numbers)))
        chunks.append(chunk)
    pairs = np.array([lines, chunks], dtype=np.int64).reshape(2, -1)
    pairs = np.unique(pairs, axis=1)  # [2, P]
    return numbers, pairs[0], pairs[1]


def each_line(db: Database) -> Iterator[tuple[bytes, int]]:
    """Yields each place's line, as in the index of names (words.py), and its chunk's number."""
    headings = "headings" if "headings" in format_in(db.connection).columns["occurrences"] else "''"
    query = f"""SELECT CAST(path AS BLOB), CAST({headings} AS BLOB), CAST(chunk AS INTEGER)
        FROM documents CROSS JOIN occurrences ON document = number"""
    for path, above, chunk in db.execute(query):
        yield (path + b" > " + above if above else path), chunk


def batch_lines(db: Database, wanted: set[bytes]) -> Iterator[tuple[Sequence[bytes], list[str]]]:
    """The lines of the digests `wanted`, ENCODED at a time, with their digests."""

    def pairs() -> Iterator[tuple[bytes, str]]:
        for line, _ in each_line(db):
            if (digest := digest_of(line)) in wanted:
                wanted.remove(digest)
                yield digest, line.decode(errors="replace")

    rest = pairs()
    while batch := list(islice(rest, ENCODED)):
        yield [digest for digest, _ in batch], [line for _, line in batch]


def digest_of(line: bytes) -> bytes:
    """The sha256 by which a line is known."""
    return hashlib.sha256(line).digest()


# --- the file


def write(path: Path, binding: Mapping[str, str], line_keys: LineKeys) -> None:
    """Writes a file of the keys of lines, bound to a store, a maker and a state.

    Raises:
        OSError: it could not be written.
    """
    arrays = (
        line_keys.starts.astype("<i8"),
        line_keys.chunks.astype("<i8"),
        np.ascontiguousarray(line_keys.keys, dtype="<f4"),
        np.ascontiguousarray(line_keys.digests),
    )
    payload = [array.reshape(-1).view(np.uint8).data for array in arrays]
    digest = hashlib.sha256()
    for part in payload:
        digest.update(part)
    counts = {
        "shape": [*line_keys.keys.shape, len(line_keys.chunks)],
        "lacking": line_keys.lacking,
    }
    header = json.dumps({**binding, **counts, "sha256": digest.hexdigest()}).encode()
    write_whole(path, (header.ljust(HEADER - 1) + b"\n", *payload))


def read_header(path: Path) -> dict[str, Any]:
    """The line of JSON at the head of a file; empty if there is none."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(HEADER))
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def read(
    path: Path, binding: Mapping[str, str], *, mapped: bool = False
) -> tuple[str, LineKeys] | None:
    """The state that a file is of, and its keys; None unless it is whole and bound to `binding`.

    Args:
        mapped: the arrays stay on the disk; the file's name may be gone meanwhile.
    """
    if not path.exists() and not path.is_symlink():
        return None
    header = read_header(path) if is_regular_file(path) else {}
    if header and any(header.get(key) != value for key, value in binding.items()):
        log.info("%s is of another store or embedder: made anew", path)
        return None
    try:
        return str(header["state"]), read_payload(path, header, mapped=mapped)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        log.warning("%s is damaged: the keys of names and headings are made anew", path)
        return None


def read_payload(path: Path, header: Mapping[str, Any], *, mapped: bool) -> LineKeys:
    """The keys in a file.

    Raises:
        OSError, ValueError, KeyError, TypeError: they are not those that its header tells of.
    """
    count, width, places = (int(number) for number in header["shape"])
    shapes = [(count + 1,), (places,), (count, width), (count, DIGEST)]
    sizes = [8 * (count + 1), 8 * places, 4 * count * width, DIGEST * count]
    if min(count, width, places) < 0 or path.stat().st_size != HEADER + sum(sizes):
        raise ValueError(f"{path} has another size")
    load: Any = np.memmap if mapped else np.fromfile
    data = load(path, dtype=np.uint8, offset=HEADER)
    if hashlib.sha256(data.data).hexdigest() != header["sha256"]:
        raise ValueError(f"{path} has other bytes")
    parts = np.split(np.asarray(data), np.cumsum(sizes)[:-1])
    kinds = ("<i8", "<i8", "<f4", "u1")
    starts, chunks, keys, digests = (
        part.view(kind).reshape(shape)
        for part, kind, shape in zip(parts, kinds, shapes, strict=True)
    )
    return LineKeys(
        starts=starts, chunks=chunks, keys=keys, digests=digests, lacking=int(header["lacking"])
    )
