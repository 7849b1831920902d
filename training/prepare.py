"""Packs prose into uint16 token files and gathers passages and questions.

Run it as `python -m training.prepare DATA OUT`.

OUT must hold `tokenizer.json`. Writes train.bin, val.bin (documents held out by hash),
passages.jsonl (paragraphs of prose) and questions.jsonl.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.frame import BOS, EOS
from training.sources import FREE_QUESTIONS, SPAN_QUESTIONS, UNANSWERABLE, hash01, prose, questions

HELD_OUT = 0.004  # of the documents, for bits per byte


def pack(tokenizer: Tokenizer, texts: list[str], path: Path) -> int:
    """Writes the texts as one stream of ids, each between beginning and end of text.

    Returns the number of tokens.
    """
    total = 0
    with path.open("wb") as out:
        for start in range(0, len(texts), 500):
            for encoding in tokenizer.encode_batch_fast(
                texts[start : start + 500], add_special_tokens=False
            ):
                ids = np.array([BOS, *encoding.ids, EOS], dtype=np.uint16)
                total += len(ids)
                ids.tofile(out)
    return total


def paragraphs(texts: list[str], shortest: int = 160, longest: int = 1200) -> Iterator[str]:
    """Paragraphs and runs of short paragraphs, in characters between `shortest` and `longest`."""
    for text in texts:
        held = ""
        for part in text.split("\n\n"):
            held = f"{held}\n\n{part}" if held else part
            if len(held) >= shortest:
                if len(held) <= longest:
                    yield held.strip()
                held = ""


def question_rows(data: Path, split: str, longest_answer: int = 120) -> Iterator[dict]:
    """Questions with an answer of at most `longest_answer` characters.

    The unanswerable ones have the answer None.
    """
    for source in (*SPAN_QUESTIONS, *FREE_QUESTIONS, UNANSWERABLE):
        for row in questions(data, source, split):
            answers = (
                [None]
                if row.get("impossible")
                else [a for a in row["answers"] if a and len(a) <= longest_answer]
            )
            if answers and row["context"] and len(row["question"]) < 300:
                context = (
                    row["context"]
                    if len(row["context"]) < 4000
                    else around(row["context"], answers[0], 4000)
                )
                yield {
                    "source": source,
                    "context": context,
                    "question": row["question"],
                    "answer": answers[0],
                    "answers": answers,
                }


def around(context: str, answer: str | None, length: int) -> str:
    """About `length` characters of the context with the answer in the middle."""
    place = max(0, context.find(answer)) if answer else 0
    start = max(0, place - length // 2)
    return context[start : start + length]


def write_rows(rows: Iterator[dict] | list, path: Path) -> int:
    """Writes one JSON value a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def main() -> None:
    """Parses the command line and packs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the data folder: text/ and qa/")
    parser.add_argument("out", type=Path, help="the folder with tokenizer.json")
    parser.add_argument(
        "--megabytes", type=float, default=110, help="prose to pack; 600 takes everything"
    )
    parser.add_argument(
        "--passages", type=int, default=60_000, help="paragraphs to keep for the tasks"
    )
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    texts = sorted(
        (text for _, text in prose(args.data, args.megabytes)), key=lambda t: hash01(t, "order")
    )
    held = [t for t in texts if hash01(t[:500], "held out") < HELD_OUT]
    kept = [t for t in texts if hash01(t[:500], "held out") >= HELD_OUT]
    print(
        f"validation: {pack(tokenizer, held, args.out / 'val.bin') / 1e6:.2f}M tokens of "
        f"{len(held)} documents",
        flush=True,
    )
    print(
        f"train: {pack(tokenizer, kept, args.out / 'train.bin') / 1e6:.2f}M tokens of {len(kept)} "
        "documents",
        flush=True,
    )
    chosen = sorted(paragraphs(kept), key=lambda t: hash01(t, "passage"))[: args.passages]
    print(f"passages: {write_rows(chosen, args.out / 'passages.jsonl')}")
    print(
        f"questions: {write_rows(question_rows(args.data, 'train'), args.out / 'questions.jsonl')}"
    )


if __name__ == "__main__":
    main()
