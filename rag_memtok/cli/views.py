"""What a store looks like on the screen, and what a command did.

Of a store it shows its documents, chunks, collections, a memory, settings.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rag_memtok.cli import console
from rag_memtok.model.adapter_manifest import SHIPPED_READER

if TYPE_CHECKING:
    from rag_memtok.adapt.run import Adapted
    from rag_memtok.datatypes import Answer, Found, Source
    from rag_memtok.pipeline.api import Status
    from rag_memtok.pipeline.audit import Audit
    from rag_memtok.pipeline.bundle import Bundled
    from rag_memtok.pipeline.export_reader import Exported
    from rag_memtok.pipeline.inspect import Collection, ListedChunk, ListedDocument, Setting, Shown
    from rag_memtok.pipeline.migrate import Migrated, Rekeyed
    from rag_memtok.pipeline.restore import Restored

SHORT = 12  # characters of a chunk's id


def counted(verdicts: Mapping[str, int]) -> str:
    """Verdicts in a phrase."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(verdicts.items())) or "nothing"


def cited(source: "Source") -> str:
    """A citation in a line."""
    found = "by its words" if source.relevance is None else f"relevance {source.relevance:.2f}"
    since = {"": "", "gone": "; FILE GONE", "changed": "; FILE CHANGED since"}[source.file]
    return f"{source.name}, {source.lines}  ({found}, memory {source.verdict}{since})"


def spent(found: "Answer") -> str:
    """What an answer cost; positions only where some were saved."""
    saved = found.text_positions - found.context_positions
    positions = (
        f"{found.context_positions} of {found.text_positions} positions of documents, prompt "
        f"{found.prompt_positions} instead of {found.prompt_positions + saved}; "
        if saved > 0
        else ""
    )
    return f"{positions}reader {found.reader}; {found.seconds:.1f} s"


def put_found(hits: "Sequence[Found]") -> None:
    """Passages with their citations."""
    for number, one in enumerate(hits, start=1):
        console.put(f"[{number}] {cited(one.source)}")
        console.put(indented(one.text or "(its text is not kept; rag-memtok show decodes it)"))


def put_passages(found: "Answer") -> None:
    """The passages of an answer, in which it is marked where it stands."""
    for number, (source, text) in enumerate(zip(found.sources, found.texts, strict=True), start=1):
        if place := marked(found, source, text):
            start, end = place
            text = f"{text[:start]}>>{text[start:end]}<<{text[end:]}"
        console.put(f"[{number}] {source.name}, {source.lines}")
        console.put(indented(text or "(vectors were read; the text is not kept)"))


def marked(found: "Answer", source: "Source", text: str) -> tuple[int, int] | None:
    """The characters of a source's passage in which the answer stands; None: in others, or none."""
    where = found.stands_in
    if where is None or where.path != source.path:
        return None
    start = where.span[0] - source.span[0]
    if start < 0 or not text.startswith(where.quote, start):
        return None
    return start, start + len(where.quote)


def indented(text: str) -> str:
    """A passage, set in."""
    return "\n".join(f"    {line}" for line in text.strip("\n").splitlines())


def put_answer(found: "Answer", streamed: bool, snippets: Sequence[str] = ()) -> None:
    """The answer, unless it was streamed, its sources, each with its snippet, and what it cost."""
    console.put("" if streamed else found.answer)
    if found.stands_in:
        where, (start, end) = found.stands_in, found.stands_in.span
        name = next(
            one.name
            for one in found.sources
            if one.path == where.path and one.span[0] <= start < one.span[1]
        )
        console.put(f"  stands in {name}, {where.lines}, characters {start}-{end}")
    elif found.grounded is False:
        console.put("  stands in no passage in these words: look at the passages before you use it")
    beside = snippets or [""] * len(found.sources)
    for number, (source, snippet) in enumerate(zip(found.sources, beside, strict=True), start=1):
        console.put(f"  [{number}] {cited(source)}")
        if snippet:
            console.put(f"      {snippet}")
    console.put(f"  {spent(found)}")
    if found.refused:
        console.say(
            "memories were found and read; as far as the model can tell they do not say; "
            "next: ask in the words of the documents, or with a larger --k"
        )
    console.say(f"reader {found.reader}: {found.reader_reason}")
    if found.passages == "apart":
        console.say(
            "each memory was read by itself, and the surest answer kept; --passages together puts "
            "all into one prompt"
        )


