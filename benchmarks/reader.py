"""How well a reader of text answers, refuses and knows when it does not know.

It is run as `python -m benchmarks.reader DATA --half choosing --out FILE`. DATA has
qa/SOURCE.jsonl.xz files of rows {"context", "question", "answers", "split"}; only `dev` rows are
used. What is chosen by (how long to train, passages together or apart) is chosen on the half
`choosing` of the contexts, what is published is measured once on the other, `table`.

    gold        a chunk of at most 128 tokens that holds the answer, alone
    five        with the four others that come nearest to the question, the gold one where the
                retriever puts it: in one prompt (together), or a prompt each (apart)
    gone        five chunks near the question, none of which holds an answer: refusing is right
    unsaid      questions made by rule that their one chunk does not answer: refusing is right
    nothing     no chunk at all: what the model knows by itself
    documents   data/questions.jsonl and notes/questions.jsonl, found and asked as `ask` does;
                right is an answer of at most 20 words that contains the gold one
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.questions import by_chunk, dev_rows, rank
from benchmarks.retrieval import DATA as SAMPLES
from benchmarks.retrieval import build
from rag_memtok.cli.console import say
from rag_memtok.config import Config
from rag_memtok.datatypes import Document, Progress, Segment
from rag_memtok.errors import NoUsableMemory
from rag_memtok.evaluation.cases import Corpus, build_corpus, retrieved_samples
from rag_memtok.evaluation.metrics import Score, answerable, interval, normalize, score
from rag_memtok.evaluation.predictions import Predictor, Prompt
from rag_memtok.evaluation.questions import Question
from rag_memtok.model import gguf, lora
from rag_memtok.model.inject import most_confident
from rag_memtok.model.lm import EMBEDDED, LM, load
from rag_memtok.model.precision import for_reading
from rag_memtok.model.prompts import bare, is_refusal, qa_prompt
from rag_memtok.pipeline.adapters import Adapter, Adapters, find_adapters, shipped_adapters
from rag_memtok.pipeline.answer import answer
from rag_memtok.pipeline.session import Session, with_adapters
from rag_memtok.retrieval.embedder import Embedder, load_embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.relevance import relevance
from rag_memtok.settings import updated
from rag_memtok.store.store import open_store
from training.sources import choosing

NOTES = Path(__file__).parent / "notes"
GOLD = "squad11_train_part"
OTHERS = (
    "nq_swap", "wiki_templates", "factbook_templates", "openstax_glossary", "multihop_small",
    "fairytaleqa", "onestopqa", "wikinews_quotes",
)  # fmt: skip
UNSAID = "wiki_templates_unanswerable"
K = 5
LONGEST = 20  # words of an answer that counts as right in `documents`
DECILES = 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; shares in per cent, F1 with its 95 % bootstrap interval by chunk."""

    what: str
    questions: int
    f1: tuple[float, float, float]
    em: float
    refused: float


def questions_of(data: Path, source: str, half: str, words: Tokenizer, most: int) -> list[Question]:
    """Dev questions of one half of a source's contexts, each about one chunk; at most `most`."""
    rows = [
        row
        for row in dev_rows(data / "qa", source)
        if choosing(row["context"]) == (half == "choosing")
    ]
    found = [row for some in by_chunk(rows, words, 128).values() for row in some]
    chosen = sorted(found, key=lambda row: rank(row["question"] + row["context"]))[:most]
    return [
        Question(
            line=number,
            question=row["question"],
            answers=answerable(row["answers"]),
            documents=(
                Document(
                    "",
                    file="q",
                    path=f"q#{row['context']}",
                    text=row["context"],
                    segments=(Segment(0, ""),),
                    extractor="q/1",
                ),
            ),
        )
        for number, row in enumerate(chosen)
    ]


@dataclass(frozen=True)
class Bench:
    """A reader to be measured."""

    lm: LM
    replies: Predictor
    embedder: Embedder

    def corpus(self, questions: Sequence[Question]) -> Corpus:
        """The questions' chunks, and for each question those nearest to it."""
        return build_corpus(self.lm, self.embedder, questions, capacity=160, most=2 * K, seed=0)

    def said(self, prompts: Sequence[Sequence[Prompt]], what: str) -> list[str]:
        """The answers, each the surest of its prompts'."""
        return self.replies.predict(prompts, what, _told(what))

    def row(self, what: str, read: Corpus, said: Sequence[str]) -> Row:
        """The scores of answers."""
        golds = [question.answers for question in read.questions]
        return row_of(
            what, [score(a, g) for a, g in zip(said, golds, strict=True)], said, read.gold
        )


