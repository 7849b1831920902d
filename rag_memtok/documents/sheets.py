r"""Bytes of an xlsx -> its sheets as tables, each cell as it is stored.

Text is text. A run of line ends in it is a space and "|" is "\|", so that they make no row and no
column; nothing else of it changes.

A number is the shortest that reads back as the stored one: a number format that rounds, scales or
hides it on the screen does not do so here. From the format come a percent sign (0.25 is 25%), a
currency sign ($1200, 1200 €), and that a number is a moment: 2026-03-12, 2026-03-12 09:40:00,
09:40:00, and 26:30:00 for a duration, to the millisecond.

TRUE, FALSE and errors (#DIV/0!) are what they are. A formula is the value that was stored with it,
or else the formula, and a line after the sheet says how many of these it has. Merged cells have
their value once.

A sheet is as large as what is in it, whatever it claims: only cells with a value count.
"""

import io
import re
import unicodedata
import zipfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

Places = list[tuple[int, str]]  # from this character on, that locator
Rows = dict[int, dict[int, str]]  # row -> column -> text, of cells with a value

WIDEST_GAP = 8  # a longer run of columns without a value is written as one
WHOLE = 10**16  # from here on digits are more than a float knows
# a number format in parts; "_x" is a space as wide as x, "*x" is x repeated
FORMAT = re.compile(
    r'"(?P<quoted>[^"]*)"?|\[(?P<bracket>[^\]]*)\]?|\\(?P<escaped>.)|[_*].|(?P<bare>.)', re.DOTALL
)
LINE_ENDS = re.compile("[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")
ISO = re.compile(r"(?<=\d)T(?=\d)")
ESCAPE = re.compile("_x(00[01][0-9A-Fa-f]|005F)_")  # how the file writes control characters


@dataclass(frozen=True, slots=True)
class Look:
    """What of a number format is kept: what kind of moment, or which signs around the number."""

    moment: bool = False
    clock: bool = False
    duration: bool = False
    percent: bool = False
    before: str = ""
    after: str = ""


def tables(data: bytes) -> tuple[str, Places]:
    """The text of a workbook, and its places.

    A sheet is "## NAME" ("## NAME (hidden)" where it is), a line for its first row with a value, a
    rule, and a line for each further one; the place of a row has its number in the sheet. The
    text is empty if no cell has a value.

    Raises:
        Exception: whatever openpyxl raises at a file that is broken.

    Cost: 7 s and 300 MB for a million cells; 9 s for a million rows that only claim some.
    """
    from openpyxl import load_workbook

    book = load_workbook(io.BytesIO(data), read_only=True, keep_links=False)
    text, places, found = io.StringIO(), Places(), False
    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        for sheet in book.worksheets:
            reader = Reader(sheet, sheet._shared_strings, book.epoch)
            with parts.open(sheet._worksheet_path) as source:
                rows = rows_of(source, reader)
            name, hidden = LINE_ENDS.sub(" ", sheet.title), sheet.sheet_state != "visible"
            text.write("\n\n" if text.tell() else "")
            places.append((text.tell(), f"sheet {name}"))
            text.write(f"## {name}{' (hidden)' * hidden}")
            write(rows, name, text, places)
            if reader.unstored:
                text.write("\n\n")
                places.append((text.tell(), f"sheet {name}"))
                count = f"{reader.unstored} formula{'s' * (reader.unstored != 1)}"
                text.write(f"{count} without a stored value")
            found |= bool(rows)
    return (text.getvalue(), places) if found else ("", [])


def write(rows: Rows, name: str, text: io.StringIO, places: Places) -> None:
    """Writes the lines of a sheet's table, and notes where each row begins."""
    columns = shown_columns({column for row in rows.values() for column in row})
    for index, number in enumerate(sorted(rows)):
        text.write("\n")
        places.append((text.tell(), f"sheet {name} row {number}"))
        text.write(f"| {' | '.join(rows[number].get(column, '') for column in columns)} |")
        if not index:
            text.write(f"\n| {' | '.join(['---'] * len(columns))} |")


