"""The front door: `import rag_memtok as rm` does what the command line does."""

import logging
import os
import shutil
import subprocess
import sys

import pytest

import rag_memtok as rm
from rag_memtok import settings
from rag_memtok.errors import InputRefused, NoStore, UsageError
from rag_memtok.store import ownership

FAN, LAMP = "The fan is very loud today.", "The lamp of the harbour is red."


WAITING, ACTIVE = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}, {"OMP_WAIT_POLICY": "ACTIVE"}
COMMAND = "sys.argv[1:] = ['--version']\nfrom rag_memtok.cli.app import main; main()"
QUICK = {"tokens_per_vector": 4, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    """A folder with two documents and their store, written through the front door."""
    folder = tmp_path_factory.mktemp("face")
    (folder / "docs").mkdir()
    (folder / "docs" / "fan.txt").write_text(FAN)
    (folder / "docs" / "lamp.txt").write_text(LAMP)
    done = rm.ingest(folder / "docs", store=folder / "store", model=model_folder, **QUICK)
    assert (done.files, done.chunks, done.verdicts) == (2, 2, {"exact": 2})
    return folder


def test_the_three_things(folder):
    told = {"store": folder / "store", "device": "cpu", "threads": 1}
    found = rm.ask("Which fan is loud?", **told)
    assert found.sources[0].path == "fan.txt" and isinstance(found, rm.Answer)
    audit = rm.verify(**told)
    assert audit.ok and audit.exit_code == 0 and isinstance(audit, rm.Audit)
    assert rm.restore(folder / "back", **told).exit_code == 0
    assert (folder / "back" / "fan.txt").read_text() == FAN


def test_a_store_to_hold_loads_its_model_once_and_sees_what_is_new(
    folder, tmp_path, model_folder, monkeypatch
):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "fan.txt").write_text(FAN)
    with rm.open(tmp_path / "store", model=str(model_folder), **QUICK) as store:
        assert "nothing in it yet" in repr(store)
        store.ingest(tmp_path / "docs")
        session = store.session()
        assert store.ask("Which fan is loud?").sources[0].path == "fan.txt"
        assert store.session() is session  # nothing has changed
        (tmp_path / "docs" / "lamp.txt").write_text(LAMP)
        store.ingest(tmp_path / "docs")
        assert store.ask("Which lamp is red?").sources[0].path == "lamp.txt"
        assert store.session() is not session and store.session().lm is session.lm
        assert store.verify(report=tmp_path / "audit.html").ok
        assert store._load_lm.cache_info().misses == 1
        assert [text for text, _ in store.quotations("Which lamp is red?")][0] == LAMP
        assert "2 documents, 2 chunks" in repr(store)
    assert (tmp_path / "audit.html").exists()


def test_what_is_written_while_its_index_is_opened_is_seen(folder, tmp_path, caplog):
    shutil.copytree(folder / "store", tmp_path / "store")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "oven.txt").write_text("The oven is hot.")
    cache = tmp_path / "store" / "index.faiss"
    cache.unlink()
    in_the_way = tmp_path / "store" / "index.faiss.new"
    in_the_way.mkdir()

    class Writer(logging.Handler):
        """Writes to the store when its keys are read, and cannot be cached."""

        def emit(self, record):
            if "kept in memory only" in record.getMessage():
                in_the_way.rmdir()
                rm.ingest(tmp_path / "docs", store=tmp_path / "store", **QUICK)

    caplog.set_level(logging.INFO, "rag_memtok.retrieval.index")
    logger, writer = logging.getLogger("rag_memtok.retrieval.index"), Writer()
    logger.addHandler(writer)
    try:
        with rm.open(tmp_path / "store", device="cpu", threads=1) as store:
            assert store.session().index.keys.ntotal == 2
            assert not in_the_way.exists() and store.status().summary.chunks == 3
            assert store.session().index.keys.ntotal == 3
    finally:
        logger.removeHandler(writer)


def test_values_show_themselves_in_a_line(folder):
    with rm.open(folder / "store", device="cpu", threads=1, k=1) as store:
        answer, audit = store.ask("Which fan is loud?"), store.verify()
        unchanged = store.ingest(folder / "docs")
    assert repr(answer).startswith("Answer(") and "fan.txt line 1" in repr(answer)
    assert f"{answer.context_positions} positions instead of" in repr(answer)
    assert "all chunks and all documents" in repr(audit) and "2 of 2 documents" in repr(audit)
    assert repr(unchanged).startswith("Ingested(0 files written, 2 unchanged")
    assert max(len(repr(one)) for one in (answer, audit, unchanged)) < 400


def test_settings_are_keywords(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAG_MEMTOK_RETRIEVE_K", "9")
    (tmp_path / "rag-memtok.toml").write_text("[ask]\nmax_new_tokens = 7\n")
    found = settings.here(model="mini", tokens_per_vector=8, adapt__steps=3, steps=50, seed=None)
    assert (found.model.id, found.memorize.tokens_per_vector, found.retrieve.k) == ("mini", 8, 9)
    assert (found.memorize.steps, found.adapt.steps, found.ask.max_new_tokens) == (50, 3, 7)
    assert settings.here(k=2).retrieve.k == 2
    with pytest.raises(UsageError, match="tokens_per_vector"):
        rm.open("store", tokens_per_vectors=8)
    with pytest.raises(UsageError, match="retrieve.k is 0"):
        rm.open("store", k=0)


def test_what_goes_wrong_is_what_the_command_line_says(folder, tmp_path, monkeypatch):
    with pytest.raises(NoStore):
        rm.ask("Which fan is loud?", store=tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a path is empty"):
        rm.ingest("", store=tmp_path / "nowhere", **QUICK)
    with rm.open(folder / "store", device="cpu", threads=1) as store:
        calls = (
            lambda: store.restore(""),
            lambda: store.verify(quick=True, against=""),
            lambda: store.verify(quick=True, report=""),
        )
        for call in calls:
            with pytest.raises(UsageError, match="a path is empty"):
                call()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody-else"))
    with pytest.raises(InputRefused, match="not made here"):
        rm.ask("Which fan is loud?", store=folder / "store", device="cpu")
    assert ownership.secret_path().parent.parent == tmp_path / "somebody-else"
    with rm.open(folder / "store", trust=True, device="cpu", threads=1) as store:
        assert store.ask("Which fan is loud?").sources


@pytest.mark.parametrize("start", ["import rag_memtok; rag_memtok.open", COMMAND])
def test_threads_share_the_cores_with_others_unless_told_otherwise(start):
    said = "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT')))"
    script = f"import atexit, os, sys\n{said}\n"
    for told, found in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), (ACTIVE, "None")):
        kept = {name: value for name, value in os.environ.items() if name not in WAITING}
        done = subprocess.run(
            [sys.executable, "-c", script + start], env=kept | told, capture_output=True, text=True
        )
        assert done.stdout.split()[-1] == found, done.stderr


def test_what_is_public_is_there_and_nothing_is_loaded_before_it_is_used():
    assert all(getattr(rm, name) is not None for name in rm.__all__)
    assert set(rm.__all__) <= set(dir(rm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rm.nothing
    script = "import rag_memtok, sys; print({'torch', 'numpy', 'typer'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
