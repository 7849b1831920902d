"""Scores of an answer, as the SQuAD scorer computes them. Source: Rajpurkar et al. 2016, evaluate-v1.1.py."""

import re
import string
from collections import Counter
from collections.abc import Callable

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(prediction: str, gold: str) -> float:
    """1.0 where the two are the same once normalised."""
    return float(normalise(prediction) == normalise(gold))


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of the precision and recall of words, each counted as often as it occurs."""
    left, right = normalise(prediction).split(), normalise(gold).split()
    same = sum((Counter(left) & Counter(right)).values())
    return 2 * same / (len(left) + len(right)) if same else 0.0


def best(score: Callable[[str, str], float], prediction: str, golds: list[str]) -> float:
    """The best of a score over several right answers."""
    return max(score(prediction, gold) for gold in golds)
