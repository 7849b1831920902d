"""Makes the questions of an evaluation from a folder of sources.

It is run as `python -m benchmarks.questions DATA QUESTIONS.jsonl`.

DATA has SOURCE.jsonl.xz files of rows {"context", "question", "answers", "split"}; only `dev` rows
are used. A context is cut as an ingest would cut it, before any question is looked at; a question
goes with the one chunk that has its answer, and is left out where none or several do. The same
number of chunks of each source, drawn by a hash of their text; two questions for each, more where
there are more.
"""

import argparse
import json
import lzma
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from rag_memtok.datatypes import Document, sha256_of_text
from rag_memtok.documents.split import split
from rag_memtok.evaluation.metrics import answerable
from rag_memtok.model.lm import EMBEDDED
from training.sources import choosing

SOURCES = ("squad11_train_part", "wiki_templates", "factbook_templates", "openstax_glossary")
LONGEST = 200  # characters of an answer
Row = dict


def dev_rows(data: Path, source: str) -> list[Row]:
    """The dev rows of a source that have a context and answers.

    Each question about a context comes once.
    """
    with lzma.open(data / f"{source}.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [
            row
            for row in map(json.loads, file)
            if row["split"] == "dev" and row["context"].strip() and row["answers"]
        ]
    return list({(row["context"], row["question"]): row for row in rows}.values())


def by_chunk(rows: Iterable[Row], words: Tokenizer, tokens: int) -> dict[str, list[Row]]:
    """Questions by the chunk that has their answer.

    A question without one goes with the first chunk of its context.
    """
    cut: dict[str, list[str]] = {}
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        chunks = cut.setdefault(row["context"], pieces(row["context"], words, tokens))
        golds = answerable(row["answers"])
        holding = (
            [chunk for chunk in chunks if any(gold in chunk for gold in golds)]
            if golds
            else chunks[:1]
        )
        if len(holding) == 1 and all(len(gold) <= LONGEST for gold in golds):
            found[holding[0]].append(
                {"context": holding[0], "question": row["question"], "answers": list(golds)}
            )
    return found


def pieces(context: str, words: Tokenizer, tokens: int) -> list[str]:
    """A context cut into chunks of at most so many tokens, without the white space around them."""
    document = Document.of_text(context)
    chunks = split(
        document, tokens, lambda text: len(words.encode(text, add_special_tokens=False).ids)
    )
    return [chunk.text.strip() for chunk in chunks if chunk.text.strip()]


def rank(text: str) -> str:
    """An order that has nothing to do with what a text says."""
    return sha256_of_text(text)


def chosen(groups: dict[str, list[Row]], chunks: int) -> dict[str, list[Row]]:
    """So many of the chunks with their questions, those with two or more before the others."""
    order = sorted(groups, key=lambda text: (len(groups[text]) < 2, rank(text)))[:chunks]
    return {
        text: sorted(groups[text], key=lambda row: rank(row["question"] + text)) for text in order
    }


def drawn(asked: dict[str, list[Row]], questions: int) -> list[Row]:
    """One question about each chunk, then a second one about each, and so on.

    It goes on until there are enough. The questions come chunk by chunk.
    """
    turns = [
        (number, text)
        for number in range(max(map(len, asked.values()), default=0))
        for text in asked
        if number < len(asked[text])
    ]
    counts = Counter(text for _, text in turns[:questions])
    return [row for text in asked for row in asked[text][: counts[text]]]


def shares(available: Sequence[int], total: int) -> list[int]:
    """`total` in equal parts, none more than is available there.

    What one lacks, the others make up.
    """
    parts = [0] * len(available)
    for left, index in zip(
        range(len(available), 0, -1),
        sorted(range(len(available)), key=available.__getitem__),
        strict=True,
    ):
        parts[index] = min(available[index], (total - sum(parts)) // left)
    return parts


def made(
    data: Path, sources: Sequence[str], chunks: int, questions: int, tokens: int, words: Tokenizer,
    half: str = "",
) -> list[Row]:  # fmt: skip
    """The questions of all sources, each with the name of its own.

    They are of one half of the contexts, "choosing" or "table", if that is named.
    """
    halves = (
        [row for row in dev_rows(data, source) if not half or half_of(row["context"]) == half]
        for source in sources
    )
    groups = [by_chunk(rows, words, tokens) for rows in halves]
    asked = [
        chosen(some, part)
        for some, part in zip(groups, shares([len(some) for some in groups], chunks), strict=True)
    ]
    parts = shares([sum(map(len, some.values())) for some in asked], questions)
    return [
        {**row, "source": source}
        for source, some, part in zip(sources, asked, parts, strict=True)
        for row in drawn(some, part)
    ]


def half_of(context: str) -> str:
    """Which half of the contexts one is in: what is chosen by, or what is published."""
    return "choosing" if choosing(context) else "table"


def main() -> None:
    """Parses the command line, writes the file, says what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder of SOURCE.jsonl.xz files")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES))
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=128, help="of a chunk, at most")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=EMBEDDED / "tokenizer.json",
        help="the model's tokenizer.json",
    )
    parser.add_argument("--half", choices=("choosing", "table"), default="")
    args = parser.parse_args()
    rows = made(
        args.data,
        args.sources,
        args.chunks,
        questions=args.questions,
        tokens=args.tokens,
        words=Tokenizer.from_file(str(args.tokenizer)),
        half=args.half,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    for source in args.sources:
        own = [row for row in rows if row["source"] == source]
        print(f"{source}: {len(own)} questions about {len({row['context'] for row in own})} chunks")


if __name__ == "__main__":
    main()
