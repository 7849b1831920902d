"""Trains the reader of text that ships with a model: a LoRA on lessons about chunks.

Run it as `python -m training.text_reader DATA --out OUT`; the same command again goes on from
OUT/checkpoint.safetensors.

Questions about the same chunks share a row: the chunks stand once at its beginning, each question
with its answer behind them sees them and itself and no other question, and its positions go on from
theirs. To each it is the very prompt that `ask` builds, at a third of the cost.
"""

import argparse
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface

from benchmarks.measure import guarded
from rag_memtok import config
from rag_memtok.adapt.checkpoint import State, init_state
from rag_memtok.adapt.dataset import MAX_ANSWER, encode_answer
from rag_memtok.cli.console import say
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.metrics import answerable, score
from rag_memtok.model import lora
from rag_memtok.model.adapter_manifest import AdapterManifest
from rag_memtok.model.inject import Content, answer_batch, inject
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import REFUSAL, QAPrompt, digest_of, qa_prompt, source_line
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.store.files import write_whole
from training import facts
from training.lessons import (
    TrainingExample,
    TrainingSet,
    all_pieces,
    idle_questions,
    measured_on,
    neighbours,
)
from training.notes import Writer
from training.sources import choosing, hash01, questions, read

QUESTIONS = 24  # of a step, at least
ROOM = 1400  # tokens of a row, at most: questions that do not fit are left out
WARM_UP = 25  # steps
# of the steps, at the end: the rate falls to a thirtieth; before, their number is nothing to it
FALL = 0.6
SAVE_SECONDS = 300.0
CHECKPOINT = "checkpoint.safetensors"
DEV = 96  # questions of the choosing half that are watched


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Row:
    """Chunks and several questions: token ids with their positions, and what is scored.

    The first `shared` ids are the chunks'; `own` has a row for each question, the places of its ids
    with -1 behind them; `places` predict `targets`.
    """

    ids: Tensor
    positions: Tensor
    shared: int
    own: Tensor
    places: Tensor
    targets: Tensor

    @property
    def forbidden(self) -> tuple[Tensor, Tensor]:
        """The attention masks: -inf where a position does not see another.

        `[shared, shared]` among the chunks, and `[B, L, L]` within each question.
        """
        longest = self.own.shape[1]
        within = (self.own >= 0)[:, None] & torch.ones(longest, longest, dtype=torch.bool).tril()
        within |= torch.eye(longest, dtype=torch.bool)  # padding sees itself
        return (
            torch.full((self.shared, self.shared), -torch.inf).triu(1),
            torch.zeros(within.shape).masked_fill(~within, -torch.inf),
        )


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    row: Row,
    unseen: tuple[Tensor, Tensor],
    scaling: float,
    **more: object,
) -> tuple[Tensor, None]:
    """The attention of a row, as transformers calls it, without the products nobody sees.

    The chunks are causal among themselves; each question sees them and itself. Heads that share
    keys are rows of the same product. Products and softmax in the model's dtype: on a CPU three
    times as fast, with their gradients, as torch's own attention with a mask.
    """
    del module, mask, more
    groups, width, shared = key.shape[1], key.shape[-1], row.shared
    (among, within), place = unseen, row.own.clamp(min=0)
    queries, (keys, values) = query[0].unflatten(0, (groups, -1)), (key[0], value[0])
    first = queries[:, :, :shared].flatten(1, 2)
    scores = torch.baddbmm(
        among.repeat(queries.shape[1], 1).to(first.dtype)[None],
        first, keys[:, :shared].mT, alpha=scaling,
    )  # fmt: skip
    chunks = torch.bmm(scores.softmax(-1), values[:, :shared])
    chunks = chunks.unflatten(1, (-1, shared)).flatten(0, 1)

    asked = queries[:, :, place] * scaling  # [groups, heads, B, L, D]
    before = (asked.flatten(1, 3) @ keys[:, :shared].mT).view(*asked.shape[:-1], shared)
    after = torch.einsum("ghbld,gbmd->ghblm", asked, keys[:, place]) + within.to(asked.dtype)
    known = torch.cat([before, after], -1).softmax(-1)
    read = (known[..., :shared].flatten(1, 3) @ values[:, :shared]).view(asked.shape)
    read = read + torch.einsum("ghblm,gbmd->ghbld", known[..., shared:], values[:, place])
    own = read.flatten(0, 1)[:, row.own >= 0]
    return torch.cat([chunks, own], 1).transpose(0, 1).reshape(1, -1, len(query[0]), width), None


