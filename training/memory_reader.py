"""Trains what makes memories readable: an encoder, and a LoRA that reads its vectors.

Run it as `python -m training.memory_reader DATA --reader FOLDER --out OUT`; the same command again
goes on from OUT/checkpoint.safetensors.

The reader of text stays as it is. A lesson is one of `text_reader`, its chunks as vectors: first
chunks alone, to be repeated and asked about, most of them at the fewer tokens a vector of the two
that a run is for; at the end as they are found, several in a prompt. Where it is wanted the
sentence that an answer stands in is asked for, too; windows are planned, by what tokens cost and
for a question; some chunks stay text, so that reading it is not forgotten; and what the reader of
text says to the text teaches beside the right answer. Several questions about a chunk share its
vectors and the pass that made them. What is written is one adapter, the reader's LoRA and the new
one side by side.
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
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.measure import guarded
from rag_memtok import config
from rag_memtok.adapt.checkpoint import get_moments, set_moments
from rag_memtok.evaluation.baselines import least_expected
from rag_memtok.memory import encoder as encoders
from rag_memtok.memory.encoder import Encoder, encode
from rag_memtok.model import lora
from rag_memtok.model.adapter_manifest import AdapterManifest, read_manifest
from rag_memtok.model.inject import Content
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import QAPrompt, cue, qa_prompt
from rag_memtok.packages import sha256_of
from rag_memtok.retrieval.relevance import zoomed
from rag_memtok.store.files import write_whole
from training.cuts import sentences
from training.lessons import Mix, TrainingExample, TrainingSet
from training.sources import hash01
from training.text_reader import (
    CHECKPOINT,
    Row,
    another_run,
    attending,
    digest_of_lessons,
    f1_of,
    lessons_of,
    row_of,
    say,
    scores_of,
    watched,
)
from training.token_costs import token_costs

SOFT = -1  # stands in a row's ids where a vector stands
LAYERS, RANK = 10, 8
WINDOWS = (2, 4)  # tokens a vector: narrow and wide
LONGEST = 8  # tokens of a planned window, at least
MOST_RANK = 17  # of the adapter that ships: 17 MB with the encoder
QUESTIONS = 12  # of a step, at least
MOST = 3  # questions about a chunk that is alone: repeating it teaches more
LONGEST_QUOTE = 48  # tokens of a sentence that is asked for, around the answer
FIRST = 0.8  # of the steps: chunks alone
WIDE_SHARES = (0.1, 0.2)  # of the chunks with wide windows, in each half of the steps
WARM_UP = 25  # steps
WIDE = 0.03  # of the rate, for the projection: its sums have thousands of terms
COSTS = "costs.safetensors"  # beside the checkpoint
FORMS = ("encoded", "pooled", "telling")
TEXT = "text"
QUOTE = "Quote the sentence that answers this: "
SAVE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Task:
    """A row, and the texts that its soft positions are encoded from, in which windows.

    `contents` are the ids that stand for its chunks. `recited`: the tokens that say its chunk
    again, or sentences of it; `exchanges`: in how many answers; `chunks`: how many it is about.
    """

    row: Row
    texts: Sequence[Sequence[int]]
    windows: Sequence[Sequence[int]]
    contents: Sequence[Sequence[int]]
    recited: int
    exchanges: int
    chunks: int
    as_text: Row | None = None


def task_of(
    lm: LM,
    words: QAPrompt,
    example: TrainingExample,
    encoder: Encoder,
    window: int,
    *,
    recite: bool,
    quoted: Sequence[tuple[str, str]] = (),
    form: str = "encoded",
    zoom: bool = False,
    taught: bool = False,
) -> Task:
    """An example read from vectors of `window` tokens; `recite`: a chunk alone is repeated.

    `quoted`: questions and answers whose sentences are asked for. `form`: what stands for a chunk,
    one of FORMS or TEXT, all its tokens; "telling" are as many of them as there would be vectors,
    those that `lm` expected least. `zoom`: the windows are planned for its first question.
    `taught`: it is made as the reader of text would read it, too.
    """
    texts = [lm.encode(text) for _, text in example.passages]
    template = cue(lm)
    more: list[tuple[Sequence[int], Sequence[int]]] = []
    if recite and len(texts) == 1:
        more = [(template.suffix, [*texts[0], template.end])]
    if len(texts) == 1:
        more += [quotation(lm, words, example.passages[0][1], *one) for one in quoted]
    weights = zoomed(lm, texts, example.asked[0][0]) if zoom and example.asked else None
    windows = [] if form == TEXT else encoder.plan(texts, window, weights)
    sizes = list(map(len, windows))
    if form == TEXT:
        contents = texts
    elif form == "telling":
        contents = [least_expected(lm, *one) for one in zip(texts, sizes, strict=True)]
    else:
        contents = [[SOFT] * size for size in sizes]
    row = row_of(lm, words, example, contents, more)
    said = sum(len(one) for _, one in more)
    return Task(
        row=row,
        texts=() if form in (TEXT, "telling") else texts,
        windows=windows,
        contents=contents,
        recited=said,
        exchanges=len(more),
        chunks=len(texts),
        as_text=row_of(lm, words, example, texts) if taught and example.asked else None,
    )


def quotation(
    lm: LM, words: QAPrompt, text: str, question: str, answer: str
) -> tuple[Sequence[int], Sequence[int]]:
    """Asks for the sentence of `text` that `answer`, which stands in it, is first found in."""
    place = text.index(answer)
    spans = [span for span in sentences(text) if span[0] <= place < span[1]]
    start, end = spans[0] if spans else (place, place + len(answer))
    before, said = lm.encode(text[start:place]), lm.encode(text[start:end])
    first = max(0, len(before) - LONGEST_QUOTE // 2)
    asked = [*words.question, *lm.encode(QUOTE + question), *words.closing]
    return asked, [*said[first : first + LONGEST_QUOTE], words.end]


def embeddings_of(lm: LM, encoder: Encoder, task: Task) -> Float[Tensor, "S d"]:
    """The row's input embeddings, the vectors in their places."""
    embeddings = lm.embed(task.row.ids.clamp(min=0))
    if not task.texts:
        return embeddings
    vectors = torch.cat(encode(encoder, task.texts, task.windows)).to(embeddings.dtype)
    return embeddings.index_copy(0, (task.row.ids == SOFT).nonzero()[:, 0], vectors)


