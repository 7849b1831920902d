"""A store as one file, for another folder or another machine: safetensors, no pickle.

    vectors   every memory's packed bytes, one after the other         uint8
    keys      a row per chunk that has one                             float32, N e
    content   everything else as JSON: manifest, chunks, documents     uint8
    readables an encoder's vectors as they are packed, if there are any    uint8

The header's metadata has the format, the sha256 of them, and a seal by which an export made
here is known again. The file is the documents' text: only its owner can read it. Neither export nor
import has more than a few chunks in memory.
"""

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, get_args, get_type_hints

import numpy as np

from rag_memtok.datatypes import (
    TEXT_ONLY,
    Occurrence,
    Pin,
    ReadableVectors,
    Record,
    StoredDocument,
    Verdict,
    VerdictKind,
    sha256_of_text,
)
from rag_memtok.errors import FormatMismatch, InputRefused, StoreDamaged, UsageError
from rag_memtok.memory.codec import codec_named
from rag_memtok.pipeline import tensorfile
from rag_memtok.pipeline.manifest import JOB
from rag_memtok.pipeline.tensorfile import JsonStream
from rag_memtok.store import ownership
from rag_memtok.store.database import RESERVED
from rag_memtok.store.files import ANOTHER_STORE, sibling, store_errors, sync_folder, write_whole
from rag_memtok.store.removal import UNPURGED
from rag_memtok.store.store import Store, create, open_store

FORMAT = "2"
FORMATS = ("1", FORMAT)  # an export of 1 lacks what has a default now
IMPORTING = ".importing"
PARTS = ("vectors", "keys", "content")
READABLES = "readables"  # a part where a chunk has any
# what the content of a file that is none of ours may raise
MISFITS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
BATCH = 256  # chunks or documents put in at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """The result of an export or an import.

    `own`: it is known to have been made here, or the user said to trust it.
    """

    file: str
    store: str
    documents: int
    chunks: int
    bytes: int
    own: bool


def export(store: Store, file: Path) -> Bundled:
    """Writes the whole store into one file, readable by its owner alone.

    Raises:
        UsageError: there is a file of that name, or no folder for it.
        StoreDamaged: a row is not what was written.

    Cost: its size twice on the disk, while it is made; a chunk at a time in memory.
    """
    if file.exists():
        raise UsageError(f"{file} is in the way", remedy="name a new file")
    folder = file.absolute().parent
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {file.parent} for the export",
            remedy=f"mkdir -p {shlex.quote(str(file.parent))}",
        )
    with store_errors(folder), ExitStack() as stack:
        # without a name, so that nothing of them is left behind
        parts = {
            name: tensorfile.Part(file=stack.enter_context(TemporaryFile(dir=folder)))
            for name in (*PARTS, READABLES)
        }
        with store.snapshot():
            documents, chunks, width = _write_parts(store, parts)
        parts["keys"].kind, parts["keys"].width = "F32", width
        if not parts[READABLES].size:
            del parts[READABLES]
        digest = tensorfile.digest(parts)
        # only what is one's own is sealed: a foreign store stays one
        own = ownership.is_made_here(store.manifest)
        seal = ownership.sign("export", digest) if own else ""
        metadata = {"format": FORMAT, "sha256": digest, "seal": seal, "made_by": "rag-memtok"}
        write_whole(file, tensorfile.pieces(parts, metadata))
    return Bundled(
        file=str(file),
        store=str(store.folder),
        documents=documents,
        chunks=chunks,
        bytes=file.stat().st_size,
        own=own,
    )


def _write_parts(store: Store, parts: Mapping[str, tensorfile.Part]) -> tuple[int, int, int]:
    """Writes the tensors' bytes, chunk by chunk and document by document.

    Returns how many documents and chunks there are, and the width of the keys.
    """
    widths = set[int]()

    def chunks() -> Iterator[dict[str, Any]]:
        for chunk_id in store.each_chunk_id():
            record = store.record(chunk_id)
            parts["vectors"].write(record.packed)
            if record.key is not None:
                widths.add(len(record.key))
                parts["keys"].write(record.key.astype("<f4").tobytes())
            if record.readable is not None:
                parts[READABLES].write(record.readable.packed)
            yield _chunk_json(record, store.text(chunk_id))

    def places() -> Iterator[dict[str, Any]]:
        for document in store.each_document():
            yield from map(asdict, store.document_chunks(document.root, document.path))

    content, counts = parts["content"], dict[str, int]()
    content.write(b'{"manifest": ' + json.dumps(_carried(store.manifest)).encode())
    lists = {
        "chunks": chunks(),
        "documents": map(asdict, store.each_document()),
        "occurrences": places(),
    }
    for name, values in lists.items():
        content.write(f', "{name}": ['.encode())
        counts[name] = 0
        for value in values:
            text = json.dumps(value, allow_nan=False)
            content.write(f"{', ' if counts[name] else ''}{text}".encode())
            counts[name] += 1
        content.write(b"]")
    content.write(b"}")
    if len(widths) > 1:
        raise StoreDamaged(f"{store.folder} has keys of several widths", remedy=ANOTHER_STORE)
    return counts["documents"], counts["chunks"], widths.pop() if widths else 0


def _carried(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a manifest that an export carries: those that are not of one store alone."""
    left_out = RESERVED | {ownership.MAKER, JOB, UNPURGED}
    return {key: value for key, value in manifest.items() if key not in left_out}


