"""Trains what makes memories readable: an encoder, and a LoRA that reads its vectors.

Run it as `python -m training.memory_reader DATA --reader FOLDER --out OUT`; the same command again
goes on from OUT/checkpoint.safetensors.

The reader of text stays as it is. A lesson is one of `text_reader`, its chunks as vectors: first
chunks alone, to be repeated and asked about, most of them at 2 tokens a vector; at the end as they
are found, several in a prompt. Several questions about a chunk share its vectors and the pass that
made them. What is written is one adapter, the reader's LoRA and the new one side by side.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from rag_memtok import config
from rag_memtok.adapt.checkpoint import get_moments, set_moments
from rag_memtok.memory import encoder as encoders
from rag_memtok.memory.encoder import Encoder, count_windows, encode
from rag_memtok.model import lora
from rag_memtok.model.inject import Content
from rag_memtok.model.lm import LM, load
from rag_memtok.model.lora import AdapterManifest
from rag_memtok.model.prompts import QAPrompt, cue, qa_prompt
from rag_memtok.store.files import write_whole
from training.lessons import Mix, TrainingExample, TrainingSet
from training.sources import hash01
from training.text_reader import (
    Row,
    attending,
    f1_of,
    lessons_of,
    row_of,
    say,
    scores_of,
    watched,
)

SOFT = -1  # stands in a row's ids where a vector stands
LAYERS, RANK, LONGEST_WINDOW = 10, 8, 4
QUESTIONS = 12  # of a step, at least
MOST = 3  # questions about a chunk that is alone: repeating it teaches more
FIRST = 0.8  # of the steps: chunks alone
WIDE_SHARES = (0.25, 0.5)  # of the chunks at 4 tokens a vector, in each half of the steps
FALL = 0.5  # of the steps, at the end: the rate falls
WARM_UP = 25  # steps
WIDE = 0.03  # of the rate, for the projection: its sums have thousands of terms
SAVE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A row, the texts its soft positions are encoded from, tokens reconstructed."""

    row: Row
    texts: Sequence[Sequence[int]]
    window: int
    recited: int


def task_of(
    lm: LM, words: QAPrompt, example: TrainingExample, window: int, *, recite: bool
) -> Task:
    """An example read from vectors of `window` tokens; `recite`: a chunk alone is repeated."""
    texts = [lm.encode(text) for _, text in example.passages]
    template = cue(lm)
    more = [(template.suffix, [*texts[0], template.end])] if recite and len(texts) == 1 else []
    soft = [[SOFT] * count_windows(len(text), window) for text in texts]
    row = row_of(lm, words, example, soft, more)
    return Task(row, texts, window, len(texts[0]) + 1 if more else 0)


def embeddings_of(lm: LM, encoder: Encoder, task: Task) -> Float[Tensor, "S d"]:
    """The row's input embeddings, the vectors in their places."""
    embeddings = lm.embed(task.row.ids.clamp(min=0))
    vectors = torch.cat(encode(encoder, task.texts, task.window)).to(embeddings.dtype)
    return embeddings.index_copy(0, (task.row.ids == SOFT).nonzero()[:, 0], vectors)


