"""Bytes of a text file -> the encoding they are in.

Believed are, in this order, a byte-order mark, what the user says (`--encoding`), and what an XML
or HTML file declares of itself, unless letters in it show that it is UTF-8. What says nothing is
UTF-8 where it can be, and else in the likeliest encoding: that is an assumption, and told.

Whatever it is, the text has to give the same bytes again. A byte-order mark is the text's first
character, so that it, too, comes back.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

UTF8 = "utf-8"
MARKS = {
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# codecs that would write a mark of their own, and what they are without one
MARKED = {"utf-8-sig": UTF8, "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
EMPTY, BLANK = "empty", "only white space"  # reasons of what has no text, and would have none
NO_TEXT = frozenset("utf-7 unicode-escape raw-unicode-escape idna punycode".split())
# An encoding that is declared -> the larger one that every browser reads instead.
# Source: https://encoding.spec.whatwg.org/#names-and-labels
AS_BROWSERS_DO = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
}
DECLARED_AT = 1024  # bytes in which HTML has to declare its encoding
XML = re.compile(rb"\s*<\?xml\b[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)")
HTML = re.compile(rb"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
# what people have, the commonest first of those that are alike
FAMILIAR = (
    "cp1252 cp1250 cp1251 cp1253 cp1254 cp1255 cp1256 cp1257 cp874 iso8859_2 koi8_r cp866 cp932 "
    "euc_jp iso2022_jp gb18030 big5 cp949 mac_roman cp850"
).split()
CONTROLS = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
# signs that no word has inside, and a capital between small letters: both are of another encoding
TORN = re.compile(
    "(?<=[^\\W\\d_])[\u00a1-\u00b4\u00b6\u00b8-\u00bf\u00d7\u00f7\u2020\u2021\u02c6\u2030\u2122"
    "\u02d8-\u02dd\u20ac](?=[^\\W\\d_])|(?<=[a-z])[\u00c0-\u00de](?=[a-z])"
)
SOME = 4  # letters: less may be anything
SWITCH = re.compile(rb"\x1b\$[@B]")  # to Japanese, in iso2022_jp
MOSTLY_LATIN = 0.3  # a smaller share of bytes beyond ASCII
CP1252_LIKES = ("cp1250", "cp1254", "cp1257")  # as cp1252, but for some letters
TELLING, CLEARLY = 10, 0.1  # so many letters beyond ASCII, and more of what is called coherence


class Unreadable(Exception):
    """The reason for which a file, or a part of it, cannot be read.

    Loaders raise it; `scan` and `read` turn it into a Skipped.
    """


@dataclass(frozen=True, slots=True)
class Encoding:
    """An encoding by Python's name of it; `assumed`: nothing says that it is this one."""

    name: str
    assumed: bool = False


def canonical_name(name: str) -> str:
    """Python's own name of an encoding of texts, "" if there is none of that name."""
    try:
        b"a".decode(name, "replace")
        canonical = codecs.lookup(name).name
    except (LookupError, ValueError):
        return ""
    return "" if canonical in NO_TEXT else MARKED.get(canonical, canonical)


def detect_encoding(data: bytes, wanted: str = "", *, markup: bool = False) -> Encoding:
    """The encoding of a text file.

    Args:
        wanted: what the user says it is, by its `canonical_name`.
        markup: whether it is HTML, and may declare an encoding as such; XML tells by its first
            line.

    Raises:
        Unreadable: it is no text, nothing is in it, or no encoding gives its bytes back.

    Cost: decodes and encodes it; where nothing says what it is, some ten times.
    """
    if not data:
        raise Unreadable(EMPTY)
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), "")
    if name := marked or wanted:
        return Encoding(_require_text(data, name))
    is_utf8 = _round_trips(data, UTF8)
    if not is_utf8 or data.isascii():
        for name in _declared_encodings(data, markup=markup):
            if _round_trips(data, name):
                return Encoding(_require_text(data, name))
    if name := _unlike_ascii(data):
        return Encoding(name, assumed=True)
    if is_utf8 or 0 in data or _is_broken(data):
        return Encoding(_require_text(data, UTF8))
    return Encoding(_guess(data), assumed=True)


