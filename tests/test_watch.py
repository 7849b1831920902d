"""Documents watched: what changes is ingested again, what is not a document does not count."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from small import dials, proven, written

from rag_memtok.cli import ingest_views
from rag_memtok.documents.scan import Skipped
from rag_memtok.errors import InputRefused, RagMemtokError
from rag_memtok.pipeline import api, watch
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.settings import updated

watchfiles = pytest.importorskip("watchfiles")


@pytest.fixture
def config(tmp_path, model_folder):
    written(tmp_path / "docs", {"a.txt": "The lamp is red."})
    return dials(tmp_path / "docs" / ".rag-memtok", model_folder)


def paths(config):
    return sorted(one.document.path for one in api.documents(config))


def effect(rounds):
    """The next round in which something came of it: one save may be told in two."""
    for one in rounds:
        if isinstance(one, RagMemtokError) or one.files or one.removed:
            return one
    raise AssertionError("the watch has ended")


def saved(path, content):
    """Writes a file as editors do, whole or not at all."""
    draft = path.parent.parent / "draft"
    draft.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(draft, path)


def test_each_change_is_ingested(config, tmp_path):
    documents = tmp_path / "docs"
    rounds = watch.watch([documents], config, prune=True)
    assert next(rounds).files == 1
    (documents / "b.txt").write_text("The fan is loud.")
    assert effect(rounds).files == 1 and paths(config) == ["a.txt", "b.txt"]
    draft = documents / "a.txt.tmp"  # as an editor saves
    draft.write_text("The lamp is blue.")
    os.replace(draft, documents / "a.txt")
    assert effect(rounds).files == 1
    (documents / "b.txt").unlink()
    assert effect(rounds).removed == 1 and paths(config) == ["a.txt"]
    rounds.close()
    proven(config)


def test_what_changes_during_an_ingest_is_seen(config, tmp_path):
    documents, once = tmp_path / "docs", itertools.count()

    def save_another(standing):
        if not next(once):
            (documents / "late.txt").write_text("Saved while the first was written.")

    rounds = watch.watch([documents], config, on_progress=save_another)
    assert next(rounds).files == 1 and effect(rounds).files == 1
    assert paths(config) == ["a.txt", "late.txt"]


def test_a_file_alone_is_watched_through_its_folder(config, tmp_path):
    file = tmp_path / "docs" / "a.txt"
    rounds = watch.watch([file], config)
    next(rounds)
    saved(file, "The lamp is green.")
    assert effect(rounds).files == 1


def test_the_store_itself_is_no_change(config, tmp_path):
    turns = watch.watch_changes([tmp_path / "docs"], tmp_path / "docs" / ".rag-memtok")
    next(turns)
    (tmp_path / "docs" / ".rag-memtok").mkdir()
    (tmp_path / "docs" / ".rag-memtok" / "store.db").write_text("x")
    (tmp_path / "docs" / ".git").mkdir()
    (tmp_path / "docs" / ".git" / "index").write_text("x")
    began = time.monotonic()
    threading.Timer(2.0, (tmp_path / "docs" / "b.txt").write_text, ["The fan is loud."]).start()
    next(turns)
    assert time.monotonic() - began > 1.5


@pytest.mark.parametrize("how", [shutil.rmtree, lambda docs: docs.rename(docs.parent / "moved")])
def test_a_folder_made_anew_is_watched_again(config, tmp_path, how):
    documents = tmp_path / "docs"
    config = updated(config, {"store": str(tmp_path / "store")})
    rounds = watch.watch([documents], config)
    assert next(rounds).files == 1
    fresh = written(tmp_path / "fresh", {"b.txt": "The fan is loud."})
    how(documents)
    fresh.rename(documents)
    assert effect(rounds).files == 1
    saved(documents / "c.txt", "The oven is hot.")
    assert effect(rounds).files == 1
    assert paths(config) == ["a.txt", "b.txt", "c.txt"]
    rounds.close()
    proven(config)


def test_a_folder_that_is_gone_is_told_and_nothing_of_it_is_removed(config, tmp_path):
    written(tmp_path / "more", {"b.txt": "The fan is loud."})
    config, told = updated(config, {"store": str(tmp_path / "store")}), []
    documents, moved = tmp_path / "docs", tmp_path / "moved"

    def on_talk(message):
        told.append(message)
        if "not there any more" in message:
            saved(tmp_path / "more" / "c.txt", "The oven is hot.")

    rounds = watch.watch([documents, tmp_path / "more"], config, prune=True, say=on_talk)
    assert next(rounds).files == 2
    documents.rename(moved)
    assert effect(rounds).files == 1
    assert paths(config) == ["a.txt", "b.txt", "c.txt"]
    moved.rename(documents)
    saved(documents / "a.txt", "The lamp is blue.")
    assert effect(rounds).files == 1
    (gone,) = [one for one in told if one.startswith(f"{documents} is not there any more")]
    assert "what is stored of it stays" in gone and told.count(f"{documents} is there again") == 1
    rounds.close()
    proven(config)


def test_the_only_folder_may_be_away_for_a_while(config, tmp_path):
    config = updated(config, {"store": str(tmp_path / "store")})
    documents, moved = tmp_path / "docs", tmp_path / "moved"
    fresh = written(tmp_path / "fresh", {"b.txt": "The fan is loud."})

    def on_talk(message):
        if "not there any more" in message:
            fresh.rename(documents)

    rounds = watch.watch([documents], config, say=on_talk)
    assert next(rounds).files == 1
    documents.rename(moved)
    assert effect(rounds).files == 1 and paths(config) == ["a.txt", "b.txt"]


def test_a_later_failure_is_told_and_the_watch_goes_on(config, tmp_path):
    file = tmp_path / "docs" / "a.txt"
    rounds = watch.watch([file], config)
    next(rounds)
    saved(file, b"\xff\xfe\xfd")
    assert isinstance(effect(rounds), RagMemtokError)
    saved(file, "The lamp is whole again.")
    assert effect(rounds).files == 1


def test_the_first_failure_is_raised(config, tmp_path):
    with pytest.raises(InputRefused, match="none"):
        next(watch.watch([tmp_path / "none"], config))
    with pytest.raises(RagMemtokError):
        next(watch.watch([tmp_path / "docs"], updated(config, {"model.id": "/no/such/model"})))
    assert not (tmp_path / "docs" / ".rag-memtok").exists()


MAIN = "from rag_memtok.cli.app import main; main()"


@contextmanager
def watching(config, folder, *words, program=MAIN):
    """The command in a process of its own, once it waits for a change of the folder."""
    told = [
        "watch", str(folder), "--store", config.store, "--threads", "1", "--device", "cpu", *words
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", program, *told],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        assert command.stderr.readline() == "watching; Ctrl-C ends\n"
        yield command


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_ends_the_command_with_what_was_done(config, tmp_path, sent):
    api.ingest([tmp_path / "docs"], config)
    with watching(config, tmp_path / "docs") as command:
        saved(tmp_path / "docs" / "b.txt", "The fan is loud.")
        assert "watching; Ctrl-C ends\n" in iter(command.stderr.readline, "")
        command.send_signal(sent)
        try:
            out, err = command.communicate(timeout=600)
        finally:
            command.kill()
    assert command.returncode == 0
    ending = (
        r"watched: 1 files written \(1 chunks\), 0 removed, in \d rounds; all of it is stored\n"
    )
    assert re.search(ending + r"\Z", out)
    assert "Traceback" not in err
    proven(config)


# The command itself, which waits for a signal when it has kept two chunks.
WAITING = f"""
import sys, time
from rag_memtok.store.store import Store
put = Store.put
def wait_after_two(self, record, text):
    put(self, record, text)
    if len(self.chunk_ids()) == 2:
        print("two are kept", file=sys.stderr, flush=True)
        time.sleep(600)
