"""How far readable vectors move with the arithmetic, and how far with one token of the text.

Run it as `python -m benchmarks.encoder FILE... --keep vectors.safetensors`, then on another machine
or with another instruction set as `python -m benchmarks.encoder FILE... --against
vectors.safetensors`. Distances are of a vector from the other, in lengths of the vector: the
farthest of all. The audit's tolerance has to lie between the two.

    stored      as it comes back from its bytes
    padded      encoded beside the longest text
    other       the other machine's (with --against)
    one digit   the text with one digit another, else one token: the nearest, over all chunks, of
                the vector that moves most
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from rag_memtok import config
from rag_memtok.datatypes import Document
from rag_memtok.documents.split import split
from rag_memtok.evaluation.evaluate import encoder_in
from rag_memtok.memory.encoder import TOLERANCE, Encoder, encode, encode_readable, unpack_readable
from rag_memtok.model.lm import load
from rag_memtok.pipeline.adapters import shipped_adapters


def farthest(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of the vector that is farthest from its other, in its lengths."""
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


def changed(text: str) -> str:
    """The text with its last digit another; without digits with another last word."""
    places = [place for place, sign in enumerate(text) if sign.isdigit()]
    if not places:
        return text.rstrip()[:-1] + "x"
    place = places[-1]
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]


@torch.no_grad()
def vectors(encoder: Encoder, texts: Sequence[Sequence[int]], window: int) -> list[np.ndarray]:
    """The vectors of each text, all encoded together."""
    return [one.numpy() for one in encode(encoder, texts, encoder.plan(texts, window))]


def chunks_of(paths: Sequence[Path], encoder: Encoder) -> list[str]:
    """The chunks of text files, as an ingest cuts them."""
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        document = Document.of_text(text, path.name)
        found += split(document, 128, lambda some: len(encoder.lm.encode(some)))
    return [chunk.text for chunk in found]


def main() -> None:
    """Measures and prints a line for each window."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", type=Path, help="a folder; the shipped one, if none is given")
    parser.add_argument("--chunks", type=int, default=24, help="at most")
    parser.add_argument("--keep", type=Path, help="write the vectors here")
    parser.add_argument("--against", type=Path, help="compare with the vectors in this file")
    args = parser.parse_args()
    lm = load(config.Model(id=args.model))
    reader = shipped_adapters(lm, "").vectors
    encoder = encoder_in(args.adapter or (reader and reader.folder), lm)
    if encoder is None:
        raise SystemExit("there is no encoder")
    texts = chunks_of(args.files, encoder)[: args.chunks]
    tokens = [lm.encode(text) for text in texts]
    other = load_file(args.against) if args.against else {}
    kept = {}
    print(f"{len(texts)} chunks, tolerance {TOLERANCE}")
    longest = max(tokens, key=len)
    for window in range(2, encoder.max_window + 1, 2):
        alone = [vectors(encoder, [one], window)[0] for one in tokens]
        stored = [unpack_readable(encode_readable(encoder, one, window)) for one in tokens]
        padded = [vectors(encoder, [one, longest], window)[0] for one in tokens]
        moved = []
        for text, before in zip(texts, alone, strict=True):
            after = vectors(encoder, [lm.encode(changed(text))], window)[0]
            moved.append(farthest(after, before) if len(after) == len(before) else np.inf)
        kept |= {f"{window}.{number}": one for number, one in enumerate(alone)}
        found = {
            "stored": max(map(farthest, stored, alone)),
            "padded": max(map(farthest, padded, alone)),
        }
        if other:
            theirs = [other[f"{window}.{number}"] for number in range(len(alone))]
            found["other"] = max(map(farthest, alone, theirs))
        found["one digit"] = min(moved)
        print(f"window {window}: " + ", ".join(f"{k} {v:.2g}" for k, v in found.items()))
    if args.keep:
        save_file(kept, args.keep)


if __name__ == "__main__":
    main()