def _unlike_ascii(data: bytes) -> str:
    """The encoding of what looks like ASCII with strange characters in it; "" if it is none such.

    UTF-16 without a byte-order mark has 0 for every other byte, for the most part; the Japanese of
    mails switches with an escape.
    """
    pairs = (("utf-16-le", data[1::2], data[::2]), ("utf-16-be", data[::2], data[1::2]))
    names = [
        name
        for name, high, low in pairs
        if len(high) >= SOME and 0 not in low and 2 * high.count(0) > len(high)
    ]
    if data.isascii() and SWITCH.search(data):
        names.append("iso2022_jp")
    fitting = (name for name in names if _round_trips(data, name) and _is_clean(data.decode(name)))
    return next(fitting, "")


def _require_text(data: bytes, name: str) -> str:
    """The encoding's name, if the data is a text in it.

    Raises:
        Unreadable: it is not.
    """
    shown = name.upper() if name.startswith("utf") else name
    if name == UTF8 and (zero := data.find(0)) >= 0:
        half = not any(data[:64:2]) or not any(data[1:64:2])
        hint = "; UTF-16 without a byte-order mark? --encoding utf-16-le" if half else ""
        raise Unreadable(f"binary: a NUL at byte {zero}{hint}")
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not {shown} at byte {error.start}") from error
    if "\0" in text:
        raise Unreadable(f"binary: a NUL at character {text.index(chr(0))}")
    if not _round_trips(data, name):
        raise Unreadable(f"not {shown}: it would not give the same bytes again")
    if not text.removeprefix("\ufeff").strip():
        raise Unreadable(BLANK)
    return name


def _round_trips(data: bytes, name: str) -> bool:
    try:
        return data.decode(name).encode(name) == data
    except UnicodeError:
        return False


def _declared_encodings(data: bytes, *, markup: bool) -> Iterator[str]:
    """The encodings that the file says of itself, as browsers take it first.

    A declaration that can be read as ASCII is in no encoding of two bytes a letter.
    """
    for pattern in (XML, HTML) if markup else (XML,):
        match = pattern.match if pattern is XML else pattern.search
        if declaration := match(data[:DECLARED_AT]):
            label = declaration[1].decode("ascii", "replace").lower()
            name = canonical_name(label) or canonical_name(label.removeprefix("x-"))
            if name and not name.startswith(("utf-16", "utf-32")):
                yield AS_BROWSERS_DO.get(name, name)
                yield name


def _guess(data: bytes) -> str:
    """The likeliest encoding of a text that does not say it, and is not UTF-8.

    Raises:
        Unreadable: there is none.
    """
    for name in _plausible_encodings(data):
        if _round_trips(data, name) and _is_clean(data.decode(name)):
            return codecs.lookup(name).name
    raise Unreadable("binary, or in an encoding that is not known; --encoding NAME says which")


def _plausible_encodings(data: bytes) -> Iterator[str]:
    """Encodings in which the data makes sense, the likeliest first.

    What is Latin for the most part is cp1252 if it can be: its likes differ by a few letters, and
    only where another's letters are more like a language's is it rather that.
    """
    from charset_normalizer import from_bytes

    matches = list(from_bytes(data, cp_isolation=FAMILIAR))
    western = next((match for match in matches if "cp1252" in match.could_be_from_charset), None)
    head = data[:100_000]
    beyond = sum(byte > 0x7F for byte in head)
    if western and beyond < MOSTLY_LATIN * len(head):
        yield from (
            match.encoding
            for match in matches
            if match.encoding in CP1252_LIKES
            and beyond >= TELLING
            and match.chaos <= western.chaos
            and match.coherence > western.coherence + CLEARLY
        )
        yield "cp1252"
    for match in matches:
        yield from match.could_be_from_charset


def _is_clean(text: str) -> bool:
    """Whether it has no control characters (but the end that DOS put), and no torn words."""
    return not CONTROLS.search(text.removesuffix("\x1a")) and not TORN.search(text)


def _is_broken(data: bytes) -> bool:
    """Whether it is UTF-8, but for fewer bytes than it has letters beyond ASCII."""
    text = data.decode(UTF8, "replace")
    return len(text) - len(text.encode("ascii", "ignore")) >= 2 * text.count("\ufffd")


# --- the encoding in an extractor's name ---


def with_encoding(extractor: str, encoding: str) -> str:
    """The name of how a text was got, with its encoding: "text/1", "text/1 cp1252"."""
    return extractor if encoding in ("", UTF8) else f"{extractor} {encoding}"


def encoding_in(extractor: str) -> str:
    """The encoding in a name of `with_encoding`."""
    return canonical_name(extractor.partition(" ")[2]) or UTF8
