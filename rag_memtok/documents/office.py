"""docx and pptx: what their converter would lose of them, and a Word file's headers and footers.

The converter passes over elements that it does not know, with all the text in them. `mended` turns
these into others that it knows; a file without any is left as it is, to the byte.
"""

import contextlib
import io
import posixpath
import re
import zipfile
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from rag_memtok.documents.sheets import local

Element = ElementTree.Element

PARTS = re.compile(r"word/(document|footnotes|endnotes)\d*\.xml|ppt/slides/slide\d+\.xml")
WORD = (
    "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}",
    "{http://purl.oclc.org/ooxml/wordprocessingml/main}",
)
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
# Elements of Word that are passed over -> what they are to a reader: "ins" is text that was put in
KNOWN_AS = {
    **dict.fromkeys("moveTo fldSimple customXml bdo dir ruby rubyBase".split(), "ins"),
    "cr": "br",
    "ptab": "tab",
}
MAY_BE_LOST = re.compile(
    rb"[:<](%b|AlternateContent|txbxContent|tbl)[\s/>]" % "|".join(KNOWN_AS).encode()
)
# deleted or moved away, how a text is pronounced, and what is no text
GONE = frozenset("del moveFrom delText rt pPr rPr sectPr".split())
BLANK = frozenset("tab ptab br cr".split())
PAGE_NUMBER = re.compile(r"\s*(PAGE|NUMPAGES|SECTIONPAGES)\b", re.IGNORECASE)


# --- what the converter would lose ---


def mended(data: bytes) -> bytes:
    r"""The file, with every text that its converter would pass over where it does not.

    In Word files these are moved text, simple fields (a date, a reference), XML and direction
    marks, ruby, line ends of an older kind, and text boxes in the new form alone; on slides, what
    has an equation in it. A "|" in a table is written "\|", so that it makes no column; of a table
    within a table each row is a paragraph, its cells parted by " / ".

    Raises:
        BadZipFile, ParseError: the file is broken.

    Cost: parses the document, or each slide, once or twice; its conversion parses it more often.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = {name: file.read(name) for name in file.namelist() if PARTS.fullmatch(name)}
        changed = {name: xml for name, part in parts.items() if (xml := _mended(part))}
        if not changed:
            return data
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w") as copy:
            for name in dict.fromkeys(file.namelist()):
                copy.writestr(name, changed.get(name) or file.read(name))
    return written.getvalue()


def _mended(xml: bytes) -> bytes:
    """A part of the file with its text where it is found, b"" if nothing is to be done."""
    if not MAY_BE_LOST.search(xml):
        return b""
    for _, (prefix, uri) in ElementTree.iterparse(io.BytesIO(xml), ["start-ns"]):
        with contextlib.suppress(ValueError):  # "ns0" and the like are kept for others
            # the converter writes elements of its own with the prefix "w"
            ElementTree.register_namespace(prefix or "ns", uri)
    root = ElementTree.fromstring(xml)
    changes = (_renamed, _chosen, _boxes_shown, _bars_escaped, _unnested)
    done = [change(root) for change in changes]
    return ElementTree.tostring(root, "utf-8", xml_declaration=True) if any(done) else b""


def _renamed(root: Element) -> bool:
    """Gives elements of Word the names of others that are read."""
    found = [one for one in root.iter() if one.tag.startswith(WORD) and local(one) in KNOWN_AS]
    for element in found:
        name = local(element)
        element.tag = element.tag.removesuffix(name) + KNOWN_AS[name]
    return bool(found)


def _chosen(root: Element) -> bool:
    """Of what stands there twice, for new and old readers, the new form where the old has no text.

    The converter of Word files reads the old form, that of slides none of them.
    """
    parents = {
        one: parent for parent in root.iter() for one in parent if local(one) == "AlternateContent"
    }
    changed = False
    for both, parent in parents.items():
        forms = {local(form): form for form in reversed(both)}
        new, old = forms.get("Choice"), forms.get("Fallback")
        if new is None or not _has_text(new):
            continue
        if not root.tag.startswith(WORD):
            place = list(parent).index(both)
            parent[place : place + 1] = list(new)
        elif old is None or not _has_text(old):
            old = ElementTree.SubElement(both, FALLBACK) if old is None else old
            old.extend([_pict(root, boxes)] if (boxes := _boxes(new)) else list(new))
        else:
            continue
        changed = True
    return changed


def _boxes_shown(root: Element) -> bool:
    """Puts text boxes that stand in a drawing, in the new form alone, where they are read."""
    twice = {
        one
        for both in root.iter()
        if local(both) == "AlternateContent"
        for one in both.iter()
        if local(one) == "drawing"
    }
    alone = [one for one in root.iter() if local(one) == "drawing" and one not in twice]
    found = [(drawing, boxes) for drawing in alone if (boxes := _boxes(drawing))]
    for drawing, boxes in found:
        drawing.append(_pict(root, boxes))
    return bool(found)


def _boxes(element: Element) -> list[Element]:
    """The text boxes in it, without those in others."""
    boxes = [one for one in element.iter() if local(one) == "txbxContent"]
    inner = {one for box in boxes for one in box.iter() if one is not box}
    return [box for box in boxes if box not in inner]


def _pict(root: Element, boxes: Sequence[Element]) -> Element:
    """Text boxes in the form that is read."""
    found = Element(root.tag.removesuffix(local(root)) + "pict")
    found.extend(boxes)
    return found


def _bars_escaped(root: Element) -> bool:
    """Escapes each "|" in a table but those of its equations."""
    found = {
        text
        for table in root.iter()
        if local(table) == "tbl"
        for text in table.iter()
        if local(text) == "t" and "/math}" not in text.tag and "|" in (text.text or "")
    }
    for text in found:
        text.text = (text.text or "").replace("|", "\\|")
    return bool(found)


def _unnested(root: Element) -> bool:
    """Makes tables in cells paragraphs there: in Markdown their bars would be the outer table's."""
    word = root.tag.removesuffix(local(root))
    nested = [
        (cell, table) for cell in root.iter(f"{word}tc") for table in cell.iterfind(f"{word}tbl")
    ]
    for cell, table in reversed(nested):  # the innermost first
        place = list(cell).index(table)
        cell[place : place + 1] = [
            _as_paragraph(row, word)
            for row in table.iter(f"{word}tr")
            if row.find(f"{word}trPr/{word}del") is None
        ]
    return bool(nested)


