"""How good an answer is: exact match, F1, what was copied right, how sure a mean is.

Exact match and F1 are as the SQuAD scorers compute them.

Sources: Rajpurkar et al. 2016, evaluate-v1.1.py (EM, F1); Rajpurkar et al. 2018, evaluate-v2.0.py
(questions without an answer).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rag_memtok.model.prompts import is_refusal

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
WORD = re.compile(r"[^\W\d_][\w'-]*")
RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The scores of one answer, each 0 to 1; None where it does not apply.

    `refused` is None if there is an answer, `numbers` and `names` if it has none.
    """

    em: float
    f1: float
    refused: float | None
    numbers: float | None
    names: float | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval; NaN where there was nothing to average."""

    mean: float
    low: float
    high: float


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Exact match: 1.0 where the two are the same once normalised."""
    return float(normalize(prediction) == normalize(gold))


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of the precision and recall of words.

    Each word is counted as often as it occurs; where one has no words, it is 1.0 if both have none.
    """
    predicted, gold_words = normalize(prediction).split(), normalize(gold).split()
    if not predicted or not gold_words:
        return float(predicted == gold_words)
    same = sum((Counter(predicted) & Counter(gold_words)).values())
    return 2 * same / (len(predicted) + len(gold_words))


def answerable(golds: Sequence[str]) -> tuple[str, ...]:
    """The gold answers that are no refusals: none where the documents do not say."""
    return tuple(gold for gold in golds if not is_refusal(gold))


def score(prediction: str, golds: Sequence[str]) -> Score:
    """Scores an answer against `golds`, the best of them counting.

    Where there are none, the documents do not say, and only a refusal is right.
    """
    answer = "" if is_refusal(prediction) else prediction
    wanted = list(golds) or [""]
    return Score(
        em=max(exact_match(answer, gold) for gold in wanted),
        f1=max(f1(answer, gold) for gold in wanted),
        refused=None if golds else float(not answer),
        numbers=copied_share(NUMBER.findall, answer, golds),
        names=copied_share(capitalized_words, answer, golds),
    )


def capitalized_words(text: str) -> list[str]:
    """The words of `text` that begin with a capital: names, mostly."""
    return [word for word in WORD.findall(text) if word[0].isupper()]


def copied_share(
    found_in: Callable[[str], list[str]], prediction: str, golds: Sequence[str]
) -> float | None:
    """The share of what `found_in` finds in a gold answer that the prediction has.

    It is compared letter by letter; the best of `golds` counts.
    """
    predicted = set(found_in(prediction))
    wanted = [found for gold in golds if (found := found_in(gold))]
    return max(
        (sum(one in predicted for one in found) / len(found) for found in wanted), default=None
    )


def interval(values: Sequence[float | None], groups: Sequence[Hashable]) -> Interval:
    """The mean of what is not None, and its 95 % percentile bootstrap interval.

    Args:
        groups: what is drawn together: questions about the same chunk are no independent witnesses.

    Cost: RESAMPLES draws of as many numbers as there are groups.
    """
    sums, counts = _by_group(values, groups)
    if not counts.sum():
        return Interval(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    drawn = counts[draws].sum(axis=1)
    means = sums[draws].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    low, high = (float(bound) for bound in np.quantile(means, [0.025, 0.975]))
    return Interval(float(sums.sum() / counts.sum()), low, high)


def _by_group(
    values: Sequence[float | None], groups: Sequence[Hashable]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    places = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    sums, counts = np.zeros(len(places)), np.zeros(len(places))
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            sums[places[group]] += value
            counts[places[group]] += 1
    return sums, counts


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[Hashable]
) -> Interval:
    """The mean of `ours` minus `theirs`, question by question, with its interval."""
    return interval([one - other for one, other in zip(ours, theirs, strict=True)], groups)
