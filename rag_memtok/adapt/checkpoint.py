"""The state of a training: LoRA, optimizer, best weights so far; and the file it resumes from."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rag_memtok.config import Adapt
from rag_memtok.errors import UsageError
from rag_memtok.model import lora
from rag_memtok.model.adapter_manifest import read_manifest
from rag_memtok.model.lm import LM
from rag_memtok.model.plain import require_new
from rag_memtok.store.files import ADAPTER_WORK, EARLIER_WORK, WORK_FILE, write_whole

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names


@dataclass(slots=True, eq=False, kw_only=True)
class State:
    """Training state: the LM with its LoRA, the optimizer, and the best weights so far.

    `best` are the weights of the lowest loss on dev, `best_loss`; `first_loss` is that before the
    first step. `seconds` are those of all its runs; `noted` is the step of the last measurement,
    and `waited` counts those since the best.
    """

    student: LM
    optimizer: torch.optim.AdamW
    best: dict[str, Tensor]
    best_loss: float = math.inf
    first_loss: float = math.nan
    step: int = 0
    seconds: float = 0.0
    noted: int = -1
    waited: int = 0

    def note(self, loss: float) -> None:
        """Keeps the weights if `loss` (on dev, in nats) is the lowest so far.

        Raises:
            UsageError: it is not a number.
        """
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss is {loss} after {self.step} steps",
                remedy="a smaller adapt.lr: RAG_MEMTOK_ADAPT_LR",
            )
        self.noted = self.step
        self.first_loss = loss if self.step == 0 else self.first_loss
        self.waited = 0 if loss < self.best_loss else self.waited + 1
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = copy_weights(self.student)

    def pack(self, run: str) -> bytes:
        """The checkpoint as safetensors, marked with the digest of its `run`."""
        counts = {
            "step": self.step,
            "seconds": self.seconds,
            "noted": self.noted,
            "waited": self.waited,
            "best": self.best_loss,
            "first": self.first_loss,
        }
        weights = lora.lora_weights(self.student)
        tensors = {f"now {name}": weight.detach() for name, weight in weights.items()}
        tensors |= {f"best {name}": weight for name, weight in self.best.items()}
        tensors |= get_moments(self.optimizer, weights)
        return save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            {"run": run, "counts": json.dumps(counts)},
        )

    def resume(self, file: Path, run: str) -> bool:
        """Restores the state from a checkpoint of the same run; False if there is none."""
        try:
            with safe_open(file, framework="pt") as checkpoint:
                metadata = checkpoint.metadata()
                if metadata["run"] != run:
                    return False
                tensors = {name: checkpoint.get_tensor(name) for name in checkpoint.keys()}
        except (OSError, SafetensorError, KeyError, TypeError):
            return False
        counts, weights = json.loads(metadata["counts"]), lora.lora_weights(self.student)
        lora.set_weights(self.student, {name: tensors[f"now {name}"] for name in weights})
        self.best = {
            name: tensors[f"best {name}"].to(weight.device) for name, weight in weights.items()
        }
        self.step, self.seconds, self.waited = counts["step"], counts["seconds"], counts["waited"]
        self.noted = counts.get("noted", -1)  # earlier versions did not keep it
        self.best_loss, self.first_loss = counts["best"], counts["first"]
        set_moments(self.optimizer, weights, tensors, self.step)
        return True


def copy_weights(student: LM) -> dict[str, Tensor]:
    """A copy of the LoRA's weights, by name."""
    return {name: weight.detach().clone() for name, weight in lora.lora_weights(student).items()}


def get_moments(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """AdamW's moments of each parameter, by "MOMENT NAME"; zeros before its first step."""
    return {
        f"{moment} {name}": optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
        for name, parameter in parameters.items()
        for moment in MOMENTS
    }


def set_moments(
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    step: int,
) -> None:
    """Gives AdamW the moments that `get_moments` returned after `step` steps."""
    for name, parameter in parameters.items():
        moments = {moment: tensors[f"{moment} {name}"].to(parameter.device) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}


def init_state(lm: LM, settings: Adapt) -> State:
    """The training state before the first step."""
    student = lora.add_lora(lm, settings.rank, settings.seed)
    optimizer = torch.optim.AdamW(
        lora.lora_weights(student).values(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0
    )
    return State(student=student, optimizer=optimizer, best=copy_weights(student))


def keep(file: Path, content: bytes) -> None:
    """Writes what an unfinished training goes on from, unless its folder is gone.

    It goes when chunks are removed, whose text it holds (`store.files.outdate_adapter`); it is not
    brought back.
    """
    with contextlib.suppress(FileNotFoundError):
        write_whole(file, content)


def require_ours(folder: Path) -> None:
    """Refuses a folder that has anything but an adapter, or an unfinished training of one.

    Raises:
        UsageError: it has.
        InputRefused: what should be an adapter's manifest is none.
    """
    work, earlier = folder / ADAPTER_WORK, folder / EARLIER_WORK
    if not work.is_dir() and not _is_work(earlier) and read_manifest(folder) is None:
        require_new(folder)


def open_work(folder: Path) -> Path:
    """The folder of a training's work in the adapter's, made if it is not there.

    What an earlier version left is gone on from: it gets the new name.
    """
    work, earlier = folder / ADAPTER_WORK, folder / EARLIER_WORK
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_work(earlier) and not work.exists():
        earlier.rename(work)
    work.mkdir(mode=0o700, exist_ok=True)
    return work


def _is_work(folder: Path) -> bool:
    """Whether a folder has what a training keeps, and nothing else."""
    names = [] if folder.is_symlink() or not folder.is_dir() else os.listdir(folder)
    taught = any(name.startswith("taught-") for name in names)
    return taught and all(map(WORK_FILE.fullmatch, names))
