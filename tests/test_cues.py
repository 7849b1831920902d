"""Cues: their answers stand in the text, and the rule that made a question leads from it to the answer."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.cues import BLANK, CUES, cues, sentences

TEXT = (
    "The lamp of the harbour was repaired in March 1907, and its keeper wrote a letter. Nobody knows where the letter went; "
    "the keeper's sister kept a diary for 40 years.\n\n"
    "Maximum load: 18 kilograms\n- **Colour**: dark green\n| Filter | F-2290 |\nport = 8080\nsee https://example.org/a\n"
    "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora en un horno de barro."
)


def leads(text, cue):
    """Whether the rule, applied to the question, finds the answer and no other."""
    if cue.kind == "cloze":
        left, right = (re.escape(part) for part in cue.question[:-1].split(BLANK))
        return cue.answer in re.findall(f"{left}(.{{1,200}}?){right}", text, re.DOTALL)
    if cue.kind in ("after", "sentence"):
        quote = cue.question.split('"', 1)[1].rpartition('"')[0]
        begins = text.index(quote)
        if cue.kind == "after":
            return text[begins + len(quote) :].lstrip().startswith(cue.answer)
        return any(text[a:b].strip() == cue.answer and a <= begins < b for a, b in sentences(text))
    return any(cue.answer in line and line.index(cue.answer) > 0 for line in text.splitlines())


@pytest.mark.parametrize("kind", CUES)
def test_a_cue_of_each_kind_can_be_checked_by_its_rule(kind):
    found = cues(TEXT, 12, seed=0, kinds=(kind,))
    assert len(found) >= 4
    for cue in found:
        assert cue.kind == kind and cue.answer in TEXT and cue.answer.strip() == cue.answer != ""
        assert leads(TEXT, cue), cue
        if kind == "cloze":
            assert cue.answer not in cue.question or TEXT.count(cue.answer) > 1


def test_fields_are_found_in_their_several_shapes():
    fields = {cue.answer for seed in range(20) for cue in cues(TEXT, 8, seed, kinds=("field",))}
    assert fields == {"18 kilograms", "dark green", "F-2290", "8080"}


def test_what_stands_twice_is_not_asked_for():
    assert cues("size: 3\nsize: 4\n", 5, seed=0, kinds=("field",)) == ()
    twice = "The keeper of the lamp wrote a long letter. " * 2
    assert cues(twice, 5, seed=0, kinds=("after", "sentence")) == ()


def test_text_and_seed_decide_and_are_all_that_does():
    assert cues(TEXT, 8, seed=3) == cues(TEXT, 8, seed=3) != cues(TEXT, 8, seed=4)
    assert len({cue.question for cue in cues(TEXT, 8, seed=3)}) == 8


@given(st.text(max_size=300), st.integers(0, 5))
def test_any_text_will_do(text, seed):
    for cue in cues(text, 4, seed):
        assert cue.answer in text and cue.question


def test_cues_of_a_table_of_numbers():
    text = json.dumps({"name": "pump", "litres": 4}) + "\n" + "1;2;3\n" * 5
    assert all(cue.answer in text for cue in cues(text, 6, seed=0))