@dataclass(eq=False, kw_only=True)
class Training:
    """A training run: what is trained, its step, and how many examples it has used.

    `reader` are the weights of the reader of text, which `student` has merged; `passages` is how
    its manifest says that several are read best. `form` is what stands for a chunk: one of FORMS.
    `windows` are the tokens a vector, narrow and wide, and `wide_shares` those of the chunks with
    the wide ones in each half of the steps. `repeated` is the share of the chunks alone that are
    repeated (with wide windows all are), `quoted` that of the questions whose sentence is asked
    for, `zoomed` that of the lessons whose windows are planned for a question, `texts` that of
    those read as they stand, and `fall` that of the steps, at the end, in which the rate falls.
    `taught` is the share that `teacher`, the reader of text, has in what an answer is to be.
    """

    lm: LM
    student: LM
    teacher: LM
    encoder: Encoder
    reader: Mapping[str, Tensor]
    alone: TrainingSet
    found: TrainingSet
    steps: int
    lr: float
    run: str
    out: Path
    repeated: float = 1.0
    quoted: float = 0.0
    zoomed: float = 0.0
    texts: float = 0.0
    taught: float = 0.0
    fall: float = 0.5
    form: str = "encoded"
    windows: tuple[int, int] = WINDOWS
    wide_shares: tuple[float, float] = WIDE_SHARES
    passages: str = ""
    wide: float = WIDE
    step: int = 0
    used: int = 0
    chunks: int = 0
    asked: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Goes on where the checkpoint is.

        Raises:
            UsageError: it is another run's.
        """
        self.words = qa_prompt(self.lm)
        self.live: dict[str, Tensor] = {
            **{f"reader {name}": one for name, one in lora.lora_weights(self.student).items()},
        }
        if self.form == "encoded":
            self.live |= {f"encoder {name}": one for name, one in self.encoder.parameters.items()}
        projection = self.encoder.projection
        groups = [
            {"params": [one for one in self.live.values() if one is not projection], "part": 1.0},
            {"params": [one for one in self.live.values() if one is projection], "part": self.wide},
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
        wide = hash01(str(number), "window ") < self.wide_shares[done >= 0.5]
        recite = wide or hash01(str(number), "repeated ") < self.repeated
        quoted = [
            (question, answer)
            for question, answer in example.asked
            if answer is not None and answer in example.passages[0][1]
            and hash01(question, "quoted ") < self.quoted
        ]  # fmt: skip
        zoom = hash01(str(number), "zoomed ") < self.zoomed
        if hash01(str(number), "text ") < self.texts:
            return self.task_of(example, self.windows[wide], quoted=quoted, form=TEXT)
        return self.task_of(example, self.windows[wide], recite=recite, quoted=quoted, zoom=zoom)

    def task_of(
        self,
        example: TrainingExample,
        window: int,
        *,
        recite: bool = False,
        quoted: Sequence[tuple[str, str]] = (),
        form: str = "",
        zoom: bool = False,
    ) -> Task:
        """An example, in the form that this run is for unless told."""
        return task_of(
            self.lm, self.words, example, self.encoder, window, recite=recite, quoted=quoted,
            form=form or self.form, zoom=zoom, taught=self.taught > 0,
        )  # fmt: skip

    def losses(self, task: Task) -> tuple[Float[Tensor, " T"], Bool[Tensor, " T"]]:
        """Of each token that a task says, how far it is from being said, in nats, and if it is.

        An answer's token is to be the right one and, by the share `taught`, what the teacher says
        to the text: the cross-entropy of the mixture of both.
        """
        with attending(self.student):
            vectors = embeddings_of(self.student, self.encoder, task)
            scores = scores_of(self.student, task.row, vectors)
        targets = task.row.targets
        losses = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
        said = self.said_to_text(task)
        if said is not None:
            own = slice(task.recited, task.recited + len(said))
            soft = -(said * scores[own].log_softmax(-1)).sum(-1)
            mixed = self.taught * soft + (1 - self.taught) * losses[own]
            losses = torch.cat([losses[: own.start], mixed, losses[own.stop :]])
        return losses, scores.argmax(-1) == targets

    @torch.no_grad()
    def said_to_text(self, task: Task) -> Float[Tensor, "T V"] | None:
        """What the teacher says to a task's texts, of as many answers' tokens as both rows have."""
        if task.as_text is None:
            return None
        with attending(self.teacher):
            scores = scores_of(self.teacher, task.as_text, self.teacher.embed(task.as_text.ids))
        return scores[: len(task.row.targets) - task.recited].softmax(-1)

    def take(self) -> tuple[float, ...]:
        """One step; the mean losses of answered and of recited tokens, the share of these right.

        The last two are NaN where nothing was recited.
        """
        done = self.step / self.steps
        rate = self.lr * min(1.0, (self.step + 1) / WARM_UP)
        for group in self.optimizer.param_groups:
            group["lr"] = group["part"] * rate * min(1.0, (1.02 - done) / self.fall)
        tasks: list[Task] = []
        count = 0
        while count < QUESTIONS:
            tasks.append(self.task())
            last = tasks[-1]
            count += len(last.row.own) - last.exchanges
        answered = sum(len(one.row.targets) - one.recited for one in tasks)
        recited = sum(one.recited for one in tasks)
        weight = 1.0 if done < FIRST else 0.5
        sums = [0.0, 0.0, 0.0]
        for one in tasks:
            losses, right = self.losses(one)
            own, said = losses[one.recited :].sum(), losses[: one.recited].sum()
            (own / answered + weight * said / max(recited, 1)).backward()
            for place, value in enumerate((own, said, right[: one.recited].sum())):
                sums[place] += float(value.detach())
        torch.nn.utils.clip_grad_norm_(self.live.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.chunks += sum(one.chunks for one in tasks)
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
            if self.step % every == 0 or self.step == self.steps:
                found = {"step": self.step, "chunks": self.chunks, "questions": self.asked,
                         "seconds": self.seconds}  # fmt: skip
                found |= measured(self, dev)
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
        write_whole(self.out / CHECKPOINT, packed)
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Goes on from a checkpoint of the same run, if there is one.

        Raises:
            UsageError: it is another run's.
        """
        checkpoint = self.out / CHECKPOINT
        if not checkpoint.exists():
            return
        try:
            with safe_open(checkpoint, framework="pt") as opened:
                metadata = opened.metadata()
                if metadata["run"] != self.run:
                    raise another_run(checkpoint)
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise another_run(checkpoint) from error
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


