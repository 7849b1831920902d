"""Ray: the cluster, and rows mapped over its workers. The only home of ray.

    rows -> map_batches(Worker, one model each) -> rows, each as it is done

What a worker was doing when it or its machine ended is lost, not what it had done: Ray is asked for
no retries. What did not come back is offered again, each chunk alone, to whoever is there then; and
what has not come back after ATTEMPTS is a row with the reason.
"""

import logging
import os
import secrets
import signal
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rag_memtok.cluster.actors import Job, Worker, failure_row
from rag_memtok.cluster.rows import Row, rows_of, table_of
from rag_memtok.config import Cluster, Config
from rag_memtok.errors import ClusterUnavailable, UsageError

ATTEMPTS = 4
RETRIED = ("", "OutOfMemory")  # errors that another worker may not have; others are the caller's
STARTS = 5  # tries, on a busy machine
INIT_DEATHS = 20  # of workers in a row while they load the model
HERE = "127.0.0.1"
# a cluster of this machine alone
LOCAL = {"address": "local", "include_dashboard": False, "_node_ip_address": HERE}
PATIENCE = 10.0  # seconds for a connection to the cluster
LOST = "its worker ended without a word: killed, out of memory, or too long at one chunk"
# before ray is imported: no word to its makers; whoever talks to the cluster needs its token
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what is lost is told by us
}
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def import_ray(environment: Mapping[str, str]) -> ModuleType:
    """The package ray, imported with these variables in force.

    Raises:
        UsageError: it is not installed.
    """
    os.environ.update(environment)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(
            "--engine ray needs the package ray", remedy="pip install 'rag-memtok[cluster]'"
        ) from error
    return ray


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """A connection to the cluster; without an address one is started here, on loopback alone.

    Raises:
        ClusterUnavailable: it is not there, or has another token.
        UsageError: ray is not installed.
    """
    environment = dict(ENVIRONMENT)
    if not cluster.address and not any(name in os.environ for name in TOKENS):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray = import_ray(environment)
    if ray.is_initialized():  # the caller's, and left to it
        yield
        return
    try:
        with _our_signals():
            _connect(ray, cluster)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _our_signals() -> Iterator[None]:
    """Keeps Ray from taking over what a signal does."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _connect(ray: ModuleType, cluster: Cluster) -> None:
    """Joins the cluster, or starts one; Ray gives a start half a minute, and raises whatever."""
    where: Mapping[str, Any] = {"address": cluster.address} if cluster.address else LOCAL
    for left in reversed(range(1 if cluster.address else STARTS)):
        try:
            _require_listener(cluster.address)
            ray.init(**where, log_to_driver=False, logging_level="error")
            return
        except Exception as error:
            ray.shutdown()
            if left:
                continue
            raise ClusterUnavailable(
                f"no Ray cluster answers at {cluster.address or HERE}: {_first_line(error)}",
                remedy="ray start --address HOST:PORT makes this machine one of its nodes; "
                "RAY_AUTH_TOKEN_PATH names the file with its token (docs/scale.md)",
            ) from error


def _require_listener(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """The workers of a job: how many, and how many CPUs and GPUs each takes of its machine."""

    size: int
    cpus: int
    gpus: int


def plan_pool(config: Config, resources: Mapping[str, float]) -> WorkerPool:
    """The workers that the cluster has room for: one a GPU, or where it has none, one a core.

    `model.threads` are the cores of a worker; `memorize.processes`, if there is more than one, is
    how many workers there are to be.

    Raises:
        UsageError: a GPU is asked for, and there is none.
    """
    gpus, cpus = int(resources.get("GPU", 0)), max(1, config.model.threads)
    wanted = config.memorize.processes if config.memorize.processes > 1 else 0
    if config.model.device == "cuda" and not gpus:
        raise UsageError(
            "--device cuda: no node of the cluster has a GPU", remedy="leave --device out"
        )
    if gpus and config.model.device != "cpu":
        return WorkerPool(wanted or gpus, cpus, 1)
    return WorkerPool(wanted or max(1, int(resources.get("CPU", 1)) // cpus), cpus, 0)


def current_pool(config: Config) -> WorkerPool:
    """The workers that the connected cluster has room for."""
    return plan_pool(config, import_ray({}).cluster_resources())


def map_rows(
    job: Job, items: Mapping[str, Row], schema: Any, size: int, pool: WorkerPool
) -> Iterator[Row]:
    """Has the workers do `items`; yields a row for each, as it is done or given up.

    Args:
        items: rows by chunk id, of `schema`.
        size: items that a worker is given at once.

    Raises:
        ClusterUnavailable: no worker delivered anything.
    """
    left, reasons, attempts, delivered = dict(items), dict[str, str](), 0, False
    while left and attempts < ATTEMPTS:
        before, trouble = len(left), ""
        for row in _offer(job, list(left.values()), schema, size, pool):
            if isinstance(row, BaseException):
                trouble = _first_line(row)
                continue
            delivered = True
            if row["failed"] and row["error"] in RETRIED:
                reasons[row["chunk"]] = row["reason"]
            elif left.pop(row["chunk"], None) is not None:
                yield row
        # what ended all of it before its end is no attempt, as long as it goes on
        attempts += not trouble or len(left) == before
        size = size if trouble else 1
    if left and not delivered:
        raise ClusterUnavailable(
            f"no worker delivered anything: {trouble or LOST}",
            remedy="the logs of a machine's workers are in /tmp/ray/session_latest/logs there",
        )
    for chunk_id in left:
        reason = reasons.get(chunk_id, LOST)
        yield failure_row(chunk_id, None) | {"reason": f"{reason} ({ATTEMPTS} attempts)"}


def _offer(
    job: Job, rows: Sequence[Row], schema: Any, size: int, pool: WorkerPool
) -> Iterator[Row | BaseException]:
    """Offers rows once; last comes what ended that before its end, if anything did."""
    ray = import_ray({})
    _configure_data(ray, job.config.cluster)
    tables = [table_of(rows[start : start + size], schema) for start in range(0, len(rows), size)]
    strategy = ray.data.ActorPoolStrategy(
        min_size=1, max_size=pool.size, initial_size=pool.size, max_tasks_in_flight_per_actor=2
    )
    with warnings.catch_warnings():
        # the last argument goes with Ray 2.64, and nothing takes its place yet: pyproject.toml
        warnings.simplefilter("ignore")
        done = ray.data.from_blocks(tables).map_batches(
            Worker,
            fn_constructor_args=[job],
            batch_size=None,
            batch_format="pyarrow",
            compute=strategy,
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": 0},
        )
    try:
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from rows_of(table)
    except (ray.exceptions.RayError, *_data_errors(ray)) as error:
        yield error


def _data_errors(ray: ModuleType) -> tuple[type[BaseException], ...]:
    """The errors of Ray Data that are no RayError."""
    return ray.data.exceptions.SystemException, ray.data.exceptions.ExecutionTimeoutError


def _configure_data(ray: ModuleType, cluster: Cluster) -> None:
    """Sets Ray Data up: a block for each chunk, so that it comes when it is done.

    What is lost is left. What Ray has to say goes to its log, not to the terminal.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    limit = cluster.chunk_timeout
    context.execution_no_progress_timeout_s = 2 * limit if limit else -1
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ == "PlainRayHandler":
            handler.setLevel(logging.CRITICAL)
