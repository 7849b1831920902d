"""Tasks -> judged memories, ready to be stored.

The work is done in this process, or in several at once, one for each GPU or for a few cores.

Several processes fill one store through one writer: they load the model, write and judge; the
caller alone has the store open. A chunk does not depend on who writes it: at one chunk a batch and
one thread its bits are the same.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

import torch

from rag_memtok.config import Config, Memorize
from rag_memtok.datatypes import Memory, Record, sha256_of_tokens
from rag_memtok.errors import OutOfMemory
from rag_memtok.memory.batch import Task
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.optimize import Step, memorize
from rag_memtok.memory.reconstruct import judge
from rag_memtok.memory.step import Written
from rag_memtok.model import lm as models
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template, template_named


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A chunk that no worker could write, and why: a later run tries it again."""

    chunk_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several processes has to do; `number` counts them from 0.

    `config` is complete.
    """

    number: int
    config: Config
    template: str
    tasks: tuple[Task, ...]


def judged_record(lm: LM, template: Template, settings: Memorize, written: Written) -> Record:
    """Packs the vectors, reads them back, and judges what was read; the record has no key yet."""
    codec, tokens = codec_named(settings.codec), written.task.tokens
    packed = codec.pack(written.vectors)
    shape = (written.vectors.shape[0], written.vectors.shape[1])
    memory, verdict = judge(lm, template, Memory(codec.unpack(packed, shape)), tokens, settings.tau)
    digest = sha256_of_tokens(tokens)
    return Record(
        written.task.key,
        len(tokens),
        digest,
        settings.codec,
        packed,
        shape,
        memory.pins,
        verdict,
        None,
    )


def records(
    lm: LM,
    template: Template,
    config: Config,
    tasks: Iterable[Task],
    on_step: Callable[[Step], None],
) -> Iterator[Record]:
    """Writes and judges `tasks`, in `config.memorize.processes` processes.

    Yields each as it is done, in no fixed order.

    Raises:
        ChunkDoesNotFit, OutOfMemory: see `memorize`; in several processes also one that the system
            has ended.

    Cost: that of `memorize` and `judge`; with more than one process each loads the model.
    """
    if config.memorize.processes == 1:
        return _here(lm, template, config.memorize, tasks, on_step)
    shares = dealt(tasks, config, template.name)
    return _together(shares, on_step)


def of_one(config: Config) -> Config:
    """What one of its processes is told: its share of the threads."""
    if config.memorize.processes == 1:
        return config
    threads = max(1, (config.model.threads or torch.get_num_threads()) // config.memorize.processes)
    return replace(config, model=replace(config.model, threads=threads))


def dealt(tasks: Iterable[Task], config: Config, template: str) -> list[Share]:
    """The tasks in shares of about the same work, and the threads with them; none is empty."""
    ordered = sorted(tasks, key=lambda task: -len(task.tokens))
    config, count = of_one(config), config.memorize.processes
    hands = [tuple(ordered[number::count]) for number in range(count)]
    return [Share(number, config, template, hand) for number, hand in enumerate(hands) if hand]


def _here(
    lm: LM,
    template: Template,
    settings: Memorize,
    tasks: Iterable[Task],
    on_step: Callable[[Step], None],
) -> Iterator[Record]:
    for written in memorize(lm, template, tasks, settings, on_step):
        yield judged_record(lm, template, settings, written)


def _together(shares: Sequence[Share], on_step: Callable[[Step], None]) -> Iterator[Record]:
    """Starts a process for each share and yields what comes; all end when this does."""
    crew = dict(map(_started, shares))
    latest: dict[Connection, Step] = {}
    try:
        for pipe, said in _heard(crew):
            if isinstance(said, Exception):
                raise said
            if isinstance(said, Record):
                yield said
            else:
                latest[pipe] = said
                on_step(_sum([latest[one] for one in latest if not one.closed]))
    finally:
        for process in crew.values():
            process.terminate()
        for process in crew.values():
            process.join()


def _heard(
    crew: Mapping[Connection, SpawnProcess],
) -> Iterator[tuple[Connection, Record | Step | Exception]]:
    """What the processes say, as it comes; a pipe whose process has ended is closed."""
    while waiting := [pipe for pipe in crew if not pipe.closed]:
        for pipe in cast(list[Connection], wait(waiting)):
            try:
                yield pipe, pipe.recv()
            except EOFError:
                pipe.close()
                _ended(crew[pipe])


def _sum(each: Sequence[Step]) -> Step:
    """Where several processes stand together: their rows, and the most steps and seconds."""
    return Step(
        sum(p.rows for p in each),
        sum(p.right for p in each),
        max(p.steps for p in each),
        max(p.seconds for p in each),
    )


def _started(share: Share) -> tuple[Connection, SpawnProcess]:
    # after a fork neither CUDA nor torch's threads work
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(share, theirs), daemon=True)
    process.start()
    theirs.close()  # or its end would not be seen here
    return ours, process


def _ended(process: SpawnProcess) -> None:
    """Raises OutOfMemory if a silent process did not end by itself.

    Silent is one that says nothing any more; mostly the system has killed it for its memory.
    """
    process.join()
    if code := process.exitcode:
        how = f"signal {-code}" if code < 0 else f"code {code}"
        raise OutOfMemory(
            f"a process that wrote memories ended with {how}",
            remedy="fewer --processes, or a smaller --batch",
        )


def work(share: Share, pipe: Connection) -> None:
    """One of several processes: writes its share.

    It sends records, where it stands, and what it could not do.
    """
    for sent in (signal.SIGINT, signal.SIGHUP):  # the caller decides what comes of a Ctrl-C
        signal.signal(sent, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(BrokenPipeError):  # the caller is gone
        try:
            if torch.cuda.is_available():
                torch.cuda.set_device(share.number % torch.cuda.device_count())
            lm = models.load(share.config.model)
            for record in _here(
                lm,
                template_named(share.template, lm),
                share.config.memorize,
                share.tasks,
                pipe.send,
            ):
                pipe.send(record)
        except BrokenPipeError:
            raise
        except Exception as error:
            error.add_note(traceback.format_exc())
            pipe.send(error)
