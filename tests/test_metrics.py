"""Scores agree with the published SQuAD scorers; an interval holds what it should."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.evaluation.metrics import (
    answerable,
    exact_match,
    f1,
    interval,
    normalize,
    paired_difference,
    score,
)

# Prediction, golds, exact match, F1. The first six are from published runs of the official scorer,
# the others follow its rules.
PUBLISHED = [
    ("1976", ["1976"], 1.0, 1.0),
    ("Joe Biden", ["Beyoncé and Bruno Mars"], 0.0, 0.0),
    ("King George's War", ["king george's war"], 1.0, 1.0),
    ("Rijn", ["rhijn"], 0.0, 0.0),
    ("dreadnought battleships, and ocean liners", ["ocean liners"], 0.0, 4 / 7),
    ("Y. pestis", ["mechanism by which y. pestis was usually transmitted"], 0.0, 0.4),
    ("The  Eiffel tower!", ["an eiffel Tower"], 1.0, 1.0),
    ("in the year 1889", ["1889", "March 1889"], 0.0, 0.5),
    ("one one two", ["one two two"], 0.0, 2 / 3),
    ("", ["Paris"], 0.0, 0.0),
    ("Paris", [], 0.0, 0.0),
    ("", [], 1.0, 1.0),
    ("Not in the documents.", [], 1.0, 1.0),
    ("Not in the documents.", ["Paris"], 0.0, 0.0),
]
words = st.lists(st.sampled_from(["the", "a", "Lamp", "lamp,", "red", "7", "not"]), max_size=6).map(
    " ".join
)


@pytest.mark.parametrize(("prediction", "golds", "em", "overlap"), PUBLISHED)
def test_scores_are_those_of_the_published_scorers(prediction, golds, em, overlap):
    found = score(prediction, golds)
    assert (found.em, found.f1) == (em, pytest.approx(overlap))


def test_words_are_compared_without_case_punctuation_articles_and_spaces():
    assert normalize("  The lamp's\tlight, an  atoll. ") == "lamps light atoll"


@given(one=words, other=words)
def test_f1_is_symmetric_and_no_less_than_exact_match(one, other):
    assert f1(one, other) == pytest.approx(f1(other, one))
    assert exact_match(one, other) <= f1(one, other) <= 1
    assert (f1(one, other) == pytest.approx(1)) == (
        sorted(normalize(one).split()) == sorted(normalize(other).split())
    )


@given(prediction=words, golds=st.lists(words, min_size=1, max_size=3))
def test_the_best_of_several_golds_counts(prediction, golds):
    assert score(prediction, golds).f1 == max(score(prediction, [gold]).f1 for gold in golds)


def test_only_a_refusal_is_right_where_the_documents_do_not_say():
    assert [
        score(said, []).refused
        for said in ("not in the documents", "Not in the documents: sorry", "Rome")
    ] == [1.0, 1.0, 0.0]
    assert score("Rome", ["Rome"]).refused is None
    assert (
        answerable(["unanswerable"])
        == answerable([])
        == answerable(["Not in the documents."])
        == ()
    )
    assert answerable(["Rome", "unanswerable"]) == ("Rome",)


def test_numbers_and_names_are_copied_letter_by_letter():
    found = score("It cost 118 euros in 1,931", ["118 euros, in Oslo", "118 euros on 1,931"])
    assert (found.numbers, found.names) == (1.0, 0.0)
    assert score("aldo Ruiz", ["Aldo Ruiz"]).names == 0.5
    assert score("Élodie", ["Élodie"]).names == 1.0
    assert score("3.14", ["3.1"]).numbers == 0.0
    nothing = score("red", ["blue"])
    assert nothing.numbers is None and nothing.names is None


def test_an_interval_holds_its_mean_and_narrows_with_more_groups():
    few = interval([0.0, 1.0] * 10, range(20))
    many = interval([0.0, 1.0] * 200, range(400))
    assert few.mean == many.mean == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.15)


def test_questions_about_one_chunk_are_one_witness():
    values, groups = [0.0] * 50 + [1.0] * 50, list(range(50)) * 2
    alone, together = (
        interval(values, range(100)),
        interval(values, [group // 2 for group in range(100)]),
    )
    assert together.high - together.low > 1.2 * (alone.high - alone.low)
    # each chunk has a right and a wrong one: no doubt at all is left
    same = interval(values, groups)
    assert same.low == same.high == 0.5


def test_what_does_not_apply_does_not_count():
    assert interval([1.0, None, None], "abc").mean == 1.0
    assert math.isnan(interval([None], "a").mean) and math.isnan(interval([], []).low)


def test_a_paired_difference_is_surer_than_two_means():
    theirs = [index / 100 for index in range(100)]
    found = paired_difference([value + 0.01 for value in theirs], theirs, range(100))
    assert found.mean == pytest.approx(0.01) and found.high - found.low < 1e-9
