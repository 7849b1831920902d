"""What a store looks like on the screen: its documents, chunks, collections, a memory, settings; what a command did."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING

from rag_memtok import terminal

if TYPE_CHECKING:
    from rag_memtok.adapt.training import Progress
    from rag_memtok.adapt.trip import Adapted
    from rag_memtok.browse import ListedChunk, ListedDocument, Shown
    from rag_memtok.bundle import Bundled
    from rag_memtok.housekeeping import Collection, Setting
    from rag_memtok.ingest import Ingested
    from rag_memtok.migrate import Migrated
    from rag_memtok.study.paper import Protocol, Row, Standing

SHORT = 12  # characters of a chunk's id


def counted(verdicts: Mapping[str, int]) -> str:
    """Verdicts in a phrase."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(verdicts.items())) or "nothing"


def put_documents(listed: Sequence["ListedDocument"]) -> None:
    """A line for each document."""
    rows: list[Sequence[object]] = [("document", "chunks", "characters", "verdicts")]
    rows += [(one.document.path, one.document.chunks, one.document.characters, counted(one.verdicts)) for one in listed]
    terminal.put_columns(rows)


def put_chunks(listed: Sequence["ListedChunk"]) -> None:
    """A line for each chunk."""
    rows: list[Sequence[object]] = [("chunk", "tokens", "vectors", "verdict", "pins", "margin", "place")]
    for one in listed:
        pins = one.verdict.corrections + one.verdict.safeties
        place = f"{one.place.path}, {one.place.locator}" if one.place else "(of an unfinished ingest)"
        more = f" and {one.places - 1} more" if one.places > 1 else ""
        margin = f"{one.verdict.margin:.3f}"
        rows.append((one.chunk_id[:SHORT], one.verdict.tokens, one.vectors, one.verdict.kind, pins, margin, place + more))
    terminal.put_columns(rows)


def put_collections(listed: Sequence["Collection"]) -> None:
    """A line for each collection."""
    rows: list[Sequence[object]] = [("collection", "documents", "chunks", "verdicts", "model")]
    rows += [(one.name, one.summary.documents, one.summary.chunks, counted(one.summary.verdicts), one.model) for one in listed]
    terminal.put_columns(rows)


def put_shown(found: "Shown") -> None:
    """A memory: what it is, where it stands, what it takes, and its tokens."""
    verdict, sizes = found.verdict, found.bytes
    memory = sum(size for name, size in sizes.items() if name != "text")
    parts = ", ".join(f"{name} {size}" for name, size in sizes.items() if name != "text")
    terminal.put_table(
        {
            "chunk": found.chunk_id,
            "verdict": f"{verdict.kind}{f' ({verdict.reason})' if verdict.reason else ''}",
            "margin": f"{verdict.margin:.4f} logits at the weakest token that is not pinned",
            "pins": f"{verdict.corrections} corrections, {verdict.safeties} safeties",
            "memory": f"{found.shape[0]} vectors of {found.shape[1]} ({found.codec}) for {verdict.tokens} tokens",
            "bytes": f"{memory} ({parts}) against {sizes['text']} of text",
            "places": "; ".join(f"{one.path}, {one.locator}" for one in found.places) or "none: of an unfinished ingest",
        }
    )
    terminal.put("")
    if found.tokens:
        terminal.put_strip([(one.text, one.margin, one.pin) for one in found.tokens])
    else:
        terminal.put(found.text)


def put_settings(settings: Iterable["Setting"]) -> None:
    """A line for each dial."""
    rows: list[Sequence[object]] = [("dial", "value", "from")]
    rows += [(one.dial, repr(one.value), one.origin) for one in settings]
    terminal.put_columns(rows)


def put_exported(done: "Bundled") -> None:
    """What is in the file."""
    terminal.put(f"{done.documents} documents, {done.chunks} chunks written to {done.file} ({done.bytes / 1e6:.2f} MB)")
    terminal.say("the file is its documents' text: whoever can read it can read them")