def _as_paragraph(row: Element, word: str) -> Element:
    """A row of a table as a paragraph."""
    found = Element(f"{word}p")
    for index, cell in enumerate(row.iter(f"{word}tc")):
        for number, paragraph in enumerate(_paragraphs(cell)):
            if index or number:
                text = ElementTree.SubElement(ElementTree.SubElement(found, f"{word}r"), f"{word}t")
                text.text = " " if number else " / "
            found.extend(part for part in paragraph if local(part) != "pPr")
    return found


def _paragraphs(element: Element) -> Iterator[Element]:
    """The paragraphs in it, without those in their text boxes."""
    for child in element:
        if local(child) == "p":
            yield child
        elif local(child) not in GONE:
            yield from _paragraphs(child)


def _has_text(element: Element) -> bool:
    return any(local(one) == "t" and (one.text or "").strip() for one in element.iter())


# --- page headers and footers ---


def page_texts(data: bytes) -> tuple[list[str], list[str]]:
    """A Word file's page headers and its footers, each text once, in the order of its sections.

    Those of first and of even pages only where the file shows them; nothing where there is only
    the number of a page.

    Raises:
        BadZipFile, ParseError: the file is broken.

    Cost: reads the XML of the file once.
    """
    found: dict[str, dict[str, None]] = {"headerReference": {}, "footerReference": {}}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        main = _related(file, "", "officeDocument") or {"": "word/document.xml"}
        (document, *_) = main.values()
        targets = _related(file, document, "header") | _related(file, document, "footer")
        if not targets:
            return [], []
        settings = list(_related(file, document, "settings").values())
        shown, references = {"default"}, []
        if any(_switch(ElementTree.fromstring(file.read(one)), "even") for one in settings):
            shown.add("even")
        for _, element in ElementTree.iterparse(file.open(document)):
            if local(element) == "sectPr":
                references += [one for one in element if local(one) in found]
                shown |= {"first"} if _switch(element, "titlePg") else set()
            elif local(element) in ("p", "tbl"):
                element.clear()  # a document as a tree takes ten times its size
        for one in references:
            target = targets.get(_value(one, "id"))
            if target and (_value(one, "type") or "default") in shown:
                lines = [*_lines(ElementTree.fromstring(file.read(target)))]
                found[local(one)]["\n".join(lines)] = None
    headers, footers = ([text for text in texts if text] for texts in found.values())
    return headers, footers


