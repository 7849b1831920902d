"""A store as one file, for another folder or another machine: safetensors, no pickle.

    vectors   every memory's packed bytes, one after the other         uint8
    keys      a row per chunk that has one                             float32, N e
    content   everything else as JSON: manifest, chunks, documents     uint8
    readables an encoder's vectors as they are packed, if there are any    uint8

The header's metadata has the format, the sha256 of them, and a seal by which an export made
here is known again. The file is the documents' text: only its owner can read it. Export and import
hold the whole store in memory.
"""

import hashlib
import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

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
from rag_memtok.store import ownership
from rag_memtok.store.database import RESERVED
from rag_memtok.store.files import beside, store_errors, sync_folder, write_whole
from rag_memtok.store.store import Store, create, open_store

FORMAT = "2"
FORMATS = ("1", FORMAT)  # an export of 1 lacks what has a default now
IMPORTING = ".importing"
PARTS = ("vectors", "keys", "content")
READABLES = "readables"  # a part where a chunk has any


@dataclass(frozen=True, slots=True)
class Bundled:
    """What an export or an import moved.

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
    """
    if file.exists():
        raise UsageError(f"{file} is in the way", remedy="name a new file")
    if not file.parent.is_dir():
        raise UsageError(
            f"there is no folder {file.parent} for the export",
            remedy=f"mkdir -p {shlex.quote(str(file.parent))}",
        )
    with store.snapshot():
        parts = _parts(store)
        counts = len(store.documents()), len(store.chunk_ids())
    with store_errors(file.absolute().parent):
        digest = _digest(parts)
        # only what is one's own is sealed: a foreign store stays one
        own = ownership.made_here(store.manifest)
        seal = ownership.signed("export", digest) if own else ""
        data = save(
            parts, {"format": FORMAT, "sha256": digest, "seal": seal, "made_by": "rag-memtok"}
        )
        write_whole(file, data)
    return Bundled(str(file), str(store.folder), *counts, len(data), own)


def _parts(store: Store) -> dict[str, np.ndarray]:
    """The tensors."""
    chunk_ids = store.chunk_ids()
    records = [store.record(chunk_id) for chunk_id in chunk_ids]
    documents = store.documents()
    places = [
        asdict(place) for one in documents for place in store.document_chunks(one.root, one.path)
    ]
    content = {
        "manifest": {
            key: value
            for key, value in store.manifest.items()
            if key not in RESERVED | {ownership.MAKER}
        },
        "chunks": [_chunk(record, store.text(record.chunk_id)) for record in records],
        "documents": [asdict(one) for one in documents],
        "occurrences": places,
    }
    keys = [record.key for record in records if record.key is not None]
    made = [record.readable.packed for record in records if record.readable is not None]
    more = {READABLES: np.frombuffer(b"".join(made), dtype=np.uint8)} if made else {}
    return more | {
        "vectors": np.frombuffer(b"".join(record.packed for record in records), dtype=np.uint8),
        "keys": np.stack(keys).astype(np.float32) if keys else np.zeros((0, 0), dtype=np.float32),
        "content": np.frombuffer(json.dumps(content, allow_nan=False).encode(), dtype=np.uint8),
    }


def _chunk(record: Record, text: str | None) -> dict[str, Any]:
    """All of a record but its vectors and key.

    Of those it has the length and whether there is one. JSON has no infinity: it is None.
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
        **_made(record.readable),
    }


def _made(readable: ReadableVectors | None) -> dict[str, Any]:
    """A chunk's vectors of an encoder but for their bytes, if it has any."""
    if readable is None:
        return {}
    said = asdict(readable)
    return {"readable": said | {"packed": len(readable.packed), "shape": list(readable.shape)}}


def _digest(parts: Mapping[str, np.ndarray]) -> str:
    """One sha256 over the tensors, each with its name and shape."""
    whole = hashlib.sha256()
    for name in (*PARTS, *(name for name in parts if name == READABLES)):
        whole.update(f"{name} {parts[name].dtype} {parts[name].shape}\n".encode())
        whole.update(np.ascontiguousarray(parts[name]).tobytes())
    return whole.hexdigest()


def import_(file: Path, folder: Path, trusted: bool) -> Bundled:
    """Makes a store from an exported file.

    It is built beside `folder`, checked, and then put there by renaming.

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
    metadata, parts = _read(file)
    own = trusted or ownership.is_signed("export", metadata["sha256"], metadata.get("seal", ""))
    draft = beside(folder, IMPORTING)
    with store_errors(draft.parent):
        if draft.exists():  # of an import that was killed
            shutil.rmtree(draft)
        documents, chunks = _build(draft, parts, own, file)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
        sync_folder(folder.absolute().parent)
    return Bundled(str(file), str(folder), documents, chunks, file.stat().st_size, own)


def _read(file: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and tensors of a file whose checksum is right."""
    if not file.is_file():
        raise InputRefused(f"there is no file {file}", remedy="rag-memtok export FILE makes one")
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            names = set(opened.keys())
            if metadata.get("made_by") != "rag-memtok" or names - {READABLES} != set(PARTS):
                raise _refused(file, "it is not an export of rag-memtok")
            if metadata.get("format") not in FORMATS:
                raise FormatMismatch(
                    f"{file} is an export of format {metadata.get('format')}, this program reads "
                    f"{' and '.join(FORMATS)}"
                )
            parts = {name: opened.get_tensor(name) for name in sorted(names)}
    except (SafetensorError, ValueError) as error:
        raise _refused(file, "it is not a safetensors file, or only a part of one") from error
    if metadata.get("sha256") != _digest(parts):
        raise _refused(file, "its content is not what its checksum says")
    return metadata, parts


