"""The audit as a page: one file without script or network.

It is light or dark as the reader's system is, and shows what failed as a diff of tokens.

Documents and stores are hostile: every text from them goes through `to_html`, and the page's own
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
from rag_memtok.pipeline.reconstruction import Reconstructed
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


def write(path: Path, store: Store, audit: Audit, now: Mapping[str, str], lm: LM | None) -> None:
    """Writes the page for its owner alone, as it quotes the documents. See `page`."""
    write_whole(path, page(store, audit, now, lm).encode())


def page(store: Store, audit: Audit, now: Mapping[str, str], lm: LM | None) -> str:
    """The HTML of the page.

    Args:
        now: what the store's manifest would say if it were written now.
        lm: for the text of tokens; None if no chunk was decoded.
    """
    body = "".join((
        headline(store, audit), counts(audit), charts(audit, float(store.manifest.get("tau", 0))),
        findings(audit.findings), chunks(store, audit, lm), documents(audit),
        profile(store.manifest, now, audit),
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


def to_html(text: object) -> str:
    r"""A text as HTML shows it, with markup escaped.

    Every control and format character but newline and tab is written out, as `\x1b`.
    """
    return html.escape(escaped(str(text)))


def table(names: Sequence[str], rows: Iterable[str]) -> str:
    """A table of finished rows."""
    head = "".join(f"<th>{name}" for name in names)
    return f'<div class="table"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def count_hidden(everything: Sequence[object]) -> str:
    """A line that says how many are not shown."""
    return (
        f'<p class="faint">and {len(everything) - LIMIT} more</p>'
        if len(everything) > LIMIT
        else ""
    )


def kind(name: str) -> str:
    """A verdict's kind in its color."""
    return f'<span class="kind" style="--state: var(--{to_html(name)})">{to_html(name)}</span>'


# --- at a glance


def headline(store: Store, audit: Audit) -> str:
    """The head of the page: what was audited, when, and the outcome in a sentence."""
    state = {0: "exact", 6: "fragile"}.get(audit.exit_code, "mismatch")
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    sample = f"<p>{to_html(audit.sample)}</p>" if audit.sample else ""
    return (
        f'<h1>Reconstruction audit</h1><p class="faint">{to_html(store.folder)} · {when} · '
        f"{audit.seconds:.1f} s · {to_html(audit.profile)}</p>"
        f'<p class="sentence" style="--state: var(--{state})">{to_html(audit.sentence)}</p>{sample}'
    )


def counts(audit: Audit) -> str:
    """Numbers, and the verdicts as shares of a bar."""
    verdicts = [(name, audit.counts[name]) for name in ORDER if audit.counts.get(name)]
    pins = [chunk.verdict for chunk in audit.recited]
    cells = [("chunks checked", f"{audit.checked} of {audit.chunks}")]
    if audit.checked:
        partly = audit.checked < audit.chunks
        of = (
            f"{audit.documents_checked} checked, {audit.documents} in all"
            if partly
            else audit.documents
        )
        cells.append(("documents come back", f"{audit.documents_proven} of {of}"))
        tokens = sum(verdict.tokens + 1 for verdict in pins)
        cells.append(
            ("correction pins", per_token(sum(verdict.corrections for verdict in pins), tokens))
        )
        cells.append(("safety pins", per_token(sum(verdict.safeties for verdict in pins), tokens)))
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


def findings(listed: Sequence[Finding]) -> str:
    """The table of everything that is not proven."""
    if not listed:
        return ""
    rows = (
        f"<tr><td>{kind(finding.kind)}<td>{to_html(finding.subject)}<td>{to_html(finding.reason)}</tr>"
        for finding in listed[:LIMIT]
    )
    return f"<h2>Not proven</h2>{table(('verdict', 'where', 'why'), rows)}{count_hidden(listed)}"


def chunks(store: Store, audit: Audit, lm: LM | None) -> str:
    """The failing chunks, then the assisted, each with what came out beside what was stored."""
    chosen = sorted(
        (chunk for chunk in audit.recited if chunk.verdict.kind in WORTH_A_LOOK),
        key=lambda chunk: ORDER.index(chunk.verdict.kind),
    )
    if not chosen or lm is None:
        return ""
    legend = (
        '<p class="legend"><del>stored, but not decoded</del> <ins>decoded, but not stored</ins> '
        "<mark>given by a correction pin</mark> "
        '<mark class="safety">given by a safety pin</mark></p>'
    )
    articles = "".join(article(store, lm, chunk) for chunk in chosen[:LIMIT])
    return f"<h2>Chunks that need a look</h2>{legend}{articles}{count_hidden(chosen)}"


