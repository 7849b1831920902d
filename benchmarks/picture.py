"""The pictures of the documents, each for light and dark pages.

    python -m benchmarks.picture --store demo-store         audit-*.svg, after `make demo`: what a
                                            store's memories hold, and how they come back
    python -m benchmarks.picture --speeds benchmarks/vllm.md    vllm-*.svg: that page's table

The first reads tokens, vectors and verdicts out of the store and loads no model; `rag-memtok
verify` proves the verdicts.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rag_memtok.cli.console import put
from rag_memtok.store.store import Store, open_store

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH, LEFT, RIGHT, ROW, TOP = 760, 205, 150, 30, 74
AT_ONCE = 8  # requests, of the rates that are drawn
SCHEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "page": "#ffffff", "ink": "#1f2328", "faint": "#59636e", "text": "#c9d1d9",
        "vectors": "#c2410c",
    },
    "dark": {
        "page": "#0d1117", "ink": "#e6edf3", "faint": "#9198a1", "text": "#3d444d",
        "vectors": "#fb923c",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the store: its tokens of text, its vectors, how many of its chunks are exact."""

    name: str
    tokens: int
    vectors: int
    chunks: int
    exact: int


def files_of(store: Store) -> list[File]:
    """The files of a store, the longest first. A chunk in two files counts in the first."""
    found: dict[str, File] = {}
    seen: set[str] = set()
    for document in store.documents():
        name = os.fsdecode(document.file)
        for place in store.document_chunks(document.root, document.path):
            if place.chunk_id in seen:
                continue
            seen.add(place.chunk_id)
            record = store.record(place.chunk_id)
            had = found.get(name, File(name=name, tokens=0, vectors=0, chunks=0, exact=0))
            found[name] = File(
                name=name,
                tokens=had.tokens + record.verdict.tokens,
                vectors=had.vectors + record.shape[0],
                chunks=had.chunks + 1,
                exact=had.exact + (record.verdict.kind == "exact"),
            )
    return sorted(found.values(), key=lambda file: (-file.tokens, file.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A server's speed with so many passages in a prompt, as text and as memories."""

    passages: int
    text: float
    memories: float


def speeds_of(page: str, at_once: int) -> list[Speed]:
    """The answers a second with so many requests at once, of a page's table."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.count("|") == 9
    ]
    head = rows[0]
    named = [dict(zip(head, row, strict=True)) for row in rows]
    rates = {
        (row["passages"], row["as"]): float(row["answers/s"])
        for row in named
        if row["requests at once"] == str(at_once)
    }
    return [
        Speed(
            passages=int(passages),
            text=rates[passages, "text"],
            memories=rates[passages, "memories"],
        )
        for passages in dict.fromkeys(passages for passages, _ in rates)
    ]


def style(scheme: str) -> str:
    """The style sheet of a picture."""
    return (
        "text{{font:14px system-ui,sans-serif;fill:{ink}}}.f{{fill:{faint}}}.t{{fill:{text}}}"
        ".v{{fill:{vectors}}}.h{{font-size:18px;font-weight:600}}".format(**SCHEMES[scheme])
    )


def drawn_speeds(speeds: Sequence[Speed], at_once: int, scheme: str) -> str:
    """The picture as SVG: for each number of passages a bar for text, one for memories."""
    fastest = max(max(one.text, one.memories) for one in speeds)
    height, scale = TOP + 2 * ROW * len(speeds) + 10, (WIDTH - LEFT - RIGHT) / fastest
    last = speeds[-1]
    bars = []
    for place, one in enumerate(speeds):
        top = TOP + 2 * ROW * place
        many = "passage" if one.passages == 1 else "passages"
        bars.append(
            f'<text x="{LEFT - 10}" y="{top + 26}" text-anchor="end">{one.passages} {many}</text>'
            + bar("t", top, one.text, scale, "as text")
            + bar("v", top + 22, one.memories, scale, "as memories")
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<style>{style(scheme)}</style>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{SCHEMES[scheme]["page"]}"/>\n'
        f'<text x="20" y="32" class="h">{last.passages} passages as memories: '
        f"{last.memories / last.text:.1f} times the answers</text>\n"
        f'<text x="20" y="56" class="f">answers a second of a vLLM server, {at_once} requests at '
        "once; four tokens a vector</text>\n" + "".join(bars) + "</svg>\n"
    )


def bar(colour: str, top: int, rate: float, scale: float, kind: str) -> str:
    """A bar with its number behind it."""
    width = rate * scale
    return (
        f'<rect class="{colour}" x="{LEFT}" y="{top}" width="{width:.1f}" height="18"/>'
        f'<text class="f" x="{LEFT + width + 8:.1f}" y="{top + 14}">{rate:.1f} {kind}</text>\n'
    )


def drawn(files: Sequence[File], documents: int, scheme: str) -> str:
    """The picture as SVG: two bars for each file, and what they add up to."""
    colour = SCHEMES[scheme]
    tokens, vectors = sum(file.tokens for file in files), sum(file.vectors for file in files)
    chunks, exact = sum(file.chunks for file in files), sum(file.exact for file in files)
    height, scale = TOP + ROW * len(files) + 34, (WIDTH - LEFT - RIGHT) / files[0].tokens
    rows = [row(file, TOP + ROW * place, scale) for place, file in enumerate(files)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<style>{style(scheme)}</style>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{colour["page"]}"/>\n'
        f'<text x="20" y="32" class="h">{tokens:,} tokens become {vectors} vectors; '
        "every token comes back</text>\n"
        f'<text x="20" y="56" class="f">{exact} of {chunks} chunks exact, decoded from the stored '
        f"bytes; {documents} documents rejoined</text>\n"
        + "".join(rows)
        + f'<rect class="t" x="{LEFT}" y="{height - 24}" width="12" height="12"/>'
        f'<text class="f" x="{LEFT + 18}" y="{height - 13}">tokens of text</text>'
        f'<rect class="v" x="{LEFT + 140}" y="{height - 24}" width="12" height="12"/>'
        f'<text class="f" x="{LEFT + 158}" y="{height - 13}">memory vectors</text>\n</svg>\n'
    )


def row(file: File, top: int, scale: float) -> str:
    """The two bars of a file, from `top` on; `scale` pixels a token."""
    exact = "exact" if file.exact == file.chunks else f"{file.exact} of {file.chunks} exact"
    text, vectors = file.tokens * scale, file.vectors * scale
    return (
        f'<text x="{LEFT - 10}" y="{top + 16}" text-anchor="end">{escape(file.name)}</text>'
        f'<rect class="t" x="{LEFT}" y="{top}" width="{text:.1f}" height="12"/>'
        f'<rect class="v" x="{LEFT}" y="{top + 12}" width="{vectors:.1f}" height="10"/>'
        f'<text class="f" x="{LEFT + text + 8:.1f}" y="{top + 16}">'
        f"{file.tokens:,} → {file.vectors}, {exact}</text>\n"
    )


def pictures(arguments: argparse.Namespace) -> dict[str, str]:
    """The pictures that are asked for, by their files' names."""
    if arguments.speeds:
        speeds = speeds_of(arguments.speeds.read_text(encoding="utf-8"), AT_ONCE)
        return {f"vllm-{scheme}.svg": drawn_speeds(speeds, AT_ONCE, scheme) for scheme in SCHEMES}
    with open_store(arguments.store, write=False) as store:
        files, documents = files_of(store), len(store.documents())
    return {f"audit-{scheme}.svg": drawn(files, documents, scheme) for scheme in SCHEMES}


def main() -> None:
    """Draws what was named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("demo-store"), help="after make demo")
    parser.add_argument("--speeds", type=Path, help="a page with the table of benchmarks.vllm")
    parser.add_argument("--out", type=Path, default=IMAGES, help="a folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(arguments).items():
        (arguments.out / name).write_text(picture, encoding="utf-8")
        put(f"drawn: {arguments.out / name}")


if __name__ == "__main__":
    main()
