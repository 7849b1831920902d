"""The audit as a page: one file without script or network.

It is light or dark as the reader's system is, and shows what failed as a diff of tokens.

Documents and stores are hostile: every text from them goes through `shown`, and the page's own
policy forbids scripts and requests.
"""

import html
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from rag_memtok.errors import StoreDamaged, UsageError, escaped
from rag_memtok.model.lm import LM
from rag_memtok.pipeline.audit import Audit, Finding
from rag_memtok.pipeline.audit_charts import charts
from rag_memtok.pipeline.recite import Recited
from rag_memtok.store.files import is_regular_file, write_whole
from rag_memtok.store.store import Store

LIMIT = 200  # chunks, findings and documents shown of each; the rest is counted
ORDER = (
    "mismatch",
    "damaged",
    "fragile",
    "assisted",
    "pinned",
    "exact",
    "text-only",
    "incomparable",
)
WORTH_A_LOOK = ORDER[:4]

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
TITLE = b"<title>Reconstruction audit</title>"
STYLE = Path(__file__).with_name("audit_report.css")


def write(path: Path, store: Store, found: Audit, now: Mapping[str, str], lm: LM | None) -> None:
    """Writes the page, for its owner alone, whoever could read what was there before.

    The reason is that it quotes the documents. See `page`.
    """
    write_whole(path, page(store, found, now, lm).encode())


def page(store: Store, found: Audit, now: Mapping[str, str], lm: LM | None) -> str:
    """The page.

    Args:
        now: what the store's manifest would say if it were written now.
        lm: for the words of tokens; None if no chunk was decoded.
    """
    body = "".join((
        headline(store, found), counts(found), charts(found, float(store.manifest.get("tau", 0))),
        findings(found.findings), chunks(store, found, lm), documents(found),
        profile(store.manifest, now, found),
    ))  # fmt: skip
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta '
        f'http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        'content="light dark">'
        f"{TITLE.decode()}<style>{style}</style></head><body>{body}</body></html>\n"
    )


def require_place(page: Path) -> None:
    """Refuses a place for the page where something else is; an earlier page is written over.

    Raises:
        UsageError: there is no such folder, or a file that is no such page.
    """
    if not page.parent.is_dir():
        raise UsageError(
            f"there is no folder {page.parent} for the report", remedy=f"mkdir -p {page.parent}"
        )
    if os.path.lexists(page) and not (is_regular_file(page) and TITLE in page.read_bytes()[:4096]):
        raise UsageError(
            f"{page} is in the way of the report, and is not one",
            remedy="give the report another name",
        )


def shown(text: object) -> str:
    r"""A text as HTML shows it, with markup escaped.

    Every control and format character but newline and tab is written out, as `\x1b`.
    """
    return html.escape(escaped(str(text)))


def table(names: Sequence[str], rows: Iterable[str]) -> str:
    """A table of finished rows."""
    head = "".join(f"<th>{name}" for name in names)
    return f'<div class="table"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def more(everything: Sequence[object]) -> str:
    """Says what is not shown."""
    return (
        f'<p class="faint">and {len(everything) - LIMIT} more</p>'
        if len(everything) > LIMIT
        else ""
    )


def kind(name: str) -> str:
    """A verdict with its colour."""
    return f'<span class="kind" style="--state: var(--{shown(name)})">{shown(name)}</span>'


# --- at a glance


def headline(store: Store, found: Audit) -> str:
    """What was audited, when, and the outcome in a sentence."""
    state = {0: "exact", 6: "fragile"}.get(found.exit_code, "mismatch")
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    sample = f"<p>{shown(found.sample)}</p>" if found.sample else ""
    return (
        f'<h1>Reconstruction audit</h1><p class="faint">{shown(store.folder)} · {when} · '
        f"{found.seconds:.1f} s · {shown(found.profile)}</p>"
        f'<p class="sentence" style="--state: var(--{state})">{shown(found.sentence)}</p>{sample}'
    )


