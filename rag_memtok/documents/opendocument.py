"""odt and ods: a text's headings, paragraphs, lists, tables, and notes; a workbook's tables.

What was deleted while changes were tracked, comments, and how words are pronounced are left out.
Values of cells are the stored ones, as in an xlsx (sheets.py), whatever a format shows of them.
"""

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from rag_memtok.documents.encodings import Unreadable
from rag_memtok.documents.sheets import (
    ISO,
    LINE_ENDS,
    Places,
    Rows,
    escape_cell,
    format_percentage,
    shortest_number,
    write_table,
)

GONE = frozenset(
    "text:tracked-changes office:annotation text:ruby-text text:note-citation svg:title svg:desc "
    "office:forms text:sequence-decls text:user-field-decls text:variable-decls "
    "text:page-number text:page-count".split()
)
# blocks that may stand within a line of text
APART = frozenset("draw:frame draw:custom-shape draw:rect draw:g table:table text:note".split())
SPACES = re.compile("[ \t\r\n]+")
CLOCK = re.compile(r"(-?)PT(\d+)H(\d+)M([\d.]+)S")


def text_of(data: bytes) -> tuple[str, Places]:
    """The text of an OpenDocument file, and its places if it is a workbook.

    Raises:
        Unreadable: it is encrypted.
        Exception: whatever odfdo raises at a file that is broken.
    """
    from odfdo import Document

    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        if b"encryption-data" in parts.read("META-INF/manifest.xml"):
            raise Unreadable("encrypted: save it without a password first")
    document = Document(io.BytesIO(data))
    if document.body.tag == "office:spreadsheet":
        return _workbook(document.body)
    headers = _page_texts(document, "//style:header")
    footers = _page_texts(document, "//style:footer")
    return "\n\n".join(filter(None, [*headers, *_blocks(document.body.children), *footers])), []


def _page_texts(document: Any, path: str) -> list[str]:
    """The texts on top or at the foot of pages, each once; none that is but a page's number."""
    elements = document.styles.get_elements(path)
    texts = dict.fromkeys("\n\n".join(_blocks(element.children)) for element in elements)
    return [text for text in texts if any(map(str.isalnum, text))]


# --- texts


def _blocks(elements: Iterable[Any]) -> Iterator[str]:
    """The headings, paragraphs, lists and tables in these."""
    for child in elements:
        if child.tag in ("text:p", "text:h"):
            yield from _paragraph(child)
        elif child.tag == "text:list":
            yield "\n".join(_items(child, ""))
        elif child.tag == "table:table":
            yield _table(child)
        elif child.tag not in GONE:
            yield from _blocks(child.children)


def _paragraph(element: Any) -> Iterator[str]:
    """A paragraph or heading, and behind it the boxes and notes that stand in it."""
    within = list[Any]()
    words = "".join(_pieces(element, within)).strip(" ")
    if words and element.tag == "text:h":
        level = int(element.get_attribute("text:outline-level") or 1)
        words = f"{'#' * min(level, 6)} {words}"
    if words:
        yield words
    for block in within:
        yield from _note(block) if block.tag == "text:note" else _blocks([block])


def _note(element: Any) -> Iterator[str]:
    yield f"[{_mark(element)}] " + "\n".join(_blocks(element.children))


def _mark(element: Any) -> str:
    """The number of a note, as it is shown."""
    marks = (child.text or "" for child in element.children if child.tag.endswith("citation"))
    return next(marks, "").strip()


def _pieces(element: Any, within: list[Any]) -> Iterator[str]:
    """Yields what stands in a line; blocks in it are put into `within`."""
    yield SPACES.sub(" ", element.text or "")
    for child in element.children:
        if child.tag == "text:s":
            yield " " * int(child.get_attribute("text:c") or 1)
        elif child.tag in ("text:tab", "text:line-break"):
            yield "\t" if child.tag == "text:tab" else "\n"
        elif child.tag in APART:
            within.append(child)
            yield f"[{_mark(child)}]" if child.tag == "text:note" else ""
        elif child.tag not in GONE:
            yield from _pieces(child, within)
        yield SPACES.sub(" ", child.tail or "")


def _items(element: Any, indent: str) -> Iterator[str]:
    """The items of a list, one a line; lists in it are set in."""
    for item in element.children:
        first = True
        for child in item.children:
            if child.tag == "text:list":
                yield from _items(child, indent + "  ")
                continue
            for block in _blocks([child]):
                yield f"{indent}{'- ' if first else '  '}{block}"
                first = False


def _table(element: Any) -> str:
    """A table in lines."""
    rows, text = _rows(element), io.StringIO()
    write_table(rows, "", text, [])
    return text.getvalue().lstrip("\n")


# --- workbooks


def _workbook(body: Any) -> tuple[str, Places]:
    text, places, has_values = io.StringIO(), Places(), False
    for table in body.children:
        if table.tag != "table:table":
            continue
        name = LINE_ENDS.sub(" ", table.get_attribute("table:name") or "")
        rows = _rows(table)
        text.write("\n\n" if text.tell() else "")
        places.append((text.tell(), f"sheet {name}"))
        text.write(f"## {name}")
        write_table(rows, name, text, places)
        has_values |= bool(rows)
    return (text.getvalue(), places) if has_values else ("", [])


def _rows(table: Any) -> Rows:
    """The cells with a value; one that stands for many is there as often."""
    rows, number = Rows(), 1
    for row in _rows_in(table):
        cells, column = dict[int, str](), 1
        for cell in row.children:
            count = _repeat_count(cell, "table:number-columns-repeated")
            if cell.tag == "table:table-cell" and (value := _value(cell)):
                cells |= dict.fromkeys(range(column, column + count), value)
            column += count
        count = _repeat_count(row, "table:number-rows-repeated")
        if cells:
            rows |= dict.fromkeys(range(number, number + count), cells)
        number += count
    return rows


def _rows_in(element: Any) -> Iterator[Any]:
    """The rows of a table, those of its header and of groups, too."""
    for child in element.children:
        if child.tag == "table:table-row":
            yield child
        elif child.tag.startswith("table:table-") and child.tag.endswith(("rows", "group")):
            yield from _rows_in(child)


def _repeat_count(element: Any, name: str) -> int:
    return int(element.get_attribute(name) or 1)


def _value(cell: Any) -> str:
    """The text of a cell: the stored value, else its words, else its formula."""
    kind = cell.get_attribute("office:value-type")
    number = cell.get_attribute("office:value") or ""
    if kind == "percentage":
        return format_percentage(shortest_number(number))
    if kind in ("float", "currency"):
        currency = cell.get_attribute("office:currency") or ""
        return f"{shortest_number(number)} {currency}".strip()
    if kind == "date":
        return ISO.sub(" ", cell.get_attribute("office:date-value") or "")
    if kind == "time":
        stored = cell.get_attribute("office:time-value") or ""
        return CLOCK.sub(r"\1\2:\3:\4", stored)
    if kind == "boolean":
        return str(cell.get_attribute("office:boolean-value") or "").upper()
    words = escape_cell("\n".join(_blocks(cell.children)))
    return words or escape_cell((cell.get_attribute("table:formula") or "").partition(":")[2])
