"""Made-up notes as people keep them, and questions about them that the notes answer.

No set of questions has notes, tables, lists of things, settings or comments in code. These are made
by rule: a note is some made-up facts (inventions.py) under headings, in a list, a table, a log or
running text.
"""

import json
from collections.abc import Sequence

from training.facts import phrase
from training.inventions import Fact, Inventor
from training.vocabulary import COLOURS, EVENTS, FOODS, FOREIGN, PLACES, THINGS


class Writer(Inventor):
    """Makes notes; the generator decides them all."""

    def note(self, count: int) -> tuple[str, list[tuple[str, str]]]:
        """A note of about `count` facts, and questions that it answers."""
        draw = self.rng.random()
        if draw < 0.25:
            return self.table(count)
        tongue = self.rng.choice(tuple(FOREIGN)) if draw < 0.33 else ""
        some = [
            self.foreign(tongue) if tongue else self.rng.choice(self.kinds)() for _ in range(count)
        ]
        kept = [one for place, one in enumerate(some) if not self._repeats(one, some[:place])]
        made = self.rng.choice((self.prose, self.listed, self.sections, self.numbered, self.mixed))
        return made(kept), [self.owned(*self.rng.choice(one.asked)) for one in kept]

    def owned(self, question: str, answer: str) -> tuple[str, str]:
        """The question, sometimes of what is ours or mine instead of the thing."""
        if self.rng.random() < 0.2:
            question = question.replace(" the ", self.rng.choice((" my ", " our ")), 1)
        return question, answer

    def _repeats(self, fact: Fact, before: Sequence[Fact]) -> bool:
        """Whether one of its questions is asked of an earlier fact too."""
        known = {question for one in before for question, _ in one.asked}
        return any(question in known for question, _ in fact.asked)

    def heading(self) -> str:
        """A few words that stand above."""
        words = self.of(
            (self.of(PLACES), self.of(THINGS), self.of(EVENTS), phrase(self.rng, self.source))
        )
        return words[0].upper() + words[1:]

    def prose(self, some: Sequence[Fact]) -> str:
        """Sentence after sentence."""
        return " ".join(one.sentence for one in some)

    def listed(self, some: Sequence[Fact]) -> str:
        """A heading and a list."""
        mark = self.rng.choice(("- ", "* ", "", "• "))
        return f"{self.topped()}\n" + "\n".join(mark + one.line for one in some)

    def numbered(self, some: Sequence[Fact]) -> str:
        """A heading and a numbered list of sentences."""
        return f"{self.topped()}\n\n" + "\n".join(
            f"{number}. {one.sentence}" for number, one in enumerate(some, 1)
        )

    def sections(self, some: Sequence[Fact]) -> str:
        """Some sentences under each of several headings."""
        parts, at = [], 0
        while at < len(some):
            size = self.rng.randint(1, 3)
            parts.append(
                f"## {self.heading()}\n\n" + " ".join(one.sentence for one in some[at : at + size])
            )
            at += size
        return "\n\n".join(parts)

    def mixed(self, some: Sequence[Fact]) -> str:
        """A paragraph, then a list."""
        half = len(some) // 2
        return f"{self.prose(some[:half])}\n\n{self.listed(some[half:])}".strip()

    def topped(self) -> str:
        """A heading as people write them."""
        title = self.heading()
        return self.rng.choice((f"# {title}", title.upper(), f"{title}:", f"**{title}**", title))

    def table(self, count: int) -> tuple[str, list[tuple[str, str]]]:
        """Rows of things with two or three columns, and questions about cells."""
        first, kind = self.rng.choice(
            (
                ("Item", self.thing),
                ("Name", self.person),
                ("Room", lambda: self.of(PLACES)),
                ("Event", lambda: self.of(EVENTS)),
                ("Ingredient", lambda: self.of(FOODS)),
            )
        )
        columns = self.rng.sample(
            (
                ("Price", self.money, "How much is {a} {x}?"),
                ("Amount", lambda: str(self.rng.randint(1, 900)), "What is the amount for {x}?"),
                ("Date", self.date, "What is the date for {x}?"),
                ("Code", self.code, "What is the code of {a} {x}?"),
                ("Contact", self.person, "Who is the contact for {x}?"),
                ("Minutes", lambda: str(self.rng.randint(3, 180)), "How long is {a} {x}?"),
                ("Place", lambda: self.of(PLACES), "Where is {a} {x}?"),
                ("Colour", lambda: self.of(COLOURS), "What colour is {a} {x}?"),
            ),
            self.rng.randint(1, 3),
        )
        rows = {kind(): [value() for _, value, _ in columns] for _ in range(count)}
        heads = [first, *(head for head, _, _ in columns)]
        asked = []
        for row, values in rows.items():
            (head, _, form), value = self.rng.choice(list(zip(columns, values, strict=True)))
            article = "" if first in ("Name", "Ingredient") else "the"
            plain = f"What is the {head.lower()} of {article} {row}?"
            question = self.rng.choice(
                (form.format(a=article, x=row), plain, f"{row} {head.lower()}?")
            )
            asked.append((" ".join(question.split()), value))
        return self.drawn(heads, rows), asked

    def drawn(self, heads: Sequence[str], rows: dict[str, list[str]]) -> str:
        """A table in Markdown, with tabs, with commas, or as `column: value` lines."""
        lines = [[row, *values] for row, values in rows.items()]
        form = self.rng.choice(("markdown", "markdown", "tabs", "commas", "pairs", "json"))
        if form == "markdown":
            ruled = [heads, ["---"] * len(heads), *lines]
            return f"{self.topped()}\n\n" + "\n".join(f"| {' | '.join(one)} |" for one in ruled)
        if form == "pairs":
            return "\n".join(
                "; ".join(f"{head}: {cell}" for head, cell in zip(heads, one, strict=True))
                for one in lines
            )
        if form == "json":
            named = [dict(zip(map(str.lower, heads), one, strict=True)) for one in lines]
            return "\n".join(json.dumps(one, ensure_ascii=False) for one in named)
        joint = "\t" if form == "tabs" else ","
        return "\n".join(joint.join(one) for one in ([*heads], *lines))
