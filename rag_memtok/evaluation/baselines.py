"""Baselines: the same question and chunks, put into the prompt in different forms.

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
zoomed      as many, in windows planned for the question: the sentences with most of its words in
            the shortest; the answer is copied from the text (zoomed free: it is not)
unfolded    the readable vectors, but for the sentence that shares most words with the question:
            that stands as text; copied, too
cut         the text's first tokens, at as many positions
telling     as many of the text's own tokens, those that the model expected least, in their order
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.errors import named
from rag_memtok.evaluation.cases import Corpus, Sample
from rag_memtok.evaluation.memory_cache import CachedMemory, Tokens
from rag_memtok.memory.batch import Task, init_pooled
from rag_memtok.memory.encoder import Encoder, encode_planned, unfold
from rag_memtok.memory.reconstruct import Decoded, decode_checked
from rag_memtok.memory.windows import count_windows
from rag_memtok.model.inject import Passage
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.retrieval.relevance import in_best_sentence, overlap, split, zoomed
from rag_memtok.retrieval.search import content_words


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Material:
    """The inputs of all baselines: the corpus, and its memories at one compression.

    `window` is that compression, in tokens a vector. `encoded` are the readable vectors at it, of
    `encoder`. Any is empty where no reader needs it.
    """

    lm: LM
    corpus: Corpus
    memories: Mapping[str, CachedMemory]
    decoded: Mapping[str, Tokens]
    seed: int
    window: int = 0
    encoder: Encoder | None = None
    encoded: Mapping[str, Float[np.ndarray, "M d"]] = field(default_factory=dict)

    def size(self, chunk_id: str) -> int:
        """The number of vectors of a chunk."""
        return count_windows(len(self.corpus.tokens[chunk_id]), self.window)

    def vectors(self, chunk_id: str) -> Float[np.ndarray, "M d"]:
        """A chunk's memory."""
        return self.memories[chunk_id].memory.vectors

    @property
    def prefixes(self) -> dict[str, Callable[[str], Passage]]:
        """By name, vectors of a chunk to stand before a text that it has nothing to do with."""
        found: dict[str, Callable[[str], Passage]] = {}
        if self.memories:
            found |= {"memory": self.vectors, "random": self.noise}
        if self.encoded:
            found["encoded"] = self.encoded.__getitem__
        return found

    def noise(self, chunk_id: str) -> Float[np.ndarray, "M d"]:
        """Random vectors, each as long as the memory's in its place."""
        return random_like(self.vectors(chunk_id), f"{self.seed}:{chunk_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A form of the passages of a sample.

    `needs`: what has to be made first, "memory" or "encoded" ("": nothing, and `compressed` says
    whether it is measured at each compression all the same); `several`: it is measured among
    distractors, too; `adapter`: which LoRA is on, for "text", "vectors" or "memory" ("": none);
    `copied`: answers are copied from the texts of the chunks, whatever stands for these in the
    prompt; `control`: it is measured only where it is asked for.
    """

    passages: Callable[[Material, Sample], list[Passage]]
    needs: str = "memory"
    several: bool = True
    adapter: str = ""
    compressed: bool = True
    copied: bool = False
    control: bool = False


def text(material: Material, sample: Sample) -> list[Passage]:
    """The tokens of each chunk."""
    return [material.corpus.tokens[chunk_id] for chunk_id in sample.ids]


def memory(material: Material, sample: Sample) -> list[Passage]:
    """The vectors of each chunk's memory."""
    return [material.vectors(chunk_id) for chunk_id in sample.ids]


def decoded(material: Material, sample: Sample) -> list[Passage]:
    """The tokens that each memory decodes to."""
    return [material.decoded[chunk_id] for chunk_id in sample.ids]


def none(material: Material, sample: Sample) -> list[Passage]:
    """An empty document."""
    return [()]


def wrong(material: Material, sample: Sample) -> list[Passage]:
    """The memory of a chunk that does not hold the answer."""
    return [material.vectors(material.corpus.wrong[sample.question])]


def noise(material: Material, sample: Sample) -> list[Passage]:
    """Random vectors in the place of each memory."""
    return [material.noise(chunk_id) for chunk_id in sample.ids]


def random_like(vectors: Float[np.ndarray, "M d"], seed: str) -> Float[np.ndarray, "M d"]:
    """Vectors of the same norms in random directions, drawn by `seed`."""
    generator = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    directions = generator.standard_normal(vectors.shape)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(
        directions, axis=1, keepdims=True
    )
    return (directions * lengths).astype(np.float32)


def pooled_embeddings(material: Material, sample: Sample) -> list[Passage]:
    """The chunks' own embeddings, averaged: where writing starts from, untrained."""
    tasks = [Task(one, material.corpus.tokens[one], material.size(one)) for one in sample.ids]
    return [init_pooled(material.lm, task).cpu().numpy() for task in tasks]


def encoded(material: Material, sample: Sample) -> list[Passage]:
    """The readable vectors of each chunk."""
    return [material.encoded[chunk_id] for chunk_id in sample.ids]


def encoded_for_the_question(material: Material, sample: Sample) -> list[Passage]:
    """The vectors of the chunks in windows planned for the question. Cost: the encoder's pass."""
    encoder, corpus = material.encoder, material.corpus
    assert encoder is not None, "needs the encoder"
    texts = [corpus.tokens[one] for one in sample.ids]
    weights = zoomed(material.lm, texts, corpus.questions[sample.question].question)
    return list(encode_planned(encoder, texts, material.window, weights))


def encoded_but_the_best_sentence(material: Material, sample: Sample) -> list[Passage]:
    """The readable vectors of each chunk, the best sentence of all as it stands in the text."""
    encoder, corpus = material.encoder, material.corpus
    assert encoder is not None, "needs the encoder"
    texts = [corpus.tokens[one] for one in sample.ids]
    question = corpus.questions[sample.question].question
    plain = in_best_sentence(material.lm, texts, question)
    return [
        unfold(encoder, text, material.encoded[one], material.window, own)
        for one, text, own in zip(sample.ids, texts, plain, strict=True)
    ]


def encoded_wrong(material: Material, sample: Sample) -> list[Passage]:
    """The readable vectors of a chunk that does not hold the answer."""
    return [material.encoded[material.corpus.wrong[sample.question]]]


def encoded_noise(material: Material, sample: Sample) -> list[Passage]:
    """Random vectors in the place of each readable one, as long as it."""
    return [random_like(material.encoded[one], f"{material.seed}:{one}") for one in sample.ids]


def cut(material: Material, sample: Sample) -> list[Passage]:
    """The first tokens of each chunk."""
    return [material.corpus.tokens[one][: material.size(one)] for one in sample.ids]


def least_expected_tokens(material: Material, sample: Sample) -> list[Passage]:
    """The tokens of each chunk that the model expected least after those before, in their order."""
    return [least_expected(material.lm, material.corpus.tokens[one], material.size(one))
            for one in sample.ids]  # fmt: skip


@torch.inference_mode()
def nats(lm: LM, tokens: Sequence[int]) -> Float[Tensor, " T"]:
    """How little each token is expected after those before it. Cost: a pass over the text."""
    first = lm.eos if lm.bos is None else lm.bos
    scores = lm.logits(lm.hidden(lm.embed([first, *tokens[:-1]])[None])[0])
    targets = torch.tensor(list(tokens), device=lm.device)
    return torch.nn.functional.cross_entropy(scores, targets, reduction="none")


def least_expected(lm: LM, tokens: Sequence[int], count: int) -> list[int]:
    """The `count` tokens of most nats, in their order. Cost: a pass over the text."""
    most = nats(lm, tokens).topk(min(count, len(tokens)))
    return [tokens[place] for place in sorted(most.indices.tolist())]


def sentences(material: Material, sample: Sample) -> list[Passage]:
    """The best sentences of all the chunks, by words shared with the question.

    They stand in their order; the last one is cut where the room ends.
    """
    room = sum(material.size(one) for one in sample.ids)
    asked = set(content_words(material.corpus.questions[sample.question].question))
    every = [
        (place, number, part)
        for place, one in enumerate(sample.ids)
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


BASELINES: dict[str, Baseline] = {
    "text": Baseline(passages=text, needs="", compressed=False),
    "text+adapter": Baseline(passages=text, needs="", adapter="text", compressed=False),
    "text copied+adapter": Baseline(
        passages=text, needs="", adapter="text", compressed=False, copied=True, control=True
    ),
    "memory": Baseline(passages=memory),
    "memory+adapter": Baseline(passages=memory, adapter="memory"),
    "decode": Baseline(passages=decoded),
    "decode+adapter": Baseline(passages=decoded, adapter="text"),
    "none": Baseline(passages=none, needs="", several=False, compressed=False),
    "none+adapter": Baseline(
        passages=none, needs="", several=False, adapter="text", compressed=False, control=True
    ),
    "wrong": Baseline(passages=wrong, several=False),
    "random": Baseline(passages=noise, several=False),
    "pooled": Baseline(passages=pooled_embeddings, needs=""),
    "pooled+adapter": Baseline(passages=pooled_embeddings, needs="", adapter="text", control=True),
    "sentences": Baseline(passages=sentences, needs=""),
    "sentences+adapter": Baseline(passages=sentences, needs="", adapter="text", control=True),
    "cut+adapter": Baseline(passages=cut, needs="", adapter="text", control=True),
    "telling+adapter": Baseline(
        passages=least_expected_tokens, needs="", adapter="text", control=True
    ),
    "encoded": Baseline(passages=encoded, needs="encoded", control=True),
    "encoded+adapter": Baseline(passages=encoded, needs="encoded", adapter="vectors"),
    "encoded copied+adapter": Baseline(
        passages=encoded, needs="encoded", adapter="vectors", copied=True, control=True
    ),
    "unfolded+adapter": Baseline(
        passages=encoded_but_the_best_sentence,
        needs="encoded",
        adapter="vectors",
        copied=True,
        control=True,
    ),
    "zoomed+adapter": Baseline(
        passages=encoded_for_the_question,
        needs="encoded",
        adapter="vectors",
        copied=True,
        control=True,
    ),
    "zoomed free+adapter": Baseline(
        passages=encoded_for_the_question, needs="encoded", adapter="vectors", control=True
    ),
    "encoded wrong+adapter": Baseline(
        passages=encoded_wrong, needs="encoded", several=False, adapter="vectors", control=True
    ),
    "encoded random+adapter": Baseline(
        passages=encoded_noise, needs="encoded", several=False, adapter="vectors", control=True
    ),
}


def with_distractor(
    form: Callable[[Material, Sample], list[Passage]],
) -> Callable[[Material, Sample], list[Passage]]:
    """The gold text with a distractor before it, in some form.

    The distractor is a chunk that has nothing to do with the question.
    """

    def passages(material: Material, sample: Sample) -> list[Passage]:
        distractor = Sample(sample.question, (material.corpus.wrong[sample.question],), 0)
        return [*form(material, distractor), *text(material, sample)]

    return passages


# Off-topic harm: the answer from the gold text with a distractor before it, against the gold text
# alone.
WITH_DISTRACTOR: dict[str, Baseline] = {
    "nothing": Baseline(passages=text, needs="", compressed=False),
    "text": Baseline(passages=with_distractor(text), needs="", compressed=False),
    "memory": Baseline(passages=with_distractor(memory)),
    "random": Baseline(passages=with_distractor(noise)),
    "nothing+adapter": Baseline(passages=text, needs="", adapter="memory", compressed=False),
    "memory+adapter": Baseline(passages=with_distractor(memory), adapter="memory"),
}


def baselines_named(names: Sequence[str]) -> dict[str, Baseline]:
    """The baselines of these names, in this order.

    Raises:
        UsageError: there is none of that name.
    """
    return {name: named("reader", BASELINES, name) for name in names}


def decode_all(
    lm: LM,
    template: Template,
    memories: Mapping[str, CachedMemory],
    tokens: Mapping[str, Tokens],
    batch: int,
) -> dict[str, Tokens]:
    """Decodes every memory to tokens, in batches.

    One that does not decode to its tokens there is decoded alone, as the judge does.
    """
    order = sorted(memories, key=lambda chunk_id: len(tokens[chunk_id]))
    decoded_tokens: dict[str, Tokens] = {}
    for begin in range(0, len(order), batch):
        texts = {chunk_id: tokens[chunk_id] for chunk_id in order[begin : begin + batch]}
        expected = list(texts.values())

        def right(index: int, result: Decoded, expected: Sequence[Tokens] = expected) -> bool:
            return result.tokens == expected[index]

        decoded = decode_checked(
            lm,
            template,
            [memories[chunk_id].memory for chunk_id in texts],
            [*map(len, expected)],
            right,
        )
        decoded_tokens |= {
            chunk_id: some.tokens for chunk_id, some in zip(texts, decoded, strict=True)
        }
    return decoded_tokens
