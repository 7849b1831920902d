"""Cues: their words stand in the text, whatever the text is, and text and seed decide them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.cues import ASKING, CUES, WORD, cues

TEXT = (
    "The lamp of the harbour was repaired in March 1907, and its keeper Ana de la Cruz wrote a letter. Nobody knows where the letter "
    "went; the keeper's sister kept a diary for 40 years.\n\n"
    "Maximum load: 18 kilograms\n- **Colour**: dark green\n| Filter | F-2290 |\nport = 8080\nsee https://example.org/a\n"
    "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora en un horno de barro."
)
FRAMES = {word for asking in ASKING for word in asking.split()} | {"are", "the", "does", "it", "say", "for", "one"}


@pytest.mark.parametrize("kind", CUES)
def test_a_cue_of_each_kind_has_words_of_the_text(kind):
    found = cues(TEXT, 12, seed=0, kinds=(kind,))
    assert len(found) == 12
    for cue in found:
        own = [word for word in WORD.findall(cue) if word not in FRAMES]
        assert own and all(word in TEXT for word in own), cue


def test_names_and_fields_are_found_in_their_several_shapes():
    names = " ".join(cues(TEXT, 40, seed=0, kinds=("name",)))
    assert "Ana de la Cruz?" in names and "Maximum?" in names and "of?" not in names
    fields = " ".join(cues(TEXT, 30, seed=0, kinds=("field",)))
    assert (
        all(one in fields for one in ("Maximum load?", '"18 kilograms"', "Colour?", "Filter?", "port?", '"8080"')) and "https" not in fields
    )


def test_text_and_seed_decide_and_are_all_that_does():
    assert cues(TEXT, 8, seed=3) == cues(TEXT, 8, seed=3) != cues(TEXT, 8, seed=4)
    assert len(set(cues(TEXT, 40, seed=3))) == 40
    assert not set(cues(TEXT, 20, seed=3, kinds=("words",))) & set(cues(TEXT, 20, seed="adapt 3", kinds=("words",)))


@given(st.text(max_size=300), st.integers(0, 5))
def test_any_text_will_do(text, seed):
    found = cues(text, 4, seed)
    assert len(found) <= 4 and all(found)


def test_a_table_of_numbers_is_asked_about_too():
    assert len(cues(json.dumps({"name": "pump", "litres": 4}) + "\n" + "1;2;3\n" * 5, 6, seed=0)) == 6
