"""The dev questions as measured: passages cut to the product's chunks, with distractors."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from training.cuts import cut, sentences
from training.frame import REFUSAL
from training.sources import FREE_QUESTIONS, SPAN_QUESTIONS, UNANSWERABLE, hash01, questions

CHUNK = 500  # characters, about 128 tokens


@dataclass(frozen=True, kw_only=True)
class Example:
    """A dev question, its passage, four distractors and every right answer.

    The passage is cut around its answer.
    """

    source: str
    question: str
    gold: str
    distractors: tuple[str, ...]
    answers: tuple[str, ...]
    answerable: bool

    def passages(self, among: int, rng: random.Random) -> list[str]:
        """The gold passage and distractors, `among` in all, shuffled."""
        shown = [self.gold, *self.distractors[: among - 1]]
        rng.shuffle(shown)
        return shown


def dev(data: Path, source: str, limit: int) -> list[Example]:
    """At most `limit` dev questions of a source, chosen by hash.

    Answers over 200 characters are left out.

    Distractors: another cut of the same document where it is long enough, then passages of other
    questions of the same source.
    """
    rows = sorted(
        questions(data, source, "dev"), key=lambda r: hash01(r["question"] + r["context"], "dev")
    )
    rng = random.Random(source)
    cuts = [
        cut(row["context"], row["answers"][0], CHUNK, rng)
        for row in rows[: 4 * limit]
        if usable(row)
    ]
    rows = [row for row in rows[: 4 * limit] if usable(row)]
    made = []
    for row, gold in list(zip(rows, cuts, strict=True))[:limit]:
        same = cut(row["context"], None, CHUNK, rng)
        right = [a for a in row["answers"] if a]
        pool = [same, *rng.sample(cuts, min(12, len(cuts)))]
        others = [
            p
            for p in dict.fromkeys(pool)
            if p != gold and (row.get("impossible") or not any(a in p for a in right))
        ]
        answers = (REFUSAL,) if row.get("impossible") else tuple(right)
        made.append(
            Example(
                source=source,
                question=row["question"],
                gold=gold,
                distractors=tuple(others[:4]),
                answers=answers,
                answerable=not row.get("impossible"),
            )
        )
    return made


def usable(row: dict) -> bool:
    """Whether a row has a context and a short answer."""
    return bool(
        row["context"] and row["answers"] and row["answers"][0] and len(row["answers"][0]) <= 200
    )


def all_dev(data: Path, limit: int, only: list[str] | None = None) -> list[Example]:
    """Examples of every source that has dev questions, or of some."""
    return [
        e
        for source in only or (*SPAN_QUESTIONS, *FREE_QUESTIONS, UNANSWERABLE)
        for e in dev(data, source, limit)
    ]


def best_sentence(question: str, passages: list[str]) -> str:
    """The sentence of the passages that shares most words with the question.

    It is what a reader must beat.
    """
    asked = set(re.findall(r"\w+", question.lower()))
    found = [p[a:b] for p in passages for a, b in sentences(p)]
    return max(
        found,
        key=lambda s: len(asked & set(re.findall(r"\w+", s.lower()))) / (3 + len(s.split())) ** 0.3,
        default="",
    )


def chunks(context: str, length: int = CHUNK) -> list[str]:
    """The whole context in runs of sentences of at most about `length` characters."""
    made, begin, end = [], 0, 0
    for start, stop in sentences(context):
        if stop - begin > length and end > begin:
            made.append(context[begin:end].strip())
            begin = start
        end = stop
    return [c for c in [*made, context[begin:].strip()] if c]
