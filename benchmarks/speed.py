"""How fast a step of the writer is.

It gives milliseconds of a row-step, and the share of the rate at which large products run here.

    python -m benchmarks.speed --threads 1        the embedded model, drafts and batches in turn
    python -m benchmarks.speed --shape llama-3.2-1b --drafts bfloat16
                                                  random weights of that shape: speed does not ask
                                                  for others
    python -m benchmarks.speed --shape llama-3.1-8b --drafts bfloat16 --batches 8,32,128

Every cell is a batch of the writer with nothing done (a row never ends); cells take turns, --rounds
times, --steps steps at a time, and the fastest turn counts. The rate of products is measured in the
same dtype between the turns, and the fastest counts, too.

Cost on two cores, with a model of 10M parameters: about a minute, and one more for each time torch
compiles.
"""

import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from benchmarks.measure import (
    guarded,
    load_model,
    machine,
    matmul_rate,
    numbers,
    peak_bytes,
    put_table,
    say,
    step_flops,
)
from rag_memtok.memory.batch import make_task
from rag_memtok.memory.recipes import RECIPES
from rag_memtok.memory.step import Batch, start_row
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import copy_in_dtype, low_precision_copy
from rag_memtok.model.prompts import template_named

SHAPES = {  # width, layers, heads, heads of keys, inner width, words
    "llama-3.2-1b": (2048, 16, 32, 8, 8192, 128256),
    "llama-3.1-8b": (4096, 32, 32, 8, 14336, 128256),
    "toy": (64, 2, 4, 2, 128, 8192),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "compiled": torch.bfloat16}
NEVER = 10**9  # steps: a row that never ends


@dataclass(slots=True, eq=False)
class Cell:
    """A draft and a number of rows; `best`: seconds of its fastest row-step so far."""

    draft: str
    rows: int
    batch: Batch
    best: float = float("inf")

    def turn(self, steps: int) -> None:
        """Takes `steps`, after one that does not count."""
        self.batch.step()
        _finished(self.batch.lm)
        began = time.perf_counter()
        for _ in range(steps):
            self.batch.step()
        _finished(self.batch.lm)
        self.best = min(self.best, (time.perf_counter() - began) / steps / self.rows)


def _finished(lm: LM) -> None:
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)


def of_shape(lm: LM, shape: str) -> LM:
    """An LM with random weights of that shape in bfloat16, and the words of `lm`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, keys, inner, words = SHAPES[shape]
    settings = LlamaConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=keys, intermediate_size=inner, tie_word_embeddings=True,
        max_position_embeddings=4096, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device(lm.device):
        model = LlamaForCausalLM(settings).to(torch.bfloat16)
    return replace(lm, model=model.eval().requires_grad_(False))


def computing(lm: LM, draft: str) -> LM:
    """`lm` as the writer computes with it: as it is where it has that dtype already."""
    if draft == "compiled":
        return low_precision_copy(lm, draft)
    return lm if lm.table.dtype == DTYPES[draft] else copy_in_dtype(lm, DTYPES[draft])


def cells(lm: LM, arguments: Namespace) -> list[Cell]:
    """A cell for each draft and each number of rows."""
    template, recipe = template_named("bare", lm), replace(RECIPES["margin"], margin=float("inf"))
    lms = {draft: computing(lm, draft) for draft in arguments.drafts}
    generator = torch.Generator().manual_seed(0)
    found = []
    for draft, rows in product(lms, arguments.batches):
        texts = torch.randint(100, 8000, (rows, arguments.length), generator=generator).tolist()
        batch = Batch(
            lm=lms[draft], template=template, recipe=recipe, steps=NEVER, seconds=0.0, seed=0
        )
        batch.rows = [
            start_row(
                lm, recipe, make_task(str(index), tuple(text), arguments.tokens_per_vector), 0
            )
            for index, text in enumerate(texts)
        ]
        found.append(Cell(draft, rows, batch))
    return found


def table(found: Sequence[Cell], rates: dict[str, float]) -> list[list[str]]:
    """A line for each cell."""
    lines = []
    for cell in found:
        row = cell.batch.rows[0]
        positions = cell.batch.template.overhead - 1 + row.task.vectors + len(row.task.tokens)
        flops = (
            step_flops(cell.batch.lm, positions, len(row.task.tokens) + 1, vocabulary_passes=1)
            / cell.best
        )
        lines.append(
            [
                cell.draft,
                f"{cell.rows}",
                f"{1000 * cell.best:.2f}",
                f"{1 / cell.best:.1f}",
                f"{flops / 1e9:.0f}",
                f"{100 * flops / rates[cell.draft]:.0f}",
            ]
        )
    return lines


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini, a folder or a hub id")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights instead")
    parser.add_argument(
        "--drafts",
        type=lambda text: tuple(text.split(",")),
        default=tuple(DTYPES),
        help="float32,bfloat16,compiled",
    )
    parser.add_argument(
        "--batches", type=numbers, default=(1, 4, 16, 32), help="rows together (1,4,16,32)"
    )
    parser.add_argument("--length", type=int, default=128, help="tokens of a chunk (128)")
    parser.add_argument("--tokens-per-vector", type=int, default=8, metavar="N")
    parser.add_argument("--steps", type=int, default=4, help="of a turn (4)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each cell (5)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (0: torch's own choice)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measures every cell in turn and prints the table."""
    arguments = parsed(words)
    lm = load_model(arguments.model, arguments)
    lm = of_shape(lm, arguments.shape) if arguments.shape else lm
    found, rates = cells(lm, arguments), dict.fromkeys(arguments.drafts, 0.0)
    for number in range(arguments.rounds):
        for cell in found:
            cell.turn(arguments.steps)
        rates = {
            draft: max(rate, matmul_rate(lm.device, DTYPES[draft])) for draft, rate in rates.items()
        }
        say(f"round {number + 1} of {arguments.rounds}")
    say(
        f"{machine(lm)}; {lm.parameters / 1e6:.1f}M parameters; peak "
        f"{peak_bytes(lm.device) / 2**20:.0f} MiB"
    )
    put_table(
        f"A step over {arguments.length} tokens in "
        f"{arguments.length // arguments.tokens_per_vector} vectors; products: "
        + ", ".join(f"{draft} {rate / 1e9:.0f} GFLOP/s" for draft, rate in rates.items()),
        (
            (
                "draft",
                "rows",
                "ms a row-step",
                "row-steps a second",
                "GFLOP/s",
                "% of the products' rate",
            ),
            table(found, rates),
        ),
    )


if __name__ == "__main__":
    guarded(main)
