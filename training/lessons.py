"""Questions about chunks -> training examples for a reader of text.

A lesson is some chunks and questions about them, with answers that stand in them, or None where
they do not say. Contexts are cut as an ingest cuts them; the chunks beside a question's own are
those that its words would find, as in `ask`. Nothing shares twelve words in a row with what is
measured on (`Forbidden`).
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rag_memtok.datatypes import Document
from rag_memtok.documents.split import split
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.search import content_words
from training.notes import Writer
from training.sources import hash01, questions, read

# questions taken of each set; None: all
TAKEN: dict[str, int | None] = {
    "squad11_train_part": None,
    "nq_swap": 1600,
    "squad_reqa_wiki": None,
    "multihop_small": None,
    "onestopqa": None,
    "fairytaleqa": 2000,
    "covidqa": 600,
    "selqa": None,
    "dolly_context": 1500,
    "wiki_templates": 1200,
    "factbook_templates": 500,
    "openstax_glossary": 300,
    "wikinews_quotes": 300,
    "wiki_templates_unanswerable": 1200,
}
NOTES = 1800
ANSWER = 80  # characters, at most
CAPACITIES = (128, 128, 128, 128, 96, 192)  # tokens of a chunk
RUN = 12  # words in a row that nothing here shares with what is measured on
NEIGHBOURS = 12  # chunks found for a question
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Piece:
    """A chunk, where it is said to be from, and what is asked about it (None: it does not say).

    `made` by rule: other such chunks may answer the same question otherwise.
    """

    source: str
    text: str
    asked: tuple[tuple[str, str | None], ...]
    made: bool = False


@dataclass(frozen=True)
class TrainingExample:
    """Passages as (source line or "", text), and questions about them with their answers."""

    passages: tuple[tuple[str, str], ...]
    asked: tuple[tuple[str, str | None], ...]


class Forbidden:
    """Texts that nothing may share RUN words in a row with."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Keeps a hash of every run of words."""
        self.runs = {run for text in texts for run in runs_of(text)}

    def touches(self, text: str) -> bool:
        """Whether `text` shares a run with one of them."""
        return any(run in self.runs for run in runs_of(text))


def runs_of(text: str) -> Iterator[int]:
    """Hashes of every RUN words in a row, case and punctuation apart."""
    words = WORD.findall(text.lower())
    return (hash(tuple(words[at : at + RUN])) for at in range(len(words) - RUN + 1))


def measured_on(data: Path, more: Sequence[Path]) -> Forbidden:
    """All contexts and questions of dev and test splits, and the text files under `more`."""
    rows = (row for path in sorted((data / "qa").glob("*.xz")) for row in read(path))
    held = (f"{r['context']}\n{r['question']}" for r in rows if r["split"] != "train")
    files = (file for path in more for file in ([path] if path.is_file() else path.rglob("*")))
    kept = (file.read_text(encoding="utf-8", errors="ignore") for file in files if file.is_file())
    return Forbidden([*held, *kept])


def answer_of(row: dict) -> str | None:
    """The answer to learn: one that stands in the context, else a short one in free words.

    Raises:
        LookupError: there is none.
    """
    if row.get("impossible"):
        return None
    short = [one.strip() for one in row["answers"] if one.strip() and len(one) <= ANSWER]
    if not short:
        raise LookupError(row["question"])
    return next((one for one in short if one in row["context"]), short[0])


def pieces_of(
    context: str, rows: Sequence[dict], count: Callable[[str], int], rng: random.Random
) -> list[Piece]:
    """The chunks of a context, each with the questions whose answers stand in it.

    Where the answer is in words of its own, the context must be a single chunk. What cannot be
    answered can be asked of any.
    """
    document = Document.of_text(context)
    chunks = [chunk.text for chunk in split(document, rng.choice(CAPACITIES), count)]
    asked: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    for row in rows:
        try:
            answer = answer_of(row)
        except LookupError:
            continue
        holds = [n for n, text in enumerate(chunks) if answer is None or answer in text]
        if not holds and len(chunks) == 1:
            holds = [0]
        if holds and (answer is None or len(holds) == 1 or answer not in context):
            asked[rng.choice(holds)].append((row["question"].strip(), answer))
        elif holds:
            best = max(holds, key=lambda n: _shared(row["question"], chunks[n]))
            asked[best].append((row["question"].strip(), answer))
    name = file_name(context, rng)
    # half as an ingest keeps them, with the line ends behind them
    cut = [text if rng.random() < 0.5 else text.strip() for text in chunks]
    return [Piece(name, cut[number], tuple(some)) for number, some in asked.items()]


def _shared(question: str, text: str) -> int:
    return len(set(WORD.findall(question.lower())) & set(WORD.findall(text.lower())))


def file_name(text: str, rng: random.Random) -> str:
    """What a file with this text might be called: one to three of its words, or nothing telling."""
    words = [word for word in WORD.findall(text[:300]) if len(word) > 3]
    if rng.random() < 0.3 or not words:
        page, day = f"page{rng.randint(1, 99)}", f"2024-0{rng.randint(1, 9)}"
        stem = rng.choice(
            ("notes", "README", "document", "minutes", "draft", page, day, "letter", "report final",
             "todo")
        )  # fmt: skip
    else:
        stem = rng.choice("-_ ").join(rng.sample(words, min(len(words), rng.randint(1, 3))))
        stem = stem.lower() if rng.random() < 0.7 else stem
    return stem + rng.choice((".md", ".txt", ".md", ".txt", ".pdf", ".html", ".docx", ""))


