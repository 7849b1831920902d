"""Questions about a text, made by rule: what memories are taught to be read with where nobody has asked yet.

    words    a question word, and some words of a sentence: "When keeper lived island?"
    name     a question about a name that stands there: "Who was Ana Ruiz?"
    field    the name in "name: value", "name = value", | name | value |: "What is the height?"; or the other way round

They need not make sense, only use the words that real ones would: the model answers them itself from the text, and a memory learns to be
answered alike. Questions that a rule can answer but the model cannot (what is missing here, what comes after) teach far less
(benchmarks/log.md).
"""

import random
import re
from collections.abc import Callable, Sequence

ASKING = (
    "Who", "Who is", "Who was", "What", "What is", "What was", "When", "When was", "Where", "Where is", "Which", "How", "How many",
    "How much",
)  # fmt: skip
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\s*\n\s*")
WORD = re.compile(r"\w[\w.,'’/%-]*\w|\w")
NAME = re.compile(r"[^\W\d_a-z][\w'’.-]*(?: (?:(?:of|the|de|del|la|von|van|and|y) )*[^\W_a-z][\w'’-]*)*")
FIELD = re.compile(
    r"(?:^|[;.|\n])[ \t>*|-]*(?P<name>[^\W\d][\w ()/'-]{1,40}?)[*`\"]*\s*(?:[:=](?!/)|\|)\s*[*`\"]*(?P<value>[^\s|;*`\"][^|;\n]{0,80})"
)
SHORT = 3  # letters of a word that mostly says little
KEPT, KEPT_SHORT = 0.65, 0.35  # how often a word of a sentence comes into a question
TRIES = 6  # for each cue wanted

Rule = Callable[[str, random.Random], str | None]


def words(text: str, rng: random.Random) -> str | None:
    """Some words of a stretch of a sentence, in their order."""
    start, stop = rng.choice(sentences(text) or ((0, 0),))
    found = WORD.findall(text[start:stop])
    if not found:
        return None
    at = rng.randrange(len(found))
    stretch = found[max(0, at - rng.randint(0, 8)) : at + rng.randint(2, 9)]
    kept = [word for word in stretch if rng.random() < (KEPT_SHORT if len(word) <= SHORT else KEPT)]
    return f"{rng.choice(ASKING)} {' '.join(kept[:8])}?" if kept else None


def name(text: str, rng: random.Random) -> str | None:
    """Something about a name."""
    names = NAME.findall(text)
    return rng.choice(("{}?", *(f"{asking} {{}}?" for asking in ASKING))).format(rng.choice(names)) if names else None


def field(text: str, rng: random.Random) -> str | None:
    """The value of a name, or the name of a value."""
    fields = [(match["name"].strip(), match["value"].strip(" .")) for match in FIELD.finditer(text)]
    if not fields:
        return None
    name, value = rng.choice(fields)
    return rng.choice(("{0}?", "What is the {0}?", "What are the {0}?", "What does it say for {0}?", 'Which one is "{1}"?')).format(
        name, value
    )


CUES: dict[str, Rule] = {"words": words, "name": name, "field": field}


def cues(text: str, count: int, seed: int | str, kinds: Sequence[str] = tuple(CUES)) -> tuple[str, ...]:
    """At most `count` different questions about `text`, of `kinds` in turn; fewer where it has not so many. Text and seed decide all."""
    rng = random.Random(f"{seed}:{text}")
    found: dict[str, None] = {}
    for turn in range(TRIES * count):
        if len(found) == count:
            break
        if question := CUES[kinds[turn % len(kinds)]](text, rng):
            found.setdefault(question)
    return tuple(found)


def sentences(text: str) -> tuple[tuple[int, int], ...]:
    """Where the sentences of `text` begin and end, in characters; a line ends one. Only white space stands between them."""
    ends = [*SENTENCE_END.finditer(text)]
    starts, stops = [0, *(end.end() for end in ends)], [*(end.start() for end in ends), len(text)]
    return tuple((start, stop) for start, stop in zip(starts, stops, strict=True) if text[start:stop].strip())
