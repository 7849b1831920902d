"""Texts to try a model on.

They are those of a CSV file, or documents cut at so many characters, by language.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rag_memtok.config import Documents
from rag_memtok.documents.scan import read, scan
from rag_memtok.errors import InputRefused, UsageError

T = TypeVar("T")
ENGLISH = frozenset(
    "the of and to in is that for it was with as on are this by be not or from at".split()
)
SPANISH = frozenset("de la que el en y los del se las por un para con una su al lo como no".split())


@dataclass(frozen=True, slots=True)
class Corpus:
    """Different texts, and what they have in common."""

    name: str
    texts: tuple[str, ...]


def load_corpora(
    chunks: Path | None, docs: Path | None, lengths: Sequence[int], limit: int
) -> list[Corpus]:
    """The texts of a CSV file, of documents, or of both.

    Raises:
        UsageError: neither is given.
        InputRefused: there are no texts.
    """
    if chunks is None and docs is None:
        raise UsageError(
            "no texts are given", remedy="--chunks FILE.csv (column 'chunk'), or --docs DIR"
        )
    return ([from_csv(chunks, limit)] if chunks else []) + (
        from_documents(docs, lengths, limit) if docs else []
    )


def from_csv(path: Path, limit: int) -> Corpus:
    """The first `limit` different texts of the column `chunk`.

    Raises:
        InputRefused: no such column, or no such file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if "chunk" not in (rows.fieldnames or ()):
                raise InputRefused(
                    f"{path} has no column 'chunk'",
                    remedy="its first line names the columns; texts are taken from 'chunk'",
                )
            texts = dict.fromkeys(row["chunk"] for row in rows if row["chunk"])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputRefused(
            f"{path} cannot be read: {error}", remedy="give --chunks a CSV file in UTF-8"
        ) from error
    return Corpus(path.stem, tuple(texts)[:limit])


def from_documents(folder: Path, lengths: Sequence[int], limit: int) -> list[Corpus]:
    """The documents under `folder` cut at each number of characters of `lengths`, by language.

    There are `limit` texts of each, evenly spread.

    Raises:
        InputRefused: there is nothing to read, or no document of such a length.
    """
    settings = Documents()
    texts = [
        document.text
        for source in scan([folder], settings).files
        for document in read(source, settings).documents
    ]
    corpora = []
    for name, spoken in (("English", ENGLISH), ("Spanish", SPANISH)):
        of_language = [text for text in texts if guess_language(text) is spoken]
        corpora += [
            Corpus(
                f"{name}, {length} characters", spread_evenly(cut_texts(of_language, length), limit)
            )
            for length in lengths
        ]
    corpora = [corpus for corpus in corpora if corpus.texts]
    if not corpora:
        raise InputRefused(
            f"no document in {folder} has {min(lengths)} characters",
            remedy="smaller --chars, or other --docs",
        )
    return corpora


def cut_texts(texts: Iterable[str], length: int) -> list[str]:
    """Every stretch of exactly `length` characters, one after the other, each once.

    What is left at the end of a text is dropped.
    """
    stretches = (
        text[start : start + length]
        for text in texts
        for start in range(0, len(text) - length + 1, length)
    )
    return list(dict.fromkeys(stretch for stretch in stretches if stretch.strip()))


def spread_evenly(items: Sequence[T], limit: int) -> tuple[T, ...]:
    """At most `limit` of `items`, evenly spaced, in order."""
    count = min(limit, len(items))
    return tuple(items[index * len(items) // count] for index in range(count))


def guess_language(text: str) -> frozenset[str]:
    """ENGLISH or SPANISH, whichever has more of its small words in `text`."""
    words = text.lower().split()
    return (
        SPANISH
        if sum(word in SPANISH for word in words) > sum(word in ENGLISH for word in words)
        else ENGLISH
    )
