"""Questions -> examples: the teacher answers with the text, once; its answers are kept in files."""

from collections.abc import Sequence
from pathlib import Path

from rag_memtok.adapt.checkpoint import keep
from rag_memtok.adapt.dataset import (
    ChunkQuestion,
    Example,
    Teacher,
    pack_examples,
    sample_negatives,
    unpack_examples,
)
from rag_memtok.config import Adapt
from rag_memtok.datatypes import OnProgress
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.corpora import spread_evenly
from rag_memtok.model.prompts import digest_of
from rag_memtok.pipeline.progress import Reporter

SHARD = 256  # questions answered by the teacher between two files


def ask_teacher(
    teacher: Teacher,
    questions: Sequence[ChunkQuestion],
    settings: Adapt,
    work: Path,
    on_progress: OnProgress,
) -> list[Example]:
    """An example of each of `questions`; those that a file in `work` has are read from it.

    Cost: about a greedy answer to each question.
    """
    examples: list[Example] = []
    reporter = Reporter(on_progress=on_progress, total=len(questions), stage="teaching")
    for start in range(0, len(questions), SHARD):
        shard = questions[start : start + SHARD]
        digest = digest_of((teacher.lm.identity, shard, settings.gold, settings.seed))
        file = work / f"taught-{digest[:16]}.safetensors"
        answered = unpack_examples(file.read_bytes(), shard) if file.is_file() else None
        if answered is None:
            answered = teacher.make_examples(shard, settings.gold, settings.seed)
            keep(file, pack_examples(answered))
        else:
            reporter.ready += len(answered)
        examples += answered
        reporter.advance(len(answered))
    return examples


def make_examples_about(
    chunk_ids: Sequence[str],
    questions: Sequence[ChunkQuestion],
    teacher: Teacher,
    settings: Adapt,
    *,
    limit: int,
    work: Path,
    on_progress: OnProgress,
) -> list[Example]:
    """Examples about the chunks `chunk_ids`, and negatives.

    None is among them that the teacher itself gets wrong.

    Args:
        limit: so many at most, spread evenly, beside the negatives; 0: all.

    Raises:
        UsageError: there are none.
    """
    among = set(chunk_ids)
    about = [question for question in questions if question.chunk_id in among]
    understood = [
        example
        for example in ask_teacher(teacher, about, settings, work, on_progress)
        if example.f1 >= settings.least
    ]
    if not understood:
        wrong = f"the model answers none of {len(about)} questions from the text"
        problem = wrong if about else f"no question about any of {len(chunk_ids)} chunks"
        raise UsageError(problem, remedy="give more with --data, or ingest more documents")
    examples = list(spread_evenly(understood, limit or len(understood)))
    negatives = sample_negatives(
        [example.question for example in examples], chunk_ids, settings.seed
    )
    return examples + ask_teacher(teacher, negatives, settings, work, on_progress)
