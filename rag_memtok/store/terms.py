"""Text -> the terms that the word indexes hold, by one function for what is stored and asked.

A term is what a word has in common with its other ways of being written: with or without capitals,
accents, ligatures, hyphens that are not seen; one mouse or several mice. Writing without spaces has
overlapping pairs of characters as its terms. What is left of English endings is FTS5's (`porter`),
those of other languages are of stems.py.
"""

import re
import unicodedata
from collections.abc import Iterator

from rag_memtok.store.stems import STEMMER, detect_language, query_stems, stems_in

# Which terms a text has: what an index was made by stands in its store's manifest. To be counted up
# with every change of this file or of stems.py that gives a text other terms.
RULES = f"1, {STEMMER}"

STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been before being but by can could did
    do does doing for from get had has have he her here him his how i if in into is it its just may
    me might more most must my no not of on or our out over please she should so some such tell than
    that the their them then there these they this those to too under until up us very was we were
    what when where whether which while who whom whose why will with would you your
    al algo algun alguna ante aquel aquella aqui asi aun aunque cada como con cual cuales cuando
    cuanta cuantas cuanto cuantos de del desde donde dos el ella ellas ellos en entre era eran es
    esa esas ese eso esos esta estaba estan estas este esto estos fue fueron ha haber habia hace
    hacen hacer han hasta hay la las le les lo los mas me mi mis mucho muy ni nos nosotros o os otra
    otro para pero poco por porque puede pueden que quien quienes se sea segun ser si sin sobre son
    su sus tambien te tiene tienen todo todos tu tus un una unas uno unos usted ustedes y ya yo él
    más sí según también aquí así aún algún había está están éste ésta qué quién quiénes cuál cuáles
    cuándo cuánto cuánta cuántos cuántas cómo dónde dime
    """.split()
)
CAPITALIZED = {"May", "Will", "Al"}  # names though only their first letter is a capital
NAME = "\u02c6"  # ends the term of a name that is written as a stop word: WHO, IT, US

# A noun, then its plurals that no rule gives (verbs cost recall). These have the first one as a
# term beside theirs:
# "lives" and "leaves" are verbs, too.
IRREGULAR = {
    other: first
    for first, *others in map(
        str.split,
        """
        mouse mice;louse lice;child children;man men;woman women;person people persons;foot feet
        tooth teeth;goose geese;ox oxen;penny pence;knife knives;life lives;wife wives
        leaf leaves;loaf loaves;half halves;shelf shelves;wolf wolves;calf calves;thief thieves
        elf elves;scarf scarves;hoof hooves;sheaf sheaves;self selves;criterion criteria
        phenomenon phenomena;medium media;bacterium bacteria;curriculum curricula
        index indices;matrix matrices;vertex vertices;appendix appendices;axis axes
        analysis analyses;basis bases;crisis crises;thesis theses;hypothesis hypotheses
        diagnosis diagnoses;oasis oases;cactus cacti;fungus fungi;nucleus nuclei;radius radii
        stimulus stimuli;alumnus alumni;larva larvae;formula formulae;vertebra vertebrae
        genus genera;corpus corpora
        """.strip()
        .replace("\n", ";")
        .split(";"),
    )
    for other in others
}

# Scripts that do not part words, and Hangul, which adds endings to them.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003134f"
)
RUN = re.compile(f"[{SPACELESS}]+")
SCRIPTS = re.compile(f"([{SPACELESS}]+)")
# Questions are asked with these, and everything is written with them.
STOP_PAIRS = frozenset("什么 多少 怎么 哪里 哪个 哪些 哪儿 如何 为什 是谁 几个 是什".split())
# Indic vowels are no letters to `re`.
WORD = re.compile(rf"[\w\u0900-\u0963\u0966-\u0dff{SPACELESS}]+")
HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^A-Za-z\d]+")
MIXED = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]|[A-Za-z]{3}\d")
# Marks of Latin, Greek and Cyrillic, of Hebrew and Arabic, and what chooses a letter's picture.
MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed\ufe00-\ufe0f]"
)
SPELT = str.maketrans({"ı": "i", "œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d"})
HYPHENS = "-\u00ad\u2010\u2011"
BROKEN = re.compile(rf"([^\W\d_]+)[{HYPHENS}][ \t]*\r?\n[ \t]*([^\W\d_]+)")
INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")
ONE_LETTER = re.compile(r"\b([^\W\d_])-([^\W\d_]{2,})")
POSSESSIVE = re.compile(r"['\u2019][sS]\b")


def terms_of(text: str) -> str:
    """The terms of a text that is stored, with spaces between."""
    words = list(split_words(text))
    folded = [_fold(word) for word in words]
    terms = [term for word in words for term in _terms(word)]
    return " ".join([*terms, *stems_in(folded, detect_language(folded))])


def terms_of_bytes(text: bytes) -> bytes:
    """`terms_of` for what the database has; a name in it need not be UTF-8."""
    return terms_of(text.decode(errors="replace")).encode()


def query_words(question: str) -> list[str]:
    """The words of a question that say what it is about, as they are written.

    English and Spanish function words are left out, unless their capitals say that they are names.
    """
    words, shouted = list(split_words(question)), question.upper() == question
    return [
        word
        for position, word in enumerate(words)
        if _fold(word) not in STOP_WORDS
        or (_is_name(word) and not shouted and (position > 0 or word.isupper()))
    ]


def query_terms(word: str) -> list[str]:
    """The terms of a word of a question; with "*" at its end: all that begin with it."""
    if _is_name(word):
        return [_fold(word) + NAME]
    if RUN.fullmatch(word) and len(word) == 1:
        return [word + "*"]
    terms = _terms(word)
    last = terms[-1] if terms else ""
    pairs = len(last) == 1 and RUN.match(last) and len(terms) > 1
    terms = terms[:-1] if pairs else terms
    telling = [term for term in terms if len(terms) == 1 or term not in STOP_PAIRS | STOP_WORDS]
    return [*telling, *query_stems(_fold(word))]


def split_words(text: str) -> Iterator[str]:
    """Yields the words of a text, in one way of writing but with their capitals."""
    text = BROKEN.sub(_join_broken, text)
    if not text.isascii():
        characters = unicodedata.normalize("NFKC", text)
        shown = "".join(character for character in characters if not _is_invisible(character))
        text = unicodedata.normalize("NFC", MARKS.sub("", unicodedata.normalize("NFD", shown)))
    text = INITIALS.sub(lambda match: match[0].replace(".", ""), text)
    text = ONE_LETTER.sub(r"\1\2 \1 \2", POSSESSIVE.sub("", text))
    for word in WORD.findall(text):
        yield from (part for part in SCRIPTS.split(word) if part.strip("_"))


def _is_invisible(character: str) -> bool:
    """Whether a character is a soft hyphen, of no width, or the like."""
    return unicodedata.category(character) == "Cf"


def _join_broken(match: re.Match[str]) -> str:
    """A word that a line end parts, with its parts before the whole."""
    first, second = match.groups()
    whole = f" {first}{second}" if second[0].islower() else ""
    return f"{first} {second}{whole}\n"


def _terms(word: str) -> list[str]:
    """The terms of a word that is stored."""
    if RUN.match(word):
        return [word[start : start + 2] for start in range(len(word))]
    parts = [hump for part in word.split("_") if part for hump in _humps(part)]
    terms = [_fold(part) for part in parts]
    terms += ["".join(terms)] if len(terms) > 1 else []
    terms += [IRREGULAR[term] for term in terms if term in IRREGULAR]
    terms += [_fold(word) + NAME] if _is_name(word) else []
    return [term for term in dict.fromkeys(terms) if term]


def _humps(word: str) -> list[str]:
    """The words in a camelCase one, and the number behind a word."""
    return HUMPS.findall(word) if word.isascii() and MIXED.search(word) else [word]


def _fold(word: str) -> str:
    """A word without capitals and accents."""
    if word.isascii():
        return word.lower()
    bare = MARKS.sub("", unicodedata.normalize("NFD", word.casefold()))
    return unicodedata.normalize("NFC", bare).translate(SPELT)


def _is_name(word: str) -> bool:
    """Whether a word that could be a function word is written as names are."""
    capitals = len(word) > 1 and word.isupper()
    return (capitals or word in CAPITALIZED) and word.lower() in STOP_WORDS
