"""A model that says that the documents do not say: no source is cited, and the exit code is 7."""

import json

import pytest
import small
from random_adapter import says

from rag_memtok.model.lm import load
from rag_memtok.pipeline import api

QUESTION = "When was the lamp repaired?"


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder):
    """The settings of a store, and what its command line is told."""
    folder = tmp_path_factory.mktemp("refusal")
    config = small.dials(folder / "store", model_folder, ask__max_new_tokens=24)
    api.ingest([small.written(folder / "docs")], config)
    return config, ("--store", config.store, "--read", "text", "--max-new-tokens", "24")


@pytest.fixture(scope="module")
def refusing(store, tmp_path_factory):
    """An adapter that refuses everything, as an option."""
    folder = tmp_path_factory.mktemp("a") / "adapter"
    says("not in the documents", load(store[0].model), folder)
    return ("--adapter", folder)


def test_a_refusal_cites_nothing_and_ends_with_seven(store, refusing, command_line):
    code, out, err = command_line("ask", QUESTION, *store[1], *refusing)
    assert code == 7 and "not in the documents" in out.lower() and "[1]" not in out
    assert "do not say" in err and "next:" in err


@pytest.mark.parametrize("passages", ["together", "apart"])
def test_in_json_it_is_told_who_refused(store, refusing, passages, command_line):
    told = ("ask", QUESTION, *store[1], *refusing, "--passages", passages, "--json")
    code, out, _ = command_line(*told)
    found = json.loads(out)
    assert code == 7 and found["refused"] == "model" and found["sources"] == []
    code, out, _ = command_line("ask", "zzz qqq", *store[1], *refusing, "--json")
    found = json.loads(out)
    assert code == 7 and found["refused"] == "retrieval"
    assert found["error"]["name"] == "no-usable-memory"


def test_of_several_questions_one_refused_is_enough(store, refusing, command_line):
    asked = f"{QUESTION}\n{QUESTION}\n"
    code, out, _ = command_line("ask", "-", *store[1], *refusing, "--json", stdin=asked)
    assert code == 7 and [json.loads(line)["refused"] for line in out.splitlines()] == ["model"] * 2
    code, out, _ = command_line("chat", *store[1], *refusing, "--json", stdin=asked)
    assert code == 7 and [json.loads(line)["refused"] for line in out.splitlines()] == ["model"] * 2


def test_an_answer_is_no_refusal(store, tmp_path, command_line):
    folder = says("in March", load(store[0].model), tmp_path / "adapter")
    code, out, _ = command_line("ask", QUESTION, *store[1], "--adapter", folder, "--json")
    found = json.loads(out)
    assert code == 0 and found["answer"] == "in March" and found["refused"] == ""
    assert found["sources"] and found["reader"] == "text + adapter"
