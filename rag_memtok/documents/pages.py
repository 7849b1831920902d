"""HTML -> the text that is seen of it, and the lines it stands in."""

import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import islice
from typing import NamedTuple

from rag_memtok.documents.encodings import Unreadable

BESIDE = "\x1f"  # a gap that is a space, but before the end of a sentence
NEVER_CLOSED = 100  # tags, comments or sections of a page
# A reference by a number of very many digits: Python refuses to make a number of them. Nine digits
# and more are no character, and a browser shows U+FFFD.
LONG_REFERENCE = re.compile("&#(?=[0-9]{600})0*([0-9]{1,8})[0-9]*")
# what html.parser looks for the end of as far as the file goes, ">" or not, and that end
SPANS = (
    (r"<!--", r"-->"),
    (r"<!\[(?:temp|cdata|ignore|include|rcdata)", r"\]\s*\]\s*>"),
    (r"<!\[", r"\]\s*>"),
)


class _PageParser(HTMLParser):
    """Collects the visible text of a page, its places and headings.

    Blocks become lines, cells of a row are parted by " | ", white space runs together.
    """

    UNSEEN = frozenset("script style template noscript rp".split())
    BLOCKS = frozenset(
        "p h1 h2 h3 h4 h5 h6 table ul ol dl pre blockquote section article form figure hr "
        "title".split()
    )
    HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
    LINES = BLOCKS | frozenset(
        "br div li tr dt dd option optgroup caption header footer main nav aside address details "
        "summary dialog fieldset legend figcaption hgroup search menu center textarea iframe "
        "video audio".split()
    )
    # within a line, but no part of the word that stands before or behind
    APART = frozenset("label button input select output meter progress img svg text math".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.places = io.StringIO(), list[tuple[int, str]]()
        self.cells = self.unseen = self.pre = self.begun = 0
        # what stands before the next visible text: "", " ", line ends; or as many " |" as cells
        # began (`bars`, counted as a row may have very many)
        self.gap, self.bars = "", 0
        self.xml = self.aloud = False
        self.ruby: list[str] = []  # how the words before are pronounced
        self.headings = list[tuple[int, int, str]]()  # where, how deep, what it says
        self.heading: list[str] | None = None  # the words of one that has begun

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.unseen += tag in self.UNSEEN
        self.pre += tag == "pre"
        if tag in self.HEADINGS:
            self.heading = []
        self.aloud = tag == "rt" or (self.aloud and tag not in ("rb", "ruby"))
        self.widen(tag)
        if tag in ("td", "th"):
            self.bars += self.cells > 0
            self.cells += 1

    def handle_endtag(self, tag: str) -> None:
        self.unseen = max(0, self.unseen - (tag in self.UNSEEN))
        self.pre = max(0, self.pre - (tag == "pre"))
        self.aloud &= tag not in ("rt", "ruby")
        if tag == "ruby":
            self.pronounce()
        if tag in self.HEADINGS and self.heading:
            title = " ".join(self.heading)
            self.headings.append((self.begun, int(tag[1]), title))
            self.heading = None
        self.widen(tag)

    def pronounce(self) -> None:
        """Puts how words are pronounced behind them, and not between their letters."""
        if spoken := "".join("".join(self.ruby).split()):
            self.widen(" ")
            self.add(f"({spoken})", f"line {self.getpos()[0]}")
        self.ruby.clear()

    def handle_pi(self, data: str) -> None:
        self.xml |= data.startswith("xml")

    def unknown_decl(self, data: str) -> None:
        if self.xml and data.startswith("CDATA["):
            self.handle_data(data.removeprefix("CDATA["))

    def widen(self, tag: str) -> None:
        """Makes the gap at least as wide as `tag` (or white space) asks.

        A cell that has just begun stays in its row.
        """
        if tag in ("tr", "table"):
            self.end_row()
        wanted = (
            "\n\n"
            if tag in self.BLOCKS and not self.cells
            else "\n"
            if tag in self.LINES
            else BESIDE
            if tag in self.APART
            else " "
            if tag == " "
            else ""
        )
        if not self.bars:
            self.gap = max(self.gap, wanted, key=lambda gap: (gap.count("\n"), len(gap)))

    def end_row(self) -> None:
        """Forgets the cells without text in which a row ended."""
        self.gap = "" if self.bars else self.gap
        self.cells = self.bars = 0

    def handle_data(self, data: str) -> None:
        if self.unseen:
            return
        if self.aloud:
            self.ruby.append(data)
            return
        for number, line in enumerate(data.split("\n")):
            if number and self.pre and not self.bars:
                # bounded, or a page of blank lines takes quadratic time
                self.gap = self.gap[:100] + "\n"
            elif number or line[:1].isspace():
                self.widen(" ")
            shown = line.rstrip() if self.pre else " ".join(line.split())
            if shown:
                self.add(shown, f"line {self.getpos()[0] + number}")
            if shown and line[-1].isspace():
                self.widen(" ")

    def add(self, text: str, locator: str) -> None:
        gap = self.gap.replace(BESIDE, "" if text[0] in ",.;:!?)" else " ")
        gap = " |" * self.bars + " " if self.bars else gap
        self.text.write(gap if self.places else "")
        if not self.places or self.places[-1][1] != locator:
            self.places.append((self.text.tell(), locator))
        if self.heading is not None:
            self.begun = self.begun if self.heading else self.text.tell()
            self.heading.append(text)
        self.text.write(text)
        self.gap, self.bars = "", 0


class Page(NamedTuple):
    """The visible text of a page.

    `places`: from which character on it stands in which line of the page; `headings`: at which
    character one begins, how deep it is (1 to 6), what it says.
    """

    text: str
    places: Sequence[tuple[int, str]]
    headings: Sequence[tuple[int, int, str]]


def read_page(page: str) -> Page:
    """The visible text of a page.

    Raises:
        Unreadable: it is no HTML.
    """
    if _is_never_closed(page):
        raise Unreadable(f"not HTML: more than {NEVER_CLOSED} tags or comments are never closed")
    parser = _PageParser()
    try:
        parser.feed(LONG_REFERENCE.sub(r"&#\1", page))
        parser.close()
    except AssertionError as error:  # html.parser's own, at "<![name["
        raise Unreadable(f"not HTML: {error}") from error
    parser.pronounce()
    return Page(parser.text.getvalue(), parser.places, parser.headings)


def _is_never_closed(page: str) -> bool:
    """Whether html.parser would take hours: it looks for each missing end in all of the file."""
    if any(piece.count("<") > NEVER_CLOSED for piece in page.split(">")):
        return True
    for opening, end in SPANS:
        last = max((found.end() for found in re.finditer(end, page)), default=0)
        unclosed = re.compile(opening, re.IGNORECASE).finditer(page, last)
        if next(islice(unclosed, NEVER_CLOSED, None), None):
            return True
    return False