@dataclass(eq=False, kw_only=True)
class Training:
    """A training run: what is trained, its step, and how many examples it has used.

    `reader` are the weights of the reader of text, which `student` has merged.
    """

    lm: LM
    student: LM
    encoder: Encoder
    reader: Mapping[str, Tensor]
    alone: TrainingSet
    found: TrainingSet
    steps: int
    lr: float
    run: str
    out: Path
    wide: float = WIDE
    step: int = 0
    used: int = 0
    chunks: int = 0
    asked: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Goes on where the checkpoint is."""
        self.words = qa_prompt(self.lm)
        self.live: dict[str, Tensor] = {
            **{f"reader {name}": one for name, one in lora.lora_weights(self.student).items()},
            **{f"encoder {name}": one for name, one in self.encoder.parameters.items()},
        }
        projection = self.encoder.projection
        groups = [
            {"params": [one for one in self.live.values() if one is not projection], "part": 1.0},
            {"params": [projection], "part": self.wide},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.resume()
        self.saved = time.monotonic()

    def task(self) -> Task:
        """The next lesson."""
        done, number = self.step / self.steps, self.used
        self.used += 1
        lessons = self.alone if done < FIRST else self.found
        example = lessons.example(number)
        if not example.asked:
            return self.task()
        wide = hash01(str(number), "window ") < WIDE_SHARES[done >= 0.5]
        return task_of(self.lm, self.words, example, 4 if wide else 2, recite=True)

    def take(self) -> tuple[float, ...]:
        """One step; the mean losses of answered and of recited tokens, the share of these right.

        The last two are NaN where nothing was recited.
        """
        done = self.step / self.steps
        rate = self.lr * min(1.0, (self.step + 1) / WARM_UP)
        for group in self.optimizer.param_groups:
            group["lr"] = group["part"] * rate * min(1.0, (1.02 - done) / FALL)
        tasks: list[Task] = []
        count = 0
        while count < QUESTIONS:
            tasks.append(self.task())
            count += len(tasks[-1].row.own) - (tasks[-1].recited > 0)
        answered = sum(len(one.row.targets) - one.recited for one in tasks)
        recited = sum(one.recited for one in tasks)
        weight = 1.0 if done < FIRST else 0.5
        sums = [0.0, 0.0, 0.0]
        with attending(self.student):
            for one in tasks:
                scores = scores_of(
                    self.student, one.row, embeddings_of(self.student, self.encoder, one)
                )
                losses = torch.nn.functional.cross_entropy(
                    scores, one.row.targets, reduction="none"
                )
                own, said = losses[one.recited :].sum(), losses[: one.recited].sum()
                (own / answered + weight * said / max(recited, 1)).backward()
                right = scores[: one.recited].argmax(-1) == one.row.targets[: one.recited]
                for place, value in enumerate((own, said, right.sum())):
                    sums[place] += float(value.detach())
        torch.nn.utils.clip_grad_norm_(self.live.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.chunks += sum(len(one.texts) for one in tasks)
        self.asked += count
        return sums[0] / answered, *(one / recited if recited else math.nan for one in sums[1:])

    def finish(self, dev: Sequence[tuple[list[int], str, list[str]]], every: int) -> None:
        """Takes all steps; writes what is measured on `dev` to OUT/curve.jsonl."""
        recent: list[tuple[float, ...]] = []
        while self.step < self.steps:
            began = time.monotonic()
            recent = [*recent[-39:], self.take()]
            self.seconds += time.monotonic() - began
            if self.step % 20 == 0:
                own, said, right = map(mean_known, zip(*recent, strict=True))
                left = self.seconds / self.step * (self.steps - self.step) / 60
                say(
                    f"step {self.step}/{self.steps}, answers {own:.3f}, recited {said:.3f} "
                    f"({right:.1%}), {self.chunks} chunks, {self.asked} questions, "
                    f"{self.chunks / self.seconds:.2f} chunks a second, {left:.0f} min left"
                )
            if self.step % every == 0:
                found = {"step": self.step, "chunks": self.chunks, "questions": self.asked,
                         "seconds": self.seconds}  # fmt: skip
                found |= measured(self.student, self.encoder, self.words, dev)
                say(json.dumps(found))
                with (self.out / "curve.jsonl").open("a") as out:
                    out.write(json.dumps(found) + "\n")
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self.save()
        self.save()

    def save(self) -> None:
        """Writes the checkpoint."""
        counts = {
            name: getattr(self, name) for name in ("step", "used", "chunks", "asked", "seconds")
        }
        tensors = {f"now {name}": one.detach() for name, one in self.live.items()}
        tensors |= get_moments(self.optimizer, self.live)
        packed = save(
            {name: one.contiguous() for name, one in tensors.items()},
            {"run": self.run, "counts": json.dumps(counts)},
        )
        write_whole(self.out / "checkpoint.safetensors", packed)
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Goes on from a checkpoint of the same run, if there is one."""
        try:
            with safe_open(self.out / "checkpoint.safetensors", framework="pt") as opened:
                metadata = opened.metadata()
                if metadata["run"] != self.run:
                    return
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        except (OSError, SafetensorError):
            return
        for name, value in json.loads(metadata["counts"]).items():
            setattr(self, name, value)
        with torch.no_grad():
            for name, one in self.live.items():
                one.copy_(tensors[f"now {name}"])
        set_moments(self.optimizer, self.live, tensors, self.step)
        print(f"from step {self.step}")


def mean_known(values: Iterable[float]) -> float:
    """The mean of those that are no NaN."""
    known = [one for one in values if not math.isnan(one)]
    return sum(known) / len(known) if known else math.nan


def measured(
    student: LM, encoder: Encoder, words: QAPrompt, dev: Sequence[tuple[list[int], str, list[str]]]
) -> Mapping[str, float]:
    """F1 over `dev` from text and from vectors of 4 and 2 tokens, and the tokens recited right."""
    found = {}
    for window in (0, 4, 2):
        contents: list[Content] | None = None
        if window:
            contents = [vectors_of(encoder, chunk, window) for chunk, _, _ in dev]
            found[f"recited_{window}"] = recited(student, encoder, words, dev, window)
        found[f"f1_{window or 'text'}"] = f1_of(student, words, dev, contents)["f1"]
    return found


