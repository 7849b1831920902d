"""Tasks -> optimized and judged memories, ready to be stored.

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
from rag_memtok.memory.step import OptimizedMemory
from rag_memtok.model import lm as models
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import in_float32
from rag_memtok.model.prompts import Template, template_named


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A chunk that no worker could write, and why: a later run tries it again."""

    chunk_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerTasks:
    """The work of one of several processes; `number` counts them from 0.

    `config` is complete.
    """

    number: int
    config: Config
    template: str
    tasks: tuple[Task, ...]


def judge_record(
    lm: LM, template: Template, settings: Memorize, written: OptimizedMemory
) -> Record:
    """Packs the vectors, reads them back, and judges what was read; the record has no key yet."""
    codec, tokens = codec_named(settings.codec), written.task.tokens
    packed = codec.pack(written.vectors)
    shape = (written.vectors.shape[0], written.vectors.shape[1])
    memory, verdict = judge(lm, template, Memory(codec.unpack(packed, shape)), tokens, settings.tau)
    digest = sha256_of_tokens(tokens)
    return Record(
        written.task.key,
        tokens=len(tokens),
        tokens_sha256=digest,
        codec=settings.codec,
        packed=packed,
        shape=shape,
        pins=memory.pins,
        verdict=verdict,
        key=None,
    )


def write_records(
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
        return _write_here(lm, template, config.memorize, tasks, on_step)
    shares = split_tasks(tasks, config, template.name)
    return _write_in_processes(shares, on_step)


def per_process_config(config: Config) -> Config:
    """The config of one of its processes: with its share of the threads."""
    if config.memorize.processes == 1:
        return config
    threads = max(1, (config.model.threads or torch.get_num_threads()) // config.memorize.processes)
    return replace(config, model=replace(config.model, threads=threads))


def split_tasks(tasks: Iterable[Task], config: Config, template: str) -> list[WorkerTasks]:
    """The tasks in shares of about the same work, none of them empty."""
    ordered = sorted(tasks, key=lambda task: -len(task.tokens))
    config, count = per_process_config(config), config.memorize.processes
    batches = [tuple(ordered[number::count]) for number in range(count)]
    return [
        WorkerTasks(number, config, template, batch)
        for number, batch in enumerate(batches)
        if batch
    ]


def _write_here(
    lm: LM,
    template: Template,
    settings: Memorize,
    tasks: Iterable[Task],
    on_step: Callable[[Step], None],
) -> Iterator[Record]:
    exactly = in_float32(lm)
    for written in memorize(lm, template, tasks, settings, on_step=on_step):
        yield judge_record(exactly, template, settings, written)


def _write_in_processes(
    shares: Sequence[WorkerTasks], on_step: Callable[[Step], None]
) -> Iterator[Record]:
    """Starts a process for each share and yields what comes; all end when this does."""
    processes = dict(map(_start_process, shares))
    latest: dict[Connection, Step] = {}
    try:
        for pipe, message in _receive(processes):
            if isinstance(message, Exception):
                raise message
            if isinstance(message, Record):
                yield message
            else:
                latest[pipe] = message
                on_step(_sum_steps([latest[one] for one in latest if not one.closed]))
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _receive(
    processes: Mapping[Connection, SpawnProcess],
) -> Iterator[tuple[Connection, Record | Step | Exception]]:
    """The messages of the processes as they come; a pipe whose process has ended is closed."""
    while waiting := [pipe for pipe in processes if not pipe.closed]:
        for pipe in cast(list[Connection], wait(waiting)):
            try:
                yield pipe, pipe.recv()
            except (EOFError, OSError) as error:  # OSError: it was killed amid a message
                pipe.close()
                _require_success(processes[pipe])
                if isinstance(error, OSError):
                    raise


def _sum_steps(steps: Sequence[Step]) -> Step:
    """The progress of several processes together: rows and their steps summed, the most else."""
    return Step(
        rows=sum(step.rows for step in steps),
        right=sum(step.right for step in steps),
        steps=max(step.steps for step in steps),
        seconds=max(step.seconds for step in steps),
        row_steps=sum(step.row_steps for step in steps),
    )


def _start_process(share: WorkerTasks) -> tuple[Connection, SpawnProcess]:
    # after a fork neither CUDA nor torch's threads work
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_worker, args=(share, theirs), daemon=True)
    process.start()
    theirs.close()  # or its end would not be seen here
    return ours, process


def _require_success(process: SpawnProcess) -> None:
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


def run_worker(share: WorkerTasks, pipe: Connection) -> None:
    """Entry point of a worker process: optimizes and judges its share.

    It sends records, its progress (`Step`), and the exception that ended it.
    """
    for sent in (signal.SIGINT, signal.SIGHUP):  # the caller decides what comes of a Ctrl-C
        signal.signal(sent, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(BrokenPipeError):  # the caller is gone
        try:
            if torch.cuda.is_available():
                torch.cuda.set_device(share.number % torch.cuda.device_count())
            lm = models.load(share.config.model)
            for record in _write_here(
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