def counts(found: Audit) -> str:
    """Numbers, and the verdicts as shares of a bar."""
    verdicts = [(name, found.counts[name]) for name in ORDER if found.counts.get(name)]
    pins = [one.verdict for one in found.recited]
    cells = [("chunks checked", f"{found.checked} of {found.chunks}")]
    if found.checked:
        partly = found.checked < found.chunks
        of = (
            f"{found.documents_checked} checked, {found.documents} in all"
            if partly
            else found.documents
        )
        cells.append(("documents come back", f"{found.documents_proven} of {of}"))
        tokens = sum(one.tokens + 1 for one in pins)
        cells.append(("correction pins", per_token(sum(one.corrections for one in pins), tokens)))
        cells.append(("safety pins", per_token(sum(one.safeties for one in pins), tokens)))
    total = max(1, sum(count for _, count in verdicts))
    bar = "".join(
        f'<i style="width: {count / total:.3%}; background: var(--{name})"></i>'
        for name, count in verdicts
    )
    legend = " &nbsp; ".join(f"{kind(name)} {count}" for name, count in verdicts)
    numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    return f"<dl>{numbers}</dl>" + (
        f'<div class="share">{bar}</div><p>{legend}</p>' if verdicts else ""
    )


def per_token(count: int, tokens: int) -> str:
    """A number of pins, and what share of the tokens that is."""
    return (
        f'{count} <small class="faint">{count / max(1, tokens):.1%} of tokens</small>'
        if count
        else "0"
    )


# --- what needs a look


def findings(found: Sequence[Finding]) -> str:
    """Everything that is not proven."""
    if not found:
        return ""
    rows = (
        f"<tr><td>{kind(one.kind)}<td>{shown(one.subject)}<td>{shown(one.reason)}</tr>"
        for one in found[:LIMIT]
    )
    return f"<h2>Not proven</h2>{table(('verdict', 'where', 'why'), rows)}{more(found)}"


def chunks(store: Store, found: Audit, lm: LM | None) -> str:
    """The failing chunks, then the assisted, each with what came out beside what was stored."""
    chosen = sorted(
        (one for one in found.recited if one.verdict.kind in WORTH_A_LOOK),
        key=lambda one: ORDER.index(one.verdict.kind),
    )
    if not chosen or lm is None:
        return ""
    legend = (
        '<p class="legend"><del>stored, but not decoded</del> <ins>decoded, but not stored</ins> '
        "<mark>given by a correction pin</mark> "
        '<mark class="safety">given by a safety pin</mark></p>'
    )
    articles = "".join(article(store, lm, one) for one in chosen[:LIMIT])
    return f"<h2>Chunks that need a look</h2>{legend}{articles}{more(chosen)}"


def article(store: Store, lm: LM, one: Recited) -> str:
    """One chunk: where it stands, its verdict, its tokens."""
    places = store.occurrences([one.chunk_id])[one.chunk_id]
    where = ", ".join(f"{place.path} {place.locator}" for place in places[:3])
    verdict = one.verdict
    margin = (
        f" · smallest lead {verdict.margin:.3f}"
        if math.isfinite(verdict.margin) and verdict.kind not in ("damaged", "mismatch")
        else ""
    )
    pins = (
        f" · pins: {verdict.corrections} corrections, {verdict.safeties} for safety"
        if verdict.corrections + verdict.safeties
        else ""
    )
    facts = f"{verdict.tokens} tokens{margin}{pins}" if verdict.kind != "damaged" else ""
    reason = f"<p>{shown(verdict.reason)}</p>" if verdict.reason else ""
    words, said = content(store, lm, one)
    return (
        f"<article><h3>{kind(verdict.kind)} &nbsp;{shown(where)}</h3><p "
        f'class="faint">{shown(one.chunk_id[:12])} {facts}{said}</p>{reason}'
        f"{f'<pre>{words}</pre>' if words else ''}</article>"
    )


def content(store: Store, lm: LM, one: Recited) -> tuple[str, str]:
    """The chunk's tokens as HTML, and what is to be said of them.

    A damaged text or record is not shown, but named elsewhere.
    """
    try:
        text = store.text(one.chunk_id)
    except StoreDamaged:
        text = None
    if not one.tokens:
        return ("", "") if text is None else (shown(text), " · the text that was kept, not decoded")
    pins = {
        pin.position: "correction" if pin.position in one.corrections else "safety"
        for pin in store.record(one.chunk_id).pins
    }
    if text is None:
        return "".join(
            marked(lm, one.tokens, 0, pins)
        ), " · what was decoded; no text is kept to compare it with"
    return "".join(diff(lm, lm.encode(text), one.tokens, pins)), ""


