"""Formats that are parsed in a child process.

Tested are what they say, and that no file can do more than be skipped.
"""

import datetime
import io
import os
import signal
import site
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import files
import openpyxl
import pptx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.child import Limits
from rag_memtok.config import Documents
from rag_memtok.datatypes import StoredDocument
from rag_memtok.documents.extract import (
    KINDS,
    extract_text,
    extractor_name,
    limits_for,
    missing_packages,
)
from rag_memtok.documents.office import mend, page_texts
from rag_memtok.documents.scan import read, scan
from rag_memtok.documents.sheets import format_percentage, read_workbook, shortest_number
from rag_memtok.documents.split import split
from rag_memtok.pipeline.compare import compare_with_files, root_for
from rag_memtok.store.store import create, open_store

DIALS = Documents()
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="macOS has neither /proc nor a limit of memory"
)
REPOSITORY = Path(__file__).parent.parent


# --- what they say ---


def test_pages_are_parted_and_cited(tmp_path):
    (tmp_path / "a.pdf").write_bytes(
        files.pdf(
            "The lamp was repaired in March.", "", "Its keeper wrote a letter.", "It is green."
        )
    )
    (source,) = scan([tmp_path], DIALS).files
    (document,) = read(source, DIALS).documents
    assert (
        document.text
        == "The lamp was repaired in March.\n\nIts keeper wrote a letter.\n\nIt is green."
    )
    chunks = split(document, 6, lambda text: len(text.split()))
    assert "".join(chunk.text for chunk in chunks) == document.text
    assert [chunk.locator for chunk in chunks] == ["page 1", "page 3", "page 4"]
    (whole,) = split(document, 99, lambda text: len(text.split()))
    assert whole.locator == "pages 1-4"


def test_rows_of_sheets_are_cited_even_after_blank_ones():
    rows = [["part", "price"], ["lid", 6.5], [None, None], ["seal", 9.25]]
    found = extract_text("xlsx", files.xlsx({"Spare parts": rows, "Empty": [], "2": [["last"]]}))
    places = {
        word: max(place for place in found.places if place[0] <= found.text.index(f"| {word}"))[1]
        for word in ("part", "lid", "seal", "last")
    }
    assert places == {
        "part": "sheet Spare parts row 1",
        "lid": "sheet Spare parts row 2",
        "seal": "sheet Spare parts row 4",
        "last": "sheet 2 row 1",
    }


def test_a_slide_cannot_pretend_to_be_another():
    found = extract_text(
        "pptx",
        files.pptx_of(
            ("First", "one"), ("Second", "<!-- Slide number: 9 -->\nnine"), ("Third", "three")
        ),
    )
    assert [locator for _, locator in found.places] == ["slide 1", "slide 2", "slide 3"]
    assert found.text[found.places[1][0] : found.places[2][0]].count("nine") == 1


def test_the_extractor_names_the_versions_its_text_depends_on():
    import markitdown
    import pypdf

    assert (
        extractor_name("pdf") == f"pdf/2 pypdf {pypdf.__version__}"
        and f"markitdown {markitdown.__version__}" in extractor_name("docx")
    )
    assert not any(missing_packages(kind) for kind in KINDS)


# --- PDF: what is on its pages


def shown_on(*contents: str) -> list[str]:
    """The texts of pages with these contents, each within BT and ET, in 12 point."""
    streams = [f"BT /F1 12 Tf {one} ET".encode("cp1252") if one else b"" for one in contents]
    return extract_text("pdf", files.pdf_of(streams)).text.split("\n\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        # in the order of the file, header and footer where they stand in it
        ("50 50 Td (page 1) Tj 0 750 Td (Draft) Tj 0 -90 Td (Body.) Tj", "page 1 Draft Body."),
        ("14 TL 50 700 Td (hyphen-) Tj T* (ated so\xad) Tj T* (ft) Tj", "hyphen- ated so\xad ft"),
        ("0 1 -1 0 90 90 Tm (up) Tj 1 0 0 1 50 700 Tm (flat) Tj", "up flat"),
        (".7 .7 -.7 .7 90 90 Tm (slanted) Tj 1 0 0 1 50 700 Tm (flat) Tj", "slanted flat"),
        ("-1 0 0 -1 300 100 Tm (overhead) Tj 1 0 0 1 50 700 Tm (flat) Tj", "overhead flat"),
        ("3 Tr 50 700 Td (under a scan) Tj", "under a scan"),
        ("50 700 Td (lid) Tj 200 0 Td (\x80 6.50) Tj", "lid \u20ac 6.50"),
        ("50 700 Td [(ker)-20(ning)-300(it)] TJ", "kerning it"),
        ("50 700 Td (12) Tj 14 0 Td (.50) Tj", "12.50"),
    ],
)  # fmt: skip
def test_the_text_of_a_page_is_what_the_file_says(content, text):
    (found,) = shown_on(content.replace("\x80", "\u20ac"))
    assert found.split() == text.split()


def changed_pdf(change, *pages: str) -> bytes:
    """A PDF, by `change(writer, its first page)`."""
    import pypdf

    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(files.pdf(*pages))), io.BytesIO()
    change(writer, writer.pages[0])
    writer.write(file)
    return file.getvalue()


def entries(**values):
    """A PDF's dictionary; a string that begins with / is a name."""
    from pypdf import generic

    def made(value):
        if isinstance(value, str):
            kind = generic.NameObject if value[:1] == "/" else generic.TextStringObject
            return kind(value)
        if isinstance(value, list):
            return generic.ArrayObject(map(made, value))
        return generic.NumberObject(value) if isinstance(value, int) else value

    return generic.DictionaryObject(
        {generic.NameObject(f"/{key}"): made(value) for key, value in values.items()}
    )


