"""What the measurements of this folder share.

That is chunks to write, work that survives a kill, intervals, and what a step costs.

Imported by the scripts beside it, each of which says how it is run; by itself it does nothing.
"""

import argparse
import hashlib
import json
import math
import platform
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rag_memtok import config
from rag_memtok.cli.console import duration, finite, put, put_error, say
from rag_memtok.cli.tables import put_markdown
from rag_memtok.config import Memorize
from rag_memtok.datatypes import sha256_of_tokens
from rag_memtok.errors import RagMemtokError, UsageError
from rag_memtok.evaluation.baselines import nats
from rag_memtok.memory.calibrate import find_known
from rag_memtok.memory.optimize import Step
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.resources import GUESSED_TOKENS_PER_VECTOR

DOCS = Path(__file__).parent.parent / "data" / "docs"
KINDS = {
    "prose": (
        "library/story-lamp.md", "library/diary-karsk.txt", "library/lecture-seeds.md",
        "meeting-2026-03-12.md", "handbook.md", "library/faq.md", "library/incident-2026-02-17.md",
        "letter-oskelund.txt", "library/contract-brackwater.txt", "library/glossary.md",
        "library/policy-travel.md", "library/sievework-changelog.md", "release-notes.md",
    ),
    "numbers": (),
    "code": ("library/traylog.py", "testbench.toml"),
    "spanish": ("library/carta-jacinta.txt", "receta-empanada.md"),
}  # fmt: skip
HELD_OUT = 0.25  # of each text, its beginning, is for tuning and never measured
DRAWS = 1000
MINUTE = 60.0


# --- chunks


@dataclass(frozen=True, slots=True)
class Sample:
    """A chunk to write, and what kind of text it is from."""

    kind: str
    tokens: tuple[int, ...]

    @property
    def key(self) -> str:
        """Hex sha256 of the tokens: what tells a chunk apart, and seeds its random start."""
        return sha256_of_tokens(self.tokens)


def number_table(rows: int, seed: int = 0) -> str:
    """A table of measurements, the same on every machine.

    Nothing in it follows from anything else.
    """
    draw = random.Random(seed).random
    lines = ["station,day,celsius,millibar,litres,serial"]
    lines += [
        f"N{int(draw() * 90) + 10},{int(draw() * 365) + 1},{draw() * 60 - 20:.1f},"
        f"{draw() * 80 + 960:.2f},{int(draw() * 9000)},"
        f"{int(draw() * 1e6):06d}"
        for _ in range(rows)
    ]
    return "\n".join(lines) + "\n"


def texts_of(folder: Path | None) -> dict[str, str]:
    """A text of each kind: those of the repository, or every file of `folder`.

    Those of the repository are written for it and trained on by nobody.
    """
    if folder is None:
        found = {
            kind: "\n".join((DOCS / name).read_text(encoding="utf-8") for name in names)
            for kind, names in KINDS.items()
        }
        return found | {"numbers": number_table(400)}
    found = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    if not found:
        raise UsageError(f"{folder} holds no files", remedy="one text file for each kind of text")
    return found


