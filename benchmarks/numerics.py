"""How far do other numerics move the logits of the same memories?

`python -m benchmarks.numerics --store DIR --out numerics`.

Every memory is decoded with its true tokens fed (an unpinned position is right in a free decode
just as long as all before it are), in fp32 and bf16, in batches of 1, 2, 8 and 32, with 0 and 13
positions of padding on the left beside what a batch needs, with a cache (token by token) and
without (all positions at once), in eager and SDPA attention, on 1 and 2 threads, and on a GPU where
there is one. Against the reference profile (fp32, batch 1, no padding, cache, eager, 1 thread, CPU)
each of these says:

    logit    the largest change of any logit
    lead     the largest change of a right token's lead over the best other word: what a safety
             pin has to cover
    as is    the share of memories that decode exactly without any pin
    pins     the share that do with the pins a margin tau asks for: where the reference leads by
             tau or less

The reference profile is among them, over a copy of the weights: where the weights lie in memory can
decide which kernel sums them. The lead decides: a margin of at least the largest change of a lead
seen makes every memory decode exactly in what was tried, by definition; the picture shows how much
less is enough, and how many pins it takes. What was not tried is not promised.

Numbers go to OUT.jsonl as they come, the reference logits to OUT.safetensors, and a second run goes
on there: on another machine, or with another instruction set on this one, its profiles are compared
with the first run's reference:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.numerics ... the same OUT

On two quiet cores 32 chunks of 128 tokens take the 10M model about ten minutes, most of it at batch
1.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.measure import whole_lines
from rag_memtok.config import Config, Model
from rag_memtok.datatypes import TEXT_ONLY, Memory, sha256_of_tokens
from rag_memtok.evaluation.figures import Chart, Line, draw
from rag_memtok.memory.reconstruct import build_prompt, decode, memory_of
from rag_memtok.model import precision
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template, digest_of
from rag_memtok.pipeline import resources
from rag_memtok.store.store import open_store

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TAUS = (
    0.0,
    1e-6,
    1e-5,
    3e-5,
    1e-4,
    3e-4,
    1e-3,
    3e-3,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.6,
    0.8,
)
SHOWN = TAUS.index(1e-3)  # where the picture begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A way to compute the same numbers. `cache` False: all positions in one pass."""

    device: str = "cpu"
    dtype: str = "fp32"
    batch: int = 1
    padding: int = 0
    cache: bool = True
    attention: str = "eager"
    threads: int = 1
    instructions: str = ""


