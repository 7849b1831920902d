"""Is a memory a compressed text?

Bits per character of vectors and pins against zlib, xz and the LM's own code length.

    python -m benchmarks.compression --limit 16

Nobody should expect memories to win: a vector of d numbers stands for a few tokens. What is shown
is by how much they lose, and that the LM which reads them would, as a compressor, need far less. A
pin is charged its position and its word, ceil(log2 (T + 1)) + ceil(log2 V) bits. The LM itself (its
weights) is charged to nobody.

Cost with the embedded model: about 20 CPU seconds a chunk of 128 tokens, for at most 300 steps and
four decodes.
"""

import argparse
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import code_length, pin_price
from rag_memtok import config
from rag_memtok.cli import console
from rag_memtok.datatypes import Memory
from rag_memtok.documents.scan import read, scan
from rag_memtok.documents.split import split
from rag_memtok.evaluation.corpora import from_csv, spread_evenly
from rag_memtok.memory.batch import init_pooled, make_task
from rag_memtok.memory.codec import CODECS
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.reconstruct import judge
from rag_memtok.model.lm import LM, load
from rag_memtok.model.precision import reference_profile
from rag_memtok.model.prompts import Template, template_named

DOCS = Path(__file__).parent.parent / "data" / "docs"


@dataclass(frozen=True, slots=True)
class Size:
    """The size of one text kept in one way: bits in all and, of those, bits of pins.

    `corrections` are pins where it was wrong.
    """

    way: str
    bits: float
    pins: float = 0.0
    corrections: int = 0


def general(text: str) -> Iterator[Size]:
    """The sizes of this text alone under general-purpose compressors.

    The size of xz is without its container of 60 bytes.
    """
    raw = text.encode()
    yield Size("utf-8", 8.0 * len(raw))
    yield Size("zlib -9", 8.0 * len(zlib.compress(raw, 9)))
    yield Size(
        "xz -9e", 8.0 * len(lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME))
    )


def kept(
    lm: LM, template: Template, way: str, vectors: np.ndarray, codec: str, tokens: Sequence[int]
) -> Size:
    """A memory as it would be stored: packed, read back, judged, with the pins it then needs."""
    packed = CODECS[codec].pack(vectors) if len(vectors) else b""
    stored = CODECS[codec].unpack(packed, vectors.shape) if len(vectors) else vectors
    _, verdict = judge(lm, template, Memory(stored), tokens, config.Memorize().tau)
    pins = float(pin_price(lm, len(tokens)) * (verdict.corrections + verdict.safeties))
    return Size(way, 8.0 * len(packed) + pins, pins, verdict.corrections)


def sizes(
    lm: LM,
    template: Template,
    text: str,
    tokens: Sequence[int],
    written: np.ndarray,
    untrained: np.ndarray,
) -> list[Size]:
    """Every way, for one text."""
    nothing = np.zeros((0, lm.width), dtype=np.float32)
    with reference_profile(lm) as exactly:
        alone = code_length(exactly, tokens)
    return [
        *general(text),
        Size("LM, code length", alone),
        kept(lm, template, way="no memory + pins", vectors=nothing, codec="float16", tokens=tokens),
        kept(
            lm,
            template,
            way="pooled, untrained, float16 + pins",
            vectors=untrained,
            codec="float16",
            tokens=tokens,
        ),
        kept(
            lm,
            template,
            way="memory, float16 + pins",
            vectors=written,
            codec="float16",
            tokens=tokens,
        ),
        kept(lm, template, way="memory, int8 + pins", vectors=written, codec="int8", tokens=tokens),
    ]


def measured(
    lm: LM, texts: Sequence[str], args: argparse.Namespace
) -> Iterator[tuple[str, list[Size]]]:
    """Each text with its sizes, as it is done."""
    template = template_named("bare", lm)
    tasks = {
        str(number): make_task(str(number), tuple(lm.encode(text)), args.tokens_per_vector)
        for number, text in enumerate(texts)
    }
    settings = config.Memorize(steps=args.steps, seconds_per_chunk=args.seconds, recipe=args.recipe)
    for one in memorize(lm, template, tasks.values(), settings):
        text = texts[int(one.task.key)]
        yield (
            text,
            sizes(
                lm,
                template,
                text=text,
                tokens=one.task.tokens,
                written=one.vectors,
                untrained=init_pooled(lm, one.task).cpu().numpy(),
            ),
        )


def chunks_of(lm: LM, docs: Path, tokens: int, limit: int) -> tuple[str, ...]:
    """Full chunks of the documents, evenly spread: short ones say little of compression."""
    settings = config.Documents()
    documents = [
        document
        for source in scan([docs], settings).files
        for document in read(source, settings).documents
    ]
    texts = [
        chunk.text
        for document in documents
        for chunk in split(document, tokens, lambda text: len(lm.encode(text)))
    ]
    full = [text for text in dict.fromkeys(texts) if len(lm.encode(text)) >= 0.75 * tokens]
    return spread_evenly(full, limit)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument(
        "--chunks", type=Path, help="a CSV file with a column 'chunk', in place of --docs"
    )
    parser.add_argument("--limit", type=int, default=16, help="texts")
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--tokens-per-vector", type=int, default=8)
    parser.add_argument("--recipe", default="margin")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="seconds a text, at most; 0: no bound"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON, too")
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    args = arguments()
    lm = load(config.Model(id=args.model, threads=args.threads))
    texts = (
        from_csv(args.chunks, args.limit).texts
        if args.chunks
        else chunks_of(lm, args.docs, args.chunk_tokens, args.limit)
    )
    found = []
    with console.bar("texts") as show:
        for text, rows in measured(lm, texts, args):
            found.append((text, rows))
            show(len(found), len(texts), "")
    characters = sum(len(text) for text, _ in found)
    table = [("way", "bits/character", "of it pins", "correction pins/100 tokens")]
    tokens = sum(len(lm.encode(text)) for text, _ in found)
    for rows in zip(*(rows for _, rows in found), strict=True):
        bits, pins, wrong = (
            sum(getattr(row, name) for row in rows) for name in ("bits", "pins", "corrections")
        )
        table.append(
            (
                rows[0].way,
                f"{bits / characters:.2f}",
                f"{pins / characters:.2f}",
                f"{100 * wrong / tokens:.1f}",
            )
        )
    joined = [f"{row.way}, all texts as one" for row in general("") if row.way != "utf-8"]
    for way, row in zip(joined, list(general("".join(text for text, _ in found)))[1:], strict=True):
        table.append((way, f"{row.bits / characters:.2f}", "0.00", "0.0"))
    console.put(
        f"{lm.identity.id} {lm.identity.revision}: {len(found)} texts, {characters} characters, "
        f"{tokens} tokens"
    )
    console.put_columns(table)
    if args.out:
        args.out.write_text(
            json.dumps(
                [{"text": text, "sizes": [asdict(row) for row in rows]} for text, rows in found],
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
