"""The command line: exit codes, and what goes to stdout and what to stderr.

Also tested are the JSON contracts, and the help, word for word.

RAG_MEMTOK_REGENERATE=1 pytest tests/test_cli.py -k help    writes the golden help anew; read the
                                                            diff before you commit it
"""

import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import toy

from rag_memtok import __version__
from rag_memtok.cli import app
from rag_memtok.store.store import open_store

GOLDEN = Path(__file__).parent / "golden" / "help"
REGENERATE = bool(os.environ.get("RAG_MEMTOK_REGENERATE"))
COMMANDS = ("", *(name for name, _, _ in app.COMMANDS))
DOCUMENTS = {
    "lamp.txt": "The lamp of the harbour is red.",
    "fan.txt": "The fan is very loud today.",
}
QUESTION = "What colour is the lamp?"


@pytest.fixture
def run(monkeypatch, command_line, tmp_path):
    """Runs a command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return command_line


def written(folder, documents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory, model_folder):
    """Documents and their store, to be copied."""
    folder = tmp_path_factory.mktemp("cli")
    words = [
        "ingest",
        written(folder / "docs", DOCUMENTS),
        "--store",
        folder / "store",
        "--model",
        model_folder,
        "--threads",
        1,
    ]
    words += ["--tokens-per-vector", 4, "--seconds-per-chunk", 0, "--device", "cpu"]
    assert app.run(lambda: app.app([str(word) for word in words], standalone_mode=False)) == 0
    return folder


@pytest.fixture
def store(ready, tmp_path):
    """A store of one's own, where the commands look for it."""
    shutil.copytree(ready / "store", tmp_path / ".rag-memtok")
    return tmp_path / ".rag-memtok"


WRITING = ("--tokens-per-vector", 4, "--seconds-per-chunk", 0)


# --- the trip


def test_the_whole_trip(run, ready, model_folder, tmp_path):
    documents = written(tmp_path / "docs", DOCUMENTS)
    code, out, err = run("ingest", documents, "--model", model_folder, *WRITING)
    assert (
        code == 0
        and re.search(r"^exact +2$", out, re.M)
        and re.search(r"^chunks +2 written, 0 already there$", out, re.M)
    )
    code, out, err = run("ingest", documents)
    assert (code, out) == (0, "0 new; 2 files unchanged\n")
    code, out, err = run("verify")
    assert code == 0 and out.endswith(
        "all chunks and all documents come back exactly from their memories\n"
    )
    code, out, err = run("restore", "--to", "back")
    assert (
        code == 0
        and {path.name: path.read_text() for path in (tmp_path / "back").iterdir()} == DOCUMENTS
    )
    code, out, err = run("status")
    assert code == 0 and re.search(r"^documents +2$", out, re.M) and str(model_folder) in out
    code, out, err = run("rm", "docs/lamp.txt")
    assert (code, out) == (0, f"forgot {tmp_path.resolve()}/docs/lamp.txt\n")
    code, out, err = run("status", "--json")
    assert json.loads(out)["documents"] == 1


def test_a_run_that_skips_everything_is_refused_with_the_reasons(run, model_folder, tmp_path):
    bad = written(tmp_path / "bad", {"a.jsonl": "no json\n", "b.jsonl": "none\n"})
    words = ("--model", model_folder, *WRITING)
    for more in (words, (*words, "--skip-ok"), (*words, "--dry-run")):
        code, out, err = run("ingest", bad, *more)
        assert code == 24 and not out and "2 skipped (a.jsonl#L1: " in err and "b.jsonl#L1" in err
    assert not (tmp_path / ".rag-memtok").exists()
    good = written(tmp_path / "docs", {"lamp.txt": "The lamp is red."})
    assert run("ingest", good, *words)[0] == 0
    before = (tmp_path / ".rag-memtok" / "store.db").read_bytes()
    code, out, err = run("ingest", bad)
    assert code == 24 and "2 skipped" in err
    assert (tmp_path / ".rag-memtok" / "store.db").read_bytes() == before
    code, out, err = run("ingest", bad, good)
    assert code == 3 and out == "0 new; 1 files unchanged, 2 skipped\n"
    assert "  a.jsonl#L1: " in err and "  b.jsonl#L1: " in err
    assert run("ingest", bad, good, "--skip-ok")[:2] == (0, out)
    assert "(1 unchanged, 2 skipped)" in run("ingest", bad, good, "--dry-run")[1]
    (good / "fan.txt").write_text("The fan is loud.")
    code, out, err = run("ingest", bad, good)
    assert code == 3 and "1 new or changed, 1 unchanged, 0 removed, 2 skipped" in out


