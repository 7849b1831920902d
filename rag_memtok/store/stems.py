"""Words of other languages than English -> their stems, as further terms of the word indexes.

A text's language is told by its function words; its words then have their stems as terms beside
them, marked with the language. A question may be in any language, so its words are looked for as a
stem of each: an English text, which has no such term, is found as it is without.
"""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

import snowballstemmer

STEMMER = f"snowballstemmer {version('snowballstemmer')}"
MARK = "\u02c7"  # within a term that is a stem; FTS5 takes it for a letter
FEWEST, SHARE = 3, 0.12  # function words that tell a language: how many, and of a text's words
ENGLISH = frozenset(
    "the of and to in is that for it with as was on are by this be from at or an not you have which"
    " has were their but can will if".split()
)
# By the name that snowballstemmer gives the language; without capitals and accents.
FUNCTION_WORDS = {
    name: frozenset(words.split())
    for name, words in {
        "danish": "og i at det en den til er som pa de med for af ikke der var han et har om jeg "
        "men vi sig kan blev",
        "dutch": "de van het een en in is dat op te zijn met voor niet aan er om had ook als dan "
        "maar bij nog uit wordt door naar dit deze heeft hij worden werd",
        "finnish": "ja on ei se han etta oli mutta ovat kun niin joka myos tai kuin ole jos sen "
        "mita nyt",
        "french": "de la le et les des en un une du dans qui que est pour par sur au pas plus ne se"
        " ce il avec sont son aux cette mais ou nous vous leur elle ses comme tout ete",
        "german": "der die und in den von zu das mit sich des auf fur ist im dem nicht ein eine "
        "als auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem "
        "uber einen zum war haben nur oder aber vor zur bis durch alle",
        "italian": "di e il la che in un per non una sono con si da del della le i lo dei al piu "
        "gli delle nel anche come ma alla ha nella questo suo",
        "norwegian": "og i det pa som er en til av for at med de har den ikke var et om han men "
        "jeg vi fra seg kan ble",
        "polish": "i w z na do nie sie jest to ze o a po co jak za od dla ale tak przez czy sa ich",
        "portuguese": "de a o que e do da em um para com nao uma os no se na por mais as dos como "
        "mas ao das seu sua ou quando muito ja tambem pelo pela ate isso sem mesmo aos seus nas",
        "russian": "и в не на я что он с как это по но к у из же за от так о все его то бы она мы",
        "spanish": "de la que el en y los del se las por un para con una su al lo como mas pero sus"
        " le ya este porque esta entre cuando muy sin sobre tambien me hasta hay donde desde",
        "swedish": "och i att det som en pa ar av for med till den har de inte om ett han men var "
        "jag sig fran vi kan nar",
        "turkish": "ve bir bu da de icin ile cok olan olarak daha gibi var kadar o ama ne sonra",
    }.items()
}


def detect_language(words: Iterable[str]) -> str:
    """The language of a text by its words, without capitals and accents; "" if none of these."""
    words = list(words)
    counts = {
        name: sum(word in function_words for word in words)
        for name, function_words in FUNCTION_WORDS.items()
    }
    best = max(counts, key=lambda name: counts[name])
    enough = max(SHARE * len(words), sum(word in ENGLISH for word in words) + 1)
    several = len({word for word in FUNCTION_WORDS[best].intersection(words) if word[1:]}) >= FEWEST
    return best if several and counts[best] >= enough else ""


def stems_in(words: Iterable[str], language: str) -> list[str]:
    """The stems of words as terms; none where the `language` is ""."""
    return [_stem(word, language) for word in words if word.isalpha()] if language else []


def query_stems(word: str) -> list[str]:
    """The stems that a word of a question is looked for as, one of each language."""
    return [stem for language in FUNCTION_WORDS for stem in stems_in([word], language)]


@cache
def _stemmer(language: str) -> Any:
    return snowballstemmer.stemmer(language)


def _stem(word: str, language: str) -> str:
    return f"{language[:3]}{MARK}{_stemmer(language).stemWord(word)}{MARK}"
