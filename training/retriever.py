"""Trains the static retriever: `python -m training.retriever PACKED OUT`.

One row of 256 numbers a word of the LM's tokenizer; a text's embedding is the normalised mean of
its rows. Multiple-negatives ranking with Matryoshka prefixes on pairs of question and passage
(train splits) and pairs made from prose; a passage of the same document is a hard negative. Source:
Henderson et al. 2017, arXiv:1705.00652 (ranking loss); Kusupati et al. 2022, arXiv:2205.13147;
Arora et al. 2017 (idf-like start).
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training.cuts import cut, passage_length, sentences


@dataclass(frozen=True, kw_only=True)
class Config:
    """The hyperparameters of the retriever's training."""

    width: int = 256
    prefixes: tuple[int, ...] = (64, 128, 256)
    batch: int = 1024
    scale: float = 20.0
    rate: float = 0.02
    minutes: float = 6.0
    max_steps: int = 100_000
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """A query, the passage that answers it, and another passage.

    `other` is of the same document or an empty string.
    """

    query: str
    passage: str
    other: str = ""


def question_pairs(path: Path, rng: random.Random) -> Iterator[Pair]:
    """Questions with their passage, cut to about the product's chunk."""
    for line in path.open(encoding="utf-8"):
        row = json.loads(line)
        context, length = row["context"], passage_length(rng)
        other = cut(context, None, length, rng) if len(context) > 1.5 * length else ""
        yield Pair(
            row["question"],
            cut(context, row["answer"], length, rng),
            other if row["answer"] and row["answer"] not in other else "",
        )


def prose_pairs(path: Path, rng: random.Random) -> Iterator[Pair]:
    """Headings with their section, and sentences with the rest of their paragraph."""
    for line in path.open(encoding="utf-8"):
        text = json.loads(line)
        heading, _, body = text.partition("\n\n")
        if body and len(heading) < 80:
            yield Pair(heading, cut(body, None, 500, rng))
        spans = sentences(body or text)
        if len(spans) > 2:
            start, end = rng.choice(spans)
            rest = (body or text)[:start] + (body or text)[end:]
            if end - start > 40 and len(rest) > 100:
                yield Pair((body or text)[start:end], cut(rest, None, 500, rng))


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Token ids of each text, at least one."""
    return [
        np.array(e.ids or [0], dtype=np.int64)
        for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]


def start(tokens: list[np.ndarray], vocabulary: int, config: Config) -> Tensor:
    """Random directions, as long as the word is rare.

    They are a random projection of weighted word counts, so lexical match works from step 0.
    """
    counts = np.bincount(np.concatenate(tokens), minlength=vocabulary) + 1
    weight = 1e-3 / (1e-3 + counts / counts.sum())
    generator = torch.Generator().manual_seed(config.seed)
    return (
        F.normalize(torch.randn(vocabulary, config.width, generator=generator), dim=1)
        * torch.from_numpy(weight).float()[:, None]
    )


def pooled(table: Tensor, tokens: list[np.ndarray]) -> Tensor:
    """Mean of the rows of each text's tokens, `[texts, width]`, not normalised."""
    offsets = np.cumsum([0, *map(len, tokens[:-1])])
    return F.embedding_bag(
        torch.from_numpy(np.concatenate(tokens)), table, torch.from_numpy(offsets), mode="mean"
    )


def loss_of(queries: Tensor, passages: Tensor, config: Config) -> Tensor:
    """Ranking loss of query i against all passages, of which the i-th is right.

    It is taken both ways round and averaged over the prefixes.
    """
    right = torch.arange(len(queries))
    total = torch.zeros(())
    for width in config.prefixes:
        scores = (
            config.scale
            * F.normalize(queries[:, :width], dim=1)
            @ F.normalize(passages[:, :width], dim=1).T
        )
        total = (
            total
            + F.cross_entropy(scores, right)
            + 0.3 * F.cross_entropy(scores[:, : len(queries)].T, right)
        )
    return total / len(config.prefixes)


def train(pairs: list[Pair], tokenizer: Tokenizer, config: Config) -> Tensor:
    """The trained table `[vocabulary, width]`.

    Cost: about half a second a step of 1024 pairs on one core.
    """
    queries, passages = (
        encode(tokenizer, [getattr(p, name) for p in pairs]) for name in ("query", "passage")
    )
    with_other = [i for i, pair in enumerate(pairs) if pair.other]
    others = dict(
        zip(with_other, encode(tokenizer, [pairs[i].other for i in with_other]), strict=True)
    )
    table = start(passages, tokenizer.get_vocab_size(), config).requires_grad_()
    optimizer = torch.optim.AdamW([table], lr=config.rate, betas=(0.9, 0.99), weight_decay=0.0)
    rng, begun, step = random.Random(config.seed), time.time(), 0
    while (done := (time.time() - begun) / 60 / config.minutes) < 1 and step < config.max_steps:
        chosen = rng.sample(range(len(pairs)), min(config.batch, len(pairs)))
        negatives = [others[i] for i in chosen if i in others]
        loss = loss_of(
            pooled(table, [queries[i] for i in chosen]),
            pooled(table, [passages[i] for i in chosen] + negatives),
            config,
        )
        optimizer.param_groups[0]["lr"] = (
            config.rate * min(1.0, (step + 1) / 20) * (1 - min(1.0, done))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 25 == 0:
            print(f"step {step} loss {loss.item():.3f} done {done:.2f}", flush=True)
    return table.detach()


def save(table: Tensor, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the folder that `SentenceTransformer(folder)` reads.

    It has fp16 rows and the tokenizer, normalised at the end.
    """
    from sentence_transformers import SentenceTransformer  # slow to import, needed here alone
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_truncation()
    model = SentenceTransformer(
        modules=[StaticEmbedding(plain, embedding_weights=table.float().numpy()), Normalize()],
        device="cpu",
    )
    model.half()
    model.save(str(folder), create_model_card=False)


def main() -> None:
    """Parses the command line, trains and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packed", type=Path, help="the folder that training.prepare wrote")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--minutes", type=float, default=Config.minutes)
    parser.add_argument("--batch", type=int, default=Config.batch)
    parser.add_argument("--rate", type=float, default=Config.rate)
    parser.add_argument("--max-steps", type=int, default=Config.max_steps)
    parser.add_argument("--seed", type=int, default=Config.seed)
    args = parser.parse_args()
    config = Config(
        minutes=args.minutes,
        batch=args.batch,
        rate=args.rate,
        max_steps=args.max_steps,
        seed=args.seed,
    )
    tokenizer = Tokenizer.from_file(str(args.packed / "tokenizer.json"))
    rng = random.Random(config.seed)
    pairs = [
        *question_pairs(args.packed / "questions.jsonl", rng),
        *prose_pairs(args.packed / "passages.jsonl", rng),
    ]
    print(f"{len(pairs)} pairs", flush=True)
    save(train(pairs, tokenizer, config), tokenizer, args.out)


if __name__ == "__main__":
    main()
