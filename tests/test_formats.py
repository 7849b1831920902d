"""What files of many formats say, from notebooks and calendars to RTF, and what is refused."""

import re
import shutil
from email.message import EmailMessage
from pathlib import Path

import files
import pytest
import small

from rag_memtok.child import Limits
from rag_memtok.config import Documents
from rag_memtok.documents.extract import extract_text
from rag_memtok.documents.headings import headings_above
from rag_memtok.documents.loaders import LOADERS, Part
from rag_memtok.documents.scan import read, restores_exactly, scan
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.pipeline import api

CASES = Path(__file__).parent / "cases" / "formats"
DIALS = Documents()
RIGHT = {
    "calendar.ics": """\
Kiln opening
When: Saturday 14 March 2026, 10:00 to 11:30 (Europe/Berlin)
Where: Workshop, Tannery Lane 7

Bring gloves; the shelves are hot.
Tea afterwards.""",
    "mail.eml": "Subject: Rent\nFrom: a@example.org\n\nThe rent is due on the 3rd.",
    "nb.ipynb": "# Growth study\nThe best light was 14 hours a day.\n\n```\nx = 3\n```",
    "noext": "The extension-less note: the spare fuse is in drawer two.\n",
    "note.rtf": "The kettle is broken.",
    "notes.mdx": "# MDX\n\nThe kiln is fired on Tuesdays.\n",
    "page.xhtml": "The mill closes at five.",
    "subs.srt": "1\n00:00:01,000 --> 00:00:02,000\nHello there.\n",
}


def test_the_samples():
    found = scan([CASES], DIALS)
    assert not found.skipped
    texts = {one.file: read(one, DIALS).documents[0].text for one in found.files}
    assert texts == RIGHT


def test_texts_among_them_come_back_as_the_very_file(tmp_path, model_folder):
    docs = tmp_path / "docs"
    shutil.copytree(CASES, docs)
    small.written(docs, {"a.rst": "Lamp\n====\n", "b.tex": "\\section{Fan}\n", "c.vtt": "WEBVTT\n"})
    config = small.dials(tmp_path / "store", model_folder)
    assert not api.ingest([docs], config).skipped
    assert not api.restore(tmp_path / "back", config).failed
    back = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    exact = {"a.rst", "b.tex", "c.vtt", "noext", "notes.mdx", "subs.srt"}
    assert {name for name in back if (docs / name).exists()} == exact
    assert all(back[name] == (docs / name).read_bytes() for name in exact)
    assert back["nb.ipynb.txt"].decode() == RIGHT["nb.ipynb"]
    assert back["calendar.ics#L12.txt"].decode() == RIGHT["calendar.ics"]


# --- notebooks


def test_a_notebook_says_what_its_cells_say_and_print():
    printed = {"output_type": "stream", "text": ["\x1b[31mloss\x1b[0m 0.25\n", "done\n"]}
    shown = {"output_type": "execute_result", "data": {"text/plain": "42", "image/png": "iVBO"}}
    failed = {"output_type": "error", "ename": "KeyError", "evalue": "'lamp'", "traceback": ["x"]}
    picture = {"output_type": "display_data", "data": {"image/png": "iVBO"}}
    book = files.notebook(
        files.markdown("# Lamps\n\nThe *last* one."),
        files.code("# not a heading\nx = '''\n```\n'''", printed, shown),
        files.code("", picture),
        files.code("y", failed),
    )
    found = extract_text("ipynb", book)
    assert found.text.split("\n\n") == [
        "# Lamps",
        "The *last* one.",
        "````python\n# not a heading\nx = '''\n```\n'''\n````",
        "```\nloss 0.25\ndone\n42\n```",
        "```python\ny\n```",
        "```\nKeyError: 'lamp'\n```",
    ]
    assert [where for _, where in found.places] == ["cell 1", "cell 2", "cell 4"]
    assert all(found.text[start:].lstrip() == found.text[start:] for start, _ in found.places)


