"""Trains by wall clock on one GPU or on CPU processes.

Goes on from the newest checkpoint: `python -m training.train PACKED RUN`.

Two stages: `pretrain` from nothing (prose, copy and look-up tasks, later questions), `read` from
the pre-trained weights (mostly questions). On two cores: `OMP_NUM_THREADS=1 torchrun
--nproc-per-node 2 -m training.train ...`. Every few minutes RUN/STAGE holds bf16 weights and the
state; a killed run starts again with 50 steps of warm-up. RUN/STAGE.jsonl is the curve.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from training import model as models
from training.batches import Batch, Mix, Rows, batches
from training.frame import BOS
from training.optimise import Optimizer, Schedule


@dataclass(frozen=True)
class Stage:
    """A training stage: its mixes, each from a share of its time on, and its schedule."""

    mixes: tuple[tuple[float, Mix], ...]
    schedule: Schedule
    # this share of the time with rows of half the length, twice as many: attention is a third of
    # the cost on CPU
    short: float = 0.0


STAGES = {
    "pretrain": Stage(
        (
            (0.0, Mix(prose=0.6, copy=0.4, reading=0.0, echo=0.4)),
            (0.55, Mix(prose=0.45, copy=0.2, reading=0.35)),
        ),
        Schedule(stable=0.7, last=0.35),
        short=0.55,
    ),
    "read": Stage(
        (
            (0.0, Mix(prose=0.4, copy=0.25, reading=0.35, others=0.4, first=4.0)),
            (0.55, Mix(prose=0.15, copy=0.2, reading=0.65, others=0.15, first=4.0)),
        ),
        Schedule(muon=0.015, adam=2.2e-3, stable=0.55, last=0.02),
        short=0.4,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one run of one stage."""

    packed: Path
    folder: Path
    stage: str
    shape: str
    device: str
    minutes: float
    rows: int
    length: int
    accumulate: int
    workers: int
    compile: bool
    save_minutes: float
    max_steps: int
    seed: int
    until: str | None
    start: Path | None


def arguments() -> Run:
    """Parses the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("packed", type=Path, help="the folder that training.prepare wrote")
    p.add_argument("folder", type=Path, help="the folder for checkpoints and curves")
    p.add_argument("--stage", choices=sorted(STAGES), default="pretrain")
    p.add_argument("--shape", choices=sorted(models.SHAPES), default="mini-1")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument(
        "--minutes", type=float, default=60, help="of this stage in all, over every restart"
    )
    p.add_argument("--rows", type=int, default=4, help="in a micro-batch")
    p.add_argument("--length", type=int, default=512, help="tokens in a row")
    p.add_argument("--accumulate", type=int, default=2, help="micro-batches in a step")
    p.add_argument("--workers", type=int, default=0, help="processes that make rows")
    p.add_argument("--compile", action="store_true", help="torch.compile the layers")
    p.add_argument("--save-minutes", type=float, default=3)
    p.add_argument(
        "--max-steps", type=int, default=0, help="stop after so many steps (0: by the clock alone)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--until", help="HH:MM of today at which the stage ends, instead of --minutes")
    p.add_argument(
        "--weights",
        dest="start",
        type=Path,
        help="weights to begin the stage with, if it has no checkpoint of its own",
    )
    return Run(**vars(p.parse_args()))


def begin(run: Run) -> tuple[nn.Module, models.State]:
    """The stage's newest checkpoint, or the weights to start from, or new ones."""
    if own := models.find(run.folder / run.stage):
        return models.load(own)
    if run.start:
        return models.load(run.start)[0], models.State(run.stage)
    tokenizer = Tokenizer.from_file(str(run.packed / "tokenizer.json"))
    shape = replace(models.SHAPES[run.shape], vocabulary=tokenizer.get_vocab_size())
    return models.build(shape, tokenizer, run.seed), models.State(run.stage)


def loss_of(model: nn.Module, trunk: nn.Module, batch: Batch, device: str) -> Tensor:
    """Weighted mean cross-entropy in nats; logits are computed for what is scored alone."""
    scored = batch.scored
    with torch.autocast(device, dtype=torch.bfloat16):
        hidden = trunk(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[scored.to(device)])
    nats = F.cross_entropy(logits.float(), batch.targets[scored].to(device), reduction="none")
    weights = batch.weights[scored].to(device)
    return (nats * weights).sum() / weights.sum()


