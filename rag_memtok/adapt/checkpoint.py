"""A training under way, and the file from which it goes on.

The training is the LoRA, its optimiser, the best so far.
"""

import json
import math
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
from rag_memtok.model.lm import LM

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names


@dataclass(slots=True, eq=False)
class State:
    """How far a run is: the LoRA being trained with its optimiser, and the best so far."""

    student: LM
    optimiser: torch.optim.AdamW
    best: dict[str, Tensor]
    best_loss: float = math.inf
    first_loss: float = math.nan
    step: int = 0
    seconds: float = 0.0
    waited: int = 0

    def note(self, loss: float) -> None:
        """Keeps the weights if `loss` (on dev) is the lowest so far.

        Raises:
            UsageError: it is not a number.
        """
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss is {loss} after {self.step} steps",
                remedy="a smaller --lr, or --dtype float32",
            )
        self.first_loss = loss if self.step == 0 else self.first_loss
        self.waited = 0 if loss < self.best_loss else self.waited + 1
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {
                name: one.detach().clone() for name, one in lora.lora_weights(self.student).items()
            }

    def packed(self, run: str) -> bytes:
        """The checkpoint's tensors and metadata, marked with the run's fingerprint."""
        counts = {
            "step": self.step,
            "seconds": self.seconds,
            "waited": self.waited,
            "best": self.best_loss,
            "first": self.first_loss,
        }
        own = lora.lora_weights(self.student)
        tensors = {f"now {name}": one.detach() for name, one in own.items()} | {
            f"best {name}": one for name, one in self.best.items()
        }
        tensors |= moments_of(self.optimiser, own)
        return save(
            {name: one.contiguous() for name, one in tensors.items()},
            {"run": run, "counts": json.dumps(counts)},
        )

    def resume(self, file: Path, run: str) -> bool:
        """Restores the state from a checkpoint of the same run; False if there is none."""
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata()
                if metadata["run"] != run:
                    return False
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        except (OSError, SafetensorError, KeyError, TypeError):
            return False
        counts, own = json.loads(metadata["counts"]), lora.lora_weights(self.student)
        lora.set_weights(self.student, {name: tensors[f"now {name}"] for name in own})
        self.best = {name: tensors[f"best {name}"].to(one.device) for name, one in own.items()}
        self.step, self.seconds, self.waited = counts["step"], counts["seconds"], counts["waited"]
        self.best_loss, self.first_loss = counts["best"], counts["first"]
        set_moments(self.optimiser, own, tensors, self.step)
        return True


def moments_of(optimiser: torch.optim.AdamW, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What AdamW remembers of each parameter, by "MOMENT NAME"; zeros before its first step."""
    return {
        f"{moment} {name}": optimiser.state[one].get(moment, torch.zeros_like(one))
        for name, one in named.items()
        for moment in MOMENTS
    }


def set_moments(
    optimiser: torch.optim.AdamW,
    named: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    step: int,
) -> None:
    """Undoes `moments_of`, after so many steps."""
    for name, one in named.items():
        moments = {moment: kept[f"{moment} {name}"].to(one.device) for moment in MOMENTS}
        optimiser.state[one] = {"step": torch.tensor(float(step)), **moments}


def state_of(lm: LM, settings: Adapt) -> State:
    """The training state before the first step."""
    student = lora.add_lora(lm, settings.rank, settings.seed)
    own = lora.lora_weights(student)
    optimiser = torch.optim.AdamW(own.values(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    return State(student, optimiser, {name: one.detach().clone() for name, one in own.items()})
