"""Trains the adapter that ships with the embedded model, on train questions alone: `python -m training.reader DATA --out OUT`.

First the chunks' memories are written (OUT/memories, 32 in a file, done files are kept), then the adapter is trained (OUT/adapter). The
same command again goes on. Two processes can share the writing: `--part 0/2 --write-only` and `--part 1/2 --write-only`.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from rag_memtok.adapt.lessons import LONGEST, ROWS, Exercise, Page, Teacher
from rag_memtok.adapt.training import Progress, adapt
from rag_memtok.adapt.trip import UNSAID, by_rule
from rag_memtok.binding import completed
from rag_memtok.chunks import split
from rag_memtok.codec import codec_named
from rag_memtok.config import Config, Memorize, updated
from rag_memtok.disk import write_whole
from rag_memtok.inject import answer_batch
from rag_memtok.layout import task_of
from rag_memtok.lm import LM, load
from rag_memtok.memorize import memorize
from rag_memtok.nouns import Chunk, Document, Segment
from rag_memtok.prepare import calibrated
from rag_memtok.prompts import Template, digest_of, frame, template_named
from rag_memtok.recipes import recipe_named, recipe_of
from rag_memtok.study.scores import answerable, score
from rag_memtok.views import training_note
from training.prepare import question_rows
from training.sources import hash01
from training.tasks import Sources

SHARD = 32
NONE: np.ndarray = np.zeros((0, 0), dtype=np.float32)  # a reader of text has no use for a memory
DECIDE = ("steps", "seconds_per_chunk", "codec", "tokens_per_vector", "seed")  # dials that a memory depends on


@dataclass(frozen=True)
class Asked:
    """A chunk of a training context, and what is asked about it."""

    chunk: Chunk
    tokens: tuple[int, ...]
    exercises: tuple[Exercise, ...]


def say(message: str) -> None:
    """A line of talk."""
    print(message, file=sys.stderr, flush=True)


def contexts(data: Path, seed: int) -> Iterator[tuple[str, list[dict]]]:
    """Training contexts with their questions, sources drawn as often as the model's own training drew them, each context once."""
    grouped: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in question_rows(data, "train"):
        grouped[row["source"]][row["context"]].append(row)
    waiting = {source: sorted(found, key=lambda text: hash01(text, f"reader {seed}")) for source, found in grouped.items()}
    weights, rng = dict(Sources().weights), random.Random(seed)
    while left := [source for source in waiting if waiting[source]]:
        source = rng.choices(left, [weights.get(one, 0.3) for one in left])[0]
        context = waiting[source].pop()
        yield context, grouped[source][context]


def asked_of(lm: LM, context: str, rows: Sequence[dict], capacity: int, made: int, seed: int) -> Asked | None:
    """The chunk of a context that answers most of its questions, cut as an ingest cuts; None if there is none."""
    document = Document("", "context.txt", "context.txt", context, (Segment(0, "line 1"),), "text/1")
    found: list[tuple[int, Asked]] = []
    for chunk in split(document, capacity, lambda text: len(lm.encode(text))):
        given = [row for row in rows if row["answers"][0] is None or any(answer in chunk.text for answer in row["answers"])]
        tokens = tuple(lm.encode(chunk.text))
        if given and len(tokens) > capacity // 3 and lm.decode(tokens) == chunk.text:
            answers = [(UNSAID,) if row["answers"][0] is None else tuple(row["answers"]) for row in given]
            exercises = [Exercise(chunk.id, row["question"], golds) for row, golds in zip(given, answers, strict=True)]
            found.append((len(given), Asked(chunk, tokens, (*exercises, *by_rule(chunk.id, chunk.text, made, seed)))))
    return max(found, key=lambda one: one[0], default=(0, None))[1]


def chosen(lm: LM, data: Path, count: int, capacity: int, made: int, seed: int) -> list[Asked]:
    """The first `count` different chunks of `contexts` that answer something."""
    found: dict[str, Asked] = {}
    for context, rows in contexts(data, seed):
        if (one := asked_of(lm, context, rows, capacity, made, seed)) is not None:
            found.setdefault(one.chunk.id, one)
        if len(found) == count:
            break
    return list(found.values())


def understood(lm: LM, some: Sequence[Asked], least: float) -> list[Asked]:
    """`some` with only those questions that the frozen model answers from the text with an F1 of `least`: it cannot teach the others.

    Cost: a greedy answer to each question.
    """
    teacher = Teacher(lm, frame(lm), {})
    every = sorted(((one, exercise) for one in some for exercise in one.exercises), key=lambda pair: len(pair[0].tokens))
    kept: dict[str, list[Exercise]] = defaultdict(list)
    for batch in (every[start : start + ROWS] for start in range(0, len(every), ROWS)):
        answers = answer_batch(lm, teacher.frame, [teacher.prompt(exercise, [one.tokens]) for one, exercise in batch], LONGEST)
        for (one, exercise), said in zip(batch, answers, strict=True):
            if score(lm.decode(said).strip(), answerable(exercise.answers)).f1 >= least:
                kept[one.chunk.id].append(exercise)
    return [replace(one, exercises=tuple(kept[one.chunk.id])) for one in some if kept[one.chunk.id]]