def put_audit(found: "Audit") -> None:
    """Counts, what is not proven, and one sentence."""
    console.put_list(
        "not proven", [f"{one.kind}: {one.subject}: {one.reason}" for one in found.findings]
    )
    if any(one.kind == "damaged" for one in found.findings):
        console.say(
            "  next: rag-memtok ingest those files again into the same --store: what is damaged is "
            "written anew"
        )
    if any(one.kind == "mismatch" for one in found.findings):
        console.say(
            "  next: what mismatches is whole but wrong: rag-memtok rm those files, then ingest "
            "them again"
        )
    verdicts = "".join(f", {count} {kind}" for kind, count in sorted(found.counts.items()))
    rows: dict[str, object] = {"chunks": f"{found.checked} of {found.chunks} checked{verdicts}"}
    if found.checked:
        partly = found.checked < found.chunks
        of, rest = (
            (f"{found.documents_checked} checked", f", {found.documents} in all")
            if partly
            else (found.documents, "")
        )
        rows["documents"] = f"{found.documents_proven} of {of} rejoined and identical{rest}"
    if found.readable:
        same, others = found.readable.get("same", 0), sum(found.readable.values())
        rows["readable"] = f"vectors of {same} of {others} chunks are those of their text"
    rows |= {"profile": found.profile, "time": f"{found.seconds:.1f} s"}
    if found.sample:
        rows["sample"] = found.sample
    console.put_table(rows)
    console.put(found.sentence)


def put_restored(done: "Restored", to: Path) -> None:
    """What could not be restored, and how much was."""
    console.put_list("not restored", [f"{path}: {reason}" for path, reason in done.failed])
    console.put(f"{len(done.written)} documents written to {to}")


def put_status(found: "Status") -> None:
    """The store at a glance."""
    manifest, summary = found.manifest, found.summary
    model = f"{manifest.get('model')} {manifest.get('revision', '')} ({manifest.get('dtype')})"
    rows: dict[str, object] = {
        "documents": summary.documents,
        "chunks": summary.chunks,
        **{kind: count for kind, count in sorted(summary.verdicts.items())},
        "model": model.replace("  ", " "),
        "template": manifest.get("template"),
        "tokens per vector": f"{manifest.get('tokens_per_vector')} "
        f"({manifest.get('tokens_per_vector_origin')})",
        "embedder": manifest.get("embedder"),
        "format": manifest.get("format"),
        "generation": found.generation,
        "size": f"{found.bytes / 1e6:.2f} MB (vectors {summary.bytes.get('vectors', 0)} bytes, "
        f"text {summary.bytes.get('texts', 0)} bytes)",
    }
    if summary.readable:
        rows["readable"] = (
            f"{console.counted(summary.readable, 'chunk')} with vectors of an encoder "
            f"({summary.bytes['readables']} bytes)"
        )
    if found.adapter:
        rows["adapter"] = found.adapter
    if found.outdated:
        rows["outdated"] = (
            f"{console.counted(found.outdated, 'document')} that an older version of this program "
            "read otherwise; ingest again"
        )
    if summary.orphans:
        rows["unfinished"] = (
            f"{summary.orphans} chunks of files whose ingest did not end; run it again"
        )
    console.put_table(rows)


def put_documents(listed: Sequence["ListedDocument"]) -> None:
    """A line for each document."""
    rows: list[Sequence[object]] = [("document", "chunks", "characters", "verdicts")]
    rows += [
        (one.name, one.document.chunks, one.document.characters, counted(one.verdicts))
        for one in listed
    ]
    console.put_columns(rows)


def put_chunks(listed: Sequence["ListedChunk"]) -> None:
    """A line for each chunk."""
    rows: list[Sequence[object]] = [
        ("chunk", "tokens", "vectors", "verdict", "pins", "margin", "place")
    ]
    for one in listed:
        pins = one.verdict.corrections + one.verdict.safeties
        place = (
            f"{one.place.path}, {one.place.locator}" if one.place else "(of an unfinished ingest)"
        )
        more = f" and {one.places - 1} more" if one.places > 1 else ""
        margin = f"{one.verdict.margin:.3f}"
        rows.append(
            (
                one.chunk_id[:SHORT],
                one.verdict.tokens,
                one.vectors,
                one.verdict.kind,
                pins,
                margin,
                place + more,
            )
        )
    console.put_columns(rows)


def put_collections(listed: Sequence["Collection"]) -> None:
    """A line for each collection."""
    rows: list[Sequence[object]] = [("collection", "documents", "chunks", "verdicts", "model")]
    rows += [
        (one.name, total.documents, total.chunks, counted(total.verdicts), one.model)
        for one in listed
        for total in [one.summary]
    ]
    console.put_columns(rows)


