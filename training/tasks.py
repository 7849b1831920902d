"""Copy, look-up and reading tasks in the chat frame.

They are made while training from paragraphs and questions.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.cuts import cut, passage_length, sentences
from training.facts import fact, name, phrase, words
from training.frame import BOS, LEAD, REFUSAL, Frame, Row

CHARACTERS = 3.4  # of English a token, on the low side
TURN = 36  # tokens of a question, its frame and a short answer


@dataclass(frozen=True)
class Sources:
    """The weights with which question sets are drawn.

    Templates teach soonest, spans written by people teach most.
    """

    weights: tuple[tuple[str, float], ...] = (
        ("wiki_templates", 6.0),
        ("squad11_train_part", 5.0),
        ("factbook_templates", 2.0),
        ("nq_swap", 1.5),
        ("openstax_glossary", 0.7),
        ("multihop_small", 0.7),
        ("covidqa", 0.3),
        ("fairytaleqa", 1.5),
        ("wikinews_quotes", 0.7),
        ("onestopqa", 0.2),
        ("selqa", 0.3),
        ("squad_reqa_wiki", 0.3),
        ("dolly_context", 0.3),
        ("wiki_templates_unanswerable", 1.0),
    )


class Tasks:
    """Makes one sequence at a time; the generator's seed decides them all."""

    def __init__(self, frame: Frame, folder: Path, seed: int, sources: Sources = Sources()) -> None:
        """Reads `passages.jsonl` and `questions.jsonl` of a packed folder."""
        self.frame, self.rng = frame, random.Random(seed)
        self.passages = [
            json.loads(line) for line in (folder / "passages.jsonl").open(encoding="utf-8")
        ]
        self.questions = defaultdict(list)
        for line in (folder / "questions.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            self.questions[row["source"]].append(row)
        self.words = words(self.passages)
        known = [(name, weight) for name, weight in sources.weights if name in self.questions]
        self.names, self.weights = [n for n, _ in known], [w for _, w in known]

    def row(self, mix: dict[str, float], room: int) -> Row:
        """One sequence of at most `room` tokens, of a kind drawn from `mix`.

        `mix` is a mapping (name of a method -> weight).
        """
        for _ in range(8):
            kind: Callable[[int], Row] = getattr(
                self, self.rng.choices(list(mix), list(mix.values()))[0]
            )
            made = kind(room)
            if len(made.ids) <= room:
                return made
        return self.echo(room)

    def passage(self, longest: int) -> str:
        """A passage of prose, cut to at most about `longest` characters."""
        length = min(passage_length(self.rng), longest)
        return cut(self.rng.choice(self.passages), None, length, self.rng)

    def echo(self, room: int) -> Row:
        """A passage's words in random order, again and again: the plainest lesson in copying."""
        length = self.rng.randint(4, max(5, min(80, room // 3)))
        run = tuple(self.rng.sample(self.frame.text(self.rng.choice(self.passages)) * 3, length))
        times = min(6, max(2, (room - 1) // length))
        return Row((BOS,) + run * times, (False,) * (1 + length) + (True,) * (length * (times - 1)))

    def repeat(self, room: int) -> Row:
        """Repeat the document."""
        return self.frame.repeat(self.passage(int((room - 30) / 2 * CHARACTERS)))

    def continue_after(self, room: int) -> Row:
        """Say what follows a quote, up to the end of its sentence or the next."""
        passage = self.passage(int((room - 100) * CHARACTERS))
        starts = [i + 1 for i, c in enumerate(passage) if c == " "]
        if len(starts) < 8:
            return self.repeat(room)
        begin = self.rng.randrange(len(starts) - 6)
        end = min(begin + self.rng.randint(3, 9), len(starts) - 2)
        rest = passage[starts[end] :]
        ends = [b for _, b in sentences(rest)]
        return self.frame.continue_after(
            passage, passage[starts[begin] : starts[end]].strip(), rest[: ends[0]].strip()
        )

    def recall(self, room: int) -> Row:
        """Facts, or names with what belongs to them, then questions and answers.

        There is a question and its answer for each, unframed: the densest lesson in finding.
        """
        made = self.pair if self.rng.random() < 0.4 else lambda: fact(self.rng, self.words)
        known = [made() for _ in range(self.rng.randint(3, max(3, min(16, room // 36))))]
        row = self.frame.given(
            (
                BOS,
                *self.frame.text(
                    "Document:\n" + self.rng.choice("\n ").join(text for text, _, _ in known) + "\n"
                ),
            )
        )
        for _, question, answer in self.rng.sample(known, len(known)):
            row += self.frame.given(self.frame.text(f"\n{question}\n"))
            said = self.frame.text(LEAD + answer)
            row += Row((*said, *self.frame.text("\n")), (True,) * (len(said) + 1))
        return row

    def pair(self) -> tuple[str, str, str]:
        """A name and what belongs to it, the name as a question, and what belongs to it."""
        left = name(self.rng, self.words)
        right = self.rng.choice(
            (
                name(self.rng, self.words),
                phrase(self.rng, self.words),
                f"{self.rng.randint(2, 99_999):,}",
            )
        )
        return f"{left}: {right}", f"{left}?", right

    def lookup(self, room: int) -> Row:
        """Facts in one to three documents, and several questions about them."""
        turns = self.rng.randint(2, 8)
        count = min(self.rng.randint(turns, 14), max(turns, (room - turns * TURN) // 16))
        facts = [fact(self.rng, self.words) for _ in range(count)]
        asked = [(q, a) for _, q, a in self.rng.sample(facts, turns)]
        if self.rng.random() < 0.4:
            asked[self.rng.randrange(turns)] = (fact(self.rng, self.words)[1], REFUSAL)
        parts = self.rng.randint(1, min(3, count))
        joint = self.rng.choice(("\n", " ", " "))
        documents = [
            joint.join(sentence for sentence, _, _ in facts[k::parts]) for k in range(parts)
        ]
        return self.frame.conversation(documents, asked)

    def gap(self, passage: str) -> tuple[str, str] | None:
        """A question made from a sentence of the passage by taking out words, and the words.

        One to five words are taken out.
        """
        start, end = self.rng.choice(sentences(passage))
        tokens = passage[start:end].split(" ")
        if len(tokens) < 8:
            return None
        size = self.rng.choice((1, 1, 2, 2, 3, 4, 5))
        place = self.rng.randrange(1, len(tokens) - size)
        answer = " ".join(tokens[place : place + size]).strip(" ,.;:()\"'")
        left, right = (
            tokens[max(0, place - self.rng.randint(4, 12)) : place],
            tokens[place + size : place + size + self.rng.randint(0, 8)],
        )
        kept = [[w for w in side if self.rng.random() > 0.1] for side in (left, right)]
        blank = self.rng.choice(("___", "what"))
        return (
            (" ".join([*kept[0], blank, *kept[1]]).strip() + "?", answer)
            if answer and len(answer) > 2
            else None
        )

    def cloze(self, room: int) -> Row:
        """One to four passages of prose, and gaps from each to fill."""
        passages = self.fitting(
            [self.passage(900) for _ in range(self.rng.choice((1, 2, 2, 3, 4)))], room - 2 * TURN
        )
        gaps = [self.gap(p) for p in passages for _ in range(2)]
        turns = [g for g in gaps if g]
        self.rng.shuffle(turns)
        room_left = int((room - sum(map(len, passages)) / CHARACTERS) // TURN)
        return (
            self.frame.conversation(passages, turns[: max(1, room_left)])
            if turns
            else self.echo(room)
        )

    def fitting(self, passages: list[str], room: int) -> list[str]:
        """As many of the passages as probably fit into `room` tokens, at least one."""
        kept, used = [], 0.0
        for passage in passages:
            used += len(passage) / CHARACTERS + 5
            if kept and used > room:
                break
            kept.append(passage)
        return kept

    def reading(self, room: int) -> Row:
        """One to five passages and the questions that they answer.

        About an eighth of the first questions have no answer there.
        """
        drawn = self.rng.choices(self.names, self.weights, k=self.rng.choice((1, 1, 2, 3, 4, 5, 5)))
        rows = [self.rng.choice(self.questions[name]) for name in drawn]
        pairs = []
        for row in rows:
            length = passage_length(self.rng)
            pairs.append((cut(row["context"], row["answer"], length, self.rng), row))
            if self.rng.random() < 0.25 and len(row["context"]) > 2 * length:
                # the same document, not the answer
                pairs.append((cut(row["context"], None, length, self.rng), None))
        return self.asked(pairs[:5], room)

    def asked(self, pairs: list[tuple[str, dict | None]], room: int) -> Row:
        """A conversation over passages with their questions.

        Sometimes one gold passage is left out.
        """
        texts = self.fitting([text for text, _ in pairs], room - TURN * min(3, len(pairs)))
        pairs = pairs[: len(texts)]
        turns = [(row["question"], row["answer"] or REFUSAL) for _, row in pairs if row]
        if len(pairs) > 1 and self.rng.random() < 0.15:
            gone, row = pairs.pop(0)
            turns[0] = (turns[0][0], REFUSAL) if gone.find(row["answer"] or "") >= 0 else turns[0]
        self.rng.shuffle(turns)
        shown = [text for text, _ in pairs]
        self.rng.shuffle(shown)
        room_left = int((room - sum(map(len, shown)) / CHARACTERS) // TURN)
        return self.frame.conversation(shown, turns[: max(1, room_left)])
