"""How many tokens one vector of a model can hold.

The number is looked up for known models, else tried on a few chunks.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rag_memtok.config import Memorize
from rag_memtok.memory.batch import Task, make_task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import recipe_of, steps_of
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template

LEVELS = (2, 4, 8, 16, 32, 64, 128)
SAMPLE_SIZE = 8
MIN_EXACT_SHARE = 0.95  # of the sample exact, within the step budget
KNOWN = Path(__file__).parent.parent / "mini" / "known.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The tokens per vector that were chosen, and where the number is from.

    `steps` is the median number of steps a chunk took there, 0 if unknown.
    """

    tokens_per_vector: int
    origin: str
    steps: int


def find_known(
    lm: LM, template: Template, chunk_tokens: int, settings: Memorize
) -> Calibration | None:
    """The recorded calibration of this model, template, chunk length, recipe and codec.

    None if there is none. The codec counts only where the settings name one. Of several it is that
    with the most tokens per vector whose step budget (`within`) is granted; else the least.
    """
    wanted = (lm.identity.weights_sha256, template.name, chunk_tokens, recipe_of(settings))
    rows = json.loads(KNOWN.read_text(encoding="utf-8"))
    here = [
        row
        for row in rows
        if (row["weights_sha256"], row["template"], row["chunk_tokens"], row["recipe"]) == wanted
    ]
    here = [row for row in here if not settings.codec or settings.codec in row["codecs"]]
    here.sort(key=lambda row: row["tokens_per_vector"])
    granted = [row for row in here if row["within"] <= steps_of(settings)] or here[:1]
    return (
        Calibration(
            granted[-1]["tokens_per_vector"],
            f"known for {granted[-1]['model']}",
            granted[-1]["steps"],
        )
        if granted
        else None
    )


def calibrate(
    lm: LM,
    template: Template,
    chunks: Sequence[Sequence[int]],
    settings: Memorize,
    on_level: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Finds the largest of LEVELS at which 95 % of up to 8 chunks are exact within the step budget.

    Args:
        chunks: tokens of chunks of the usual length; the longest are tried.

    Cost: as many steps as the levels that succeed need, and the full step budget for the first that
        does not.
    """
    sample = sorted(map(tuple, chunks), key=lambda tokens: (-len(tokens), tokens))[:SAMPLE_SIZE]
    best = Calibration(LEVELS[0], "calibrated: even 2 tokens a vector did not hold", 0)
    for level in LEVELS:
        if level > max(map(len, sample), default=0):
            break
        exact, steps = try_level(lm, template, sample, settings, level)
        on_level(f"{level} tokens per vector: {exact:.0%} of {len(sample)} chunks exact")
        if exact < MIN_EXACT_SHARE:
            break
        best = Calibration(level, f"calibrated on {len(sample)} chunks: {exact:.0%} exact", steps)
    return best


def try_level(
    lm: LM, template: Template, sample: Sequence[tuple[int, ...]], settings: Memorize, level: int
) -> tuple[float, int]:
    """The share of `sample` that is exact at `level` tokens a vector, and the median steps."""
    tasks = [make_task(str(index), tokens, level) for index, tokens in enumerate(sample)]
    memories = list(memorize(lm, template, tasks, _trial(settings, steps_of(settings))))
    steps = sorted(memory.steps for memory in memories)
    return sum(memory.wrong == 0 for memory in memories) / len(memories), steps[len(steps) // 2]


def seconds_per_chunk(
    lm: LM, template: Template, tokens: Sequence[int], vectors: int, steps: int, settings: Memorize
) -> float:
    """Estimates the seconds that a chunk takes here.

    The second of three steps of a full batch is timed: times `steps`, bounded by the setting.

    The first warms up; what follows the second is in the LM's own arithmetic, as few of a chunk's
    steps are.
    """
    tasks = [Task(str(index), tuple(tokens), vectors) for index in range(settings.batch)]
    seconds = [0.0]
    list(
        memorize(
            lm,
            template,
            tasks,
            _trial(settings, 3),
            on_step=lambda progress: seconds.append(progress.seconds),
        )
    )
    *_, before, after = seconds[:3]  # of one step alone, if that was enough
    estimate = (after - before) * steps / settings.batch
    return min(estimate, settings.seconds_per_chunk) if settings.seconds_per_chunk else estimate


def _trial(settings: Memorize, steps: int) -> Memorize:
    """The settings of a trial: no bound of seconds, and nothing is compiled for so little."""
    return replace(
        settings,
        steps=steps,
        seconds_per_chunk=0.0,
        draft="bfloat16" if settings.draft == "compiled" else settings.draft,
    )
