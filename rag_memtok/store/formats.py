"""The formats of `store.db`: of each its tables, their columns, and the SQL that makes them.

Every character is part of a format. A format that was released stays here for ever: a store of it
is read as it is, and upgraded (upgrade.py) by the first write.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rag_memtok.errors import FormatMismatch

FORMAT = 2
# Above 0 until the format is released: raised with every change, so that a store of another draft
# is refused. 0 from the release on.
DRAFT = 2
VERSION = FORMAT + 1000 * DRAFT  # SQLite's user_version

# File and folder names are BLOBs: a name on disk need not be UTF-8.
NAMES = {"root", "file", "path"}
BLOBS = NAMES | {"packed"}
KEY_COLUMNS = {"occurrences": 2}  # how many columns the primary key has, where not one
# the tables that hold at most one row per chunk
PARTS = ("texts", "vectors", "pins", "keys", "verdicts", "readables")
OPTIONAL = {"readables"}  # of these, those that a chunk can lack: they can be made again
# what a row of an older format has in a column that came later
LATER: Mapping[str, int | bytes] = {"size": -1, "modified": -1, "headings": b""}

# Of a text itself, and of the terms that we make of it (terms.py).
TEXT_TOKENIZER, TERM_TOKENIZER = '"unicode61 remove_diacritics 2"', '"porter ascii"'


@dataclass(frozen=True, slots=True)
class Format:
    """A format.

    `columns` has every column of a table but its checksum, in the checksum's order; a later format
    adds at the end. `ddl` has the SQL of every table and index by its name.
    """

    columns: Mapping[str, tuple[str, ...]]
    ddl: Mapping[str, str]


# `words` is a cache of the texts, written in the chunk's transaction; no triggers, which
# trusted_schema=OFF would refuse. AUTOINCREMENT: a number is never used again, so that no stale
# index or row can point at another chunk or document.
FORMAT_1 = Format(
    {
        "manifest": ("key", "value"),
        "documents": (
            "number",
            "root",
            "file",
            "path",
            "sha256",
            "file_sha256",
            "chunks",
            "characters",
            "extractor",
        ),
        "chunks": ("number", "id", "tokens", "tokens_sha256", "keyed", "worded"),
        "occurrences": ("document", "ordinal", "chunk", "start", "stop", "locator"),
        "texts": ("chunk", "text"),
        "vectors": ("chunk", "codec", "rows", "width", "packed"),
        "pins": ("chunk", "packed"),
        "keys": ("chunk", "packed"),
        "verdicts": ("chunk", "kind", "tokens", "corrections", "safeties", "margin", "reason"),
    },
    {
        "manifest": "CREATE TABLE manifest (\n"
        "        key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL) STRICT, "
        "WITHOUT ROWID",
        "documents": "CREATE TABLE documents (\n"
        "        number INTEGER PRIMARY KEY AUTOINCREMENT, root BLOB NOT NULL, "
        "file BLOB NOT NULL, path BLOB NOT NULL, sha256 TEXT NOT NULL,\n"
        "        file_sha256 TEXT NOT NULL, chunks INTEGER NOT NULL, "
        "characters INTEGER NOT NULL, extractor TEXT NOT NULL, checksum BLOB NOT NULL,\n"
        "        UNIQUE (root, path)) STRICT",
        "documents_by_file": "CREATE INDEX documents_by_file ON documents (root, file)",
        "chunks": "CREATE TABLE chunks (\n"
        "        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, "
        "tokens INTEGER NOT NULL, tokens_sha256 TEXT NOT NULL,\n"
        "        keyed INTEGER NOT NULL, worded INTEGER NOT NULL, checksum BLOB NOT NULL) STRICT",
        "occurrences": "CREATE TABLE occurrences (\n"
        "        document INTEGER NOT NULL REFERENCES documents, ordinal INTEGER NOT NULL, "
        "chunk INTEGER NOT NULL REFERENCES chunks,\n"
        "        start INTEGER NOT NULL, stop INTEGER NOT NULL, locator TEXT NOT NULL, "
        "checksum BLOB NOT NULL,\n"
        "        PRIMARY KEY (document, ordinal)) STRICT, WITHOUT ROWID",
        "occurrences_by_chunk": "CREATE INDEX occurrences_by_chunk ON occurrences (chunk)",
        "texts": "CREATE TABLE texts (\n"
        "        chunk INTEGER PRIMARY KEY REFERENCES chunks, text TEXT NOT NULL, "
        "checksum BLOB NOT NULL) STRICT",
        "vectors": "CREATE TABLE vectors (\n"
        "        chunk INTEGER PRIMARY KEY REFERENCES chunks, codec TEXT NOT NULL, "
        "rows INTEGER NOT NULL, width INTEGER NOT NULL,\n"
        "        packed BLOB NOT NULL, checksum BLOB NOT NULL) STRICT",
        "pins": "CREATE TABLE pins (\n"
        "        chunk INTEGER PRIMARY KEY REFERENCES chunks, packed BLOB NOT NULL, "
        "checksum BLOB NOT NULL) STRICT",
        "keys": "CREATE TABLE keys (\n"
        "        chunk INTEGER PRIMARY KEY REFERENCES chunks, packed BLOB NOT NULL, "
        "checksum BLOB NOT NULL) STRICT",
        "verdicts": "CREATE TABLE verdicts (\n"
        "        chunk INTEGER PRIMARY KEY REFERENCES chunks, kind TEXT NOT NULL, "
        "tokens INTEGER NOT NULL, corrections INTEGER NOT NULL,\n"
        "        safeties INTEGER NOT NULL, margin REAL NOT NULL, reason TEXT NOT NULL, "
        "checksum BLOB NOT NULL) STRICT",
        "words": f"CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = {TEXT_TOKENIZER})",
    },
)

# A file's size and time (-1: not known), the headings above a chunk, the vectors that an encoder
# made of a chunk's text, and `names`: a cache as `words` is, of file names and headings. Both hold
# terms (terms.py).
CURRENT = Format(
    {
        **FORMAT_1.columns,
        "documents": (*FORMAT_1.columns["documents"], "size", "modified"),
        "occurrences": (*FORMAT_1.columns["occurrences"], "headings"),
        "readables": ("chunk", "encoder", "window", "codec", "rows", "width", "packed"),
    },
    {
        **FORMAT_1.ddl,
        "documents": "CREATE TABLE documents (\n"
        "        number INTEGER PRIMARY KEY AUTOINCREMENT, root BLOB NOT NULL, "
        "file BLOB NOT NULL, path BLOB NOT NULL, sha256 TEXT NOT NULL,\n"
        "        file_sha256 TEXT NOT NULL, chunks INTEGER NOT NULL, "
        "characters INTEGER NOT NULL, extractor TEXT NOT NULL,\n"
        "        size INTEGER NOT NULL, modified INTEGER NOT NULL, checksum BLOB NOT NULL,\n"
        "        UNIQUE (root, path)) STRICT",
        "occurrences": "CREATE TABLE occurrences (\n"
        "        document INTEGER NOT NULL REFERENCES documents, ordinal INTEGER NOT NULL, "
        "chunk INTEGER NOT NULL REFERENCES chunks,\n"
        "        start INTEGER NOT NULL, stop INTEGER NOT NULL, locator TEXT NOT NULL, "
        "headings TEXT NOT NULL, checksum BLOB NOT NULL,\n"
        "        PRIMARY KEY (document, ordinal)) STRICT, WITHOUT ROWID",
        "readables": "CREATE TABLE readables (\n"
        "        chunk INTEGER PRIMARY KEY REFERENCES chunks, encoder TEXT NOT NULL, "
        "window INTEGER NOT NULL, codec TEXT NOT NULL,\n"
        "        rows INTEGER NOT NULL, width INTEGER NOT NULL, packed BLOB NOT NULL, "
        "checksum BLOB NOT NULL) STRICT",
        "words": f"CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = {TERM_TOKENIZER})",
        "names": f"CREATE VIRTUAL TABLE names USING fts5 (text, tokenize = {TERM_TOKENIZER})",
    },
)
COLUMNS = CURRENT.columns
FORMATS: Mapping[int, Format] = {1: FORMAT_1, VERSION: CURRENT}


def format_of(version: int, where: object) -> Format:
    """The format of a database by its user_version.

    Raises:
        FormatMismatch: not one that this program reads.
    """
    if version in FORMATS:
        return FORMATS[version]
    draft, number = divmod(version, 1000)
    if draft > 0:
        raise FormatMismatch(
            f"{where} is of an unfinished store format {number} (draft {draft}), which this "
            "program does not read",
            remedy="ingest again: rag-memtok ingest PATH --store OTHER",
        )
    raise FormatMismatch(
        f"{where} is of store format {version}, this program reads 1 to {FORMAT}",
        remedy="use the rag-memtok that wrote it",
    )
