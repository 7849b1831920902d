"""What is found is shown: without a language model, and beside an answer."""

import json
import subprocess
import sys

import pytest
import small
from random_adapter import says

from rag_memtok.model.lm import load
from rag_memtok.pipeline import api

QUESTION = "When was the lamp repaired?"


@pytest.fixture(scope="module", params=[True, False], ids=["text", "no-text"])
def store(request, tmp_path_factory, model_folder):
    """The settings of a store with its texts, or with memories alone."""
    folder = tmp_path_factory.mktemp("finding")
    config = small.dials(folder / "store", model_folder, memorize__keep_text=request.param)
    api.ingest([small.written(folder / "docs")], config)
    return config


def test_search_finds_what_ask_would_read(store):
    found = api.search(QUESTION, store)
    asked = api.ask(QUESTION, store)
    assert [one.source for one in found] == list(asked.sources)
    assert found[0].source.path == "lamp.md"
    assert all(one.source.relevance is None or 0 <= one.source.relevance <= 1 for one in found)
    if store.memorize.keep_text:
        assert [one.text for one in found] == list(asked.texts)
    else:
        assert {one.text for one in found} == {""}


def test_the_command_shows_passages_and_ends_with_seven_without_any(store, command_line):
    where = ("--store", store.store)
    code, out, _ = command_line("search", QUESTION, *where)
    text = "The lamp of the harbour was repaired in March."
    assert code == 0 and out.startswith("[1] lamp.md, lines 1-3  (")
    assert (text in out) == store.memorize.keep_text
    code, out, _ = command_line("search", QUESTION, *where, "--json", "--k", 1)
    (found,) = json.loads(out)["found"]
    assert code == 0 and found["source"]["path"] == "lamp.md"
    code, out, _ = command_line("search", "zzz qqq", *where, "--json")
    assert code == 7 and json.loads(out)["refused"] == "retrieval"


def test_no_language_model_is_loaded(store):
    code = (
        "import sys; from rag_memtok.cli import app\n"
        f"sys.argv = ['rag-memtok', 'search', 'lamp', '--store', {store.store!r}]\n"
        "code = app.run(lambda: app.app(standalone_mode=False))\n"
        "assert not any(name.startswith('transformers') for name in sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "lamp.md" in done.stdout, done.stderr


def test_ask_shows_its_passages_with_the_answer_marked(store, tmp_path, command_line):
    folder = says("in March", load(store.model), tmp_path / "adapter")
    told = ("--store", store.store, "--adapter", folder, "--read", "decode", "--k", 2)
    code, out, _ = command_line("ask", QUESTION, *told, "--show")
    assert code == 0
    assert "    The lamp of the harbour was repaired >>in March<<." in out.splitlines()
    assert out.count(">>") == 1
    code, out, _ = command_line("ask", QUESTION, *told)
    assert ">>" not in out


def test_chat_shows_a_line_of_each_passage(store, tmp_path, command_line):
    folder = says("in March", load(store.model), tmp_path / "adapter")
    told = ("chat", "--store", store.store, "--adapter", folder, "--read", "decode", "--k", 2)
    code, out, _ = command_line(*told, stdin=f"{QUESTION}\n")
    lines = out.splitlines()
    assert code == 0 and out.count("  [") == 2 and out.count(">>") == 1
    first = next(at for at, line in enumerate(lines) if line.startswith("  [1] lamp.md"))
    assert lines[first + 1] == "      The lamp of the harbour was repaired >>in March<<."
    assert lines[first + 2].startswith("  [2] ") and lines[first + 3].startswith("      ")
    code, out, _ = command_line(*told, "--show", stdin=f"{QUESTION}\n")
    assert "    The lamp of the harbour was repaired >>in March<<." in out.splitlines()
    assert out.count(">>") == 1


def test_several_questions_are_each_answered_under_their_own(store, command_line):
    asked = f"\n{QUESTION}\n   \nzzz qqq\nIs the fan quiet?\n"
    code, out, err = command_line("ask", "-", "--store", store.store, stdin=asked)
    lines = out.splitlines()
    assert code == 7
    places = [lines.index(f"> {one.strip()}") for one in asked.splitlines() if one.strip()]
    assert places == sorted(places) and len(places) == 3
    assert lines[places[1] + 1].startswith("  not answered: nothing in the store")
    code, out, _ = command_line("ask", "-", "--store", store.store, "--json", stdin=asked)
    found = [json.loads(line) for line in out.splitlines()]
    assert [(one["number"], one["question"]) for one in found] == [
        (2, QUESTION), (4, "zzz qqq"), (5, "Is the fan quiet?"),
    ]  # fmt: skip
    assert "error" in found[1] and found[1]["refused"] == "retrieval"
    code, out, _ = command_line("ask", QUESTION, "--store", store.store, "--json")
    assert json.loads(out)["question"] == QUESTION and json.loads(out)["number"] == 1
