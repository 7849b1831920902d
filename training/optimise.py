"""Muon for the layers' matrices, AdamW for the rest.

Both are spread over data-parallel processes; the schedule is by wall clock.

Muon grows every direction of a matrix alike, and attention whose queries and keys have grown so is
sharp for vectors that are no words: nothing can be written into its input by descent. So their size
is bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warm-up in steps, then stable, then linear decay.

    `done` is the share of the stage's time that is gone.
    """

    muon: float = 0.02
    adam: float = 3e-3
    warmup: int = 50
    stable: float = 0.6
    last: float = 0.05
    bound: float = 0.055  # root mean square of a query or key matrix, at most

    def factor(self, steps_here: int, done: float) -> float:
        """The factor of the learning rates.

        `steps_here` counts from the last (re)start.
        """
        decay = (
            1.0
            if done < self.stable
            else self.last + (1 - self.last) * (1 - min(1.0, done)) / (1 - self.stable)
        )
        return decay * min(1.0, (steps_here + 1) / self.warmup)


class Optimizer:
    """Muon and AdamW in processes: each steps its own part of the matrices with Muon.

    It hands the result to the others; AdamW runs everywhere alike.

    Source: Jordan et al. 2024, Muon.
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        """Splits the parameters by shape."""
        self.rank, self.world = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        self.schedule = schedule
        named = dict(model.model.layers.named_parameters())
        self.matrices = [p for p in named.values() if p.ndim == 2]
        self.sharp = [
            p for name, p in named.items() if name.endswith(("q_proj.weight", "k_proj.weight"))
        ]
        known = set(map(id, self.matrices))
        self.others = [p for p in model.parameters() if id(p) not in known]
        mine = self.matrices[self.rank :: self.world]
        self.muon = torch.optim.Muon(
            mine, lr=schedule.muon, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"
        )
        self.adam = torch.optim.AdamW(
            self.others, lr=schedule.adam, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, steps_here: int, done: float) -> None:
        """Averages the gradients over the processes, steps, and clears them."""
        factor = self.schedule.factor(steps_here, done)
        for optimizer, rate in ((self.muon, self.schedule.muon), (self.adam, self.schedule.adam)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        share(
            [p.grad for p in self.matrices + self.others],
            self.world,
            lambda flat: dist.all_reduce(flat),
            1 / self.world,
        )
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        self.muon.step()
        self.adam.step()
        for owner in range(self.world if self.world > 1 else 0):
            share(
                [p.data for p in self.matrices[owner :: self.world]],
                self.world,
                lambda flat, o=owner: dist.broadcast(flat, o),
                1.0,
            )
        for p in self.sharp:
            p.data.mul_((self.schedule.bound / p.data.square().mean().sqrt()).clamp(max=1.0))
        for p in self.matrices + self.others:
            p.grad = None


def share(
    tensors: list[Tensor], world: int, operation: Callable[[Tensor], object], scale: float
) -> None:
    """Runs one collective over all tensors at once and writes the result back into them."""
    if world == 1:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    operation(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor).mul_(scale))