def _related(file: zipfile.ZipFile, part: str, kind: str) -> dict[str, str]:
    """The parts of this kind that `part` refers to, by the id that it gives them."""
    folder, name = posixpath.split(part)
    path = posixpath.join(folder, "_rels", f"{name}.rels")
    names = set(file.namelist())
    every = ElementTree.fromstring(file.read(path)) if path in names else ()
    targets = {
        one.get("Id", ""): posixpath.normpath(posixpath.join("/", folder, one.get("Target", "")))
        for one in every
        if one.get("Type", "").endswith(f"/{kind}")
    }
    return {key: target[1:] for key, target in targets.items() if target[1:] in names}


def _switch(element: Element, name: str) -> bool:
    """Whether a setting whose name begins so is on."""
    return any(
        local(one).startswith(name) and _value(one, "val") not in ("0", "false", "off")
        for one in element
    )


def _value(element: Element, name: str) -> str:
    """An attribute, of whatever namespace."""
    return next((value for key, value in element.items() if key.rpartition("}")[2] == name), "")


def _lines(element: Element) -> Iterator[str]:
    """The paragraphs in it, and the rows of its tables, that have words."""
    for child in element:
        if local(child) == "tr":
            cells = [_words(cell) for cell in child]
            if any(cells):
                yield " | ".join(filter(None, cells))
        elif local(child) == "p":
            if words := _words(child):
                yield words
        elif local(child) not in GONE:
            yield from _lines(child)


def _words(element: Element) -> str:
    """The words in it, white space run together; "" if they are the number of a page alone."""
    pieces = list(_pieces(element, []))
    rest = "".join(text for text, numbers_page in pieces if not numbers_page)
    numbered = any(numbers_page for _, numbers_page in pieces)
    if numbered and not any(letter.isalnum() for letter in rest):
        return ""
    return " ".join("".join(text for text, _ in pieces).split())


def _pieces(element: Element, fields: list[str]) -> Iterator[tuple[str, bool]]:
    """Yields stretches of text, and whether they are the number of a page.

    Args:
        fields: the instructions of the fields it stands in.
    """
    for child in element:
        name = local(child)
        if name == "fldChar" and _value(child, "fldCharType") == "begin":
            fields.append("")
        elif name == "fldChar" and _value(child, "fldCharType") == "end":
            del fields[-1:]
        elif name == "instrText":
            fields[-1:] = [*(field + (child.text or "") for field in fields[-1:])]
        elif name == "fldSimple":
            yield from _pieces(child, [*fields, _value(child, "instr")])
        elif name == "t":
            yield child.text or "", any(PAGE_NUMBER.match(field) for field in fields)
        elif name in BLANK or name == "noBreakHyphen":
            yield " " if name in BLANK else "-", False
        elif name == "textpath":  # a watermark
            yield f" {child.get('string', '')} ", False
        elif name == "AlternateContent":
            forms = [form for form in child if _has_text(form)]
            yield from _pieces(forms[0], fields) if forms else ()
        elif name == "p":  # of a text box, or of a cell
            yield from ((" ", False), *_pieces(child, fields), (" ", False))
        elif name not in GONE:
            yield from _pieces(child, fields)
