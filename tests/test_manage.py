"""The every-day commands, through the command line.

They are list, show, config, chat, export, import, migrate, completion.
"""

import fcntl
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import toy
from small import dials, written

from rag_memtok.cli import app
from rag_memtok.memory.reconstruct import ONE_PASS_ERROR, judge, memory_of
from rag_memtok.model import lm
from rag_memtok.model.prompts import template_named
from rag_memtok.pipeline import api
from rag_memtok.retrieval.search import search_query
from rag_memtok.settings import dials as dials_of
from rag_memtok.store.store import open_store


@pytest.fixture(scope="module")
def ready(tmp_path_factory, model_folder):
    """Documents and their store, to be copied."""
    folder = tmp_path_factory.mktemp("shelf")
    api.ingest([written(folder / "docs")], dials(folder / ".rag-memtok", model_folder))
    return folder


@pytest.fixture
def run(monkeypatch, command_line, tmp_path, ready):
    """Runs a command in a folder with a store."""
    shutil.copytree(ready / ".rag-memtok", tmp_path / ".rag-memtok")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAG_MEMTOK_ASK_MAX_NEW_TOKENS", "3")
    return command_line


# --- list


def test_list_names_documents_and_chunks(run):
    code, out, err = run("list")
    assert (
        code == 0
        and len(out.splitlines()) == 1 + 6
        and re.search(r"^lamp\.md +\d+ +\d+ +\d+ exact", out, re.M)
    )
    assert run("list", "--documents")[1] == out
    code, out, err = run("list", "--chunks")
    assert code == 0 and re.search(
        r"^[0-9a-f]{12} +\d+ +\d+ +exact +\d+ +\d\.\d+ +again\.txt, line 1 and 1 more$", out, re.M
    )
    everything = json.loads(run("list", "--documents", "--chunks", "--json")[1])
    assert len(everything["documents"]) == 6 and sum(
        one["chunks"] for one in everything["documents"]
    ) == 1 + len(everything["chunks"])
    assert {one["place"]["path"] for one in everything["chunks"]} <= {
        one["path"] for one in everything["documents"]
    }


def test_list_shows_damage_and_goes_on(run, tmp_path):
    with open_store(tmp_path / ".rag-memtok", write=True) as store:
        store._db.execute("UPDATE vectors SET packed = zeroblob(length(packed)) WHERE chunk = 1")
    code, out, err = run("list", "--chunks")
    assert code == 0 and out.count("damaged") == 1
    assert "1 damaged" in run("list")[1]


def test_list_collections(run, tmp_path):
    assert run("list", "--collections")[0] == 2
    (tmp_path / "root").mkdir()
    shutil.copytree(tmp_path / ".rag-memtok", tmp_path / "root" / "first")
    code, out, err = run("list", "--collections", "--store", "root")
    assert code == 0 and re.search(r"^first +6 +\d+ +", out, re.M)
    assert [
        one["name"]
        for one in json.loads(run("list", "--collections", "--store", "root", "--json")[1])[
            "collections"
        ]
    ] == ["first"]
    assert (
        run("status", "--store", "root")[0] == 2
        and run("status", "--store", "root", "--collection", "first")[0] == 0
    )


# --- show


def test_the_margins_of_show_are_the_judges(run, ready, model_folder):
    settings = dials(ready / ".rag-memtok", model_folder)
    model = lm.load(settings.model)
    template = template_named("bare", model)
    with open_store(ready / ".rag-memtok", write=False) as store:
        for chunk_id in store.chunk_ids()[:3]:
            record, text = store.record(chunk_id), store.text(chunk_id)
            shown = api.show(chunk_id[:10], settings)
            tokens = model.encode(text)
            memory, verdict = judge(
                model, template, memory_of(record), tokens, float(store.manifest["tau"])
            )
            unpinned = [one.margin for one in shown.tokens if not one.pin]
            assert min(unpinned, default=math.inf) == shown.verdict.margin
            assert shown.verdict.margin == pytest.approx(verdict.margin, abs=ONE_PASS_ERROR)
            assert [(number, one.pin) for number, one in enumerate(shown.tokens) if one.pin] == [
                (pin.position, pin.kind) for pin in memory.pins
            ]
            assert (
                shown.text == text
                and len(shown.tokens) == len(tokens) + 1
                and shown.verdict.kind == verdict.kind
            )
            sizes = {
                "vectors": len(record.packed),
                "pins": 9 * len(record.pins),
                "key": record.key.nbytes,
                "text": len(text.encode()),
            }
            assert shown.bytes == sizes


