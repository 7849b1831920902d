"""An adapter trained to read memories (or texts).

The frozen model's answers to the text are learned from the memories.

    DIR/work/   what a run that was stopped goes on from: the teacher's answers, the last
                checkpoint; removed at the end

The model itself stays as it is; what is trained is a LoRA on a second LM of the same tensors.
"""

import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import compress
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from rag_memtok.adapt.checkpoint import State, state_of
from rag_memtok.adapt.dataset import (
    ALONE,
    LONGEST,
    MOST,
    Dataset,
    Exercise,
    Lesson,
    Page,
    Teacher,
    losses,
    others,
)
from rag_memtok.adapt.model_card import card
from rag_memtok.adapt.teach import taught
from rag_memtok.config import Adapt
from rag_memtok.datatypes import OnProgress, Progress
from rag_memtok.errors import OutOfMemory, UsageError
from rag_memtok.evaluation.corpora import spread_evenly
from rag_memtok.evaluation.metrics import answerable, score
from rag_memtok.model import lora
from rag_memtok.model.inject import answer_batch
from rag_memtok.model.lm import LM
from rag_memtok.model.lora import AdapterManifest, Kind
from rag_memtok.model.precision import uses_low_precision
from rag_memtok.model.prompts import digest_of, qa_prompt
from rag_memtok.store.files import ADAPTER_WORK, write_whole

POSITIONS = 4096  # of a forward pass in training, at most
DEV_SHARE, DEV_PAGES, DEV_LESSONS, DEV_ANSWERS = 0.1, 200, 160, 96
EVALUATIONS = 16  # of the loss on dev, in `steps`
WARM_UP = 20  # steps
SAVE_SECONDS = 60.0
CLIP = 1.0
FLOOR = 0.3  # F1: a reader of text under this is no measure


def split(pages: Sequence[Page]) -> tuple[list[str], list[str]]:
    """The keys of the pages to train on and of those set aside, a tenth, by hash.

    The same page always falls the same way.

    Raises:
        UsageError: there are fewer than two.
    """
    keys = [page.key for page in pages]
    by_hash = sorted(keys, key=lambda key: sha256(key.encode()).digest())
    aside = set(by_hash[: min(DEV_PAGES, max(1, round(DEV_SHARE * len(keys))))])
    if len(keys) < 2:
        raise UsageError(
            f"{len(keys)} chunks are too few to train on some and measure on others",
            remedy="ingest more documents",
        )
    return [key for key in keys if key not in aside], [key for key in keys if key in aside]


