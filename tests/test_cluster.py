"""A cluster writes and recites what one machine would: the same rows, whatever ends meanwhile."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small import DOCUMENTS, content_of, dials, proven, written

sys.path.insert(0, str(Path(__file__).parent / "faults"))

from nodes import campaign, nodes

from rag_memtok.cluster.actors import WORK, Job, Worker, failure_row
from rag_memtok.cluster.engine import (
    absolute_path,
    chunks_at_once,
    failure_reason,
    reciting,
    worker_config,
    writing,
)
from rag_memtok.cluster.pool import WorkerPool, connected, plan_pool
from rag_memtok.cluster.rows import (
    RECITED,
    RECORD,
    STORED,
    TASK,
    recited_from_row,
    recited_row,
    record_from_row,
    record_row,
    rows_of,
    table_of,
    task_row,
)
from rag_memtok.config import Cluster, Config
from rag_memtok.datatypes import ReadableVectors
from rag_memtok.errors import (
    ChunkDoesNotFit,
    ClusterUnavailable,
    ModelUnavailable,
    UsageError,
    WrongModel,
)
from rag_memtok.memory.batch import Task
from rag_memtok.memory.workers import Unwritten
from rag_memtok.pipeline import api
from rag_memtok.pipeline.audit import reconstruct_here
from rag_memtok.pipeline.handle import open as open_held
from rag_memtok.pipeline.manifest import JOB, complete_config, job_fingerprint
from rag_memtok.pipeline.writer import write_in_processes
from rag_memtok.settings import updated
from rag_memtok.store.store import open_store

ONE_BY_ONE = {"memorize__batch": 1}


@pytest.fixture(scope="module")
def local(tmp_path_factory, model_folder):
    """A store written here, one chunk at a time; and its documents."""
    folder = tmp_path_factory.mktemp("local")
    documents = written(folder / "docs")
    config = dials(folder / "store", model_folder, **ONE_BY_ONE)
    api.ingest([documents], config)
    return config, documents


def records_of(config):
    with open_store(Path(config.store), write=False) as store:
        return [(store.record(one), store.text(one)) for one in store.chunk_ids()]


def job(config, work, **changes):
    with open_store(Path(config.store), write=False) as store:
        manifest = store.manifest
    told = worker_config(complete_config(config, manifest), WorkerPool(1, 1, 0))
    return Job(work=work, config=told, template="bare", manifest=manifest | changes)


# --- what goes between machines


def test_a_record_comes_back_from_a_row(local):
    for record, _ in records_of(local[0]):
        made = ReadableVectors("ab" * 32, 16, "float16", b"1234", (1, 2))
        for one in (replace(record, key=None), replace(record, key=None, readable=made)):
            (row,) = rows_of(table_of([record_row(one)], RECORD))
            back = record_from_row(row)
            assert record_row(back) == record_row(one) and back.readable == one.readable
            assert back.pins == one.pins and back.verdict == one.verdict


def test_rows_are_plain_columns_nothing_of_which_is_unpickled():
    for schema in (TASK, STORED, *(schema for schema, _ in WORK.values())):
        assert "extension" not in str(schema) and "large_binary" not in str(schema)
    sources = Path(absolute_path(str(Path(__file__).parent.parent / "rag_memtok" / "cluster")))
    assert not [one for one in sources.glob("*.py") if "pickle." in one.read_text()]


# --- a worker, without a cluster


def test_a_worker_writes_what_is_written_here(local):
    config = local[0]
    here = {record.chunk_id: record for record, _ in records_of(config)}
    tasks = []
    with open_store(Path(config.store), write=False) as store:
        model = api.resources.load_decoder(store.manifest, config)[0]
        for chunk_id, record in here.items():
            if record.shape != (0, 0):
                tokens = tuple(model.encode(store.text(chunk_id)))
                tasks.append(Task(chunk_id, tokens, record.shape[0]))
    worker = Worker(job(config, "write"))
    rows = [row for table in worker(table_of(map(task_row, tasks), TASK)) for row in rows_of(table)]
    assert sorted(row["chunk"] for row in rows) == sorted(task.key for task in tasks)
    for row in rows:
        assert not row["failed"], row["reason"]
        assert record_row(record_from_row(row)) == record_row(replace(here[row["chunk"]], key=None))


def test_what_a_worker_cannot_do_is_a_row_with_its_reason(local):
    tasks = [Task("a", (70,) * 600, 1), Task("b", (70, 71), 1)]
    worker = Worker(job(local[0], "write"))
    rows = [row for table in worker(table_of(map(task_row, tasks), TASK)) for row in rows_of(table)]
    assert {row["chunk"]: row["failed"] for row in rows} == {"a": True, "b": True}
    with pytest.raises(ChunkDoesNotFit, match="positions") as refused:
        failure_reason(rows[0])
    assert "--chunk-tokens" in refused.value.remedy


@pytest.mark.parametrize(
    "change, error",
    [
        ({"manifest": {"weights_sha256": "0" * 64}}, WrongModel),
        ({"versions": {"torch": "0.1"}}, WrongModel),
        ({"model": "./nowhere"}, ModelUnavailable),
    ],
)
def test_a_worker_with_another_model_or_library_says_so_with_every_chunk(local, change, error):
    made = job(local[0], "write", **change.get("manifest", {}))
    made = replace(made, versions=change.get("versions", made.versions))
    if "model" in change:
        model = replace(made.config.model, id=change["model"])
        made = replace(made, config=replace(made.config, model=model))
    (table,) = Worker(made)(table_of([task_row(Task("a", (70,), 1))], TASK))
    with pytest.raises(error):
        failure_reason(rows_of(table)[0])


def test_what_another_worker_may_be_able_to_do_is_no_error_of_the_caller():
    for error in (RuntimeError("CUDA error"), None):
        assert failure_reason(failure_row("a", error) | {"reason": "why"}) == "why"


HANGING = """
import sys, time
from rag_memtok.cluster import actors
from rag_memtok.cluster.rows import TASK, table_of, task_row
from rag_memtok.config import Cluster, Config
from rag_memtok.memory.batch import Task