def row_of(what: str, scores: Sequence[Score], said: Sequence[str], groups: Sequence[str]) -> Row:
    """A line of the table."""
    found = interval([100 * one.f1 for one in scores], groups)
    em = 100 * float(np.mean([one.em for one in scores]))
    refused = 100 * float(np.mean([is_refusal(one) for one in said]))
    return Row(
        what=what,
        questions=len(said),
        f1=(found.mean, found.low, found.high),
        em=em,
        refused=refused,
    )


def _told(what: str) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if progress.done and progress.done % 160 == 0:
            say(f"{what}: {progress.done} of {progress.total}")

    return tell


def prompts_of(read: Corpus, ids: Sequence[Sequence[str]], *, apart: bool) -> list[list[Prompt]]:
    """A prompt of all the chunks of each question, the first nearest to it; or one of each."""
    found = []
    for number, some in enumerate(ids):
        asked = read.questions[number].question
        texts = [read.tokens[one] for one in some]
        if apart:
            fits = [relevance(asked, read.texts[one]) for one in some]
            parts = [([one], fit) for one, fit in zip(texts, fits, strict=True)]
        else:
            parts = [(texts[::-1] or [()], 0.0)]
        found.append(
            [Prompt(passages=one, question=read.asked[number], relevance=fit) for one, fit in parts]
        )
    return found


@dataclass
class Table:
    """The rows of one half, and how often a given sureness was right."""

    bench: Bench
    rows: list[Row] = field(default_factory=list)
    deciles: dict[str, list[dict]] = field(default_factory=dict)

    def add(self, what: str, read: Corpus, ids: Sequence[Sequence[str]], *, apart: bool) -> None:
        """Answers every question from those chunks, and prints the row."""
        prompts = prompts_of(read, ids, apart=apart)
        said = self.bench.said(prompts, what)
        row = self.bench.row(what, read, said)
        self.rows.append(row)
        self.deciles[what] = deciles(self.bench, read, prompts)
        low, high = row.f1[1:]
        print(
            f"{what:28} n {row.questions:4}  F1 {row.f1[0]:5.1f} [{low:.1f}, {high:.1f}]  "
            f"EM {row.em:5.1f}  refused {row.refused:5.1f}",
            flush=True,
        )


