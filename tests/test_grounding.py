"""An answer that stands in a passage is shown where; one that stands in none is said to.

And one that goes round in circles is cut.
"""

import json
import re

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from random_adapter import says

from rag_memtok.datatypes import Occurrence, Standing
from rag_memtok.model.lm import load
from rag_memtok.pipeline import api
from rag_memtok.pipeline.grounding import (
    SNIPPET,
    complete_answer,
    complete_last_word,
    count_before_loop,
    find_standing,
    snippet,
)
from rag_memtok.settings import updated

TEXT = """# Ferry

It leaves at 9:40 from pier 7.
A ticket is 12.50 euros, and 1,250 were
sold. Sí.
"""
PLACE = Occurrence("/docs", "a/ferry.md", 0, "c", 100, 100 + len(TEXT), "lines 11-15")


@pytest.mark.parametrize(
    ("answer", "quote", "line"),
    [
        ("9:40", "9:40", 13),
        ("pier 7", "pier 7", 13),
        ("Pier 7.", "pier 7", 13),
        (' "pier 7" ', "pier 7", 13),
        ("12.50 euros", "12.50 euros", 14),
        ("1,250 were sold", "1,250 were\nsold", 14),
        ("ferry", "Ferry", 11),
        ("9:40 PM", None, 0),
        ("40", None, 0),
        ("12", None, 0),
        ("50 euros", None, 0),
        ("250", None, 0),
        ("pier", "pier", 13),
        ("pie", None, 0),
        ("ticke", None, 0),
        ("sí", None, 0),
        ("No.", None, 0),
        ("", None, 0),
        ("...", None, 0),
        ("(9:40)", "9:40", 13),
        ("p.*r", None, 0),
    ],
)
def test_where_an_answer_stands(answer, quote, line):
    found = find_standing(answer, [("Nothing of the kind.", PLACE), (TEXT, PLACE)])
    if quote is None:
        assert found is None
        return
    start = 100 + TEXT.index(quote)
    assert found == Standing("a/ferry.md", f"line {line}", (start, start + len(quote)), quote)


@pytest.mark.parametrize("text", ["It was -5 °C.", "(−5 °C)", "–5 °C", "- at -5 °C"])
def test_a_number_is_not_its_opposite(text):
    assert find_standing("5 °C", [(text, PLACE)]) is None
    assert find_standing("5 °C", [(text, PLACE), ("- 5 °C", PLACE)])
    assert find_standing("-5 °C", [("It was -5 °C.", PLACE)])
    assert find_standing("9 days", [("in 8-9 days", PLACE)])


def test_a_page_is_a_page():
    place = Occurrence("/docs", "a.pdf", 0, "c", 0, 9, "page 3")
    assert find_standing("9:40", [(TEXT, place)]).lines == "page 3"
    # the lines of a file whose text was taken out of it are not those of the text
    far = Occurrence("/docs", "a.html", 0, "c", 0, 9, "lines 11-40")
    assert find_standing("9:40", [(TEXT, far)]).lines == "lines 11-40"


words = st.lists(
    st.sampled_from("lamp of the red 12 9:40 (a) años 漢字".split()), min_size=1, max_size=9
)


@given(before=words, answer=words, after=words)
def test_what_stands_there_word_for_word_is_always_found(before, answer, after):
    said, text = " ".join(answer), " ".join([*before, *answer, *after])
    found = find_standing(said, [(text, Occurrence("", "a", 0, "c", 0, len(text), "line 1"))])
    assert found is not None and text[slice(*found.span)] == found.quote
    assert "".join(found.quote.split()) in "".join(said.split())


def circles(text):
    """How much of a text, a token a word, comes before it says the same again."""
    tokens = text.split()
    return tokens[
        : count_before_loop(range_of(tokens), lambda some: " ".join(tokens[n] for n in some))
    ]


def range_of(tokens):
    """The same words as the same numbers: the first place where each stands."""
    return [tokens.index(one) for one in tokens]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("the red lamp", "the red lamp"),
        ("a b a b a", "a b a b a"),
        ("the lamp the lamp the lamp the lamp", "the lamp"),
        ("it is the lamp , the lamp , the lamp , the", "it is the lamp ,"),
        ("0 0 0 0 0 0", "0 0 0 0 0 0"),
        ("very very good", "very very good"),
        ("no no no", "no"),
        ("", ""),
    ],
)
def test_circles_are_cut_after_their_first_round(said, kept):
    assert circles(said) == kept.split()