@torch.no_grad()
def validate(model: nn.Module, run: Run, windows: int = 16) -> float:
    """Nats a token on windows of the held-out documents."""
    stream = np.memmap(run.packed / "val.bin", dtype=np.uint16, mode="r")
    starts = np.linspace(0, len(stream) - run.length - 1, windows).astype(int)
    losses = []
    for start in starts:
        ids = torch.from_numpy(stream[start : start + run.length + 1].astype(np.int64))[None]
        ids[:, 0] = BOS  # as in training
        batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(1, run.length))
        losses.append(loss_of(model, model.model, batch, run.device).item())
    return sum(losses) / len(losses)


def minutes_until(clock: str) -> float:
    """Minutes from now to HH:MM of today."""
    now = time.localtime()
    hours, minutes = map(int, clock.split(":"))
    return (hours - now.tm_hour) * 60 + minutes - now.tm_min - now.tm_sec / 60


class Trainer:
    """The training loop of one process of a run."""

    def __init__(self, run: Run, rank: int, world: int) -> None:
        """Loads or builds the model and its optimizer."""
        self.run, self.rank, self.world = run, rank, world
        self.stage = STAGES[run.stage]
        model, self.state = begin(run)
        self.model = model.to(run.device).train()
        self.trunk = (
            torch.compile(self.model.model, dynamic=False) if run.compile else self.model.model
        )
        self.optimizer = Optimizer(self.model, self.stage.schedule)
        self.born, self.before, self.saved, self.steps_here = (
            time.time(),
            self.state,
            time.time(),
            0,
        )
        self.streams: dict[tuple, Iterator[Batch]] = {}
        self.minutes = (
            self.before.seconds / 60 + minutes_until(run.until) if run.until else run.minutes
        )

    def done(self) -> float:
        """Share of the stage's time that is gone, the same in every process."""
        share = torch.tensor([(self.before.seconds + time.time() - self.born) / 60 / self.minutes])
        if self.world > 1:
            dist.broadcast(share, 0)
        return share.item()

    def next_batch(self, done: float) -> Batch:
        """A batch of the mix that is due."""
        mix = [mix for begin, mix in self.stage.mixes if done >= begin][-1]
        half = 2 if done < self.stage.short else 1
        if (mix, half) not in self.streams:
            self.streams.clear()
            seed = self.run.seed + 7919 * (self.state.step + 1) + self.rank
            rows = Rows(self.run.packed, mix, self.run.length // half, seed)
            self.streams[mix, half] = batches(rows, self.run.rows * half, self.run.workers)
        return next(self.streams[mix, half])

    def step(self, done: float) -> float:
        """One step; returns the loss of its last micro-batch."""
        for _ in range(self.run.accumulate):
            batch = self.next_batch(done)
            loss = loss_of(self.model, self.trunk, batch, self.run.device)
            (loss / self.run.accumulate).backward()
        self.optimizer.step(self.steps_here, done)
        self.steps_here += 1
        tokens = self.run.rows * self.run.length * self.run.accumulate * self.world
        seconds = self.before.seconds + time.time() - self.born
        self.state = models.State(
            self.run.stage, self.state.step + 1, self.state.tokens + tokens, seconds
        )
        return loss.item() if self.state.step % 10 == 0 else 0.0

    def note(self, **values: float) -> None:
        """Appends a line to the curve and prints it."""
        here = (self.state.tokens - self.before.tokens) / (time.time() - self.born)
        line = (
            asdict(self.state)
            | {"seconds": round(self.state.seconds), "tokens_per_s": round(here)}
            | values
        )
        with (self.run.folder / f"{self.run.stage}.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def save(self) -> None:
        """Validates and writes a checkpoint."""
        self.model.eval()
        self.note(validation=round(validate(self.model, self.run), 4))
        self.model.train()
        models.save(self.model, self.state, self.run.folder / self.run.stage)
        self.saved = time.time()

    def go(self) -> None:
        """Trains until the time or the steps are used up."""
        while (done := self.done()) < 1 and not (
            self.run.max_steps and self.steps_here >= self.run.max_steps
        ):
            loss = self.step(done)
            if self.rank == 0 and loss:
                self.note(loss=round(loss, 4), done=round(done, 3))
            if self.rank == 0 and time.time() - self.saved > 60 * self.run.save_minutes:
                self.save()
        if self.rank == 0:
            self.save()


def main() -> None:
    """Runs one process of the stage."""
    run = arguments()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if run.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    else:
        torch.set_float32_matmul_precision("high")
    if world > 1:
        dist.init_process_group("gloo")
    run.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    trainer = Trainer(run, dist.get_rank() if world > 1 else 0, world)
    if trainer.rank == 0:
        print(
            f"{run.stage}: {models.parameters(trainer.model) / 1e6:.2f}M parameters, from step "
            f"{trainer.state.step}",
            flush=True,
        )
    trainer.go()
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