def test_what_a_gitignore_leaves_out_is_counted_and_read_if_asked_for(run, model_folder, tmp_path):
    documents = written(tmp_path / "docs", {**DOCUMENTS, ".gitignore": "fan.txt\n"})
    words = ("ingest", documents, "--model", model_folder, *WRITING)
    told = "left out because of a .gitignore: 1 file; --no-gitignore reads them, too\n"
    for more in (("--dry-run",), (), ()):
        code, out, err = run(*words, *more)
        assert code == 0 and err.endswith(told)
    assert json.loads(run(*words, "--json")[1])["ignored"] == 1
    code, out, err = run(*words, "--no-gitignore")
    assert code == 0 and "1 new or changed, 1 unchanged" in out and told not in err
    assert run("verify", "--quick", "--against", documents, "--no-gitignore")[0] == 0
    code, out, err = run("verify", "--quick", "--against", documents)
    assert code == 6 and "left out because of a .gitignore" in err
    (documents / ".gitignore").write_text("*\n")
    code, out, err = run("ingest", documents)
    assert code == 24 and "2 left out because of a .gitignore" in err and "--no-gitignore" in err


def test_one_report_tells_what_is_skipped_left_out_and_assumed(run, model_folder, tmp_path):
    notes = {".gitignore": "fan.txt\n", "empty.txt": "", "notebook.ipynb": "{}"}
    documents = written(tmp_path / "docs", {**DOCUMENTS, **notes})
    (documents / "old.txt").write_bytes("Die Lüfter stehen still. Schöne Grüße.".encode("cp1252"))
    code, _, err = run("ingest", documents, "--model", model_folder, *WRITING)
    assert code == 3
    for told in (
        "empty.txt: empty",
        "notebook.ipynb: no notebook: it has no cells",
        "left out because of a .gitignore: 1 file",
        "old.txt: cp1252",
    ):
        assert told in err


def test_what_is_piped_in_and_cannot_be_read_is_named(run, model_folder):
    words = ("--name", "a.ipynb", "--model", model_folder, *WRITING)
    code, _, err = run("ingest", "-", *words, stdin=b"{}")
    assert code == 24 and "nothing to read in a.ipynb: 1 skipped (a.ipynb: no notebook" in err


def test_an_answer_on_stdout_and_talk_on_stderr(run, store):
    code, out, err = run("ask", QUESTION, "--max-new-tokens", 5)
    assert code == 0
    assert re.search(r"^  \[1\] lamp.txt, line 1  \(relevance 0\.\d+, memory exact\)$", out, re.M)
    assert re.search(r"^  reader decode; \d", out, re.M)  # nothing is saved by decoding
    assert err.startswith("reader decode: ") and "reader decode: " not in out


def test_a_dash_reads_a_question_a_line(run, store):
    code, out, err = run(
        "ask", "-", "--json", "--max-new-tokens", 3, stdin=f"{QUESTION}\n\n  Is the fan loud? \n"
    )
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [one["sources"][0]["path"] for one in answers] == ["lamp.txt", "fan.txt"]
    code, out, err = run(
        "ask", "-", "--json", "--max-new-tokens", 3, stdin=f"zzyzx qwrtp\n{QUESTION}\n"
    )
    first, second = map(json.loads, out.splitlines())
    assert code == 7 and first["error"]["name"] == "no-usable-memory" and second["sources"]


