"""The protocol of Sastre & Rosa 2025 (arXiv:2506.15001) on any model.

It makes the paper's Tables 2 to 4 with what they leave out, and its Figures 2 and 3.

Theirs: one vector a text; the share of tokens, end included, that the teacher-forced argmax gets
right; how many texts have all of them. Beside that: whether a greedy decode of the stored bytes
gives the text back, the steps, the seconds, and the smallest margin of a token.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory, OnProgress, Progress, sha256_of_text
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.corpora import Corpus
from rag_memtok.evaluation.figures import Chart, Line
from rag_memtok.memory.batch import Task
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.optimize import Step, memorize
from rag_memtok.memory.recipes import recipe_named
from rag_memtok.memory.reconstruct import decode, margins
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import template_named

GROUPS, SMALLEST_GROUP = 8, 5  # points of a line in Figure 3, texts of a point


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How memories are optimized in a run.

    There are `vectors` a text (1 in the paper) and `steps` at most (0: the recipe's own); `codec`
    is what is decoded from.
    """

    recipe: str = "sastre2025"
    vectors: int = 1
    steps: int = 0
    batch: int = 8
    codec: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        recipe_named(self.recipe)  # an unknown one is refused before a model is loaded
        codec_named(self.codec)

    @property
    def budget(self) -> int:
        """The most steps a text may take."""
        return self.steps or recipe_named(self.recipe).steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of writing one text with one model.

    `wrong` of `tokens + 1` positions as the writer measured it, teacher-forced; `free`: the greedy
    decode of the stored bytes, fed with nothing but itself, is the text and ends; `margin` the
    smallest lead in that arithmetic (logits, fp32); `seconds` the row's share of its batch's.
    """

    model: str
    weights: str
    dtype: str
    parameters: int
    corpus: str
    text: str
    protocol: Protocol
    characters: int
    tokens: int
    wrong: int
    free: bool
    steps: int
    seconds: float
    margin: float

    @property
    def accuracy(self) -> float:
        """The share of positions that are right."""
        return 1 - self.wrong / (self.tokens + 1)

    @property
    def key(self) -> tuple[object, ...]:
        """Identifies the trial: a key that is in the file is not run again."""
        return (self.weights, self.dtype, replace(self.protocol, batch=1), self.corpus, self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the tables: a model's results on a corpus.

    `margin` is the smallest lead in the texts that came back exactly, None if none did.
    """

    corpus: str
    model: str
    parameters: int
    texts: int
    characters: float
    tokens: float
    accuracy: float
    exact: int
    free: int
    steps: float
    seconds: float
    margin: float | None


# --- trials


def run(
    lm: LM,
    corpora: Sequence[Corpus],
    protocol: Protocol,
    out: Path | None,
    on_progress: OnProgress,
) -> Iterator[Trial]:
    """Tries every text of `corpora` on `lm`.

    What the file `out` has already is taken from there, what is new is added to it.

    Cost: per text up to `protocol.budget` forward and backward passes, and 2 (T + 1) cached steps.
    """
    done = {trial.key: trial for trial in load(out)} if out else {}
    wanted = {
        trial_key(lm, corpus, text, protocol): len(text)
        for corpus in corpora
        for text in corpus.texts
    }
    meter = ProgressMeter(
        model=model_name(lm),
        budget=protocol.budget,
        on_progress=on_progress,
        pending=wanted,
        texts=len(wanted),
    )
    for key in [key for key in wanted if key in done]:
        meter.count(done[key])
        yield done[key]
    for corpus in corpora:
        texts = [
            text for text in corpus.texts if trial_key(lm, corpus, text, protocol) in meter.pending
        ]
        meter.begin(texts)
        for trial in run_texts(lm, corpus, texts, protocol, meter):
            if out:
                save(trial, out)
            meter.count(trial)
            yield trial


def run_texts(
    lm: LM, corpus: Corpus, texts: Sequence[str], protocol: Protocol, meter: "ProgressMeter"
) -> Iterator[Trial]:
    """Writes and decodes `texts`, in the order in which they are done."""
    by_id = {sha256_of_text(text): text for text in texts}
    recipe = recipe_named(protocol.recipe)
    template = template_named(recipe.template or "bare", lm)
    codec = codec_named(protocol.codec)
    tasks = [
        Task(text_id, tuple(lm.encode(text)), protocol.vectors) for text_id, text in by_id.items()
    ]
    settings = Memorize(
        steps=protocol.steps, seconds_per_chunk=0.0, batch=protocol.batch,
        codec=protocol.codec, seed=protocol.seed,
    )  # fmt: skip
    for optimized in memorize(lm, template, tasks, settings, on_step=meter.step, recipe=recipe):
        tokens = optimized.task.tokens
        memory = Memory(codec.unpack(codec.pack(optimized.vectors), optimized.vectors.shape))
        decoded = decode(lm, template, memory, len(tokens))
        free = decoded.ended and decoded.tokens == tokens
        text, margin = by_id[optimized.task.key], min(margins(lm, template, memory, tokens))
        yield Trial(
            model=model_name(lm),
            weights=lm.identity.weights_sha256,
            dtype=lm.identity.dtype,
            parameters=lm.parameters,
            corpus=corpus.name,
            text=optimized.task.key,
            protocol=protocol,
            characters=len(text),
            tokens=len(tokens),
            wrong=optimized.wrong,
            free=free,
            steps=optimized.steps,
            seconds=optimized.seconds,
            margin=margin,
        )


def trial_key(lm: LM, corpus: Corpus, text: str, protocol: Protocol) -> tuple[object, ...]:
    """The `Trial.key` that a text will have."""
    return (
        lm.identity.weights_sha256,
        lm.identity.dtype,
        replace(protocol, batch=1),
        corpus.name,
        sha256_of_text(text),
    )