Dev = Sequence[tuple[list[int], str, list[str]]]  # chunks, questions, their answers


def measured(training: Training, dev: Dev) -> Mapping[str, float]:
    """F1 over `dev` from text and from each window; answers' loss, tokens repeated.

    The same of windows planned for the question, where the run has such.
    """
    student, words = training.student, training.words
    found = {"f1_text": f1_of(student, words, dev)["f1"]}
    for window in training.windows[::-1]:
        repeated: list[bool] = []
        for chunk, _, _ in dev[::3]:
            alone = TrainingExample((("", student.decode(chunk)),), ())
            task = training.task_of(alone, window, recite=True)
            repeated += scored(student, training.encoder, task)[1]
        found[f"recited_{window}"] = 100 * mean(repeated)
        for zoom in (False, True)[: 1 + (training.zoomed > 0)]:
            name = f"{window}_zoomed" if zoom else str(window)
            tasks = [
                training.task_of(
                    TrainingExample((("", student.decode(chunk)),), ((question, golds[0]),)),
                    window, zoom=zoom,
                )
                for chunk, question, golds in dev
            ]  # fmt: skip
            losses = [scored(student, training.encoder, task)[0] for task in tasks]
            found[f"loss_{name}"] = mean([one for some in losses for one in some])
            contents = [content_of(training, task) for task in tasks]
            found[f"f1_{name}"] = f1_of(student, words, dev, contents)["f1"]
    return found


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