def samples(
    lm: LM,
    texts: dict[str, str],
    lengths: Sequence[int],
    count: int,
    *,
    held_out: bool = False,
    seed: int = 0,
) -> list[Sample]:
    """`count` chunks of exactly those `lengths` (tokens).

    Kinds and lengths take turns, so that the first few are a fair choice too.

    Chunks of one kind and length stand evenly over its text, moved by `seed`; they overlap where
    the text is short. Held-out ones are from the first quarter of each text and share nothing with
    the others.
    """
    rounds = -(-count // (len(lengths) * len(texts)))
    pools = {}
    for kind, text in texts.items():
        tokens = lm.encode(text)
        edge = round(HELD_OUT * len(tokens))
        pools[kind] = tokens[:edge] if held_out else tokens[edge:]
    cut = {
        (kind, length): iter(windows(pools[kind], length, rounds, f"{seed} {kind} {length}"))
        for length in lengths
        for kind in pools
    }
    kinds = list(pools)
    cells = [
        (kinds[(column + turn) % len(kinds)], lengths[column])
        for turn in range(len(kinds))
        for column in range(len(lengths))
    ]
    return [Sample(kind, next(cut[kind, length])) for kind, length in (cells * rounds)[:count]]


def windows(tokens: Sequence[int], length: int, count: int, salt: str) -> list[tuple[int, ...]]:
    """`count` stretches of `length` tokens, evenly over `tokens`.

    Only `salt` decides their order and shift.

    Raises:
        UsageError: the text is shorter than `length`.
    """
    if len(tokens) < length:
        raise UsageError(
            f"a text of {len(tokens)} tokens has no stretch of {length}",
            remedy="shorter --lengths, or --texts with longer files",
        )
    draw = random.Random(int(hashlib.sha256(salt.encode()).hexdigest()[:8], 16)).random
    shift = draw()
    starts = [int((index + shift) / count * (len(tokens) - length + 1)) for index in range(count)]
    starts = [start for _, start in sorted((draw(), start) for start in starts)]
    return [tuple(tokens[start : start + length]) for start in starts]


def code_length(lm: LM, tokens: Sequence[int], *, end: bool = True) -> float:
    """Bits in which the LM alone would code `tokens` and the end after them; without `end` them.

    Cost: one forward pass.
    """
    coded = [*tokens, lm.eos] if end else [*tokens]
    return float(nats(lm, coded).sum()) / float(np.log(2))


def pin_price(lm: LM, tokens: int) -> int:
    """Bits that a pin is charged in a text of so many tokens.

    They are for its position, the end's among them, and its word.
    """
    return math.ceil(math.log2(tokens + 1)) + math.ceil(math.log2(len(lm.table)))


# --- writing


def usual_tokens_per_vector(lm: LM, template: Template, asked: int, steps: int) -> int:
    """The number `asked` for, else that known for this model, else a guess, which is told."""
    recorded = find_known(lm, template, 128, Memorize(steps=steps))
    if not asked and not recorded:
        say(
            f"nothing is known of {lm.identity.id} in template {template.name}: "
            f"{GUESSED_TOKENS_PER_VECTOR} tokens a vector are taken"
        )
    return asked or (recorded.tokens_per_vector if recorded else GUESSED_TOKENS_PER_VECTOR)


def heartbeat(name: str) -> Callable[[Step], None]:
    """Says once a minute where the writing of `name` stands.

    It is for `memorize` to call after every step.
    """
    last = time.monotonic()

    def stepped(progress: Step) -> None:
        nonlocal last
        if time.monotonic() - last >= MINUTE:
            last = time.monotonic()
            say(
                f"  {name}: step {progress.steps}, {progress.right} of {progress.rows} right, "
                f"{duration(progress.seconds)}"
            )

    return stepped


# --- work that survives a kill


@dataclass(slots=True)
class Ledger:
    """The results of finished work, a line of JSON for each; the first line says of what."""

    path: Path
    results: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, result: Any) -> None:
        """Keeps a result; it is on disk when this returns."""
        self.results[key] = finite(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, self.results[key]], ensure_ascii=False) + "\n")


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, if there is one; a line that a kill cut short is dropped from it."""
    written = path.read_bytes() if path.exists() else b""
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        path.write_bytes(whole)
    return whole.decode().splitlines()


def open_ledger(path: Path, about: dict[str, Any]) -> Ledger:
    """Opens `path`, or begins it; a line that a kill cut short is dropped.

    Raises:
        UsageError: it holds results of something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(path, dict(map(json.loads, whole_lines(path))))
    if "about" not in ledger.results:
        ledger.add("about", about)
    elif ledger.results["about"] != json.loads(json.dumps(about)):
        raise UsageError(
            f"{path} holds results of other settings or another model",
            remedy="another --out, or remove that file",
        )
    return ledger


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work: `key` names its result, `group` pieces which cost about the same."""

    key: str
    group: str
    run: Callable[[], dict[str, Any]]


def work_through(units: Sequence[Unit], ledger: Ledger, until: float) -> bool:
    """Runs in order those units that have no result yet.

    None is begun after `until` (monotonic seconds).

    Returns whether all are done. Tells on stderr how far it is, and how long the rest will take.
    """
    spent: defaultdict[str, list[float]] = defaultdict(list)
    for unit in units:
        if unit.key in ledger.results:
            spent[unit.group].append(ledger.results[unit.key]["wall"])
    for number, unit in enumerate(units, start=1):
        if unit.key in ledger.results:
            continue
        if time.monotonic() >= until:
            say(
                f"--seconds is over after {number - 1} of {len(units)} pieces of work; the same "
                "command goes on"
            )
            return False
        began = time.monotonic()
        result = unit.run()
        wall = time.monotonic() - began
        ledger.add(unit.key, result | {"wall": wall})
        spent[unit.group].append(wall)
        left = time_left([one for one in units[number:] if one.key not in ledger.results], spent)
        say(f"{number}/{len(units)}  {unit.key}  {duration(wall)}; {duration(left)} left")
    return True


def time_left(units: Iterable[Unit], spent: dict[str, list[float]]) -> float:
    """Seconds that `units` will take.

    Each is reckoned at what its group took, or where nothing is known at what all did.
    """
    everything = [seconds for some in spent.values() for seconds in some]
    average = {group: sum(some) / len(some) for group, some in spent.items() if some}
    usual = sum(everything) / max(1, len(everything))
    return float(sum(average.get(unit.group, usual) for unit in units))


# --- numbers


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 1, factor: float = 1.0) -> str:
        """`12.3 (9.8 to 14.1)`, or `-` if there is no value."""
        if not np.isfinite(self.value):
            return "-"
        return (
            f"{factor * self.value:.{digits}f} ({factor * self.low:.{digits}f} to "
            f"{factor * self.high:.{digits}f})"
        )


def bootstrap(count: int, statistic: Callable[[np.ndarray], float]) -> Interval:
    """The `statistic` of all indices 0 to count - 1, and its 2.5 % and 97.5 % quantiles.

    The quantiles are over draws with replacement.

    Source: Efron & Tibshirani 1993, chapter 13 (the percentile interval).
    """
    generator = np.random.default_rng(0)
    drawn = np.array([statistic(generator.integers(count, size=count)) for _ in range(DRAWS)])
    drawn = drawn[~np.isnan(drawn)]
    low, high = (
        np.quantile(drawn, [0.025, 0.975], method="nearest") if len(drawn) else (np.nan, np.nan)
    )
    return Interval(float(statistic(np.arange(count))), float(low), float(high))


def layer_parameters(lm: LM) -> int:
    """The number of weights of the layers: what a position is multiplied with.

    These are all but embedding tables and the output layer.
    """
    base = lm.model.base_model
    tables = {id(part.weight) for part in base.modules() if isinstance(part, torch.nn.Embedding)}
    return sum(parameter.numel() for parameter in base.parameters() if id(parameter) not in tables)


def step_flops(lm: LM, positions: int, scored: int, vocabulary_passes: int = 2) -> float:
    """Floating-point operations of one forward and backward pass of a row.

    The weights get no gradient.

    A weight costs 2 a position forward and 2 backward; so does a word of the vocabulary for each
    scored position (`vocabulary_passes` 1: forward only, as the hinge needs). Attention: two
    products of positions x positions forward, four backward, over all of the square.
    """
    shape = lm.model.config
    per_head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    attention = 12.0 * shape.num_hidden_layers * shape.num_attention_heads * per_head * positions**2
    return (
        4.0 * layer_parameters(lm) * positions
        + 2.0 * vocabulary_passes * lm.table.numel() * scored
        + attention
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations a second of a large square product in `dtype` here.

    It is the best of as many as fit into `seconds`.
    """
    size = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, began = float("inf"), time.monotonic()
    while time.monotonic() - began < seconds or best == float("inf"):
        start = time.perf_counter()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def forget_peak(device: torch.device) -> None:
    """Lets the peak of memory begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory since `forget_peak`.

    It is that of the device, or on a CPU that of the whole process, libraries and all.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


# --- the door


Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def put_table(title: str, table: Table) -> None:
    """A titled table in Markdown, and an empty line."""
    put(f"{title}\n")
    put_markdown(*table)
    put("")


def options(description: str, out: str) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=64, metavar="N", help="how many chunks (64)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        metavar="S",
        help="begin no work after this time (no bound)",
    )
    parser.add_argument("--steps", type=int, default=300, help="the most steps of a chunk (300)")
    parser.add_argument(
        "--batch", type=int, default=16, metavar="N", help="chunks written together (16)"
    )
    parser.add_argument(
        "--template", default="bare", help="the template memories are written in (bare)"
    )
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="FOLDER",
        help="text of yours, instead of the sample documents: a file for each kind",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (0: torch's own choice)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("run/benchmarks") / out,
        metavar="NAME",
        help="NAME.jsonl, .json and .png are written",
    )
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers."""
    return tuple(int(part) for part in text.split(","))


def load_model(name: str, arguments: argparse.Namespace) -> LM:
    """The LM `name` in fp32 on the device asked for."""
    return load(config.Model(id=name, device=arguments.device, threads=arguments.threads))


def about(lm: LM, **settings: Any) -> dict[str, Any]:
    """The key of results: what they depend on beside the code; refused under another."""
    return {
        "model": lm.identity.id,
        "weights": lm.identity.weights_sha256,
        "device": lm.device.type,
        **settings,
    }


def machine(lm: LM) -> dict[str, Any]:
    """On what it was measured."""
    name = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The name of the CPU."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor() or "CPU",
    )


def save_json(value: Any, path: Path) -> None:
    """Writes `value`, indented; what is not finite is null."""
    path.write_text(
        json.dumps(finite(value), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


def guarded(main: Callable[[], None]) -> None:
    """Runs `main`; what can be expected to go wrong is said in one line."""
    try:
        main()
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        sys.exit(130)
    except RagMemtokError as error:
        put_error(error, as_json=False)
        sys.exit(error.exit_code)