def model_name(lm: LM) -> str:
    """A model's short name.

    It is the one the model was given when it was trained here (mini-1), or the last part of its id.
    """
    return lm.identity.revision or Path(lm.identity.id).name


@dataclass(slots=True, kw_only=True)
class ProgressMeter:
    """Measures and reports the progress of a run.

    The time left supposes that every text takes all its steps, and a step time by the text's
    characters.
    """

    model: str
    budget: int
    on_progress: OnProgress
    pending: dict[tuple[object, ...], int]
    texts: int
    exact: int = 0
    seconds: float = 0.0
    work: float = 0.0
    size: float = 0.0
    before: float = 0.0

    def begin(self, texts: Sequence[str]) -> None:
        """Starts the clock of a corpus."""
        self.size, self.before = sum(map(len, texts)) / max(1, len(texts)), 0.0

    def step(self, step: Step) -> None:
        """After a step of the writer, whose clock begins anew with each corpus."""
        self.seconds += step.seconds - self.before
        self.before = step.seconds
        self.work += step.rows * self.size
        self.tell()

    def count(self, trial: Trial) -> None:
        """Counts a finished text."""
        self.pending.pop(trial.key)
        self.exact += trial.wrong == 0
        self.tell()

    def tell(self) -> None:
        """Reports progress."""
        left = (
            self.seconds / self.work * self.budget * sum(self.pending.values())
            if self.work
            else None
        )
        self.on_progress(
            Progress(
                done=self.texts - len(self.pending),
                total=self.texts,
                stage=self.model,
                facts={"exact": self.exact},
                seconds=self.seconds,
                seconds_left=left,
            )
        )


# --- kept


def save(trial: Trial, path: Path) -> None:
    """Adds a line to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")  # cut off by a kill
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(asdict(trial)) + "\n")


def load(path: Path) -> Iterator[Trial]:
    """The trials in the file, if there is one.

    A line that was cut off while it was written is left out.

    Raises:
        UsageError: the file is something else.
    """
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found = json.loads(line)
            yield Trial(**found | {"protocol": Protocol(**found["protocol"])})
        except (ValueError, TypeError, KeyError) as error:
            if not line.startswith('{"model"'):
                raise UsageError(
                    f"{path} holds other things than trials", remedy="name another file for --out"
                ) from error


# --- told


def table_rows(trials: Iterable[Trial]) -> list[Row]:
    """A row for each corpus and model.

    The corpora are in the order of the trials, in each the smallest model first.
    """
    groups: dict[str, dict[str, list[Trial]]] = {}
    for trial in trials:
        groups.setdefault(trial.corpus, {}).setdefault(trial.weights, []).append(trial)
    return [
        row
        for models in groups.values()
        for row in sorted(map(row_of, models.values()), key=lambda row: (row.parameters, row.model))
    ]


def row_of(trials: Sequence[Trial]) -> Row:
    """The line of a table: one model's trials on one corpus."""
    first, mean = trials[0], statistics.fmean
    return Row(
        corpus=first.corpus,
        model=first.model,
        parameters=first.parameters,
        texts=len(trials),
        characters=mean(trial.characters for trial in trials),
        tokens=mean(trial.tokens for trial in trials),
        accuracy=mean(trial.accuracy for trial in trials),
        exact=sum(trial.wrong == 0 for trial in trials),
        free=sum(trial.free for trial in trials),
        steps=float(statistics.median(trial.steps for trial in trials)),
        seconds=mean(trial.seconds for trial in trials),
        margin=min((trial.margin for trial in trials if trial.free), default=None),
    )


def make_charts(trials: Sequence[Trial]) -> dict[str, Chart]:
    """Figure 2, if there are several models, and Figure 3, by file name."""
    rows, result = table_rows(trials), dict[str, Chart]()
    if len({trial.weights for trial in trials}) > 1:
        lines = [
            size_line([row for row in rows if row.corpus == corpus])
            for corpus in dict.fromkeys(row.corpus for row in rows)
        ]
        most = max(row.texts for row in rows)
        result["figure2.png"] = Chart(
            title="Memorised texts",
            x_label="parameters (millions)",
            y_label=f"texts exact, of {most}",
            lines=lines,
            log_x=2,
        )
    models = sorted({(trial.parameters, trial.model, trial.weights) for trial in trials})
    lines = [
        length_line(name, [trial for trial in trials if trial.weights == weights])
        for _, name, weights in models
    ]
    result["figure3.png"] = Chart(
        title="Accuracy against length",
        x_label="tokens of the text",
        y_label="accuracy, teacher-forced",
        lines=lines,
        log_x=2,
    )
    return result


def size_line(rows: Sequence[Row]) -> Line:
    """Exact texts against the model's size, for one corpus."""
    return Line(
        name=rows[0].corpus,
        x=[row.parameters / 1e6 for row in rows],
        y=[float(row.exact) for row in rows],
    )


def length_line(name: str, trials: Sequence[Trial]) -> Line:
    """The mean accuracy of neighbours in length, with their standard error."""
    ordered = sorted(trials, key=lambda trial: trial.tokens)
    count = max(1, min(GROUPS, len(ordered) // SMALLEST_GROUP))
    groups = [
        ordered[index * len(ordered) // count : (index + 1) * len(ordered) // count]
        for index in range(count)
    ]
    accuracies = [[trial.accuracy for trial in group] for group in groups]
    means = [statistics.fmean(values) for values in accuracies]
    errors = [
        statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        for values in accuracies
    ]
    low, high = (
        [mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1)
    )
    return Line(
        name=name,
        x=[statistics.fmean(trial.tokens for trial in group) for group in groups],
        y=means,
        low=low,
        high=high,
    )