def annotated(*annotations: dict) -> bytes:
    """A PDF with these annotations on its first page."""

    def change(writer, page):
        page.update(entries(Annots=[writer._add_object(entries(**one)) for one in annotations]))

    return changed_pdf(change, "A form.", "The end.")


def test_a_ligature_stays_one():
    def change(writer, page):
        differences = entries(Type="/Encoding", Differences=[1, "/fi"])
        page["/Resources"]["/Font"]["/F1"].update(entries(Encoding=differences))

    assert (
        extract_text("pdf", changed_pdf(change, "The \x01eld office")).text
        == "The \ufb01eld office"
    )


def test_what_was_typed_into_a_page_stands_after_its_text():
    group = entries(FT="/Tx", T="owner", V="Aldo Ruiz")
    data = annotated(
        {"Subtype": "/Widget", "FT": "/Tx", "T": "name", "V": "Ines"},
        {"Subtype": "/Widget", "Parent": group},
        {"Subtype": "/Widget", "FT": "/Tx", "T": "empty"},
        {"Subtype": "/Widget", "FT": "/Btn", "T": "agreed", "V": "/Yes", "AS": "/Yes"},
        {"Subtype": "/Widget", "FT": "/Btn", "T": "refused", "V": "/Off", "AS": "/Off"},
        {"Subtype": "/Widget", "FT": "/Ch", "TU": "Colours", "T": "c1", "V": ["red", "blue"]},
        {"Subtype": "/Widget", "FT": "/Sig", "T": "signed", "V": entries(Type="/Sig")},
        {"Subtype": "/Text", "Contents": "Ask the keeper."},
        {"Subtype": "/FreeText", "Contents": "Typed on top."},
        {"Subtype": "/Text", "Contents": "Nobody sees this.", "F": 2},
        {"Subtype": "/Popup", "Contents": "The same again."},
        {"Subtype": "/Link"},
    )
    found = extract_text("pdf", data)
    assert found.text == (
        "A form.\n\nname: Ines\nowner: Aldo Ruiz\nagreed: Yes\nColours: red, blue\n"
        "Ask the keeper.\nTyped on top.\n\nThe end."
    )
    assert found.places == ((0, "page 1"), (found.text.index("The end"), "page 2"))
    assert found.unread == ()


def test_broken_notes_do_not_take_the_text_with_them():
    found = extract_text("pdf", annotated({"Subtype": "/Text", "F": "many", "Contents": "x"}))
    assert found.text == "A form.\n\nThe end."
    assert found.unread == (("page 1", "its form fields and notes are broken"),)


PICTURE = b"q 99 0 0 99 0 0 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x00 EI Q"


def test_pages_that_are_pictures_are_told_and_empty_ones_are_not(tmp_path):
    words = b"BT /F1 12 Tf 50 700 Td (Words.) Tj ET"
    data = files.pdf_of([words, PICTURE, b"", PICTURE, PICTURE, words + PICTURE])
    (tmp_path / "a.pdf").write_bytes(data)
    (source,) = scan([tmp_path], DIALS).files
    result = read(source, DIALS)
    assert [one.text for one in result.documents] == ["Words.\n\nWords."]
    (skipped,) = result.skipped
    assert skipped.path == "a.pdf#pages 2, 4-5" and "a picture without text" in skipped.reason
    found = extract_text("pdf", files.pdf_of([PICTURE]))
    assert found.problem.startswith("no text in it (page 1: a picture without text (pictures of")


def numbered_font(writer, page):
    """Adds F2, a font that numbers its signs and does not say which letters they are."""
    inner = entries(
        Type="/Font", Subtype="/CIDFontType2", BaseFont="/X",
        CIDSystemInfo=entries(Registry="Adobe", Ordering="Identity", Supplement=0),
        FontDescriptor=entries(Type="/FontDescriptor", FontName="/X", Flags=4),
    )  # fmt: skip
    font = entries(
        Type="/Font", Subtype="/Type0", BaseFont="/X", Encoding="/Identity-H",
        DescendantFonts=[writer._add_object(inner)],
    )  # fmt: skip
    page["/Resources"]["/Font"].update(entries(F2=writer._add_object(font)))


def test_signs_that_nothing_says_the_letters_of_are_told():
    odd = ") Tj /F2 12 Tf <002400250026> Tj ("
    found = extract_text("pdf", changed_pdf(numbered_font, odd, "The end."))
    assert found.text == "The end."
    assert found.unread == (("page 1", "its font does not say which letters it has"),)
    found = extract_text("pdf", changed_pdf(numbered_font, f"Some words.{odd}"))
    assert found.text.startswith("Some words.")
    ((page, reason),) = found.unread
    assert page == "page 1" and reason.startswith("3 of its letters are wrong: its font")


# --- spreadsheets: each value as it is stored ---


def workbook(fill) -> bytes:
    """A workbook, by `fill(book, its first sheet)`."""
    book, file = openpyxl.Workbook(), io.BytesIO()
    fill(book, book.active)
    book.save(file)
    return file.getvalue()


def sheet_of(rows: str, after: str = "", dimension: str = "A1:B2") -> bytes:
    """A workbook whose one sheet, "Raw", has these rows as raw XML."""
    data = workbook(lambda book, sheet: setattr(sheet, "title", "Raw"))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    entries["xl/worksheets/sheet1.xml"] = (
        f'<worksheet xmlns="{space}"><dimension ref="{dimension}"/><sheetData>{rows}</sheetData>'
        f"{after}</worksheet>"
    )
    return files.zipped(entries)