def test_a_notebook_of_the_older_format():
    cells = [{"cell_type": "code", "input": "a = 1", "outputs": [{"text": "one"}]}]
    book = files.notebook(worksheets=[{"cells": cells}], nbformat=3)
    assert extract_text("ipynb", book).text == "```python\na = 1\n```\n\n```\none\n```"
    odd = files.notebook(files.code("a = 1", {"data": None, "text": "one"}), metadata=None)
    assert extract_text("ipynb", odd).text == "```\na = 1\n```\n\n```\none\n```"


# --- mails


def mail(**headers: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in ({"Subject": "Rent", "From": "Zoë <z@example.org>"} | headers).items():
        message[name] = value
    return message


HEAD = "Subject: Rent\nFrom: Zoë <z@example.org>"


def test_of_a_mail_in_two_forms_the_plain_one_is_read_and_what_is_attached_is_named():
    message, forwarded = mail(Date="Tue, 03 Mar 2026 09:00:00 +0000"), mail(Subject="Größe")
    forwarded.set_content("Innen: fünf Meter.", charset="iso-8859-1")
    message.set_content("The rent is due.")
    message.add_alternative("<p>The rent is <b>due</b>.</p>", subtype="html")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="Offer ü.pdf")
    message.add_attachment(forwarded)
    assert extract_text("eml", message.as_bytes()).text.split("\n\n") == [
        f"{HEAD}\nDate: Tue, 03 Mar 2026 09:00:00 +0000",
        "The rent is due.",
        "Attachment, not read: Offer ü.pdf",
        "Subject: Größe\nFrom: Zoë <z@example.org>",
        "Innen: fünf Meter.",
    ]


@pytest.mark.parametrize(
    ("charset", "body"),
    [
        ("koi8-r", "Ключ висит за дверью.".encode("koi8-r")),
        ("iso-8859-1", "Ключ".encode()[:0] + "It’s 5 €".encode("cp1252")),
        ("", "Größe in UTF-8".encode()),
        ("us-ascii", "Größe in UTF-8".encode()),
        ("no-such", "Größe der Tür und des Gebäudes".encode("cp1252")),
        ("utf-8", "Größe der Tür und des Gebäudes".encode("cp1252")),
    ],
)
def test_a_mails_text_is_in_what_it_says_if_that_can_be(charset, body):
    kind = f"Content-Type: text/plain; charset={charset}\n" if charset else ""
    data = f"Subject: Key\n{kind}Content-Transfer-Encoding: 8bit\n\n".encode() + body
    right = {"koi8-r": "koi8-r", "": "utf-8", "us-ascii": "utf-8"}.get(charset, "cp1252")
    assert extract_text("eml", data).text == f"Subject: Key\n\n{body.decode(right)}"


def test_a_mail_of_html_alone_is_read_as_a_page():
    message = mail()
    message.set_content("<style>p {}</style><p>Rent</p><p>due</p>", subtype="html")
    assert extract_text("eml", message.as_bytes()).text == f"{HEAD}\n\nRent\n\ndue"


def test_headers_that_are_broken_are_as_they_stand():
    data = b"Subject: =?utf-8?q?caf=C3=A9?=\nTo: <<<@[\nDate: soon\n\nText"
    assert extract_text("eml", data).text.startswith("Subject: café\nTo: <<<@[\nDate: soon")
    raw = "Subject: Größe\nFrom: Zoë <z@example.org>\n\nText"
    assert extract_text("eml", raw.encode()).text == raw
    assert extract_text("eml", raw.encode("cp1252")).text == raw


def test_a_mail_without_boundaries_says_what_it_has():
    data = "\ufeffSubject: Rent\nContent-Type: multipart/mixed\n\nIt is due.\n".encode()
    assert extract_text("eml", data).text == "Subject: Rent\n\nIt is due."


def test_a_mail_that_is_nothing_but_a_file_names_it():
    data = b"Subject: Rent\nContent-Type: application/pdf; name=offer.pdf\n\n%PDF"
    assert extract_text("eml", data).text == "Subject: Rent\n\nAttachment, not read: offer.pdf"


# --- calendars


def events(data: bytes) -> list[Part]:
    return list(LOADERS[".ics"].extract(data))


def when(start: str, *more: str) -> str:
    """What is said of an event that has a start and little else."""
    (part,) = events(files.calendar([f"DTSTART{start}", *more]))
    return part.text