def test_a_dry_run_writes_nothing(run, model_folder, tmp_path):
    code, out, err = run(
        "ingest", written(tmp_path / "docs", DOCUMENTS), "--model", model_folder, "--dry-run"
    )
    assert (
        code == 0
        and out.startswith("would write 2 chunks of 2 files")
        and not (tmp_path / ".rag-memtok").exists()
    )


def test_a_dry_run_says_what_encoding_it_assumes(run, model_folder, tmp_path):
    note = tmp_path / "prices.txt"
    note.write_bytes("Das Café an der Brücke öffnet um acht Uhr früh.".encode("cp1252"))
    code, out, err = run("ingest", note, "--model", model_folder, "--dry-run")
    assert code == 0 and "would write 1 chunk of 1 file" in out
    assert "likeliest encoding" in err and "prices.txt: " in err


# --- contracts: fields are only ever added

CONTRACTS = {
    ("ask", QUESTION, "--max-new-tokens", "3"): {
        "answer": str, "sources": list, "reader": str, "reader_reason": str, "passages": str,
        "context_positions": int, "prompt_positions": int, "text_positions": int, "seconds": float,
    },
    ("status",): {
        "chunks": int, "documents": int, "exact": int, "pinned": int, "assisted": int, "model": str,
        "format": int, "generation": int, "damaged": int, "unfinished": int, "adapter": str,
        "readable": int,
    },
    ("verify",): {"counts": dict, "documents": int, "profile": str, "failing": list},
}  # fmt: skip
SOURCE = {"path": str, "lines": str, "span": list, "score": float, "chunk": str, "verdict": str}


@pytest.mark.parametrize("command", CONTRACTS, ids=lambda command: command[0])
def test_json_has_every_field_it_promises_on_one_line(run, store, command):
    code, out, err = run(*command, "--json")
    assert code == 0 and out.count("\n") == 1 and out.endswith("\n")
    found = json.loads(out)
    assert {name: type(found[name]) for name in CONTRACTS[command]} == CONTRACTS[command]
    for source in found.get("sources", []):
        assert {name: type(source[name]) for name in SOURCE} == SOURCE
        assert DOCUMENTS[source["path"]][slice(*source["span"])] == DOCUMENTS[source["path"]]


def test_the_numbers_of_json_are_those_of_the_store(run, store):
    status, audit = (json.loads(run(command, "--json")[1]) for command in ("status", "verify"))
    assert (status["chunks"], status["documents"], status["exact"]) == (2, 2, 2)
    assert (
        audit["counts"] == {"exact": 2}
        and audit["documents"] == audit["documents_checked"] == 2
        and audit["failing"] == []
    )
    assert re.search("^documents +2 of 2 rejoined and identical$", run("verify")[1], re.M)
    with open_store(store, write=False) as opened:
        assert status["generation"] == opened.generation and status["format"] == 2
    with closing(sqlite3.connect(store / "store.db")) as db, db:
        db.execute("UPDATE verdicts SET margin = margin + 1 WHERE chunk = 1")
        db.execute("DELETE FROM occurrences WHERE chunk = 2")
    status = json.loads(run("status", "--json")[1])
    assert (status["exact"], status["damaged"], status["unfinished"], status["adapter"]) == (
        0,
        1,
        1,
        "",
    )


# --- exit codes


def damage(store, table="vectors"):
    with closing(sqlite3.connect(store / "store.db")) as db, db:
        db.execute(f"UPDATE {table} SET packed = zeroblob(length(packed)) WHERE chunk = 1")


def told(result, code, name, *, as_json):
    """Checks an error, on stderr and stdout.

    There is on stderr a line that says what is valid, or one with the next command; on stdout
    nothing, or the error as JSON.
    """
    found, out, err = result
    assert found == code, err
    if as_json:
        error = json.loads(out)["error"]
        assert (
            (error["name"], error["exit_code"]) == (name, code)
            and error["message"]
            and error["message"] in err
        )
    else:
        assert out == ""
    what, *remedy = err.splitlines()[-2:] if "\n  next: " in err else err.splitlines()[-1:]
    assert what.startswith("error: ") and (remedy or re.search("; valid: |; there are ", what))


