"""A store's chunks, and questions about them, as lessons for an adapter: the trip of `adapt`.

Questions come from a file (questions.py) and are made by rule (synthetic_questions.py). One from a
file is about the chunk that stands in its context or file and holds its answer; one without such a
chunk is left out, and counted.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.adapt import train
from rag_memtok.adapt.dataset import Exercise, Page
from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Document, OnProgress
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.questions import parse_question, read_rows
from rag_memtok.memory.reconstruct import memory_of
from rag_memtok.memory.synthetic_questions import make_questions
from rag_memtok.model import lm
from rag_memtok.model.lora import AdapterManifest
from rag_memtok.model.prompts import REFUSAL, Template
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.reconstruction import reconstruct
from rag_memtok.pipeline.resources import Say, store_folder
from rag_memtok.retrieval.search import content_words
from rag_memtok.store import ownership
from rag_memtok.store.files import ADAPTER, STALE, outdate_adapter
from rag_memtok.store.store import Store, open_store

UNSAID = f"{REFUSAL.capitalize()}."


@dataclass(frozen=True, slots=True)
class Adapted:
    """A trained adapter: where it is, what it is, and seconds of this run.

    It also tells how many of the given questions no chunk could answer.
    """

    folder: str
    bond: AdapterManifest
    unplaced: int
    seconds: float


def adapt(
    config: Config,
    data: Path | None = None,
    out: Path | None = None,
    on_progress: OnProgress = quiet,
    say: Say = quiet,
    trusted: bool = False,
) -> Adapted:
    """Trains an adapter for a store and puts it into `out`.

    By default that is the store, where `ask` finds it. Run again, it goes on.

    Args:
        data: questions; none of them may be one the adapter is measured with later.

    Raises:
        UsageError: an adapter that reads text, without `out`; too few chunks or questions.
        InputRefused: the questions cannot be read, or the store was not made here and is not
            trusted.
        WrongModel, ...: see errors.py.
    """
    began, folder = time.monotonic(), store_folder(config)
    if out is None and config.adapt.kind == "text":
        remedy = "give --out DIR; then: rag-memtok ask --read text --adapter DIR"
        raise UsageError("an adapter that reads text has no place in the store", remedy)
    with open_store(folder, write=False) as store:
        ownership.require_trust(store.manifest, folder, trusted=trusted)
        model, template = resources.load_decoder(store.manifest, config)
        texts = dict(placed_texts(store, model, template))
        pages = [
            Page(key, tuple(model.encode(text)), memory_of(store.record(key)).vectors)
            for key, text in texts.items()
        ]
    exercises = [
        one
        for key, text in texts.items()
        for one in by_rule(key, text, config.adapt.questions, config.adapt.seed)
    ]
    given, unplaced = given_in(data, texts) if data else ([], 0)
    if unplaced:
        say(f"{unplaced} questions are left out: no chunk of the store holds their answer")
    target = out or folder / ADAPTER
    say(f"{len(pages)} chunks; {len(given)} questions given, {len(exercises)} made by rule")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    bond = train.adapt(
        model,
        template.digest,
        pages=pages,
        exercises=given + exercises,
        settings=config.adapt,
        folder=target,
        on_progress=on_progress,
    )
    (target / STALE).unlink(missing_ok=True)
    with open_store(folder, write=False) as store:
        gone = set(texts) - set(store.chunk_ids())
    if gone and out is None:
        say(f"{len(gone)} chunks were removed meanwhile: the adapter is stale, run this again")
        outdate_adapter(folder)
    return Adapted(str(target), bond, unplaced, time.monotonic() - began)


def placed_texts(store: Store, model: lm.LM, template: Template) -> Iterator[tuple[str, str]]:
    """Each chunk that has a memory, by its id, in the order of the documents.

    Where no text is kept, it is decoded.
    """
    seen: set[str] = set()
    for document in store.documents():
        for place in store.document_chunks(document.root, document.path):
            record = store.record(place.chunk_id)
            if place.chunk_id not in seen and record.codec != TEXT_ONLY:
                seen.add(place.chunk_id)
                text = store.text(place.chunk_id)
                if text is None:
                    text = reconstruct(store, model, template, place.chunk_id).text
                if text:
                    yield place.chunk_id, text


def by_rule(key: str, text: str, count: int, seed: int) -> list[Exercise]:
    """Questions about a chunk, made by rule: others than those that its memory was written with."""
    return [Exercise(key, cue) for cue in make_questions(text, count, f"adapt {seed}")]


def given_in(data: Path, texts: Mapping[str, str]) -> tuple[list[Exercise], int]:
    """The questions of a file as exercises about the chunks `texts`, and how many have no chunk.

    A row without "answers" asks what the frozen model makes of it; an empty list says that the
    documents do not say.

    Raises:
        InputRefused: it cannot be read.
    """
    known: dict[str, tuple[Document, ...]] = {}
    found: list[Exercise] = []
    unplaced = 0
    for number, row in enumerate(read_rows(data), start=1):
        open_ended = row.get("answers") is None
        asked = parse_question(
            data,
            number,
            {**row, "answers": [] if open_ended else row["answers"]},
            data.parent,
            known,
        )
        page = page_of(asked.question, asked.answers, asked.documents, texts)
        if page is None:
            unplaced += 1
        else:
            found.append(
                Exercise(page, asked.question, asked.answers or (() if open_ended else (UNSAID,)))
            )
    return found, unplaced


def page_of(
    question: str,
    answers: tuple[str, ...],
    documents: tuple[Document, ...],
    texts: Mapping[str, str],
) -> str | None:
    """The chunk with one of `answers` that shares most words with the question.

    It is one of `documents` (none: of any). None: there is none.
    """
    words = set(content_words(" ".join([question, *answers])))
    fitting = [
        key
        for key, text in texts.items()
        if (not answers or any(answer in text for answer in answers))
        and (
            not documents
            or any(
                text.strip() in document.text or document.text.strip() in text
                for document in documents
            )
        )
    ]
    return max(fitting, key=lambda key: len(words & set(content_words(texts[key]))), default=None)
