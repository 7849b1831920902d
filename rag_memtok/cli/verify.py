"""The commands that prove and give back: verify, restore. Parse, one library call, print."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag_memtok.cli import console, options, views
from rag_memtok.config import Config
from rag_memtok.documents.names import given_path
from rag_memtok.errors import UsageError

if TYPE_CHECKING:
    from rag_memtok.pipeline.audit import Reconstruct


@options.settings(
    *options.STORE, *options.MODEL, "documents.exclude", "documents.gitignore", *options.CLUSTER
)
def verify(
    dials: Config,
    quick: Annotated[
        bool, typer.Option("--quick", help="Structure and checksums only; loads no model.")
    ] = False,
    sample: Annotated[
        str | None, typer.Option("--sample", help="A share of the chunks, such as 5%.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample.")] = 0,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, help="Chunks decoded together, without the text as a draft."
        ),
    ] = 1,
    reference: Annotated[
        bool, typer.Option("--reference", help="Decode every memory token by token, alone.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", parser=given_path, help="Compare the documents with this folder."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the audit as an HTML page, too.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Prove that nothing was lost: decode every memory, rejoin every document, compare."""
    from rag_memtok.pipeline import api

    decoding = {"--sample": sample is not None, "--batch": batch > 1, "--reference": reference}
    require_use(quick, decoding, "--quick, which decodes nothing")
    require_use(reference, {"--batch": batch > 1}, "--reference, which decodes each alone")
    require_use(sample is None, {"--seed": seed != 0}, "an audit of all; it is for --sample")
    with console.progress_bar("chunks") as on_progress, ExitStack() as opened:
        found = api.verify(
            dials,
            structure_only=quick,
            share=share_of(sample),
            seed=seed,
            folder=against,
            on_progress=on_progress,
            page=report,
            batch=batch,
            reference=reference,
            reconstruct=reconstruct_of(dials, opened),
        )
    if json:
        console.put_json(
            {
                "counts": dict(found.counts),
                "documents": found.documents,
                "profile": found.profile,
                "failing": [asdict(one) for one in found.findings],
                "chunks": found.chunks,
                "checked": found.checked,
                "documents_checked": found.documents_checked,
                "documents_proven": found.documents_proven,
                "readable": dict(found.readable),
                "sample": found.sample,
                "seconds": found.seconds,
            }
        )
    else:
        views.put_audit(found)
    raise typer.Exit(found.exit_code)


def reconstruct_of(dials: Config, opened: ExitStack) -> "Reconstruct":
    """What decodes the memories: this process, or a cluster, connected as long as `opened`."""
    if dials.cluster.engine == "ray":
        from rag_memtok.cluster.engine import reciting

        return opened.enter_context(reciting(dials))
    from rag_memtok.pipeline.audit import reconstruct_here

    return reconstruct_here


def require_use(where: bool, given: Mapping[str, bool], what: str) -> None:
    """Raises UsageError if any option was `given` where it has no use."""
    vain = [option for option, there in given.items() if there]
    if where and vain:
        raise UsageError(
            f"{vain[0]} has no use with {what}", remedy=f"rag-memtok verify without {vain[0]}"
        )


def share_of(sample: str | None) -> float:
    """`5%` or `0.05` as a share.

    Raises:
        UsageError: it is neither.
    """
    if sample is None:
        return 1.0
    try:
        return float(sample[:-1]) / 100 if sample.endswith("%") else float(sample)
    except ValueError:
        raise UsageError(f"--sample is {sample!r}; valid: a share such as 5%") from None


@options.settings(*options.STORE, *options.MODEL)
def restore(
    dials: Config,
    to: Annotated[Path, typer.Option("--to", parser=given_path, help="The folder to write into.")],
) -> None:
    """Write the documents back from their memories alone."""
    from rag_memtok.pipeline import api

    with console.progress_bar("chunks") as on_progress:
        done = api.restore(to, dials, on_progress)
    views.put_restored(done, to)
    raise typer.Exit(done.exit_code)
