"""What is measured, as commands: paper. Parse, one library call, print."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rag_memtok import options, terminal, views
from rag_memtok.errors import UsageError
from rag_memtok.options import settings


def paper(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="mini, a folder or a hub id; may be repeated.", show_default="mini")
    ] = None,
    chunks: Annotated[Path | None, typer.Option("--chunks", help="A CSV file; texts are its column 'chunk'.")] = None,
    docs: Annotated[Path | None, typer.Option("--docs", help="Documents, to be cut.")] = None,
    chars: Annotated[str, typer.Option("--chars", help="Where documents are cut, in characters.")] = "100,1000",
    recipe: Annotated[str, typer.Option("--recipe", help="How texts are written.")] = "sastre2025",
    vectors: Annotated[int, typer.Option("--vectors", min=1, help="Vectors a text.")] = 1,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Texts of each kind and length, at most.")] = 20,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Steps a text, at most; 0: the recipe's own.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts written together.")] = 8,
    codec: Annotated[str, typer.Option("--codec", help="How the vectors that are decoded were stored.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the writer.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Keep every text's result in this file; run again to go on.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Draw Figures 2 and 3 as PNG into this folder.")] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure the paper's Tables 2 to 4 and Figures 2 and 3 (arXiv:2506.15001) on any models, with what they leave out."""
    from rag_memtok import lm, paper
    from rag_memtok.corpora import texts_of
    from rag_memtok.figures import draw

    protocol = paper.Protocol(recipe, vectors, steps, batch, codec, seed)
    corpora = texts_of(chunks, docs, lengths_of(chars), limit)
    trials = []
    for name in dict.fromkeys(model or ["mini"]):
        dials = settings(model__id=name, model__dtype=dtype, model__device=device, model__threads=threads)
        with terminal.bar("texts") as show:
            on_progress = lambda at: show(at.done, at.texts, views.trial_note(at))  # noqa: E731
            trials += list(paper.run(lm.load(dials.model), corpora, protocol, out, on_progress))
    drawn = {figures / file: chart for file, chart in paper.charts(trials).items()} if figures else {}
    for path, chart in drawn.items():
        draw(chart, path)
        terminal.say(f"drawn: {path}")
    rows = paper.table(trials)
    if json:
        terminal.put_json({"protocol": asdict(protocol), "rows": [asdict(row) for row in rows], "figures": [str(path) for path in drawn]})
    else:
        views.put_paper(rows, protocol)


def lengths_of(chars: str) -> list[int]:
    """`100,1000` as numbers.

    Raises:
        UsageError: one of them is none, or under 1.
    """
    try:
        lengths = [int(part) for part in chars.split(",")]
    except ValueError:
        lengths = [0]
    if min(lengths) < 1:
        raise UsageError(f"--chars is {chars!r}; valid: numbers of characters such as 100,1000")
    return lengths