@torch.no_grad()
def content_of(training: Training, task: Task) -> Content:
    """What stands for the one chunk of a task: its vectors, or as many of its tokens."""
    if not task.texts:
        return task.contents[0]
    return encode(training.encoder, task.texts, task.windows)[0].numpy()


@torch.no_grad()
def scored(lm: LM, encoder: Encoder, task: Task) -> tuple[list[float], list[bool]]:
    """Of each token that a task says, its cross-entropy in nats, and whether it comes right."""
    with attending(lm):
        scores = scores_of(lm, task.row, embeddings_of(lm, encoder, task))
    targets = task.row.targets
    losses = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    return losses.tolist(), (scores.argmax(-1) == targets).tolist()


def write(training: Training, folder: Path) -> None:
    """The reader and the encoder as they ship, but for their card."""
    identity, curve = training.lm.identity, training.out / "curve.jsonl"
    last = json.loads(curve.read_text().splitlines()[-1])
    lora.set_weights(training.student, lora.half_precision_weights(training.student))
    together = stacked(training.lm, training.reader, training.student)
    made = b"" if training.form == "telling" else encoders.pack(training.encoder)
    digest = hashlib.sha256(made).hexdigest() if made else ""
    bond = AdapterManifest(
        kind="text", model=f"{identity.id} {identity.revision}".strip(),
        weights_sha256=identity.weights_sha256, tokenizer_sha256=identity.tokenizer_sha256,
        template_sha256="", adapter_sha256="", steps=training.step,
        trained_on={"questions": training.asked, "lessons": training.used,
                    "memories": training.chunks, "chunks": len(training.found.pieces),
                    "seed": training.found.seed},
        dev={"after": last["f1_text"] / 100},
        frame_sha256=training.words.digest, passages=training.passages, encoder_sha256=digest,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if made:
        write_whole(folder / encoders.FILE, made)
    for name, content in lora.adapter_files(together, bond).items():
        write_whole(folder / name, content)


def merged(lm: LM, adapter: Path) -> LM:
    """The LM as the reader in `adapter` reads, without a LoRA; its own tensors."""
    weights = lora.merge_lora(lora.load_adapter(lm, adapter))
    alone = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.identity)
    alone.model.load_state_dict(weights)
    return alone


