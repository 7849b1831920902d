"""A mail as it was saved (eml) -> who wrote it, when, on what, and what it says."""

import contextlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser

from rag_memtok.documents.encodings import (
    AS_BROWSERS_DO,
    Unreadable,
    canonical_name,
    detect_encoding,
)
from rag_memtok.documents.pages import read_page

HEADERS = ("Subject", "From", "To", "Cc", "Date")


def text_of_mail(data: bytes) -> str:
    """The text of a mail: headers that say something to a reader, body, names of attachments.

    Of a text in several forms the plain one is taken. A mail within it is read as well; what else
    is attached is named.

    Raises:
        Unreadable: it is no mail.
    """
    plain = data.removeprefix(BOM_UTF8)
    message = BytesParser(EmailMessage, policy=policy.default).parsebytes(plain)
    if not any(name in message for name in HEADERS):
        raise Unreadable("no mail: there is no subject, sender or date in its head")
    return "\n\n".join(filter(None, _parts(message)))


def _parts(message: MIMEPart) -> Iterator[str]:
    yield "\n".join(f"{name}: {value}" for name in HEADERS if (value := _header(message, name)))
    body = message.get_body(("plain", "html"))
    text = _part_text(body) if body is not None else ""
    if not text and (page := message.get_body(("html",))) is not None:
        text = _part_text(page)
    yield text
    if body is None and not message.is_multipart():
        # its parts cannot be told apart, or it is nothing but a file
        broken = message.get_content_maintype() == "multipart"
        yield from [_part_text(message)] if broken else _attachment_text(message)
    for part in message.iter_attachments():
        yield from _attachment_text(part)


def _attachment_text(part: MIMEPart) -> Iterator[str]:
    """The text of an attached part, or else its name."""
    name = part.get_filename()
    if part.get_content_type() == "message/rfc822":
        yield from (text for mail in part.iter_parts() for text in _parts(mail))
    elif part.is_multipart():
        for inner in part.iter_parts():
            yield from _attachment_text(inner)
    elif part.get_content_maintype() == "text" and not name:
        yield _part_text(part)
    elif not part.get("Content-ID") or part.is_attachment():  # a picture within the text
        yield f"Attachment, not read: {name or part.get_content_type()}"


def _header(message: MIMEPart, name: str) -> str:
    """A header on one line; "" if there is none. One that is broken is as it is in the file."""
    value = next((str(raw) for key, raw in message.raw_items() if key.lower() == name.lower()), "")
    if not value.isascii():  # it should be encoded
        value = _decode(value.encode("utf-8", "surrogateescape"), "")
    else:
        with contextlib.suppress(Exception):  # the parser of addresses and dates raises anything
            parsed = message[name]
            value = value if parsed is None or parsed.defects else str(parsed)
    return " ".join(value.split())


def _part_text(part: MIMEPart) -> str:
    """The text of a part, in the encoding that it says, if it gives a text in that."""
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    text = _decode(data, canonical_name(part.get_content_charset() or ""))
    if part.get_content_subtype() == "html":
        text = read_page(text).text
    return text.replace("\r\n", "\n").strip()


def _decode(data: bytes, charset: str) -> str:
    for name in () if charset in ("", "ascii") else (AS_BROWSERS_DO.get(charset, charset), charset):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(name)
    try:
        return data.decode(detect_encoding(data).name)
    except Unreadable:
        return data.decode("utf-8", "replace")