def diff(
    lm: LM, stored: Sequence[int], decoded: Sequence[int], pins: Mapping[int, str]
) -> Iterator[str]:
    """What was stored against what was decoded, token by token.

    The pinned tokens of the latter are marked.
    """
    for change, first, last, start, end in SequenceMatcher(
        None, stored, decoded, autojunk=False
    ).get_opcodes():
        if change in ("delete", "replace"):
            yield tagged("del", lm.decode(stored[first:last]))
        tag = "" if change == "equal" else "ins"
        yield from marked(lm, decoded[start:end], start, pins, tag)


def marked(
    lm: LM, tokens: Sequence[int], offset: int, pins: Mapping[int, str], tag: str = ""
) -> Iterator[str]:
    """Tokens as text, in `tag` if one is given; those that pins gave are marked."""
    for first, end, text in pieces(lm, tokens):
        given = [pin for position in range(first, end) if (pin := pins.get(offset + position))]
        if given:
            yield tagged(
                "mark", text, f' class="{given[0]}" title="token {offset + first}: {given[0]} pin"'
            )
        else:
            yield tagged(tag, text) if tag else shown(text)


def pieces(lm: LM, tokens: Sequence[int]) -> Iterator[tuple[int, int, str]]:
    """Yields (first, end, text) of each run of tokens that is whole characters.

    A run is mostly one token; the one before decides on its space.
    """
    first = 0
    for end in range(1, len(tokens) + 1):
        before = list(tokens[max(first - 1, 0) : first])
        text = lm.decode([*before, *tokens[first:end]])[len(lm.decode(before)) :]
        if "\ufffd" not in text or end == len(tokens) or end - first >= 8:
            yield first, end, text
            first = end


def tagged(tag: str, text: str, attributes: str = "") -> str:
    """A text in a tag.

    A new line in it is drawn, or it would not be seen; the last ones then follow the tag.
    """
    within = text.rstrip("\n")
    ending = len(text) - len(within)
    drawn = shown(within).replace("\n", "↵\n") + "↵" * ending
    return f"<{tag}{attributes}>{drawn}</{tag}>" + "\n" * ending


# --- the whole


def documents(found: Audit) -> str:
    """Every document, those that did not come back first."""
    if not found.proofs:
        return ""
    words = {
        True: "identical",
        False: "NOT identical",
        None: "not proven: not all of its chunks were checked and came back",
    }
    ranked = sorted(found.proofs, key=lambda proof: {False: 0, None: 1, True: 2}[proof[1]])
    rows = (
        f"<tr><td>{shown(document.path)}<td>{document.chunks}<td>{document.characters}"
        f"<td>{words[proof]}</tr>"
        for document, proof in ranked[:LIMIT]
    )
    listed = table(("document", "chunks", "characters", "rejoined"), rows)
    return f"<h2>Documents</h2>{listed}{more(ranked)}"


def profile(manifest: Mapping[str, str], now: Mapping[str, str], found: Audit) -> str:
    """What the store was written with, beside what audited it."""
    rows = []
    for key in [
        *(key for key in manifest if key in now),
        *(key for key in manifest if key not in now and key != "state"),
    ]:
        then, here = manifest[key], now.get(key)
        differs = ' class="differs"' if here is not None and here != then else ""
        today = "" if here is None else abridged(here)
        rows.append(f"<tr{differs}><td>{shown(key)}<td>{abridged(then)}<td>{today}</tr>")
    said = (
        f"<p>The audit ran in this profile: {shown(found.profile)}. A line whose two values "
        "differ is marked.</p>"
    )
    return f"<h2>Then and now</h2>{said}{table(('', 'written with', 'audited with'), rows)}"


def abridged(value: str) -> str:
    """A value; of a digest the beginning."""
    return (
        f'<span title="{shown(value)}">{shown(value[:16])}…</span>'
        if len(value) == 64
        else shown(value)
    )