Store.put = wait_after_two
{MAIN}
"""


@pytest.mark.parametrize(
    ("sent", "code", "json_too", "read"),
    [
        (signal.SIGINT, 130, [], True),
        pytest.param(signal.SIGTERM, 143, ["--json"], True, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, [], False, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_in_the_middle_of_a_later_ingest_is_told(
    config, tmp_path, sent, code, json_too, read
):
    api.ingest([tmp_path / "docs"], config)
    with watching(config, tmp_path / "docs", *json_too, program=WAITING) as command:
        saved(tmp_path / "docs" / "b.txt", "The fan is loud.\n")
        assert "two are kept\n" in iter(command.stderr.readline, "")
        if not read:  # as by a reader that the same Ctrl-C ended
            command.stdout.close()
            command.stderr.close()
        command.send_signal(sent)
        try:
            out, err = command.communicate(timeout=600) if read else ("", "")
            command.wait(600)
        finally:
            command.kill()
    assert command.returncode == code and "Traceback" not in err
    if not read:
        return
    assert err.endswith("interrupted; what is done is kept: run the same command again to go on\n")
    assert "all of it is stored" not in out
    if json_too:
        assert {json.loads(line)["files"] for line in out.splitlines()} == {0}
    else:
        assert "its ingest was cut short" in err and "what was written is stored" in out


@pytest.mark.parametrize(
    ("failure", "missing", "skipped", "ending", "talk"),
    [
        ("", [], (), "all of it is stored", ""),
        ("nothing to read in docs", [], (), "what was written is stored", "nothing to read in"),
        ("", [Path("docs")], (), "what was written is stored", "docs, which is not there any more"),
        ("", [], (Skipped("/docs", "a.txt", "empty"),), "what was written is stored", "a.txt"),
    ],
)
def test_at_the_end_all_is_stored_only_if_it_is(failure, missing, skipped, ending, talk, capsys):
    done = Ingested(
        files=1,
        unchanged=0,
        removed=0,
        vanished=(),
        skipped=skipped,
        chunks=2,
        tokens_per_vector=4,
    )
    ingest_views.put_watched([done], failure, missing, cut_short=False)
    out, err = capsys.readouterr()
    assert out == f"watched: 1 files written (2 chunks), 0 removed, in 1 rounds; {ending}\n"
    assert talk in err and bool(talk) == bool(err)


def test_without_watchfiles_one_line_says_how_to_get_it(tmp_path):
    script = (
        "import sys; sys.modules['watchfiles'] = None; sys.argv = ['rag-memtok', 'watch', '.', "
        "'--json']\n"
        "from rag_memtok.cli.app import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and "pip install 'rag-memtok[watch]'" in done.stderr
    assert "watchfiles" in json.loads(done.stdout)["error"]["message"]
