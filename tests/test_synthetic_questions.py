"""Cues: their words stand in the text, whatever the text is, and text and seed decide them."""

import json

from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.memory.synthetic_questions import ASKING, SENTENCE_END, WORD, make_questions

TEXT = (
    "The lamp of the harbour was repaired in March 1907, and its keeper Ana de la Cruz wrote a "
    "letter. Nobody knows where the letter "
    "went; the keeper's sister kept a diary for 40 years.\n\n"
    "Maximum load: 18 kilograms\n- **Colour**: dark green\n| Filter | F-2290 |\nport = 8080\nsee "
    "https://example.org/a\n"
    "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora en un horno de barro."
)


def test_a_cue_is_a_question_word_and_words_of_one_sentence_in_their_order():
    found = make_questions(TEXT, 60, seed=0)
    assert len(found) == 60 and {len(cue.split()) for cue in found} >= {2, 4, 6}
    of_each = [WORD.findall(sentence) for sentence in SENTENCE_END.split(TEXT)]
    for cue in found:
        asking = max((one for one in ASKING if cue.startswith(f"{one} ")), key=len)
        own = WORD.findall(cue.removeprefix(asking))
        assert cue.endswith("?") and own and any(is_within(own, words) for words in of_each), cue


def is_within(own, words):
    """Whether the first list is part of the second, in its order."""
    left = iter(words)
    return all(word in left for word in own)


def test_text_and_seed_decide_and_are_all_that_does():
    assert (
        make_questions(TEXT, 8, seed=3)
        == make_questions(TEXT, 8, seed=3)
        != make_questions(TEXT, 8, seed=4)
    )
    assert len(set(make_questions(TEXT, 40, seed=3))) == 40
    assert not set(make_questions(TEXT, 20, seed=3)) & set(make_questions(TEXT, 20, seed="adapt 3"))


@given(st.text(max_size=300), st.integers(0, 5))
def test_any_text_will_do(text, seed):
    found = make_questions(text, 4, seed)
    assert len(found) <= 4 and all(found)


def test_a_table_of_numbers_is_asked_about_too():
    assert (
        len(
            make_questions(
                json.dumps({"name": "pump", "litres": 4}) + "\n" + "1;2;3\n" * 5, 6, seed=0
            )
        )
        >= 4
    )
