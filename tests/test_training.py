"""The recipe of the embedded models: its frame, its scores, its data's cleanliness.

Every script is run on a slice, too (slow).
"""

import copy
import hashlib
import importlib
import json
import lzma
import os
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from rag_memtok.config import Memorize
from rag_memtok.model.adapter_manifest import read_manifest
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import bare
from training import (
    cuts,
    evaluate,
    examples,
    facts,
    frame,
    lessons,
    notes,
    reader,
    sources,
    tokenizer,
)
from training.optimise import Optimizer, Schedule

ROOT = Path(__file__).parent.parent

DATA = Path(os.environ.get("RAG_MEMTOK_DATA", "/nonexistent"))
SENTENCES = [
    "The lighthouse of Aldo was built in 1887 by the engineer Marta Ruiz.",
    "It stands on the northern cape, and its light is seen for thirty miles.",
    "In 1921 a storm broke the lantern, which was repaired within a year.",
    "El faro fue declarado monumento nacional; hoy lo visitan muchas personas.",
    "The keeper, John Smith, wrote a diary of which three volumes are left.",
]
SCRIPTS = (
    "tokenizer",
    "prepare",
    "train",
    "evaluate",
    "retriever",
    "retrieval",
    "export",
    "family",
    "reader",
    "memory_reader",
    "text_reader",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in transformers' format."""
    out = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(tokenizer.train(SENTENCES * 20, 400), out)
    return out


@pytest.fixture
def made(folder: Path) -> frame.Frame:
    """The frame over the small tokenizer."""
    return frame.Frame(folder / "tokenizer.json")


def test_special_tokens_come_first(folder: Path) -> None:
    """Ids 0 to 6 are the special tokens, in order."""
    assert [
        Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(t) for t in frame.SPECIAL
    ] == list(range(7))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a\r\n\tb  ",
        "¿Qué? ñ 日本 🎉\u200b",
        "<|eot_id|> <|memory|>",
        "\x00\x7f",
        "x" * 300,
    ],
)
def test_every_text_round_trips(made: frame.Frame, text: str) -> None:
    """Content comes back byte for byte, special-looking text included."""
    assert made._text.decode(list(made.text(text)), skip_special_tokens=False) == text
    assert not set(made.text(text)) & set(range(7))


def test_prompt_is_the_chat_template(made: frame.Frame, folder: Path) -> None:
    """Decoded, the pieces are what the chat template renders.

    There is one beginning of text and special-looking text is split.
    """
    from transformers import AutoTokenizer

    passages, question = ["One <|eot_id|> two.", SENTENCES[0]], "Who built it?"
    ids = made.prompt(passages, question)
    content = "".join(f"Document:\n{p}\n\n" for p in passages) + f"Question:\n{question}\n"
    content += (
        "Answer from the documents in a few words. If they do not say, answer: not in the "
        "documents."
    )
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert made._frame.decode(list(ids), skip_special_tokens=False) == rendered
    assert ids.count(frame.BOS) == 1 and ids.count(frame.EOT) == 1


def test_first_turn_is_the_prompt_that_ask_builds(made: frame.Frame) -> None:
    """Of several turns, the first is exactly a single question.

    Only the assistant's tokens are marked.
    """
    row = made.conversation(SENTENCES[:2], [("When?", "1887"), ("Who?", frame.REFUSAL)])
    prompt = made.prompt(SENTENCES[:2], "When?")
    assert row.ids[: len(prompt)] == prompt and not any(row.answer[: len(prompt)])
    assert (
        made.decode([i for i, a in zip(row.ids, row.answer, strict=True) if a])
        == frame.LEAD + "1887" + frame.LEAD + frame.REFUSAL
    )


def test_a_source_is_scored_by_the_best_of_its_right_answers() -> None:
    """Exact match and F1 are those of `eval`: no words at all are the same as no words at all."""
    asked = [
        examples.Example(
            source="cats",
            question="Which?",
            gold="",
            distractors=(),
            answers=golds,
            answerable=True,
        )
        for golds in (("cat", "the dog"), ("dog",), ("(the)",), ("red",))
    ]
    said = ["A dog!", "a black dog", "", frame.REFUSAL]
    assert evaluate.tally(asked, said) == {
        "cats": {"n": 4, "em": 50.0, "f1": 66.7, "refused": 25.0}
    }


