"""Made-up facts about made-up pairings of words from the prose.

They are documents whose every sentence answers a question.
"""

import random
import re
from dataclasses import dataclass

NAME = re.compile(r"(?<![.!?\n] )\b[A-ZÁÉÍÓÚÑ][a-záéíóúñü]{2,}\b")
NOUN = re.compile(r"\b[a-z]{4,11}\b")
MONTHS = (
    "January February March April May June July August September October November December".split()
)

# sentence; questions whose answer is {b}; questions whose answer is {a}
RELATIONS = (
    (
        "{a} was born in {b}.",
        ("Where was {a} born?", "In which place was {a} born?"),
        ("Who was born in {b}?",),
    ),
    ("{a} lives in {b}.", ("Where does {a} live?",), ("Who lives in {b}?",)),
    ("{a} was founded in {year}.", ("When was {a} founded?", "In what year was {a} founded?"), ()),
    ("{a} died on {date}.", ("When did {a} die?", "On what date did {a} die?"), ()),
    (
        "In {year}, {a} moved to {b}.",
        ("Where did {a} move in {year}?", "Where did {a} move to?"),
        ("Who moved to {b}?",),
    ),
    (
        "The capital of {a} is {b}.",
        ("What is the capital of {a}?",),
        ("Of what is {b} the capital?",),
    ),
    (
        "{a} has a population of {number}.",
        ("What is the population of {a}?", "How many people live in {a}?"),
        (),
    ),
    ("{a} is known for its {n}.", ("What is {a} known for?",), ()),
    (
        "The {m} of {a} is called {b}.",
        ("What is the {m} of {a} called?",),
        ("Whose {m} is called {b}?",),
    ),
    (
        "{a} is married to {b}.",
        ("Who is married to {a}?", "Who is the spouse of {a}?"),
        ("Who is married to {b}?",),
    ),
    (
        "{b} wrote {a} in {year}.",
        ("Who wrote {a}?", "Who is the author of {a}?"),
        ("What did {b} write?",),
    ),
    ("{a} is a kind of {n}.", ("What is {a}?", "What kind of thing is {a}?"), ()),
    (
        "{b} designed the {m} for {a}.",
        ("Who designed the {m}?",),
        ("For whom did {b} design the {m}?",),
    ),
    ("{m}: {n}", ("What is the {m}?", "{m}?"), ()),
    ("{a}: {number}", ("What is the number of {a}?", "{a}?"), ()),
    (
        "{a} sold {number} {n} to {b}.",
        ("How many {n} did {a} sell?", "How many {n} were sold to {b}?"),
        ("Who sold {n} to {b}?",),
    ),
    ("The {m} was opened on {date} by {b}.", ("When was the {m} opened?",), ()),
    ("The {m} was opened by {b} on {date}.", ("Who opened the {m}?",), ("What did {b} open?",)),
)
TARGETS = {"{year}": "year", "{date}": "date", "{number}": "number", "{n}": "n", "{b}": "b"}


@dataclass(frozen=True)
class Words:
    """Names and nouns as they occur in the prose."""

    names: tuple[str, ...]
    nouns: tuple[str, ...]


def words(passages: list[str]) -> Words:
    """The names and nouns of a sample of passages, frequent ones more than once."""
    text = "\n".join(passages[:3000])
    return Words(tuple(NAME.findall(text)), tuple(NOUN.findall(text)))


def name(rng: random.Random, source: Words) -> str:
    """One or two names."""
    return " ".join(rng.sample(source.names, 1 if rng.random() < 0.5 else 2))


def phrase(rng: random.Random, source: Words) -> str:
    """One or two nouns."""
    return " ".join(rng.sample(source.nouns, 1 if rng.random() < 0.6 else 2))


def fact(rng: random.Random, source: Words) -> tuple[str, str, str]:
    """A sentence, a question about it and the answer, which stands in the sentence."""
    sentence, forward, backward = rng.choice(RELATIONS)
    fill = {
        "a": name(rng, source),
        "b": name(rng, source),
        "n": phrase(rng, source),
        "m": phrase(rng, source),
        "year": str(rng.randint(1200, 2025)),
        "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(1500, 2025)}",
        "number": f"{rng.randint(2, 999):,}"
        if rng.random() < 0.5
        else f"{rng.randint(1000, 9_999_999):,}",
    }
    if backward and rng.random() < 0.3:
        question, target = (
            rng.choice(backward),
            "m" if sentence.startswith("The {m} was opened by") else "a",
        )
        answer = f"the {fill['m']}" if target == "m" else fill["a"]
    else:
        question = rng.choice(forward)
        answer = fill[answer_slot(sentence, question)]
    return sentence.format(**fill), question.format(**fill), answer


def answer_slot(sentence: str, question: str) -> str:
    """Which blank of the sentence a forward question asks for.

    It is the first of the targets that the question does not itself give.
    """
    wanted = (
        ("When", "{date}"),
        ("On what date", "{date}"),
        ("When", "{year}"),
        ("In what year", "{year}"),
        ("How many", "{number}"),
    )
    for start, blank in wanted:
        if question.startswith(start) and blank in sentence:
            return TARGETS[blank]
    order = (
        ("{b}", "{number}", "{n}") if "{b}" in sentence else ("{number}", "{n}", "{year}", "{date}")
    )
    return next(TARGETS[blank] for blank in order if blank in sentence and blank not in question)
