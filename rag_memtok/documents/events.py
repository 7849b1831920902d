"""A calendar (ics) -> its events: what each is, when, where, and what is said of it.

Source: RFC 5545.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from rag_memtok.documents.encodings import UTF8, Unreadable, detect_encoding

FOLD = re.compile(rb"\r?\n[ \t]")
LINE = re.compile(rb"[^\n]*(?:\n[ \t][^\n]*)*\n?")  # with what is folded
PROPERTY = re.compile(r"""([\w-]+)((?:;(?:"[^"]*"|[^":])*)?):(.*)""", re.DOTALL)
ESCAPE = re.compile(r"\\([\\;,nN])")
ZONE = re.compile(r""";TZID="?([^";]+)""", re.IGNORECASE)
MOMENT = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)\d\d(Z?))?", re.ASCII)
SPAN = re.compile(r"\+?P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.ASCII)
# in words of our own: no locale may change what a text is
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
WEEKDAYS = {day[:2].upper(): day for day in DAYS}
WHICH = {"1": "first", "2": "second", "3": "third", "4": "fourth", "5": "fifth", "-1": "last"}
UNITS = {"DAILY": "day", "WEEKLY": "week", "MONTHLY": "month", "YEARLY": "year"}


class Event(NamedTuple):
    """An event: the line of the file in which it begins, what it is called, all that it says.

    `problem`, if not empty, says why it cannot be read.
    """

    line: int
    summary: str
    text: str
    problem: str = ""


class Property(NamedTuple):
    """What a line says: its parameters as they are written, its value."""

    parameters: str
    value: str


class Moment(NamedTuple):
    """A time by the clocks of `zone`, "" for those of wherever one is; if not `timed`, a day."""

    at: datetime
    timed: bool
    zone: str


def events_of(data: bytes) -> Iterator[Event]:
    """The events of a calendar in their order; tasks, notes and reminders are left out.

    Raises:
        Unreadable: it is no text, or there is no event in it.
    """
    event, begun, inner, has_event = dict[str, Property](), 0, "", False
    for number, line in _lines(data):
        if not (parts := PROPERTY.fullmatch(line)):
            continue
        name, value = parts[1].upper(), parts[3]
        block = value.strip().upper() if name in ("BEGIN", "END") else ""
        if block == "VEVENT":
            if begun:
                yield _event(begun, event, whole=name == "END")
            event, begun, inner = {}, number if name == "BEGIN" else 0, ""
            has_event |= name == "BEGIN"
        elif name == "BEGIN":
            inner = inner or block  # a reminder, whose description is not the event's
        elif name == "END":
            inner = "" if inner == block else inner
        elif begun and not inner:
            event.setdefault(name, Property(parts[2], value))
    if begun:
        yield _event(begun, event, whole=False)
    if not has_event:
        raise Unreadable("no event in it")


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Each line with its number in the file, unfolded as bytes: a fold may be within a letter."""
    name = detect_encoding(FOLD.sub(b"", data)).name
    if name != UTF8:
        data = data.decode(name, "replace").encode()
    number = 1
    for line in LINE.finditer(data.removeprefix(BOM_UTF8)):
        yield number, FOLD.sub(b"", line[0]).decode().rstrip("\r\n")
        number += line[0].count(b"\n")


def _event(line: int, event: dict[str, Property], *, whole: bool) -> Event:
    summary = " ".join(_plain(event, "SUMMARY").split())
    rows = {
        "When": _when(event),
        "Repeats": _often(_plain(event, "RRULE")),
        "Where": " ".join(_plain(event, "LOCATION").split()),
        "Status": "cancelled" if _plain(event, "STATUS").upper() == "CANCELLED" else "",
    }
    head = [summary, *(f"{name}: {value}" for name, value in rows.items() if value)]
    parts = ("\n".join(filter(None, head)), _plain(event, "DESCRIPTION"))
    text = "\n\n".join(filter(None, parts))
    problem = ("" if text else "nothing in it") if whole else "cut off: its end is missing"
    return Event(line, summary, text, problem)


