"""A vLLM server in our model's place: are its answers ours, and what do memories save there?

    rag-memtok export-reader build/reader            # prints the line that starts a server on it
    python -m benchmarks.vllm --url URL --store DIR --equal 50
    python -m benchmarks.vllm --url URL --store DIR --speed [--adapter DIR] [--requests 1,8,32]

--equal asks the questions of FILE, with passages as text and as memories, here and there (eight at
once), in the arithmetic that the server was started with; a difference is told with how far the two
tokens are apart here: next to nothing is a tie that another order of additions decides.

--speed sends prompts of k passages (128 tokens each) as text and as readable vectors: time to the
first token, answers a second at so many requests at once, positions and the most of the KV cache
that was in use. The vectors are those of the encoder in the folder of --adapter; without one they
are as many embeddings of the text's own tokens, which is honest for speed alone.
The server needs --max-model-len 4096. Every row of the table has a cache salt of its own.
"""

import argparse
import itertools
import json
import math
import platform
import secrets
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import samples, texts_of
from rag_memtok.cli.tables import put_markdown
from rag_memtok.errors import NoUsableMemory
from rag_memtok.memory import encoder as encoders
from rag_memtok.model.copying import Copied
from rag_memtok.model.engine import Engine, LocalEngine
from rag_memtok.model.inject import Generation, inject, never
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import QAPrompt, qa_prompt
from rag_memtok.pipeline import api
from rag_memtok.pipeline.answer import answer
from rag_memtok.pipeline.session import Session
from rag_memtok.settings import here

QUESTIONS = Path(__file__).parent.parent / "data" / "questions.jsonl"
DEPTHS = (1, 5, 20)  # passages in a prompt
TOKENS, WINDOW, ANSWER = 128, 4, 16  # of a passage; for each of its vectors; of an answer
AT_ONCE = 8
GAUGE = "vllm:kv_cache_usage_perc"


# --- are its answers ours?


