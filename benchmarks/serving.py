"""How many questions a second a served store answers, and how long one waits.

    python -m benchmarks.serving --store demo-store
                    1, 4, 16 and 64 clients, memories against text, side by side
    python -m benchmarks.serving --store demo-store --clients 64 --requests 10000 --read auto
                    whether anything is lost, mixed up or kept in memory

A server of its own for each reader, a thread for each client, each asking its next question when it
has the answer to the last. Before that every question is asked alone, once; "differ" counts answers
that are not that one (in fp32 a batch changes the last bits of logits, and by that the choice
between two words that are as likely). Memory is the server's resident set, after the questions
asked alone and at the end of the row.

Cost on two cores, with a model of 10M parameters: about ten questions a second.
"""

import itertools
import json
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from benchmarks.measure import guarded, numbers, put_table, say
from rag_memtok.datatypes import Answer
from rag_memtok.errors import NoUsableMemory, RagMemtokError, UsageError
from rag_memtok.serve.client import Client

PROGRAM = "from rag_memtok.cli.app import main; main()"
QUESTIONS = Path(__file__).parent.parent / "data" / "questions.jsonl"
NOTHING = ("nothing found",)
HEAD = ("read", "clients", "questions/s", "p50 s", "p95 s", "positions", "differ", "lost", "MB")


@dataclass(frozen=True, slots=True)
class Asked:
    """The result of one request: its answer as comparable values, and seconds."""

    question: str
    said: tuple[object, ...]
    positions: int
    seconds: float


def ask(client: Client, question: str) -> Asked | None:
    """Asks once; None if there was no answer at all."""
    began = time.monotonic()
    try:
        found = client.ask(question)
    except NoUsableMemory:
        return Asked(question, NOTHING, 0, time.monotonic() - began)
    except RagMemtokError as error:
        say(f"{question!a}: {error}")
        return None
    return Asked(question, said(found), found.prompt_positions, time.monotonic() - began)


def said(found: Answer) -> tuple[object, ...]:
    """The part of an answer that must not depend on other clients."""
    chunks = tuple(one.chunk for one in found.sources)
    return found.answer, chunks, found.refused, found.stands_in


@contextmanager
def server(arguments: Namespace, reader: str) -> Iterator[tuple[Client, int]]:
    """A server of the store that answers from what `reader` reads, and its process id."""
    words = ["--store", arguments.store, "--port", "0", "--read", reader, "--rate", "0"]
    words += ["--threads", str(arguments.threads), "--device", arguments.device]
    words += ["--places", str(2 * max(arguments.clients)), *arguments.option]
    command = [sys.executable, "-c", PROGRAM, "serve", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next((one for one in process.stderr if "served at" in one), "")
        if not line:
            raise UsageError("the server did not start", remedy=" ".join(command[3:]))
        Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        try:
            yield Client(line.partition(" is served at ")[2].partition("/;")[0]), process.pid
        finally:
            process.terminate()
            process.wait()


def resident(pid: int) -> float:
    """A process's resident set in MB; NaN where the system does not tell."""
    path = Path(f"/proc/{pid}/status")
    if not path.exists():
        return float("nan")
    (line,) = (one for one in path.read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


def row(
    client: Client, clients: int, questions: Sequence[str], alone: dict[str, Asked]
) -> tuple[float, list[Asked], int]:
    """Asks all questions by so many clients: seconds, what came, how many answers differ."""
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda question: ask(client, question), questions))
    seconds = time.monotonic() - began
    came = [one for one in found if one]
    return seconds, came, sum(one.said != alone[one.question].said for one in came)


def measured(arguments: Namespace, reader: str, questions: Sequence[str]) -> list[list[str]]:
    """The rows of one reader."""
    rows = []
    with server(arguments, reader) as (client, pid):
        alone = {one: found for one in dict.fromkeys(questions) if (found := ask(client, one))}
        before = resident(pid)
        for clients in arguments.clients:
            sent = list(itertools.islice(itertools.cycle(alone), arguments.requests))
            seconds, came, differ = row(client, clients, sent, alone)
            waits = sorted(one.seconds for one in came) or [float("nan")]
            lost = len(sent) - len(came)
            rows.append(
                [
                    reader,
                    str(clients),
                    f"{len(came) / seconds:.2f}",
                    f"{statistics.median(waits):.2f}",
                    f"{waits[int(0.95 * (len(waits) - 1))]:.2f}",
                    f"{statistics.fmean([one.positions for one in came] or [0]):.0f}",
                    str(differ),
                    str(lost),
                    f"{before:.0f} to {resident(pid):.0f}",
                ]
            )
            say(" ".join(rows[-1]))
    return rows


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="a store's folder")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="a file of questions")
    parser.add_argument("--requests", type=int, default=200, help="for each row (200)")
    parser.add_argument("--clients", type=numbers, default=(1, 4, 16, 64), help="(1,4,16,64)")
    parser.add_argument(
        "--read",
        type=lambda text: tuple(text.split(",")),
        default=("memory", "text"),
        help="readers to compare (memory,text); also decode, auto",
    )
    parser.add_argument("--threads", type=int, default=0, help="of the server (torch's own)")
    parser.add_argument("--device", default="auto", help="of the server")
    parser.add_argument(
        "--option", action="append", default=[], help="one more word for `rag-memtok serve`"
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measures every reader with every number of clients and prints the table."""
    arguments = parsed(words)
    lines = arguments.questions.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines if line.strip()]
    rows = [one for reader in arguments.read for one in measured(arguments, reader, questions)]
    put_table(f"{arguments.requests} requests a row", ([*HEAD], rows))


if __name__ == "__main__":
    guarded(main)