def passages(bench: Bench, data: Path, half: str, words: Tokenizer, most: int) -> Table:
    """All rows but those of `documents`."""
    table = Table(bench)
    read = bench.corpus(questions_of(data, GOLD, half, words, most))
    lost = replace(read, questions=tuple(replace(one, answers=()) for one in read.questions))
    table.add("gold", read, [(one,) for one in read.gold], apart=False)
    for name, apart in (("together", False), ("apart", True)):
        table.add(
            f"five, {name}", read, [case.ids for case in retrieved_samples(read, K)], apart=apart
        )
        table.add(f"gone, {name}", lost, [others[:K] for others in read.others], apart=apart)
    table.add("nothing", read, [[] for _ in read.gold], apart=False)
    for source in (UNSAID, *OTHERS):
        other = bench.corpus(questions_of(data, source, half, words, most // 2))
        name = "unsaid" if source == UNSAID else f"gold, {source}"
        table.add(name, other, [(one,) for one in other.gold], apart=False)
    return table


def deciles(bench: Bench, read: Corpus, prompts: Sequence[Sequence[Prompt]]) -> list[dict]:
    """The share of right answers (exact match) by the model's confidence, in tenths.

    Sure is the answer's probability, end included, to the power of 1 / its tokens.
    """
    known = []
    for question, parts in zip(read.questions, prompts, strict=True):
        replies = [bench.replies.known[bench.replies.key(one)] for one in parts]
        pairs = [(one.answer, one.mean_logprob) for one in replies]
        best = replies[most_confident(pairs, [one.relevance for one in parts])]
        known.append((float(np.exp(best.mean_logprob)), score(best.answer, question.answers).em))
    parts = [part for part in np.array_split(np.array(sorted(known)), DECILES) if len(part)]
    return [
        {"sure": round(float(one[:, 0].mean()), 3), "right": round(float(one[:, 1].mean()), 3)}
        for one in parts
    ]


def contains(said: str, row: Mapping) -> bool:
    """Whether a short answer holds one of the gold answers, and one of each of those it must too.

    Where there are none, whether it refuses.
    """
    if not row["answers"]:
        return is_refusal(said)
    words = f" {normalize(said)} "
    wanted = [row["answers"], *row.get("and", [])]
    return len(said.split()) <= LONGEST and all(
        any(f" {normalize(one)} " in words for one in some) for some in wanted
    )


def asked(
    lm: LM, adapters: Adapters, folder: Path, rows: Sequence[dict], tokenizer: Path
) -> list[dict]:
    """Each question with what `ask` says to it over the documents in `folder`."""
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "store"
        build(store, folder, ["questions.*"], tokenizer)
        config = updated(Config(), {"ask.read": "text"})
        with open_store(store, write=False) as opened:
            embedder, state = load_embedder("mini"), opened.state
            index = open_index(opened, embedder)
            plain = Session(
                store=opened,
                lm=lm,
                template=bare(lm),
                embedder=embedder,
                index=index,
                state=state,
                config=config,
            )
            session = with_adapters(plain, adapters)
            return [{**row, **_said(session, row["question"])} for row in rows]


def _said(session: Session, question: str) -> dict:
    try:
        found = answer(session, question)
    except NoUsableMemory:
        return {"said": "", "seconds": 0.0, "refused": "retrieval"}
    return {"said": found.answer, "seconds": found.seconds, "passages": found.passages}


def summary(rows: Sequence[dict]) -> dict:
    """How many of the answerable are right, how many of all are refused, and the time of one."""
    able = [row for row in rows if row["answers"]]
    unable = [row for row in rows if not row["answers"]]
    return {
        "answerable": len(able),
        "right": sum(contains(row["said"], row) for row in able),
        "wrongly refused": sum(is_refusal(row["said"]) for row in able),
        "unanswerable": len(unable),
        "refused": sum(is_refusal(row["said"]) for row in unable),
        "median seconds": round(float(np.median([row["seconds"] for row in rows])), 2),
    }


def lines_of(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="not needed for --only documents")
    parser.add_argument("--half", choices=("choosing", "table"), default="choosing")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--adapter", default="auto", help="a folder, none, or auto: the shipped one"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=300, help="of the main source, at most")
    parser.add_argument("--only", choices=("passages", "documents"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file with every answer")
    args = parser.parse_args()
    if args.data is None and args.only != "documents":
        parser.error("DATA is missing: a folder with qa/SOURCE.jsonl.xz")
    return args


def main() -> None:
    """Measures, prints the table, writes every answer."""
    args = parsed()
    config = updated(
        Config(),
        {"model.id": args.model, "model.dtype": args.dtype, "model.threads": args.threads},
    )
    lm = load(config.model)
    tokenizer = (gguf.packaged_folder() if args.model == "smollm2" else EMBEDDED) / "tokenizer.json"
    adapters = (
        shipped_adapters(lm, "")
        if args.adapter == "auto"
        else find_adapters(args.adapter, Path(), lm, "", say)
    )
    reading = for_reading(lm)
    if adapters.text:
        reading = lora.load_adapter(reading, adapters.text.folder)
    replies = Predictor(lm=reading, frame=qa_prompt(lm), limit=config.ask.max_new_tokens, file=None)
    made: dict = {"half": args.half, "model": lm.identity.id, "adapter": _name(adapters.text)}
    if args.only != "documents":
        words = Tokenizer.from_file(str(tokenizer))
        bench = Bench(reading, replies, load_embedder("mini"))
        table = passages(bench, args.data, args.half, words, args.questions)
        made |= {"rows": [asdict(row) for row in table.rows], "deciles": table.deciles}
    if args.only != "passages":
        for name, folder, file in (
            ("samples", SAMPLES / "docs", SAMPLES / "questions.jsonl"),
            ("notes", NOTES, NOTES / "questions.jsonl"),
        ):
            found = asked(lm, adapters, folder, lines_of(file), tokenizer)
            made[name] = {"summary": summary(found), "answers": found}
            print(name, made[name]["summary"])
    if args.out:
        args.out.write_text(json.dumps(made, ensure_ascii=False, indent=1), encoding="utf-8")


def _name(adapter: Adapter | None) -> str:
    return adapter.manifest.adapter_sha256[:16] if adapter else ""


if __name__ == "__main__":
    main()