def test_show_prints_numbers_in_a_pipe(run):
    chunk = json.loads(run("list", "--chunks", "--json")[1])["chunks"][0]
    code, out, err = run("show", chunk["chunk_id"][:8])
    head, _, strip = out.partition("\n\n")
    assert code == 0 and re.search(
        r"^bytes +\d+ \(vectors \d+, pins \d+, key \d+\) against \d+ of text$", head, re.M
    )
    rows = [line.split("\t") for line in strip.splitlines()]
    assert len(rows) == chunk["verdict"]["tokens"] + 1 and [int(row[0]) for row in rows] == list(
        range(len(rows))
    )
    assert all(float(row[1]) > 0.1 or row[2] != "-" for row in rows)
    found = json.loads(run("show", chunk["chunk_id"][:8], "--json")[1])
    assert (
        "".join(json.loads(row[3]) for row in rows[:-1])
        == found["text"]
        == "".join(one["text"] for one in found["tokens"][:-1])
    )


@pytest.mark.slow
def test_show_colours_on_a_terminal(ready):
    with open_store(ready / ".rag-memtok", write=False) as store:
        chunk_id = store.chunk_ids()[0]
    out = on_a_terminal(ready, "show", chunk_id[:8])
    assert "\x1b[" in out and "logits" in out and "48;2;33;102;172" in out or "48;5;" in out


def test_show_wants_one_chunk(run):
    for wrong in ("zz", "f" * 64, ""):
        code, out, err = run("show", wrong)
        assert code == 2 and "chunks begin with" in err and out == ""


def test_show_of_a_memory_that_is_wrong_shows_what_comes_out(run, tmp_path):
    with open_store(tmp_path / ".rag-memtok", write=True) as store:
        record = store.record(store.chunk_ids()[0])
        noise = bytes(len(record.packed))
        row = (1, record.codec, *record.shape, noise)
        with store._db.writing():
            store._db.insert("vectors", row)
            store._db.insert("pins", (1, b""))
    code, out, err = run("show", record.chunk_id[:12], "--json")
    found = json.loads(out)
    assert (
        code == 5
        and found["verdict"]["kind"] == "mismatch"
        and found["text"] == "".join(one["text"] for one in found["tokens"][:-1])
    )


def test_show_of_a_text_only_chunk_is_its_text(run, tmp_path):
    settings = dials(tmp_path / "lossy-store", toy.save(tmp_path / "lossy", lossy=True))
    api.ingest([written(tmp_path / "docs", {"a.txt": "The Lamp."})], settings)
    (chunk,) = api.chunks(settings)
    code, out, err = run("show", chunk.chunk_id[:5], "--store", "lossy-store")
    assert (
        code == 0
        and out.endswith("\n\nThe Lamp.\n")
        and re.search("^verdict +text-only$", out, re.M)
    )


# --- config


def test_config_says_where_each_value_comes_from(run, tmp_path, monkeypatch):
    (tmp_path / "rag-memtok.toml").write_text(
        "[retrieve]\nk = 9\ndense_weight = 0.25\n[documents]\nexclude = ['x']\n"
    )
    monkeypatch.setenv("RAG_MEMTOK_RETRIEVE_K", "7")
    monkeypatch.setenv("RAG_MEMTOK_MODEL_THREADS", "2")
    found = json.loads(run("config", "--json", "--threads", "1")[1])
    assert set(found) == set(dials_of())
    told = {dial: (one["value"], one["from"]) for dial, one in found.items()}
    assert told["retrieve.k"] == (7, "variable") and told["retrieve.dense_weight"] == (0.25, "file")
    assert told["model.threads"] == (1, "flag") and told["documents.exclude"] == (["x"], "file")
    assert told["documents.chunk_tokens"] == (24, "store") and told["memorize.codec"] == (
        "float16",
        "store",
    )
    assert told["model.dtype"] == ("float32", "store") and told["ask.read"] == ("auto", "default")
    assert told["memorize.tokens_per_vector"] == (4, "store") and told["store"] == (
        ".rag-memtok",
        "default",
    )
    code, out, err = run("config", "--store", "none")
    assert (
        code == 0
        and re.search(r"^documents\.chunk_tokens +128 +default$", out, re.M)
        and re.search(r"^store +'none' +flag$", out, re.M)
    )
    (tmp_path / "rag-memtok.toml").write_text("colour = 1\n")
    assert run("config")[0] == 2


# --- chat