@dataclass(slots=True, eq=False)
class Training:
    """State of a training run: train and dev examples, settings, and its folder."""

    teacher: Teacher
    settings: Adapt
    train: Dataset
    dev: Dataset
    work: Path
    run: str
    on_progress: OnProgress
    state: State
    saved: float = field(default_factory=time.monotonic)

    def finish(self) -> None:
        """Takes steps until they, the minutes or the patience are spent.

        The best weights are the student's in the end.
        """
        state = self.state
        if state.step == 0:
            state.note(self.dev_loss())
        while self.spent() < 1 and state.waited < self.settings.patience:
            began = time.monotonic()
            loss = self.step()
            state.step += 1
            if (
                state.step % max(1, self.settings.steps // EVALUATIONS) == 0
                or state.step == self.settings.steps
            ):
                state.note(self.dev_loss())
                self.saved = -math.inf
            state.seconds += time.monotonic() - began
            self._save()
            self.on_progress(
                Progress(
                    stage="training",
                    done=state.step,
                    total=self.settings.steps,
                    facts={"loss": loss, "best aside": state.best_loss},
                    seconds=state.seconds,
                    seconds_left=self.seconds_left(),
                )
            )
        lora.set_weights(state.student, state.best)

    def spent(self) -> float:
        """The share of the steps, or of the minutes, that is gone: 1 is the end."""
        minutes = self.settings.minutes
        return max(
            self.state.step / self.settings.steps,
            self.state.seconds / 60 / minutes if minutes else 0.0,
        )

    def seconds_left(self) -> float:
        """Estimated seconds to the end, at the pace so far."""
        return self.state.seconds * (1 / max(self.spent(), 1e-9) - 1)

    def step(self) -> float:
        """One step over a batch, in passes of at most POSITIONS; returns its mean loss."""
        lm, state = self.state.student, self.state
        for group in state.optimiser.param_groups:
            group["lr"] = (
                self.settings.lr
                * min(1.0, (state.step + 1) / WARM_UP)
                * 0.5
                * (1 + math.cos(math.pi * min(1.0, self.spent())))
            )
        total = 0.0
        batch = [
            (lesson, self.train.prompt(lesson, pages))
            for lesson, pages in self.train.batch(state.step, self.settings.batch)
        ]
        quick = uses_low_precision(lm, "auto")
        for part in passes(batch):
            with torch.autocast(lm.device.type, torch.bfloat16, enabled=quick):
                loss = losses(
                    lm, [prompt for _, prompt in part], [lesson for lesson, _ in part]
                ).sum() / len(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(lora.lora_weights(lm).values(), CLIP)
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)
        return total

    @torch.no_grad()
    def dev_loss(self) -> float:
        """The mean loss on lessons about chunks set aside, in the LM's own arithmetic."""
        batch = [
            (lesson, self.dev.prompt(lesson, pages)) for lesson, pages in self.dev_batch(self.dev)
        ]
        found = [
            losses(
                self.state.student, [prompt for _, prompt in part], [lesson for lesson, _ in part]
            )
            for part in passes(batch)
        ]
        return float(torch.cat(found).mean())

    def dev_batch(self, dev: Dataset) -> list[tuple[Lesson, list[str]]]:
        """The lessons of a dataset set aside, always with the same prompts."""
        return [dev.sample(lesson, f"dev:{number}") for number, lesson in enumerate(dev.lessons)]

    def f1(self, asked: Sequence[tuple[Lesson, list[str]]], lm: LM, kind: Kind) -> list[float]:
        """F1 of the answers of `lm`, one number a lesson.

        It is the F1 as the frozen model's words or the known answers have it.
        """
        batch = [(lesson, self.dev.prompt(lesson, pages, kind)) for lesson, pages in asked]
        found: dict[int, float] = {}
        for done, part in enumerate(passes(batch)):
            answers = answer_batch(lm, self.teacher.frame, [prompt for _, prompt in part], LONGEST)
            for (lesson, _), said in zip(part, answers, strict=True):
                own = lm.decode(
                    [token for token in lesson.answer if token != self.teacher.frame.end]
                ).strip()
                found[id(lesson)] = score(
                    lm.decode(said.tokens).strip(), answerable(lesson.exercise.answers or (own,))
                ).f1
            self.on_progress(Progress(stage="measuring", done=done, total=len(batch)))
        return [found[id(lesson)] for lesson, _ in batch]

    def answerable(self) -> list[tuple[Lesson, list[str]]]:
        """The lessons set aside whose chunk is in their prompt, at most DEV_ANSWERS.

        Some have others in it too, however it learns.
        """
        batch = self.dev_batch(replace(self.dev, alone=ALONE))
        return [(lesson, pages) for lesson, pages in batch if pages and not lesson.exercise.apart][
            :DEV_ANSWERS
        ]

    def _save(self) -> None:
        if time.monotonic() - self.saved > SAVE_SECONDS:
            write_whole(self.work / "checkpoint.safetensors", self.state.packed(self.run))
            self.saved = time.monotonic()


def passes(batch: Sequence[tuple[Lesson, Tensor]]) -> list[list[tuple[Lesson, Tensor]]]:
    """The prompts in groups of like length, each of at most POSITIONS (but of one at least)."""
    groups: list[list[tuple[Lesson, Tensor]]] = []
    for one in sorted(batch, key=lambda pair: -(len(pair[1]) + len(pair[0].answer))):
        first = groups[-1][0] if groups else one
        if not groups or (len(groups[-1]) + 1) * (len(first[1]) + len(first[0].answer)) > POSITIONS:
            groups.append([])
        groups[-1].append(one)
    return groups


def lessons_about(
    keys: Sequence[str],
    exercises: Sequence[Exercise],
    most: int,
    teacher: Teacher,
    settings: Adapt,
    work: Path,
    on_progress: OnProgress,
) -> list[Lesson]:
    """Lessons about the pages `keys`, evenly at most `most` (0: all); and those of `others`.

    None is among them that the teacher itself gets wrong.

    Raises:
        UsageError: there are none.
    """
    here = set(keys)
    asked = [one for one in exercises if one.page in here]
    understood = [
        lesson
        for lesson in taught(teacher, asked, settings, work, on_progress)
        if lesson.f1 >= settings.least
    ]
    if not understood:
        wrong = f"the model answers none of {len(asked)} questions from the text"
        problem = wrong if asked else f"no question about any of {len(keys)} chunks"
        raise UsageError(problem, remedy="give more with --data, or ingest more documents")
    own = list(spread_evenly(understood, most or len(understood)))
    return own + taught(
        teacher,
        others([lesson.exercise for lesson in own], keys, settings.seed),
        settings,
        work,
        on_progress,
    )


def adapt(
    lm: LM,
    template_sha256: str,
    pages: Sequence[Page],
    exercises: Sequence[Exercise],
    settings: Adapt,
    folder: Path,
    on_progress: OnProgress = lambda progress: None,
) -> AdapterManifest:
    """Trains an adapter on `exercises` about `pages` and writes it into `folder`.

    The same call goes on where it was stopped.

    Args:
        template_sha256: of the pages' memories.

    Raises:
        UsageError: fewer than two pages, or no question about some of them that the model answers
            from the text.
        OutOfMemory: a batch does not fit.

    Cost: a greedy answer of `lm` to each exercise, then `settings.steps` forward and backward
        passes over `settings.batch` prompts.
    """
    by_key = {page.key: page for page in pages}
    contents = [(page.key, sha256(page.vectors.tobytes()).hexdigest()) for page in pages]
    lone = 1.0 if lm.reads_per_passage else ALONE
    run = digest_of(
        (
            lm.identity,
            template_sha256,
            contents,
            [*exercises],
            lone,
            *(getattr(settings, name) for name in DECIDE),
        )
    )
    work = folder / ADAPTER_WORK
    for one in (folder, work):
        one.mkdir(mode=0o700, parents=True, exist_ok=True)
    teacher = Teacher(lm, qa_prompt(lm), by_key)
    datasets = []
    for keys, most in zip(split(pages), (0, DEV_LESSONS), strict=True):
        lessons = lessons_about(
            keys, exercises, most, teacher, settings, work=work, on_progress=on_progress
        )
        kind, seed = settings.kind, settings.seed
        datasets.append(Dataset(teacher, keys, lessons, kind, seed=seed, alone=lone))
    train, dev = datasets
    training = Training(
        teacher,
        settings,
        train=train,
        dev=dev,
        work=work,
        run=run,
        on_progress=on_progress,
        state=state_of(lm, settings),
    )
    training.state.resume(work / "checkpoint.safetensors", run)
    try:
        training.finish()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(
            "a batch of lessons does not fit in memory", remedy="a smaller --batch"
        ) from error
    return write(training, template_sha256, folder)


# dials that make another run of it
DECIDE = ("kind", "steps", "batch", "lr", "rank", "gold", "least", "seed")


def write(training: Training, template_sha256: str, folder: Path) -> AdapterManifest:
    """Rounds the weights, measures them as they are stored, and writes the adapter.

    What it is bound to is written last.
    """
    lm, state, kind = training.teacher.lm, training.state, training.settings.kind
    lora.set_weights(state.student, lora.half_precision_weights(state.student))
    readers: dict[str, tuple[LM, Kind]] = {
        "text": (lm, "text"),
        "before": (lm, kind),
        "after": (state.student, kind),
    }
    asked = training.answerable()
    f1s = {name: training.f1(asked, *reader) for name, reader in readers.items()}
    alone = [len(pages) == 1 for _, pages in asked]
    dev = means(f1s, [True for _ in alone]) | {
        f"{name}_alone": mean for name, mean in means(f1s, alone).items()
    }
    dev |= {"loss_before": state.first_loss, "loss_after": training.dev_loss()}
    counts = {
        "chunks": len(training.train.keys), "chunks_aside": len(training.dev.keys),
        "lessons_aside": len(training.dev.lessons), "questions_aside": len(asked),
        "together": 1 if training.train.alone == 1 else MOST,
        **lesson_counts(training.train.lessons),
    }  # fmt: skip
    bond = AdapterManifest(
        kind=kind, model=f"{lm.identity.id} {lm.identity.revision}".strip(),
        weights_sha256=lm.identity.weights_sha256, tokenizer_sha256=lm.identity.tokenizer_sha256,
        template_sha256=template_sha256 if kind == "memory" else "", adapter_sha256="",
        steps=state.step, trained_on=counts, dev=dev, frame_sha256=training.teacher.frame.digest,
    )  # fmt: skip
    made = lora.adapter_files(state.student, bond)
    for name, content in {"README.md": card(bond).encode(), **made}.items():
        write_whole(folder / name, content)
    shutil.rmtree(training.work)
    return bond


def means(f1s: Mapping[str, Sequence[float]], which: Sequence[bool]) -> dict[str, float]:
    """The mean F1 of every reader over `which` of the questions, and the `share`.

    `share` is that of the text's F1 that the adapter gets.
    """
    found = {name: list(compress(of, which)) for name, of in f1s.items()}
    made = {name: round(fmean(of), 4) if of else 0.0 for name, of in found.items()}
    return {**made, "share": made["after"] / max(made["text"], FLOOR)}


def lesson_counts(lessons: Sequence[Lesson]) -> dict[str, int]:
    """How many lessons there are of each kind.

    The kinds: with a known answer, with the model's own, about another chunk, without a document.
    """
    kinds = Counter(
        "unrelated" if not one.exercise.page else "absent" if one.exercise.apart else one.origin
        for one in lessons
    )
    return {kind: kinds[kind] for kind in ("gold", "model", "absent", "unrelated")}
