"""The chat frame: how documents, a question and an answer become token ids, piece by piece.

Passages, questions, quotes and answers are encoded on their own with special tokens split, so that
`<|eot_id|>` inside a document stays text; the frame around them is encoded with special tokens
parsed. One beginning-of-text per sequence.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

SPECIAL = (
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<|pad|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|memory|>",
)
EOS, BOS, PAD, EOT = 0, 1, 2, 5
REFUSAL = "Not in the documents."

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ (' ' if message['role'] == 'assistant' else '') + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
OPEN = "<|begin_of_text|>" + USER + "Document:\n"
BETWEEN = "\n\nDocument:\n"
QUESTION = "\n\nQuestion:\n"
# before an answer: its first word is then the very token that stands in the passage, and copying it
# needs no second lesson
LEAD = " "
NEXT_QUESTION = USER + "Question:\n"
CLOSE = (
    "\nAnswer from the documents in a few words. If they do not say, answer: not in the documents."
    + ASSISTANT
)
REPEAT = "\n\nRepeat the document." + ASSISTANT
CONTINUE = "\n\nContinue after:\n"


@dataclass(frozen=True)
class Row:
    """A training sequence: token ids, and whether each token is the assistant's.

    The assistant's tokens are therefore scored in full.
    """

    ids: tuple[int, ...]
    answer: tuple[bool, ...]

    def __add__(self, other: "Row") -> "Row":
        """Joins two rows."""
        return Row(self.ids + other.ids, self.answer + other.answer)


class Frame:
    """Encodes the pieces of a conversation with the project's tokenizer."""

    def __init__(self, tokenizer: Path | str) -> None:
        """Reads `tokenizer.json` twice.

        Special tokens are parsed once (the frame), and split once (the content).
        """
        self._frame = Tokenizer.from_file(str(tokenizer))
        self._text = Tokenizer.from_file(str(tokenizer))
        self._text.encode_special_tokens = True
        self._cache: dict[str, tuple[int, ...]] = {}

    def piece(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of the frame, special tokens parsed."""
        if text not in self._cache:
            self._cache[text] = tuple(self._frame.encode(text, add_special_tokens=False).ids)
        return self._cache[text]

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of content, special tokens split."""
        return tuple(self._text.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return self._frame.decode(ids, skip_special_tokens=True)

    def documents(self, passages: list[str]) -> tuple[int, ...]:
        """Ids of the beginning of a user's message, up to the end of the last passage."""
        ids = self.piece(OPEN)
        for number, passage in enumerate(passages):
            ids += (self.piece(BETWEEN) if number else ()) + self.text(passage)
        return ids

    def prompt(self, passages: list[str], question: str) -> tuple[int, ...]:
        """Ids of a question about passages, up to where the assistant begins."""
        return (
            self.documents(passages)
            + self.piece(QUESTION)
            + self.text(question)
            + self.piece(CLOSE)
        )

    def reply(self, answer: str) -> Row:
        """The assistant's part: the answer and its end token, all scored."""
        return self.recital(LEAD + answer)

    def recital(self, text: str) -> Row:
        """The assistant's part where it begins as a document does."""
        ids = self.text(text) + (EOT,)
        return Row(ids, (True,) * len(ids))

    def given(self, ids: tuple[int, ...]) -> Row:
        """A part that is not the assistant's."""
        return Row(ids, (False,) * len(ids))

    def conversation(self, passages: list[str], turns: list[tuple[str, str]]) -> Row:
        """Questions and answers about the same passages.

        The first turn is exactly what `ask` builds, the others do not instruct again.
        """
        row = self.given(self.prompt(passages, turns[0][0])) + self.reply(turns[0][1])
        for question, answer in turns[1:]:
            row += self.given(
                self.piece(NEXT_QUESTION) + self.text(question) + self.piece(ASSISTANT)
            ) + self.reply(answer)
        return row

    def repeat(self, passage: str) -> Row:
        """The task of reciting a document."""
        return self.given(self.documents([passage]) + self.piece(REPEAT)) + self.recital(passage)

    def continue_after(self, passage: str, quote: str, rest: str) -> Row:
        """The task of saying what follows a quote from a document."""
        return self.given(
            self.documents([passage])
            + self.piece(CONTINUE)
            + self.text(quote)
            + self.piece(ASSISTANT)
        ) + self.reply(rest)