def test_cuts_keep_the_answer() -> None:
    """A cut is a run of the context with the answer in it, of about the length asked for."""
    context = " ".join(SENTENCES * 4)
    for seed in range(50):
        rng = random.Random(seed)
        piece = cuts.cut(context, "1921", rng.randint(80, 400), rng)
        assert piece in context and "1921" in piece and len(piece) < 700


def test_facts_answer_their_questions() -> None:
    """Every answer stands in its sentence."""
    known = facts.Words(
        ("Aldo", "Marta", "Lisbon", "Ruiz", "Kyoto", "Nairobi"),
        ("copper", "window", "bridge", "garden"),
    )
    for seed in range(300):
        sentence, question, answer = facts.fact(random.Random(seed), known)
        assert answer.lower() in sentence.lower()
        assert "{" not in sentence + question + answer


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Each script says what it does."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"training.{script}").main()
    assert end.value.code == 0 and "usage" in capsys.readouterr().out


def words_of(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"\w+", text.lower())


@pytest.mark.skipif(not DATA.exists(), reason="RAG_MEMTOK_DATA is not set")
def test_prose_holds_no_run_of_a_dev_passage() -> None:
    """No twelve words in a row of a SQuAD dev passage stand in a sample of the prose."""
    runs = set()
    for row in sources.questions(DATA, "squad11_train_part", "dev"):
        found = words_of(row["context"])
        runs |= {tuple(found[i : i + 12]) for i in range(len(found) - 11)}
    assert len(runs) > 10_000
    seen = 0
    for _, text in sources.prose(DATA, 3, sources.Share(wikipedia=0, wikinews=0.5)):
        found = words_of(text)
        assert not any(tuple(found[i : i + 12]) in runs for i in range(len(found) - 11))
        seen += len(found)
    assert seen > 50_000


def small_data(root: Path) -> Path:
    """A data folder of made-up prose and questions, in the real layout."""
    rng = random.Random(0)
    (root / "text").mkdir(parents=True)
    (root / "qa").mkdir()
    documents = [
        "A heading\n\n" + " ".join(rng.choices(SENTENCES, k=10)) + f"\n\nNumber {i}."
        for i in range(400)
    ]
    for source in ("wikipedia_en-1", "python_docs_es", "wikinews_en"):
        with lzma.open(root / "text" / f"{source}.jsonl.xz", "wt") as out:
            out.writelines(
                json.dumps({"text": d, "path": str(i)}) + "\n" for i, d in enumerate(documents)
            )
    asked = [("When was the lighthouse built?", "1887"), ("Who was the keeper?", "John Smith")]
    asked_of = (*sources.SPAN_QUESTIONS, *sources.FREE_QUESTIONS, sources.UNANSWERABLE)
    for source in (*asked_of, "dolly_nocontext"):
        with lzma.open(root / "qa" / f"{source}.jsonl.xz", "wt") as out:
            for i in range(24):
                question, answer = asked[i % 2]
                row = {
                    "context": " ".join(rng.sample(SENTENCES, 5)),
                    "question": question,
                    "answers": [answer],
                }
                row["split"] = "train" if i % 3 else "dev"
                if source == sources.UNANSWERABLE:
                    row |= {"impossible": True, "answers": ["unanswerable"]}
                out.write(json.dumps(row) + "\n")
    return root


def test_queries_and_keys_stay_within_their_bound(toy_lm: LM) -> None:
    model = copy.deepcopy(toy_lm.model).requires_grad_(True)
    optimizer = Optimizer(model, Schedule(muon=1.0, warmup=1, bound=0.055))
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step(0, 0.0)
    sizes = {
        name: float(weight.detach().square().mean().sqrt())
        for name, weight in model.named_parameters()
        if weight.ndim == 2
    }
    bounded = [size for name, size in sizes.items() if "q_proj" in name or "k_proj" in name]
    assert (
        bounded == pytest.approx([0.055] * 4)
        and sizes["model.layers.0.self_attn.v_proj.weight"] > 0.055
    )


