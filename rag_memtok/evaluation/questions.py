"""Files of questions with gold answers -> Questions. The only home of datasets.

Packed files are read by it; plain JSON is not, for it makes times of texts such as 2024-01-31.

    rows         {"question", "answers": [...], "context" or "file"}, JSONL or a JSON list;
                 "source" names where a row is from
    SQuAD        v1.1 or v2.0, nested as published

An empty list of answers, or "unanswerable", means that the documents do not say.
"""

import json
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from rag_memtok.config import Documents
from rag_memtok.datatypes import Document, Segment
from rag_memtok.documents.scan import read, scan
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.evaluation.corpora import spread_evenly
from rag_memtok.evaluation.metrics import answerable

FIELDS = "context (or file), question, answers"
PLAIN = (".jsonl", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its right answers and the documents it is about.

    No answers: the documents do not say. No documents: any.

    `starts` are the answers' places in the one document, where the file tells them. `line` is that
    of the file, of SQuAD's the number.
    """

    line: int
    question: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...]
    starts: tuple[int, ...] = ()
    source: str = ""


def load_questions(path: Path, documents: Path | None = None, limit: int = 0) -> list[Question]:
    """Reads the questions of a file, `limit` of them (0: all), spread evenly over it.

    Args:
        documents: the folder that a row's `file` is in; by default the questions' own.

    Raises:
        InputRefused: no such file, or not questions: the line is named.
        UsageError: the file has no questions.
    """
    if not path.is_file():
        raise InputRefused(
            f"there is no file {path}", remedy=f"rows of {FIELDS}, one a line, or a SQuAD file"
        )
    found = list(read_rows(path))
    if not found:
        raise UsageError(
            f"{path} has no questions", remedy=f"rows of {FIELDS}, one a line, or a SQuAD file"
        )
    rows = list(zip(line_numbers(path, len(found)), found, strict=True))
    known: dict[str, tuple[Document, ...]] = {}
    return [
        parse_question(path, number, row, documents or path.parent, known)
        for number, row in spread_evenly(rows, limit or len(rows))
    ]


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file, SQuAD's flattened.

    Raises:
        InputRefused: it cannot be read as such.
    """
    if path.suffix in PLAIN and not path.read_bytes().strip():
        return
    nested = is_squad(path)
    try:
        rows = read_plain(path, nested=nested) if path.suffix in PLAIN else read_packed(path)
    except (
        datasets.exceptions.DatasetGenerationError,
        datasets.exceptions.DataFilesNotFoundError,
        ValueError,
        KeyError,
        RecursionError,
    ) as error:
        raise read_error(path, error) from error
    for row in rows:
        if nested:
            yield from flatten_squad(path, row)
        else:
            yield row


def read_plain(path: Path, *, nested: bool) -> list[Mapping[str, Any]]:
    """The rows of a JSON list, or of JSON objects a line, or SQuAD's articles (`nested`).

    Raises:
        ValueError, KeyError, RecursionError: it is something else.
    """
    content = path.read_bytes().removeprefix(BOM_UTF8)
    if nested:
        rows = json.loads(content)["data"]
    elif content.lstrip().startswith(b"["):
        rows = json.loads(content)
    else:
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no list of JSON objects")
    json.dumps(rows, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    return rows


def read_packed(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a file that datasets unpacks.

    Raises:
        DatasetGenerationError, DataFilesNotFoundError, ValueError, KeyError: it cannot.
    """
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        table = datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True
        )
        rows: list[Mapping[str, Any]] = table.to_list()
    return rows


def line_numbers(path: Path, count: int) -> Sequence[int]:
    """The lines that rows stand on; counted from 1 where that cannot be told."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else []
    filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
    return filled if len(filled) == count else range(1, count + 1)


def is_squad(path: Path) -> bool:
    """Whether a file is one JSON object, as SQuAD's are, not a row a line."""
    if path.suffix != ".json":
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline().strip()
    if first.startswith("["):
        return False
    try:
        return "data" in json.loads(first)
    except (ValueError, RecursionError):
        return True


def flatten_squad(path: Path, article: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The questions of an article of SQuAD as rows.

    Raises:
        InputRefused: it is not such an article.
    """
    try:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                golds = [] if qa.get("is_impossible") else qa["answers"]
                yield {
                    "context": paragraph["context"],
                    "question": qa["question"],
                    "answers": golds,
                    "source": article.get("title"),
                }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputRefused(
            f"{path} is not SQuAD's JSON: {error}",
            remedy="data, paragraphs, context, qas, question, answers",
        ) from error


def read_error(path: Path, error: Exception) -> InputRefused:
    """The error for a file that datasets does not read.

    The line is named where it is a line's fault.
    """
    lines = path.read_bytes().splitlines() if path.suffix in PLAIN else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as fault:
            return InputRefused(
                f"{path}, line {number}: not JSON: {fault}",
                remedy=f"each line is one object with {FIELDS}",
            )
        if not isinstance(row, dict):
            return InputRefused(
                f"{path}, line {number}: no JSON object",
                remedy=f"each line is one object with {FIELDS}",
            )
    return InputRefused(
        f"{path} cannot be read: {error.__cause__ or error}",
        remedy=f"rows of {FIELDS}, one a line, or a SQuAD file",
    )


def parse_question(
    path: Path,
    number: int,
    row: Mapping[str, Any],
    folder: Path,
    known: dict[str, tuple[Document, ...]],
) -> Question:
    """A row as a Question; `known` keeps the documents that were read already.

    Raises:
        InputRefused: the row lacks something; its line is named.
    """
    asked, context, file = row.get("question"), row.get("context"), row.get("file")
    if not isinstance(asked, str) or not asked.strip():
        raise _row_error(
            path, number, "no question" if asked in (None, "") else f"the question is {asked!r}"
        )
    if not isinstance(context or "", str) or not isinstance(file or "", str):
        raise _row_error(path, number, "context and file are texts")
    texts, starts = parse_answers(path, number, row.get("answers"))
    golds = answerable(texts)
    if context:
        where = f"{path.name}#L{number}"
        about: tuple[Document, ...] = (
            Document(
                "",
                path.name,
                path=where,
                text=context,
                segments=(Segment(0, f"line {number}"),),
                extractor="question/1",
            ),
        )
    elif file:
        about = (
            known[file]
            if file in known
            else known.setdefault(file, read_documents(path, number, folder / file))
        )
    elif golds:
        raise _row_error(path, number, "neither context nor file, and yet an answer")
    else:
        about = ()
    return Question(
        line=number,
        question=asked.strip(),
        answers=golds,
        documents=about,
        starts=starts if golds == texts and context else (),
        source=str(row.get("source") or ""),
    )


def parse_answers(path: Path, number: int, value: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts of the answers and, where told, their starts.

    `value` is a list of texts, SQuAD's list of objects, or its two lists.

    Raises:
        InputRefused: none of these.
    """
    if isinstance(value, str):
        return (value,), ()
    if isinstance(value, Mapping):
        columns: tuple[Any, Any] = (value.get("text"), value.get("answer_start"))
        if not all(isinstance(one, list) for one in columns) or len({*map(len, columns)}) > 1:
            raise _row_error(path, number, "answers without their texts and starts")
        value = [
            {"text": text, "answer_start": start} for text, start in zip(*columns, strict=True)
        ]
    if not isinstance(value, Sequence):
        raise _row_error(
            path, number, "no answers (an empty list says that the documents do not say)"
        )
    if all(isinstance(answer, str) for answer in value):
        return tuple(value), ()
    try:
        return tuple(str(answer["text"]) for answer in value), tuple(
            int(answer["answer_start"]) for answer in value
        )
    except (KeyError, TypeError, ValueError):
        raise _row_error(path, number, "an answer that is no text") from None


def read_documents(path: Path, number: int, file: Path) -> tuple[Document, ...]:
    """The documents in the file that a row names.

    Raises:
        InputRefused: there is nothing to read.
    """
    if not file.is_file():
        raise _row_error(
            path,
            number,
            f"there is no file {file}",
            remedy="--documents names the folder of the files",
        )
    settings = Documents()
    found = scan([file], settings)
    readings = [read(source, settings) for source in found.files]
    skipped = [*found.skipped, *(one for reading in readings for one in reading.skipped)]
    documents = tuple(document for reading in readings for document in reading.documents)
    if not documents:
        raise _row_error(
            path, number, f"{file}: {skipped[0].reason if skipped else 'nothing to read'}"
        )
    return documents


def _row_error(
    path: Path, number: int, what: str, remedy: str = f"a row has {FIELDS}"
) -> InputRefused:
    return InputRefused(f"{path}, line {number}: {what}", remedy=remedy)