def test_an_event_is_a_document_below_its_summary():
    reminder = ["BEGIN:VALARM", "DESCRIPTION:no", "SUMMARY:no", "END:VALARM"]
    first = ["dtstart:20260501", *reminder, r"SUMMARY;LANGUAGE=en:Fair\, \"May\"", "X-A:no"]
    second = ["STATUS:CANCELLED", r"LOCATION:Hall\n2", r"DESCRIPTION:a\;b\\nc\N\nd: e\n"]
    task = b"BEGIN:VTODO\nSUMMARY:no\nEND:VTODO\n"
    fair, hall = events(task + files.calendar(first, second, end="\n"))
    assert fair.text == 'Fair, \\"May\\"\nWhen: Friday 1 May 2026'
    assert hall.text == "Where: Hall 2\nStatus: cancelled\n\na;b\\nc\n\nd: e"
    assert (fair.suffix, hall.suffix) == ("#L5", "#L14")
    assert headings_above("a.ics", fair.text, [0], fair.headings) == ['Fair, \\"May\\"']
    assert headings_above("a.ics", hall.text, [0], hall.headings) == [""]


@pytest.mark.parametrize("fold", ["\r\n ", "\n\t"])
def test_a_line_may_be_folded_anywhere_even_within_a_letter(fold):
    data = files.calendar(["SUMMARY:Größe 🥟"], ["SUMMARY:two"])
    start, end = data.index(b"SUMMARY"), data.index(b"\r\nEND:VEVENT")
    folded = fold.encode().join(bytes([byte]) for byte in data[start:end])
    whole, after = events(data[:start] + folded + data[end:])
    assert whole.text == "Größe 🥟" and whole.suffix == "#L2"
    assert after.suffix == f"#L{5 + end - start - 1}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_a_calendar_in_another_encoding(encoding):
    data = files.calendar(["SUMMARY:Größe der Tür", " en prüfen"])
    (part,) = events(data.decode().encode(encoding))
    assert (part.text, part.suffix) == ("Größe der Türen prüfen", "#L2")


def test_what_is_wrong_with_one_event_is_not_with_the_others():
    data = files.calendar(["SUMMARY:one"], ["UID:2"], ["SUMMARY:cut", "BEGIN:VEVENT"])
    assert [(part.suffix, part.problem) for part in events(data + b"BEGIN:VEVENT")] == [
        ("#L2", ""),
        ("#L5", "nothing in it"),
        ("#L8", "cut off: its end is missing"),
        ("#L10", "nothing in it"),
        ("#L13", "cut off: its end is missing"),
    ]


def test_a_long_line_that_says_nothing_takes_no_time_to_speak_of():
    data = files.calendar(
        ["SUMMARY:one", "a" * 1_000_000, 'A;B="' * 200_000, "A" + "\r\n " * 200_000]
    )
    assert [part.text for part in events(data)] == ["one"]