REFERENCE = Profile()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class JudgedMemory:
    """A memory, its tokens with the end token after them, and their reference logits.

    The logits of each are there after `referred`.
    """

    chunk_id: str
    memory: Memory
    tokens: tuple[int, ...]
    kind: str
    logits: Float[Tensor, "P V"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """The result of a profile over all memories: see the file's docstring.

    `exact_at` has the share of memories that are exact for each of TAUS.
    """

    profile: Profile
    memories: int
    positions: int
    logit: float
    lead: float
    exact_as_is: float
    exact_at: tuple[float, ...]
    flips: int
    seconds: float


def profiles(batches: Sequence[int], threads: Sequence[int]) -> list[Profile]:
    """Every combination, the reference first; on a GPU threads do not matter."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    values = (devices, DTYPES, batches, (0, 13), (True, False), ("eager", "sdpa"), threads)
    names = [field.name for field in fields(Profile)][: len(values)]
    every = (
        Profile(**dict(zip(names, chosen, strict=True)), instructions=instructions())
        for chosen in itertools.product(*values)
    )
    return [one for one in every if one.device == "cpu" or one.threads == threads[0]]


def instructions() -> str:
    """The instruction set that this process computes with: torch's own, and oneDNN's bound."""
    bound = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN {bound}" if bound else "")


def cases_of(store: Path, model: LM, template: Template, count: int) -> list[JudgedMemory]:
    """The first `count` memories of a store, decoded once as the audit does.

    Their tokens come from nowhere else.
    """
    cases = []
    with open_store(store, write=False) as opened:
        for chunk_id in opened.chunk_ids()[:count]:
            record = opened.record(chunk_id)
            if record.codec == TEXT_ONLY:
                continue
            memory = memory_of(record)
            tokens = decode(model, template, memory, record.tokens + 1).tokens
            if sha256_of_tokens(tokens) != record.tokens_sha256:
                raise SystemExit(
                    f"{chunk_id[:12]} does not decode: rag-memtok verify --store {store}"
                )
            cases.append(
                JudgedMemory(
                    chunk_id=chunk_id,
                    memory=memory,
                    tokens=(*tokens, template.end),
                    kind=record.verdict.kind,
                )
            )
    return cases


def logits_of(
    model: LM, template: Template, cases: Sequence[JudgedMemory], padding: int, *, cache: bool
) -> list[Float[Tensor, "P V"]]:
    """The logits before each of the cases' tokens, with the tokens before it fed.

    The cases are fed as one batch padded on the left.
    """
    rows = [build_prompt(model, template, case.memory) for case in cases]
    longest = max(map(len, rows)) + padding
    rows = [torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows]
    empty = torch.tensor(
        [longest - len(build_prompt(model, template, case.memory)) for case in cases],
        device=model.device,
    )
    steps = max(len(case.tokens) for case in cases)
    fed = torch.tensor(
        [[*case.tokens[:-1], *[case.tokens[-1]] * (steps - len(case.tokens))] for case in cases],
        device=model.device,
    )
    parts = [torch.stack(rows)] + (
        [model.embed(fed[:, [step]]) for step in range(steps - 1)] if cache else []
    )
    if not cache:
        parts = [torch.cat([parts[0], model.embed(fed[:, : steps - 1])], dim=1)]
    hidden = list(_hidden(model, parts, empty, cache=cache))
    last = torch.cat([hidden[0][:, longest - 1 :], *hidden[1:]], dim=1)
    return [
        model.logits(row[: len(case.tokens)]).cpu() for row, case in zip(last, cases, strict=True)
    ]


@torch.inference_mode()
def _hidden(
    model: LM, parts: Sequence[Float[Tensor, "B S d"]], empty: Tensor, *, cache: bool
) -> Iterator[Float[Tensor, "B S d"]]:
    """The last hidden states over each part after those before it.

    As in `KVDecoder` there is no mask where nothing is empty.
    """
    past, start = None, 0
    for part in parts:
        options: dict[str, Any] = {}
        end = start + part.shape[1]
        if int(empty.max()):
            places = torch.arange(end, device=model.device)[None]
            options["attention_mask"] = (places >= empty[:, None]).long()
            options["position_ids"] = (places[:, start:] - empty[:, None]).clamp(min=0)
        output = model.model.base_model(
            inputs_embeds=part.to(model.table.dtype),
            past_key_values=past,
            use_cache=cache,
            **options,
        )
        past, start = output.past_key_values, end
        yield output.last_hidden_state


def leads(logits: Float[Tensor, "P V"], tokens: Sequence[int]) -> Float[Tensor, " P"]:
    """The margin of each right token, in logits; 0 or less: not the argmax."""
    right = torch.tensor(tokens)[:, None]
    return logits.gather(1, right)[:, 0] - logits.scatter(1, right, -torch.inf).max(dim=1).values


def measure(
    model: LM, template: Template, cases: Sequence[JudgedMemory], profile: Profile
) -> ProfileResult:
    """Runs one profile over all cases, which have their reference logits."""
    began, logit, lead, flips, positions = time.monotonic(), 0.0, 0.0, 0, 0
    as_is, at_tau = 0, [0] * len(TAUS)
    torch.set_num_threads(profile.threads)
    model.model.set_attn_implementation(profile.attention)
    for start in range(0, len(cases), profile.batch):
        batch = cases[start : start + profile.batch]
        for case, logits in zip(
            batch,
            logits_of(model, template, batch, profile.padding, cache=profile.cache),
            strict=True,
        ):
            assert case.logits is not None
            before, now = leads(case.logits, case.tokens), leads(logits, case.tokens)
            logit = max(logit, float((logits - case.logits).abs().max()))
            lead = max(lead, float((now - before).abs().max()))
            flips += int(((now > 0) != (before > 0)).sum())
            positions += len(case.tokens)
            as_is += bool((now > 0).all())
            for index, tau in enumerate(TAUS):
                at_tau[index] += bool((now[before > tau] > 0).all())
    shares = tuple(count / len(cases) for count in at_tau)
    return ProfileResult(
        profile=profile,
        memories=len(cases),
        positions=positions,
        logit=logit,
        lead=lead,
        exact_as_is=as_is / len(cases),
        exact_at=shares,
        flips=flips,
        seconds=time.monotonic() - began,
    )


def pinned_at(cases: Sequence[JudgedMemory]) -> list[float]:
    """The share of positions with a pin, correction or safety, for each of TAUS."""
    every = torch.cat(
        [leads(case.logits, case.tokens) for case in cases if case.logits is not None]
    )
    return [float((every <= tau).float().mean()) for tau in TAUS]


def chart(found: Sequence[ProfileResult], pins: Sequence[float]) -> Chart:
    """Charts the memories that are exact in the worst profile of each kind.

    They stand over the margin under which a token is pinned.
    """
    lines = []
    for device, dtype in sorted({(one.profile.device, one.profile.dtype) for one in found}):
        group = [
            one.exact_at
            for one in found
            if (one.profile.device, one.profile.dtype) == (device, dtype)
        ]
        worst = [100 * min(shares) for shares in zip(*group, strict=True)]
        lines.append(
            Line(
                name=f"exact, {dtype} on {device}, the worst of {len(group)}",
                x=TAUS[SHOWN:],
                y=worst[SHOWN:],
            )
        )
    lines.append(
        Line(
            name="tokens pinned",
            x=TAUS[SHOWN:],
            y=[100 * share for share in pins[SHOWN:]],
            dashed=True,
        )
    )
    return Chart(
        title="The same memories in other numerics",
        x_label="safety-pin margin tau (logits)",
        y_label="%",
        lines=lines,
        log_x=10,
    )


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument(
        "--model", default="", help="where the store's model is now, if not where it was"
    )
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument(
        "--batches", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2, 8, 32]
    )
    parser.add_argument(
        "--threads", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2]
    )
    parser.add_argument("--out", type=Path, default=Path("numerics"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with open_store(options.store, write=False) as opened:
        manifest = opened.manifest
    model, template = resources.load_decoder(
        manifest, replace(Config(), model=Model(id=options.model, device="cpu", threads=1))
    )
    with precision.reference_profile(model) as exactly:
        cases = referred(
            exactly,
            template,
            cases_of(options.store, exactly, template, options.chunks),
            Path(f"{options.out}.safetensors"),
        )
    results, key = Path(f"{options.out}.jsonl"), key_of(model, template, cases)
    wanted = profiles(options.batches, options.threads)
    list(measured(model, template, cases, wanted, results))
    found = list(known_results(results, key).values())  # other instruction sets', too
    told(found, cases, float(manifest.get("tau", 0)))
    draw(chart(found, pinned_at(cases)), Path(f"{options.out}.png"))


def measured(
    model: LM,
    template: Template,
    cases: Sequence[JudgedMemory],
    wanted: Sequence[Profile],
    path: Path,
) -> Iterator[ProfileResult]:
    """Every profile in turn.

    Those in the file already are taken from there if they are of the same memories.
    """
    key = key_of(model, template, cases)
    known = known_results(path, key)
    began, done, models = time.monotonic(), 0, dict[tuple[str, str], LM]()
    for number, profile in enumerate(wanted, 1):
        if profile in known:
            yield known[profile]
            continue
        kind = (profile.device, profile.dtype)
        if kind not in models:
            models.clear()  # one copy of the weights at a time
            models[kind] = on_device(
                precision.copy_in_dtype(model, DTYPES[profile.dtype]), profile.device
            )
        found, done = measure(models[kind], template, cases, profile), done + 1
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **asdict(found)}) + "\n")
        left = (time.monotonic() - began) / done * (len(wanted) - number)
        print(
            f"{number} of {len(wanted)}, about {left / 60:.0f} min left: {profile}",
            file=sys.stderr,
            flush=True,
        )
        yield found


def key_of(model: LM, template: Template, cases: Sequence[JudgedMemory]) -> str:
    """Names the memories, and what they are decoded by."""
    memories = [(case.tokens, case.memory.vectors.tobytes(), case.memory.pins) for case in cases]
    return digest_of((memories, template.digest, model.identity.weights_sha256))[:32]


def known_results(path: Path, key: str) -> dict[Profile, ProfileResult]:
    """The results that are in the file for these memories, whatever machine they are of.

    A line that a kill cut short is dropped.
    """
    found = dict[Profile, ProfileResult]()
    for row in map(json.loads, whole_lines(path)):
        if row.pop("key") == key:
            profile = Profile(**row.pop("profile"))
            row["exact_at"] = tuple(row["exact_at"])
            found[profile] = ProfileResult(profile=profile, **row)
    return found


def referred(
    exactly: LM, template: Template, cases: Sequence[JudgedMemory], path: Path
) -> list[JudgedMemory]:
    """The cases with their reference logits: those in the file, if they are of these, else anew."""
    key = key_of(exactly, template, cases)
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return [replace(case, logits=file.get_tensor(case.chunk_id)) for case in cases]
    made = [
        replace(case, logits=logits_of(exactly, template, [case], 0, cache=True)[0])
        for case in cases
    ]
    tensors = {case.chunk_id: case.logits for case in made if case.logits is not None}
    save_file(tensors, path, {"key": key})
    return made


def on_device(model: LM, device: str) -> LM:
    """`model`, moved; TF32 off."""
    torch.set_float32_matmul_precision("highest")
    model.model.to(torch.device(device))
    return model


def told(found: Sequence[ProfileResult], cases: Sequence[JudgedMemory], tau: float) -> None:
    """Prints a line for each profile, and the margin that follows."""
    pins = pinned_at(cases)
    nearest = max(index for index, one in enumerate(TAUS) if one <= max(tau, TAUS[0]))
    print(
        f"{'profile':<84}{'logit':>11}{'lead':>11}{'flips':>7}{'as is':>8}"
        f"{f'tau {TAUS[nearest]}':>10}"
    )
    for one in found:
        at = one.profile
        name = (
            f"{at.device} {at.dtype} batch {at.batch} padding {at.padding} "
            f"{'cache' if at.cache else 'one pass'} {at.attention}"
        )
        name += f" {at.threads} threads, {at.instructions}" if at.device == "cpu" else ""
        print(
            f"{name:<84}{one.logit:>11.2e}{one.lead:>11.2e}{one.flips:>7}{one.exact_as_is:>8.1%}{one.exact_at[nearest]:>10.1%}"
        )
    for dtype in DTYPES:
        group = [one for one in found if one.profile.dtype == dtype]
        delta = max(one.lead for one in group)
        enough = next(
            (
                value
                for index, value in enumerate(TAUS)
                if all(one.exact_at[index] == 1 for one in group)
            ),
            None,
        )
        share = (
            ""
            if enough is None
            else f", where {pins[TAUS.index(enough)]:.2%} of the tokens are pinned"
        )
        print(
            f"{dtype}: a lead moves by {delta:.2e} logits at most; every memory is exact in all "
            f"{len(group)} from tau = {enough} on{share}"
        )


if __name__ == "__main__":
    main()
