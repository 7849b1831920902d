"""What an ingest, its dry run and a watch print: what is written, what is not read and why."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rag_memtok.cli import console
from rag_memtok.documents.names import group_by_reason

if TYPE_CHECKING:
    from rag_memtok.documents.scan import Skipped
    from rag_memtok.pipeline.estimate import Estimate
    from rag_memtok.pipeline.ingest import Ingested
    from rag_memtok.pipeline.plan import Assumed

VERDICTS = ("exact", "pinned", "assisted", "text-only")


def put_unread(title: str, unread: "Iterable[Skipped]", ignored: int) -> None:
    """What is not read, and why."""
    console.put_list(title, group_by_reason((one.path, one.reason) for one in unread))
    if ignored:
        files = console.counted(ignored, "file")
        console.say(f"left out because of a .gitignore: {files}; --no-gitignore reads them, too")


def put_assumed(assumed: "Sequence[Assumed]") -> None:
    """The files that do not say their encoding."""
    console.put_list(
        "not UTF-8, and read in the likeliest encoding (--encoding NAME says another)",
        [f"{one.path}: {one.encoding}" for one in assumed],
    )


def put_ingested(done: "Ingested") -> None:
    """The table at the end of an ingest."""
    unread = (*done.skipped, *done.over_limit, *done.failed)
    put_unread("skipped", unread, done.ignored)
    put_assumed(done.assumed)
    if done.vanished and not done.removed:
        console.put_list(
            "gone from the folder or emptied, still in the store (--prune removes them)",
            [file for _, file in done.vanished],
        )
    skipped = f", {len(unread)} skipped" if unread else ""
    if not done.files and not done.removed:
        console.put(f"0 new; {done.unchanged} files unchanged{skipped}")
        return
    rows: dict[str, object] = {
        "files": f"{done.files} new or changed, {done.unchanged} unchanged, {done.removed} removed"
        f"{skipped}"
    }
    rows["chunks"] = f"{done.chunks} written, {done.reused} already there"
    rows |= {kind: done.verdicts[kind] for kind in VERDICTS if kind in done.verdicts}
    if done.chunks:
        rows["time"] = f"{done.seconds:.1f} s, {done.seconds / done.chunks:.2f} s a chunk"
    if done.positions:
        factor = done.text_positions / done.positions
        rows["context positions"] = (
            f"{done.positions} instead of {done.text_positions} ({factor:.1f} times fewer)"
        )
        rows["tokens per vector"] = done.tokens_per_vector
    console.put_table(rows)


def put_estimate(found: "Estimate") -> None:
    """What --dry-run says."""
    put_unread("would be skipped", found.skipped, found.ignored)
    put_assumed(found.assumed)
    time_needed = f"about {console.duration(found.seconds)} here" if found.chunks else "no time"
    what = (
        f"{console.counted(found.chunks, 'chunk')} of {console.counted(found.files, 'file')} "
        f"({found.unchanged} unchanged{f', {len(found.skipped)} skipped' if found.skipped else ''})"
    )
    console.put(f"would write {what}, {time_needed}; nothing was written")


def put_watched(
    rounds: Sequence["Ingested"], failure: str, missing: Sequence[Path], *, cut_short: bool
) -> None:
    """The end of a watch: what is stored, and why the rest is not."""
    files, chunks = sum(one.files for one in rounds), sum(one.chunks for one in rounds)
    removed = sum(one.removed for one in rounds)
    unread = {one.path: one.reason for one in rounds[-1].skipped} if rounds else {}
    incomplete = failure or missing or unread or cut_short
    stored = "what was written is" if incomplete else "all of it is"
    console.put(
        f"watched: {files} files written ({chunks} chunks), {removed} removed, in {len(rounds)} "
        f"rounds; {stored} stored"
    )
    if cut_short:
        console.say("not all of what changed last: its ingest was cut short")
    if failure:
        console.say(f"not what changed last: {failure}")
    for path in missing:
        console.say(f"not what is new in {path}, which is not there any more")
    if unread:
        console.say(f"not what was skipped: {', '.join(map(str, unread))}")