def test_chat_answers_a_pipe_line_by_line(run):
    questions = (
        "Who repaired the lamp of the harbour?\n\nWhat about the "
        "letter?\n/new\n/help\nzzyzx qwrtp\n/quit\nnever asked\n"
    )
    code, out, err = run("chat", stdin=questions)
    assert [line[2:] for line in out.splitlines() if line.startswith("> ")] == questions.replace(
        "\n\n", "\n"
    ).splitlines()[:-1]
    assert code == 7 and out.count("  [1] lamp.md") == 2 and "never asked" not in out
    assert (
        err.count("together with the question before") == 1
        and "stands alone" in err
        and "/quit ends" in err
    )
    assert run("chat", stdin="Who repaired the lamp?\n")[0] == 0
    assert run("chat", stdin="")[0] == 0


def test_chat_as_json_is_an_object_a_line(run):
    code, out, err = run(
        "chat", "--json", stdin="Who repaired the lamp of the harbour?\nzzyzx qwrtp asdfgh\n"
    )
    first, second = map(json.loads, out.splitlines())
    assert (
        code == 7
        and first["question"].startswith("Who")
        and first["sources"]
        and second["error"]["name"] == "no-usable-memory"
    )


def test_a_short_question_is_looked_for_with_the_one_before():
    before = "Which fan motor is in the test bench?"
    assert search_query("And its price?", before) == f"{before} And its price?"
    assert search_query("And its price?", "") == "And its price?"
    longer = "Who repaired the lamp of the harbour?"
    assert search_query(longer, before) == longer


def test_a_follow_up_finds_what_it_alone_would_not(run):
    alone = run("chat", stdin="And then?\n")
    assert alone[0] == 7
    code, out, err = run("chat", stdin="Who repaired the lamp of the harbour?\nAnd then?\n")
    assert code == 0 and out.count("  [1] lamp.md") == 2


# --- on a terminal


