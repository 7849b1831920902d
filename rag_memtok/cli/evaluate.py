"""The measurements as commands: eval, paper. Parse, one library call, print."""

import os
import shlex
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from rag_memtok.cli import console, options, tables
from rag_memtok.config import Config
from rag_memtok.errors import UsageError
from rag_memtok.settings import updated

Questions = Annotated[
    Path,
    typer.Argument(help="Rows of context (or file), question, answers as JSONL; or a SQuAD file."),
]
Readers = Annotated[
    str,
    typer.Option(
        "--readers",
        help="Ways of reading, by commas.",
        show_default="all there are adapters for, but controls",
    ),
]
Adapter = Annotated[
    Path | None, typer.Option("--adapter", help="A LoRA that reads memories: memory+adapter.")
]
TextAdapter = Annotated[
    Path | None,
    typer.Option(
        "--text-adapter",
        help="One that reads texts: text+adapter, decode+adapter.",
        show_default="the model's",
    ),
]
Limit = Annotated[
    int, typer.Option("--limit", min=0, help="Questions, spread over the file; 0: all.")
]
K = Annotated[
    str, typer.Option("--k", help="Chunks in the prompt beside the gold one alone, by commas.")
]
TokensPerVector = Annotated[
    str, typer.Option("--tokens-per-vector", help="Compressions, by commas; 0 finds out.")
]
Documents = Annotated[
    Path | None,
    typer.Option(
        "--documents", help="The folder of the rows' files.", show_default="the questions' own"
    ),
]
Distractors = Annotated[
    str, typer.Option("--distractors", help="Other chunks: retriever or random.")
]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Keep memories and answers here; run again to go on."),
]
Figures = Annotated[
    Path | None,
    typer.Option("--figures", help="Draw F1 against compression and against k into this folder."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Write everything, answer by answer, as JSON.")
]


@options.settings(
    "model.id", "model.dtype", "model.device", "model.threads", "retrieve.embedder",
    "documents.chunk_tokens", "memorize.template", "memorize.write", "memorize.recipe",
    "memorize.steps", "memorize.seconds_per_chunk", "ask.max_new_tokens", "memorize.seed",
)  # fmt: skip
def eval_(
    dials: Config,
    questions: Questions,
    readers: Readers = "",
    adapter: Adapter = None,
    text_adapter: TextAdapter = None,
    limit: Limit = 0,
    k: K = "3,5,10",
    tokens_per_vector: TokensPerVector = "0",
    documents: Documents = None,
    distractors: Distractors = "retriever",
    work: Work = None,
    figures: Figures = None,
    out: Out = None,
    json: options.Json = False,
) -> None:
    """Measure how well questions are answered from memories and from their text.

    The same is measured from what should be worse than both.
    """
    from rag_memtok.evaluation import evaluate, results
    from rag_memtok.evaluation.figures import require_drawing

    require_place(out)
    if figures:
        require_drawing()
    if distractors not in ("retriever", "random"):
        raise UsageError(f"--distractors is {distractors!r}; valid: retriever, random")
    study = evaluate.Study(
        readers=tuple(name.strip() for name in readers.split(",") if name.strip()),
        tokens_per_vector=numbers("--tokens-per-vector", tokens_per_vector),
        k=numbers("--k", k),
        nearest=distractors == "retriever",
        seed=dials.memorize.seed,
    )
    adapters = {
        kind: folder for kind, folder in (("memory", adapter), ("text", text_adapter)) if folder
    }
    if work:  # memories and answers are as secret as the documents
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with console.progress_bar("done") as on_progress:
        found = evaluate.evaluate(
            questions,
            dials,
            study,
            limit=limit,
            documents=documents,
            work=work,
            adapters=adapters,
            on_progress=on_progress,
            say=console.say,
        )
    rows, shifts = results.table_rows(found), results.off_topic_rows(found)
    summary = {"rows": [asdict(row) for row in rows], "shifts": [asdict(shift) for shift in shifts]}
    if json:
        console.put_json(
            summary | {"model": found.model, "writings": [asdict(one) for one in found.writings]}
        )
    else:
        tables.put_evaluation(found, rows, shifts)
    if out:  # after what is printed: a disk that is full costs no hours of work
        write_results(out, dumps(console.finite(asdict(found) | summary), ensure_ascii=False))
    for path in tables.draw_evaluation(rows, found.writings, figures) if figures else []:
        console.say(f"drawn: {path}")


@options.settings("model.dtype", "model.device", "model.threads")
def paper(
    dials: Config,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="smollm2, mini, a folder, a GGUF file or a hub id; may be repeated.",
            show_default="mini",
        ),
    ] = None,
    chunks: Annotated[
        Path | None, typer.Option("--chunks", help="A CSV file; texts are its column 'chunk'.")
    ] = None,
    docs: Annotated[Path | None, typer.Option("--docs", help="Documents, to be cut.")] = None,
    chars: Annotated[
        str, typer.Option("--chars", help="Where documents are cut, in characters.")
    ] = "100,1000",
    recipe: Annotated[str, typer.Option("--recipe", help="How texts are written.")] = "sastre2025",
    vectors: Annotated[int, typer.Option("--vectors", min=1, help="Vectors a text.")] = 1,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Texts of each kind and length, at most.")
    ] = 20,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Steps a text, at most; 0: the recipe's own.")
    ] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts written together.")] = 8,
    codec: Annotated[
        str, typer.Option("--codec", help="How the vectors that are decoded were stored.")
    ] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the writer.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Keep every text's result in this file; run again to go on."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Draw Figures 2 and 3 as PNG into this folder.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure the paper's Tables 2 to 4 and Figures 2 and 3 (arXiv:2506.15001) on any models.

    What they leave out is measured with them.
    """
    from rag_memtok.evaluation import paper
    from rag_memtok.evaluation.corpora import load_corpora
    from rag_memtok.evaluation.figures import draw, require_drawing
    from rag_memtok.model import lm

    require_place(out)
    if figures:
        require_drawing()
    protocol = paper.Protocol(
        recipe=recipe, vectors=vectors, steps=steps, batch=batch, codec=codec, seed=seed
    )
    corpora = load_corpora(chunks, docs, numbers("--chars", chars, least=1), limit)
    trials = []
    for name in dict.fromkeys(model or ["mini"]):
        chosen = updated(dials, {"model.id": name}).model
        with console.progress_bar("texts") as on_progress:
            trials += list(paper.run(lm.load(chosen), corpora, protocol, out, on_progress))
    drawn = (
        {figures / file: chart for file, chart in paper.make_charts(trials).items()}
        if figures
        else {}
    )
    for path, chart in drawn.items():
        draw(chart, path)
        console.say(f"drawn: {path}")
    rows = paper.table_rows(trials)
    if json:
        console.put_json(
            {
                "protocol": asdict(protocol),
                "rows": [asdict(row) for row in rows],
                "figures": [str(path) for path in drawn],
            }
        )
    else:
        tables.put_paper(rows, protocol)


def require_place(out: Path | None) -> None:
    """Refuses a place where no file can be for --out: before hours of work, not after them.

    Raises:
        UsageError: a folder is there, or a file is where one of its folders has to be.
    """
    if out is None:
        return
    if out.is_dir():
        raise UsageError(
            f"--out is {str(out)!r}, which is a folder",
            remedy=f"name a file, such as {shlex.quote(str(out / 'results.json'))}",
        )
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise UsageError(
            f"--out is {str(out)!r}, and {above} is no folder",
            remedy="name a file in a folder",
        )


def write_results(out: Path, content: str) -> None:
    """Writes a file that only its owner can read, whole or not at all.

    What is no plain file, such as a pipe, is written into.
    """
    from rag_memtok.store.files import write_whole

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not out.is_file():
        out.write_text(content, encoding="utf-8")
    else:
        write_whole(out.resolve(), content.encode())


def numbers(option: str, value: str, least: int = 0) -> tuple[int, ...]:
    """Whole numbers by commas, none under `least`.

    Raises:
        UsageError: something else.
    """
    try:
        found = tuple(int(one) for one in value.split(",") if one.strip())
    except ValueError:
        found = (-1,)
    if any(one < least for one in found):
        raise UsageError(
            f"{option} is {value!r}; valid: numbers of {least} or more by commas, such as 3,5,10"
        )
    return found
