"""Measures a model on the dev splits.

It is run as `python -m training.evaluate MODEL DATA --val PACKED/val.bin --out scores.json`.

Bits per byte of held-out prose; exact match and F1 (SQuAD's) per source with the gold passage alone
and among five; how often "not in the documents" is said where it is right and where it is wrong;
beside them, "the passage's best-overlapping sentence".
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rag_memtok.evaluation.metrics import exact_match, f1, normalize
from training.examples import Example, all_dev, best_sentence
from training.frame import BOS, EOS, EOT, PAD, REFUSAL, Frame

# (passages, question) of each case -> answers
Reader = Callable[[list[tuple[list[str], str]]], list[str]]


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, frame: Frame, stream: np.ndarray, length: int = 512, windows: int = 60
) -> float:
    """Mean code length of held-out prose, in bits a byte of UTF-8.

    The mean is over windows of `length` tokens.
    """
    nats, size = 0.0, 0
    for start in np.linspace(0, len(stream) - length - 1, windows).astype(int):
        ids = torch.from_numpy(stream[start : start + length].astype(np.int64))[None].to(
            model.device
        )
        ids[:, 0] = BOS  # as in training
        logits = model(input_ids=ids).logits[0, :-1].float()
        nats += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        size += len(frame.decode(ids[0, 1:].tolist()).encode())
    return nats / np.log(2) / size


def pad_left(prompts: list[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask `[batch, longest]`, prompts at the right."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


@torch.no_grad()
def decode(
    model: nn.Module,
    frame: Frame,
    prompts: list[tuple[int, ...]],
    longest: int = 28,
    batch: int = 16,
) -> list[str]:
    """Greedy answers, in batches of prompts of like length.

    Cost: about a tenth of a second a prompt of 200 tokens on one core.
    """
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        ids, mask = pad_left([prompts[i] for i in chosen], model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=[EOS, EOT],
            pad_token_id=PAD,
        )
        for i, row in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
            answers[i] = frame.decode(row).strip()
    return answers


def tally(examples: list[Example], answers: list[str]) -> dict[str, dict[str, float]]:
    """Per source: exact match, F1 and how often the answer was a refusal, in per cent."""
    groups = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        golds, refused = example.answers, normalize(answer) == normalize(REFUSAL)
        scores = (max(score(answer, gold) for gold in golds) for score in (exact_match, f1))
        groups[example.source].append((*scores, float(refused)))
    return {
        source: {"n": len(rows)} | means(rows, ("em", "f1", "refused"))
        for source, rows in groups.items()
    }


def means(rows: list[tuple[float, ...]], names: tuple[str, ...]) -> dict[str, float]:
    """The mean of each column, in per cent."""
    return {
        name: round(100 * sum(row[k] for row in rows) / len(rows), 1)
        for k, name in enumerate(names)
    }


def first_of_each(examples: list[Example], count: int) -> list[Example]:
    """At most `count` examples of each source."""
    seen: Counter[str] = Counter()
    return [e for e in examples if not seen.update([e.source]) and seen[e.source] <= count]


def measure(reader: Reader, examples: list[Example], five: int, seed: int = 0) -> dict[str, dict]:
    """Scores of a reader with the gold passage alone, among five, and with four distractors only.

    Where there are distractors only, refusing is right.

    The last two are over at most `five` and `five` / 2 questions of each source.
    """
    rng = random.Random(seed)
    fewer = first_of_each(examples, five)
    results = {"gold alone": tally(examples, reader([([e.gold], e.question) for e in examples]))}
    results["among five"] = tally(fewer, reader([(e.passages(5, rng), e.question) for e in fewer]))
    kept = [e for e in fewer if e.answerable and e.distractors][::2]
    refusals = [
        normalize(a) == normalize(REFUSAL)
        for a in reader([(list(e.distractors), e.question) for e in kept])
    ]
    results["gold left out"] = {
        "all": {"n": len(kept), "refused": round(100 * sum(refusals) / max(1, len(kept)), 1)}
    }
    return results


def report(results: dict[str, dict]) -> str:
    """The scores as a table in Markdown."""
    lines = [
        "| source | n | EM alone | F1 alone | refused alone | n | EM of five | F1 of five |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for source, alone in results["gold alone"].items():
        five = results["among five"][source]
        left, right = (
            f"{alone['n']} | {alone['em']} | {alone['f1']} | {alone['refused']}",
            f"{five['n']} | {five['em']} | {five['f1']}",
        )
        lines.append(f"| {source} | {left} | {right} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Refused with the gold passage left out: {results['gold left out']['all']['refused']} "
            "%",
        ]
    )


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a folder of weights")
    parser.add_argument("data", type=Path, help="the data folder")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of tokenizer.json, if not the model's"
    )
    parser.add_argument("--val", type=Path, help="val.bin of the packed folder")
    parser.add_argument("--questions", type=int, default=300, help="of each source")
    parser.add_argument("--five", type=int, default=150, help="of each source, among five passages")
    parser.add_argument("--sources", nargs="*", help="only these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--baseline", action="store_true", help="measure the best-overlapping sentence too"
    )
    parser.add_argument("--samples", type=int, default=12, help="answers to print")
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    frame = Frame((args.tokenizer or args.model) / "tokenizer.json")
    model = (
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).eval()
    )
    examples = all_dev(args.data, args.questions, args.sources)
    began = time.time()
    results = measure(
        lambda cases: decode(model, frame, [frame.prompt(*case) for case in cases]),
        examples,
        args.five,
    )
    print(report(results))
    if args.val:
        results["bits per byte"] = round(
            bits_per_byte(model, frame, np.fromfile(args.val, dtype=np.uint16)), 4
        )
        print(f"\nbits per byte of held-out prose: {results['bits per byte']}")
    if args.baseline:
        results["best sentence"] = measure(
            lambda cases: [best_sentence(q, p) for p, q in cases], examples, args.five
        )
        print(f"\nbest-overlapping sentence:\n{report(results['best sentence'])}")
    results["samples"] = samples(model, frame, examples, args.samples)
    print(f"\n{json.dumps(results['samples'], ensure_ascii=False, indent=1)}")
    print(f"{time.time() - began:.0f} s")
    if args.out:
        args.out.write_text(json.dumps(results, ensure_ascii=False, indent=1))


def samples(model: nn.Module, frame: Frame, examples: list[Example], count: int) -> list[dict]:
    """Some questions with the gold answer and the model's."""
    chosen = random.Random(1).sample(examples, min(count, len(examples)))
    answers = decode(model, frame, [frame.prompt([e.gold], e.question) for e in chosen])
    return [
        {"source": e.source, "question": e.question, "gold": e.answers[0], "said": a}
        for e, a in zip(chosen, answers, strict=True)
    ]


if __name__ == "__main__":
    main()
