"""A Jupyter notebook -> its cells, as Markdown: texts, code, and what that printed."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from rag_memtok.documents.encodings import Unreadable
from rag_memtok.documents.sheets import Places

FENCE = re.compile("^`{3,}", re.MULTILINE)
ESCAPES = re.compile("\x1b\\[[0-9;]*[A-Za-z]")  # the colours of a terminal


def text_of_notebook(data: bytes) -> tuple[str, Places]:
    """The text of a notebook, each cell with its number; pictures among the outputs have none.

    Raises:
        Unreadable: it is no notebook.
        ValueError: it is no JSON.
    """
    book = json.loads(data)
    cells = _cells(book) if isinstance(book, dict) else None
    if not isinstance(cells, list):
        raise Unreadable("no notebook: it has no cells")
    text, places = io.StringIO(), Places()
    for number, cell in enumerate(cells, 1):
        words = "\n\n".join(_parts(cell, _language(book))) if isinstance(cell, dict) else ""
        if words:
            text.write("\n\n" if places else "")
            places.append((text.tell(), f"cell {number}"))
            text.write(words)
    return text.getvalue(), places


def _cells(book: dict[str, Any]) -> Any:
    """The cells, also of a notebook of the older format 3."""
    sheets = book.get("worksheets")
    return (
        book.get("cells") if not sheets else [cell for sheet in sheets for cell in sheet["cells"]]
    )


def _language(book: dict[str, Any]) -> str:
    metadata = book.get("metadata") or {}
    return str(
        (metadata.get("language_info") or {}).get("name")
        or (metadata.get("kernelspec") or {}).get("language")
        or ""
    )


def _parts(cell: dict[str, Any], language: str) -> Iterator[str]:
    source = _join_lines(cell.get("source", cell.get("input"))).strip("\n")
    if cell.get("cell_type") != "code":
        yield source
        return
    if source.strip():
        yield _fence(source, language)
    outputs = [output for output in cell.get("outputs") or [] if isinstance(output, dict)]
    if words := "\n".join(filter(None, map(_output_text, outputs))):
        yield _fence(words, "")


def _output_text(output: dict[str, Any]) -> str:
    """The plain text of an output."""
    if output.get("output_type") == "error":
        return f"{output.get('ename')}: {output.get('evalue')}"
    plain = (output.get("data") or {}).get("text/plain") or output.get("text")
    return ESCAPES.sub("", _join_lines(plain)).strip("\n")


def _join_lines(lines: Any) -> str:
    """A text of a notebook: one string, or a list of its lines."""
    return "".join(map(str, lines)) if isinstance(lines, list) else str(lines or "")


def _fence(text: str, language: str) -> str:
    """A block of code, between fences that are longer than those in it."""
    fence = max(("```", *(f"{inner}`" for inner in FENCE.findall(text))), key=len)
    return f"{fence}{language}\n{text}\n{fence}"
