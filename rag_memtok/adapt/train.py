"""An adapter trained to read memories (or texts): the trainer, its examples, what it writes.

The frozen model's answers to the text are learned from the memories.

    DIR/.rag-memtok-adapt/   what a run that was stopped resumes from: the teacher's answers, the
                             last checkpoint; removed at the end

The model itself stays as it is; what is trained is a LoRA on a second LM of the same tensors.
"""

import math
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

from rag_memtok.adapt.checkpoint import State, init_state, keep, open_work
from rag_memtok.adapt.dataset import (
    MAX_ANSWER,
    MAX_CHUNKS,
    SINGLE_SHARE,
    ChunkQuestion,
    Dataset,
    Example,
    Teacher,
    TrainingChunk,
    losses,
)
from rag_memtok.adapt.model_card import render_card
from rag_memtok.adapt.teach import make_examples_about
from rag_memtok.config import Adapt
from rag_memtok.datatypes import OnProgress, Progress
from rag_memtok.errors import OutOfMemory, UsageError
from rag_memtok.evaluation.metrics import answerable, score
from rag_memtok.model import lora
from rag_memtok.model.adapter_manifest import SHIPPED_READER, AdapterManifest, Kind
from rag_memtok.model.inject import answer_batch
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import uses_low_precision
from rag_memtok.model.prompts import digest_of, qa_prompt
from rag_memtok.pipeline.adapters import shipped_adapters
from rag_memtok.pipeline.progress import quiet
from rag_memtok.store.files import drop_work, write_whole

CHECKPOINT = "checkpoint.safetensors"
# settings that make another run
RUN_SETTINGS = ("kind", "steps", "batch", "lr", "rank", "gold", "least", "seed")
POSITIONS = 4096  # of a forward pass in training, at most
DEV_SHARE, DEV_CHUNKS, DEV_EXAMPLES, DEV_ANSWERS = 0.1, 200, 160, 96
EVALUATIONS = 16  # of the loss on dev, in `steps`; one more where the minutes end
WARM_UP = 20  # steps
SAVE_SECONDS = 60.0
CLIP = 1.0
FLOOR = 0.3  # F1: a reader of text under this is no measure


def split_chunks(chunks: Sequence[TrainingChunk]) -> tuple[list[str], list[str]]:
    """The ids of the chunks to train on and of those set aside (dev), a tenth, by hash.

    Of the same chunks it is always the same tenth.

    Raises:
        UsageError: there are fewer than two.
    """
    ids = [chunk.id for chunk in chunks]
    by_hash = sorted(ids, key=lambda chunk_id: sha256(chunk_id.encode()).digest())
    dev = set(by_hash[: min(DEV_CHUNKS, max(1, round(DEV_SHARE * len(ids))))])
    if len(ids) < 2:
        raise UsageError(
            f"{len(ids)} chunks are too few to train on some and measure on others",
            remedy="ingest more documents",
        )
    return [chunk_id for chunk_id in ids if chunk_id not in dev], [
        chunk_id for chunk_id in ids if chunk_id in dev
    ]