@pytest.mark.slow
def test_scripts_on_a_slice(tmp_path: Path) -> None:
    """Both roads, end to end on made-up data.

    That is tokenizer, packing, ten steps, a restart, reading, export, measuring, retriever.
    """

    def script(name: str, *args: object) -> str:
        call = [sys.executable, "-m", f"training.{name}", *map(str, args)]
        done = subprocess.run(
            call,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    data, packed, run, out = (
        small_data(tmp_path / "data"),
        tmp_path / "packed",
        tmp_path / "run",
        tmp_path / "out",
    )
    script("tokenizer", data, packed, "--vocabulary", 400, "--megabytes", 100)
    script("prepare", data, packed, "--megabytes", 100)
    tiny = ("--shape", "tiny", "--rows", 2, "--length", 320, "--save-minutes", 10)
    # the road of the GPU, on this device
    script("train", packed, run, *tiny, "--max-steps", 10, "--workers", 1)
    assert "from step 10" in script("train", packed, run, *tiny, "--max-steps", 2)
    script(
        "train",
        packed,
        run,
        *tiny,
        "--stage",
        "read",
        "--weights",
        run / "pretrain",
        "--max-steps",
        2,
    )
    script("export", run / "read", packed, out, "--passages", "apart")
    assert all(path.stat().st_size <= 15_000_000 for path in out.iterdir())
    config = json.loads((out / "config.json").read_text())
    assert (config["rag_memtok_passages"], config["rag_memtok_frame"]) == ("apart", "plain")
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.json"))
    scores = script(
        "evaluate",
        out,
        data,
        "--val",
        packed / "val.bin",
        "--questions",
        2,
        "--baseline",
        "--sources",
        "nq_swap",
    )
    assert "bits per byte" in scores
    reader = ("text_reader", data, "--out", tmp_path / "reader", "--model", "mini", "--rank", 4)
    script(*reader, "--steps", 2)
    assert "from step 2" in script(*reader, "--steps", 3)
    assert read_manifest(tmp_path / "reader" / "adapter").steps == 3
    memory = ("memory_reader", data, "--reader", tmp_path / "reader" / "adapter", "--model", "mini")
    memory += ("--out", tmp_path / "memory", "--layers", 2, "--every", 1, "--dev", 4, "--steps", 1)
    script(*memory)
    assert "from step 1" in script(*memory)
    made = tmp_path / "memory" / "adapter"
    own = hashlib.sha256((made / "encoder.safetensors").read_bytes()).hexdigest()
    assert read_manifest(made).encoder_sha256 == own
    script("retriever", packed, tmp_path / "retriever", "--max-steps", 5, "--batch", 32)
    assert "Recall@1" in script("retrieval", tmp_path / "retriever", data, "--lm", out)
    same_embeddings(tmp_path / "retriever")


def test_the_export_that_is_documented_is_the_one_that_ships() -> None:
    """The model's name and how it reads are in its config.json because the command says them."""
    shipped = json.loads((ROOT / "rag_memtok/mini/lm/config.json").read_text())
    said = f"--id {shipped['rag_memtok_id']} --passages {shipped['rag_memtok_passages']} "
    for path in ("training/README.md", "training/export.py"):
        (command,) = (
            line
            for line in (ROOT / path).read_text().splitlines()
            if "python -m training.export" in line
        )
        assert said in command


def test_notice_names_all_weights_with_their_cards() -> None:
    """And each card its licence, and the package both."""
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for path in (ROOT / "rag_memtok").rglob("*.safetensors")
    }
    assert folders and all(
        f"{folder}/README.md" in (ROOT / "NOTICE").read_text() for folder in folders
    )
    assert all(
        "license: cc-by-sa-4.0" in (ROOT / folder / "README.md").read_text() for folder in folders
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0 AND CC-BY-SA-4.0"  # of what a wheel holds


@pytest.mark.skipif(not DATA.exists(), reason="RAG_MEMTOK_DATA is not set")
def test_no_lesson_holds_a_run_of_what_is_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No twelve words in a row of a dev or test row stand in a sample of the lessons."""
    sets = ("squad11_train_part", "nq_swap")
    monkeypatch.setattr(lessons, "TAKEN", dict.fromkeys(sets, 600))
    monkeypatch.setattr(lessons, "NOTES", 50)
    runs = set()
    for path in (DATA / "qa").glob("*.xz"):
        for row in sources.read(path):
            if row["split"] != "train":
                found = words_of(f"{row['context']} {row['question']}")
                runs |= {tuple(found[i : i + 12]) for i in range(len(found) - 11)}
    writer = notes.Writer(random.Random(0), facts.words(SENTENCES))
    forbidden = lessons.measured_on(DATA, [])
    made = lessons.all_pieces(DATA, forbidden, writer, lambda text: len(text) // 4, 0)
    assert len(made) > 400 and len(runs) > 100_000
    for one in made:
        for text in (one.text, *(question for question, _ in one.asked)):
            found = words_of(text)
            assert not any(tuple(found[i : i + 12]) in runs for i in range(len(found) - 11))


def same_embeddings(folder: Path) -> None:
    """sentence-transformers and plain numpy give the same vectors."""
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    part = next(folder.rglob("model.safetensors"))
    ids = (
        Tokenizer.from_file(str(part.parent / "tokenizer.json"))
        .encode(SENTENCES[0], add_special_tokens=False)
        .ids
    )
    plain = next(iter(load_file(part).values())).astype(np.float32)[ids].mean(0)
    assert (
        np.abs(model.encode(SENTENCES[0]).astype(np.float32) - plain / np.linalg.norm(plain)).max()
        < 2e-3
    )


def test_a_reply_is_led_as_the_chat_template_says(made: frame.Frame, folder: Path) -> None:
    """An answer begins with the token that stands in a passage.

    A recital begins as the document does.
    """
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    user = {"role": "user", "content": "Who?"}
    turn = words.apply_chat_template(
        [user, {"role": "assistant", "content": "Anna"}], tokenize=False
    )
    assert turn.endswith("\n\n" + frame.LEAD + "Anna<|eot_id|>")
    assert (
        made._frame.decode(list(made.reply("Anna").ids), skip_special_tokens=False)
        == frame.LEAD + "Anna<|eot_id|>"
    )
    assert made.decode(list(made.recital("Anna").ids)) == "Anna"


def test_a_readers_chunks_are_of_train_questions_that_the_model_answers_and_are_written_once(
    tmp_path: Path, toy_lm: LM
) -> None:
    """Chunks of train questions alone, each with the questions it answers.

    Memories already in a file are not written again.
    """
    (tmp_path / "qa").mkdir()
    for source in (*sources.SPAN_QUESTIONS, *sources.FREE_QUESTIONS, sources.UNANSWERABLE):
        context = (
            f"The lamp of {source} was lit by Ana in March. Its keeper wrote a letter to the "
            "harbour about it."
        )
        rows = [
            {"context": context, "question": "Who lit it?", "answers": ["Ana"], "split": "train"}
        ]
        rows += [
            {"context": context, "question": "Who else?", "answers": ["keeper"], "split": "dev"}
        ]
        with lzma.open(tmp_path / "qa" / f"{source}.jsonl.xz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    some = reader.chosen(toy_lm, tmp_path, 3, 64, least=0.0, seed=0)
    assert len({one.key for one in some}) == 3
    assert [question.question for one in some for question in one.questions] == ["Who lit it?"] * 3
    assert all(question.chunk_id == one.key for one in some for question in one.questions)
    assert reader.chosen(toy_lm, tmp_path, 3, 64, least=1.1, seed=0) == []
    assert reader.kept(tmp_path / "chosen.jsonl", toy_lm, lambda: some) == some
    assert reader.kept(tmp_path / "chosen.jsonl", toy_lm, lambda: []) == some
    settings = Memorize(template="bare", tokens_per_vector=8, steps=3, codec="float16", batch=4)
    first = reader.written(
        toy_lm, bare(toy_lm), some, settings, (8, 4), tmp_path / "memories", (0, 1)
    )
    (file,) = (tmp_path / "memories").iterdir()
    stamp = file.stat().st_mtime_ns
    again = reader.written(
        toy_lm, bare(toy_lm), some, settings, (8, 4), tmp_path / "memories", (0, 1)
    )
    assert file.stat().st_mtime_ns == stamp
    assert set(first) == {one.key for one in some} and all(
        np.array_equal(first[key], again[key]) for key in first
    )
    assert (
        reader.written(toy_lm, bare(toy_lm), some, settings, (8, 4), tmp_path / "memories", (1, 2))
        == {}
    )