def table_of(data: bytes) -> list[str]:
    """The lines of a workbook's text."""
    return read_workbook(data)[0].split("\n")


def test_the_lab_book_says_what_the_lab_measured():
    rows = [
        ["Sample", "Reading", "Count", "Region"],
        ["s1", 3.14159265, 1200, "NA"],
        ["s2", 4.2e-07, None, "EU"],
        ["s3", 1234567.891234, 7, "N/A"],
    ]
    assert table_of(files.xlsx({"Lab": rows})) == [
        "## Lab",
        "| Sample | Reading | Count | Region |",
        "| --- | --- | --- | --- |",
        "| s1 | 3.14159265 | 1200 | NA |",
        "| s2 | 4.2e-07 |  | EU |",
        "| s3 | 1234567.891234 | 7 | N/A |",
    ]


@pytest.mark.parametrize(
    ("value", "code", "read"),
    [
        (1200.0, "General", "1200"),
        (1200, "0.00E+00", "1200"),
        (3.14159265, "0", "3.14159265"),
        (1234567.5, "#,##0,", "1234567.5"),
        (7, ";;;", "7"),
        (1e-7, "0.00", "1e-07"),
        (-0.5, "# ?/?", "-0.5"),
        (1e300, "0", "1e+300"),
        (0.25, "0%", "25%"),
        (0.07, "0.00%", "7%"),
        (0.1234567, "0%", "12.34567%"),
        (-1.5, "0%;[Red]-0%", "-150%"),
        (0.5, "0.0;-0%", "0.5"),
        (1e-30, "0%", "1e-30"),
        (0.25, '0.00" % of it"', "0.25"),
        (1200.5, '"$"#,##0.00_-', "$1200.5"),
        (1200.0, '#,##0.00 "€"', "1200 €"),
        (-3, "[$£-809]#,##0", "-£3"),
        (5, "[$EUR ]#,##0.00_-", "EUR 5"),
        (5, '#,##0.00\\ [$R$-416];[Red]"no "0', "5 R$"),
        (21.5, '0.0 "°C"', "21.5"),
        (39, "[$-409]0", "39"),
        (datetime.date(2026, 3, 12), "dd/mm/yyyy", "2026-03-12"),
        (datetime.datetime(2026, 3, 12, 9, 40), "yyyy-mm-dd h:mm", "2026-03-12 09:40:00"),
        (datetime.datetime(2026, 3, 12, 9, 40), "mmm yy", "2026-03-12 09:40:00"),
        (datetime.datetime(2026, 3, 12), "yyyy-mm-dd h:mm", "2026-03-12 00:00:00"),
        (datetime.datetime(2026, 3, 12, 9, 40, 0, 250000), "h:mm", "2026-03-12 09:40:00.250"),
        (datetime.time(9, 40), "h:mm AM/PM", "09:40:00"),
        (datetime.timedelta(hours=26, minutes=30), "[h]:mm", "26:30:00"),
        (datetime.timedelta(minutes=-90), "[h]:mm:ss", "-01:30:00"),
        (-4, "yyyy-mm-dd", "-4"),
        (99999999, "yyyy-mm-dd", "99999999"),
        (True, "General", "TRUE"),
        (False, "0", "FALSE"),
        ("#DIV/0!", "General", "#DIV/0!"),
        ("007", "@", "007"),
        ("3.10", "General", "3.10"),
        ("  set in", "General", "  set in"),
        ("n/a", "General", "n/a"),
        ("NaN", "General", "NaN"),
        ("None", "General", "None"),
    ],
)
def test_a_cell_is_what_is_stored(value, code, read):
    def fill(book, sheet):
        sheet["A1"], sheet["B1"] = "x", value
        sheet["B1"].number_format = code

    assert read_workbook(workbook(fill))[0].split("\n")[1] == f"| x | {read} |"


def test_numbers_are_those_of_the_file():
    stored = ["0.30000000000000004", "0.10000000000000001", "12345678901234567890", "1.0", "3E-2"]
    cells = (
        "".join(f"<c><v>{one}</v></c>" for one in stored) + '<c t="d"><v>2026-03-12T09:40</v></c>'
    )
    read = "| 0.30000000000000004 | 0.1 | 12345678901234567890 | 1 | 0.03 | 2026-03-12 09:40 |"
    assert table_of(sheet_of(f"<row>{cells}</row>"))[1] == read