@dataclass(slots=True, eq=False, kw_only=True)
class Training:
    """A training run: train and dev examples, settings, state, and the folder of its work.

    `run` is the digest of all that decides its result. `shipped` is the LM with its own reader of
    texts on, if one ships with it. `saved` is when it was last written, in seconds of
    `time.monotonic`.
    """

    teacher: Teacher
    settings: Adapt
    train: Dataset
    dev: Dataset
    work: Path
    run: str
    on_progress: OnProgress
    state: State
    shipped: LM | None = None
    saved: float = field(default_factory=time.monotonic)

    def finish(self) -> None:
        """Takes steps until they, the minutes or the patience are spent.

        The best weights are the student's in the end.
        """
        state = self.state
        if state.step == 0:
            state.note(self.dev_loss())
        while self.fraction_spent() < 1 and state.waited < self.settings.patience:
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
        if state.noted < state.step:  # the minutes were over
            state.note(self.dev_loss())
        lora.set_weights(state.student, state.best)

    def fraction_spent(self) -> float:
        """The share of the steps, or of the minutes, that is gone: 1 is the end."""
        minutes = self.settings.minutes
        return max(
            self.state.step / self.settings.steps,
            self.state.seconds / 60 / minutes if minutes else 0.0,
        )

    def seconds_left(self) -> float:
        """Estimated seconds to the end, at the pace so far."""
        return self.state.seconds * (1 / max(self.fraction_spent(), 1e-9) - 1)

    def step(self) -> float:
        """One optimization step over a batch, in micro-batches; returns its mean loss in nats."""
        lm, state = self.state.student, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = (
                self.settings.lr
                * min(1.0, (state.step + 1) / WARM_UP)
                * 0.5
                * (1 + math.cos(math.pi * min(1.0, self.fraction_spent())))
            )
        total = 0.0
        batch = [
            (example, self.train.build_prompt(example, chunk_ids))
            for example, chunk_ids in self.train.batch(state.step, self.settings.batch)
        ]
        low_precision = uses_low_precision(lm, "auto")
        for micro_batch in make_micro_batches(batch):
            with torch.autocast(lm.device.type, torch.bfloat16, enabled=low_precision):
                loss = batch_losses(lm, micro_batch).sum() / len(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(lora.lora_weights(lm).values(), CLIP)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        return total

    @torch.no_grad()
    def dev_loss(self) -> float:
        """The mean loss on the examples of dev in nats, in the LM's own arithmetic."""
        batch = [
            (example, self.dev.build_prompt(example, chunk_ids))
            for example, chunk_ids in sample_all(self.dev)
        ]
        parts = [
            batch_losses(self.state.student, micro_batch)
            for micro_batch in make_micro_batches(batch)
        ]
        return float(torch.cat(parts).mean())

    def measure_f1(
        self, samples: Sequence[tuple[Example, list[str]]], lm: LM, kind: Kind
    ) -> list[float]:
        """F1 of the answers of `lm`, one number a sample.

        It is against the known answers, or else the frozen model's own.

        Cost: a greedy answer to each.
        """
        frame = self.teacher.frame
        batch = [
            (example, self.dev.build_prompt(example, chunk_ids, kind))
            for example, chunk_ids in samples
        ]
        f1s: dict[int, float] = {}
        for micro_batch in make_micro_batches(batch):
            answers = answer_batch(lm, frame, [prompt for _, prompt in micro_batch], MAX_ANSWER)
            for (example, _), answer in zip(micro_batch, answers, strict=True):
                own = lm.decode([token for token in example.answer if token != frame.end]).strip()
                golds = answerable(example.question.answers or (own,))
                f1s[id(example)] = score(lm.decode(answer.tokens).strip(), golds).f1
            self.on_progress(Progress(stage="measuring", done=len(f1s), total=len(batch)))
        return [f1s[id(example)] for example, _ in batch]

    def sample_answerable(self) -> list[tuple[Example, list[str]]]:
        """The samples of dev whose chunk is in their prompt, at most DEV_ANSWERS.

        Some have distractors in it too, however it learns.
        """
        samples = sample_all(replace(self.dev, single_share=SINGLE_SHARE))
        return [
            (example, chunk_ids)
            for example, chunk_ids in samples
            if chunk_ids and not example.question.excluded
        ][:DEV_ANSWERS]

    def _save(self) -> None:
        if time.monotonic() - self.saved > SAVE_SECONDS:
            keep(self.work / CHECKPOINT, self.state.pack(self.run))
            self.saved = time.monotonic()


def sample_all(dev: Dataset) -> list[tuple[Example, list[str]]]:
    """A sample of every example, always the same."""
    return [dev.sample(example, f"dev:{index}") for index, example in enumerate(dev.examples)]


def batch_losses(lm: LM, batch: Sequence[tuple[Example, Tensor]]) -> Tensor:
    """The `losses` of examples with their prompts."""
    return losses(lm, [prompt for _, prompt in batch], [example for example, _ in batch])


def make_micro_batches(
    batch: Sequence[tuple[Example, Tensor]],
) -> list[list[tuple[Example, Tensor]]]:
    """The examples and prompts in groups of like length.

    Each has POSITIONS at most, padding counted, but one example at least.
    """

    def positions(pair: tuple[Example, Tensor]) -> int:
        return len(pair[1]) + len(pair[0].answer)

    groups: list[list[tuple[Example, Tensor]]] = []
    for pair in sorted(batch, key=lambda pair: -positions(pair)):
        if not groups or (len(groups[-1]) + 1) * positions(groups[-1][0]) > POSITIONS:
            groups.append([])
        groups[-1].append(pair)
    return groups


def adapt(
    lm: LM,
    template_sha256: str,
    *,
    chunks: Sequence[TrainingChunk],
    questions: Sequence[ChunkQuestion],
    settings: Adapt,
    folder: Path,
    on_progress: OnProgress = quiet,
) -> AdapterManifest:
    """Trains an adapter on `questions` about `chunks` and writes it into `folder`.

    The same call resumes where it was stopped.

    Args:
        template_sha256: of the chunks' memories.

    Raises:
        UsageError: fewer than two chunks, or no question about some of them that the model answers
            from the text.
        InputRefused: the adapter that ships with the model is damaged.
        OutOfMemory: a batch does not fit.

    Cost: a greedy answer of `lm` to each question, then `settings.steps` forward and backward
        passes over `settings.batch` prompts.
    """
    contents = [(chunk.id, sha256(chunk.vectors.tobytes()).hexdigest()) for chunk in chunks]
    single_share = 1.0 if lm.reads_per_passage else SINGLE_SHARE
    decisive = [getattr(settings, name) for name in RUN_SETTINGS]
    run = digest_of((lm.identity, template_sha256, contents, [*questions], single_share, *decisive))
    work, shipped = open_work(folder), shipped_adapters(lm, template_sha256).text
    teacher = Teacher(lm, qa_prompt(lm), {chunk.id: chunk for chunk in chunks})
    train, dev = (
        Dataset(
            teacher=teacher,
            chunk_ids=chunk_ids,
            examples=make_examples_about(
                chunk_ids,
                questions,
                teacher,
                settings,
                limit=limit,
                work=work,
                on_progress=on_progress,
            ),
            kind=settings.kind,
            seed=settings.seed,
            single_share=single_share,
        )
        for chunk_ids, limit in zip(split_chunks(chunks), (0, DEV_EXAMPLES), strict=True)
    )
    training = Training(
        teacher=teacher,
        settings=settings,
        train=train,
        dev=dev,
        work=work,
        run=run,
        on_progress=on_progress,
        state=init_state(lm, settings),
        shipped=lora.load_adapter(lm, shipped.folder) if shipped else None,
    )
    training.state.resume(work / CHECKPOINT, run)
    try:
        training.finish()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(
            "a batch of examples does not fit in memory", remedy="a smaller --batch"
        ) from error
    return write_adapter(training, template_sha256, folder)


def write_adapter(training: Training, template_sha256: str, folder: Path) -> AdapterManifest:
    """Rounds the weights, measures them as they are stored, and writes the adapter.

    Its manifest is written last.
    """
    lm, state, kind = training.teacher.lm, training.state, training.settings.kind
    lora.set_weights(state.student, lora.half_precision_weights(state.student))
    readers: dict[str, tuple[LM, Kind]] = {
        "text": (lm, "text"),
        "before": (lm, kind),
        "after": (state.student, kind),
    }
    if training.shipped is not None:
        readers[SHIPPED_READER] = (training.shipped, "text")
    samples = training.sample_answerable()
    f1s = {name: training.measure_f1(samples, *reader) for name, reader in readers.items()}
    single = [len(chunk_ids) == 1 for _, chunk_ids in samples]
    dev = mean_f1s(f1s, [True for _ in single]) | {
        f"{name}_alone": mean for name, mean in mean_f1s(f1s, single).items()
    }
    dev |= {"loss_before": state.first_loss, "loss_after": training.dev_loss()}
    counts = {
        "chunks": len(training.train.chunk_ids), "chunks_aside": len(training.dev.chunk_ids),
        "lessons_aside": len(training.dev.examples), "questions_aside": len(samples),
        "together": 1 if training.train.single_share == 1 else MAX_CHUNKS,
        **count_examples(training.train.examples),
    }  # fmt: skip
    manifest = AdapterManifest(
        kind=kind, model=lm.identity.title,
        weights_sha256=lm.identity.weights_sha256, tokenizer_sha256=lm.identity.tokenizer_sha256,
        template_sha256=template_sha256 if kind == "memory" else "", adapter_sha256="",
        steps=state.step, trained_on=counts, dev=dev, frame_sha256=training.teacher.frame.digest,
    )  # fmt: skip
    files = lora.adapter_files(state.student, manifest)
    for name, content in {"README.md": render_card(manifest).encode(), **files}.items():
        write_whole(folder / name, content)
    drop_work(training.work)
    return manifest


def mean_f1s(f1s: Mapping[str, Sequence[float]], selected: Sequence[bool]) -> dict[str, float]:
    """The mean F1 of every reader over the `selected` samples, and the `share`.

    `share` is that which the adapter gets of the text's F1, read by the better reader of texts.
    """
    chosen = {name: list(compress(values, selected)) for name, values in f1s.items()}
    means = {name: round(fmean(values), 4) if values else 0.0 for name, values in chosen.items()}
    text = max(means["text"], means.get(SHIPPED_READER, 0.0), FLOOR)
    return {**means, "share": means["after"] / text}


def count_examples(examples: Sequence[Example]) -> dict[str, int]:
    """The number of examples of each kind.

    The kinds: with a known answer, with the model's own, about another chunk, without a chunk.
    """
    kinds = Counter(
        "unrelated"
        if not example.question.chunk_id
        else "absent"
        if example.question.excluded
        else example.origin
        for example in examples
    )
    return {kind: kinds[kind] for kind in ("gold", "model", "absent", "unrelated")}
