"""Questions with gold answers -> how good each way of reading is.

The questions, chunks and model are the same for all.

alone     the gold chunk by itself
among     the gold chunk with k - 1 others in one prompt: first, in the middle, last, in turn
apart     the same chunks in a prompt each, as they would be retrieved; the surest answer is kept
beside    the gold text with something irrelevant before it; and unrelated texts' perplexity:
          off-topic harm
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType

import numpy as np

from rag_memtok.config import Config
from rag_memtok.datatypes import OnProgress
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.baselines import BESIDE, Arm, Material, all_decoded, arms_named
from rag_memtok.evaluation.cases import Case, Corpus, alone, among, corpus, retrieved
from rag_memtok.evaluation.corpora import spread
from rag_memtok.evaluation.memory_cache import Kept, Tokens, written
from rag_memtok.evaluation.metrics import score
from rag_memtok.evaluation.predictions import Prompt, Replies, costs, nats
from rag_memtok.evaluation.questions import load_questions
from rag_memtok.evaluation.results import Cell, Disturbance, Evaluation, Setting, Writing, writing
from rag_memtok.evaluation.study import Study, possible
from rag_memtok.memory.encoder import Encoder, encode_readable, unpack_readable
from rag_memtok.memory.recipes import recipe_of
from rag_memtok.memory.reconstruct import decode_batch
from rag_memtok.model.inject import Passage
from rag_memtok.model.lm import LM
from rag_memtok.model.lora import adapted, bond_of
from rag_memtok.model.precision import for_reading
from rag_memtok.model.prompts import frame
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.adapters import Adapter, encoder_of, shipped
from rag_memtok.pipeline.manifest import completed
from rag_memtok.pipeline.progress import Reporter, quiet


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A cell of the table before it is answered, with the material it reads."""

    reader: str
    arm: Arm
    tokens_per_vector: int
    setting: Setting
    k: int
    cases: Sequence[Case]


def evaluate(
    path: Path,
    config: Config,
    study: Study,
    limit: int = 0,
    documents: Path | None = None,
    work: Path | None = None,
    adapters: Mapping[str, Path] = MappingProxyType({}),
    on_progress: OnProgress = quiet,
    say: Callable[[str], None] = quiet,
) -> Evaluation:
    """Measures `study` over the questions of a file, `limit` of them (0: all).

    Args:
        documents: the folder that the rows' `file` is in; by default the questions' own.
        work: a folder for memories and answers, so that a run goes on where another one ended.
        adapters: the folders of the LoRAs for "memory" and for "text", where there are such; the
            one for text that ships with the model is taken by itself.

    Raises:
        InputRefused: the questions cannot be read.
        UsageError: no such reader, none without its adapter, or a prompt longer than the model's
            context.
        WrongModel: an adapter is of another model or of other memories.

    Cost: a memory for each chunk and compression; an answer for each question, reader, compression
        and k.
    """
    began = time.monotonic()
    arms_named(study.readers)
    questions = load_questions(path, documents, limit)
    settings = completed(config, {})
    tools = resources.load(settings)
    if text := shipped(tools.lm, tools.template.digest).text:
        adapters = {"text": text.folder, **adapters}
    encoder = encoder_in(adapters.get("text"), tools.lm)
    study = replace(study, readers=possible(study.readers, adapters, encoder))
    embedder = tools.embedder if study.nearest else None
    capacity, most = settings.documents.chunk_tokens, max(study.k, default=1) - 1
    read = corpus(tools.lm, embedder, questions, capacity=capacity, most=most, seed=study.seed)
    say(
        f"{len(questions)} questions about {len(set(read.gold))} chunks; {len(read.read)} chunks "
        "to write"
    )
    answers = work / "answers.jsonl" if work else None
    models = {"": tools.lm} | {
        kind: adapted(
            for_reading(tools.lm) if kind == "text" else tools.lm, folder, tools.template.digest
        )
        for kind, folder in adapters.items()
    }
    replies = {
        kind: Replies(model, frame(tools.lm), settings.ask.max_new_tokens, answers)
        for kind, model in models.items()
    }
    run = Run(
        tools, settings, study, read, replies=replies, on_progress=on_progress, encoder=encoder
    )
    run.write(work / "memories" if work else None, say)
    cells = [run.cell(planned) for planned in run.plan(say)]
    return Evaluation(
        model=f"{tools.lm.identity.id} {tools.lm.identity.revision}".strip(),
        weights_sha256=tools.lm.identity.weights_sha256,
        template=tools.template.name,
        recipe=recipe_of(settings.memorize),
        questions=tuple(question.question for question in questions),
        golds=tuple(question.answers for question in questions),
        sources=tuple(question.source for question in questions),
        gold=read.gold,
        whole=read.whole,
        cells=tuple(run.with_costs(cells)),
        writings=tuple(run.writings),
        disturbances=tuple(run.disturbances()),
        seconds=time.monotonic() - began,
    )