def article(store: Store, lm: LM, chunk: Reconstructed) -> str:
    """A chunk: where it stands, its verdict, its tokens."""
    places = store.occurrences([chunk.chunk_id])[chunk.chunk_id]
    where = ", ".join(f"{place.path} {place.locator}" for place in places[:3])
    verdict = chunk.verdict
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
    reason = f"<p>{to_html(verdict.reason)}</p>" if verdict.reason else ""
    tokens, note = content(store, lm, chunk)
    return (
        f"<article><h3>{kind(verdict.kind)} &nbsp;{to_html(where)}</h3><p "
        f'class="faint">{to_html(chunk.chunk_id[:12])} {facts}{note}</p>{reason}'
        f"{f'<pre>{tokens}</pre>' if tokens else ''}</article>"
    )


def content(store: Store, lm: LM, chunk: Reconstructed) -> tuple[str, str]:
    """The chunk's tokens as HTML, and what is to be said of them.

    A damaged text or record is not shown, but named elsewhere.
    """
    try:
        text = store.text(chunk.chunk_id)
    except StoreDamaged:
        text = None
    if not chunk.tokens:
        return (
            ("", "") if text is None else (to_html(text), " · the text that was kept, not decoded")
        )
    pins = {
        pin.position: "correction" if pin.position in chunk.corrections else "safety"
        for pin in store.record(chunk.chunk_id).pins
    }
    if text is None:
        return "".join(
            mark_pins(lm, chunk.tokens, 0, pins)
        ), " · what was decoded; no text is kept to compare it with"
    return "".join(diff(lm, lm.encode(text), chunk.tokens, pins)), ""


def diff(
    lm: LM, stored: Sequence[int], decoded: Sequence[int], pins: Mapping[int, str]
) -> Iterator[str]:
    """Yields the diff of stored and decoded tokens; pinned ones of the latter are marked."""
    for change, first, last, start, end in SequenceMatcher(
        None, stored, decoded, autojunk=False
    ).get_opcodes():
        if change in ("delete", "replace"):
            yield wrap_in_tag("del", lm.decode(stored[first:last]))
        tag = "" if change == "equal" else "ins"
        yield from mark_pins(lm, decoded[start:end], start, pins, tag)


def mark_pins(
    lm: LM, tokens: Sequence[int], offset: int, pins: Mapping[int, str], tag: str = ""
) -> Iterator[str]:
    """Yields tokens as text, in `tag` if there is one; those that pins gave are marked."""
    for first, end, text in pieces(lm, tokens):
        kinds = [pin for position in range(first, end) if (pin := pins.get(offset + position))]
        if kinds:
            yield wrap_in_tag(
                "mark", text, f' class="{kinds[0]}" title="token {offset + first}: {kinds[0]} pin"'
            )
        else:
            yield wrap_in_tag(tag, text) if tag else to_html(text)


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


def wrap_in_tag(tag: str, text: str, attributes: str = "") -> str:
    """A text in a tag.

    A new line in it is drawn, or it would not be seen; the last ones then follow the tag.
    """
    within = text.rstrip("\n")
    ending = len(text) - len(within)
    drawn = to_html(within).replace("\n", "↵\n") + "↵" * ending
    return f"<{tag}{attributes}>{drawn}</{tag}>" + "\n" * ending


# --- the whole


def documents(audit: Audit) -> str:
    """The table of documents, those that did not come back first."""
    if not audit.proofs:
        return ""
    outcome = {
        True: "identical",
        False: "NOT identical",
        None: "not proven: not all of its chunks were checked and came back",
    }
    ranked = sorted(audit.proofs, key=lambda proof: {False: 0, None: 1, True: 2}[proof[1]])
    rows = (
        f"<tr><td>{to_html(document.path)}<td>{document.chunks}<td>{document.characters}"
        f"<td>{outcome[proof]}</tr>"
        for document, proof in ranked[:LIMIT]
    )
    listed = table(("document", "chunks", "characters", "rejoined"), rows)
    return f"<h2>Documents</h2>{listed}{count_hidden(ranked)}"


def profile(manifest: Mapping[str, str], now: Mapping[str, str], audit: Audit) -> str:
    """The table of what the store was written with, and what audited it."""
    rows = []
    for key in [
        *(key for key in manifest if key in now),
        *(key for key in manifest if key not in now and key != "state"),
    ]:
        written, current = manifest[key], now.get(key)
        differs = ' class="differs"' if current is not None and current != written else ""
        today = "" if current is None else abridge(current)
        rows.append(f"<tr{differs}><td>{to_html(key)}<td>{abridge(written)}<td>{today}</tr>")
    note = (
        f"<p>The audit ran in this profile: {to_html(audit.profile)}. A line whose two values "
        "differ is marked.</p>"
    )
    return f"<h2>Then and now</h2>{note}{table(('', 'written with', 'audited with'), rows)}"


def abridge(value: str) -> str:
    """A value; of a digest the beginning."""
    return (
        f'<span title="{to_html(value)}">{to_html(value[:16])}…</span>'
        if len(value) == 64
        else to_html(value)
    )
