"""A store's chunks, and questions about them, made into an adapter: the trip of `adapt`.

Questions come from a file (questions.py) and are made by rule (synthetic_questions.py). One from a
file is about the chunk that stands in its context or file and holds its answer; one without such a
chunk is left out, and counted.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.adapt import train
from rag_memtok.adapt.checkpoint import require_ours
from rag_memtok.adapt.dataset import ChunkQuestion, TrainingChunk
from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Document, OnProgress
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.questions import Question, line_numbers, parse_question, read_rows
from rag_memtok.memory.reconstruct import memory_of
from rag_memtok.memory.synthetic_questions import make_questions
from rag_memtok.model import lm
from rag_memtok.model.adapter_manifest import AdapterManifest
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
    """A trained adapter: its folder and manifest, and the seconds of this run.

    `unplaced` counts the given questions that no chunk could answer. `bond` is a key of the
    command's JSON, hence its name.
    """

    folder: str
    bond: AdapterManifest
    unplaced: int
    seconds: float


def adapt(
    config: Config,
    data: Path | None = None,
    out: Path | None = None,
    *,
    on_progress: OnProgress = quiet,
    say: Say = quiet,
    trusted: bool = False,
) -> Adapted:
    """Trains an adapter for a store and puts it into `out`.

    By default that is the store, where `ask` finds it. Run again, it resumes.

    Args:
        data: questions; none of them may be one the adapter is measured with later.

    Raises:
        UsageError: an adapter that reads text, without `out`; something else is in `out`; too few
            chunks or questions.
        InputRefused: the questions cannot be read, or the store was not made here and is not
            trusted.
        WrongModel, ...: see errors.py.

    Cost: that of `train.adapt`; a decoding of each chunk whose text is not kept.
    """
    began, folder = time.monotonic(), store_folder(config)
    if out is None and config.adapt.kind == "text":
        remedy = "give --out DIR; then: rag-memtok ask --read text --adapter DIR"
        raise UsageError("an adapter that reads text has no place in the store", remedy)
    if out is not None:
        require_ours(out)
    with open_store(folder, write=False) as store:
        ownership.require_trust(store.manifest, folder, trusted=trusted)
        model, template = resources.load_decoder(store.manifest, config)
        texts = dict(read_texts(store, model, template))
        chunks = [
            TrainingChunk(
                chunk_id, tuple(model.encode(text)), memory_of(store.record(chunk_id)).vectors
            )
            for chunk_id, text in texts.items()
        ]
    by_rule = [
        question
        for chunk_id, text in texts.items()
        for question in ask_by_rule(chunk_id, text, config.adapt.questions, config.adapt.seed)
    ]
    from_file, unplaced = read_questions(data, texts) if data else ([], 0)
    if unplaced:
        say(f"{unplaced} questions are left out: no chunk of the store holds their answer")
    target = out or folder / ADAPTER
    say(f"{len(chunks)} chunks; {len(from_file)} questions given, {len(by_rule)} made by rule")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    manifest = train.adapt(
        model,
        template.digest,
        chunks=chunks,
        questions=from_file + by_rule,
        settings=config.adapt,
        folder=target,
        on_progress=on_progress,
    )
    (target / STALE).unlink(missing_ok=True)
    with open_store(folder, write=False) as store:
        removed = set(texts) - set(store.chunk_ids())
    if removed and out is None:
        say(f"{len(removed)} chunks were removed meanwhile: the adapter is stale, run this again")
        outdate_adapter(folder)
    return Adapted(str(target), manifest, unplaced, time.monotonic() - began)


def read_texts(store: Store, model: lm.LM, template: Template) -> Iterator[tuple[str, str]]:
    """The id and the text of each chunk that has a memory, in the order of the documents.

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


def ask_by_rule(chunk_id: str, text: str, count: int, seed: int) -> list[ChunkQuestion]:
    """Questions about a chunk, made by rule: others than those that its memory was written with."""
    return [
        ChunkQuestion(chunk_id, question)
        for question in make_questions(text, count, f"adapt {seed}")
    ]


def read_questions(data: Path, texts: Mapping[str, str]) -> tuple[list[ChunkQuestion], int]:
    """The questions of a file, each with its chunk of `texts`; and how many have none.

    A row without "answers" asks what the frozen model makes of it; an empty list says that the
    documents do not say.

    Raises:
        InputRefused: it cannot be read.
    """
    documents: dict[str, tuple[Document, ...]] = {}
    questions: list[ChunkQuestion] = []
    unplaced = 0
    rows = list(read_rows(data))
    for number, row in zip(line_numbers(data, len(rows)), rows, strict=True):
        open_ended = row.get("answers") is None
        row = {**row, "answers": [] if open_ended else row["answers"]}
        question = parse_question(data, number, row, data.parent, documents)
        chunk_id = find_chunk(question, texts)
        if chunk_id is None:
            unplaced += 1
        else:
            answers = question.answers or (() if open_ended else (UNSAID,))
            questions.append(ChunkQuestion(chunk_id, question.question, answers))
    return questions, unplaced


def find_chunk(question: Question, texts: Mapping[str, str]) -> str | None:
    """The chunk with an answer that shares most words with the question; None if there is none.

    It stands in one of the question's documents, or in any if it has none.
    """
    words = set(content_words(" ".join([question.question, *question.answers])))
    fitting = [
        chunk_id
        for chunk_id, text in texts.items()
        if (not question.answers or any(answer in text for answer in question.answers))
        and (
            not question.documents
            or any(
                text.strip() in document.text or document.text.strip() in text
                for document in question.documents
            )
        )
    ]
    return max(
        fitting,
        key=lambda chunk_id: len(words & set(content_words(texts[chunk_id]))),
        default=None,
    )
