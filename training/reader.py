"""Trains the adapter that ships with the embedded model, on train questions alone.

To run it: `python -m training.reader DATA --out OUT`.

First chunks are chosen of which the frozen model answers something from the text
(OUT/chosen.jsonl), then their memories are written (OUT/memories, 32 in a file, done files are
kept), then the adapter is trained (OUT/adapter). The same command again goes on. Two processes can
share the writing: `--until chosen` once, then `--until written --part 0/2` and `--until written
--part 1/2`.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from rag_memtok.adapt.dataset import ChunkQuestion, Teacher, TrainingChunk
from rag_memtok.adapt.run import UNSAID, ask_by_rule
from rag_memtok.adapt.train import adapt
from rag_memtok.cli.console import progress_bar, say
from rag_memtok.config import Config, Memorize
from rag_memtok.datatypes import Document
from rag_memtok.documents.split import split
from rag_memtok.memory.batch import make_task
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import recipe_named, recipe_of, steps_of
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import Template, digest_of, qa_prompt, template_named
from rag_memtok.pipeline.manifest import complete_config
from rag_memtok.pipeline.resources import choose_calibration
from rag_memtok.settings import updated
from rag_memtok.store.files import write_whole
from training.prepare import question_rows
from training.sources import hash01
from training.tasks import Sources

SHARD = 32
TOGETHER = 64  # chunks asked about between two lines of progress
NONE: np.ndarray = np.zeros((0, 0), dtype=np.float32)  # a reader of text has no use for a memory
# dials that a memory depends on
DECIDE = ("seconds_per_chunk", "codec", "tokens_per_vector", "seed")


@dataclass(frozen=True)
class Asked:
    """A chunk of a training context, and what is asked about it."""

    key: str
    text: str
    tokens: tuple[int, ...]
    questions: tuple[ChunkQuestion, ...]


def contexts(data: Path, seed: int) -> Iterator[tuple[str, list[dict]]]:
    """Training contexts with their questions, each context once.

    Sources are drawn as often as the model's own training drew them.
    """
    grouped: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in question_rows(data, "train"):
        grouped[row["source"]][row["context"]].append(row)
    waiting = {
        source: sorted(found, key=lambda text: hash01(text, f"reader {seed}"))
        for source, found in grouped.items()
    }
    weights, rng = dict(Sources().weights), random.Random(seed)
    while left := [source for source in waiting if waiting[source]]:
        source = rng.choices(left, [weights.get(one, 0.3) for one in left])[0]
        context = waiting[source].pop()
        yield context, grouped[source][context]


def asked_of(lm: LM, context: str, rows: Sequence[dict], capacity: int) -> Asked | None:
    """The chunk of a context that answers most of its questions.

    It is cut as an ingest cuts, and None if there is none.
    """
    document = Document.of_text(context)
    found: list[Asked] = []
    for chunk in split(document, capacity, lambda text: len(lm.encode(text))):
        given = [
            row
            for row in rows
            if row["answers"][0] is None or any(answer in chunk.text for answer in row["answers"])
        ]
        tokens = tuple(lm.encode(chunk.text))
        if given and len(tokens) > capacity // 3 and lm.decode(tokens) == chunk.text:
            answers = [
                (UNSAID,) if row["answers"][0] is None else tuple(row["answers"]) for row in given
            ]
            asked = {
                row["question"]: ChunkQuestion(chunk.id, row["question"], golds)
                for row, golds in zip(given, answers, strict=True)
            }
            found.append(Asked(chunk.id, chunk.text, tokens, tuple(asked.values())))
    return max(found, key=lambda one: len(one.questions), default=None)


def chosen(lm: LM, data: Path, count: int, capacity: int, least: float, seed: int) -> list[Asked]:
    """The first `count` different chunks of `contexts`, with questions of theirs.

    The questions are those that `lm` answers from the text with an F1 of `least`.

    Cost: a greedy answer to each question of the data about the chunks that it looks at, some two
        for each that is chosen.
    """
    found: dict[str, Asked] = {}
    every = (
        one
        for context, rows in contexts(data, seed)
        if (one := asked_of(lm, context, rows, capacity)) is not None
    )
    while len(found) < count and (some := list(islice(every, TOGETHER))):
        chunks = {one.key: TrainingChunk(one.key, one.tokens, NONE) for one in some}
        examples = Teacher(lm, qa_prompt(lm), chunks).make_examples(
            [question for one in some for question in one.questions], 0.0, seed
        )
        understood = {example.question for example in examples if example.f1 >= least}
        for one in some:
            if kept := tuple(question for question in one.questions if question in understood):
                found.setdefault(one.key, replace(one, questions=kept))
        say(f"chunks chosen: {min(len(found), count)} of {count}")
    return list(found.values())[:count]


def kept(file: Path, lm: LM, choose: Callable[[], list[Asked]]) -> list[Asked]:
    """The contents of the file; where there is none, what `choose` returns is saved there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "key": one.key,
                "text": one.text,
                "asked": [(asked.question, asked.answers) for asked in one.questions],
            }
            for one in choose()
        ]
        write_whole(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
    with file.open(encoding="utf-8") as lines:
        return [asked_in(lm, json.loads(line)) for line in lines]


def asked_in(lm: LM, row: dict) -> Asked:
    """A line of such a file."""
    questions = tuple(
        ChunkQuestion(row["key"], question, tuple(answers)) for question, answers in row["asked"]
    )
    return Asked(row["key"], row["text"], tuple(lm.encode(row["text"])), questions)


def written(
    lm: LM,
    template: Template,
    some: Sequence[Asked],
    settings: Memorize,
    compressions: Sequence[int],
    folder: Path,
    part: tuple[int, int],
) -> dict[str, np.ndarray]:
    """The memories of `some`, by chunk id, as they are stored.

    Those of this process's part that no file has are written.

    The files take turns at `compressions` (tokens a vector): a reader has to know them all.

    Cost: what `memorize` costs; they are not judged, for a reader learns from what there is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, np.ndarray] = {}
    shards = [
        (some[start : start + SHARD], one)
        for start, one in zip(range(0, len(some), SHARD), cycle(compressions), strict=False)
    ]
    began, ready = time.monotonic(), 0
    mine = [shard for number, shard in enumerate(shards) if number % part[1] == part[0]]
    for number, (shard, compression) in enumerate(mine):
        here = replace(settings, tokens_per_vector=compression)
        dials = [recipe_of(here), steps_of(here), *(getattr(here, name) for name in DECIDE)]
        made_of = (lm.identity, template.digest, dials, [one.key for one in shard])
        file = folder / f"{digest_of(made_of)[:24]}.safetensors"
        if file.is_file():
            ready += 1
        else:
            write_whole(file, shard_of(lm, template, shard, here))
            done = number + 1 - ready
            left = (time.monotonic() - began) / done * (len(mine) - number - 1)
            say(
                f"memories: {SHARD * (number + 1)} of {SHARD * len(mine)}, {left / 60:.0f} min left"
            )
        with safe_open(file, framework="numpy") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}
    return found


def shard_of(lm: LM, template: Template, shard: Sequence[Asked], settings: Memorize) -> bytes:
    """The memories of a few chunks, packed and read back by the codec, in one file."""
    codec, vectors, wrong = codec_named(settings.codec), {}, 0
    for one in memorize(
        lm,
        template,
        [make_task(a.key, a.tokens, settings.tokens_per_vector) for a in shard],
        settings,
    ):
        shape = (one.vectors.shape[0], one.vectors.shape[1])
        vectors[one.task.key] = np.ascontiguousarray(
            codec.unpack(codec.pack(one.vectors), shape), dtype=np.float32
        )
        wrong += one.wrong > 0
    return save(vectors, {"not_exact": str(wrong)})


def settings_of(args: argparse.Namespace) -> Config:
    """The dials told, over the defaults; `--set DIAL=VALUE` reaches every one."""
    told = {
        "model.id": args.model,
        "model.threads": args.threads,
        "adapt.seed": args.seed,
        "adapt.questions": args.questions,
        "adapt.kind": args.kind,
    }
    return complete_config(
        updated(Config(), told | dict(one.split("=", 1) for one in args.set)), {}
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the data folder: qa/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--questions",
        type=int,
        default=6,
        help="made by rule of each chunk, beside those of the data",
    )
    parser.add_argument("--kind", default="memory", choices=("memory", "text"))
    parser.add_argument(
        "--tokens-per-vector",
        type=int,
        nargs="*",
        help="compressions that take turns (auto: one, what is known)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--part", default="0/1", help="of the writing: this process's number / how many there are"
    )
    parser.add_argument("--until", default="trained", choices=("chosen", "written", "trained"))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="DIAL=VALUE",
        help="such as adapt.minutes=30 or memorize.template=cue",
    )
    return parser.parse_args()


def memories_of(
    lm: LM, template: Template, some: Sequence[Asked], config: Config, args: argparse.Namespace
) -> dict[str, np.ndarray]:
    """The memories of `some`; with `--until written` those of this process's part alone."""
    compressions = args.tokens_per_vector or [
        choose_calibration(
            lm, template, [one.tokens for one in some[:64]], config, say
        ).tokens_per_vector
    ]
    number, _, parts = args.part.partition("/")
    part = (int(number), int(parts)) if args.until == "written" else (0, 1)
    return written(
        lm,
        template,
        some,
        settings=config.memorize,
        compressions=compressions,
        folder=args.out / "memories",
        part=part,
    )


def main() -> None:
    """Chooses chunks, writes their memories, trains, prints what was measured."""
    args = parsed()
    config = settings_of(args)
    lm = load(config.model)
    template = template_named(
        recipe_named(recipe_of(config.memorize)).template or config.memorize.template, lm
    )
    dials = (args.chunks, config.documents.chunk_tokens, config.adapt.least, args.seed)
    some = kept(args.out / "chosen.jsonl", lm, lambda: chosen(lm, args.data, *dials))[: args.chunks]
    if args.until == "chosen":
        return
    vectors = (
        memories_of(lm, template, some, config, args)
        if args.kind == "memory"
        else {one.key: NONE for one in some}
    )
    if args.until == "written":
        return
    made = config.adapt.questions
    questions = [
        question
        for one in some
        for question in (*one.questions, *ask_by_rule(one.key, one.text, made, args.seed))
    ]
    say(f"{len(some)} chunks, {len(questions)} questions")
    folder = args.out / ("adapter" if args.kind == "memory" else "adapter-text")
    with progress_bar("done") as on_progress:
        manifest = adapt(
            lm,
            template.digest,
            chunks=[TrainingChunk(one.key, one.tokens, vectors[one.key]) for one in some],
            questions=questions,
            settings=config.adapt,
            folder=folder,
            on_progress=on_progress,
        )
    measured = f"{dict(manifest.dev)}; {dict(manifest.trained_on)}"
    say(f"{folder}: {manifest.steps} steps; {measured}")


if __name__ == "__main__":
    main()