def shown_columns(used: Iterable[int]) -> list[int]:
    """The columns that are written: up to the last one in use.

    Of a long run of others only one is: a note far to the right must not make every row as wide.
    """
    columns, last = list[int](), 0
    for column in sorted(used):
        empty = range(last + 1, column)
        columns += [*(empty if len(empty) <= WIDEST_GAP else empty[:1]), column]
        last = column
    return columns


# --- cells ---


@dataclass(slots=True, eq=False)
class Reader:
    """What the cells of a sheet need to be read, and how many formulas had no stored value."""

    sheet: Any
    strings: Sequence[str]
    epoch: datetime
    looks: dict[int, Look] = field(default_factory=dict)
    shared: dict[str, tuple[str, str]] = field(default_factory=dict)
    unstored: int = 0

    def cell(self, element: Any) -> str:
        """What a cell says, "" if nothing."""
        kind, value, formula = element.get("t", "n"), None, None
        for part in element:
            name = local(part)
            if name == "v":
                value = part.text or ""
            elif name == "is":
                value = inline(part)
            elif name == "f":
                formula = part
                if part.get("t") == "shared" and part.text:
                    self.shared[part.get("si", "")] = f"={part.text}", element.get("r", "")
        # an empty text is a stored value, too
        if formula is not None and not value and (kind != "str" or value is None):
            self.unstored += 1
            return one_line(self.formula(formula, element.get("r", "")))
        if not value:
            return ""
        if kind == "n":
            return shown(value, self.look(int(element.get("s", 0))), self.epoch)
        if kind == "s":
            value = self.strings[int(value)]
        elif kind == "b":
            value = "TRUE" if int(value) else "FALSE"
        elif kind == "d":
            value = ISO.sub(" ", value)
        return one_line(value)

    def formula(self, element: Any, place: str) -> str:
        """The formula of the cell at `place`; one that cells share stands in the first alone."""
        from openpyxl.formula.translate import Translator

        if element.text or element.get("si", "") not in self.shared:
            return f"={element.text or ''}"
        return Translator(*self.shared[element.get("si", "")]).translate_formula(place)

    def look(self, style: int) -> Look:
        """What of a cell style's number format is kept."""
        from openpyxl.cell.read_only import ReadOnlyCell

        if style not in self.looks:
            try:
                code = ReadOnlyCell(self.sheet, 1, 1, None, "n", style).number_format
            except IndexError:  # a style that the file does not have
                code = "General"
            self.looks[style] = look_of(code)
        return self.looks[style]


def rows_of(source: Any, reader: Reader) -> Rows:
    """The cells with a value of a sheet's XML; cells merged into another have none."""
    from openpyxl.utils import coordinate_to_tuple, range_boundaries
    from openpyxl.xml.functions import iterparse

    rows, merged, number = Rows(), list[tuple[int, ...]](), 0
    for _, element in iterparse(source):
        if local(element) == "row":
            number, column = int(element.get("r", number + 1)), 0
            for cell in element:
                place = cell.get("r")
                column = coordinate_to_tuple(place)[1] if place else column + 1
                if (text := reader.cell(cell)).strip():
                    rows.setdefault(number, {})[column] = text
            element.clear()  # a sheet as a tree takes ten times its size
        elif local(element) == "mergeCell":
            merged.append(range_boundaries(element.get("ref")))
    numbers = sorted(rows)
    for left, top, right, bottom in merged:
        for number in numbers[bisect_left(numbers, top) : bisect_right(numbers, bottom)]:
            row = rows[number]
            for column in [one for one in row if left <= one <= right]:
                if (number, column) != (top, left):
                    del row[column]
    return {number: row for number, row in rows.items() if row}