@given(st.lists(st.integers(0, 3), max_size=40))
def test_what_is_kept_is_a_beginning_without_a_circle(tokens):
    kept = tokens[: count_before_loop(tokens, lambda some: "word")]
    assert kept == tokens[: len(kept)]
    assert count_before_loop(kept, lambda some: "word") == len(kept)


# --- snippets

LONG = "An oven that nobody has opened stands " * 4


@pytest.mark.parametrize(
    ("text", "words", "quote", "shown"),
    [
        (TEXT, (), "12.50 euros", "A ticket is >>12.50 euros<<, and 1,250 were"),
        (TEXT, (), "1,250 were\nsold", "A ticket is 12.50 euros, and >>1,250 were sold<<. Sí."),
        (TEXT, ("pier", "leaves"), None, "It leaves at 9:40 from pier 7."),
        (TEXT, ("TICKET",), None, "A ticket is 12.50 euros, and 1,250 were"),
        (TEXT, ("a.b",), None, "# Ferry"),
        (TEXT, (), None, "# Ferry"),
        ("  set  in\n", ("in",), None, "set in"),
        (
            f"{LONG}by the door. {LONG}",
            (),
            "by the door",
            "... An oven that nobody has opened stands >>by the door<<. An oven that "
            "nobody has opened stands ...",
        ),
        (
            f"By the door. {LONG}",
            ("door",),
            None,
            "By the door. An oven that nobody has opened stands An oven that nobody has "
            "opened stands ...",
        ),
        ("\n \n", ("door",), None, ""),
    ],
)
def test_a_snippet_is_the_bit_that_bears_on_the_answer(text, words, quote, shown):
    place = (text.index(quote), text.index(quote) + len(quote)) if quote else None
    assert snippet(text, words, place) == shown


@given(st.text("ab .\n漢", min_size=1, max_size=400), st.data())
def test_a_snippet_is_one_short_line_of_the_passage(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    plain = "".join(text.split())
    for place in (None, (start, end)):
        shown = snippet(text, ("ab", "漢"), place)
        assert len(shown) <= SNIPPET + len("... >><< ...") and len(shown.splitlines()) <= 1
        parts = shown.removeprefix("... ").removesuffix(" ...").replace(" ...<<", "<<")
        assert "".join(re.sub(">>|<<", "", parts).split()) in plain


# --- in ask


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder):
    """The settings of a store that is asked by its text."""
    folder = tmp_path_factory.mktemp("grounding")
    config = small.dials(folder / "store", model_folder, ask__max_new_tokens=24)
    api.ingest([small.written(folder / "docs")], config)
    return config


def asked(store, folder, answer, **more):
    adapter = says(answer, load(store.model), folder / "adapter")
    told = {"ask.adapter": str(adapter), "ask.read": "text", **more}
    return api.ask("When was the lamp repaired?", updated(store, told))


def test_an_answer_that_breaks_off_in_a_word_is_told_to_the_end_of_it(store, tmp_path):
    adapter, told = says("in Marc", load(store.model), tmp_path / "adapter"), []
    settings = updated(store, {"ask.adapter": str(adapter), "ask.read": "text"})
    found = api.ask("When was the lamp repaired?", settings, told.append)
    assert found.answer == "".join(told).strip() == "in March" and found.grounded


def test_the_screen_and_json_say_where_an_answer_stands(store, tmp_path, command_line):
    found = asked(store, tmp_path, "in March")
    text = small.DOCUMENTS["lamp.md"]
    start = text.index("in March")
    assert found.grounded is True
    assert found.stands_in == Standing("lamp.md", "line 3", (start, start + 8), "in March")
    told = ("--store", store.store, "--read", "text", "--adapter", tmp_path / "adapter")
    code, out, _ = command_line("ask", "When was the lamp repaired?", *told)
    assert code == 0 and f"stands in lamp.md, line 3, characters {start}-{start + 8}" in out
    code, out, _ = command_line("ask", "When was the lamp repaired?", *told, "--json")
    assert json.loads(out)["stands_in"]["span"] == [start, start + 8]


