"""Text -> the headings above each place of it, by what marks a heading in that kind of text.

A new kind is one function and one row of `KINDS`. The first row of a table, which says what its
columns are, is a heading of the rows below it.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from rag_memtok.documents.extract import each_line
from rag_memtok.documents.split import MARKDOWN

BETWEEN = " > "
LONGEST = 1000  # characters of a heading
TITLE = 120  # characters of a first line that is a title
COLUMNS = 100  # the level of a table's first row: under every heading


class Mark(NamedTuple):
    """A heading: its start, its level (1 is the highest), its title; "" ends those of its level."""

    start: int
    level: int
    title: str


def headings_above(
    file: str, text: str, starts: Sequence[int], told: Sequence[tuple[int, int, str]] = ()
) -> list[str]:
    """The headings above each of `starts`, which ascend, joined with " > ".

    One that a place begins with is among them.

    Args:
        told: further headings, as `Document.headings`.

    Cost: linear.
    """
    every = [*find_marks(file, text), *(Mark(start, level, title) for start, level, title in told)]
    marks = deque(sorted(every, key=lambda mark: mark.start))
    above, joined, begins = list[Mark](), list[str](), 0
    for start in starts:
        if start >= begins:  # else it is in the white space that was passed over already
            first = re.compile(r"\s*").match(text, start)
            begins = first.end() if first else start
        while marks and marks[0].start <= begins:
            mark = marks.popleft()
            above = [upper for upper in above if upper.level < mark.level]
            above += [mark] if mark.title else []
        joined.append(BETWEEN.join(dict.fromkeys(mark.title for mark in above)))
    return joined


def find_marks(file: str, text: str) -> Iterator[Mark]:
    """The headings of a text in their order, by the file's name."""
    kind = KINDS.get(PurePosixPath(file).suffix.lower())
    for start, level, title in kind(text) if kind else ():
        yield Mark(start, level, " ".join(title.split())[:LONGEST])


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The start and the text of each line, without its end."""
    return ((start, line.rstrip("\r")) for start, line in each_line(text))


def _markdown(text: str) -> Iterator[tuple[int, int, str]]:
    """Headings with # or underlined, the title in the front matter, first rows of tables."""
    fence, last, in_table = "", (0, ""), False
    lines = _lines(text)
    if text.startswith(("---\n", "---\r\n")) and re.search(r"^---\s*$", text[4:], re.MULTILINE):
        next(lines)
        for start, line in lines:
            if line.rstrip() == "---":
                break
            if line.startswith("title:"):
                yield start, 0, line.removeprefix("title:").strip(" \"'")
    for start, line in lines:
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif heading := _number_signs(line):
            yield start, *heading
        elif "|" in last[1] and "|" in line and "-" in line and not line.strip(" |:-"):
            yield last[0], COLUMNS, last[1].strip("| \t")
            in_table = True
        elif re.fullmatch(r" {0,3}(=+|-+)[ \t]*", line) and re.match(r" {0,3}[^-+*|<>\s]", last[1]):
            yield last[0], 1 if "=" in line else 2, last[1]
        elif in_table and "|" not in line:
            yield start, COLUMNS, ""
            in_table = False
        last = start, "" if fence else line


def _number_signs(line: str) -> tuple[int, str] | None:
    """The level and the title of a heading that begins with #, its closing ones left out."""
    # one pattern for all of it would try every way to part a run of spaces
    signs = re.match(r" {0,3}(#{1,6})", line)
    if not signs:
        return None
    rest = line[signs.end() :]
    title = rest.rstrip(" \t").rstrip("#").rstrip(" \t")
    if title and rest[0] not in " \t":
        return None  # a word such as "#1"
    return len(signs[1]), title.lstrip(" \t")


def _underlined(text: str) -> Iterator[tuple[int, int, str]]:
    """Lines that a line of one sign stands under; which sign comes first is the upper level."""
    levels: list[tuple[str, bool]] = []
    before, last = (0, ""), (0, "")
    for start, line in _lines(text):
        title = last[1].strip()
        rule = re.fullmatch(r"([=\-~^\"'`#*+.:_])\1{2,}", line.rstrip())
        if rule and title and len(line.rstrip()) >= len(last[1].rstrip()) and title[0] != rule[1]:
            over = before[1].strip() == line.strip()
            levels += [] if (rule[1], over) in levels else [(rule[1], over)]
            yield before[0] if over else last[0], levels.index((rule[1], over)) + 1, title
            line = ""
        before, last = last, (start, line)


def _signs(pattern: str, text: str) -> Iterator[tuple[int, int, str]]:
    """Lines that begin with as many signs as the heading is deep."""
    for line in re.finditer(pattern, text, re.MULTILINE):
        yield line.start(), len(line[1]), line[2]


def _tex(text: str) -> Iterator[tuple[int, int, str]]:
    """Parts, chapters and sections of a TeX text."""
    order = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph")
    for command in re.finditer(rf"^[ \t]*\\({'|'.join(order)})\*?\{{([^{{}}]*)\}}", text, re.M):
        yield command.start(), order.index(command[1]) + 1, command[2]


def _columns(text: str) -> Iterator[tuple[int, int, str]]:
    """The first row of a table that is all of a file."""
    yield 0, COLUMNS, re.sub(r"[\t,;]+", " | ", text.partition("\n")[0].replace('"', ""))


def _title(text: str) -> Iterator[tuple[int, int, str]]:
    """The first line of a page or a mail: its title, its subject."""
    first = text.strip().partition("\n")[0]
    if len(first) <= TITLE:
        yield 0, 0, first.removeprefix("Subject: ")


KINDS: dict[str, Callable[[str], Iterator[tuple[int, int, str]]]] = {
    **dict.fromkeys(MARKDOWN, _markdown),
    **dict.fromkeys([".rst", ".txt", ".text"], _underlined),
    ".adoc": lambda text: _signs(r"^(={1,6}) +(.+)$", text),
    ".org": lambda text: _signs(r"^(\*{1,8}) +(.+)$", text),
    ".tex": _tex,
    **dict.fromkeys([".html", ".htm", ".xhtml", ".eml"], _title),
    **dict.fromkeys([".csv", ".tsv"], _columns),
}
