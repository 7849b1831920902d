"""Cutting passages at sentence ends, around an answer.

They are cut in about the length of the product's chunks.
"""

import random
import re

SENTENCE_END = re.compile(r"(?<=[.!?;\n])\s+")


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences of a text, in characters.

    Together they cover all but the spaces between them.
    """
    starts = [0, *(m.end() for m in SENTENCE_END.finditer(text))]
    ends = [*(m.start() for m in SENTENCE_END.finditer(text)), len(text)]
    return [(a, b) for a, b in zip(starts, ends, strict=True) if b > a]


def passage_length(rng: random.Random) -> int:
    """Characters of a passage: mostly about 128 tokens, some shorter, a few up to 300 tokens."""
    draw = rng.random()
    if draw < 0.7:
        return rng.randint(360, 560)
    return rng.randint(150, 360) if draw < 0.92 else rng.randint(560, 1100)


def cut(context: str, answer: str | None, length: int, rng: random.Random) -> str:
    """A run of whole sentences of about `length` characters.

    The answer is in it, at a random place.
    """
    if len(context) <= length:
        return context.strip()
    spans = sentences(context)
    place = context.find(answer) if answer else -1
    if place < 0:
        place = rng.randrange(len(context))
    first = last = max(i for i, (start, _) in enumerate(spans) if start <= place)
    while last + 1 < len(spans) and answer and spans[last][1] < place + len(answer):
        last += 1
    while True:
        grow = [
            side for side, free in (("left", first > 0), ("right", last + 1 < len(spans))) if free
        ]
        if not grow:
            break
        left = rng.choice(grow) == "left"
        start, end = spans[first - left][0], spans[last + (not left)][1]
        if end - start > length:
            break
        first, last = first - left, last + (not left)
    passage = context[spans[first][0] : spans[last][1]].strip()
    return passage if len(passage) < 1.6 * length else at_spaces(passage, answer, length, rng)


def at_spaces(text: str, answer: str | None, length: int, rng: random.Random) -> str:
    """About `length` characters of one endless sentence, cut at spaces, the answer in it."""
    place = max(0, text.find(answer)) if answer else rng.randrange(len(text))
    room = max(0, length - len(answer or ""))
    start = max(0, place - rng.randint(0, room))
    start = text.rfind(" ", 0, start) + 1
    end = text.find(" ", max(start + length, place + len(answer or "")))
    return text[start : end if end > 0 else len(text)].strip()
