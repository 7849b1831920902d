"""What may be said next where an answer is copied from a text: the text's own words, or a refusal.

A reader of vectors knows what stands in a passage better than how it is spelt: 640 came out as
6440. Where the text is at hand, its spelling is, too.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import REFUSAL

LONGEST = 24  # characters of a token that are looked for, at most
HALF = "\ufffd"  # what a part of a character decodes to
WORD = re.compile(r"\d+(?:[.,:]\d+)+|\w+")  # 3,415 is one


@dataclass(frozen=True, slots=True, eq=False)
class Copied:
    """A text to copy from, its spaces and ends of lines single spaces.

    `inside` are the places within its words: nothing begins or ends there.
    """

    lm: LM
    text: str
    inside: frozenset[int]

    def after(self, said: Sequence[int]) -> tuple[Sequence[int], bool]:
        """The tokens that may follow `said`, in order, and whether it may end there.

        Cost: a search of the text, and at the beginning a look at each of its words.
        """
        whole, part = self._split(said)
        begun = self.lm.decode(whole).lstrip()
        places = list(self._places(begun))
        tails = [self.text[place : place + LONGEST] for place in places]
        may_end = bool(begun) and any(place not in self.inside for place in places)
        if REFUSAL.startswith(begun):
            tails.append(REFUSAL[len(begun) :])
            may_end = may_end or not tails[-1]
        if not said:
            tails += [f" {tail}" for tail in tails]
        tokens = {token for tail in set(tails) for token in self._beginnings(tail, part)}
        return sorted(tokens), may_end and not part

    def _split(self, said: Sequence[int]) -> tuple[list[int], list[int]]:
        """The tokens of whole characters, and those of a part of one behind them."""
        whole, part = list(said), list[int]()
        while whole and self.lm.decode(whole).endswith(HALF):
            part.insert(0, whole.pop())
        return whole, part

    def _places(self, begun: str) -> Iterator[int]:
        """Yields where the text goes on after `begun`, which starts with a word of it."""
        place = self.text.find(begun)
        while 0 <= place < len(self.text):
            if place not in self.inside and not self.text[place].isspace():
                yield place + len(begun)
            place = self.text.find(begun, place + 1)

    def _beginnings(self, tail: str, part: Sequence[int]) -> Iterator[int]:
        """Yields the tokens that `tail` can begin with, `part` of its first character said."""
        if not tail:
            return
        known = self.lm.spellings
        if not part:
            for length in range(1, len(tail) + 1):
                yield from known.get(tail[:length], ())
        if part or tail[0] not in known:  # a character of several tokens
            pieces = self.lm.encode(tail[0])
            if pieces[: len(part)] == list(part):
                yield from pieces[len(part) : len(part) + 1]


def copied_from(lm: LM, text: str) -> Copied:
    """`text` to copy from."""
    single = " ".join(text.split())
    inside = (range(word.start() + 1, word.end()) for word in WORD.finditer(single))
    return Copied(lm, single, frozenset(place for places in inside for place in places))