@torch.no_grad()
def vectors_of(encoder: Encoder, chunk: Sequence[int], window: int) -> Content:
    """The vectors of one chunk."""
    return encode(encoder, [chunk], window)[0].numpy()


@torch.no_grad()
def recited(
    student: LM, encoder: Encoder, words: QAPrompt,
    dev: Sequence[tuple[list[int], str, list[str]]], window: int,
) -> float:  # fmt: skip
    """The share of the tokens of a third of the chunks that come right, teacher-forced, in %."""
    right = total = 0
    with attending(student):
        for chunk, _, _ in dev[::3]:
            example = TrainingExample((("", student.decode(chunk)),), ())
            task = task_of(student, words, example, window, recite=True)
            scores = scores_of(student, task.row, embeddings_of(student, encoder, task))
            right += int((scores.argmax(-1) == task.row.targets).sum())
            total += len(task.row.targets)
    return 100 * right / total


def write(training: Training, folder: Path) -> None:
    """The reader and the encoder as they ship, but for their card."""
    identity, curve = training.lm.identity, training.out / "curve.jsonl"
    last = json.loads(curve.read_text().splitlines()[-1])
    lora.set_weights(training.student, lora.half_precision_weights(training.student))
    together = stacked(training.lm, training.reader, training.student)
    made = encoders.pack(training.encoder)
    bond = AdapterManifest(
        kind="text", model=f"{identity.id} {identity.revision}".strip(),
        weights_sha256=identity.weights_sha256, tokenizer_sha256=identity.tokenizer_sha256,
        template_sha256="", adapter_sha256="", steps=training.step,
        trained_on={"questions": training.asked, "lessons": training.used,
                    "memories": training.chunks, "chunks": len(training.found.pieces),
                    "seed": training.found.seed},
        dev={"after": last["f1_text"] / 100},
        frame_sha256=training.words.digest, encoder_sha256=hashlib.sha256(made).hexdigest(),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / encoders.FILE, made)
    for name, content in lora.adapter_files(together, bond).items():
        write_whole(folder / name, content)


def merged(lm: LM, adapter: Path) -> LM:
    """The LM as the reader in `adapter` reads, without a LoRA; its own tensors."""
    weights = lora.merge_lora(lora.load_adapter(lm, adapter))
    alone = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.identity)
    alone.model.load_state_dict(weights)
    return alone


def stacked(lm: LM, first: Mapping[str, Tensor], second: LM) -> LM:
    """`lm` with a LoRA that adds what `first` and the LoRA of `second` add."""
    values = {
        name: torch.cat([first[name].float(), one.detach()], 0 if "lora_A" in name else 1)
        for name, one in lora.lora_weights(second).items()
    }
    rank = next(one.shape[0] for name, one in values.items() if "lora_A" in name)
    together = lora.add_lora(lm, rank, 0)
    lora.set_weights(together, values)
    return together


def started(args: argparse.Namespace) -> Training:
    """A run at its start: a LoRA and an encoder that do nothing yet."""
    torch.manual_seed(args.seed)
    lm = load(config.Model(id=args.model, dtype="bfloat16", threads=args.threads))
    student = lora.fuse_lora(lora.add_lora(merged(lm, args.reader), args.rank, args.seed))
    encoder = encoders.new_encoder(lm, args.layers, RANK, LONGEST_WINDOW, args.seed)
    found = lessons_of(lm, args.data, args.without, args.seed)
    alone = replace(found, mix=Mix(alone=1.0), most=MOST)
    of = (args.layers, args.rank, args.lr, args.seed, args.steps)
    run = repr((lm.identity, qa_prompt(lm).digest, *of))
    return Training(
        lm=lm,
        student=student,
        encoder=encoder,
        reader=load_file(args.reader / lora.WEIGHTS),
        alone=alone,
        found=found,
        steps=args.steps,
        lr=args.lr,
        run=run,
        out=args.out,
    )


def main() -> None:
    """Trains, measures, writes what is trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--reader", type=Path, required=True, help="the reader of text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--rank", type=int, default=RANK, help="of the LoRA for vectors")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=150, help="steps between two measurements")
    parser.add_argument("--dev", type=int, default=64, help="questions that are watched")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without", type=Path, nargs="*", default=[], help="texts that must not be trained on"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    training = started(args)
    training.finish(watched(training.lm, args.data)[: args.dev], min(args.every, args.steps))
    write(training, args.out / "adapter")


if __name__ == "__main__":
    main()