def _plain(event: dict[str, Property], name: str) -> str:
    """The value of a property without its escapes, "" if there is none."""
    value = event[name].value if name in event else ""
    return ESCAPE.sub(lambda sign: "\n" if sign[1] in "nN" else sign[1], value).strip()


# --- times, in words


def _when(event: dict[str, Property]) -> str:
    """From when to when; what is no time is as it is in the file."""
    try:
        start = _moment(event["DTSTART"])
        return _span(start, _end(event, start))
    except (KeyError, ValueError, OverflowError):
        values = (_plain(event, name) for name in ("DTSTART", "DTEND", "DURATION"))
        return " to ".join(filter(None, values))


def _moment(time: Property) -> Moment:
    """Raises ValueError: it is no time."""
    match = MOMENT.fullmatch(time.value.strip())
    if not match:
        raise ValueError("no time")
    zone = ZONE.search(time.parameters)
    year, month, day, hour, minute = (int(part or 0) for part in match.groups()[:5])
    return Moment(
        datetime(year, month, day, hour, minute),
        timed=bool(match[4]),
        zone="UTC" if match[6] else zone[1] if zone else "",
    )


def _end(event: dict[str, Property], start: Moment) -> Moment:
    """When it ends, its start if nothing says that; of whole days the last."""
    end = start
    if "DTEND" in event:
        end = _moment(event["DTEND"])
    elif "DURATION" in event:
        match = SPAN.fullmatch(_plain(event, "DURATION"))
        if not match:
            raise ValueError("no duration")
        names = ("weeks", "days", "hours", "minutes", "seconds")
        lasts = zip(names, (int(part or 0) for part in match.groups()), strict=True)
        end = start._replace(at=start.at + timedelta(**dict(lasts)))
    # a day that is an end is the one after the last
    return end if end.timed else max(start, end._replace(at=end.at - timedelta(days=1)))


def _span(start: Moment, end: Moment) -> str:
    """What two moments share is said once."""
    if start == end:
        return _in_words(start)
    same_day = end.timed and start.at.date() == end.at.date()
    return f"{_in_words(start, zone=start.zone != end.zone)} to {_in_words(end, day=not same_day)}"


def _in_words(moment: Moment, *, day: bool = True, zone: bool = True) -> str:
    parts = [_day(moment.at)] * day + [f"{moment.at:%H:%M}"] * moment.timed
    return ", ".join(parts) + (f" ({moment.zone})" if zone and moment.zone else "")


def _day(at: datetime) -> str:
    return f"{DAYS[at.weekday()]} {at.day} {MONTHS[at.month - 1]} {at.year}"


def _often(rule: str) -> str:
    """How often it comes again; of the rule only that, the weekdays and its end are told.

    A rule of another kind is as it is in the file.
    """
    parts = dict(part.partition("=")[::2] for part in rule.upper().split(";"))
    try:
        unit, step = UNITS[parts["FREQ"]], int(parts.get("INTERVAL", "1"))
        days = [_weekday(code) for code in filter(None, parts.get("BYDAY", "").split(","))]
        times = f", {int(parts['COUNT'])} times" if "COUNT" in parts else ""
        until = _moment(Property("", parts["UNTIL"])).at if "UNTIL" in parts else None
    except (KeyError, ValueError):
        return rule
    return "".join(
        [
            f"every {unit}" if step == 1 else f"every {step} {unit}s",
            f" on {' and '.join(days)}" if days else "",
            times,
            f", until {_day(until)}" if until else "",
        ]
    )


def _weekday(code: str) -> str:
    """A day of a rule: "MO", or "-1FR", the last Friday."""
    which, day = code[:-2], WEEKDAYS[code[-2:]]
    return f"the {WHICH[which.removeprefix('+')]} {day}" if which else day