def test_an_answer_of_the_models_own_is_said_to_be_one(store, tmp_path, command_line):
    found = asked(store, tmp_path, "in May")
    assert found.grounded is False and found.stands_in is None and found.sources
    told = ("--store", store.store, "--read", "text", "--adapter", tmp_path / "adapter")
    code, out, _ = command_line("ask", "When was the lamp repaired?", *told)
    assert code == 0 and "stands in no passage" in out


def test_what_is_read_from_vectors_is_looked_for_in_the_text_they_stand_for(store):
    found = api.ask("When was the lamp repaired?", updated(store, {"ask.read": "memory"}))
    assert found.refused or found.grounded is (found.stands_in is not None)
    assert all(found.texts)


def test_a_refusal_stands_nowhere(store, tmp_path):
    found = asked(store, tmp_path, "not in the documents")
    assert found.refused and found.grounded is None and found.stands_in is None


@pytest.mark.parametrize("passages", ["together", "apart"])
def test_an_answer_that_goes_in_circles_ends(store, tmp_path, passages):
    circle = " the lamp" * 9
    found = asked(store, tmp_path, circle.strip(), **{"ask.passages": passages})
    assert found.answer == "the lamp"


@pytest.mark.parametrize(
    ("answer", "text", "whole"),
    [
        ("16", "The bus leaves at 16:20.", "16:20"),
        ("Ottilie Marrab", "kept by Ottilie  Marrable, alone", "Ottilie Marrable"),
        ("12", "It cost 12,500.75 euros", "12"),
        ("4.1", "since 4.1.3 at least", "4.1.3"),
        ("27.90", "K-0715,27.90,912,143", "27.90"),
        ("2026-05-19", "at 2026-05-19T16:00", "2026-05-19"),
        ("1.5", "1.5GB of it", "1.5"),
        ("16", "At 16:20, or 16 minutes later", "16"),
        ("16", "At 16:20 and at 16:45", "16"),
        ("16", "A 160, 2.16 and x16", "160"),
        ("16", "No number 2.165 here", "16"),
        ("118 euros", "118 euros.", "118 euros"),
        ("12", "on 12. May", "12"),
        ("2026", "2026-03-12", "2026"),
        ("cat", "cats", "cat"),
        ("no", "north", "no"),
        ("said.", "said.5", "said."),
        ("", "text", ""),
        ("other", "text", "other"),
    ],
)
def test_an_answer_does_not_break_off_within_a_word_or_number(answer, text, whole):
    assert complete_last_word(answer, ["of something else", text]) == whole


@pytest.mark.parametrize(
    ("question", "answer", "text", "whole"),
    [
        ("How many kilograms can it dry?", "18", "Up to 18 kilograms at a time.", "18 kilograms"),
        ("¿Cuántos gramos lleva?", "700", "con 700 gramos de calabaza", "700 gramos"),
        ("How many days?", "about 60", "for about 60 days, no more", "about 60 days"),
        ("How many days?", "60", "page 60, and in 60\n  days", "60 days"),
        ("How many metres per second?", "19.4", "19.4 metres per second", "19.4 metres per second"),
        ("How many metres?", "19.4", "19.4 metres per second", "19.4 metres"),
        ("How many litres?", "0.4", "10.4 litres, and 0.4 bar", "0.4"),
        ("How many people?", "23", "23 of the people", "23"),
        ("What is of use?", "23", "23 of them", "23"),
        ("Who has 3 dogs?", "Ada", "Ada dogs", "Ada"),
        ("When do they sing?", "Wednesdays", "on Wednesdays at 19:30 there", "Wednesdays at 19:30"),
        ("¿Cuándo cantan?", "miércoles", "los miércoles a las 19:30", "miércoles a las 19:30"),
        ("When?", "4 July", "on 4 July at 180:00", "4 July"),
        ("When?", "4 July", "4 July at 18:00; 4 July was fine", "4 July"),
        ("When?", "9:40", "from 9:40 at 12:30", "9:40"),
        ("Who sings?", "Wednesdays", "Wednesdays at 19:30", "Wednesdays"),
    ],
)
def test_a_number_has_the_unit_that_is_asked_for_and_a_day_its_hour(question, answer, text, whole):
    assert complete_answer(question, answer, ["of something else", text]) == whole


def test_the_first_text_that_has_an_answer_says_how_it_goes_on():
    assert complete_last_word("16", ["at 16:20", "at 16:45"]) == "16:20"
    assert complete_last_word("16", ["16 euros", "at 16:45"]) == "16"
