"""A PDF's page: its running text, what was typed into it, and what of it is not read.

Here are no imports of its parser: `extract` hands over its pages.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

PICTURE = "a picture without text (pictures of text are not read)"
NAMELESS = "its font does not say which letters it has"
UNREADABLE = "its form fields and notes are broken"
HIDDEN = 2  # the flag of an annotation that nobody is shown
# An annotation of these kinds is no note: a link, a note's window, a print mark, a film.
NO_NOTES = frozenset(
    "/Widget /Link /Popup /PrinterMark /TrapNet /Watermark /Screen /Movie /3D".split()
)


def text_of(page: Any, clean: Callable[[str], str]) -> tuple[str, list[str]]:
    """The text of a page, and what of it is not read.

    The values of form fields and the notes, which are no part of the running text, stand after it.
    """
    lost = 0

    def count(text: str, _: Any, __: Any, font: Any, ___: Any) -> None:
        nonlocal lost
        lost += len("".join(text.split())) if _is_nameless(font) else 0

    text = clean(page.extract_text(visitor_text=count)).strip()
    lost += sum(letter < " " and letter not in "\t\r\n" for letter in text) + text.count("\ufffd")
    unread = []
    if 2 * lost > len("".join(text.split())):
        text, unread = "", [NAMELESS]
    elif lost:
        unread = [f"{lost} of its letters are wrong: {NAMELESS}"]
    typed = ""
    try:
        typed = clean("\n".join(_typed_texts(page))).strip()
    except Exception:  # a parser's, of what the running text does not depend on
        unread.append(UNREADABLE)
    if not text and not typed and not unread and len(page.images):
        unread = [PICTURE]
    return "\n\n".join(filter(None, [text, typed])), unread


def _is_nameless(font: Mapping[str, Any] | None) -> bool:
    """Whether a font numbers its signs and does not say which letters they are."""
    return (
        font is not None
        and font.get("/Subtype") == "/Type0"
        and "/ToUnicode" not in font
        and str(font.get("/Encoding")).startswith("/Identity")
    )


def _typed_texts(page: Any) -> Iterator[str]:
    """The texts that were typed into a page: the filled fields of its forms, and its notes."""
    for reference in page.get("/Annots") or ():
        annotation = reference.get_object()
        kind = annotation.get("/Subtype")
        if int(annotation.get("/F", 0)) & HIDDEN:
            continue
        if kind == "/Widget" and (value := _value(annotation)):
            name = _inherited(annotation, "/TU") or _inherited(annotation, "/T")
            yield f"{name}: {value}" if name else value
        elif kind not in NO_NOTES and (note := annotation.get("/Contents")):
            yield str(note)


def _value(field: Any) -> str:
    """The value of a form field; a box that is not ticked, and a signature, are nothing."""
    kind, value = _inherited(field, "/FT"), _inherited(field, "/V")
    if kind == "/Btn":  # of several buttons that share a value one is on
        state = str(field.get("/AS") or value or "/Off")
        return "" if state == "/Off" else state.removeprefix("/")
    if kind == "/Sig" or value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _inherited(field: Any, key: str) -> Any:
    """An entry of a form field, or of one that it is part of."""
    for _ in range(32):  # a circle of them ends, too
        if field is None or key in field:
            break
        parent = field.get("/Parent")
        field = parent.get_object() if parent is not None else None
    return None if field is None else field[key] if key in field else None


def group_pages(unread: Iterable[tuple[int, str]]) -> tuple[tuple[str, str], ...]:
    """The pages of each reason, from (page, reason): ("page 2", reason), ("pages 2, 5-7", ...)."""
    pages: dict[str, list[int]] = {}
    for number, reason in unread:
        pages.setdefault(reason, []).append(number)
    return tuple(
        (f"page{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}", reason)
        for reason, numbers in pages.items()
    )


def _ranges(numbers: list[int]) -> str:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in ranges)