def _chunk_json(record: Record, text: str | None) -> dict[str, Any]:
    """A record as JSON: of its vectors the length, of its key whether there is one.

    JSON has no infinity: it is None.
    """
    verdict = asdict(record.verdict)
    if math.isinf(record.verdict.margin):
        verdict["margin"] = None
    return {
        "id": record.chunk_id,
        "tokens": record.tokens,
        "tokens_sha256": record.tokens_sha256,
        "codec": record.codec,
        "bytes": len(record.packed),
        "shape": list(record.shape),
        "pins": [asdict(pin) for pin in record.pins],
        "verdict": verdict,
        "keyed": record.key is not None,
        "text": text,
        **_readable_json(record.readable),
    }


def _readable_json(readable: ReadableVectors | None) -> dict[str, Any]:
    """A chunk's readable vectors as JSON, if it has any: of their bytes the length."""
    if readable is None:
        return {}
    values = asdict(readable)
    return {"readable": values | {"packed": len(readable.packed), "shape": list(readable.shape)}}


def import_(file: Path, folder: Path, *, trusted: bool) -> Bundled:
    """Makes a store from an exported file: built beside `folder`, checked, then renamed.

    Args:
        trusted: take it as one's own, whoever made it.

    Raises:
        InputRefused: not an export, or its content is not what its checksum says.
        FormatMismatch: an export of another format.
        UsageError: there is something at `folder`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is in the way", remedy="import into a folder of its own: --store DIR"
        )
    with _open(file) as (metadata, parts):
        own = trusted or ownership.is_signed("export", metadata["sha256"], metadata.get("seal", ""))
        building = sibling(folder, IMPORTING)
        with store_errors(building.parent):
            if building.exists():  # of an import that was killed
                shutil.rmtree(building)
            documents, chunks = _build(building, parts, file, own=own)
            if folder.exists():
                folder.rmdir()
            building.rename(folder)
            sync_folder(folder.absolute().parent)
    return Bundled(
        file=str(file),
        store=str(folder),
        documents=documents,
        chunks=chunks,
        bytes=file.stat().st_size,
        own=own,
    )


@contextmanager
def _open(file: Path) -> Iterator[tuple[dict[str, str], dict[str, tensorfile.Part]]]:
    """The metadata and tensors of a file whose checksum is right."""
    if not file.is_file():
        raise InputRefused(f"there is no file {file}", remedy="rag-memtok export FILE makes one")
    with file.open("rb") as opened:
        try:
            metadata, parts = tensorfile.open_parts(file, opened)
        except ValueError as error:
            raise _refusal(file, "it is not a safetensors file, or only a part of one") from error
        if metadata.get("made_by") != "rag-memtok" or parts.keys() - {READABLES} != set(PARTS):
            raise _refusal(file, "it is not an export of rag-memtok")
        if metadata.get("format") not in FORMATS:
            raise FormatMismatch(
                f"{file} is an export of format {metadata.get('format')}, this program reads "
                f"{' and '.join(FORMATS)}"
            )
        parts = {name: parts[name] for name in (*PARTS, READABLES) if name in parts}
        if metadata.get("sha256") != tensorfile.digest(parts):
            raise _refusal(file, "its content is not what its checksum says")
        yield metadata, parts


def _refusal(file: Path, reason: str) -> InputRefused:
    return InputRefused(
        f"{file} is refused: {reason}", remedy="export the store again, or copy the file again"
    )


def _build(
    folder: Path, parts: Mapping[str, tensorfile.Part], file: Path, *, own: bool
) -> tuple[int, int]:
    """Makes the store; only what a store can hold gets in, whatever the file says."""
    try:
        content = JsonStream(parts["content"].read)
        content.expect('{"manifest": ')
        manifest = _carried(content.value())
        if not all(isinstance(value, str) for value in manifest.values()):
            raise ValueError("a manifest of strings")
        create(folder, manifest | (ownership.new_maker() if own else {}))
        with open_store(folder, write=True) as store:
            chunks = _put_chunks(store, content, parts)
            documents = _put_documents(store, content)
            if problems := store.check():
                raise ValueError(str(problems[0]))
    except (*MISFITS, StoreDamaged, UsageError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _refusal(file, f"its content is not that of a store: {error}") from error
    return documents, chunks


def _put_chunks(store: Store, content: JsonStream, parts: Mapping[str, tensorfile.Part]) -> int:
    """Puts the chunks in with their vectors and keys, BATCH in a transaction; returns how many."""
    vectors, keys, readables = parts["vectors"], parts["keys"], parts.get(READABLES)
    if (vectors.kind, keys.kind, keys.width < 0) != ("U8", "F32", False):
        raise ValueError("vectors of bytes and keys of float32")
    count = 0
    read = content.array(', "chunks": ')
    while batch := list(islice(read, BATCH)):
        with store.together():
            for chunk in batch:
                count += 1
                key = None
                if chunk["keyed"]:
                    key = np.frombuffer(keys.take(4 * keys.width), dtype="<f4")  # [e]
                record = _parse_record(chunk, vectors.take(chunk["bytes"]), key, readables)
                store.put(record, chunk["text"])
    if not all(part.is_finished for part in (vectors, keys, *([readables] if readables else []))):
        raise ValueError("the chunks do not account for all vectors and keys")
    return count


def _put_documents(store: Store, content: JsonStream) -> int:
    """Puts the documents in, each with its places, which come in the same order after them all."""
    begun = content.position
    for _ in content.array(', "documents": '):
        pass
    documents, count = content.restart_at(begun), 0
    places = groupby(
        (_parse_value(Occurrence, value) for value in content.array(', "occurrences": ')),
        lambda place: (place.root, place.path),
    )
    read = documents.array(', "documents": ')
    while batch := list(islice(read, BATCH)):
        with store.together():
            for value in batch:
                document = _parse_value(StoredDocument, value)
                count += 1
                store.add_document(document, list(next(places)[1]) if document.chunks else [])
    if next(places, None) is not None:
        raise ValueError("places of no document")
    content.expect("}")
    return count


def _parse_record(
    chunk: Mapping[str, Any],
    packed: bytes,
    key: np.ndarray | None,
    readables: tensorfile.Part | None,
) -> Record:
    """A chunk's record, with everything in it of the type and size it has to be."""
    margin = chunk["verdict"]["margin"]
    verdict = _parse_value(
        Verdict, {**chunk["verdict"], "margin": math.inf if margin is None else margin}
    )
    pins = tuple(_parse_value(Pin, pin) for pin in chunk["pins"])
    rows, width = chunk["shape"]
    text = packed.decode() if chunk["codec"] == TEXT_ONLY else chunk["text"]
    if chunk["codec"] != TEXT_ONLY:
        codec_named(chunk["codec"]).unpack(packed, (rows, width))  # refuses what has another size
    if text is not None and sha256_of_text(text) != chunk["id"]:
        raise ValueError("a chunk whose text is not the one its id names")
    if verdict.kind not in get_args(VerdictKind) or any(
        not 0 <= number < 2**32 for pin in pins for number in (pin.position, pin.token)
    ):
        raise ValueError("a verdict or a pin that there cannot be")
    return _parse_value(
        Record,
        {
            "chunk_id": chunk["id"],
            "tokens": chunk["tokens"],
            "tokens_sha256": chunk["tokens_sha256"],
            "codec": chunk["codec"],
            "packed": packed,
            "shape": (rows, width),
            "pins": pins,
            "verdict": verdict,
            "key": key,
            "readable": _parse_readable(chunk["readable"], readables)
            if "readable" in chunk
            else None,
        },
    )


def _parse_readable(
    values: Mapping[str, Any], readables: tensorfile.Part | None
) -> ReadableVectors:
    """A chunk's readable vectors, of the size they have to be."""
    if readables is None:
        raise ValueError("vectors of an encoder that are not there")
    rows, width = values["shape"]
    vectors = _parse_value(
        ReadableVectors,
        {**values, "packed": readables.take(values["packed"]), "shape": (rows, width)},
    )
    codec_named(vectors.codec).unpack(vectors.packed, vectors.shape)
    if not re.fullmatch("[0-9a-f]{64}", vectors.encoder) or vectors.window < 1:
        raise ValueError("vectors of an encoder that there cannot be")
    return vectors


def _parse_value(kind: type, values: Mapping[str, Any]) -> Any:
    """A value of plain fields, each of its own type; one with a default may be missing."""
    hints = get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if not needed <= set(values) <= set(hints):
        raise ValueError(f"a {kind.__name__} with the fields {', '.join(sorted(values))}")
    for name, value in values.items():
        if hints[name] in (str, int) and type(value) is not hints[name]:
            raise ValueError(f"{kind.__name__}.{name} is {value!a}")
    return kind(**values)