def put_imported(done: "Bundled") -> None:
    """What is in the store."""
    terminal.put(f"{done.documents} documents, {done.chunks} chunks imported into {done.store}; rag-memtok verify proves them")
    if not done.own:
        terminal.say("the store was not made here: ask and chat need --trust-store, verify and restore do not")


def put_migrated(done: "Migrated") -> None:
    """What was rewritten, and where the old store is."""
    if done.chunks:
        terminal.put(f"{done.chunks} chunks rewritten for {done.model}: {counted(done.verdicts)}, in {terminal.duration(done.seconds)}")
    else:
        terminal.put(f"nothing to rewrite: the store is of {done.model}")
    if done.kept:
        terminal.put(f"the old store is kept in {done.kept}; --drop-old removes it")


def training_note(at: "Progress") -> str:
    """What is being done, how well it goes, and the time left for it."""
    losses = "" if isnan(at.loss) else f", loss {at.loss:.3f}, best aside {at.dev_loss:.3f}"
    return at.stage + losses + ("" if at.seconds_left is None else f", {terminal.duration(at.seconds_left)} left")


def put_adapted(done: "Adapted") -> None:
    """Where the adapter is, and what it measured on chunks set aside."""
    bond, dev = done.bond, done.bond.dev
    rows: dict[str, object] = {
        "adapter": f"{done.folder} ({bond.steps} steps, {terminal.duration(done.seconds)})",
        "set aside": f"{bond.trained_on['questions_aside']} questions about {terminal.counted(bond.trained_on['chunks_aside'], 'chunk')}",
        "loss": f"{dev['loss_before']:.3f} before, {dev['loss_after']:.3f} after",
        "F1, the text": f"{100 * dev['text']:.1f} (the frozen model)",
        "F1, adapter": f"{100 * dev['after']:.1f} reading {bond.kind} ({100 * dev['before']:.1f} without it)",
    }
    terminal.put_table(rows)


def put_watched(rounds: Sequence["Ingested"]) -> None:
    """The end of a watch."""
    files, chunks = sum(one.files for one in rounds), sum(one.chunks for one in rounds)
    removed = sum(one.removed for one in rounds)
    terminal.put(f"watched: {files} files written ({chunks} chunks), {removed} removed, in {len(rounds)} rounds; all of it is stored")


def trial_note(standing: "Standing") -> str:
    """Which model, exact so far, time left."""
    left = "" if standing.seconds_left is None else f", at most {terminal.duration(standing.seconds_left)} left"
    return f"{standing.model}: {standing.exact} exact{left}"


def put_paper(rows: Sequence["Row"], protocol: "Protocol") -> None:
    """A table for each corpus, a line for each model."""
    vectors = terminal.counted(protocol.vectors, "vector")
    terminal.put(f"the paper's protocol: recipe {protocol.recipe}, {vectors} a text, at most {protocol.budget} steps")
    for corpus in dict.fromkeys(row.corpus for row in rows):
        own = [row for row in rows if row.corpus == corpus]
        terminal.put("")
        terminal.put(f"{corpus}: {own[0].texts} texts of {own[0].characters:.0f} characters on average")
        lines: list[Sequence[object]] = [
            ("model", "parameters", "tokens", "accuracy", "exact", "free-running", "steps", "s/text", "margin")
        ]
        for row in own:
            margin = "-" if row.margin is None else f"{row.margin:.3f}"
            size, exact, free = f"{row.parameters / 1e6:.1f}M", f"{row.exact}/{row.texts}", f"{row.free}/{row.texts}"
            lines.append(
                (row.model, size, f"{row.tokens:.0f}", f"{row.accuracy:.3f}", exact, free, f"{row.steps:.0f}", f"{row.seconds:.1f}", margin)
            )
        terminal.put_columns(lines)