@pytest.mark.parametrize("as_json", [False, True], ids=["plain", "json"])
@pytest.mark.parametrize(
    "words, code, name",
    [
        (("ask", " "), 2, "usage"),
        (("ask", "why " * 300), 2, "usage"),
        (("ask", QUESTION, "--read", "aloud"), 2, "usage"),
        (("ask", QUESTION, "-k", "0"), 2, "usage"),
        (("verify", "--sample", "many"), 2, "usage"),
        (("verify", "--sample", "0%"), 2, "usage"),
        (("verify", "--seed", "3"), 2, "usage"),
        (("verify", "--quick", "--sample", "5%"), 2, "usage"),
        (("verify", "--reference", "--batch", "2"), 2, "usage"),
        (("verify", "--address", "10.0.0.1:6379"), 2, "usage"),
        (("ingest", "new", "--address", "10.0.0.1:6379"), 2, "usage"),
        (("ingest", "new", "--chunk-timeout", "9"), 2, "usage"),
        (("ask", QUESTION, "--url", "http://gpu-box:8000"), 2, "usage"),
        (("ask", "zzyzx qwrtp"), 7, "no-usable-memory"),
        (("ask", QUESTION, "--store", "none"), 10, "no-store"),
        (("status", "--store", "none"), 10, "no-store"),
        (("verify", "--store", "none"), 10, "no-store"),
        (("ask", QUESTION, "--model", "OTHER"), 15, "wrong-model"),
        (("ask", QUESTION, "--model", "/no/such/model"), 16, "model-unavailable"),
        (("verify", "--model", "no-such-owner/no-such-model"), 16, "model-unavailable"),
        (("ingest", "none"), 24, "input-refused"),
        (("ingest", "new", ""), 2, "usage"),
        (("ingest", ".rag-memtok"), 24, "input-refused"),
        (("ingest", "new", "--recipe", "soup"), 2, "usage"),
        (("ingest", "new", "--chunk-tokens", "1"), 2, "usage"),
        (("export", "no/folder/x.safetensors"), 2, "usage"),
    ],
)
def test_an_error_says_what_and_what_to_do(
    run, store, tmp_path_factory, tmp_path, words, code, name, as_json
):
    written(tmp_path / "new", {"a.txt": "New."})
    if "OTHER" in words:
        words = [
            str(toy.save(tmp_path_factory.mktemp("other"), seed=1)) if word == "OTHER" else word
            for word in words
        ]
    if as_json and words[0] in ("ingest", "ask", "verify", "status", "export"):
        words = [*words, "--json"]
    told(run(*words), code, name, as_json=as_json)


@pytest.mark.parametrize(
    "words",
    [
        ("ask",),
        ("ask", QUESTION, "--colour"),
        ("ingest", "docs", "--steps", "many"),
        ("sing",),
        ("restore",),
    ],
)
def test_what_cannot_be_parsed_is_a_usage_error(run, store, words):
    code, out, err = run(*words)
    assert code == 2 and out == "" and err.startswith("error: ")


