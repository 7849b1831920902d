"""What the teacher, the frozen model reading the text, answers: asked once, kept in files."""

from collections.abc import Sequence
from pathlib import Path

from rag_memtok.adapt.dataset import Exercise, Lesson, Teacher, packed, unpacked
from rag_memtok.config import Adapt
from rag_memtok.datatypes import OnProgress
from rag_memtok.model.prompts import digest_of
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.store.files import write_whole

SHARD = 256  # exercises answered by the teacher between two files


def taught(
    teacher: Teacher,
    exercises: Sequence[Exercise],
    settings: Adapt,
    work: Path,
    on_progress: OnProgress,
) -> list[Lesson]:
    """The lessons of `exercises`; what the teacher said is kept in files, and said once.

    Cost: about a greedy answer to each exercise.
    """
    made: list[Lesson] = []
    reporter = Reporter(on_progress=on_progress, total=len(exercises), stage="teaching")
    for start in range(0, len(exercises), SHARD):
        some = exercises[start : start + SHARD]
        digest = digest_of((teacher.lm.identity, some, settings.gold, settings.seed))
        file = work / f"taught-{digest[:16]}.safetensors"
        lessons = unpacked(file.read_bytes(), some) if file.is_file() else None
        if lessons is None:
            lessons = teacher.lessons(some, settings.gold, settings.seed)
            write_whole(file, packed(lessons))
        else:
            reporter.ready += len(lessons)
        made += lessons
        reporter.advance(len(lessons))
    return made
