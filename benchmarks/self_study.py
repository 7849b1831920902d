"""What a few steps for each chunk add to the vectors of an encoder, and what they cost.

Run it as `python -m benchmarks.self_study DATA --adapter FOLDER --windows 2,4`: FOLDER has an
encoder and the reader of its vectors, as `training.memory_reader` writes them. Of each chunk the
vectors are moved until that reader answers from them as the reader of text answers from the text:
questions made by rule, their answers' distributions, and the chunk itself, repeated. The questions
that are measured are other ones: SQuAD dev, of the half that is chosen by, a chunk for each.

A line for each window: F1 from text, from the encoder's vectors, from those that were moved; the
mean cross-entropy of an answer's token; seconds a chunk of the questions and of the steps.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok import config
from rag_memtok.evaluation.evaluate import encoder_in
from rag_memtok.memory.batch import Task
from rag_memtok.memory.distill import Teacher, TeacherAnswer, kl_divergence
from rag_memtok.memory.encoder import Encoder, encode
from rag_memtok.model import lora
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import QAPrompt, cue, qa_prompt
from rag_memtok.pipeline.adapters import shipped_adapters
from training.lessons import TrainingExample
from training.memory_reader import SOFT
from training.text_reader import Row, attending, f1_of, row_of, scores_of, watched

REPEATED = 0.3  # weight of the chunk's own tokens beside the answers'


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Study:
    """The models and settings of a study."""

    reader: LM
    encoder: Encoder
    teacher: Teacher
    words: QAPrompt
    steps: int
    asked: int
    rate: float


def study_row(
    study: Study, chunk: Sequence[int], size: int, answers: Sequence[TeacherAnswer]
) -> Row:
    """The row in which a chunk is repeated and some questions are answered, behind its vectors."""
    lm, words = study.reader, study.words
    said = [([*words.question, *one.question, *words.closing], one.answer) for one in answers]
    more = [(cue(lm).suffix, [*chunk, cue(lm).end]), *said]
    return row_of(lm, words, TrainingExample((("", ""),), ()), [[SOFT] * size], more)


def scores_from(lm: LM, row: Row, vectors: Float[Tensor, "M d"]) -> Float[Tensor, "T V"]:
    """The logits of what a row says, `vectors` in their places."""
    embeddings = lm.embed(row.ids.clamp(min=0))
    places = (row.ids == SOFT).nonzero()[:, 0]
    return scores_of(lm, row, embeddings.index_copy(0, places, vectors.to(embeddings.dtype)))


def studied(study: Study, chunk: Sequence[int], window: int) -> tuple[Tensor, float, float]:
    """A chunk's vectors after the steps, and the seconds of its questions and of the steps."""
    with torch.no_grad():
        start = encode(study.encoder, [chunk], study.encoder.plan([chunk], window))[0]
    task, began = Task(str(hash(tuple(chunk))), tuple(chunk), len(start)), time.monotonic()
    study.teacher.pool(task)
    asked = time.monotonic() - began
    vectors = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([vectors], lr=study.rate * float(start.square().mean().sqrt()))
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, study.steps)
    began = time.monotonic()
    with attending(study.reader):
        for step in range(study.steps):
            answers = study.teacher.sample(task, step, study.asked)
            row = study_row(study, chunk, len(start), answers)
            scores = scores_from(study.reader, row, vectors)
            own = len(chunk) + 1
            loss = REPEATED * torch.nn.functional.cross_entropy(scores[:own], row.targets[:own])
            token_ids = torch.cat([one.token_ids for one in answers])
            probs = torch.cat([one.probs for one in answers])
            kl = kl_divergence(scores[own:].float().log_softmax(-1), token_ids, probs.float())
            (loss + kl.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    return vectors.detach(), asked, time.monotonic() - began


@torch.no_grad()
def answer_losses(
    study: Study, vectors: Sequence[Tensor], dev: Sequence[tuple[list[int], str, list[str]]]
) -> float:
    """The mean cross-entropy of a token of the gold answers, in nats."""
    lm, losses = study.reader, []
    with attending(lm):
        for some, (_, question, golds) in zip(vectors, dev, strict=True):
            example = TrainingExample((("", ""),), ((question, golds[0]),))
            row = row_of(lm, study.words, example, [[SOFT] * len(some)])
            scores = scores_from(lm, row, some)
            losses += torch.nn.functional.cross_entropy(
                scores, row.targets, reduction="none"
            ).tolist()
    return statistics.fmean(losses)


def main() -> None:
    """Studies the chunks of some questions, and prints what it gains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", default="2,4")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--asked", type=int, default=8, help="questions of a step")
    parser.add_argument("--rate", type=float, default=0.05, help="of the vectors' size, a step")
    args = parser.parse_args()
    lm = load(config.Model(id=args.model, dtype="bfloat16", threads=args.threads))
    encoder, text = encoder_in(args.adapter, lm), shipped_adapters(lm, "").text
    if encoder is None or text is None:
        raise SystemExit("an encoder and a reader of text are needed")
    teacher, words = lora.load_adapter(lm, text.folder), qa_prompt(lm)
    study = Study(
        reader=lora.load_adapter(lm, args.adapter), encoder=encoder, words=words,
        teacher=Teacher(teacher, 0), steps=args.steps, asked=args.asked, rate=args.rate,
    )  # fmt: skip
    dev = watched(lm, args.data)[: args.questions]
    print(f"{len(dev)} questions; text {f1_of(teacher, words, dev)['f1']:.1f}", flush=True)
    for window in map(int, args.windows.split(",")):
        with torch.no_grad():
            before = [encode(encoder, [one], encoder.plan([one], window))[0] for one, _, _ in dev]
        found = [studied(study, chunk, window) for chunk, _, _ in dev]
        for name, vectors in (("encoded", before), ("studied", [one for one, _, _ in found])):
            f1 = f1_of(study.reader, words, dev, [one.numpy() for one in vectors])["f1"]
            loss = answer_losses(study, vectors, dev)
            print(f"window {window}, {name}: F1 {f1:.1f}, an answer's token {loss:.3f} nats")
        asked, steps = (statistics.fmean(some) for some in list(zip(*found, strict=True))[1:])
        print(f"  {asked:.1f} s a chunk for its questions, {steps:.1f} s for {args.steps} steps",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