@pytest.mark.parametrize(
    "words",
    [
        ("rm",), ("ingest", "--dry-run", "docs"), ("watch", "none"), ("restore", "--to"),
        ("verify", "--against"),
    ],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(run, store, ready, monkeypatch, words):
    monkeypatch.chdir(ready)  # all documents are below it
    code, out, err = run(*words, "", "--store", store)
    assert (code, out) == (2, "") and "a path is empty" in err and "current folder is ." in err
    assert len(json.loads(run("list", "--json", "--store", store)[1])["documents"]) == 2
    code, out, _ = run("rm", ".", "--store", store)
    assert code == 0 and out.count("forgot") == 2


def test_three_if_something_was_skipped(run, model_folder, tmp_path):
    documents = written(tmp_path / "docs", DOCUMENTS)
    (documents / "bad.txt").write_bytes(b"\xc3\xa9 caf\xe9")
    code, out, err = run("ingest", documents, "--model", model_folder, *WRITING)
    assert code == 3 and "bad.txt: " in err and re.search(r"^exact +2$", out, re.M)
    assert run("ingest", documents, "--skip-ok")[0] == 0


def test_four_if_more_pins_are_needed_than_allowed(run, model_folder, tmp_path):
    words = (
        "ingest",
        written(tmp_path / "docs", DOCUMENTS),
        "--model",
        model_folder,
        "--steps",
        1,
        "--max-pins",
        0,
        *WRITING,
    )
    code, out, err = run(*words)
    assert code == 4 and "--max-pins is 0" in err


def test_five_six_and_thirteen_of_verify(run, store, model_folder, tmp_path):
    assert run("verify", "--against", written(tmp_path / "other", {"lamp.txt": "Another."}))[0] == 5
    written(tmp_path / "other", DOCUMENTS | {"left-out.txt": "Never ingested."})
    assert run("verify", "--quick", "--against", "other")[0] == 5
    assert run("verify", "--quick", "--against", "other", "--exclude", "left-*")[0] == 0
    code, out, err = run("verify", "--sample", "50%")
    assert code == 6 and re.search(
        "^documents +1 of 1 checked rejoined and identical, 2 in all$", out, re.M
    )
    assert run("verify", "--model", toy.save(tmp_path / "other-model", seed=1))[0] == 6
    assert run("verify", "--quick")[0] == 0
    damage(store)
    for words in ((), ("--quick",)):
        code, out, err = run("verify", *words, "--json")
        assert code == 13 and {one["kind"] for one in json.loads(out)["failing"]} == {"damaged"}
        code, out, err = run("verify", *words)
        assert code == 13 and "damaged: " in err and "NOT PROVEN" in out
    assert run("restore", "--to", "back")[0] == 13
    code, out, err = run("ask", "lamp fan", "--max-new-tokens", 3)
    assert code == 0 and "left out: " in err


def test_eleven_if_another_writes(run, store, tmp_path):
    with open_store(store, write=True):
        told(
            run("ingest", written(tmp_path / "new", {"a.txt": "New."})), 11, "locked", as_json=False
        )
        assert run("status")[0] == 0


def test_an_empty_store_cannot_answer_nor_be_proven(run, store, ready):
    assert run("rm", ready / "docs")[0] == 0
    told(run("ask", QUESTION, "--json"), 7, "no-usable-memory", as_json=True)
    code, out, err = run("verify")
    assert code == 6 and "nothing to prove" in out


def test_names_and_texts_cannot_steer_the_terminal(run, model_folder, tmp_path):
    evil = "lamp\x1b[2J\n.txt"
    documents = written(tmp_path / "docs", {evil: "The lamp is red."})
    (documents / "\x1b[31mbad.txt").write_bytes(b"\xff\0")
    code, out, err = run("ingest", documents, "--model", model_folder, *WRITING)
    assert code == 3 and "\x1b" not in out + err and "\\x1b[31mbad.txt" in err
    code, out, err = run("ingest", documents, "--colour\x1b[2J")
    assert code == 2 and "\x1b" not in err


def test_a_bug_is_a_traceback(run):
    with pytest.raises(ZeroDivisionError):
        app.run(lambda: 1 / 0)


# --- settings


def test_the_environment_and_the_file_name_the_store(run, store, tmp_path, monkeypatch):
    shutil.move(store, tmp_path / "elsewhere")
    assert run("status")[0] == 10
    (tmp_path / "rag-memtok.toml").write_text('store = "elsewhere"\n')
    assert run("status")[0] == 0
    monkeypatch.setenv("RAG_MEMTOK_STORE", "nowhere")
    assert run("status")[0] == 10
    assert run("status", "--store", "elsewhere")[0] == 0
    (tmp_path / "rag-memtok.toml").write_text("colour = 1\n")
    assert run("status")[0] == 2


# --- the paper


def test_the_papers_tables_are_printed_and_drawn(run, model_folder, tmp_path):
    pytest.importorskip("matplotlib")
    written(tmp_path / "docs", DOCUMENTS)
    command = [
        "paper",
        "--model",
        model_folder,
        "--docs",
        "docs",
        "--chars",
        "12,20",
        "--limit",
        2,
        "--steps",
        8,
        "--vectors",
        2,
    ]
    command += ["--recipe", "cross-entropy", "--out", "trials.jsonl"]
    code, out, err = run(*command, "--figures", "figures")
    assert code == 0 and "recipe cross-entropy, 2 vectors a text, at most 8 steps" in out
    assert re.search(
        r"^English, 12 characters: 2 texts of 12 characters on average\nmodel +parameters +tokens "
        r"+accuracy +exact",
        out,
        re.M,
    )
    assert len(re.findall(r"^toy +0\.3M +\d+ +[01]\.\d{3} +\d/2 +\d/2 +[1-9] +", out, re.M)) == 2
    assert "drawn: figures/figure3.png" in err and (
        tmp_path / "figures" / "figure3.png"
    ).read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 4
    code, out, err = run(*command, "--json")
    rows = json.loads(out)["rows"]
    assert code == 0 and [row["texts"] for row in rows] == [2, 2] and rows[0]["model"] == "toy"


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "no texts"),
        (["--docs", ".", "--chars", "0"], "--chars"),
        (["--docs", ".", "--chars", "ten"], "--chars"),
        (["--recipe", "soup"], "sastre2025"),
    ],
)
def test_what_the_paper_is_measured_on_must_be_said(run, words, says):
    code, out, err = run("paper", *words)
    assert code == 2 and says in err and err.startswith("error: ")