BERLIN, NEW_YORK = ";TZID=Europe/Berlin:", ';X-A="a:b;c";TZID="America/New_York":'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([":20260312T140000Z"], "Thursday 12 March 2026, 14:00 (UTC)"),
        ([":20260312T140000"], "Thursday 12 March 2026, 14:00"),
        (
            [f"{BERLIN}20260312T140000", f"DTEND{BERLIN}20260312T144500"],
            "Thursday 12 March 2026, 14:00 to 14:45 (Europe/Berlin)",
        ),
        (
            [":20260312T220000", "DTEND:20260313T010000"],
            "Thursday 12 March 2026, 22:00 to Friday 13 March 2026, 01:00",
        ),
        (
            [f"{BERLIN}20260501T100000", f"DTEND{NEW_YORK}20260501T130000"],
            "Friday 1 May 2026, 10:00 (Europe/Berlin) to 13:00 (America/New_York)",
        ),
        (
            [":20260312T233000Z", "DURATION:PT1H"],
            "Thursday 12 March 2026, 23:30 to Friday 13 March 2026, 00:30 (UTC)",
        ),
        ([";VALUE=DATE:20260501"], "Friday 1 May 2026"),
        ([":20260501", "DTEND:20260502"], "Friday 1 May 2026"),
        ([":20260501", "DTEND:20260504"], "Friday 1 May 2026 to Sunday 3 May 2026"),
        ([":20260501", "DURATION:P1W"], "Friday 1 May 2026 to Thursday 7 May 2026"),
        ([":20260501T100000", "DURATION:+PT1H30M"], "Friday 1 May 2026, 10:00 to 11:30"),
        ([":soon"], "soon"),
        ([":20260230", "DTEND:20260501"], "20260230 to 20260501"),
        ([":20260501", "DURATION:P999999999W"], "20260501 to P999999999W"),
        ([":00010101", "DTEND:00010101"], "00010101 to 00010101"),
    ],
)
def test_times_of_an_event_are_in_words_and_broken_ones_as_they_stand(lines, said):
    assert when(*lines) == f"When: {said}"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("FREQ=YEARLY;BYMONTH=5", "every year"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,WE", "every 2 weeks on Monday and Wednesday"),
        ("freq=monthly;byday=2tu;count=10", "every month on the second Tuesday, 10 times"),
        ("FREQ=MONTHLY;BYDAY=-1FR", "every month on the last Friday"),
        ("FREQ=DAILY;UNTIL=20261231T230000Z", "every day, until Thursday 31 December 2026"),
        ("FREQ=WEEKLY;BYDAY=XX", "FREQ=WEEKLY;BYDAY=XX"),
        ("FREQ=DAILY;COUNT=some", "FREQ=DAILY;COUNT=some"),
        ("FREQ=HOURLY", "FREQ=HOURLY"),
        ("never", "never"),
    ],
)
def test_how_often_an_event_comes_again(rule, said):
    assert when(":20260501", f"RRULE:{rule}") == f"When: Friday 1 May 2026\nRepeats: {said}"


# --- OpenDocument


def test_an_odt_says_all_that_is_read_on_its_pages():
    body = """
    <text:tracked-changes><text:deletion><text:p>deleted</text:p></text:deletion>
    </text:tracked-changes>
    <text:h text:outline-level="2">Wi<text:span>Fi</text:span></text:h>
    <text:p>snake_case  *star*<text:s text:c="2"/>a|b<text:note><text:note-citation>1
    </text:note-citation><text:note-body><text:p>A note.</text:p></text:note-body></text:note>
    <text:line-break/>end<office:annotation><text:p>comment</text:p></office:annotation></text:p>
    <text:p>Box:<draw:frame><draw:text-box><text:p>in it</text:p></draw:text-box></draw:frame>
    </text:p><text:section><text:p>In a section</text:p></text:section>
    <text:list><text:list-item><text:p>one</text:p><text:list><text:list-item><text:p>deep</text:p>
    </text:list-item></text:list></text:list-item></text:list>
    <table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>a|b</text:p>
    <text:p>c</text:p></table:table-cell></table:table-row></table:table-header-rows>
    <table:table-row><table:table-cell><text:p>d</text:p></table:table-cell></table:table-row>
    </table:table>"""
    page = (
        "<style:master-page><style:header><text:p>Draft of 3 May</text:p></style:header>"
        "<style:footer><text:p><text:page-number>1</text:page-number> / </text:p></style:footer>"
        "</style:master-page>"
    )
    found = extract_text("odt", files.opendocument(body, styles=page * 2))
    assert found.text.split("\n\n") == [
        "Draft of 3 May",
        "## WiFi",
        "snake_case *star*  a|b[1] \nend",
        "[1] A note.",
        "Box:",
        "in it",
        "In a section",
        "- one\n  - deep",
        "| a\\|b c |\n| --- |\n| d |",
    ]
    assert found.places[2] == (len("Draft of 3 May\n\n"), "text line 3")


