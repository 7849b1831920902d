"""Two word indexes (FTS5): `words` of the chunks' texts, `names` of their files and headings.

Both are caches of the other tables, by the chunks' numbers, and can be made anew from them. They
hold terms (terms.py); that of format 1 the texts themselves.
"""

import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain

from rag_memtok.store.formats import CURRENT, TERM_TOKENIZER
from rag_memtok.store.schema import format_in
from rag_memtok.store.terms import RULES, query_terms, terms_of_bytes

MADE_BY = "terms"  # the manifest's key for the RULES that the indexes were made by
LARGE = 10_000  # chunks from which on a word that most of them have is left out of a search

# What each has of every chunk; NULL: nothing. A place is a line: its file, and the headings above
# it. A name need not be UTF-8.
SOURCES = {
    "words": """SELECT number, (SELECT text FROM texts WHERE chunk = number) AS text FROM chunks""",
    "names": """SELECT number, (SELECT group_concat(line, char(10)) FROM (
        SELECT DISTINCT CAST(path AS TEXT) || iif(headings = '', '', ' > ' || headings) AS line
        FROM occurrences JOIN documents ON documents.number = document
        WHERE chunk = chunks.number ORDER BY line)) AS text FROM chunks""",
}


def word_indexes(db: sqlite3.Connection) -> tuple[str, ...]:
    """The word indexes that this database has."""
    return tuple(table for table in SOURCES if table in format_in(db).ddl)


def has_terms(db: sqlite3.Connection, table: str) -> bool:
    """Whether an index holds terms, not texts."""
    return TERM_TOKENIZER in format_in(db).ddl[table]


def is_outdated(db: sqlite3.Connection) -> bool:
    """Whether the indexes hold terms by other rules than the present ones."""
    made_by = db.execute("SELECT value FROM manifest WHERE key = ?", (MADE_BY,)).fetchone()
    return has_terms(db, "words") and made_by != (RULES.encode(),)


def sources(
    db: sqlite3.Connection, table: str, where: str = "TRUE", *values: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yields what an index has to have of each chunk `where`, by its number.

    The terms are made here: in a function of SQLite's an interrupt would be an error of the
    database's.
    """
    terms = has_terms(db, table)
    for number, text in db.execute(f"SELECT * FROM ({SOURCES[table]}) WHERE {where}", values):
        yield number, terms_of_bytes(text) if terms and text is not None else text


def fill(db: sqlite3.Connection, table: str, where: str = "TRUE", *values: int) -> None:
    """Inserts into an index what it has to have of the chunks `where`."""
    db.executemany(
        f"INSERT INTO {table} (rowid, text) VALUES (?, CAST(? AS TEXT))",
        (source for source in sources(db, table, where, *values) if source[1] is not None),
    )


def reset(db: sqlite3.Connection, table: str) -> None:
    """Rebuilds an index.

    FTS5 cannot drop a table it cannot read: it first gets the inner rows of an empty one.
    """
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.execute(CURRENT.ddl[table])
        for inner in (f"{table}_config", f"{table}_data"):
            rows = fresh.execute(f"SELECT * FROM {inner}").fetchall()
            db.execute(f"DELETE FROM {inner}")
            db.executemany(f"INSERT INTO {inner} VALUES (?, ?)", rows)
    db.execute(f"DROP TABLE {table}")
    db.execute(CURRENT.ddl[table])
    fill(db, table)


def reset_all(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """Rebuilds every index; returns the rows that the manifest has to have then."""
    for table in word_indexes(db):
        reset(db, table)
    return [(MADE_BY, RULES)] if has_terms(db, "words") else []


def refresh_names(db: sqlite3.Connection, chunks: Iterable[int]) -> None:
    """Indexes the lines of the places that `chunks` have now."""
    for chunk in set(chunks):
        db.execute("DELETE FROM names WHERE rowid = ?", (chunk,))
        fill(db, "names", "number = ?", chunk)


def purge_deleted(db: sqlite3.Connection, table: str) -> None:
    """Purges an index of what was deleted: a word stays until the index's parts are merged."""
    db.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")


def find_stale(db: sqlite3.Connection, table: str, after: int, last: int) -> list[int]:
    """The numbers of the chunks, beyond `after` to `last`, of which an index has another text.

    Cost: reads all of their texts, or places.
    """
    query = f"SELECT text FROM {table} WHERE rowid = ?"
    return [
        number
        for number, text in sources(db, table, "number > ? AND number <= ?", after, last)
        if (db.execute(query, (number,)).fetchone() or (None,))[0] != text
    ]


def search_index(
    db: sqlite3.Connection, table: str, words: Sequence[str], limit: int, large: int = LARGE
) -> dict[int, float]:
    """The numbers of the chunks with any of `words` in an index, the best first, with their BM25.

    The more, the better. Only chunks that have a place. `limit` -1: all of them. With another
    limit, and `large` chunks or more, a word that most of them have finds no chunk by itself, if
    the index has another of the words.
    """
    if table not in word_indexes(db):
        return {}
    asked = chain.from_iterable(map(query_terms, words)) if has_terms(db, table) else words
    quoted = [quote_term(term) for term in dict.fromkeys(asked) if term.strip("*\0")]
    terms = " OR ".join(drop_uninformative(db, table, quoted, sys.maxsize if limit < 0 else large))
    # without the + SQLite would ask the index once for every chunk of the store
    query = (
        f"SELECT rowid, -bm25({table}) AS score FROM {table} WHERE {table} MATCH ? AND +rowid IN "
        "(SELECT chunk FROM occurrences) ORDER BY score DESC, rowid LIMIT ?"
    )
    return dict(db.execute(query, (terms, limit))) if terms else {}


def drop_uninformative(
    db: sqlite3.Connection, table: str, terms: Sequence[str], large: int
) -> list[str]:
    """The `terms` that say which chunk is right.

    One that no chunk has adds nothing to any BM25, and one that more than half of them have a
    millionth (FTS5's least weight of a term), but each costs as much as any other. The latter stay
    in an index of less than `large` chunks, and where there are no others.
    """
    half = db.execute(f"SELECT count(*) FROM {table}_docsize").fetchone()[0] // 2
    most = half + 1 if 2 * half >= large else 1  # how far to count
    query = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {table} MATCH ? LIMIT ?)"
    counts = {term: db.execute(query, (term, most)).fetchone()[0] for term in terms}
    present = [term for term, count in counts.items() if count]
    return [term for term in present if counts[term] <= half] or present


def quote_term(term: str) -> str:
    """A term as FTS5 takes it; "*" at its end: any that begins so."""
    bare = term.removesuffix("*")
    doubled = bare.replace(chr(0), "").replace('"', '""')
    return f'"{doubled}"' + "*" * (bare != term)
