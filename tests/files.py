"""Small real files of the formats that are parsed in a child process."""

import io
import json
import zipfile
import zlib

import openpyxl
import pptx

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
OPEN = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def pdf(*pages: str, trailer: str = "") -> bytes:
    """A PDF of its own hand: one line of text a page; "" is a page without text.

    `trailer` is added to the file's trailer.
    """
    return pdf_of(
        [f"BT /F1 12 Tf 50 700 Td ({page}) Tj ET".encode() if page else b"" for page in pages],
        trailer,
    )


def pdf_of(contents: list[bytes], trailer: str = "") -> bytes:
    """A PDF with these content streams, compressed, a page each."""
    count = len(contents)
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
    ]
    objects.append(
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
    )
    for index, content in enumerate(contents):
        fonts = "/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] {fonts} /Contents "
            f"{5 + 2 * index} 0 R >>".encode()
        )
        packed = zlib.compress(content)
        objects.append(
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)
        )
    file, starts = io.BytesIO(b"%PDF-1.4\n"), []
    file.seek(0, io.SEEK_END)
    for number, body in enumerate(objects, 1):
        starts.append(file.tell())
        file.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = file.tell()
    file.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    file.write(b"".join(b"%010d 00000 n \n" % start for start in starts))
    file.write(
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer} "
        f">>\nstartxref\n{table}\n%%EOF\n".encode()
    )
    return file.getvalue()


def zipped(entries: dict[str, str | bytes]) -> bytes:
    """A zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def docx(*paragraphs: str, body: str = "") -> bytes:
    """A Word file; `body` is raw XML after the paragraphs."""
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    shown = "".join(f"<w:p><w:r><w:t>{paragraph}</w:t></w:r></w:p>" for paragraph in paragraphs)
    return zipped(
        {
            "[Content_Types].xml": f'<Types xmlns="{OPEN}/content-types"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{OPEN}/relationships"><Relationship Id="rId1" '
            f'Type="{OFFICE}/officeDocument" '
            'Target="word/document.xml"/></Relationships>',
            "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{shown}{body}</w:body>'
            "</w:document>",
        }
    )


def xlsx(sheets: dict[str, list[list[object]]]) -> bytes:
    """A workbook: name -> rows."""
    book, file = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.worksheets[0])
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(file)
    return file.getvalue()


def pptx_of(*slides: tuple[str, str]) -> bytes:
    """A presentation: (title, text) of each slide."""
    deck, file = pptx.Presentation(), io.BytesIO()
    for title, text in slides:
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, text
    deck.save(file)
    return file.getvalue()


def epub(title: str, *chapters: str) -> bytes:
    """A book; each chapter is the inside of an HTML body."""
    names = [f"c{number}.xhtml" for number in range(len(chapters))]
    items = "".join(
        f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in names
    )
    spine = "".join(f'<itemref idref="{name}"/>' for name in names)
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container version="1.0" '
            'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OPS/book.opf" '
            'media-type="application/oebps-package+xml"/></rootfiles></container>',
            "OPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
            f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
            **{
                f"OPS/{name}": f"<html><body>{chapter}</body></html>"
                for name, chapter in zip(names, chapters, strict=True)
            },
        }
    )


SPACES = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{uri}:1.0"'
    for name, uri in {
        **{name: name for name in ("office", "text", "table", "style", "manifest")},
        "draw": "drawing",
    }.items()
)


def opendocument(body: str, kind: str = "text", before: str = "", **parts: str) -> bytes:
    """An odt or, of the kind "spreadsheet", an ods, of raw XML.

    `before` stands before the root of its content; `parts` are `styles`, the master styles, and
    `manifest`, what is in the manifest.
    """
    head = "application/vnd.oasis.opendocument"
    return zipped(
        {
            "mimetype": f"{head}.{kind}",
            "META-INF/manifest.xml": f"<manifest:manifest {SPACES}><manifest:file-entry "
            f'manifest:full-path="/" manifest:media-type="{head}.{kind}"/>'
            f"{parts.get('manifest', '')}</manifest:manifest>",
            "styles.xml": f"<office:document-styles {SPACES}><office:master-styles>"
            f"{parts.get('styles', '')}</office:master-styles></office:document-styles>",
            "content.xml": f"{before}<office:document-content {SPACES}><office:body>"
            f"<office:{kind}>{body}</office:{kind}></office:body></office:document-content>",
        }
    )


def sheet(*rows: str, name: str = "Stock") -> bytes:
    """An ods with one sheet, of rows in raw XML."""
    table = "".join(f"<table:table-row>{row}</table:table-row>" for row in rows)
    return opendocument(f'<table:table table:name="{name}">{table}</table:table>', "spreadsheet")


def cell(value: str = "", kind: str = "", text: str = "", **more: str) -> str:
    """A cell of an ods: its stored value of a kind, and the text that is shown."""
    told = {"float": "value", "percentage": "value", "currency": "value"}.get(kind, f"{kind}-value")
    stored = f' office:value-type="{kind}" office:{told}="{value}"' if kind else ""
    others = "".join(f' {name.replace("__", ":")}="{what}"' for name, what in more.items())
    shown = f"<text:p>{text}</text:p>" if text else ""
    return f"<table:table-cell{stored}{others}>{shown}</table:table-cell>"


def notebook(*cells: dict, **facts: object) -> bytes:
    """A Jupyter notebook."""
    metadata = {"language_info": {"name": "python"}}
    return json.dumps({"nbformat": 4, "metadata": metadata, "cells": cells, **facts}).encode()


def calendar(*events: list[str], end: str = "\r\n") -> bytes:
    """A calendar of events, each in its lines."""
    blocks = [line for lines in events for line in ("BEGIN:VEVENT", *lines, "END:VEVENT")]
    return end.join(["BEGIN:VCALENDAR", *blocks, "END:VCALENDAR", ""]).encode()


def code(source: str, *outputs: dict) -> dict:
    """A cell of code."""
    return {"cell_type": "code", "source": source.splitlines(True), "outputs": list(outputs)}


def markdown(source: str) -> dict:
    """A cell of text."""
    return {"cell_type": "markdown", "source": source}