def test_an_ods_says_each_value_as_it_is_stored():
    rows = [
        files.cell(text="part") + files.cell(text="a\n  |b") + files.cell(text="when"),
        files.cell("3.14159265", "float", "3.1")
        + files.cell("0.25", "percentage", "25%")
        + files.cell("2026-03-12T09:40:00", "date", "12.3."),
        files.cell("1200.0", "currency", "1.200", office__currency="EUR")
        + files.cell("true", "boolean")
        + files.cell("PT26H30M00S", "time"),
        "",
        files.cell(text="NA") + files.cell(table__formula="of:=1+1"),
    ]
    found = extract_text("ods", files.sheet(*rows))
    assert found.text.split("\n") == [
        "## Stock",
        "| part | a \\|b | when |",
        "| --- | --- | --- |",
        "| 3.14159265 | 25% | 2026-03-12 09:40:00 |",
        "| 1200 EUR | TRUE | 26:30:00 |",
        "| NA | =1+1 |  |",
    ]
    assert [where for _, where in found.places][-1] == "sheet Stock row 5"


def test_an_ods_is_as_large_as_what_is_in_it():
    wide = '<table:table-cell table:number-columns-repeated="16384"/>'
    tall = f'<table:table-row table:number-rows-repeated="1048575">{wide}</table:table-row>'
    twice = files.cell(text="x", table__number_columns_repeated="2").replace("_", "-")
    table = f'<table:table table:name="S"><table:table-row>{twice}</table:table-row>{tall}'
    found = extract_text("ods", files.opendocument(f"{table}</table:table>", "spreadsheet"))
    assert found.text == "## S\n| x | x |\n| --- | --- |"


# --- RTF


def test_rtf_in_its_code_page_with_its_notes_and_cells():
    data = (
        rb"{\rtf1\ansi\ansicpg1251{\fonttbl{\f0 Arial;}}{\header Draft\par}"
        rb"\'ca\'eb\'fe\'f7 costs 5 \u8364? now{\footnote a note}.\par"
        rb"\trowd one\cell two\cell\row{\*\generator Word;}{\pict 89504e47}}"
    )
    lines = extract_text("rtf", data).text.split("\n")
    assert lines == ["Draft", "Ключ costs 5 € now", "a note.", "one|two|"]


# --- what is refused