def _refused(file: Path, reason: str) -> InputRefused:
    return InputRefused(
        f"{file} is refused: {reason}", remedy="export the store again, or copy the file again"
    )


def _build(folder: Path, parts: Mapping[str, np.ndarray], own: bool, file: Path) -> tuple[int, int]:
    """Makes the store; only what a store can hold gets in.

    This holds whatever a file with a right checksum may say.
    """
    try:
        content = json.loads(parts["content"].tobytes())
        manifest = {
            key: value
            for key, value in content["manifest"].items()
            if key not in RESERVED | {ownership.MAKER}
        }
        if not all(isinstance(value, str) for value in manifest.values()):
            raise ValueError("a manifest of strings")
        records = _records(content["chunks"], parts)
        documents = [_noun(StoredDocument, one) for one in content["documents"]]
        occurrences = [_noun(Occurrence, one) for one in content["occurrences"]]
        create(folder, manifest | (ownership.maker() if own else {}))
        with open_store(folder, write=True) as store:
            for record, text in records:
                store.put(record, text)
            _place(store, documents, occurrences)
            if problems := store.check():
                raise ValueError(str(problems[0]))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        StoreDamaged,
        UsageError,
    ) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _refused(file, f"its content is not that of a store: {error}") from error
    return len(documents), len(records)


def _place(
    store: Store, documents: Sequence[StoredDocument], occurrences: Sequence[Occurrence]
) -> None:
    """Gives the store its documents, and refuses places of others."""
    places: dict[tuple[str, str], list[Occurrence]] = {
        (one.root, one.path): [] for one in documents
    }
    files: dict[tuple[str, str], list[StoredDocument]] = {}
    for place in occurrences:
        places[place.root, place.path].append(place)
    for document in documents:
        files.setdefault((document.root, document.file), []).append(document)
    for (root, file), of_file in files.items():
        store.replace_file(
            root, file, of_file, [place for one in of_file for place in places[root, one.path]]
        )


def _records(
    chunks: Sequence[Mapping[str, Any]], parts: Mapping[str, np.ndarray]
) -> list[tuple[Record, str | None]]:
    """The chunks with their vectors and keys."""
    vectors, keys = _Tape(parts["vectors"].tobytes()), iter(parts["keys"])
    made = _Tape(parts[READABLES].tobytes() if READABLES in parts else b"")
    found = []
    for chunk in chunks:
        key = next(keys) if chunk["keyed"] else None
        record = _record(chunk, vectors.take(chunk["bytes"]), key, made)
        found.append((record, chunk["text"]))
    if not vectors.ended or not made.ended or next(keys, None) is not None:
        raise ValueError("the chunks do not account for all vectors and keys")
    return found


@dataclass(slots=True)
class _Tape:
    """Bytes that are read from one end to the other."""

    content: bytes
    at: int = 0

    @property
    def ended(self) -> bool:
        """Whether all of it was read, and nothing beyond it."""
        return self.at == len(self.content)

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.at += count
        return self.content[self.at - count : self.at]


def _record(chunk: Mapping[str, Any], packed: bytes, key: np.ndarray | None, made: _Tape) -> Record:
    """One record, with everything in it of the type and size it has to be."""
    verdict = _noun(
        Verdict,
        {
            **chunk["verdict"],
            "margin": math.inf
            if chunk["verdict"]["margin"] is None
            else chunk["verdict"]["margin"],
        },
    )
    pins = tuple(_noun(Pin, pin) for pin in chunk["pins"])
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
    record = Record(
        chunk["id"],
        chunk["tokens"],
        chunk["tokens_sha256"],
        chunk["codec"],
        packed,
        (rows, width),
        pins,
        verdict,
        key,
        _readable(chunk["readable"], made) if "readable" in chunk else None,
    )
    return _noun(Record, {field.name: getattr(record, field.name) for field in fields(record)})


def _readable(said: Mapping[str, Any], made: _Tape) -> ReadableVectors:
    """A chunk's vectors of an encoder, of the size they have to be."""
    rows, width = said["shape"]
    found = _noun(
        ReadableVectors, {**said, "packed": made.take(said["packed"]), "shape": (rows, width)}
    )
    codec_named(found.codec).unpack(found.packed, found.shape)
    if not re.fullmatch("[0-9a-f]{64}", found.encoder) or found.window < 1:
        raise ValueError("vectors of an encoder that there cannot be")
    return found


def _noun(kind: type, values: Mapping[str, Any]) -> Any:
    """A noun of plain fields, each of its own type; one with a default may be missing."""
    hints = get_type_hints(kind)
    needed = {one.name for one in fields(kind) if one.default is MISSING}
    if not needed <= set(values) <= set(hints):
        raise ValueError(f"a {kind.__name__} with the fields {', '.join(sorted(values))}")
    for name, value in values.items():
        if hints[name] in (str, int) and type(value) is not hints[name]:
            raise ValueError(f"{kind.__name__}.{name} is {value!a}")
    return kind(**values)