# --- the help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_is_as_it_was(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    code, out, err = run(*command.split(), "--help")
    path = GOLDEN / f"{command or 'rag-memtok'}.txt"
    if REGENERATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(out, encoding="utf-8")
    assert code == 0 and out == path.read_text(encoding="utf-8")


def test_the_version(run):
    assert run("--version")[:2] == (0, f"rag-memtok {__version__}\n")


# --- processes


HANGS = 600  # seconds after which a command is not slow but stuck
PROGRAM = "from rag_memtok.cli.app import main; main()"


def process(*words, extra=None, program=PROGRAM, **options):
    environment = {
        **os.environ,
        **(extra or {}),
        "RAG_MEMTOK_MODEL_THREADS": "1",
        "RAG_MEMTOK_MODEL_DEVICE": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(words, folder, **options):
    program = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(program, cwd=folder, text=True, **options)


def test_help_loads_neither_torch_nor_transformers():
    script = """
import atexit, sys
heavy = {"torch", "transformers", "faiss", "numpy"}
atexit.register(lambda: print(sorted(heavy & sys.modules.keys()), file=sys.stderr))
sys.argv = ["rag-memtok", "ask", "--help"]
from rag_memtok.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "Usage" in done.stdout and done.stderr.strip() == "[]"


def test_a_closed_stdout_is_quiet(store):
    with process("status", cwd=store.parent) as command:
        command.stdout.close()
        assert (command.wait(HANGS), command.stderr.read()) == (141, "")


@pytest.mark.parametrize(
    "unread, words, code, told",
    [
        ("stdout", ("status", "--store", "none", "--json"), 10, "error: there is no store"),
        ("stderr", ("status", "--store", "none", "--json"), 10, '{"error": {"name": "no-store"'),
        ("stderr stdout", ("status", "--store", "none", "--json"), 10, ""),
        ("stderr", ("status", "--no-such-option"), 2, ""),
        ("stderr", (), 2, ""),
    ],
)
def test_an_error_that_nobody_reads_ends_with_its_code(store, unread, words, code, told):
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with open(write, "w") as pipe:
        done = ended(words, store.parent, **{**streams, **dict.fromkeys(unread.split(), pipe)})
    said = (done.stdout or "") + (done.stderr or "")
    assert done.returncode == code and said.startswith(told) and "Traceback" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize(
    "words, code",
    [(("status",), 20), (("status", "--json"), 20), (("status", "--json", "--store", "none"), 10)],
)
def test_a_stdout_that_takes_nothing_is_named(store, words, code):
    with open("/dev/full", "w") as full:
        done = ended(words, store.parent, stdout=full, stderr=subprocess.PIPE)
    says = "standard output: " if code == 20 else "there is no store"
    assert (
        done.returncode == code
        and done.stderr.startswith(f"error: {says}")
        and done.stderr.count("\n") == 2
    ), done.stderr


@pytest.mark.parametrize(
    "closed, words, code",
    [(1, ("status",), 0), (2, ("status", "--store", "none"), 10), (0, ("ask", "-"), 0)],
)
def test_a_stream_that_was_never_open_is_as_one_that_leads_nowhere(store, closed, words, code):
    done = ended(words, store.parent, preexec_fn=lambda: os.close(closed), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    "closed, words, code",
    [
        (("stdout",), ("status",), 141),
        (("stdout", "stderr"), ("status",), 141),
        (("stderr",), ("status", "--store", "none"), 10),
        (("stdin",), ("chat", "--model", "none-such"), 16),
    ],
)
def test_a_terminal_that_was_closed_is_as_a_closed_pipe(store, closed, words, code):
    parent, child = pty.openpty()
    os.close(parent)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with open(child, closefd=True) as terminal:
        done = ended(words, store.parent, **{**streams, **dict.fromkeys(closed, terminal)})
    assert done.returncode == code and "Traceback" not in (done.stderr or ""), done.stderr
    if code == 141:
        assert not done.stderr


# The command itself, which waits for a signal when it has kept three chunks.
WAITING = """
import time
from rag_memtok.store.store import Store
put = Store.put
def wait_after_three(self, record, text):
    put(self, record, text)
    if len(self.chunk_ids()) == 3:
        print("three are kept", flush=True)
        time.sleep(600)
Store.put = wait_after_three
from rag_memtok.cli.app import main; main()
"""


@pytest.mark.parametrize(
    "sent, code",
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_ingest_and_keeps_what_is_done(sent, code, model_folder, tmp_path, run):
    many = {
        f"{number:02}.txt": f"Sentence {number} of the {number * 37} about lamp {number % 7}."
        for number in range(6)
    }
    words = (
        "ingest",
        written(tmp_path / "docs", many),
        "--model",
        model_folder,
        "--batch",
        1,
        *WRITING,
    )
    with process(*words, cwd=tmp_path, program=WAITING) as command:
        assert command.stdout.readline() == "three are kept\n"
        command.send_signal(sent)
        out, err = command.communicate(timeout=HANGS)
    assert (
        command.returncode == code
        and out == ""
        and "run the same command again to go on" in err
        and "Traceback" not in err
    )
    with open_store(tmp_path / ".rag-memtok", write=False) as opened:
        assert opened.check() == () and len(opened.chunk_ids()) == 3


@pytest.mark.parametrize(
    "sent, code",
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_that_ends_the_reader_too_is_the_end(sent, code, model_folder, tmp_path):
    docs = written(tmp_path / "docs", {f"{one}.txt": f"Lamp {one} is red." for one in "abcd"})
    words = ("ingest", docs, "--model", model_folder, "--batch", 1, *WRITING)
    with process(*words, cwd=tmp_path, program=WAITING) as command:
        assert command.stdout.readline() == "three are kept\n"
        command.stdout.close()
        command.stderr.close()
        command.send_signal(sent)
        assert command.wait(HANGS) == code


def test_without_a_command_the_help_is_told(run):
    code, out, err = run()
    assert code == 2 and not out and err.startswith("Usage: rag-memtok")


def test_an_unknown_option_is_an_error_in_json_too(run):
    code, out, _ = run("status", "--bogus", "--json")
    assert code == 2 and json.loads(out)["error"]["name"] == "usage"


def test_an_over_long_question_does_not_end_the_others(run, store, model_folder):
    code, out, err = run(
        "ask",
        "-",
        "--store",
        store,
        "--model",
        model_folder,
        stdin=f"{'lamp ' * 400}\n{QUESTION}\n",
    )
    assert code == 7 and "lamp.txt" in out and "tokens; valid" in err


@pytest.mark.parametrize(
    "words, code", [(("ask", "-"), 7), (("ask", "Is the fan \udcff loud?"), 2), (("chat",), 7)]
)
def test_a_question_that_is_not_utf8_is_refused_and_the_others_are_answered(
    run, store, words, code
):
    code_found, out, err = run(
        *words, "--max-new-tokens", 3, stdin=f"Is the fan \udcff loud?\nAnd then?\n{QUESTION}\n"
    )
    assert code_found == code and "error: the question is not valid UTF-8" in err
    assert out.count("  [1] lamp.txt") == (code == 7) and "  [1] fan.txt" not in out


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_of_another_encoding_gets_what_it_can_say(store, encoding):
    told = {"PYTHONIOENCODING": encoding}
    asked = "漢字 lamp 🎉 repaired?"
    for more in ([], ["--json"]):
        words = ("ask", "-", *more, "--max-new-tokens", 3)
        with process(*words, extra=told, cwd=store.parent, stdin=subprocess.PIPE) as command:
            command.stdin.buffer.write(b"When was the lamp repaired?\n")
            out, err = command.communicate(timeout=HANGS)
        assert command.returncode == 0 and "Traceback" not in err
        if more:
            assert json.loads(out)["sources"][0]["path"] == "lamp.txt"
    with process("search", asked, extra=told, cwd=store.parent) as command:
        out, err = command.communicate(timeout=HANGS)
    assert command.returncode == 0 and "Traceback" not in err


def test_bytes_that_are_not_utf8_do_not_end_the_reading_of_questions(store):
    """Where the locale is not C, Python raises at them."""
    encoding = {"PYTHONIOENCODING": "utf-8:strict"}
    with process("ask", "-", extra=encoding, cwd=store.parent, stdin=subprocess.PIPE) as command:
        command.stdin.buffer.write(b"Is the fan \xff loud?\n" + QUESTION.encode() + b"\n")
        out, err = command.communicate(timeout=HANGS)
    assert (
        command.returncode == 7
        and "Traceback" not in err
        and "error: the question is not valid UTF-8" in err
    )
    assert "  [1] lamp.txt" in out


def test_names_that_are_not_utf8_are_told_whatever_the_locale(store):
    """As in en_US.UTF-8, where Python raises at them."""
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for words, code in (
        (("export", b"x\xff.st"), 0),
        (("export", b"y\xff.st", "--json"), 0),
        (("status", "--json", "--store", b"z\xff"), 10),
    ):
        names = [os.fsdecode(word) if isinstance(word, bytes) else word for word in words]
        with process(*names, extra=strict, cwd=store.parent) as command:
            out, err = command.communicate(timeout=HANGS)
        assert command.returncode == code and "Traceback" not in err, words
        assert "--json" not in words or json.loads(out)


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["status"], "a = " + 5000 * "["),
        (["status"], 'store = "a\\u0000b"'),
        (["ingest", "docs"], "[documents]\nmax_bytes = 99999999999999999999"),
        (["status", "--store", 300 * "a"], ""),
        (["export", 300 * "a"], ""),
        (["list", "--collections", "--store", "rag-memtok.toml"], ""),
    ],
)
def test_odd_settings_and_places_are_refused_and_no_bug(run, store, tmp_path, words, setting):
    (tmp_path / "rag-memtok.toml").write_text(setting)
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "error: " in err and "next: " in err


def test_a_damaged_text_is_left_out_and_named(run, store):
    with closing(sqlite3.connect(store / "store.db")) as db, db:
        ((damaged,),) = db.execute("SELECT id FROM chunks WHERE number = 1").fetchall()
        db.execute("UPDATE texts SET text = 'x' || text WHERE chunk = 1")
    code, out, err = run("ask", "lamp fan red loud", "--read", "text", "--max-new-tokens", 3)
    assert (
        code == 0 and f"left out: text {damaged[:12]}: " in err and out.count(".txt, line 1") == 1
    )
