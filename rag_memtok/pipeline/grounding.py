"""Does an answer stand in what was read, which bit of that bears on it, where it is a loop.

An answer is grounded if it is a run of whole words of a passage that was in the prompt. That does
not make it right, but one that stands nowhere is the model's own.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from rag_memtok.datatypes import Occurrence, Standing

# what stands in most texts and says nothing of where it is from
ASSENT = frozenset("yes no sí si ja nein oui non true false none".split())
EDGES = " \t\r\n.,;:!?\"'“”‘’«»()[]*_`"
TURNS = 3  # so often the same words in a row are a loop
LONGEST = 24  # tokens of them, at most
LINES = re.compile(r"lines? (\d+)(?:-(\d+))?")
WHEN = re.compile(r"\b(?:when|cuándo|wann|quand)\b", re.IGNORECASE)
SHORTEST_UNIT = 4  # letters: what is shorter is mostly a preposition
SHORTEST = 4  # letters of a word that may be the beginning of a longer one
SNIPPET = 90  # characters of a passage that are shown beside its citation


def find_standing(answer: str, passages: Iterable[tuple[str, Occurrence]]) -> Standing | None:
    """The first place where the answer stands, word for word; None: in no passage.

    Case, the space between words and the signs around the answer do not count. "Yes" and the like
    are never grounded, and neither is a number within a longer one, or behind a minus sign that it
    has not.
    """
    phrase = answer.strip(EDGES)
    if not phrase or phrase.casefold() in ASSENT:
        return None
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    before = r"(?<!\w)(?<!\d[.,:])(?<!^[-−–])(?<![^\w][-−–])" if phrase[0].isdigit() else r"(?<!\w)"
    after = r"(?![.,:]?\d)(?!\w)" if phrase[-1].isdigit() else r"(?!\w)"
    pattern = re.compile(before + words + after, re.IGNORECASE)
    for text, place in passages:
        if match := pattern.search(text):
            start, end = match.span()
            span = (place.start + start, place.start + end)
            return Standing(place.path, _line(text, start, place.locator), span, match.group())
    return None


def complete_answer(question: str, answer: str, texts: Sequence[str]) -> str:
    """The answer as far as its text goes on with what belongs to it.

    That is the rest of its last word or number; behind a number the very word of the question that
    follows it in a text ("how many days": "60 days"; four letters at least: "km" is none); behind
    the answer to a question that asks when, "at" and an hour, if in the first text that has the
    answer they always follow it.
    """
    whole = complete_last_word(answer, texts)
    after = _unit_after(question, whole, texts) or _hour_after(question, whole, texts)
    return whole + re.sub(r"\s+", " ", after)


def complete_last_word(answer: str, texts: Iterable[str]) -> str:
    """The answer with the rest of the word or number that it breaks off in, as its text goes on.

    "16" of 16:20 and "Marrab" of Marrable say something else. Only where the first text that has
    the answer has it nowhere whole, and goes on alike wherever it has it.
    """
    last = re.search(r"\w*\Z", answer)[0]  # type: ignore[index]
    if not last or not (last[-1].isdigit() or len(last) >= SHORTEST):
        return answer
    # no comma: what follows one may be the next field of a table
    rest = r"(\d*(?::\d\d)*(?:\.\d+)*)" if last[-1].isdigit() else r"(\w*)"
    return answer + _always_after(answer, rest, texts)


def _unit_after(question: str, answer: str, texts: Iterable[str]) -> str:
    """What follows a number in the first text that has it there and stands in the question, too."""
    if not re.search(r"\d\Z", answer):
        return ""
    asked = set(re.findall(r"[^\W\d_]+", question.casefold()))
    pattern = re.compile(_phrase(answer) + r"(\s+([^\W\d_]+)(?:\s+per\s+([^\W\d_]+))?)")
    for text in texts:
        for after, unit, per in pattern.findall(text):
            if unit.casefold() in asked and len(unit) >= SHORTEST_UNIT:
                whole = not per or per.casefold() in asked
                return after if whole else after[: after.index(unit) + len(unit)]
    return ""


def _hour_after(question: str, answer: str, texts: Iterable[str]) -> str:
    """The hour behind the answer, where a question asks when."""
    if not WHEN.search(question) or re.search(r"\d[:.]\d\d\Z", answer):
        return ""
    hour = r"(?:(,?\s+(?:at|um|a las|à)\s+\d{1,2}[:.]\d\d(?!\d))|\b)"
    return _always_after(answer, hour, texts)


def _always_after(answer: str, rest: str, texts: Iterable[str]) -> str:
    """What the group of `rest` matches behind the answer in the first text that has both.

    Nothing, if it is not the same wherever that text has them.
    """
    pattern = re.compile(_phrase(answer) + rest)
    for text in texts:
        if found := set(pattern.findall(text)):
            return found.pop() if len(found) == 1 else ""
    return ""


def _phrase(answer: str) -> str:
    """A pattern of the answer's words where they stand whole, but for what follows them."""
    words = r"\s+".join(re.escape(word) for word in answer.lstrip(EDGES).split())
    return r"(?<!\w)(?<!\d[.,:])" + words


