"""The words around a memory, as tokens.

They are the templates it is written in, and the frame a question is asked in.

    bare         [BOS] [memory] -> text [EOS]
    cue          the question's frame, [memory] where a document stands, "Repeat the document."
                 -> text [end of turn]
    sastre2025   [memory] -> text [EOS]
    kuratov2025  [memory] [BOS, where the tokenizer adds one] -> text [EOS]

A template is data. Its digest is in the manifest: a memory written in one is noise in another.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rag_memtok.errors import named
from rag_memtok.model.lm import LM

DOCUMENT = "Document:\n"
GAP = "\n\n"
REPEAT = "Repeat the document."
QUESTION = "Question:\n"
REFUSAL = "not in the documents"
INSTRUCTION = f"\nAnswer from the documents in a few words. If they do not say, answer: {REFUSAL}."
REFUSED = re.compile(
    r"[\W_]*(not\W+in\W+(the\W+)?documents?(?![^\W_])|(unanswerable[\W_]*)?$)", re.IGNORECASE
)
MARK = "\ue0f0"  # private use: stands for what is not our words while a chat template is rendered
# some chat templates write today's date; a frame must not change overnight
PINNED_DATE = "1 January 2026"


def refuses(answer: str) -> bool:
    """Whether `answer` says that the documents do not say.

    It may do so as INSTRUCTION asks, as files of questions do, or with no words at all.
    """
    return REFUSED.match(answer) is not None


def digest_of(parts: Sequence[object]) -> str:
    """Hex sha256 of what `parts` print as."""
    return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Template:
    """`prefix`, then the memory's vectors, then `suffix`, then the text's tokens, then `end`."""

    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    end: int

    @property
    def digest(self) -> str:
        """Identifies the template for this tokenizer."""
        return digest_of((self.name, self.prefix, self.suffix, self.end))

    @property
    def overhead(self) -> int:
        """Positions it takes beside vectors and text, the end token included."""
        return len(self.prefix) + len(self.suffix) + 1


@dataclass(frozen=True, slots=True)
class Frame:
    """A question's prompt without what is asked.

    It is `opening` document (`between` document)* `question` words `closing`, then the answer.

    `lead` is what this chat template has before an answer: part of its first word, where that is a
    space.
    """

    opening: tuple[int, ...]
    between: tuple[int, ...]
    question: tuple[int, ...]
    closing: tuple[int, ...]
    end: int
    lead: str = ""

    @property
    def overhead(self) -> int:
        """Positions it takes with one document, beside document and question."""
        return len(self.opening) + len(self.question) + len(self.closing)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A user message as the model's chat template has it, the reply beginning.

    It is kept as the `stretches` between its MARKs.

    `lead` is what the template puts between the assistant's header and a reply, mostly nothing;
    `end` the token that ends the reply.
    """

    stretches: tuple[str, ...]
    lead: str
    end: int


def render(lm: LM, content: str) -> Rendered:
    """Renders one user message. Without a chat template the plain form is the message itself."""
    if lm.tokenizer.chat_template is None:
        bos = lm.tokenizer.bos_token or ""
        return Rendered(tuple((bos + content + GAP).split(MARK)), "", lm.eos)
    options: dict[str, Any] = {
        "tokenize": False,
        "date_string": PINNED_DATE,
        "enable_thinking": False,
    }
    user = {"role": "user", "content": content}
    rendered = str(lm.tokenizer.apply_chat_template([user], add_generation_prompt=True, **options))
    turn = str(
        lm.tokenizer.apply_chat_template([user, {"role": "assistant", "content": MARK}], **options)
    )
    ending = lm.encode_frame(turn.rpartition(MARK)[2].lstrip())
    lead = turn.removeprefix(rendered).partition(MARK)[0] if turn.startswith(rendered) else ""
    return Rendered(tuple(rendered.split(MARK)), lead, ending[0] if ending else lm.eos)


def frame(lm: LM) -> Frame:
    """The frame in which `ask` puts documents and a question."""
    content = f"{DOCUMENT}{MARK}{GAP}{DOCUMENT}{MARK}{GAP}{QUESTION}{MARK}{INSTRUCTION}"
    rendered = render(lm, content)
    opening, between, question, closing = (
        tuple(lm.encode_frame(stretch)) for stretch in rendered.stretches
    )
    return Frame(opening, between, question, closing, rendered.end, rendered.lead)


def bare(lm: LM) -> Template:
    """BOS, memory, text, end of text."""
    return Template("bare", () if lm.bos is None else (lm.bos,), (), lm.eos)


def cue(lm: LM) -> Template:
    """The memory stands where `ask` puts a document, and is asked to be repeated."""
    rendered = render(lm, f"{DOCUMENT}{MARK}{GAP}{REPEAT}")
    prefix, suffix = (tuple(lm.encode_frame(stretch)) for stretch in rendered.stretches)
    return Template("cue", prefix, suffix, rendered.end)


def sastre2025(lm: LM) -> Template:
    """The paper's: nothing before the memory.

    Source: Sastre & Rosa 2025, arXiv:2506.15001, section 3.
    """
    return Template("sastre2025", (), (), lm.eos)


def kuratov2025(lm: LM) -> Template:
    """The memory, then the text as the tokenizer gives it, with the BOS it may begin with.

    Source: arXiv:2502.13063, public code.
    """
    return Template("kuratov2025", (), lm.opening, lm.eos)


TEMPLATES: dict[str, Callable[[LM], Template]] = {
    "bare": bare,
    "cue": cue,
    "sastre2025": sastre2025,
    "kuratov2025": kuratov2025,
}


def template_named(name: str, lm: LM) -> Template:
    """Returns the template `name` in the tokens of `lm`.

    Raises:
        UsageError: there is none of that name.
    """
    return named("template", TEMPLATES, name)(lm)