def stacked(lm: LM, first: Mapping[str, Tensor], second: LM, most: int = MOST_RANK) -> LM:
    """`lm` with a LoRA that adds what `first` and the LoRA of `second` add, of rank `most` at most.

    Beyond it of each layer's sum the smallest singular values are left out.
    """
    values = {
        name: torch.cat([first[name].float(), one.detach()], 0 if "lora_A" in name else 1)
        for name, one in lora.lora_weights(second).items()
    }
    rank = next(one.shape[0] for name, one in values.items() if "lora_A" in name)
    if rank > most:
        downs = [name for name in values if "lora_A" in name]
        for down, up in ((name, name.replace("lora_A", "lora_B")) for name in downs):
            values[down], values[up] = best_of_rank(values[down], values[up], most)
    together = lora.add_lora(lm, min(rank, most), 0)
    lora.set_weights(together, values)
    return together


def upon(whole: Mapping[str, Tensor], first: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What `whole` (of `stacked`) adds beside `first`, as a LoRA of rank `rank`."""
    values: dict[str, Tensor] = {}
    for down in (name for name in whole if "lora_A" in name):
        up = down.replace("lora_A", "lora_B")
        values[down], values[up] = best_of_rank(
            torch.cat([whole[down].float(), first[down].float()]),
            torch.cat([whole[up].float(), -first[up].float()], 1),
            rank,
        )
    return values


def best_of_rank(
    down: Float[Tensor, "R i"], up: Float[Tensor, "o R"], rank: int
) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
    """The two factors of rank `rank` whose product is nearest to that of `up` and `down`."""
    (left, inner), (right, outer) = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, sizes, v = torch.linalg.svd(inner @ outer.T)
    roots = sizes[:rank].sqrt()
    return roots[:, None] * (right @ v[:rank].T).T, left @ u[:, :rank] * roots


def started(args: argparse.Namespace) -> Training:
    """A run at its start: a LoRA and an encoder that do nothing yet, or those to start from."""
    torch.manual_seed(args.seed)
    lm = load(config.Model(id=args.model, dtype="bfloat16", threads=args.threads))
    teacher = merged(lm, args.reader)
    student = lora.fuse_lora(lora.add_lora(teacher, args.rank, args.seed))
    longest = max(*args.windows, LONGEST if args.planned else 0)
    encoder = encoders.new_encoder(lm, args.layers, RANK, longest, args.seed)
    found = lessons_of(lm, args.data, args.without, args.seed)
    costs: Tensor | None = None
    reader = load_file(args.reader / lora.WEIGHTS)
    if args.start:
        whole = load_file(args.start / lora.WEIGHTS)
        lora.set_weights(student, upon(whole, reader, args.rank))
        begun = load_file(args.start / encoders.FILE)
        begun[encoders.PROJECTION] = lengthened(begun[encoders.PROJECTION], longest)
        costs = begun.pop(encoders.COSTS, None)
        encoders.set_parameters(encoder, begun)
    if args.planned and costs is None:
        costs = token_costs_in(args.out, lm, found)
    encoder = replace(encoder, costs=costs)
    alone = replace(found, mix=Mix(alone=1.0), most=MOST)
    learning = {"repeated": args.repeated, "quoted": args.quoted, "fall": args.fall}
    learning |= {"zoomed": args.zoomed, "texts": args.texts}
    learning |= {"taught": args.taught} if args.taught else {}
    learning |= {"windows": args.windows, "wide_shares": args.wide_shares}
    planned = "" if costs is None else hashlib.sha256(costs.numpy().tobytes()).hexdigest()
    of = (args.layers, args.rank, args.lr, args.seed, args.steps, args.form, args.start, learning)
    read_from = (planned, sha256_of(args.reader / lora.WEIGHTS), digest_of_lessons(found))
    run = repr((lm.identity, qa_prompt(lm).digest, *of, *read_from))
    manifest = read_manifest(args.reader)  # texts are read on as that one reads them
    return Training(
        lm=lm,
        student=student,
        teacher=teacher,
        encoder=encoder,
        reader=reader,
        alone=alone,
        found=found,
        steps=args.steps,
        form=args.form,
        lr=args.lr,
        run=run,
        out=args.out,
        passages=manifest.passages if manifest else "",
        **learning,
    )


def token_costs_in(out: Path, lm: LM, lessons: TrainingSet) -> Float[Tensor, " V"]:
    """The tokens' costs, kept in a file: a run that goes on does not count them again."""
    file = out / COSTS
    if not file.exists():
        costs = token_costs(lm, [piece.text for piece in lessons.pieces])
        write_whole(file, save({encoders.COSTS: costs}))
    return load_file(file)[encoders.COSTS]


def lengthened(projection: Float[Tensor, "W d d"], longest: int) -> Float[Tensor, "V d d"]:
    """A projection of windows up to `longest` tokens, so far without those it has nothing for."""
    missing = longest - len(projection)
    return torch.cat([projection, projection.new_zeros(max(0, missing), *projection.shape[1:])])


def pair(text: str) -> tuple[float, float]:
    """Two numbers with a comma between."""
    first, second = map(float, text.split(","))
    return first, second


def widths(text: str) -> tuple[int, int]:
    """Two windows with a comma between, the narrow one first."""
    narrow, wide = map(int, text.split(","))
    if not 1 <= narrow <= wide:
        raise ValueError(text)
    return narrow, wide


def main() -> None:
    """Trains, measures, writes what is trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--reader", type=Path, required=True, help="the reader of text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--start", type=Path, help="what an earlier run wrote, to go on from")
    parser.add_argument(
        "--form", choices=FORMS, default=FORMS[0], help="what stands for a chunk: encoded; to "
        "compare with, pooled: the encoder untrained, telling: its tokens that are expected least",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument(
        "--windows", type=widths, default=WINDOWS, metavar="NARROW,WIDE", help="tokens a vector"
    )
    parser.add_argument(
        "--planned", action="store_true",
        help="so many on average, fewer where they cost more; an encoder stays so",
    )  # fmt: skip
    parser.add_argument(
        "--wide-shares", type=pair, default=WIDE_SHARES, metavar="FIRST,SECOND",
        help="of the chunks: wide windows, in each half of the steps",
    )  # fmt: skip
    parser.add_argument("--rank", type=int, default=RANK, help="of the LoRA for vectors")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--fall", type=float, default=0.5, help="of the steps, at the end: the rate falls"
    )
    parser.add_argument(
        "--repeated", type=float, default=1.0, help="of the chunks alone: they are repeated"
    )
    parser.add_argument(
        "--quoted", type=float, default=0.0, help="of the questions: their sentence is asked for"
    )
    parser.add_argument(
        "--zoomed", type=float, default=0.0,
        help="of the lessons: their windows are planned for a question",
    )  # fmt: skip
    parser.add_argument(
        "--texts", type=float, default=0.0,
        help="of the lessons: their chunks stand there as they are, so that texts are read on",
    )  # fmt: skip
    parser.add_argument(
        "--taught", type=float, default=0.0,
        help="of what an answer is to be: what the reader of text says to the text",
    )  # fmt: skip
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
    guarded(main)
