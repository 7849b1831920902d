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


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """A number format, in so far as it is kept: a kind of moment, or signs around the number.

    `clock`: a moment has a time of the day; `before` and `after` are currency signs.
    """

    moment: bool = False
    clock: bool = False
    duration: bool = False
    percent: bool = False
    before: str = ""
    after: str = ""


def read_workbook(data: bytes) -> tuple[str, Places]:
    """The text of a workbook, its sheets as tables; and its places.

    A sheet is "## NAME" ("## NAME (hidden)" where it is), a line for its first row with a value, a
    rule, and a line for each further one; the place of a row has its number in the sheet. The
    text is empty if no cell has a value.

    Raises:
        Exception: whatever openpyxl raises at a file that is broken.

    Cost: 7 s and 300 MB for a million cells; 9 s for a million rows that only claim some.
    """
    from openpyxl import load_workbook

    book = load_workbook(io.BytesIO(data), read_only=True, keep_links=False)
    text, places, has_values = io.StringIO(), Places(), False
    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        for sheet in book.worksheets:
            reader = CellReader(sheet=sheet, strings=sheet._shared_strings, epoch=book.epoch)
            with parts.open(sheet._worksheet_path) as source:
                rows = read_rows(source, reader)
            name, hidden = LINE_ENDS.sub(" ", sheet.title), sheet.sheet_state != "visible"
            text.write("\n\n" if text.tell() else "")
            places.append((text.tell(), f"sheet {name}"))
            text.write(f"## {name}{' (hidden)' * hidden}")
            write_table(rows, name, text, places)
            if reader.unstored:
                text.write("\n\n")
                places.append((text.tell(), f"sheet {name}"))
                count = f"{reader.unstored} formula{'s' * (reader.unstored != 1)}"
                text.write(f"{count} without a stored value")
            has_values |= bool(rows)
    return (text.getvalue(), places) if has_values else ("", [])


def write_table(rows: Rows, name: str, text: io.StringIO, places: Places) -> None:
    """Writes the lines of a table to `text`, and to `places` where each row of the sheet begins."""
    columns = choose_columns({column for row in rows.values() for column in row})
    for index, number in enumerate(sorted(rows)):
        text.write("\n")
        places.append((text.tell(), f"sheet {name} row {number}"))
        text.write(f"| {' | '.join(rows[number].get(column, '') for column in columns)} |")
        if not index:
            text.write(f"\n| {' | '.join(['---'] * len(columns))} |")


def choose_columns(used: Iterable[int]) -> list[int]:
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


@dataclass(slots=True, eq=False, kw_only=True)
class CellReader:
    """Reads the cells of a sheet; counts the formulas that have no stored value (`unstored`).

    `formats` are by cell style, `shared` are the formulas that cells share, each with the cell that
    it is written for.
    """

    sheet: Any
    strings: Sequence[str]
    epoch: datetime
    formats: dict[int, NumberFormat] = field(default_factory=dict)
    shared: dict[str, tuple[str, str]] = field(default_factory=dict)
    unstored: int = 0

    def cell(self, element: Any) -> str:
        """The text of a cell, "" if it has none."""
        kind, value, formula = element.get("t", "n"), None, None
        for part in element:
            name = local_name(part)
            if name == "v":
                value = part.text or ""
            elif name == "is":
                value = inline_text(part)
            elif name == "f":
                formula = part
                if part.get("t") == "shared" and part.text:
                    self.shared[part.get("si", "")] = f"={part.text}", element.get("r", "")
        # an empty text is a stored value, too
        if formula is not None and not value and (kind != "str" or value is None):
            self.unstored += 1
            return escape_cell(self.formula(formula, element.get("r", "")))
        if not value:
            return ""
        if kind == "n":
            return format_number(value, self.format_of(int(element.get("s", 0))), self.epoch)
        if kind == "s":
            value = self.strings[int(value)]
        elif kind == "b":
            value = "TRUE" if int(value) else "FALSE"
        elif kind == "d":
            value = ISO.sub(" ", value)
        return escape_cell(value)

    def formula(self, element: Any, place: str) -> str:
        """The formula of the cell at `place`; one that cells share stands in the first alone."""
        from openpyxl.formula.translate import Translator

        if element.text or element.get("si", "") not in self.shared:
            return f"={element.text or ''}"
        return Translator(*self.shared[element.get("si", "")]).translate_formula(place)

    def format_of(self, style: int) -> NumberFormat:
        """The number format of a cell style."""
        from openpyxl.cell.read_only import ReadOnlyCell

        if style not in self.formats:
            try:
                code = ReadOnlyCell(self.sheet, 1, 1, None, "n", style).number_format
            except IndexError:  # a style that the file does not have
                code = "General"
            self.formats[style] = parse_format(code)
        return self.formats[style]


