"""Ways of reading, to be compared.

The same question and the same chunks are put into the prompt in different forms.

text        the text's tokens
memory      its memory's vectors
decode      the memory decoded to text first
none        nothing at all
wrong       the memory of another chunk
random      vectors of the memory's norms, in random directions
pooled      the text's own embeddings, averaged to as many vectors as the memory has, untrained
sentences   the sentences that share most words with the question, at as many positions as the
            memories take
encoded     the readable vectors that the shipped encoder makes of the text
cut         the text's first tokens, at as many positions
telling     as many of the text's own tokens, those that the model expected least, in their order
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from rag_memtok.errors import named
from rag_memtok.evaluation.cases import Case, Corpus
from rag_memtok.evaluation.memory_cache import Kept, Tokens
from rag_memtok.memory.batch import Task, init_pooled
from rag_memtok.memory.encoder import count_windows
from rag_memtok.memory.reconstruct import Decoded, decode_checked
from rag_memtok.model.inject import Passage
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.retrieval.search import content_words

SENTENCE = re.compile(r".+?(?:[.!?]+(?=\s|$)\s*|\n+|$)", re.DOTALL)
# of two sentences with the same words of the question: score = shared / words ** this
SHORTER_IS_BETTER = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What there is to read: the corpus, and its memories at one compression.

    `window` is that compression, in tokens a vector. `encoded` are the readable vectors at it.
    Either is empty where no reader needs it.
    """

    lm: LM
    corpus: Corpus
    kept: Mapping[str, Kept]
    decoded: Mapping[str, Tokens]
    seed: int
    window: int = 0
    encoded: Mapping[str, Float[np.ndarray, "M d"]] = field(default_factory=dict)

    def size(self, chunk_id: str) -> int:
        """How many vectors a chunk has."""
        return count_windows(len(self.corpus.tokens[chunk_id]), self.window)

    def vectors(self, chunk_id: str) -> Float[np.ndarray, "M d"]:
        """A chunk's memory."""
        return self.kept[chunk_id].memory.vectors

    def noise(self, chunk_id: str) -> Float[np.ndarray, "M d"]:
        """Random vectors, each as long as the memory's in its place."""
        return of_norms(self.vectors(chunk_id), f"{self.seed}:{chunk_id}")


@dataclass(frozen=True, slots=True)
class Arm:
    """A way of reading: the passages of a case.

    `needs`: what has to be made first, "memory" or "encoded" ("": nothing, and `compressed` says
    whether it is measured at each compression all the same); `several`: it is measured among
    distractors, too; `adapter`: which LoRA is on, that for "text" or for "memory" ("": none);
    `control`: it is measured only where it is asked for.
    """

    passages: Callable[[Material, Case], list[Passage]]
    needs: str = "memory"
    several: bool = True
    adapter: str = ""
    compressed: bool = True
    control: bool = False


def text(material: Material, case: Case) -> list[Passage]:
    """The tokens of each chunk."""
    return [material.corpus.tokens[chunk_id] for chunk_id in case.ids]


def memory(material: Material, case: Case) -> list[Passage]:
    """The vectors of each chunk's memory."""
    return [material.vectors(chunk_id) for chunk_id in case.ids]


def decoded(material: Material, case: Case) -> list[Passage]:
    """The tokens that each memory decodes to."""
    return [material.decoded[chunk_id] for chunk_id in case.ids]


def none(material: Material, case: Case) -> list[Passage]:
    """An empty document."""
    return [()]


def wrong(material: Material, case: Case) -> list[Passage]:
    """The memory of a chunk that does not hold the answer."""
    return [material.vectors(material.corpus.wrong[case.question])]


def noise(material: Material, case: Case) -> list[Passage]:
    """Random vectors in the place of each memory."""
    return [material.noise(chunk_id) for chunk_id in case.ids]


def of_norms(vectors: Float[np.ndarray, "M d"], seed: str) -> Float[np.ndarray, "M d"]:
    """Vectors of the same norms in directions drawn by `seed`."""
    generator = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    drawn = generator.standard_normal(vectors.shape)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(
        drawn, axis=1, keepdims=True
    )
    return (drawn * lengths).astype(np.float32)


def averaged(material: Material, case: Case) -> list[Passage]:
    """The chunks' own embeddings, averaged: where writing starts from, untrained."""
    tasks = [Task(one, material.corpus.tokens[one], material.size(one)) for one in case.ids]
    return [init_pooled(material.lm, task).cpu().numpy() for task in tasks]


def encoded(material: Material, case: Case) -> list[Passage]:
    """The readable vectors of each chunk."""
    return [material.encoded[chunk_id] for chunk_id in case.ids]


def encoded_wrong(material: Material, case: Case) -> list[Passage]:
    """The readable vectors of a chunk that does not hold the answer."""
    return [material.encoded[material.corpus.wrong[case.question]]]


def encoded_noise(material: Material, case: Case) -> list[Passage]:
    """Random vectors in the place of each readable one, as long as it."""
    return [of_norms(material.encoded[one], f"{material.seed}:{one}") for one in case.ids]


def cut(material: Material, case: Case) -> list[Passage]:
    """The first tokens of each chunk."""
    return [material.corpus.tokens[one][: material.size(one)] for one in case.ids]