def all_pieces(
    data: Path, forbidden: Forbidden, writer: Writer, count: Callable[[str], int], seed: int
) -> list[Piece]:
    """The pieces of all sets in TAKEN and of NOTES made-up notes."""
    rng, found = random.Random(seed), []
    for source, most in TAKEN.items():
        rows = sorted(
            questions(data, source, "train"),
            key=lambda row: hash01(row["context"] + row["question"], f"reader {seed}"),
        )[:most]
        grouped: dict[str, list[dict]] = defaultdict(list)
        for row in rows:
            short = 0 < len(row["context"]) < 20_000 and len(row["question"]) < 300
            if short and not forbidden.touches(row["question"]):
                grouped[row["context"]].append(row)
        for context, some in grouped.items():
            if not forbidden.touches(context):
                found += pieces_of(context, some, count, rng)
    for _ in range(NOTES):
        text, asked = writer.note(rng.randint(3, 9))
        if count(text) < 2 * CAPACITIES[0] and not forbidden.touches(text):
            found.append(Piece(file_name(text, rng), text, tuple(asked), made=True))
    return found


def neighbours(pieces: Sequence[Piece], embedder: Embedder) -> np.ndarray:
    """Of each piece, the others that its first question would find, nearest first.

    Cost: a product of all questions with all pieces, a minute for 30,000 of each.
    """
    keys = embedder.encode([one.text for one in pieces], query=False)
    asked = embedder.encode([one.asked[0][0] for one in pieces], query=True)
    found = np.empty((len(pieces), NEIGHBOURS), dtype=np.int32)
    for start in range(0, len(pieces), 512):
        near = asked[start : start + 512] @ keys.T
        near[np.arange(len(near)), np.arange(start, start + len(near))] = -2.0
        best = np.argpartition(-near, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        order = np.argsort(-np.take_along_axis(near, best, 1), axis=1)
        found[start : start + 512] = np.take_along_axis(best, order, 1)
    return found


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How examples are put together: shares of all examples.

    `alone`: a single chunk; `few`: two or three; else four or five. `named`: with source lines.
    `absent`: of examples, a question more that none of the chunks answers, although it is near;
    `idle`: one that has nothing to do with documents; `gone`: the chunk that was found first is not
    there, and its questions have no answer.
    """

    alone: float = 0.42
    few: float = 0.2
    named: float = 0.65
    absent: float = 0.36
    idle: float = 0.07
    gone: float = 0.12


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """All training examples: the `number`-th is drawn by (seed, number) alone."""

    pieces: Sequence[Piece]
    near: np.ndarray
    idle: Sequence[str]
    seed: int
    mix: Mix = Mix()
    most: int = 8  # questions of an example

    def example(self, number: int) -> TrainingExample:
        """The `number`-th example; every piece comes first in one before any does twice."""
        turn, place = divmod(number, len(self.pieces))
        order = np.random.default_rng((self.seed, turn)).permutation(len(self.pieces))
        own, rng = int(order[place]), random.Random(f"{self.seed}:{number}")
        draw = rng.random()
        wanted = (
            1
            if draw < self.mix.alone
            else rng.randint(2, 3)
            if draw < self.mix.alone + self.mix.few
            else rng.randint(4, 5)
        )
        others = [int(one) for one in self.near[own]]
        if rng.random() < 0.3:
            others = rng.sample(others, len(others))
        gone = rng.random() < self.mix.gone
        shown = others[:wanted] if gone else [own, *others[: wanted - 1]]
        rest = [own] if gone else others[wanted - 1 :]
        asked = self._asked(shown, rest, gone=gone, rng=rng)
        rng.shuffle(shown)
        named = rng.random() < self.mix.named
        return TrainingExample(
            tuple((self.pieces[n].source if named else "", self.pieces[n].text) for n in shown),
            tuple(asked),
        )

    def _asked(
        self, shown: Sequence[int], rest: Sequence[int], *, gone: bool, rng: random.Random
    ) -> list[tuple[str, str | None]]:
        """The questions of the pieces shown, first of the first, then what they do not say."""
        texts = " ".join(self.pieces[n].text for n in shown).lower()
        asked = [*self.pieces[shown[0]].asked]
        more = [one for n in shown[1:] for one in self.pieces[n].asked if one[1] is not None]
        asked = rng.sample(asked, len(asked))[: self.most - 2]
        asked += rng.sample(more, min(len(more), self.most - 2 - len(asked)))
        known = {question for n in shown for question, _ in self.pieces[n].asked}
        absent = [
            (question, None)
            for n in rest
            for question, answer in self.pieces[n].asked
            if answer is not None and answer.lower() not in texts and question not in known
            and not (self.pieces[n].made and says_all(question, texts))
        ]  # fmt: skip
        if absent and (gone or rng.random() < self.mix.absent):
            asked.append(rng.choice(absent))
        if self.idle and rng.random() < self.mix.idle:
            asked.append((rng.choice(self.idle), None))
        return asked


def says_all(question: str, texts: str) -> bool:
    """Whether every word of the question that carries meaning is in `texts`, in lower case."""
    return all(word in texts for word in content_words(question))


def idle_questions(data: Path, forbidden: Forbidden) -> list[str]:
    """Short questions that need no document, and what people say to a program."""
    own = [
        "Hello", "Hi there", "Who are you?", "Thanks!", "Help", "How are you?", "Tell me a joke.",
        "What day is it today?", "Good morning", "Can you help me?", "ok", "test",
    ]  # fmt: skip
    asked = (row["question"] for row in questions(data, "dolly_nocontext", "train"))
    return own * 20 + [one for one in asked if len(one) < 90 and not forbidden.touches(one)]