def hang(job, tools, rows):
    yield {"chunk": "a"}
    time.sleep(3600)

class Hanging(actors.Worker):
    def __init__(self, job):
        self.job, self.tools, self.failure = job, object(), None

actors.WORK = {"write": (actors.WRITTEN, hang)}
job = actors.Job(work="write", config=Config(cluster=Cluster(chunk_timeout=0.5)), template="",
                 manifest={})
for table in Hanging(job)(table_of([task_row(Task("a", (1,), 1))], TASK)):
    print("delivered", flush=True)
"""


def test_a_worker_that_hangs_ends_itself_after_what_it_delivered():
    done = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1 and done.stdout == "delivered\n"
    assert "Timeout" in done.stderr


def test_a_chunk_that_no_worker_can_write_is_a_file_that_failed(local, tmp_path, model_folder):
    """The engine is one that gives up a chunk; what an ingest makes of that is the question."""

    def gives_up(writer, tasks):
        first, *rest = tasks
        yield Unwritten(first.key, "its worker ended without a word")
        yield from write_in_processes(writer, rest)

    config = dials(tmp_path / "store", model_folder, **ONE_BY_ONE)
    done = api.ingest([local[1]], config, engine=gives_up)
    assert done.failed and all("without a word" in one.reason for one in done.failed)
    assert done.files == len(DOCUMENTS) - len(done.failed)
    again = api.ingest([local[1]], config)
    assert again.failed == () and again.files == len(done.failed) and again.chunks == 1
    assert content_of(tmp_path / "store")[1] == content_of(Path(local[0].store))[1]


# --- the job


def test_another_job_on_the_store_is_refused_until_it_is_done(local, tmp_path):
    config, documents = local
    shutil.copytree(config.store, tmp_path / "store")
    config = updated(config, {"store": str(tmp_path / "store")})
    with open_store(tmp_path / "store", write=True) as store:
        store.set_manifest(JOB, job_fingerprint(config))
    more = written(tmp_path / "more", {"more.txt": "The door is green."})
    with pytest.raises(UsageError, match="steps 0 there, 7 now"):
        api.ingest([more], updated(config, {"memorize.steps": 7}))
    # how the work is laid out may change, and so may the documents
    assert api.ingest([more], updated(config, {"memorize.batch": 2})).files == 1


def test_a_job_is_over_when_an_ingest_ends_with_nothing_missing(local, tmp_path):
    """Also one without Ray: otherwise other settings would be refused for ever."""

    def gives_up(writer, tasks):
        return (Unwritten(task.key, "its worker ended without a word") for task in tasks)

    def job_after(ingested, engine=write_in_processes):
        with open_store(tmp_path / "store", write=True) as store:
            store.set_manifest(JOB, job_fingerprint(config))
        api.ingest([ingested], config, engine=engine)
        with open_store(tmp_path / "store", write=False) as store:
            return store.manifest[JOB]

    config, documents = local
    shutil.copytree(config.store, tmp_path / "store")
    config = updated(config, {"store": str(tmp_path / "store")})
    more = written(tmp_path / "more", {"more.txt": "The door is green."})
    assert job_after(more, gives_up) == job_fingerprint(config)
    assert job_after(more) == ""
    assert job_after(documents) == ""  # nothing was to be done
    written(tmp_path / "more", {"more.txt": "The door is blue."})
    assert api.ingest([more], updated(config, {"memorize.seed": 3})).files == 1


def test_a_held_store_does_not_pretend_to_be_a_cluster():
    with pytest.raises(UsageError, match="cluster.engine is 'ray'") as refused:
        open_held("nowhere", cluster__engine="ray")
    assert "--engine ray" in refused.value.remedy


# --- who works


def test_a_worker_for_each_gpu_or_else_for_each_core():
    assert plan_pool(Config(), {"CPU": 6.0}) == WorkerPool(6, 1, 0)
    assert plan_pool(updated(Config(), {"model.threads": 4}), {"CPU": 9.0}) == WorkerPool(2, 4, 0)
    assert plan_pool(Config(), {"CPU": 64.0, "GPU": 20.0}) == WorkerPool(20, 1, 1)
    assert plan_pool(updated(Config(), {"model.device": "cpu"}), {"CPU": 3.0, "GPU": 1.0}).gpus == 0
    assert plan_pool(updated(Config(), {"memorize.processes": 3}), {"CPU": 8.0}).size == 3
    with pytest.raises(UsageError, match="no node of the cluster has a GPU"):
        plan_pool(updated(Config(), {"model.device": "cuda"}), {"CPU": 8.0})


def test_every_worker_gets_some_twice_and_none_more_than_it_needs():
    assert chunks_at_once(1000, 32, WorkerPool(4, 1, 0)) == 32
    assert chunks_at_once(40, 32, WorkerPool(4, 1, 0)) == 5
    assert chunks_at_once(3, 32, WorkerPool(4, 1, 0)) == 1


# --- a cluster


@pytest.fixture(scope="module")
def two():
    """A cluster of two nodes on this machine."""
    with nodes(2) as made:
        yield made


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_cluster_writes_the_same_rows_and_proves_them(local, two, tmp_path, model_folder):
    _, documents = local
    where = {"cluster__engine": "ray", "cluster__address": two.cluster.address}
    config = dials(tmp_path / "store", model_folder, **ONE_BY_ONE, **where)
    seen, told = [], []

    def interrupt(standing):
        seen.append(standing)
        if standing.done == 2:
            raise KeyboardInterrupt

    with writing(config) as engine:
        with pytest.raises(KeyboardInterrupt):
            api.ingest([documents], config, on_progress=interrupt, engine=engine)
        with open_store(Path(config.store), write=False) as store:
            assert len(store.chunk_ids()) >= 2 and store.manifest[JOB] == job_fingerprint(config)
        with pytest.raises(UsageError, match="not finished"):
            other = updated(config, {"memorize.seed": 3})
            api.ingest([documents], other, engine=engine)
        # a node ends under what goes on
        killed = []

        def kill(standing):
            told.append(standing)
            if standing.done and not killed:
                killed.append(two.kill(0))

        done = api.ingest([documents], config, on_progress=kill, engine=engine)
        assert done.failed == () and killed
        assert told[-1].done == told[-1].total == done.chunks and told[-1].facts["step"] > 0
        again = api.ingest([documents], config, engine=engine)
        assert (again.files, again.chunks) == (0, 0)
    chunks, papers, places = content_of(tmp_path / "store")
    their_chunks, their_papers, their_places = content_of(Path(local[0].store))
    assert chunks == their_chunks and papers == their_papers and places == their_places
    with open_store(Path(config.store), write=False) as store:
        assert store.manifest[JOB] == ""
    with reciting(config) as recite:
        there = api.verify(config, reconstruct=recite)
    here = proven(config)
    assert (there.counts, there.sentence, there.exit_code) == (here.counts, here.sentence, 0)
    assert {one.chunk_id: one.verdict for one in there.recited} == {
        one.chunk_id: one.verdict for one in here.recited
    }


@pytest.mark.filterwarnings("default")  # Ray's own
def test_no_cluster_there_is_told():
    with (
        pytest.raises(ClusterUnavailable, match="127.0.0.1:9"),
        connected(Cluster("ray", "127.0.0.1:9")),
    ):
        pass


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")  # Ray's own
def test_nodes_killed_while_they_write_lose_nothing(tmp_path):
    (trial,) = campaign(tmp_path, chunks=200, minutes=2, every=(1, 4))
    assert not trial.wrong and not trial.where.startswith("0 nodes"), trial


ALONE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import small
from rag_memtok.cluster.engine import writing
from rag_memtok.pipeline import api

docs, store, model = map(Path, sys.argv[2:])
config = small.dials(store, model, cluster__engine="ray", memorize__processes=1)
with writing(config) as engine:
    done = api.ingest([docs], config, engine=engine)
    print(done.chunks, os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"])
"""


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")  # Ray's own
def test_on_one_machine_ray_needs_no_connection_beyond_loopback(tmp_path, model_folder):
    docs = written(tmp_path / "docs", {"a.txt": DOCUMENTS["again.txt"]})
    words = [sys.executable, "-c", ALONE, str(Path(__file__).parent)]
    words += [str(docs), str(tmp_path / "store"), str(model_folder)]
    inside = ["unshare", "--user", "--map-root-user", "--net", "--", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "ip link set lo up"]).returncode:
        pytest.skip("no network namespaces here")
    done = subprocess.run(
        [*inside, 'ip link set lo up && exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"RAY_AUTH_TOKEN": "ab" * 32},
    )
    assert done.stdout == "1 token 0\n", done.stderr


def test_an_audit_names_the_devices_that_decoded(local):
    config, devices = local[0], iter(["cuda", "cpu"] * 100)

    def elsewhere(store, lm, template, chunk_ids, how):
        for some in reconstruct_here(store, lm, template, chunk_ids, how):
            for one, comparison in some:
                row = recited_row((replace(one, device=next(devices)), comparison))
                yield [recited_from_row(*rows_of(table_of([row], RECITED)))]

    assert api.verify(config).profile.endswith(", cpu")
    assert api.verify(config, reconstruct=elsewhere).profile.endswith(", cpu and cuda")


def test_a_name_means_the_same_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mini", "smollm2", "auto", "none", "mine"):
        (tmp_path / name).mkdir()
    for model in ("mini", "smollm2", "owner/model", ""):
        assert worker_config(dials("s", model), WorkerPool(1, 1, 0)).model.id == model
    for adapter in ("auto", "none"):
        told = worker_config(dials("s", "mini", ask__adapter=adapter), WorkerPool(1, 1, 0))
        assert told.ask.adapter == adapter
    told = worker_config(dials("s", "mine", ask__adapter="mine"), WorkerPool(1, 1, 0))
    assert (told.model.id, told.ask.adapter) == (str(tmp_path / "mine"),) * 2