def row_of(
    lm: LM, words: QAPrompt, example: TrainingExample,
    contents: Sequence[Sequence[int]] | None = None,
    more: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
) -> Row:  # fmt: skip
    """An example as a row, with as many of its questions as fit in ROOM.

    `contents` are the ids that stand for its passages, their tokens unless told; `more` are asked
    before its questions, as tokens of what is asked and of what is said.
    """
    contents = contents or [lm.encode(text) for _, text in example.passages]
    ids = list(words.opening)
    for number, ((source, _), content) in enumerate(zip(example.passages, contents, strict=True)):
        ids += (*(words.between if number else ()), *source_line(lm, words, source), *content)
    shared = len(ids)
    positions = list(range(shared))
    own: list[Tensor] = []
    places: list[int] = []
    targets: list[int] = []
    for asked, said in (*more, *(exchange(lm, words, *one) for one in example.asked)):
        start, size = len(ids), len(asked) + len(said) - 1
        if own and start + size > ROOM:
            break
        places += range(start + len(asked) - 1, start + size)
        targets += said
        ids += (*asked, *said[:-1])
        positions += range(shared, shared + size)
        own.append(torch.arange(start, start + size))
    padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=-1)
    whole = [torch.tensor(one) for one in (ids, positions, places, targets)]
    return Row(
        ids=whole[0],
        positions=whole[1],
        shared=shared,
        own=padded,
        places=whole[2],
        targets=whole[3],
    )


def exchange(
    lm: LM, words: QAPrompt, question: str, answer: str | None
) -> tuple[Sequence[int], Sequence[int]]:
    """A question and its answer (None: a refusal) as the tokens asked and the tokens said."""
    asked = [*words.question, *lm.encode(question), *words.closing]
    return asked, encode_answer(lm, words, answer or REFUSAL)


@contextlib.contextmanager
def attending(lm: LM) -> Iterator[None]:
    """Gives `lm` the attention of `attend` for a while."""
    AttentionInterface.register("rows", attend)
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("rows")
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)


def loss_of(lm: LM, row: Row) -> Tensor:
    """The sum over the row's answer tokens of their cross-entropy, in nats.

    `lm` is in the attention of `attend`.
    """
    scores = scores_of(lm, row, lm.embed(row.ids))
    return torch.nn.functional.cross_entropy(scores, row.targets, reduction="sum")


def scores_of(lm: LM, row: Row, embeddings: Float[Tensor, "S d"]) -> Float[Tensor, "T V"]:
    """The logits at the places of a row's answer tokens; `lm` is in the attention of `attend`."""
    hidden = lm.model.base_model(
        inputs_embeds=embeddings[None],
        position_ids=row.positions[None],
        use_cache=False,
        row=row,
        unseen=row.forbidden,
    ).last_hidden_state[0, row.places]
    return lm.logits(hidden)