def read_rows(source: Any, reader: CellReader) -> Rows:
    """The cells with a value in a sheet's XML; cells merged into another have none."""
    from openpyxl.utils import coordinate_to_tuple, range_boundaries
    from openpyxl.xml.functions import iterparse

    rows, merged, number = Rows(), list[tuple[int, ...]](), 0
    for _, element in iterparse(source):
        if local_name(element) == "row":
            number, column = int(element.get("r", number + 1)), 0
            for cell in element:
                place = cell.get("r")
                column = coordinate_to_tuple(place)[1] if place else column + 1
                if (text := reader.cell(cell)).strip():
                    rows.setdefault(number, {})[column] = text
            element.clear()  # a sheet as a tree takes ten times its size
        elif local_name(element) == "mergeCell":
            merged.append(range_boundaries(element.get("ref")))
    numbers = sorted(rows)
    for left, top, right, bottom in merged:
        for number in numbers[bisect_left(numbers, top) : bisect_right(numbers, bottom)]:
            row = rows[number]
            for column in [column for column in row if left <= column <= right]:
                if (number, column) != (top, left):
                    del row[column]
    return {number: row for number, row in rows.items() if row}


def inline_text(element: Any) -> str:
    """The text of a string in a cell: itself or its runs, not how they are pronounced."""
    return "".join(
        part.text or ""
        for run in element
        if local_name(run) != "rPh"
        for part in ([run] if local_name(run) == "t" else run)
        if local_name(part) == "t"
    )


def local_name(element: Any) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def escape_cell(text: str) -> str:
    """A cell's text, escaped so that it makes no row and no column."""
    decoded = ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    return LINE_ENDS.sub(" ", decoded).replace("|", "\\|")


# --- numbers ---


@cache
def parse_format(code: str) -> NumberFormat:
    """The number format that is written as `code`; of its sections the first counts."""
    from openpyxl.styles.numbers import is_date_format, is_timedelta_format

    bare, signs = "", {"before": "", "after": ""}
    for part in FORMAT.finditer(code):
        if part["bare"] == ";":
            break
        side = "after" if re.search("[0#?]", bare) else "before"
        signs[side] = signs[side] or currency_sign(part)
        bare += part["bare"] or ""
    return NumberFormat(
        moment=is_date_format(code),
        clock=bool(re.search("[hs]", bare, re.IGNORECASE)),
        duration=is_timedelta_format(code),
        percent="%" in bare,
        before=signs["before"],
        after=signs["after"],
    )


def currency_sign(part: re.Match[str]) -> str:
    """The currency sign that a part of a number format is, "" if it is none."""
    bracket = part["bracket"] or ""
    if bracket.startswith("$"):  # [$€-407], [$EUR ]; [$-409] is a language alone
        return bracket[1:].partition("-")[0].strip()
    words = (part["quoted"] or part["escaped"] or part["bare"] or "").strip()
    return words if any(unicodedata.category(letter) == "Sc" for letter in words) else ""


def format_number(stored: str, number_format: NumberFormat, epoch: datetime) -> str:
    """A stored number with what its format says of it."""
    number = shortest_number(stored)
    if number_format.moment or number_format.duration:
        return format_moment(number, number_format, epoch) or number
    if number_format.percent:
        return format_percentage(number)
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    before = number_format.before + " " * number_format.before[-1:].isalpha()
    after = number_format.after and f" {number_format.after}"
    return f"{sign}{before}{digits}{after}"


def shortest_number(stored: str) -> str:
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


def format_percentage(number: str) -> str:
    """A share as a percentage: 0.25 -> 25%.

    A number that has no such form of moderate length stays as it is.
    """
    if not re.fullmatch(r"-?\d+(\.\d+)?(e[-+]\d+)?", number):
        return number
    hundredfold = f"{(Decimal(number) * 100).normalize():f}"
    exact = Decimal(hundredfold) / 100 == Decimal(number)
    return f"{hundredfold}%" if exact and len(hundredfold) <= len(number) + 8 else number


def format_moment(number: str, number_format: NumberFormat, epoch: datetime) -> str:
    """A number as a date, a time of the day or a duration; "" if it is none."""
    from openpyxl.utils.datetime import from_excel

    try:
        moment = from_excel(float(number), epoch, timedelta=number_format.duration)
    except (ValueError, OverflowError):
        return ""
    if isinstance(moment, timedelta):
        minutes, rest = divmod(abs(moment), timedelta(minutes=1))
        clock = (datetime.min + rest).time()
        seconds = f"{clock:%S}" + f".{clock.microsecond // 1000:03}" * bool(clock.microsecond)
        sign = "-" * (moment < timedelta())
        return f"{sign}{minutes // 60:02}:{minutes % 60:02}:{seconds}"
    if float(number) < 0:  # no date of a spreadsheet's
        return ""
    precision = "milliseconds" if moment.microsecond else "seconds"
    if isinstance(moment, time):
        return moment.isoformat(precision)
    if moment.time() == time() and not number_format.clock:
        return moment.date().isoformat()
    return moment.isoformat(" ", precision)