def telling(material: Material, case: Case) -> list[Passage]:
    """The tokens of each chunk that the model expected least after those before, in their order."""
    return [least_expected(material.lm, material.corpus.tokens[one], material.size(one))
            for one in case.ids]  # fmt: skip


@torch.inference_mode()
def least_expected(lm: LM, tokens: Tokens, count: int) -> list[int]:
    """The `count` tokens of most nats, in their order. Cost: a pass over the text."""
    first = lm.eos if lm.bos is None else lm.bos
    scores = lm.logits(lm.hidden(lm.embed([first, *tokens[:-1]])[None])[0])
    nats = torch.nn.functional.cross_entropy(scores, torch.tensor(tokens), reduction="none")
    return [tokens[place] for place in sorted(nats.topk(min(count, len(tokens))).indices.tolist())]


def sentences(material: Material, case: Case) -> list[Passage]:
    """The best sentences of all the chunks, by words shared with the question.

    They stand in their order; the last one is cut where the room ends.
    """
    room = sum(material.size(one) for one in case.ids)
    asked = set(content_words(material.corpus.questions[case.question].question))
    every = [
        (place, number, part)
        for place, one in enumerate(case.ids)
        for number, part in enumerate(split(material.corpus.texts[one]))
    ]
    chosen: dict[int, dict[int, Tokens]] = {}
    for place, number, part in sorted(every, key=lambda one: -overlap(asked, one[2])):
        tokens = tuple(material.lm.encode(part))[:room]
        if tokens:
            chosen.setdefault(place, {})[number] = tokens
            room -= len(tokens)
    return [
        [token for _, tokens in sorted(chosen[place].items()) for token in tokens]
        for place in sorted(chosen)
    ]


def split(text: str) -> list[str]:
    """The sentences and lines of a text; joined they are the text."""
    return SENTENCE.findall(text)


def overlap(asked: set[str], sentence: str) -> float:
    """How much of the question's words a sentence has for its length."""
    return (
        len(asked & set(content_words(sentence)))
        / max(1, len(sentence.split())) ** SHORTER_IS_BETTER
    )


ARMS: dict[str, Arm] = {
    "text": Arm(text, "", compressed=False),
    "text+adapter": Arm(text, "", adapter="text", compressed=False),
    "memory": Arm(memory),
    "memory+adapter": Arm(memory, adapter="memory"),
    "decode": Arm(decoded),
    "decode+adapter": Arm(decoded, adapter="text"),
    "none": Arm(none, "", several=False, compressed=False),
    "none+adapter": Arm(none, "", several=False, adapter="text", compressed=False, control=True),
    "wrong": Arm(wrong, several=False),
    "random": Arm(noise, several=False),
    "pooled": Arm(averaged, ""),
    "pooled+adapter": Arm(averaged, "", adapter="text", control=True),
    "sentences": Arm(sentences, ""),
    "sentences+adapter": Arm(sentences, "", adapter="text", control=True),
    "cut+adapter": Arm(cut, "", adapter="text", control=True),
    "telling+adapter": Arm(telling, "", adapter="text", control=True),
    "encoded": Arm(encoded, "encoded", control=True),
    "encoded+adapter": Arm(encoded, "encoded", adapter="text"),
    "encoded wrong+adapter": Arm(
        encoded_wrong, "encoded", several=False, adapter="text", control=True
    ),
    "encoded random+adapter": Arm(
        encoded_noise, "encoded", several=False, adapter="text", control=True
    ),
}


def beside(
    form: Callable[[Material, Case], list[Passage]],
) -> Callable[[Material, Case], list[Passage]]:
    """The gold text with a chunk before it, in some form.

    That chunk has nothing to do with the question.
    """

    def passages(material: Material, case: Case) -> list[Passage]:
        other = Case(case.question, (material.corpus.wrong[case.question],), 0)
        return [*form(material, other), *text(material, case)]

    return passages


# Off-topic harm: the answer from the gold text with something irrelevant before it, against the
# gold text alone.
BESIDE: dict[str, Arm] = {
    "nothing": Arm(text, "", compressed=False),
    "text": Arm(beside(text), "", compressed=False),
    "memory": Arm(beside(memory)),
    "random": Arm(beside(noise)),
    "nothing+adapter": Arm(text, "", adapter="memory", compressed=False),
    "memory+adapter": Arm(beside(memory), adapter="memory"),
}


def arms_named(names: Sequence[str]) -> dict[str, Arm]:
    """The arms of these names, in this order.

    Raises:
        UsageError: there is none of that name.
    """
    return {name: named("reader", ARMS, name) for name in names}


def all_decoded(
    lm: LM, template: Template, kept: Mapping[str, Kept], tokens: Mapping[str, Tokens], batch: int
) -> dict[str, Tokens]:
    """Every memory decoded to tokens, in batches.

    One that comes out otherwise there is decoded alone, as the judge does.
    """
    order = sorted(kept, key=lambda chunk_id: len(tokens[chunk_id]))
    found: dict[str, Tokens] = {}
    for begin in range(0, len(order), batch):
        texts = {one: tokens[one] for one in order[begin : begin + batch]}
        expected = list(texts.values())

        def right(index: int, one: Decoded, expected: Sequence[Tokens] = expected) -> bool:
            return one.tokens == expected[index]

        decoded = decode_checked(
            lm, template, [kept[one].memory for one in texts], [*map(len, expected)], right
        )
        found |= {one: some.tokens for one, some in zip(texts, decoded, strict=True)}
    return found
