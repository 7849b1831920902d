"""docx and pptx: what their converter would lose of them, and a Word file's headers and footers.

The converter passes over elements that it does not know, with all the text in them. `mend` turns
these into others that it knows; a file without any is left as it is, to the byte.
"""

import contextlib
import io
import posixpath
import re
import zipfile
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from rag_memtok.documents.sheets import local_name

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


def mend(data: bytes) -> bytes:
    r"""The file, with every text that its converter would pass over put where it does not.

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
        changed = {name: xml for name, part in parts.items() if (xml := _mend_part(part))}
        if not changed:
            return data
        changed_file = io.BytesIO()
        with zipfile.ZipFile(changed_file, "w") as copy:
            for name in dict.fromkeys(file.namelist()):
                copy.writestr(name, changed.get(name) or file.read(name))
    return changed_file.getvalue()


def _mend_part(xml: bytes) -> bytes:
    """A part of the file with its text where it is found, b"" if nothing is to be done."""
    if not MAY_BE_LOST.search(xml):
        return b""
    for _, (prefix, uri) in ElementTree.iterparse(io.BytesIO(xml), ["start-ns"]):
        with contextlib.suppress(ValueError):  # "ns0" and the like are kept for others
            # the converter writes elements of its own with the prefix "w"
            ElementTree.register_namespace(prefix or "ns", uri)
    root = ElementTree.fromstring(xml)
    changes = (_rename_elements, _choose_forms, _show_boxes, _escape_bars, _unnest_tables)
    changed = [change(root) for change in changes]
    return ElementTree.tostring(root, "utf-8", xml_declaration=True) if any(changed) else b""


def _rename_elements(root: Element) -> bool:
    """Gives elements of Word the names of others that are read."""
    renamed = [
        element
        for element in root.iter()
        if element.tag.startswith(WORD) and local_name(element) in KNOWN_AS
    ]
    for element in renamed:
        name = local_name(element)
        element.tag = element.tag.removesuffix(name) + KNOWN_AS[name]
    return bool(renamed)


def _choose_forms(root: Element) -> bool:
    """Of what stands there twice, for new and old readers, the new form where the old has no text.

    The converter of Word files reads the old form, that of slides none of them.
    """
    parents = {
        child: parent
        for parent in root.iter()
        for child in parent
        if local_name(child) == "AlternateContent"
    }
    changed = False
    for both, parent in parents.items():
        forms = {local_name(form): form for form in reversed(both)}
        new, old = forms.get("Choice"), forms.get("Fallback")
        if new is None or not _has_text(new):
            continue
        if not root.tag.startswith(WORD):
            place = list(parent).index(both)
            parent[place : place + 1] = list(new)
        elif old is None or not _has_text(old):
            old = ElementTree.SubElement(both, FALLBACK) if old is None else old
            old.extend([_make_pict(root, boxes)] if (boxes := _find_boxes(new)) else list(new))
        else:
            continue
        changed = True
    return changed


def _show_boxes(root: Element) -> bool:
    """Puts text boxes that stand in a drawing, in the new form alone, where they are read."""
    twice = {
        drawing
        for both in root.iter()
        if local_name(both) == "AlternateContent"
        for drawing in both.iter()
        if local_name(drawing) == "drawing"
    }
    alone = [
        element
        for element in root.iter()
        if local_name(element) == "drawing" and element not in twice
    ]
    unread = [(drawing, boxes) for drawing in alone if (boxes := _find_boxes(drawing))]
    for drawing, boxes in unread:
        drawing.append(_make_pict(root, boxes))
    return bool(unread)


def _find_boxes(element: Element) -> list[Element]:
    """The text boxes in it, without those in others."""
    boxes = [child for child in element.iter() if local_name(child) == "txbxContent"]
    inner = {child for box in boxes for child in box.iter() if child is not box}
    return [box for box in boxes if box not in inner]


def _make_pict(root: Element, boxes: Sequence[Element]) -> Element:
    """An element that holds text boxes in the form that is read."""
    pict = Element(root.tag.removesuffix(local_name(root)) + "pict")
    pict.extend(boxes)
    return pict


def _escape_bars(root: Element) -> bool:
    """Escapes each "|" in a table but those of its equations."""
    barred = {
        text
        for table in root.iter()
        if local_name(table) == "tbl"
        for text in table.iter()
        if local_name(text) == "t" and "/math}" not in text.tag and "|" in (text.text or "")
    }
    for text in barred:
        text.text = (text.text or "").replace("|", "\\|")
    return bool(barred)


def _unnest_tables(root: Element) -> bool:
    """Makes tables in cells paragraphs there: in Markdown their bars would be the outer table's."""
    word = root.tag.removesuffix(local_name(root))
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
    row_paragraph = Element(f"{word}p")
    for index, cell in enumerate(row.iter(f"{word}tc")):
        for number, paragraph in enumerate(_paragraphs(cell)):
            if index or number:
                run = ElementTree.SubElement(row_paragraph, f"{word}r")
                text = ElementTree.SubElement(run, f"{word}t")
                text.text = " " if number else " / "
            row_paragraph.extend(part for part in paragraph if local_name(part) != "pPr")
    return row_paragraph


