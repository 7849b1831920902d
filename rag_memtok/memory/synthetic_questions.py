"""Questions about a text, made by rule.

Memories are optimized on them to be readable before anybody has asked a question.

A synthetic question is a question word and some words of a sentence: "When keeper lived island?" It
need not make sense, only use the words that a real question would: the model answers it itself from
the text, and the memory is optimized for the same answer. Riddles that a rule can answer but the
model cannot (what is missing here, what comes after) teach far less, and questions for names and
for fields no more (benchmarks/log.md).
"""

import random
import re

ASKING = (
    "Who", "Who is", "Who was", "What", "What is", "What was", "When", "When was", "Where",
    "Where is", "Which", "How", "How many", "How much",
)  # fmt: skip
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\s*\n\s*")
WORD = re.compile(r"\w[\w.,'’/%-]*\w|\w")
SHORT = 3  # letters of a word that mostly says little
KEPT, KEPT_SHORT = 0.65, 0.35  # how often a word of a sentence comes into a question
BEFORE, AFTER, MOST = 8, 9, 8  # words around the one drawn, and in a question
TRIES = 6  # for each question wanted


def make_questions(text: str, count: int, seed: int | str) -> tuple[str, ...]:
    """At most `count` different questions about `text`; fewer where it has not so many.

    Text and seed decide them all.
    """
    rng = random.Random(f"{seed}:{text}")
    sentences = [
        words for sentence in SENTENCE_END.split(text) if (words := WORD.findall(sentence))
    ]
    found: dict[str, None] = {}
    for _ in range(TRIES * count if sentences else 0):
        if len(found) == count:
            break
        if question := make_question(rng.choice(sentences), rng):
            found.setdefault(question)
    return tuple(found)


def make_question(words: list[str], rng: random.Random) -> str | None:
    """A question word, and some words of a stretch of a sentence in their order.

    It is None if none was drawn.
    """
    at = rng.randrange(len(words))
    stretch = words[max(0, at - rng.randint(0, BEFORE)) : at + rng.randint(2, AFTER)]
    kept = [word for word in stretch if rng.random() < (KEPT_SHORT if len(word) <= SHORT else KEPT)]
    return f"{rng.choice(ASKING)} {' '.join(kept[:MOST])}?" if kept else None