MANY = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
HUGE = f'<!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{MANY}]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
REFUSED = {
    "empty.eml": (b"", "empty"),
    "text.eml": (b"This is no mail.\n\nAt all.", "no mail"),
    "empty.ics": (b"", "empty"),
    "text.ics": (b"This is no calendar.", "no event in it"),
    "tasks.ics": (b"BEGIN:VTODO\nSUMMARY:a\nEND:VTODO\n", "no event in it"),
    "end.ics": (b"SUMMARY:a\nEND:VEVENT\n", "no event in it"),
    "zero.ics": (files.calendar(["SUMMARY:a\0"]), "binary: a NUL"),
    "text.rtf": (b"This is no RTF.", "no RTF"),
    "pictures.rtf": (rb"{\rtf1{\pict 89504e47}}", "no text in it (pictures"),
    "text.ipynb": (b"This is no JSON.", "not a readable ipynb file: JSONDecodeError"),
    "list.ipynb": (b"[]", "no notebook"),
    "other.ipynb": (b'{"cells": {}}', "no notebook"),
    "blank.ipynb": (files.notebook(files.markdown(" ")), "no text in it"),
    "deep.ipynb": (b'{"cells": ' + b"[" * 100_000, "nested too deeply"),
    "text.odt": (b"This is no zip file.", "not a readable odt file"),
    "cut.ods": (files.sheet(files.cell(text="one"))[:-30], "not a readable ods file"),
    "word.odt": (files.docx("a Word file"), "not a readable odt file"),
    "entities.odt": (files.opendocument("<text:p>&a9;</text:p>", before=HUGE), "not a readable"),
    "outside.odt": (files.opendocument("<text:p>&a;</text:p>", before=OUTSIDE), "not a readable"),
    "secret.odt": (
        files.opendocument("", manifest="<manifest:encryption-data/>"),
        "encrypted: save it without a password first",
    ),
    "pictures.odt": (files.opendocument("<text:p><draw:frame/></text:p>"), "no text in it"),
    "empty.ods": (files.sheet(files.cell()), "no text in it"),
    "bomb.odt": (  # made when it is read: it takes its 600 MB
        lambda: files.zipped({"content.xml": b" " * (600 << 20)}),
        "unpacks to 600 MB, over the limit of 512 MB",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_and_hostile_files_are_skipped_with_their_reason(tmp_path, name):
    data, reason = REFUSED[name]
    (tmp_path / name).write_bytes(data() if callable(data) else data)
    (source,) = scan([tmp_path], DIALS).files
    (skipped,) = read(source, DIALS).skipped
    assert skipped.path == name and reason in skipped.reason and len(skipped.reason) < 200


def test_a_cell_that_stands_for_billions_ends_at_a_limit():
    many = files.cell(text="x", table__number_columns_repeated="99999999999").replace("_", "-")
    found = extract_text("ods", files.sheet(many), Limits(memory=512 << 20, seconds=20))
    assert not found.text and found.problem.startswith("takes more than")


@pytest.mark.parametrize("name", ["photo.jpg", "Scan.PNG", "page.tiff"])
def test_pictures_are_refused_with_the_reason(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe0\0")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputRefused, match="a picture: text in pictures is not read"):
            scan([path], DIALS)


@pytest.mark.parametrize(
    ("url", "way"),
    [
        (
            "https://example.org/docs/guide.pdf",
            "curl -sSL https://example.org/docs/guide.pdf | rag-memtok ingest - --name guide.pdf",
        ),
        (
            "HTTP://example.org/a?b=1&c=2",
            "curl -sSL 'HTTP://example.org/a?b=1&c=2' | rag-memtok ingest - --name a.html",
        ),
        (
            "https://example.org",
            "curl -sSL https://example.org | rag-memtok ingest - --name page.html",
        ),
    ],
)
def test_a_url_is_refused_with_the_way_to_do_it(url, way):
    with pytest.raises(InputRefused) as refused:
        scan([Path(url)], DIALS)
    assert str(refused.value) == f"{url} is a URL, and nothing is read from the network"
    assert (refused.value.remedy, refused.value.exit_code) == (way, 24)


# --- what is piped in


def test_what_is_piped_in_is_read_as_its_name_says(tmp_path, model_folder):
    config = small.dials(tmp_path / "store", model_folder)
    page = "<p>The boiler is in the cellar.</p>".encode("utf-16")
    done = api.ingest([], config, piped={"notes/page.html": page})
    assert (done.files, done.skipped) == (1, ())
    assert api.ingest([], config, piped={"notes/page.html": page}).unchanged == 1
    (listed,) = api.documents(config)
    assert (listed.name, listed.document.extractor) == ("notes/page.html", "html/3 utf-16-le")
    (found, *_) = api.search("boiler", config)
    assert (found.source.name, found.source.file) == ("notes/page.html", "")  # not called gone
    assert api.ingest([], config, piped={"notes/page.html": b"<p>New</p>"}).files == 1
    written = api.restore(tmp_path / "back", config).written
    assert [path.read_text() for path in written] == ["New"]
    assert api.remove(Path("notes/page.html"), config) == ("-/notes/page.html",)


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "a/../../b.txt", "folder/"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UsageError, match="is no name for what is piped in"):
        scan([], DIALS, piped={name: b"text"})


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"\0", "binary"), (b"x" * 11, "over the limit")]
)
def test_what_is_piped_in_and_no_text_is_refused(data, reason):
    with pytest.raises(InputRefused, match=f"nothing to read in a.txt: .*{reason}"):
        scan([], Documents(max_bytes=10), piped={"a.txt": data})


def test_only_texts_are_restored_exactly():
    assert restores_exactly("text/1 cp1252") and not restores_exactly("odt/1 odfdo 3.27.3")


def test_the_documentation_names_every_kind_of_file():
    page = (Path(__file__).parent.parent / "docs" / "usage.md").read_text(encoding="utf-8")
    table = page.partition("## What is read")[2].partition("\n## ")[0].lower()
    named = {word for word in re.findall(r"\w+", table) if f".{word}" in LOADERS}
    kinds = {LOADERS[f".{word}"].extractor for word in named} | {LOADERS[".txt"].extractor}
    assert kinds == {loader.extractor for loader in LOADERS.values()}