def _paragraphs(element: Element) -> Iterator[Element]:
    """The paragraphs in it, without those in their text boxes."""
    for child in element:
        if local_name(child) == "p":
            yield child
        elif local_name(child) not in GONE:
            yield from _paragraphs(child)


def _has_text(element: Element) -> bool:
    return any(local_name(child) == "t" and (child.text or "").strip() for child in element.iter())


# --- page headers and footers ---


def page_texts(data: bytes) -> tuple[list[str], list[str]]:
    """A Word file's page headers and its footers, each text once, in the order of its sections.

    Those of first and of even pages only where the file shows them; nothing where there is only
    the number of a page.

    Raises:
        BadZipFile, ParseError: the file is broken.

    Cost: reads the XML of the file once.
    """
    texts: dict[str, dict[str, None]] = {"headerReference": {}, "footerReference": {}}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        main = _related_parts(file, "", "officeDocument") or {"": "word/document.xml"}
        (document, *_) = main.values()
        targets = _related_parts(file, document, "header")
        targets |= _related_parts(file, document, "footer")
        if not targets:
            return [], []
        settings = list(_related_parts(file, document, "settings").values())
        shown, references = {"default"}, []
        if any(_is_on(ElementTree.fromstring(file.read(part)), "even") for part in settings):
            shown.add("even")
        for _, element in ElementTree.iterparse(file.open(document)):
            if local_name(element) == "sectPr":
                references += [child for child in element if local_name(child) in texts]
                shown |= {"first"} if _is_on(element, "titlePg") else set()
            elif local_name(element) in ("p", "tbl"):
                element.clear()  # a document as a tree takes ten times its size
        for reference in references:
            target = targets.get(_attribute(reference, "id"))
            if target and (_attribute(reference, "type") or "default") in shown:
                lines = [*_lines(ElementTree.fromstring(file.read(target)))]
                texts[local_name(reference)]["\n".join(lines)] = None
    headers, footers = ([text for text in kind if text] for kind in texts.values())
    return headers, footers


def _related_parts(file: zipfile.ZipFile, part: str, kind: str) -> dict[str, str]:
    """The parts of this kind that `part` refers to, by the id that it gives them."""
    folder, name = posixpath.split(part)
    path = posixpath.join(folder, "_rels", f"{name}.rels")
    names = set(file.namelist())
    relations = ElementTree.fromstring(file.read(path)) if path in names else ()
    targets = {
        relation.get("Id", ""): posixpath.normpath(
            posixpath.join("/", folder, relation.get("Target", ""))
        )
        for relation in relations
        if relation.get("Type", "").endswith(f"/{kind}")
    }
    return {key: target[1:] for key, target in targets.items() if target[1:] in names}


def _is_on(element: Element, name: str) -> bool:
    """Whether a setting whose name begins so is on."""
    return any(
        local_name(child).startswith(name) and _attribute(child, "val") not in ("0", "false", "off")
        for child in element
    )


def _attribute(element: Element, name: str) -> str:
    """An attribute of an element, of whatever namespace."""
    return next((value for key, value in element.items() if key.rpartition("}")[2] == name), "")


def _lines(element: Element) -> Iterator[str]:
    """The paragraphs in it, and the rows of its tables, that have words."""
    for child in element:
        if local_name(child) == "tr":
            cells = [_words(cell) for cell in child]
            if any(cells):
                yield " | ".join(filter(None, cells))
        elif local_name(child) == "p":
            if words := _words(child):
                yield words
        elif local_name(child) not in GONE:
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
        name = local_name(child)
        if name == "fldChar" and _attribute(child, "fldCharType") == "begin":
            fields.append("")
        elif name == "fldChar" and _attribute(child, "fldCharType") == "end":
            del fields[-1:]
        elif name == "instrText":
            fields[-1:] = [*(field + (child.text or "") for field in fields[-1:])]
        elif name == "fldSimple":
            yield from _pieces(child, [*fields, _attribute(child, "instr")])
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