@dataclass
class Kept:
    """The engine here, and the prompts that it was given with what it said."""

    engine: Engine
    asked: list[tuple[Tensor, list[int]]] = field(default_factory=list)

    @property
    def context(self) -> int:
        """The engine's own."""
        return self.engine.context

    def rows(
        self,
        frame: QAPrompt,
        prompts: Sequence[Tensor],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> Iterator[tuple[int, int]]:
        """The engine's, kept."""
        for row, one in enumerate(self.batch(frame, prompts, limit)):
            yield from ((row, token) for token in one.tokens)

    def batch(
        self,
        frame: QAPrompt,
        prompts: Sequence[Tensor],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> list[Generation]:
        """The engine's, kept."""
        said = self.engine.batch(frame, prompts, limit)
        pairs = zip(prompts, said, strict=True)
        self.asked += [(prompt, list(one.tokens)) for prompt, one in pairs]
        return said


def compared(session: Session, reader: str, questions: Sequence[str], limit: int) -> None:
    """Asks here and there, with passages in one prompt, and prints what differs."""
    lm = session.reading or session.lm
    asked = replace(session.config.ask, read=reader, passages="together", max_new_tokens=limit)
    kept = Kept(LocalEngine(lm))
    local = replace(session, remote=kept, config=replace(session.config, ask=asked))
    answered = 0
    for question in questions:
        try:
            answered += bool(answer(local, question).answer)
        except NoUsableMemory:
            continue
    words = qa_prompt(session.lm)

    def there(pair: tuple[Tensor, list[int]]) -> list[int]:
        return [token for _, token in session.engine.rows(words, [pair[0]], limit)]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        theirs = list(pool.map(there, kept.asked))
    same = sum(one == ours for one, (_, ours) in zip(theirs, kept.asked, strict=True))
    positions = statistics.mean(len(prompt) for prompt, _ in kept.asked)
    print(
        f"{reader}: {same} of {len(kept.asked)} answers are the same, token by token, {AT_ONCE} at "
        f"once ({answered} of {len(questions)} answered; {positions:.0f} positions a prompt, "
        f"{statistics.mean(len(ours) for _, ours in kept.asked):.1f} tokens an answer)"
    )
    for number, (one, (prompt, ours)) in enumerate(zip(theirs, kept.asked, strict=True)):
        if one != ours:
            print(f"  prompt {number}: {apart(lm, words, prompt, ours, one)}")


@torch.inference_mode()
def apart(lm: LM, words: QAPrompt, prompt: Tensor, ours: list[int], theirs: list[int]) -> str:
    """Where two answers part, and the margin of the one token over the other here."""
    ours, theirs = [*ours, words.end], [*theirs, words.end]
    place = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    row = torch.cat([prompt, lm.embed(ours[:place])])
    logits = lm.logits(lm.hidden(row[None])[0, -1])
    lead = float(logits[ours[place]] - logits[theirs[place]])
    said = [lm.decode(tokens) for tokens in (ours, theirs)]
    return f"token {place}: {said[0]!r} here, {said[1]!r} there; here the first leads by {lead:.2g}"


# --- what do memories save?


@dataclass(frozen=True)
class Load:
    """The cost of so many prompts at once."""

    first: float
    seconds: float
    tokens: int
    peak: float


def prompts_of(
    session: Session, depth: int, count: int, adapter: Path | None
) -> Iterator[tuple[str, list[Tensor]]]:
    """Prompts of `depth` passages, no two alike: as text, and as readable vectors."""
    lm, words = session.lm, qa_prompt(session.lm)
    encoder = None if adapter is None else encoders.load_encoder(lm, adapter / encoders.FILE)
    passages = [one.tokens for one in samples(lm, texts_of(None), [TOKENS], 64)]
    asked = [lm.encode(f"What is said of number {number}?") for number in range(count)]

    def content(tokens: Sequence[int], *, as_vectors: bool) -> Sequence[int] | np.ndarray:
        if not as_vectors:
            return tokens
        if encoder is None:
            return lm.embed(list(tokens[::WINDOW])).float().cpu().numpy()
        return encoders.unpack_readable(encoders.encode_readable(encoder, tokens, WINDOW))

    for name, as_vectors in (("text", False), ("memories", True)):
        rows = []
        for number, question in enumerate(asked):
            turned = (passages[(number * 7 + place) % len(passages)] for place in range(depth))
            row = [content(tokens, as_vectors=as_vectors) for tokens in turned]
            rows.append(inject(lm, words, row, question))
        yield name, rows


def gauge(url: str) -> float:
    """The share of the KV cache that is in use now; NaN where the server does not say."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        return max(float(line.split()[-1]) for line in lines if line.startswith(GAUGE))
    except (OSError, ValueError):
        return math.nan


def loaded(session: Session, url: str, prompts: Sequence[Tensor], at_once: int) -> Load:
    """Sends `prompts`, so many at once, and measures."""
    words, over, shares = qa_prompt(session.lm), threading.Event(), [gauge(url)]
    engine = replace(session.remote, salt=secrets.token_urlsafe(32))  # nothing cached before helps

    def watch() -> None:
        while not over.wait(0.05):
            shares.append(gauge(url))

    def timed(prompt: Tensor) -> tuple[float, int]:
        began, first, count = time.monotonic(), math.nan, 0
        for count, _ in enumerate(engine.rows(words, [prompt], ANSWER), start=1):
            first = time.monotonic() - began if count == 1 else first
        return first, count

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        done = list(pool.map(timed, prompts))
    seconds = time.monotonic() - began
    over.set()
    watcher.join()
    first = statistics.median(one for one, _ in done if not math.isnan(one))
    return Load(first, seconds, sum(count for _, count in done), max(shares))


def speeds(session: Session, url: str, at_once: Sequence[int], adapter: Path | None) -> None:
    """Measures text against memories, in one run, and prints a table."""
    rows = []
    for depth, count in itertools.product(DEPTHS, at_once):
        for name, prompts in prompts_of(session, depth, count, adapter):
            done = loaded(session, url, prompts, count)
            rows.append(
                {
                    "passages": depth,
                    "requests at once": count,
                    "as": name,
                    "positions": round(statistics.mean(map(len, prompts))),
                    "first token, s": f"{done.first:.2f}",
                    "answers/s": f"{count / done.seconds:.2f}",
                    "tokens": done.tokens,
                    "KV cache, most": f"{100 * done.peak:.1f} %",
                }
            )
    put_markdown(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])
    made = f"the encoder in {adapter.name}" if adapter else "NO encoder: right shape, speed alone"
    print(f"\nvectors of {WINDOW} tokens each, by {made}; at most {ANSWER} tokens an answer")


def main() -> None:
    """Connects, which proves the model, and measures what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--file", type=Path, default=QUESTIONS)
    parser.add_argument("--equal", type=int, default=0, metavar="QUESTIONS")
    parser.add_argument("--read", default="text,memory", help="of --equal: text, memory or both")
    parser.add_argument("--limit", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--adapter", type=Path, help="with the encoder of the vectors")
    parser.add_argument("--requests", default="1,8,32")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {time.strftime('%d %B %Y')}")
    config = here(store=args.store, engine="vllm", url=args.url, read="text", engine_seconds=600.0)
    with api.session(config, print, trusted=True) as session:
        if args.equal:
            lines = args.file.read_text(encoding="utf-8").splitlines()[: args.equal]
            questions = [json.loads(line)["question"] for line in lines]
            for reader in args.read.split(","):
                compared(session, reader, questions, args.limit)
        if args.speed:
            requests = [int(one) for one in args.requests.split(",")]
            speeds(session, args.url.removesuffix("/"), requests, args.adapter)


if __name__ == "__main__":
    main()