def inline(element: Any) -> str:
    """The text of a string in a cell: itself or its runs, not how they are pronounced."""
    return "".join(
        part.text or ""
        for run in element
        if local(run) != "rPh"
        for part in ([run] if local(run) == "t" else run)
        if local(part) == "t"
    )


def local(element: Any) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def one_line(text: str) -> str:
    """A cell's text so that it makes no row and no column."""
    decoded = ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    return LINE_ENDS.sub(" ", decoded).replace("|", "\\|")


# --- numbers ---


@cache
def look_of(code: str) -> Look:
    """What of the number format `code` is kept; of its sections the first counts."""
    from openpyxl.styles.numbers import is_date_format, is_timedelta_format

    bare, signs = "", {"before": "", "after": ""}
    for part in FORMAT.finditer(code):
        if part["bare"] == ";":
            break
        side = "after" if re.search("[0#?]", bare) else "before"
        signs[side] = signs[side] or currency(part)
        bare += part["bare"] or ""
    return Look(
        is_date_format(code),
        bool(re.search("[hs]", bare, re.IGNORECASE)),
        is_timedelta_format(code),
        "%" in bare,
        **signs,
    )


def currency(part: re.Match[str]) -> str:
    """The currency sign that a part of a number format is, "" if it is none."""
    bracket = part["bracket"] or ""
    if bracket.startswith("$"):  # [$€-407], [$EUR ]; [$-409] is a language alone
        return bracket[1:].partition("-")[0].strip()
    words = (part["quoted"] or part["escaped"] or part["bare"] or "").strip()
    return words if any(unicodedata.category(letter) == "Sc" for letter in words) else ""


def shown(stored: str, look: Look, epoch: datetime) -> str:
    """A stored number with what its format says of it."""
    number = shortest(stored)
    if look.moment or look.duration:
        return moment(number, look, epoch) or number
    if look.percent:
        return percentage(number)
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    before = look.before + " " * look.before[-1:].isalpha()
    return f"{sign}{before}{digits}{look.after and ' ' + look.after}"


def shortest(stored: str) -> str:
    """The shortest number that reads back as the stored one.

    Whole numbers have no point; what is no number stays as it is.
    """
    try:
        number = float(stored)
    except ValueError:
        return stored
    if number.is_integer() and abs(number) < WHOLE:
        return str(int(number))
    return stored if stored.lstrip("-").isdigit() else repr(number)


def percentage(number: str) -> str:
    """0.25 -> 25%; a number that has no such form of moderate length stays as it is."""
    if not re.fullmatch(r"-?\d+(\.\d+)?(e[-+]\d+)?", number):
        return number
    hundredfold = f"{(Decimal(number) * 100).normalize():f}"
    exact = Decimal(hundredfold) / 100 == Decimal(number)
    return f"{hundredfold}%" if exact and len(hundredfold) <= len(number) + 8 else number


def moment(number: str, look: Look, epoch: datetime) -> str:
    """A number as a date, a time of the day or a duration; "" if it is none."""
    from openpyxl.utils.datetime import from_excel

    try:
        found = from_excel(float(number), epoch, timedelta=look.duration)
    except (ValueError, OverflowError):
        return ""
    if isinstance(found, timedelta):
        minutes, rest = divmod(abs(found), timedelta(minutes=1))
        clock = (datetime.min + rest).time()
        seconds = f"{clock:%S}" + f".{clock.microsecond // 1000:03}" * bool(clock.microsecond)
        sign = "-" * (found < timedelta())
        return f"{sign}{minutes // 60:02}:{minutes % 60:02}:{seconds}"
    if float(number) < 0:  # no date of a spreadsheet's
        return ""
    precision = "milliseconds" if found.microsecond else "seconds"
    if isinstance(found, time):
        return found.isoformat(precision)
    if found.time() == time() and not look.clock:
        return found.date().isoformat()
    return found.isoformat(" ", precision)
