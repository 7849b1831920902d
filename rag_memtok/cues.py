"""Questions about a text, with their answers, made by rule: what memories are taught to be read with where nobody has asked yet.

    cloze      a stretch of a sentence with up to four words missing    the words
    after      what comes right after a quotation?                      the rest of its sentence
    field      the name in "name: value", "name = value", | name | value |    the value
    sentence   which sentence has these words?                          the sentence

An answer stands in the text, letter for letter, and the rule has one answer only: quotations and names that occur twice are not asked for.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BLANK = "___"
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\s*\n\s*")
WORD = re.compile(r"\S+")
FIELD = re.compile(
    r"^[\s>*|-]*(?P<name>[^\W\d][\w ()/-]{1,40}?)[*`\"]*\s*(?:[:=](?!/)|\|)\s*[*`\"]*(?P<value>[^\s|*`\"][^|\n]{0,80}?)[\s*`\"|,;]*$", re.M
)
EDGE = " ,.;:!?()[]{}\"'`*_|"  # never the first or last letter of an answer of `cloze`
LONGEST = 30  # words of an answer
TRIES = 6  # for each cue wanted


@dataclass(frozen=True, slots=True)
class Cue:
    """A question about a text whose `answer` is a stretch of it; `kind` is the rule's name in CUES."""

    kind: str
    question: str
    answer: str


Rule = Callable[[str, random.Random], tuple[str, str] | None]


def cloze(text: str, rng: random.Random) -> tuple[str, str] | None:
    """Words missing from a sentence. Half of the time they begin at a number or a name: what lossy memories forget first."""
    words = _words_of_a_sentence(text, rng, at_least=6)
    if not words:
        return None
    telling = [i for i, word in enumerate(words[1:-1], start=1) if any(c.isdigit() or c.isupper() for c in word.group())]
    first = rng.choice(telling) if telling and rng.random() < 0.5 else rng.randrange(1, len(words) - 1)
    last = min(first + rng.choice((0, 0, 1, 1, 2, 3)), len(words) - 2)
    missing = text[words[first].start() : words[last].end()]
    answer = missing.strip(EDGE)
    if not answer:
        return None
    start, stop = words[max(0, first - rng.randint(3, 12))].start(), words[min(len(words) - 1, last + rng.randint(1, 8))].end()
    before, after = missing.split(answer, 1)
    left, right = text[start : words[first].start()] + before, after + text[words[last].end() : stop]
    if _places(text, left) != 1 and _places(text, right) != 1:
        return None
    return f"{left}{BLANK}{right.rstrip('.?!;')}?", answer


def after(text: str, rng: random.Random) -> tuple[str, str] | None:
    """How a sentence goes on."""
    words = _words_of_a_sentence(text, rng, at_least=6)
    if not words:
        return None
    size = rng.randint(3, min(8, len(words) - 2))
    first = rng.randrange(0, len(words) - size)
    quote = text[words[first].start() : words[first + size - 1].end()]
    rest = words[first + size : first + size + LONGEST]
    return (f'What comes right after "{quote}"?', text[rest[0].start() : rest[-1].end()]) if _places(text, quote) == 1 else None


def field(text: str, rng: random.Random) -> tuple[str, str] | None:
    """The value of a name that is given one only."""
    found = [(match["name"].strip(), match["value"].strip()) for match in FIELD.finditer(text)]
    names = [name.lower() for name, _ in found]
    once = [(name, value) for name, value in found if value and names.count(name.lower()) == 1]
    if not once:
        return None
    name, value = rng.choice(once)
    return rng.choice(("What is the {}?", "What does it say for {}?", "{}?")).format(name), value


def sentence(text: str, rng: random.Random) -> tuple[str, str] | None:
    """The sentence with some words."""
    words = _words_of_a_sentence(text, rng, at_least=5)
    if not words or len(words) > LONGEST:
        return None
    size = rng.randint(2, 3)
    first = rng.randrange(len(words) - size + 1)
    quote = text[words[first].start() : words[first + size - 1].end()].strip(EDGE)
    whole = text[words[0].start() : words[-1].end()]
    return (f'Which sentence has the words "{quote}"?', whole) if quote and _places(text, quote) == 1 else None


CUES: dict[str, Rule] = {"cloze": cloze, "after": after, "field": field, "sentence": sentence}


def cues(text: str, count: int, seed: int, kinds: Sequence[str] = tuple(CUES)) -> tuple[Cue, ...]:
    """At most `count` different cues of `text`, of `kinds` in turn; fewer where it has not so many. Text and seed decide them all."""
    rng = random.Random(f"{seed}:{text}")
    found: dict[str, Cue] = {}
    for turn in range(TRIES * count):
        if len(found) == count:
            break
        kind = kinds[turn % len(kinds)]
        if made := CUES[kind](text, rng):
            found.setdefault(made[0], Cue(kind, *made))
    return tuple(found.values())


def sentences(text: str) -> tuple[tuple[int, int], ...]:
    """Where the sentences of `text` begin and end, in characters; a line ends one. Only white space stands between them."""
    ends = [*SENTENCE_END.finditer(text)]
    starts, stops = [0, *(end.end() for end in ends)], [*(end.start() for end in ends), len(text)]
    return tuple((start, stop) for start, stop in zip(starts, stops, strict=True) if text[start:stop].strip())


def _words_of_a_sentence(text: str, rng: random.Random, at_least: int) -> list[re.Match[str]]:
    """The words of a sentence drawn at random, none if no sentence has `at_least`."""
    of_each = [list(WORD.finditer(text, start, stop)) for start, stop in sentences(text)]
    long = [words for words in of_each if len(words) >= at_least]
    return rng.choice(long) if long else []


def _places(text: str, part: str) -> int:
    """How often `part` stands in `text`, overlaps included; an empty one is everywhere."""
    return len(re.findall(f"(?={re.escape(part)})", text)) if part.strip() else len(text)