def test_dates_count_from_1904_where_the_workbook_says_so():
    def fill(book, sheet):
        book.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904
        sheet.append(["x", datetime.date(2026, 3, 12)])

    assert table_of(workbook(fill))[1] == "| x | 2026-03-12 |"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_reads_back_as_itself(value):
    for text in (repr(value), f"{value:.17g}"):
        assert float(shortest_number(text)) == value and len(shortest_number(text)) <= len(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_percentage_reads_back_as_itself(value):
    shown = format_percentage(shortest_number(repr(value)))
    number = Decimal(shown.removesuffix("%")) / (100 if "%" in shown else 1)
    assert float(number) == value


def test_bars_and_line_ends_in_a_cell_make_no_column_and_no_row():
    rows = [["a|b", "one\ntwo\r\nthree"], ["c\\|d", "x\u2028y_x000D_\nz"]]
    assert table_of(files.xlsx({"S|T": rows})) == [
        "## S|T",
        "| a\\|b | one two three |",
        "| --- | --- |",
        "| c\\\\|d | x y z |",
    ]


def test_a_formula_gives_its_stored_value_or_itself():
    rows = """<row r="1"><c r="A1"><v>2</v></c><c r="B1"><f>A1*2</f><v>4</v></c>
        <c r="C1" t="str"><f>A1&amp;"|"</f><v>2|</v></c><c r="D1" t="str"><f>""</f><v></v></c>
        <c r="E1" t="b"><f>A1=2</f><v>1</v></c><c r="F1" t="e"><f>1/0</f><v>#DIV/0!</v></c></row>
        <row r="2"><c r="A2"><f>A1+B1</f></c><c r="B2"><f t="shared" si="0" ref="B2:B3">A1*2</f>
        <v>4</v></c></row><row r="3"><c r="A3"><f>A1&amp;"|"</f><v></v></c>
        <c r="B3"><f t="shared" si="0"/></c></row>"""
    assert table_of(sheet_of(rows)) == [
        "## Raw",
        "| 2 | 4 | 2\\| |  | TRUE | #DIV/0! |",
        "| --- | --- | --- | --- | --- | --- |",
        "| =A1+B1 | 4 |  |  |  |  |",
        '| =A1&"\\|" | =A2*2 |  |  |  |  |',
        "",
        "3 formulas without a stored value",
    ]


def test_what_a_program_wrote_says_each_sheets_formulas():
    found = extract_text("xlsx", files.xlsx({"One": [["a", "=B1*2"]], "Two": [["b", 1]]}))
    assert found.text == (
        "## One\n| a | =B1*2 |\n| --- | --- |\n\n1 formula without a stored value\n\n"
        "## Two\n| b | 1 |\n| --- | --- |"
    )
    told = {locator: found.text[start:].split("\n")[0] for start, locator in found.places}
    assert told == {
        "sheet One row 1": "| a | =B1*2 |",
        "sheet One": "1 formula without a stored value",
        "sheet Two": "## Two",
        "sheet Two row 1": "| b | 1 |",
    }


def test_merged_cells_have_their_value_once():
    rows = """<row r="1"><c r="A1" t="inlineStr"><is><r><t>Yi</t></r><r><t>eld</t></r>
        <rPh><t>jiːld</t></rPh></is></c>
        <c r="B1" t="inlineStr"><is><t>left over</t></is></c><c r="C1"><v>3</v></c></row>
        <row r="2"><c r="A2"><v>9</v></c><c r="C2"><v>4</v></c></row>"""
    merged = '<mergeCells count="1"><mergeCell ref="A1:B2"/></mergeCells>'
    assert table_of(sheet_of(rows, merged))[1:] == [
        "| Yield |  | 3 |",
        "| --- | --- | --- |",
        "|  |  | 4 |",
    ]


def test_empty_headers_stay_empty_and_hidden_sheets_are_named_so():
    def fill(book, sheet):
        sheet.title = "Shown"
        sheet["B2"], sheet["D2"], sheet["A5"] = "part", "price", "lid"
        sheet["D5"], sheet["D9"], sheet["E9"] = 6.5, "  ", None
        book.create_sheet("Nothing")
        for name, state in (("Costs", "hidden"), ("Secret", "veryHidden")):
            hidden = book.create_sheet(name)
            hidden["A1"], hidden.sheet_state = "x", state

    found = extract_text("xlsx", workbook(fill))
    assert found.text.split("\n") == [
        "## Shown",
        "|  | part |  | price |",
        "| --- | --- | --- | --- |",
        "| lid |  |  | 6.5 |",
        "",
        "## Nothing",
        "",
        "## Costs (hidden)",
        "| x |",
        "| --- |",
        "",
        "## Secret (hidden)",
        "| x |",
        "| --- |",
    ]
    assert [locator for _, locator in found.places] == [
        "sheet Shown",
        "sheet Shown row 2",
        "sheet Shown row 5",
        "sheet Nothing",
        "sheet Costs",
        "sheet Costs row 1",
        "sheet Secret",
        "sheet Secret row 1",
    ]
    start = dict((locator, start) for start, locator in found.places)["sheet Shown row 5"]
    assert found.text[start:].startswith("| lid |")


def test_a_sheet_is_as_large_as_what_is_in_it():
    rows = """<row r="1"><c r="A1"><v>1</v></c><c r="XFD1"><v>2</v></c></row>
        <row r="2"><c r="XFC2" s="0"/></row><row r="1048576"><c r="B1048576"><v>3</v></c></row>"""
    found = extract_text("xlsx", sheet_of(rows, dimension="A1:XFD1048576"), Limits(seconds=5))
    assert found.text.split("\n") == [
        "## Raw",
        "| 1 |  |  | 2 |",
        "| --- | --- | --- | --- |",
        "|  | 3 |  |  |",
    ]
    assert found.places[-1][1] == "sheet Raw row 1048576"


def test_a_workbook_without_a_value_is_skipped():
    assert extract_text("xlsx", files.xlsx({"Empty": []})).problem.startswith("no text in it")


def test_the_extractor_of_sheets_names_what_reads_them():
    assert extractor_name("xlsx") == f"xlsx/2 openpyxl {openpyxl.__version__}"


# --- Word files, slides, books: what is there, once ---

WORD = f'xmlns:w="{files.WORD}" xmlns:r="{files.OFFICE}"'
MARKS = "http://schemas.openxmlformats.org/markup-compatibility/2006"
SHAPE = "http://schemas.microsoft.com/office/word/2010/wordprocessingShape"


def run_of(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def paragraph(*runs: str) -> str:
    return f"<w:p>{''.join(runs)}</w:p>"


def table(*rows: str) -> str:
    """A table; a row is the inside of its cells, with "&&" between them."""
    cells = [f"<w:tc>{cell}</w:tc>" for row in rows for cell in row.split("&&")]
    width = rows[0].count("&&") + 1
    lines = ["".join(cells[at : at + width]) for at in range(0, len(cells), width)]
    return f"<w:tbl>{''.join(f'<w:tr>{line}</w:tr>' for line in lines)}</w:tbl>"


def field_of(instruction: str, result: str) -> str:
    """A field of several runs, as Word writes a page number."""
    marks = [f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>' for kind in ("begin", "separate")]
    end = '<w:r><w:fldChar w:fldCharType="end"/></w:r>'
    return (
        f"{marks[0]}<w:r><w:instrText>{instruction}</w:instrText></w:r>{marks[1]}"
        f"{run_of(result)}{end}"
    )


def word_file(body: str, **parts: str) -> bytes:
    """A Word file: the inside of its body, and of parts such as `header1`."""
    document = f"<w:document {WORD}><w:body>{body}</w:body></w:document>"
    entries: dict[str, str | bytes] = {"word/document.xml": document}
    with zipfile.ZipFile(io.BytesIO(files.docx())) as file:
        entries = {name: file.read(name) for name in file.namelist()} | entries
    related = ""
    for name, inside in parts.items():
        kind = name.rstrip("0123456789")
        tag = {"header": "hdr", "footer": "ftr"}.get(kind, kind)
        entries[f"word/{name}.xml"] = f"<w:{tag} {WORD}>{inside}</w:{tag}>"
        related += f'<Relationship Id="{name}" Type="{files.OFFICE}/{kind}" Target="{name}.xml"/>'
    entries["word/_rels/document.xml.rels"] = (
        f'<Relationships xmlns="{files.OPEN}/relationships">{related}</Relationships>'
    )
    return files.zipped(entries)


def word(body: str, **parts: str) -> str:
    """The text of such a Word file."""
    found = KINDS["docx"].parse(word_file(body, **parts))
    text, places = found.text, found.places
    ends = [at + 1 for at, letter in enumerate(text) if letter == "\n"]
    assert [start for start, _ in places] == [0, *ends]
    return text


def section(*references: str, more: str = "") -> str:
    """The end of a section; a reference is "header1 default"."""
    made = [
        f'<w:{name.rstrip("0123456789")}Reference w:type="{kind}" r:id="{name}"/>'
        for name, kind in map(str.split, references)
    ]
    return f"<w:sectPr>{''.join(made)}{more}</w:sectPr>"


def test_a_headers_and_a_footers_text_is_there_once():
    draft, company = paragraph(run_of("Draft of 3 May")), paragraph(run_of("Quay Ltd"))
    body = (
        paragraph(run_of("One.")) + f"<w:p><w:pPr>{section('header1 default', 'footer1 default')}"
        f"</w:pPr></w:p>"
        + paragraph(run_of("Two."))
        + section("header2 default", "header3 default")
    )
    text = word(
        body,
        header1=draft,
        header2=draft,
        header3=table(f"{paragraph(run_of('Sheet'))}&&{paragraph(run_of('Q-17'))}"),
        footer1=company + paragraph(run_of("Registered at Port Ellen")),
    )
    assert text == (
        "Draft of 3 May\n\nSheet | Q-17\n\nOne.\n\nTwo.\n\nQuay Ltd\nRegistered at Port Ellen"
    )


@pytest.mark.parametrize(
    ("more", "settings", "shown"),
    [
        ("", "", ["Every"]),
        ("<w:titlePg/>", "", ["First", "Every"]),
        ('<w:titlePg w:val="0"/>', "<w:evenAndOddHeaders/>", ["Every", "Even"]),
    ],
)
def test_headers_that_no_page_shows_are_left_out(more, settings, shown):
    body = paragraph(run_of("Body.")) + section(
        "header1 first", "header2 default", "header3 even", more=more
    )
    headers = {
        f"header{number}": paragraph(run_of(name))
        for number, name in enumerate(("First", "Every", "Even"), 1)
    }
    assert page_texts(word_file(body, settings=settings, **headers)) == (shown, [])


def test_a_header_is_read_as_pages_show_it():
    header = (
        paragraph(run_of("Old"), f"<w:del>{run_of('gone')}</w:del>", "<w:r><w:tab/></w:r>")
        + paragraph('<w:ins w:id="1">' + run_of("New ") + "</w:ins>", run_of("name"))
        + paragraph(box(choice=run_of("Boxed"), old=run_of("Boxed")))
        + paragraph('<w:r><w:pict><v:shape xmlns:v="urn:schemas-microsoft-com:vml"><v:textpath '
                    'string="CONFIDENTIAL"/></v:shape></w:pict></w:r>')
        + "<w:sdt><w:sdtContent>" + paragraph(run_of("Held")) + "</w:sdtContent></w:sdt>"
    )  # fmt: skip
    footers = {
        "footer1": paragraph(run_of("- "), field_of(" PAGE ", "7"), run_of(" -")),
        "footer2": paragraph('<w:fldSimple w:instr="NUMPAGES">' + run_of("9") + "</w:fldSimple>"),
        "footer3": paragraph(run_of("Page "), field_of(" PAGE ", "7"), run_of(" of the bylaws")),
    }
    ends = section("header1 default", *(f"{name} default" for name in footers))
    text = word(paragraph(run_of("Body.")) + ends, header1=header, **footers)
    assert text == "Old\nNew name\nBoxed\nCONFIDENTIAL\nHeld\n\nBody.\n\nPage 7 of the bylaws"


def box(choice: str = "", old: str = "") -> str:
    """A run with a text box, as new and as old readers know it."""
    inside = f"<w:txbxContent>{paragraph(choice)}</w:txbxContent>"
    new = f'<w:drawing><s:txbx xmlns:s="{SHAPE}">{inside}</s:txbx></w:drawing>'
    shape = '<v:shape xmlns:v="urn:schemas-microsoft-com:vml"><v:textbox><w:txbxContent>'
    end = "</w:txbxContent></v:textbox></v:shape>"
    fallback = f"<w:pict>{shape}{paragraph(old)}{end}</w:pict>" if old else ""
    return (
        f'<w:r><m:AlternateContent xmlns:m="{MARKS}"><m:Choice Requires="wps">{new}</m:Choice>'
        f"<m:Fallback>{fallback}</m:Fallback></m:AlternateContent></w:r>"
    )


LOST = {
    "moved": (f'<w:moveTo w:id="1">{run_of("It moved here")}</w:moveTo>', "It moved here"),
    "moved away": (f'{run_of("a")}<w:moveFrom w:id="1">{run_of("It was")}</w:moveFrom>', "a"),
    "deleted": (f"{run_of('a')}<w:del><w:r><w:delText>old</w:delText></w:r></w:del>", "a"),
    "field": (f'<w:fldSimple w:instr="DATE">{run_of("3 May")}</w:fldSimple>', "3 May"),
    "long field": (field_of(" REF b ", "see 4"), "see 4"),
    "XML": (f'<w:customXml w:element="x">{run_of("in XML")}</w:customXml>', "in XML"),
    "direction": (f'<w:bdo w:val="ltr">{run_of("4-5")}</w:bdo>', "4-5"),
    "ruby": (
        f"<w:r><w:ruby><w:rt>{run_of('ka')}</w:rt><w:rubyBase>{run_of('火')}</w:rubyBase></w:ruby>"
        "</w:r>",
        "火",
    ),
    "line end": ("<w:r><w:t>one</w:t><w:cr/><w:t>two</w:t></w:r>", "one  \ntwo"),
    "tab": ("<w:r><w:t>one</w:t><w:ptab/><w:t>two</w:t></w:r>", "one two"),
    "box": (box(run_of("bring gloves"), run_of("bring gloves")), "bring gloves"),
    "new box": (box(run_of("bring a lamp")), "bring a lamp"),
    "drawn box": (
        f'<w:r><w:drawing><s:txbx xmlns:s="{SHAPE}"><w:txbxContent>{paragraph(run_of("x"))}'
        "</w:txbxContent></s:txbx></w:drawing></w:r>",
        "x",
    ),
    "signs": (run_of("order_17 * 2_000 | 3"), "order_17 * 2_000 | 3"),
}  # fmt: skip


def test_what_stands_in_a_word_file_is_read_once():
    found = word("".join(paragraph(body) for body, _ in LOST.values()))
    assert dict(zip(LOST, found.split("\n\n"), strict=True)) == {
        name: read for name, (_, read) in LOST.items()
    }


def test_tables_of_a_word_file_keep_their_columns():
    inner = table(*(f"{paragraph(run_of(a))}&&{paragraph(run_of(b))}" for a, b in ("KV", "1|")))
    gone = "<w:tr><w:trPr><w:del/></w:trPr><w:tc>" + paragraph(run_of("gone")) + "</w:tc></w:tr>"
    inner = inner.replace("</w:tbl>", f"{gone}</w:tbl>")
    outer = table(
        f"{paragraph(run_of('a|b'))}&&{paragraph(run_of('c'))}",
        f"{paragraph(run_of('Oak'))}&&{paragraph(run_of('14'))}{inner}{paragraph()}",
    )
    rows = ["|  |  |", "| --- | --- |", "| a\\|b | c |", "| Oak | 14  K / V  1 / \\| |"]
    assert word(outer).split("\n") == rows


def test_a_footnote_stands_where_it_is_referred_to_and_is_there():
    body = paragraph(run_of("Five years."), '<w:r><w:footnoteReference w:id="2"/></w:r>')
    notes = f'<w:footnote w:id="2">{paragraph(run_of("Or three."))}</w:footnote>'
    text = word(body, footnotes=notes)
    assert text.startswith("Five years.[") and text.count("Or three.") == 1


def test_an_equation_is_read_beside_what_was_mended():
    math = "http://schemas.openxmlformats.org/officeDocument/2006/math"
    equation = f'<m:oMath xmlns:m="{math}"><m:r><m:t>|a|+1</m:t></m:r></m:oMath>'
    body = paragraph(run_of("So"), "<w:r><w:ptab/></w:r>") + paragraph(equation)
    assert word(body) == "So\n\n$|a|+1$"
    # in LaTeX "\|" is another sign
    cells = table(f"{paragraph(run_of('b|c'))}{paragraph(equation)}")
    assert word(cells).split("\n")[-1] == "| b\\|c  $|a|+1$ |"


def test_a_word_file_with_nothing_to_mend_is_left_as_it_is():
    data = files.docx("one", body=table(f"{paragraph(run_of('a'))}&&{paragraph(run_of('b'))}"))
    assert mend(data) is data


def test_slides_have_their_tables_notes_and_groups():
    deck, file = pptx.Presentation(), io.BytesIO()
    for title in ("Prices_1", "Second"):
        deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = title
    first, second = deck.slides
    grid = first.shapes.add_table(2, 2, 0, 2_000_000, 5_000_000, 1_000_000).table
    for at, text in enumerate(["lid_1", "a|b", "3.14159265", "two\nlines"]):
        grid.cell(*divmod(at, 2)).text = text
    first.notes_slide.notes_text_frame.text = "Say: it is 12_000."
    group = second.shapes.add_group_shape()
    group.shapes.add_textbox(0, 9_000_000, 10, 10).text_frame.text = "grouped\vbelow"
    deck.save(file)
    found = extract_text("pptx", file.getvalue())
    lines = found.text.split("\n")
    assert [line for line in lines if line.startswith("|")] == [
        "| lid_1 | a\\|b |",
        "| --- | --- |",
        "| 3.14159265 | two lines |",
    ]
    assert "# Prices_1" in lines and "Say: it is 12_000." in lines
    assert lines[lines.index("grouped") + 1] == "below"
    (_, start), (_, other) = sorted((locator, start) for start, locator in found.places)
    assert start < found.text.index("Say:") < other < found.text.index("grouped")


def test_a_slides_shape_with_an_equation_is_read():
    data = files.pptx_of(("Title", "Force in N"))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries: dict[str, str | bytes] = {name: file.read(name) for name in file.namelist()}
    slide = str(entries["ppt/slides/slide1.xml"], "utf-8")
    start = slide.index("<p:sp>", slide.index("<p:sp>") + 1)
    end = slide.index("</p:sp>", start) + len("</p:sp>")
    both = (
        f'<m:AlternateContent xmlns:m="{MARKS}"><m:Choice Requires="a14">{slide[start:end]}'
        "</m:Choice><m:Fallback/></m:AlternateContent>"
    )
    entries["ppt/slides/slide1.xml"] = slide[:start] + both + slide[end:]
    assert extract_text("pptx", files.zipped(entries)).text.split("\n")[-1] == "Force in N"


def test_a_books_chapters_stand_in_its_order_and_signs_stay():
    book = files.epub("The_Ferry", "<h1>Last</h1><p>It sinks.</p>", "<p>Ida &amp; pump_17 * 2</p>")
    with zipfile.ZipFile(io.BytesIO(book)) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    package = entries["OPS/book.opf"].decode().replace('href="c1.xhtml"', 'href="a%20b.xhtml"')
    spine = '<itemref idref="c0.xhtml"/>', '<itemref idref="c1.xhtml"/>'
    entries["OPS/book.opf"] = package.replace("".join(spine), "".join(spine[::-1])).encode()
    entries["OPS/a b.xhtml"] = entries.pop("OPS/c1.xhtml").replace(
        b"<body>", b"<head><style>p {}</style></head><body>"
    )
    assert extract_text("epub", files.zipped(entries)).text == (
        "**Title:** The_Ferry\n\nIda & pump_17 * 2\n\n# Last\n\nIt sinks."
    )


# --- what cannot be read ---


def encrypted() -> bytes:
    """A PDF that opens only with a password."""
    import pypdf

    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(files.pdf("secret"))), io.BytesIO()
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(file)
    return file.getvalue()


def zip_bomb() -> bytes:
    """A docx of under 1 MB whose document has 600 MB."""
    file = io.BytesIO(files.docx("text"))
    with (
        zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("word/more.xml", "w") as entry,
    ):
        for _ in range(600):
            entry.write(b" " * (1 << 20))
    return file.getvalue()


def lying_zip() -> bytes:
    """A docx that says that its document of 5 MB has 100 bytes."""
    data = files.docx("x" * 5_000_000)
    size = next(
        entry.file_size
        for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()
        if "document" in entry.filename
    )
    return data.replace(struct.pack("<I", size), struct.pack("<I", 100))


BROKEN = {
    "empty.pdf": (lambda: b"", "empty"),
    "text.pdf": (lambda: b"This is no PDF at all.", "not a readable pdf file"),
    "cut.pdf": (lambda: files.pdf("one", "two")[:300], "not a readable pdf file"),
    "scanned.pdf": (lambda: files.pdf("", ""), "no text in it"),
    "encrypted.pdf": (encrypted, "encrypted"),
    "endless.pdf": (lambda: files.pdf_of([b"(a) Tj " * 20_000_000]), "not a readable pdf file"),
    "text.docx": (lambda: b"This is no zip file.", "not a readable docx file"),
    "bomb.docx": (zip_bomb, "unpacks to 600 MB, over the limit of 512 MB"),
    "lying.docx": (lying_zip, "not a readable docx file"),
    "deep.docx": (
        lambda: files.docx(body="<w:smartTag>" * 5000 + "</w:smartTag>" * 5000),
        "nested too deeply",
    ),
    "other.xlsx": (lambda: files.docx("a Word file"), "not a readable xlsx file"),
    "cut.epub": (lambda: files.epub("a", "b")[:-30], "not a readable epub file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_hostile_files_are_skipped_with_their_reason(tmp_path, name):
    make, reason = BROKEN[name]
    (tmp_path / name).write_bytes(make())
    (source,) = scan([tmp_path], DIALS).files
    result = read(source, DIALS)
    assert not result.documents and [item.path for item in result.skipped] == [name]
    assert (
        reason in result.skipped[0].reason
        and "\n" not in result.skipped[0].reason
        and len(result.skipped[0].reason) < 200
    )


def test_halves_of_characters_become_text():
    from rag_memtok.documents.extract import _clean

    assert _clean("a\ud83d\ude00b\ud800c\0") == "a😀b\ufffdc\ufffd"


# --- limits ---

# half a minute, without a limit
SLOW = files.pdf_of([b"BT /F1 12 Tf 50 700 Td" + b" (a) Tj" * 200_000 + b" ET"] * 5)


def test_the_time_limit_ends_it():
    found = extract_text("pdf", SLOW, Limits(seconds=1))
    assert found.problem == "takes more than 1 s to read"
    assert limits_for(5_000_000).seconds > limits_for(5_000).seconds >= 20


@linux
def test_the_memory_limit_ends_it():
    body = files.docx(body="<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 1_000_000)
    assert (
        extract_text("docx", body, Limits(memory=512 << 20)).problem
        == "takes more than 512 MB of memory to read"
    )


def test_the_output_limit_ends_it():
    data = files.pdf("a" * 5000)
    assert (
        extract_text("pdf", data, Limits(output=5000)).problem
        == "its text is over the limit of 5,000 bytes"
    )
    assert len(extract_text("pdf", data, Limits(output=5200)).text) == 5000


@linux
def test_an_interrupt_ends_the_child():
    script = textwrap.dedent("""
        import sys; sys.path[:0] = sys.argv[1:]
        import test_extract
        print("ready", flush=True)
        test_extract.extract_text("pdf", test_extract.SLOW)
    """)
    command = [sys.executable, "-c", script, str(REPOSITORY), str(REPOSITORY / "tests")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout and parent.stdout.readline() == "ready\n"
        tasks = Path(f"/proc/{parent.pid}/task")
        while len(list(tasks.iterdir())) == 1:  # a thread feeds the child, once it runs
            time.sleep(0.05)
        children = (tasks / str(parent.pid) / "children").read_text().split()
        assert children
        parent.send_signal(signal.SIGINT)
        parent.wait(timeout=600)
        assert "KeyboardInterrupt" in parent.stderr.read()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_module_in_the_working_folder_is_never_run(tmp_path, monkeypatch):
    for name in ("pypdf", "json", "zipfile"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert extract_text("pdf", files.pdf("one")).text == "one"
    assert not (tmp_path / "proof").exists()


# --- what is not installed, or another version of it ---


def opened_by_no_password() -> bytes:
    """A PDF that AES keeps from being printed; everybody may read it."""
    import pypdf

    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(files.pdf("secret"))), io.BytesIO()
    writer.encrypt("", "owner", algorithm="RC4-128")
    writer.write(file)
    aes = b"/V 4\n/R 4\n/CF << /A << /CFM /AESV2 >> >> /StmF /A /StrF /A"
    before, _, after = file.getvalue().partition(b"/V 2\n/R 3")
    rest, _, table = after.partition(b"startxref\n")
    moved = int(table.split()[0]) + len(aes) - len(b"/V 2\n/R 3")
    return before + aes + rest + b"startxref\n%d\n%%%%EOF\n" % moved


@pytest.mark.parametrize("algorithm", ["AES-128", "AES-256"])
def test_a_pdf_under_aes_that_opens_without_a_password_is_read(algorithm):
    import pypdf

    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(files.pdf("a flat rate"))), io.BytesIO()
    writer.encrypt("", "owner", algorithm=algorithm)
    writer.write(file)
    assert extract_text("pdf", file.getvalue()).text == "a flat rate"


def test_a_pdf_that_needs_another_package_says_which():
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "sys.modules |= {'cryptography': None, 'Crypto': None}\n"
        "import test_extract, rag_memtok.documents.extract as extract\n"
        "print(extract._parse('pdf', test_extract.opened_by_no_password(), 1 << 30).problem)"
    )
    command = [sys.executable, "-c", script, str(REPOSITORY), str(REPOSITORY / "tests")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("encrypted with AES: pip install cryptography"), done.stderr


def test_without_the_extra_a_file_is_skipped_with_what_to_install(tmp_path):
    installed, docs = tmp_path / "installed", tmp_path / "docs"
    installed.mkdir()
    docs.mkdir()
    for folder in site.getsitepackages():
        for entry in os.scandir(folder):
            if (
                not entry.name.startswith(("pypdf", "mammoth"))
                and not (installed / entry.name).exists()
            ):
                (installed / entry.name).symlink_to(entry.path)
    (docs / "a.pdf").write_bytes(files.pdf("one"))
    (docs / "a.docx").write_bytes(files.docx("one"))
    (docs / "a.md").write_text("one")
    script = textwrap.dedent("""
        import sys; sys.path[:0] = sys.argv[1:3]
        from pathlib import Path
        from rag_memtok.config import Documents
        from rag_memtok.documents.scan import scan
        found = scan([Path(sys.argv[3])], Documents())
        skipped = (f"{item.path}: {item.reason}" for item in found.skipped)
        print([source.file for source in found.files], *skipped, sep="\\n")
    """)
    command = [sys.executable, "-I", "-S", "-c", script, str(REPOSITORY), str(installed), str(docs)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == [
        "['a.md']",
        "a.docx: needs mammoth: pip install 'rag-memtok[office]'",
        "a.pdf: needs pypdf: pip install 'rag-memtok[pdf]'",
    ]


def test_another_version_of_the_extractor_is_incomparable(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("same", "older", "broken"):
        (docs / f"{name}.pdf").write_bytes(files.pdf(name))
    found = scan([docs], DIALS)
    create(tmp_path / "store", {"model": "toy"})
    with open_store(tmp_path / "store", write=True) as store:
        for source in found.files:
            (document,) = read(source, DIALS).documents
            stored = StoredDocument(
                document.root,
                document.file,
                document.path,
                document.sha256,
                source.sha256,
                0,
                len(document.text),
                document.extractor,
            )
            older = (
                replace(stored, extractor="pdf/1 pypdf 4.0.0", sha256=source.sha256)
                if "older" in source.file
                else stored
            )
            store.replace_file(source.root, source.file, [older], [])
        (docs / "broken.pdf").write_bytes(b"no PDF any more")
        told = {
            finding.subject: (finding.kind, finding.reason)
            for finding in compare_with_files(
                store, root_for(store, docs), scan([docs], DIALS), DIALS
            )
        }
    assert set(told) == {"older.pdf", "broken.pdf"} and {kind for kind, _ in told.values()} == {
        "incomparable"
    }
    assert (
        "by pdf/1 pypdf 4.0.0, here by" in told["older.pdf"][1]
        and "not a readable pdf" in told["broken.pdf"][1]
    )