def written(
    lm: LM,
    template: Template,
    some: Sequence[Asked],
    settings: Memorize,
    compressions: Sequence[int],
    folder: Path,
    part: tuple[int, int],
) -> dict[str, np.ndarray]:
    """The memories of `some`, by chunk id, as they are stored; those of this process's part that no file has are written.

    The files take turns at `compressions` (tokens a vector): a reader has to know them all.

    Cost: what `memorize` costs; they are not judged, for a reader learns from what there is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, np.ndarray] = {}
    shards = [(some[start : start + SHARD], one) for start, one in zip(range(0, len(some), SHARD), cycle(compressions), strict=False)]
    began, ready = time.monotonic(), 0
    mine = [shard for number, shard in enumerate(shards) if number % part[1] == part[0]]
    for number, (shard, compression) in enumerate(mine):
        here = replace(settings, tokens_per_vector=compression)
        dials = [recipe_of(here), *(getattr(here, name) for name in DECIDE)]
        file = folder / f"{digest_of((lm.identity, template.digest, dials, [one.chunk.id for one in shard]))[:24]}.safetensors"
        if file.is_file():
            ready += 1
        else:
            write_whole(file, shard_of(lm, template, shard, here))
            done = number + 1 - ready
            left = (time.monotonic() - began) / done * (len(mine) - number - 1)
            say(f"memories: {SHARD * (number + 1)} of {SHARD * len(mine)}, {left / 60:.0f} min left")
        with safe_open(file, framework="numpy") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}
    return found


def shard_of(lm: LM, template: Template, shard: Sequence[Asked], settings: Memorize) -> bytes:
    """The memories of a few chunks, packed and read back by the codec, in one file."""
    codec, vectors, wrong = codec_named(settings.codec), {}, 0
    for one in memorize(lm, template, [task_of(a.chunk.id, a.tokens, settings.tokens_per_vector) for a in shard], settings):
        shape = (one.vectors.shape[0], one.vectors.shape[1])
        vectors[one.task.key] = np.ascontiguousarray(codec.unpack(codec.pack(one.vectors), shape), dtype=np.float32)
        wrong += one.wrong > 0
    return save(vectors, {"not_exact": str(wrong)})


def show(last: list[float], at: Progress) -> None:
    """A line of progress every fifteen seconds."""
    if time.monotonic() - last[0] > 15:
        last[0] = time.monotonic()
        say(f"{at.done} of {at.total}: {training_note(at)}")


def settings_of(args: argparse.Namespace) -> Config:
    """The dials told, over the defaults; `--set DIAL=VALUE` reaches every one."""
    told = {
        "model.id": args.model,
        "model.threads": args.threads,
        "adapt.seed": args.seed,
        "adapt.questions": args.questions,
        "adapt.kind": args.kind,
    }
    return completed(updated(Config(), told | dict(one.split("=", 1) for one in args.set)), {})


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data folder: qa/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", type=int, default=3, help="made by rule of each chunk, beside those of the data")
    parser.add_argument("--least", type=float, default=0.5, help="F1 of the frozen model with the text, for a question to teach (0.5)")
    parser.add_argument("--kind", default="memory", choices=("memory", "text"))
    parser.add_argument("--tokens-per-vector", type=int, nargs="*", help="compressions that take turns (auto: one, what is known)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="of the writing: this process's number / how many there are")
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument(
        "--set", action="append", default=[], metavar="DIAL=VALUE", help="such as adapt.minutes=30 or memorize.template=cue"
    )
    return parser.parse_args()


def memories_of(lm: LM, template: Template, some: Sequence[Asked], config: Config, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The memories of `some`; with --write-only those of this process's part alone."""
    compressions = args.tokens_per_vector or [calibrated(lm, template, [one.tokens for one in some[:64]], config, say).tokens_per_vector]
    number, _, parts = args.part.partition("/")
    part = (int(number), int(parts)) if args.write_only else (0, 1)
    return written(lm, template, some, config.memorize, compressions, args.out / "memories", part)


def main() -> None:
    """Chooses chunks, writes their memories, trains, prints what was measured."""
    args = parsed()
    config = settings_of(args)
    lm = load(config.model)
    template = template_named(recipe_named(recipe_of(config.memorize)).template or config.memorize.template, lm)
    some = chosen(lm, args.data, args.chunks, config.documents.chunk_tokens, config.adapt.questions, args.seed)
    say(f"{len(some)} chunks, {sum(len(one.exercises) for one in some)} questions")
    vectors = memories_of(lm, template, some, config, args) if args.kind == "memory" else {one.chunk.id: NONE for one in some}
    if args.write_only:
        return
    some = understood(lm, some, args.least)
    say(f"{len(some)} chunks with {sum(len(one.exercises) for one in some)} questions that the model answers from the text")
    pages = [Page(one.chunk.id, one.tokens, vectors[one.chunk.id]) for one in some]
    last = [0.0]
    folder = args.out / ("adapter" if args.kind == "memory" else "adapter-text")
    bond = adapt(lm, template.digest, pages, [e for one in some for e in one.exercises], config.adapt, folder, lambda at: show(last, at))
    say(f"{folder}: {bond.steps} steps; {dict(bond.dev)}; {dict(bond.trained_on)}")


if __name__ == "__main__":
    main()
