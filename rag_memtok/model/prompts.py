"""The tokens around a memory: templates it is optimized in, the prompt a question is asked in.

    bare         [BOS] [memory] -> text [EOS]
    cue          "Document:", [memory], "Repeat the document." -> text [end of turn]
    sastre2025   [memory] -> text [EOS]
    kuratov2025  [memory] [BOS, where the tokenizer adds one] -> text [EOS]

A template is data. Its digest is in the manifest: a memory written in one is noise in another.

A question's frame depends on the model: `plain` is the one that the embedded model was trained in,
`sourced` every other model's. An adapter records the digest of the frame it was trained in.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from rag_memtok.errors import InputRefused, named
from rag_memtok.model.lm import LM

DOCUMENT = "Document:\n"
GAP = "\n\n"
REPEAT = "Repeat the document."
QUESTION = "Question:\n"
REFUSAL = "not in the documents"
SOURCE_TOKENS = 32  # of a source line, at most; the end of a longer one is left out
REFUSED = re.compile(
    r"[\W_]*(not\W+in\W+(the\W+)?documents?(?![^\W_])|(unanswerable[\W_]*)?$)", re.IGNORECASE
)
MARK = "\ue0f0"  # private use: stands for what is not our words while a chat template is rendered


def is_refusal(answer: str) -> bool:
    """Whether `answer` says that the documents do not say.

    It may do so as INSTRUCTION asks, as files of questions do, or with no words at all.
    """
    return REFUSED.match(answer) is not None


def is_no_answer(answer: str) -> bool:
    """Whether `answer` is no answer: empty, or the words of a refusal.

    Signs without words, as "+" or "-", are one.
    """
    return not answer.strip() or (is_refusal(answer) and bool(re.search(r"\w", answer)))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The text of a QA prompt: what is the same for every model.

    `system` is a message of its own ("": the chat template's, if it has one), `reply_start` how the
    answer begins. `before_source` and `after_source` are around the line that says where a passage
    is from, None where the frame has no place for it.
    """

    system: str
    instruction: str
    reply_start: str
    before_source: str | None = None
    after_source: str = ""


WORDINGS = {
    "plain": Wording(
        system="",
        instruction=(
            f"\nAnswer from the documents in a few words. If they do not say, answer: {REFUSAL}."
        ),
        reply_start="",
    ),
    "sourced": Wording(
        system="You answer questions about documents.",
        instruction="\nAnswer in a few words copied from the documents.",
        reply_start="According to the documents, the answer is",
        before_source="Source:",
        after_source="\n",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QAPrompt:
    """A QA prompt without its documents and its question ("frame" in manifests and options).

    It is `opening` document (`between` document)* `question` tokens `closing`, then the answer. A
    document may begin with a `source_line`.

    `reply_prefix` is what this chat template has before an answer: part of its first token, where
    that is a space.
    """

    opening: tuple[int, ...]
    between: tuple[int, ...]
    question: tuple[int, ...]
    closing: tuple[int, ...]
    end: int
    reply_prefix: str = ""
    before_source: tuple[int, ...] | None = None
    after_source: tuple[int, ...] = ()

    @property
    def overhead(self) -> int:
        """Positions it takes with one document, beside document, its source and question."""
        return len(self.opening) + len(self.question) + len(self.closing)

    @property
    def digest(self) -> str:
        """Identifies the frame for this tokenizer."""
        return digest_of(tuple(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A user message as the model's chat template has it, the reply beginning.

    It is kept as the `stretches` between its MARKs.

    `reply_prefix` is what the template puts between the assistant's header and a reply, mostly
    nothing; `end` the token that ends the reply.
    """

    stretches: tuple[str, ...]
    reply_prefix: str
    end: int


def render(lm: LM, content: str, system: str = "") -> Rendered:
    """Renders one user message, after a `system` message if there is one.

    Without a chat template the plain form is the messages themselves; a template that knows no
    system message has it at the user's beginning.

    Raises:
        InputRefused: the template does not put the message into the prompt as it is, once.
    """
    if lm.tokenizer.chat_template is None:
        bos, before = lm.tokenizer.bos_token or "", system + GAP if system else ""
        return Rendered(tuple((bos + before + content + GAP).split(MARK)), "", lm.eos)
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    rendered = lm.chat(messages, begin=True)
    if system not in rendered:  # it knows no such message, or refuses it
        return render(lm, system + GAP + content)
    if rendered.count(MARK) != content.count(MARK):
        raise InputRefused(
            f"the chat template of {lm.identity.id} does not write a message of text once, as it "
            "is: it has no place for a document",
            remedy="another --model, or a copy of its folder without its chat template",
        )
    turn = lm.chat([*messages, {"role": "assistant", "content": MARK}], begin=False)
    ending = lm.encode_frame(turn.rpartition(MARK)[2].lstrip())
    reply_prefix = (
        turn.removeprefix(rendered).partition(MARK)[0] if turn.startswith(rendered) else ""
    )
    return Rendered(tuple(rendered.split(MARK)), reply_prefix, ending[0] if ending else lm.eos)


def qa_prompt(lm: LM) -> QAPrompt:
    """The prompt in which `ask` puts documents and a question."""
    return build_qa_prompt(lm, WORDINGS[lm.frame_name])


def build_qa_prompt(lm: LM, wording: Wording) -> QAPrompt:
    """The prompt of this wording in the tokens of `lm`."""
    content = f"{DOCUMENT}{MARK}{GAP}{DOCUMENT}{MARK}{GAP}{QUESTION}{MARK}{wording.instruction}"
    rendered = render(lm, content, wording.system)
    opening, between, question, closing = (
        tuple(lm.encode_frame(stretch)) for stretch in rendered.stretches
    )
    reply_prefix = rendered.reply_prefix
    if wording.reply_start:  # the answer's first word is then one within a sentence
        closing, reply_prefix = (
            (*closing, *lm.encode_frame(reply_prefix + wording.reply_start)),
            " ",
        )
    before = wording.before_source
    return QAPrompt(
        opening=opening,
        between=between,
        question=question,
        closing=closing,
        end=rendered.end,
        reply_prefix=reply_prefix,
        before_source=None if before is None else tuple(lm.encode_frame(before)),
        after_source=tuple(lm.encode_frame(wording.after_source)),
    )


def source_line(lm: LM, frame: QAPrompt, source: str) -> tuple[int, ...]:
    """The line before a passage that says where it is from; none if `source` is empty.

    In `source` nothing is special: a file named like a control token stays a name.
    """
    if frame.before_source is None or not source:
        return ()
    name = lm.encode(" " + " ".join(source.split()))[:SOURCE_TOKENS]
    return (*frame.before_source, *name, *frame.after_source)


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
    return Template("kuratov2025", (), lm.text_prefix, lm.eos)


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