@dataclass(eq=False, kw_only=True)
class Training:
    """A training run: its state, and how many examples it has used.

    `passages` is for the manifest, which see.
    """

    lm: LM
    lessons: TrainingSet
    state: State
    settings: config.Adapt
    run: str
    out: Path
    passages: str = ""
    used: int = 0
    asked: int = 0

    def __post_init__(self) -> None:
        """Goes on where the checkpoint is.

        Raises:
            UsageError: it is another run's.
        """
        self.words = qa_prompt(self.lm)
        checkpoint = self.out / CHECKPOINT
        if self.state.resume(checkpoint, self.run):
            print(f"from step {self.state.step}")
            kept = json.loads((self.out / "used.json").read_text())
            self.used, self.asked = kept[str(self.state.step)]
        elif checkpoint.exists():
            raise another_run(checkpoint)
        self.saved = time.monotonic()

    def next_batch(self) -> list[Row]:
        """The batch of the next step."""
        rows: list[Row] = []
        count = 0
        while count < QUESTIONS:
            example = self.lessons.example(self.used)
            self.used += 1
            if example.asked:
                rows.append(row_of(self.lm, self.words, example))
                count += len(rows[-1].own)
        self.asked += count
        return rows

    def step(self) -> float:
        """One step; returns the mean loss of an answer's token, in nats."""
        state, settings = self.state, self.settings
        done = state.step / settings.steps
        rate = settings.lr * min(1.0, (state.step + 1) / WARM_UP)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (1.02 - done) / FALL)
        rows, total = self.next_batch(), 0.0
        tokens = sum(len(row.targets) for row in rows)
        with attending(state.student):
            for row in rows:
                loss = loss_of(state.student, row) / tokens
                loss.backward()
                total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(lora.lora_weights(state.student).values(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return total

    def finish(self, watch: Callable[[], dict[str, float]]) -> None:
        """Takes all steps; what `watch` measures is written to OUT/curve.jsonl every tenth."""
        state, losses = self.state, []
        while state.step < self.settings.steps:
            began = time.monotonic()
            losses.append(self.step())
            state.seconds += time.monotonic() - began
            if state.step % 10 == 0:
                left = state.seconds / state.step * (self.settings.steps - state.step) / 60
                say(
                    f"step {state.step}/{self.settings.steps}, loss "
                    f"{sum(losses[-30:]) / len(losses[-30:]):.3f}, {self.asked} questions, "
                    f"{self.asked / state.seconds:.2f} a second, {left:.0f} min left"
                )
            tenth = max(1, self.settings.steps // 10)
            if state.step % tenth == 0 or state.step == self.settings.steps:
                found = {"step": state.step, "questions": self.asked, "seconds": state.seconds}
                with (self.out / "curve.jsonl").open("a") as out:
                    out.write(json.dumps(found | watch()) + "\n")
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self.save()
        self.save()

    def save(self) -> None:
        """Writes the checkpoint, and how many lessons it has used."""
        used = {str(self.state.step): (self.used, self.asked)}
        file = self.out / "used.json"
        before = json.loads(file.read_text()) if file.is_file() else {}
        write_whole(file, json.dumps(before | used).encode())
        write_whole(self.out / CHECKPOINT, self.state.pack(self.run))
        self.saved = time.monotonic()


def another_run(checkpoint: Path) -> UsageError:
    """The error for a checkpoint that a run cannot go on from."""
    return UsageError(
        f"{checkpoint} is of another run: other settings, lessons or weights",
        remedy="another --out, or remove that file",
    )


def digest_of_lessons(lessons: TrainingSet) -> str:
    """Hex sha256 of what is taught: data that changed make another run."""
    return digest_of((*lessons.pieces, *lessons.idle))


def watched(lm: LM, data: Path) -> list[tuple[list[int], str, list[str]]]:
    """Chunks of dev contexts of the choosing half, each with a question and its answers."""
    rows = [r for r in questions(data, "squad11_train_part", "dev") if choosing(r["context"])]
    found = []
    for row in sorted(rows, key=lambda row: hash01(row["question"], "watch")):
        tokens, answer = lm.encode(row["context"]), row["answers"][0]
        at = len(lm.encode(row["context"].partition(answer)[0]))
        start = max(0, min(at - 64, len(tokens) - 128))
        if answer in lm.decode(tokens[start : start + 128]):
            found.append((tokens[start : start + 128], row["question"], row["answers"]))
    return found[:DEV]


def f1_of(
    lm: LM, words: QAPrompt, dev: Sequence[tuple[list[int], str, list[str]]],
    contents: Sequence[Content] | None = None,
) -> dict[str, float]:  # fmt: skip
    """F1 and exact match over `dev`, in per cent, its chunks read as `contents` if told."""
    read_as = contents or [chunk for chunk, _, _ in dev]
    prompts = [
        inject(lm, words, [content], lm.encode(question))
        for content, (_, question, _) in zip(read_as, dev, strict=True)
    ]
    order = sorted(range(len(dev)), key=lambda number: len(prompts[number]))
    scores = []
    for some in (order[start : start + 16] for start in range(0, len(order), 16)):
        for number, said in zip(
            some, answer_batch(lm, words, [prompts[n] for n in some], MAX_ANSWER), strict=True
        ):
            golds = answerable(dev[number][2])
            scores.append(score(lm.decode(said.tokens).strip(), golds))
    return {
        "f1": 100 * sum(one.f1 for one in scores) / len(scores),
        "em": 100 * sum(one.em for one in scores) / len(scores),
    }


def lessons_of(lm: LM, data: Path, more: Sequence[Path], seed: int) -> TrainingSet:
    """All lessons; nothing of `more`, of a dev or of a test split is in them."""
    forbidden = measured_on(data, more)
    prose = (row["text"] for path in ("wikinews_en", "wikipedia_en-1") for row in _some(data, path))
    writer = Writer(random.Random(seed), facts.words(list(prose)))
    pieces = all_pieces(data, forbidden, writer, lambda text: len(lm.encode(text)), seed)
    say(f"{len(pieces)} chunks, {sum(len(one.asked) for one in pieces)} questions")
    idle = idle_questions(data, forbidden)
    return TrainingSet(
        pieces=pieces, near=neighbours(pieces, load_embedder("mini")), idle=idle, seed=seed
    )


def _some(data: Path, source: str) -> list[dict]:
    return [
        row for _, row in zip(range(300), read(data / "text" / f"{source}.jsonl.xz"), strict=False)
    ]


def main() -> None:
    """Trains, measures, writes the adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--passages", choices=("together", "apart"), default="",
        help="how several are to be read, as benchmarks.reader measured it (the model's own way)",
    )  # fmt: skip
    parser.add_argument(
        "--without", type=Path, nargs="*", default=[], help="texts that must not be trained on"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    lm = load(config.Model(id=args.model, dtype="bfloat16", threads=args.threads))
    settings = config.Adapt(
        kind="text", steps=args.steps, rank=args.rank, lr=args.lr, seed=args.seed
    )
    state = init_state(lm, settings)
    lora.fuse_lora(state.student)
    lessons = lessons_of(lm, args.data, args.without, args.seed)
    of = (replace(settings, steps=1), lm.identity, qa_prompt(lm).digest)
    run = repr((*of, digest_of_lessons(lessons)))
    dev, words = watched(lm, args.data), qa_prompt(lm)
    training = Training(
        lm=lm, lessons=lessons, state=state, settings=settings, run=run, out=args.out,
        passages=args.passages,
    )  # fmt: skip
    if training.state.step == 0:
        before = f1_of(lm, words, dev)
        (args.out / "curve.jsonl").write_text(json.dumps({"step": 0} | before) + "\n")
    training.finish(lambda: f1_of(state.student, words, dev))
    write(training, args.out / "adapter")


def write(training: Training, folder: Path) -> None:
    """The adapter as it ships, but for its card."""
    lm, state = training.lm, training.state
    lora.set_weights(state.student, lora.half_precision_weights(state.student))
    curve = [json.loads(line) for line in (training.out / "curve.jsonl").read_text().splitlines()]
    bond = AdapterManifest(
        kind="text", model=f"{lm.identity.id} {lm.identity.revision}".strip(),
        weights_sha256=lm.identity.weights_sha256, tokenizer_sha256=lm.identity.tokenizer_sha256,
        template_sha256="", adapter_sha256="", steps=state.step,
        trained_on={"questions": training.asked, "lessons": training.used,
                    "chunks": len(training.lessons.pieces), "seed": training.settings.seed},
        dev={"text": curve[0]["f1"] / 100, "after": curve[-1]["f1"] / 100},
        frame_sha256=training.words.digest, passages=training.passages,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in lora.adapter_files(state.student, bond).items():
        write_whole(folder / name, content)


if __name__ == "__main__":
    guarded(main)