def _line(text: str, at: int, locator: str) -> str:
    """The locator of a character: its line, where the passage's locator counts lines."""
    match = LINES.fullmatch(locator)
    if match is None or match[2] is None:
        return locator
    first, last = int(match[1]), int(match[2])
    if text.rstrip("\n").count("\n") != last - first and text.count("\n") != last - first:
        return locator
    return f"line {first + text.count(chr(10), 0, at)}"


def snippet(text: str, words: Sequence[str], marked: tuple[int, int] | None = None) -> str:
    """The part of a passage that bears on an answer, at most a line of SNIPPET characters.

    It is about the characters `marked`, which stand between >> and <<; else it is the line with
    most of the question's `words`.
    """
    start, end = marked or _find_words(text, words)
    first, last = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    before, after = (
        re.sub(r"\s+", " ", part)
        for part in (text[first:start].lstrip(), text[end : last if last >= 0 else None].rstrip())
    )
    quote = " ".join(text[start:end].split())
    if len(quote) > SNIPPET:
        quote, after = f"{quote[:SNIPPET].rpartition(' ')[0] or quote[:SNIPPET]} ...", ""
    room = max(SNIPPET - len(quote), 0)
    left = min(len(before), max(room // 2, room - len(after)))
    right = min(len(after), room - left)
    if left < len(before):
        cut = before[len(before) - left :]
        before = f"... {cut.partition(' ')[2] or cut}"
    if right < len(after):
        cut = after[:right]
        after = f"{cut.rpartition(' ')[0] or cut} ..."
    return f"{before}>>{quote}<<{after}" if marked else f"{before}{after}"


def _find_words(text: str, words: Sequence[str]) -> tuple[int, int]:
    """An empty span at the first of the words in the line that has most of them."""
    pattern = re.compile("|".join(map(re.escape, words)) or r"(?!)", re.IGNORECASE)
    lines = [line for line in re.finditer(r"[^\n]+", text) if line[0].strip()]
    matches = [[match for match in pattern.finditer(text, *line.span())] for line in lines]
    most = max(matches, key=lambda line: len({match[0].casefold() for match in line}), default=[])
    at = most[0].start() if most else lines[0].start() if lines else 0
    return at, at


def count_before_loop(tokens: Sequence[int], text_of: Callable[[Sequence[int]], str]) -> int:
    """The number of an answer's tokens before it repeats itself in a loop; all, if it never does.

    A loop is a stretch that ends the answer so far and was said TURNS times in a row. One that is
    all digits may be a number.
    """
    for end in range(TURNS, len(tokens) + 1):
        if size := loop_at_end(tokens[max(0, end - TURNS * LONGEST) : end], text_of):
            return end - (TURNS - 1) * size
    return len(tokens)


def loop_at_end(tokens: Sequence[int], text_of: Callable[[Sequence[int]], str]) -> int:
    """The length in tokens of the loop that ends here, 0 if none does. Cost: the same for any."""
    for size in range(1, min(LONGEST, len(tokens) // TURNS) + 1):
        last, *before = (
            tokens[len(tokens) - (turn + 1) * size : len(tokens) - turn * size]
            for turn in range(TURNS)
        )
        if all(stretch == last for stretch in before) and re.search(r"[^\W\d_]{2}", text_of(last)):
            return size
    return 0