def on_a_terminal(ready, *words, typed=(), sent=None):
    """Runs a command on a pseudo-terminal; returns what was on the screen.

    Types each line after a prompt, then sends a signal.
    """
    parent, child = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "RAG_MEMTOK_MODEL_THREADS": "1",
        "RAG_MEMTOK_MODEL_DEVICE": "cpu",
    }
    environment["RAG_MEMTOK_ASK_MAX_NEW_TOKENS"] = "3"
    program = [sys.executable, "-c", "from rag_memtok.cli.app import main; main()", *words]
    command = subprocess.Popen(
        program,
        cwd=ready,
        env=environment,
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    told, screen, typed, prompts, deadline = False, b"", list(typed), 0, time.monotonic() + 600
    while time.monotonic() < deadline:
        if not select.select([parent], [], [], 0.5)[0]:
            if told:  # a signal between readline's prompt and its wait is seen with the next line
                os.write(parent, b"\n")
            continue
        try:
            read = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        screen += read
        # a prompt that was not answered yet
        if len(re.findall(rb"^(?:\x1b\[\?2004h)?> ", screen, re.M)) > prompts:
            prompts += 1
            if typed:
                os.write(parent, typed.pop(0).encode())
            elif sent:
                command.send_signal(sent)
                sent, told = None, True
    os.close(parent)
    assert command.wait(600) == 0, screen.decode(errors="replace")
    return screen.decode(errors="replace")


@pytest.mark.parametrize("end", ["\x04", pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_chat_on_a_terminal_ends_kindly(ready, end):
    typed = ["Who repaired the lamp of the harbour?\n", "And the letter?\n"]
    if isinstance(end, str):
        screen = on_a_terminal(ready, "chat", typed=[*typed, end])
    else:
        screen = on_a_terminal(ready, "chat", typed=typed, sent=end)
    assert (
        screen.count("[1] lamp.md") == 2
        and "Traceback" not in screen
        and "together with the question before" in screen
    )


@pytest.mark.parametrize("hears", [True, False], ids=["hang-up", "nohup"])
def test_chat_ends_when_its_terminal_closes(ready, hears):
    parent, child = pty.openpty()

    def own_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL if hears else signal.SIG_IGN)

    program = [sys.executable, "-c", "from rag_memtok.cli.app import main; main()", "chat"]
    with subprocess.Popen(
        program, cwd=ready, stdin=child, stdout=child, stderr=subprocess.PIPE,
        preexec_fn=own_terminal,
    ) as command:  # fmt: skip
        os.close(child)
        screen = b""
        while not screen.endswith(b"> "):
            screen += os.read(parent, 65536)
        os.close(parent)
        err = command.stderr.read().decode()
    assert command.returncode == (129 if hears else 0) and "Traceback" not in err, err


# --- export, import, migrate


def test_a_store_travels_through_a_file(run, tmp_path, monkeypatch):
    code, out, err = run("export", "all.safetensors")
    assert code == 0 and "6 documents" in out and "whoever can read it" in err
    assert run("export", "all.safetensors")[0] == 2
    code, out, err = run("import", "all.safetensors", "--store", "root", "--collection", "copy")
    assert code == 0 and "6 documents" in out and "not made here" not in err
    assert run("verify", "--store", "root", "--collection", "copy")[0] == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other-user"))
    code, out, err = run("import", "all.safetensors", "--store", "foreign")
    assert code == 0 and "not made here" in err
    for command in (("ask", "Who repaired the lamp?"), ("chat",)):
        code, out, err = run(*command, "--store", "foreign")
        assert code == 24 and "next: if you trust its maker: --trust-store" in err
        code, out, err = run(
            *command, "--store", "foreign", "--trust-store", stdin="Who repaired the lamp?\n"
        )
        assert code == 0 and "[1] lamp.md" in out
    monkeypatch.setenv("RAG_MEMTOK_TRUST_STORE", "1")
    assert run("ask", "Who repaired the lamp?", "--store", "foreign")[0] == 0
    monkeypatch.delenv("RAG_MEMTOK_TRUST_STORE")
    assert json.loads(
        run("import", "all.safetensors", "--store", "trusted", "--trust-store", "--json")[1]
    )["own"]
    assert run("ask", "Who repaired the lamp?", "--store", "trusted")[0] == 0
    (tmp_path / "bad").write_bytes((tmp_path / "all.safetensors").read_bytes()[:-1])
    assert run("import", "bad", "--store", "bad-store")[0] == 24


def test_the_documentation_exports_and_imports_in_its_order(run, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "usage.md").read_text(encoding="utf-8")
    use = page.partition("## Commands")[2].partition("\n## ")[0]
    lines = re.findall(r"^rag-memtok ((?:export|import) [^#\n]*)", use, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["export", "import"]
    for line in lines:
        code, out, err = run(*line.split())
        assert code == 0 and "6 documents" in out, err
    (copy,) = (path.parent for path in tmp_path.glob("*/store.db") if path.parent.name[0] != ".")
    assert run("verify", "--store", copy)[0] == 0


def test_an_import_over_a_store_says_a_way_out_that_works(run, tmp_path):
    run("export", "all.safetensors")
    code, out, err = run("import", "all.safetensors")
    assert code == 2 and "--store DIR" in err and "--collection" not in err
    assert run("import", "all.safetensors", "--store", "other")[0] == 0


def test_migrate_rewrites_and_keeps_the_old(run, tmp_path):
    other = toy.save(tmp_path / "toy-b", seed=1)
    words = ("migrate", "--model", other, "--tokens-per-vector", 4, "--seconds-per-chunk", 0)
    code, out, err = run(*words)
    assert code == 0 and "chunks rewritten" in out and ".rag-memtok.old" in out and "proved" in err
    assert run("verify")[0] == 0 and run("verify", "--store", ".rag-memtok.old")[0] == 0
    code, out, err = run(*words, "--drop-old", "--json")
    assert code == 0 and json.loads(out) | {"seconds": 0} == {
        "model": str(other),
        "chunks": 0,
        "verdicts": {},
        "kept": "",
        "seconds": 0,
    }


# --- completion


def test_the_shell_completes_commands(tmp_path):
    script = tmp_path / "rag-memtok"
    script.write_text(
        "import sys; sys.argv[0] = 'rag-memtok'\nfrom rag_memtok.cli.app import main\nmain()\n"
    )
    environment = {
        **os.environ,
        "_RAG_MEMTOK_COMPLETE": "complete_bash",
        "COMP_WORDS": "rag-memtok mi",
        "COMP_CWORD": "1",
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(app.__file__).parent.parent), environment.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["migrate"], done.stderr


def test_every_command_has_an_example_that_begins_with_it(run):
    for name, _, example in app.COMMANDS:
        assert example.startswith(f"rag-memtok {name} ")
        code, out, err = run(name, "--help")
        assert code == 0 and "Example: rag-memtok" in out


def test_config_says_what_converted_models_take_and_removes_them(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "rag-memtok" / "models" / "one"
    kept.mkdir(parents=True)
    (kept / "model.safetensors").write_bytes(bytes(3_000_000))
    code, _, err = run("config")
    assert code == 0 and "converted models: 3 MB" in err and "--drop-cache" in err
    code, out, err = run("config", "--drop-cache")
    assert (code, out) == (0, "") and "3 MB" in err and "removed" in err and not kept.exists()
    assert "converted models" not in run("config")[2]
