"""What people say first, and no passage answers; and a question without quotes."""

import json
from pathlib import Path

import pytest
import small

from rag_memtok.errors import NoUsableMemory
from rag_memtok.pipeline import api
from rag_memtok.pipeline.first_words import ALL_ABOUT, GREETING, WHAT_FOR, require_words

NOTES = {"allotment.md": "The rent of the plot is 85 euros.", "hello.txt": "Hello there."}


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder):
    """The settings of a store of two notes; one of them greets."""
    folder = tmp_path_factory.mktemp("first")
    config = small.dials(folder / "store", model_folder)
    api.ingest([small.written(folder / "docs", NOTES)], config)
    return config


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("Hello", "'Hello' asks for nothing; answers come from 2 documents in the store"),
        ("???", "there is no word in '???'"),
        (
            "What are my notes about?",
            "answers are read from a few passages, and cannot say what all documents are about; "
            "there are 2 documents: allotment.md, hello.txt",
        ),
        (
            "What can you do?",
            "questions are answered from 2 documents in the store, with the place of the answer",
        ),
        ("zzz qqq", "nothing in the store has to do with this question"),
    ],
)
def test_each_has_its_own_true_sentence(store, command_line, question, sentence):
    code, out, err = command_line("ask", question, "--store", store.store)
    assert (code, out) == (7, "")
    assert err.startswith(f"error: {sentence}\n  next: ")
    code, out, _ = command_line("ask", question, "--store", store.store, "--json")
    told = json.loads(out)
    assert (told["error"]["message"], told["refused"]) == (sentence, "retrieval")


def test_an_empty_store_says_so(tmp_path, model_folder):
    config = small.dials(tmp_path / "store", model_folder)
    docs = small.written(tmp_path / "docs", {"a.txt": "The lamp."})
    api.ingest([docs], config)
    api.remove(docs, config)
    for question in ("Where is the lamp?", "Hello", "What are my notes about?"):
        with pytest.raises(NoUsableMemory, match="there is no document in the store") as told:
            api.ask(question, config)
        assert told.value.remedy.startswith("rag-memtok ingest")
    with pytest.raises(NoUsableMemory, match="there is no document in the store"):
        api.search("lamp", config)


def test_to_search_any_word_is_one(store):
    assert api.search("hello", store)[0].source.path == "hello.txt"
    with pytest.raises(NoUsableMemory, match="there is no word in '!!'"):
        api.search("!!", store)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (GREETING, "hello there"),
        (GREETING, "good morning"),
        (GREETING, "hola"),
        (GREETING, "guten tag"),
        (GREETING, "你好"),
        (GREETING, "thank you"),
        (ALL_ABOUT, "what s in my notes"),
        (ALL_ABOUT, "what do the documents say"),
        (ALL_ABOUT, "what are all of my notes about"),
        (ALL_ABOUT, "summarize my documents"),
        (ALL_ABOUT, "give me an overview of these files"),
        (ALL_ABOUT, "which documents are there"),
        (ALL_ABOUT, "de qué tratan mis notas"),
        (ALL_ABOUT, "worum geht es in meinen notizen"),
        (WHAT_FOR, "help"),
        (WHAT_FOR, "who are you"),
        (WHAT_FOR, "what can i ask"),
    ],
)
def test_ways_to_say_it(pattern, said):
    assert pattern.fullmatch(said)


def test_questions_are_none_of_these():
    rows = (Path(__file__).parent.parent / "data" / "questions.jsonl").read_text().splitlines()
    asked = [json.loads(row)["question"] for row in rows]
    asked += ["Hello, when is the rent due?", "What do my notes say about rent?", "good?"]
    asked += ["What is the note on the boiler about?", "What are my duties?", "How do I help?"]
    for question in asked:
        require_words(question)
        words = " ".join(question.casefold().replace("?", "").replace(",", "").split())
        assert not any(one.fullmatch(words) for one in (GREETING, ALL_ABOUT, WHAT_FOR)), question


# --- without quotes


def test_words_without_quotes_are_one_question(store, command_line):
    where = ("--store", store.store, "--json")
    code, out, _ = command_line("ask", "zzz", "is", "no", "qqq?", *where)
    assert (code, json.loads(out)["error"]["name"]) == (7, "no-usable-memory")
    code, out, _ = command_line("ask", *"what is the rent".split(), *where)
    assert (code, json.loads(out)["question"]) == (0, "what is the rent")
    code, out, _ = command_line("search", "plot", "rent", *where)
    assert code == 0 and json.loads(out)["found"][0]["source"]["path"] == "allotment.md"


@pytest.mark.parametrize("words", [("Who pays?", "When is it due?"), ("-", "who"), ("why", "-")])
def test_several_questions_are_refused_with_the_way_to_ask_them(store, command_line, words):
    code, out, err = command_line("ask", *words, "--store", store.store)
    assert (code, out) == (2, "")
    assert "questions at once" in err and "put one question in quotes; ask - reads several" in err


# --- standard input as a document


def test_what_is_piped_in_has_the_name_it_is_given(tmp_path, model_folder, command_line):
    told = ("--store", tmp_path / "store", "--model", model_folder, "--chunk-tokens", 24)
    piped = "Der Schlüssel hängt hinter der Tür.".encode("cp1252")
    code, out, err = command_line("ingest", "-", "--name", "key.md", *told, stdin=piped)
    assert code == 0 and "1 new or changed" in out
    assert "read in the likeliest encoding" in err and "  key.md: cp1252\n" in err
    code, out, _ = command_line("ingest", "-", "--name", "key.md", "--dry-run", *told, stdin=piped)
    assert code == 0 and "0 chunks of 0 files (1 unchanged)" in out
    code, out, _ = command_line("list", "--store", tmp_path / "store", "--json")
    assert code == 0 and [one["name"] for one in json.loads(out)["documents"]] == ["key.md"]


@pytest.mark.parametrize("words", [("-",), ("docs", "--name", "a.md")])
def test_a_name_goes_with_standard_input_and_with_nothing_else(command_line, tmp_path, words):
    code, _, err = command_line("ingest", *words, "--store", tmp_path / "store")
    assert code == 2 and "standard input (-) needs one" in err and "--name NOTE.md" in err
