"""Questions with gold answers -> how good each baseline is.

The questions, chunks and model are the same for all. The settings:

alone     the gold chunk by itself
among     concatenated: the gold chunk with k - 1 distractors in one prompt, first, in the middle,
          last, in turn
apart     per passage: a prompt for each chunk, as retrieved; the most confident answer is kept
beside    the gold text after a distractor; and the perplexity of unrelated texts: off-topic harm
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
from rag_memtok.evaluation.baselines import (
    WITH_DISTRACTOR,
    Baseline,
    Material,
    baselines_named,
    decode_all,
)
from rag_memtok.evaluation.cases import (
    Corpus,
    Sample,
    build_corpus,
    concatenated_samples,
    gold_samples,
    retrieved_samples,
    without_last,
)
from rag_memtok.evaluation.corpora import spread_evenly
from rag_memtok.evaluation.memory_cache import CachedMemory, Tokens, optimize_cached
from rag_memtok.evaluation.metrics import score
from rag_memtok.evaluation.predictions import (
    Predictor,
    Prompt,
    complete_adapters,
    load_models,
    mean_nats,
    measure_costs,
)
from rag_memtok.evaluation.questions import load_questions
from rag_memtok.evaluation.results import (
    Evaluation,
    MemoryStats,
    OffTopicPerplexity,
    Result,
    Setting,
    memory_stats,
)
from rag_memtok.evaluation.study import Planned, Study, available_readers, planned_name
from rag_memtok.memory.encoder import Encoder, encode_readable, unpack_readable
from rag_memtok.memory.recipes import recipe_of
from rag_memtok.memory.reconstruct import decode_batch
from rag_memtok.model.adapter_manifest import read_manifest
from rag_memtok.model.inject import Passage
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import qa_prompt
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.adapters import Adapter, load_encoder_of
from rag_memtok.pipeline.manifest import complete_config
from rag_memtok.pipeline.progress import Reporter, quiet
from rag_memtok.retrieval.relevance import relevance


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
    baselines_named(study.readers)
    questions = load_questions(path, documents, limit)
    settings = complete_config(config, {})
    tools = resources.load(settings)
    adapters = complete_adapters(adapters, tools.lm, tools.template.digest)
    encoder = encoder_in(adapters.get("vectors"), tools.lm)
    study = replace(study, readers=available_readers(study.readers, adapters, encoder))
    embedder = tools.embedder if study.nearest else None
    capacity, most = settings.documents.chunk_tokens, max(study.k, default=1) - 1
    data = build_corpus(
        tools.lm, embedder, questions, capacity=capacity, most=most, seed=study.seed
    )
    say(
        f"{len(questions)} questions about {len(set(data.gold))} chunks; {len(data.read)} chunks "
        "to write"
    )
    answers = work / "answers.jsonl" if work else None
    models = load_models(tools.lm, adapters, tools.template.digest)
    predictors = {
        kind: Predictor(
            lm=model, frame=qa_prompt(tools.lm), limit=settings.ask.max_new_tokens, file=answers
        )
        for kind, model in models.items()
    }
    run = Run(
        tools=tools,
        settings=settings,
        study=study,
        corpus=data,
        predictors=predictors,
        on_progress=on_progress,
        encoder=encoder,
    )
    run.write(work / "memories" if work else None, say)
    results = [run.answer(planned) for planned in run.plan(say)]
    return Evaluation(
        model=f"{tools.lm.identity.id} {tools.lm.identity.revision}".strip(),
        weights_sha256=tools.lm.identity.weights_sha256,
        template=tools.template.name,
        recipe=recipe_of(settings.memorize),
        questions=tuple(question.question for question in questions),
        golds=tuple(question.answers for question in questions),
        sources=tuple(question.source for question in questions),
        gold=data.gold,
        whole=data.whole,
        cells=tuple(run.with_costs(results)),
        writings=tuple(run.writings),
        disturbances=tuple(run.off_topic()),
        seconds=time.monotonic() - began,
    )


def encoder_in(folder: Path | None, lm: LM) -> Encoder | None:
    """The encoder of the adapter in `folder`, if it has one."""
    bond = read_manifest(folder) if folder else None
    return load_encoder_of(Adapter(folder, bond), lm) if folder and bond else None


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """State of a running evaluation."""

    tools: resources.Components
    settings: Config
    study: Study
    corpus: Corpus
    predictors: Mapping[str, Predictor]
    on_progress: OnProgress
    encoder: Encoder | None = None
    materials: dict[int, Material] = field(default_factory=dict)
    writings: list[MemoryStats] = field(default_factory=list)
    timed: list[tuple[Predictor, Sequence[Sequence[Prompt]]]] = field(default_factory=list)

    @property
    def baselines(self) -> dict[str, Baseline]:
        """The readers that were asked for."""
        return baselines_named(self.study.readers)

    def write(self, folder: Path | None, say: Callable[[str], None]) -> None:
        """The memories at each compression that some reader needs; the questions stay here."""
        compressions = dict.fromkeys(
            self._choose_compression(level, say) for level in self.study.tokens_per_vector
        )
        if not any(baseline.compressed for baseline in self.baselines.values()):
            self.materials[0] = Material(
                lm=self.tools.lm, corpus=self.corpus, memories={}, decoded={}, seed=self.study.seed
            )
            return
        for compression in compressions:
            self.materials[compression] = self._load_material(compression, folder)

    def _load_material(self, compression: int, folder: Path | None) -> Material:
        lm, template = self.tools.lm, self.tools.template
        texts = {chunk_id: self.corpus.tokens[chunk_id] for chunk_id in self.corpus.read}
        needs = {baseline.needs for baseline in self.baselines.values()}
        memorize = replace(self.settings.memorize, tokens_per_vector=compression)
        memories: Mapping[str, CachedMemory] = {}
        if "memory" in needs:
            memories = optimize_cached(
                lm,
                template,
                texts=texts,
                settings=memorize,
                folder=folder,
                on_progress=self.on_progress,
            )
            self.writings.append(memory_stats(compression, memories, sum(map(len, texts.values()))))
        decoded: Mapping[str, Tokens] = {}
        if not {"decode", "decode+adapter"}.isdisjoint(self.baselines):
            decoded = decode_all(lm, template, memories, texts, memorize.batch)
        vectors: Mapping[str, np.ndarray] = {}
        if "encoded" in needs and self.encoder:
            vectors = {
                chunk_id: unpack_readable(encode_readable(self.encoder, tokens, compression))
                for chunk_id, tokens in texts.items()
            }
        return Material(
            lm=lm,
            corpus=self.corpus,
            memories=memories,
            decoded=decoded,
            seed=self.study.seed,
            window=compression,
            encoder=self.encoder,
            encoded=vectors,
        )

    def _choose_compression(self, compression: int, say: Callable[[str], None]) -> int:
        if compression:
            return compression
        texts = [self.corpus.tokens[chunk_id] for chunk_id in self.corpus.read]
        return resources.choose_calibration(
            self.tools.lm, self.tools.template, texts, self.settings, say
        ).tokens_per_vector

    def plan(self, say: Callable[[str], None]) -> list[Planned]:
        """Every result to be measured."""
        planned = self._plan_setting(self.baselines, "alone", 1, gold_samples(self.corpus))
        several = {name: baseline for name, baseline in self.baselines.items() if baseline.several}
        for k in self.study.k:
            if k > len(self.corpus.texts):
                say(f"k = {k} is left out: there are {len(self.corpus.texts)} chunks")
                continue
            planned += self._plan_setting(several, "among", k, concatenated_samples(self.corpus, k))
            planned += self._plan_setting(several, "apart", k, retrieved_samples(self.corpus, k))
        distracted = {
            name: baseline
            for name, baseline in WITH_DISTRACTOR.items()
            if baseline.adapter in self._adapters_reading("memory")
        }
        return planned + self._plan_setting(distracted, "beside", 1, gold_samples(self.corpus))

    def _plan_setting(
        self, baselines: Mapping[str, Baseline], setting: Setting, k: int, samples: Sequence[Sample]
    ) -> list[Planned]:
        return [
            Planned(
                reader=name,
                baseline=baseline,
                tokens_per_vector=compression if baseline.compressed else 0,
                setting=setting,
                k=k,
                samples=samples,
            )
            for name, baseline in baselines.items()
            for compression in (self.materials if baseline.compressed else list(self.materials)[:1])
        ]

    def answer(self, planned: Planned) -> Result:
        """Answers every question of a planned result, and scores the answers."""
        predictor = self.predictors[planned.baseline.adapter]
        material = self.materials[planned.tokens_per_vector or next(iter(self.materials))]
        prompts, dropped = [], 0
        for sample in planned.samples:
            parts, left = self._prompts(planned, material, sample, predictor)
            prompts.append(parts)
            dropped += len(sample.ids) - left
        answers = predictor.predict(prompts, planned_name(planned), self.on_progress)
        if planned.setting != "beside":
            self.timed.append((predictor, spread_evenly(prompts, self.study.timed)))
        golds = [question.answers for question in self.corpus.questions]
        return Result(
            reader=planned.reader,
            adapter=planned.baseline.adapter,
            tokens_per_vector=planned.tokens_per_vector,
            setting=planned.setting,
            k=planned.k,
            answers=tuple(answers),
            scores=tuple(
                score(answer, right) for answer, right in zip(answers, golds, strict=True)
            ),
            context=tuple(sum(prompt.context for prompt in parts) for parts in prompts),
            prompt=tuple(
                sum(prompt.positions(predictor.frame) for prompt in parts) for parts in prompts
            ),
            dropped=dropped,
        )

    def _prompts(
        self, planned: Planned, material: Material, sample: Sample, predictor: Predictor
    ) -> tuple[list[Prompt], int]:
        """The prompts of a sample, and how many chunks are in them.

        It is one prompt, or in the setting "apart" one for each of the sample's chunks.
        """
        samples = (
            [Sample(sample.question, (one,), 0) for one in sample.ids]
            if planned.setting == "apart"
            else [sample]
        )
        fitted = [self._fit(planned, material, one, predictor) for one in samples]
        prompts = [prompt for prompt, _ in fitted]
        if planned.reader.startswith("decode"):
            prompts[0] = replace(prompts[0], unpack=self._decode_step(material, sample))
        return prompts, sum(left for _, left in fitted)

    def _fit(
        self, planned: Planned, material: Material, sample: Sample, predictor: Predictor
    ) -> tuple[Prompt, int]:
        """The prompt of a sample and how many chunks are in it.

        Where there is no room the least likely distractors are left out.
        """
        while True:
            text = "\n".join(self.corpus.texts[one] for one in sample.ids)
            prompt = Prompt(
                passages=planned.baseline.passages(material, sample),
                question=self.corpus.asked[sample.question],
                text=text if planned.baseline.copied else "",
                relevance=relevance(self.corpus.questions[sample.question].question, text),
            )
            if prompt.positions(predictor.frame) + predictor.limit <= self.tools.lm.context:
                return prompt, len(sample.ids)
            if len(sample.ids) == 1:
                line = self.corpus.questions[sample.question].line
                where = (
                    f"the prompt of question {line} takes {prompt.positions(predictor.frame)} "
                    f"positions and {predictor.limit} for the answer"
                )
                raise UsageError(
                    f"{where}; the model has {self.tools.lm.context}",
                    remedy="fewer --chunk-tokens or --max-new-tokens",
                )
            sample = without_last(sample)

    def _decode_step(self, material: Material, sample: Sample) -> Callable[[], object]:
        memories = [material.memories[one].memory for one in sample.ids]
        longest = max(len(self.corpus.tokens[one]) for one in sample.ids)
        return lambda: decode_batch(self.tools.lm, self.tools.template, memories, longest)

    def with_costs(self, results: Sequence[Result]) -> list[Result]:
        """The results with what their answers cost."""
        measured = iter(
            measure_costs(
                [predictor for predictor, _ in self.timed],
                [prompts for _, prompts in self.timed],
                self.on_progress,
            )
        )
        return [
            result if result.setting == "beside" else replace(result, cost=next(measured))
            for result in results
        ]

    def off_topic(self) -> list[OffTopicPerplexity]:
        """Perplexity of unrelated texts after nothing, and after another text.

        Also after the other text's memory and random vectors of its norms, and after its readable
        vectors, wherever these are read.
        """
        ids = self.corpus.read[: self.study.unrelated]
        pairs = list(zip(ids, [*ids[1:], *ids[:1]], strict=True))
        befores: list[tuple[str, int, Callable[[str], Passage]]] = [
            ("nothing", 0, lambda other: ()),
            ("text", 0, self.corpus.tokens.__getitem__),
        ]
        for compression, material in self.materials.items():
            befores += [(name, compression, of) for name, of in material.prefixes.items()]
        adapters = self._adapters_reading("memory", "encoded")
        total = len(adapters) * len(befores)
        reporter = Reporter(on_progress=self.on_progress, total=total, stage="unrelated texts")
        found = []
        for adapter, (before, compression, passage) in product(adapters, befores):
            lm = self.predictors[adapter].lm
            values = tuple(
                mean_nats(lm, passage(other), self.corpus.tokens[chunk_id])
                for chunk_id, other in pairs
            )
            found.append(OffTopicPerplexity(before, adapter, compression, values))
            reporter.advance()
        return found

    def _adapters_reading(self, *forms: str) -> list[str]:
        """The adapters with which chunks are read in one of these forms."""
        read = (one.adapter for name, one in self.baselines.items() if name.startswith(forms))
        return list(dict.fromkeys(read))