def encoder_in(folder: Path | None, lm: LM) -> Encoder | None:
    """The encoder of the adapter in `folder`, if it has one."""
    bond = bond_of(folder) if folder else None
    return encoder_of(Adapter(folder, bond), lm) if folder and bond else None


@dataclass(slots=True, eq=False)
class Run:
    """State of a running evaluation."""

    tools: resources.Equipment
    settings: Config
    study: Study
    corpus: Corpus
    replies: Mapping[str, Replies]
    on_progress: OnProgress
    encoder: Encoder | None = None
    materials: dict[int, Material] = field(default_factory=dict)
    writings: list[Writing] = field(default_factory=list)
    timed: list[tuple[Replies, Sequence[Sequence[Prompt]]]] = field(default_factory=list)

    @property
    def arms(self) -> dict[str, Arm]:
        """The readers that were asked for."""
        return arms_named(self.study.readers)

    def write(self, folder: Path | None, say: Callable[[str], None]) -> None:
        """The memories at each compression that some reader needs; the questions stay here."""
        compressions = dict.fromkeys(self._chosen(one, say) for one in self.study.tokens_per_vector)
        if not any(arm.compressed for arm in self.arms.values()):
            self.materials[0] = Material(self.tools.lm, self.corpus, {}, {}, self.study.seed)
            return
        for compression in compressions:
            self.materials[compression] = self._material(compression, folder)

    def _material(self, compression: int, folder: Path | None) -> Material:
        lm, template = self.tools.lm, self.tools.template
        texts = {chunk_id: self.corpus.tokens[chunk_id] for chunk_id in self.corpus.read}
        needs = {arm.needs for arm in self.arms.values()}
        memorize = replace(self.settings.memorize, tokens_per_vector=compression)
        kept: Mapping[str, Kept] = {}
        if "memory" in needs:
            kept = written(
                lm,
                template,
                texts=texts,
                settings=memorize,
                folder=folder,
                on_progress=self.on_progress,
            )
            self.writings.append(writing(compression, kept, sum(map(len, texts.values()))))
        decoded: Mapping[str, Tokens] = {}
        if not {"decode", "decode+adapter"}.isdisjoint(self.arms):
            decoded = all_decoded(lm, template, kept, texts, memorize.batch)
        vectors: Mapping[str, np.ndarray] = {}
        if "encoded" in needs and self.encoder:
            vectors = {
                one: unpack_readable(encode_readable(self.encoder, some, compression))
                for one, some in texts.items()
            }
        return Material(
            lm,
            self.corpus,
            kept=kept,
            decoded=decoded,
            seed=self.study.seed,
            window=compression,
            encoded=vectors,
        )

    def _chosen(self, compression: int, say: Callable[[str], None]) -> int:
        if compression:
            return compression
        texts = [self.corpus.tokens[chunk_id] for chunk_id in self.corpus.read]
        return resources.calibrated(
            self.tools.lm, self.tools.template, texts, self.settings, say
        ).tokens_per_vector

    def plan(self, say: Callable[[str], None]) -> list[Planned]:
        """Every cell of the table."""
        planned = self._planned(self.arms, "alone", 1, alone(self.corpus))
        several = {name: arm for name, arm in self.arms.items() if arm.several}
        for k in self.study.k:
            if k > len(self.corpus.texts):
                say(f"k = {k} is left out: there are {len(self.corpus.texts)} chunks")
                continue
            planned += self._planned(several, "among", k, among(self.corpus, k))
            planned += self._planned(several, "apart", k, retrieved(self.corpus, k))
        irrelevant = {
            name: arm for name, arm in BESIDE.items() if arm.adapter in self._reading_memories()
        }
        return planned + self._planned(irrelevant, "beside", 1, alone(self.corpus))

    def _planned(
        self, arms: Mapping[str, Arm], setting: Setting, k: int, cases: Sequence[Case]
    ) -> list[Planned]:
        return [
            Planned(
                name,
                arm,
                tokens_per_vector=compression if arm.compressed else 0,
                setting=setting,
                k=k,
                cases=cases,
            )
            for name, arm in arms.items()
            for compression in (self.materials if arm.compressed else list(self.materials)[:1])
        ]

    def cell(self, planned: Planned) -> Cell:
        """Answers every question in one way, and scores the answers."""
        replies = self.replies[planned.arm.adapter]
        material = self.materials[planned.tokens_per_vector or next(iter(self.materials))]
        prompts, dropped = [], 0
        for case in planned.cases:
            parts, left = self._parts(planned, material, case, replies)
            prompts.append(parts)
            dropped += len(case.ids) - left
        said = replies.to(prompts, name_of(planned), self.on_progress)
        if planned.setting != "beside":
            self.timed.append((replies, spread(prompts, self.study.timed)))
        golds = [question.answers for question in self.corpus.questions]
        return Cell(
            reader=planned.reader,
            adapter=planned.arm.adapter,
            tokens_per_vector=planned.tokens_per_vector,
            setting=planned.setting,
            k=planned.k,
            answers=tuple(said),
            scores=tuple(score(answer, right) for answer, right in zip(said, golds, strict=True)),
            context=tuple(sum(prompt.context for prompt in parts) for parts in prompts),
            prompt=tuple(
                sum(prompt.positions(replies.frame) for prompt in parts) for parts in prompts
            ),
            dropped=dropped,
        )

    def _parts(
        self, planned: Planned, material: Material, case: Case, replies: Replies
    ) -> tuple[list[Prompt], int]:
        """The prompts of a case, and how many chunks are in them.

        It is one prompt or (apart) one for each of the case's chunks.
        """
        cases = (
            [Case(case.question, (one,), 0) for one in case.ids]
            if planned.setting == "apart"
            else [case]
        )
        fitted = [self._fitted(planned, material, one, replies) for one in cases]
        parts = [prompt for prompt, _ in fitted]
        if planned.reader.startswith("decode"):
            parts[0] = replace(parts[0], unpack=self._decoding(material, case))
        return parts, sum(left for _, left in fitted)

    def _fitted(
        self, planned: Planned, material: Material, case: Case, replies: Replies
    ) -> tuple[Prompt, int]:
        """The prompt of a case and how many chunks are in it.

        Where there is no room the least likely of the others are left out.
        """
        while True:
            prompt = Prompt(planned.arm.passages(material, case), self.corpus.asked[case.question])
            if prompt.positions(replies.frame) + replies.limit <= self.tools.lm.context:
                return prompt, len(case.ids)
            if len(case.ids) == 1:
                line = self.corpus.questions[case.question].line
                where = (
                    f"the prompt of question {line} takes {prompt.positions(replies.frame)} "
                    f"positions and {replies.limit} for the answer"
                )
                raise UsageError(
                    f"{where}; the model has {self.tools.lm.context}",
                    remedy="fewer --chunk-tokens or --max-new-tokens",
                )
            case = without_last(case)

    def _decoding(self, material: Material, case: Case) -> Callable[[], object]:
        memories = [material.kept[one].memory for one in case.ids]
        longest = max(len(self.corpus.tokens[one]) for one in case.ids)
        return lambda: decode_batch(self.tools.lm, self.tools.template, memories, longest)

    def with_costs(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells with what their answers cost."""
        found = iter(
            costs(
                [replies for replies, _ in self.timed],
                [prompts for _, prompts in self.timed],
                self.on_progress,
            )
        )
        return [
            cell if cell.setting == "beside" else replace(cell, cost=next(found)) for cell in cells
        ]

    def disturbances(self) -> list[Disturbance]:
        """How well unrelated texts are predicted after nothing and after another text.

        The same is told after the other text's memory, and after random vectors of its norms.
        """
        ids = self.corpus.read[: self.study.unrelated]
        pairs = list(zip(ids, [*ids[1:], *ids[:1]], strict=True))
        befores: list[tuple[str, int, Callable[[str], Passage]]] = [
            ("nothing", 0, lambda other: ()),
            ("text", 0, self.corpus.tokens.__getitem__),
        ]
        for compression, material in self.materials.items():
            befores += [
                ("memory", compression, material.vectors),
                ("random", compression, material.noise),
            ]
        adapters = self._reading_memories()
        reporter = Reporter(self.on_progress, len(adapters) * len(befores), "unrelated texts")
        found = []
        for adapter, (before, compression, passage) in product(adapters, befores):
            lm = self.replies[adapter].lm
            values = tuple(
                nats(lm, passage(other), self.corpus.tokens[one]) for one, other in pairs
            )
            found.append(Disturbance(before, adapter, compression, values))
            reporter.advance()
        return found

    def _reading_memories(self) -> list[str]:
        """The adapters with which memories are read."""
        return list(
            dict.fromkeys(
                arm.adapter for reader, arm in self.arms.items() if reader.startswith("memory")
            )
        )


def name_of(planned: Planned) -> str:
    """The name of a cell in progress reports."""
    at = f" at {planned.tokens_per_vector}" if planned.tokens_per_vector else ""
    where = {
        "alone": "",
        "among": f" among {planned.k}",
        "apart": f", {planned.k} apart",
        "beside": " beside the gold text",
    }
    return f"answers: {planned.reader}{at}{where[planned.setting]}"


def without_last(case: Case) -> Case:
    """The case without the least likely of its other chunks."""
    gone = len(case.ids) - 1 if case.place != len(case.ids) - 1 else len(case.ids) - 2
    return Case(
        case.question, (*case.ids[:gone], *case.ids[gone + 1 :]), case.place - (gone < case.place)
    )