def put_shown(found: "Shown") -> None:
    """A memory: what it is, where it stands, what it takes, and its tokens."""
    verdict, sizes = found.verdict, found.bytes
    beside = ("text", "readable")
    memory = sum(size for name, size in sizes.items() if name not in beside)
    parts = ", ".join(f"{name} {size}" for name, size in sizes.items() if name not in beside)
    readable = sizes.get("readable")
    console.put_table(
        {
            "chunk": found.chunk_id,
            "verdict": f"{verdict.kind}{f' ({verdict.reason})' if verdict.reason else ''}",
            "margin": f"{verdict.margin:.4f} logits at the weakest token that is not pinned",
            "pins": f"{verdict.corrections} corrections, {verdict.safeties} safeties",
            "memory": f"{found.shape[0]} vectors of {found.shape[1]} ({found.codec}) for "
            f"{verdict.tokens} tokens",
            "bytes": f"{memory} ({parts}) against {sizes['text']} of text",
            **({"readable": f"{readable} bytes of an encoder's vectors"} if readable else {}),
            "places": "; ".join(f"{one.path}, {one.locator}" for one in found.places)
            or "none: of an unfinished ingest",
        }
    )
    console.put("")
    if found.tokens:
        console.put_strip([(one.text, one.margin, one.pin) for one in found.tokens])
    else:
        console.put(found.text)


def put_settings(settings: Iterable["Setting"]) -> None:
    """A line for each dial."""
    rows: list[Sequence[object]] = [("dial", "value", "from")]
    rows += [(one.name, repr(one.value), one.origin) for one in settings]
    console.put_columns(rows)


def put_cache(folder: Path, size: int, gone: bool = False) -> None:
    """How much converted models take, or took."""
    what = "removed" if gone else "config --drop-cache removes them"
    if gone and not size:
        console.say(f"there are no converted models in {folder}")
    elif size:
        console.say(f"converted models: {size / 1e6:.0f} MB in {folder}; {what}")


def put_exported(done: "Bundled") -> None:
    """What is in the file."""
    console.put(
        f"{done.documents} documents, {done.chunks} chunks written to {done.file} "
        f"({done.bytes / 1e6:.2f} MB)"
    )
    console.say("the file is its documents' text: whoever can read it can read them")


def put_exported_reader(done: "Exported") -> None:
    """The line that starts a server, alone on standard output."""
    made = done.made
    console.say(f"{made.base} with the reader of {done.adapter} merged, in {made.dtype}")
    console.say(f"written to {done.folder}; start a server on it, then ask with --engine vllm:")
    console.put(done.start)


def put_imported(done: "Bundled") -> None:
    """What is in the store."""
    console.put(
        f"{done.documents} documents, {done.chunks} chunks imported into {done.store}; rag-memtok "
        "verify proves them"
    )
    if not done.own:
        console.say(
            "the store was not made here: ask and chat need --trust-store, verify and restore do "
            "not"
        )


def put_migrated(done: "Migrated") -> None:
    """What was rewritten, and where the old store is."""
    if done.chunks:
        console.put(
            f"{done.chunks} chunks rewritten for {done.model}: {counted(done.verdicts)}, in "
            f"{console.duration(done.seconds)}"
        )
    else:
        console.put(f"nothing to rewrite: the store is of {done.model}")
    if done.kept:
        console.put(f"the old store is kept in {done.kept}; --drop-old removes it")


def put_rekeyed(done: "Rekeyed") -> None:
    """How many keys were made."""
    if done.chunks:
        taken = console.duration(done.seconds)
        console.put(f"{done.chunks} chunks have keys of {done.embedder}, in {taken}")
    else:
        console.put(f"no keys to make: they are of {done.embedder}")


def put_adapted(done: "Adapted") -> None:
    """Where the adapter is, and what it measured on chunks set aside."""
    bond, dev = done.bond, done.bond.dev
    with_reader = dev.get(SHIPPED_READER)
    shipped = "" if with_reader is None else f"; {100 * with_reader:.1f} with its own reader on"
    rows: dict[str, object] = {
        "adapter": f"{done.folder} ({bond.steps} steps, {console.duration(done.seconds)})",
        "set aside": f"{bond.trained_on['questions_aside']} questions about "
        f"{console.counted(bond.trained_on['chunks_aside'], 'chunk')}",
        "loss": f"{dev['loss_before']:.3f} before, {dev['loss_after']:.3f} after",
        "F1, the text": f"{100 * dev['text']:.1f} (the frozen model{shipped})",
        "F1, adapter": f"{100 * dev['after']:.1f} reading {bond.kind} ({100 * dev['before']:.1f} "
        "without it)",
    }
    console.put_table(rows)
