"""Training an adapter.

It learns the frozen model's answers to the text, goes on where it was stopped, and says honestly
what it is.
"""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from random_adapter import says

from rag_memtok.adapt import train as adapting
from rag_memtok.adapt.checkpoint import init_state, require_ours
from rag_memtok.adapt.dataset import (
    ChunkQuestion,
    Dataset,
    Teacher,
    TrainingChunk,
    lay_out_answers,
    losses,
    pack_examples,
    sample_negatives,
    unpack_examples,
)
from rag_memtok.adapt.teach import ask_teacher, make_examples_about
from rag_memtok.adapt.train import (
    Training,
    adapt,
    make_micro_batches,
    split_chunks,
)
from rag_memtok.config import Adapt
from rag_memtok.datatypes import sha256_of_text
from rag_memtok.errors import UsageError
from rag_memtok.memory.batch import init_pooled, make_task
from rag_memtok.memory.synthetic_questions import make_questions
from rag_memtok.model import lora, precision
from rag_memtok.model.adapter_manifest import SHIPPED_READER
from rag_memtok.model.prompts import bare, qa_prompt
from rag_memtok.pipeline import adapters
from rag_memtok.store.files import ADAPTER_WORK, EARLIER_WORK

QUICK = Adapt(steps=24, batch=4, rank=4, lr=3e-3, least=0.0)  # the toy understands nothing
TEXTS = [
    f"The keeper of lamp {n} wrote a letter number {7 * n} in March.\ncolour: {c}"
    for n, c in enumerate("red green blue grey black".split())
]


def chunk_of(lm, text):
    tokens = tuple(lm.encode(text))
    vectors = init_pooled(lm, make_task("", tokens, 8)).numpy()
    return TrainingChunk(sha256_of_text(text), tokens, vectors)


@pytest.fixture(scope="module")
def chunks(toy_lm):
    return [chunk_of(toy_lm, text) for text in TEXTS]


@pytest.fixture(scope="module")
def questions(chunks):
    made = [
        ChunkQuestion(chunk.id, cue)
        for chunk, text in zip(chunks, TEXTS, strict=True)
        for cue in make_questions(text, 3, 0)
    ]
    return [
        replace(one, answers=("the keeper",) if number % 2 else ())
        for number, one in enumerate(made)
    ]


def teacher_of(lm, chunks):
    return Teacher(lm, qa_prompt(lm), {chunk.id: chunk for chunk in chunks})


def dataset_of(teacher, examples, kind="memory"):
    return Dataset(
        teacher=teacher, chunk_ids=list(teacher.chunks), examples=examples, kind=kind, seed=0
    )


def training_of(lm, teacher, examples, settings, folder):
    return Training(
        teacher=teacher,
        settings=settings,
        train=dataset_of(teacher, examples),
        dev=dataset_of(teacher, examples),
        work=folder,
        run="run",
        on_progress=lambda progress: None,
        state=init_state(lm, settings),
    )


def adapted(lm, chunks, questions, settings, folder, on_progress=lambda progress: None):
    return adapt(
        lm,
        bare(lm).digest,
        chunks=chunks,
        questions=questions,
        settings=settings,
        folder=folder,
        on_progress=on_progress,
    )


def test_an_example_is_the_frozen_models_answer_to_the_text_or_a_known_one(toy_lm, chunks):
    asked, told = (
        ChunkQuestion(chunks[0].id, "What colour?"),
        ChunkQuestion(chunks[0].id, "What colour?", ("red",)),
    )
    model, gold = teacher_of(toy_lm, chunks).make_examples([asked, told], gold=1.0, seed=0)
    assert (
        gold.origin == "gold"
        and toy_lm.decode(gold.answer[:-1]) == qa_prompt(toy_lm).reply_prefix + "red"
        and gold.answer[-1] == qa_prompt(toy_lm).end
    )
    assert gold.token_ids.shape == (len(gold.answer), 20) and np.allclose(gold.probs.sum(1), 1)
    assert (gold.token_ids[0] == model.token_ids[0]).all()  # the same prompt, and nothing said yet
    assert model.origin == "model" and model.token_ids.shape == (len(model.answer), 20)
    assert (model.token_ids[:, 0] == model.answer).all() and np.allclose(model.probs.sum(1), 1)
    again = teacher_of(toy_lm, chunks).make_examples([told], gold=0.0, seed=0)[0]
    assert again.origin == "model" and again.answer == model.answer


def test_only_what_the_teacher_gets_right_is_taught(toy_lm, chunks, tmp_path):
    """The model's own answer as the known one is understood, another is not.

    Without a known one there is nothing to be wrong.
    """
    teacher, key = teacher_of(toy_lm, chunks), chunks[0].id
    (example,) = teacher.make_examples([ChunkQuestion(key, "What colour?")], 0.0, 0)
    own = toy_lm.decode([token for token in example.answer if token != teacher.frame.end])
    asked = [
        ChunkQuestion(key, "What colour?", (own,)),
        ChunkQuestion(key, "What colour?", ("nothing of the kind",)),
        ChunkQuestion(key, "What colour?"),
    ]
    assert own.strip() and [example.f1 for example in teacher.make_examples(asked, 0.0, 0)] == [
        1.0,
        0.0,
        1.0,
    ]

    def taught(chunk_id, questions):
        return make_examples_about(
            [chunk_id],
            questions,
            teacher,
            replace(QUICK, least=0.5),
            limit=0,
            work=tmp_path,
            on_progress=lambda progress: None,
        )

    found = taught(key, asked)
    assert [example.question for example in found if example.question.chunk_id] == [
        asked[0],
        asked[2],
    ]
    with pytest.raises(UsageError, match="answers none of 1 questions"):
        taught(key, asked[1:2])
    with pytest.raises(UsageError, match="no question about"):
        taught(chunks[1].id, asked)


def test_examples_come_back_from_their_file_and_only_whole(toy_lm, chunks, questions):
    examples = teacher_of(toy_lm, chunks).make_examples(questions[:4], gold=0.5, seed=0)
    content = pack_examples(examples)
    back = unpack_examples(content, questions[:4])
    assert [(a.answer, a.origin, a.f1) for a in back] == [
        (b.answer, b.origin, pytest.approx(b.f1)) for b in examples
    ]
    assert all(np.array_equal(a.probs, b.probs) for a, b in zip(back, examples, strict=True))
    assert (
        unpack_examples(content[:-9], questions[:4]) is None
        and unpack_examples(content, questions[:3]) is None
    )


def test_what_is_scored_are_the_answers_tokens_alone(toy_lm):
    prompts = [toy_lm.embed([5, 6, 7]), toy_lm.embed([8])]
    batch = lay_out_answers(toy_lm, prompts, [(10, 11), (12, 13, 14)])
    assert batch.targets.tolist() == [10, 11, 12, 13, 14]
    assert [part.tolist() for part in batch.scored] == [[0, 0, 1, 1, 1], [2, 3, 0, 1, 2]]
    assert torch.equal(batch.fixed[1, 1:3], toy_lm.embed([12, 13]))
    assert batch.weights.tolist() == pytest.approx([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])


def test_padding_and_neighbours_change_no_loss(toy_lm, chunks, questions):
    examples = teacher_of(toy_lm, chunks).make_examples(questions[:3], gold=0.0, seed=0)
    prompts = [toy_lm.embed(list(range(3, 9 + 5 * n))) for n in range(3)]
    together = losses(toy_lm, prompts, examples)
    alone = [
        float(losses(toy_lm, [prompt], [example]))
        for prompt, example in zip(prompts, examples, strict=True)
    ]
    assert together.tolist() == pytest.approx(alone, rel=1e-4)


def test_the_divergence_is_none_from_the_text_itself(toy_lm, chunks):
    """What is left of the loss with the very prompt the teacher had.

    It is the cross-entropy and what lies outside the likeliest words.
    """
    teacher = teacher_of(toy_lm, chunks)
    question = ChunkQuestion(chunks[1].id, "What colour?")
    (example,) = teacher.make_examples([question], gold=0.0, seed=0)
    same = float(losses(toy_lm, [teacher.build_prompt(question, [chunks[1].tokens])], [example]))
    other = float(losses(toy_lm, [teacher.build_prompt(question, [chunks[0].vectors])], [example]))
    assert 0 < same < other


def test_prompts_have_their_own_chunk_among_others_and_never_one_kept_apart(
    toy_lm, chunks, questions
):
    asked = [
        *questions * 4,
        *sample_negatives(questions * 4, [chunk.id for chunk in chunks], seed=0),
    ]
    assert {bool(one.excluded) for one in asked} == {True, False} and sum(
        not one.chunk_id for one in asked
    ) == 3
    assert all(one.excluded != one.chunk_id for one in asked if one.chunk_id)
    teacher = teacher_of(toy_lm, chunks)
    dataset = dataset_of(teacher, teacher.make_examples(asked, 1.0, 0))
    sizes, seen = set(), []
    for step in range(len(asked) // 4):
        for example, keys in dataset.batch(step, 4):
            seen.append(example)
            sizes.add(len(keys))
            assert len(set(keys)) == len(keys) and example.question.excluded not in keys
            assert example.question.chunk_id in keys or not example.question.chunk_id and not keys
    assert sizes == {0, 1, 2, 3, 4, 5}
    assert len({id(example) for example in seen}) == len(seen)  # each once before any comes twice
    assert [keys for _, keys in dataset.batch(3, 4)] == [keys for _, keys in dataset.batch(3, 4)]
    alone = replace(dataset, single_share=1.0)
    assert {len(keys) for step in range(len(asked) // 4) for _, keys in alone.batch(step, 4)} == {
        0,
        1,
    }


def test_a_prompt_keeps_within_the_context(chunks):
    lm = toy.lm_of()
    lm.model.config.max_position_embeddings = 200
    teacher = teacher_of(lm, chunks)
    dataset = dataset_of(teacher, [], "text")
    example = teacher.make_examples(
        [ChunkQuestion(chunks[0].id, "What colour?", ("red",))], 1.0, 0
    )[0]
    for occasion in range(30):
        prompt = dataset.build_prompt(*dataset.sample(example, str(occasion)))
        assert len(prompt) + adapting.MAX_ANSWER <= 200


def test_passes_are_bounded_and_lose_nothing(toy_lm):
    example = teacher_of(toy_lm, []).make_examples([ChunkQuestion("", "Who?", ("she",))], 1.0, 0)[0]
    batch = [(example, torch.zeros(length, 8)) for length in (3000, 10, 1500, 1400, 90, 5000)]
    groups = make_micro_batches(batch)
    assert sorted(len(prompt) for group in groups for _, prompt in group) == [
        10,
        90,
        1400,
        1500,
        3000,
        5000,
    ]
    for group in groups:
        assert (
            len(group) == 1
            or len(group) * max(len(p) + len(one.answer) for one, p in group) <= adapting.POSITIONS
        )


def test_some_chunks_are_set_aside_by_hash(chunks):
    train, dev = split_chunks(chunks)
    assert not set(train) & set(dev) and len(train) == 4 and len(dev) == 1
    assert split_chunks(chunks[::-1])[1] == dev
    with pytest.raises(UsageError, match="too few"):
        split_chunks(chunks[:1])


@pytest.fixture(scope="module")
def made(toy_lm, chunks, questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "reader"
    steps = []
    return (
        folder,
        adapted(toy_lm, chunks, questions, QUICK, folder, steps.append),
        steps,
    )


def test_the_loss_falls_and_the_frozen_model_stays(toy_lm, chunks, questions, tmp_path):
    before = {name: value.clone() for name, value in toy_lm.model.state_dict().items()}
    steps = []
    settings = replace(QUICK, patience=100, lr=2e-2, gold=1.0)
    adapted(toy_lm, chunks, questions, settings, tmp_path, steps.append)
    found = [one.facts["loss"] for one in steps if one.stage == "training"]
    assert len(found) == 24 and np.mean(found[-4:]) < 0.7 * np.mean(found[:4])
    assert all(
        torch.equal(value, before[name]) for name, value in toy_lm.model.state_dict().items()
    )


def test_what_is_written_is_whole_private_and_loads(toy_lm, made):
    folder, manifest, steps = made
    assert {one.name for one in folder.iterdir()} == {
        lora.CONFIG,
        lora.WEIGHTS,
        lora.MANIFEST,
        "README.md",
    }
    assert {os.stat(one).st_mode & 0o777 for one in folder.iterdir()} == {0o600} and os.stat(
        folder
    ).st_mode & 0o777 == 0o700
    assert (
        lora.read_manifest(folder).dev == manifest.dev and lora.read_manifest(folder).adapter_sha256
    )
    reader = lora.load_adapter(toy_lm, folder, bare(toy_lm).digest)
    assert reader.table is toy_lm.table
    assert {one.stage for one in steps} == {"teaching", "training", "measuring"}
    measured = [(one.done, one.total) for one in steps if one.stage == "measuring"]
    assert all(0 < done <= total for done, total in measured)
    assert sum(done == total for done, total in measured) == 3  # each of the readers


def test_the_card_says_what_it_was_made_of(made):
    folder, manifest, _ = made
    card = (folder / "README.md").read_text()
    counts = manifest.trained_on
    assert (
        f"{counts['chunks']} chunks" in card
        and f"{counts['gold']} with a known answer" in card
        and f"{manifest.steps} steps" in card
    )
    assert (
        f"{100 * manifest.dev['after']:.1f}" in card
        and "Limits" in card
        and "More Information Needed" not in card
    )
    assert counts["gold"] > 0 and counts["model"] > 0 and counts["unrelated"] > 0
    assert "path" not in json.loads((folder / lora.CONFIG).read_text())["base_model_name_or_path"]


@pytest.mark.parametrize("left_by", ["this version", "an earlier version"])
def test_the_same_call_gives_the_same_and_goes_on_where_it_was_stopped(
    toy_lm, chunks, questions, tmp_path, made, left_by
):
    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.stage == "training" and progress.done == 13:
            raise Stopped

    folder, manifest, _ = made
    with pytest.raises(Stopped):
        adapted(toy_lm, chunks, questions, QUICK, tmp_path, stop)
    assert (
        lora.read_manifest(tmp_path) is None
        and (tmp_path / ADAPTER_WORK / "checkpoint.safetensors").exists()
    )
    if left_by == "an earlier version":
        (tmp_path / ADAPTER_WORK).rename(tmp_path / EARLIER_WORK)
    require_ours(tmp_path)
    steps = []
    again = adapted(toy_lm, chunks, questions, QUICK, tmp_path, steps.append)
    trained = [one.done for one in steps if one.stage == "training"]
    assert 1 < trained[0] <= 14  # not from the start
    assert again.dev == manifest.dev
    assert (tmp_path / lora.WEIGHTS).read_bytes() == (folder / lora.WEIGHTS).read_bytes()
    assert {one.name for one in tmp_path.iterdir()} == {one.name for one in folder.iterdir()}


def test_files_that_are_not_its_own_stay(toy_lm, chunks, questions, tmp_path):
    files = [tmp_path / work / name for work, name in (
        (EARLIER_WORK, "thesis.txt"), (EARLIER_WORK, "checkpoint.safetensors"),
        (ADAPTER_WORK, "notes.txt"),
    )]  # fmt: skip
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    adapted(toy_lm, chunks, questions, replace(QUICK, steps=2), tmp_path)
    assert [file.read_text() for file in files] == [file.name for file in files]
    assert [one.name for one in (tmp_path / ADAPTER_WORK).iterdir()] == ["notes.txt"]


def test_a_checkpoint_of_another_run_is_not_gone_on_from(toy_lm, chunks, questions, tmp_path):
    state = init_state(toy_lm, QUICK)
    state.step = 7
    (tmp_path / "file").write_bytes(state.pack("one run"))
    assert not init_state(toy_lm, QUICK).resume(tmp_path / "file", "another run")
    again = init_state(toy_lm, replace(QUICK, seed=5))
    assert again.resume(tmp_path / "file", "one run") and again.step == 7
    (tmp_path / "file").write_bytes(b"torn")
    assert not again.resume(tmp_path / "file", "one run")


def test_it_stops_early_and_keeps_the_best(toy_lm, chunks, questions, tmp_path):
    teacher = teacher_of(toy_lm, chunks)
    settings = replace(QUICK, steps=32, lr=1.0, patience=2)  # far too fast: the loss rises
    examples = teacher.make_examples(questions, 1.0, 0)
    training = training_of(toy_lm, teacher, examples, settings, tmp_path)
    state = training.state
    training.finish()
    assert state.step < 32 and state.waited == 2
    assert training.dev_loss() == pytest.approx(state.best_loss)


@pytest.mark.slow
def test_a_half_precision_model_learns_as_well(toy_lm, chunks, questions, tmp_path):
    half = precision.copy_in_dtype(toy_lm, torch.float16)
    teacher = teacher_of(half, chunks)
    examples = teacher.make_examples(questions, 1.0, 0)
    training = training_of(half, teacher, examples, replace(QUICK, lr=2e-2), tmp_path)
    training.finish()
    assert all(one.isfinite().all() for one in training.state.best.values())
    assert training.state.best_loss < 0.9 * training.state.first_loss


def test_a_loss_that_is_no_number_is_told(toy_lm):
    with pytest.raises(UsageError, match="nan after 0 steps"):
        init_state(toy_lm, QUICK).note(float("nan"))


def test_minutes_bound_a_run(toy_lm, chunks, questions, tmp_path):
    manifest = adapted(
        toy_lm,
        chunks,
        questions,
        replace(QUICK, steps=100_000, minutes=1e-4),
        tmp_path,
    )
    assert manifest.steps < 100


@pytest.mark.parametrize("stopped_at", [0, 3])
def test_no_step_is_thrown_away_when_the_minutes_are_over(
    toy_lm, chunks, questions, tmp_path, stopped_at
):
    """Neither the only one, nor those after the last measurement before a stop."""
    teacher = teacher_of(toy_lm, chunks)
    settings = replace(QUICK, steps=100_000, minutes=1e-4, lr=2e-2)
    examples = teacher.make_examples(questions, 1.0, 0)
    training = training_of(toy_lm, teacher, examples, settings, tmp_path)
    state = training.state
    if stopped_at:
        state.note(training.dev_loss())
        for _ in range(stopped_at):
            training.step()
            state.step += 1
        state.seconds = 60.0
    training.finish()
    assert state.step == max(1, stopped_at) and state.best_loss < state.first_loss
    ups = [one for name, one in lora.lora_weights(state.student).items() if "lora_B" in name]
    assert all(one.abs().sum() > 0 for one in ups)


def test_a_share_is_of_what_the_better_reader_of_texts_gets(
    toy_lm, chunks, questions, tmp_path, monkeypatch
):
    found = {"text": [0.3, 0.5], SHIPPED_READER: [0.8, 0.8], "after": [0.6, 0.6]}
    assert adapting.mean_f1s(found, [True, True])["share"] == pytest.approx(0.75)
    found |= {SHIPPED_READER: [0.1, 0.3]}
    assert adapting.mean_f1s(found, [True, False])["share"] == pytest.approx(2.0)
    shipped = says("the keeper", toy_lm, tmp_path / "shipped")
    monkeypatch.setattr(adapters, "SHIPPED", (shipped,))
    manifest = adapted(toy_lm, chunks, questions, replace(QUICK, steps=1), tmp_path / "made")
    dev = manifest.dev
    assert dev[SHIPPED_READER] > max(dev["text"], 0.3)  # its answer is the known one to some
    assert dev["share"] == pytest.approx(dev["after"] / dev[SHIPPED_READER])
    card = (tmp_path / "made" / "README.md").read_text()
    assert "with the adapter that ships with it, reading the text" in card
    assert f"{100 * dev[SHIPPED_READER]:.1f} the text" in adapters.describe(tmp_path / "made")


def test_what_the_teacher_said_is_said_once(toy_lm, chunks, questions, tmp_path):
    teacher = teacher_of(toy_lm, chunks)
    first = ask_teacher(teacher, questions, QUICK, tmp_path, lambda progress: None)
    silent = replace(teacher, chunks={})  # cannot answer anything
    again = ask_teacher(silent, questions, QUICK, tmp_path, lambda progress: None)
    assert [one.answer for one in again] == [one.answer for one in first]


def test_a_model_that_reads_apart_is_taught_so(toy_lm, chunks, questions, tmp_path):
    together = adapted(toy_lm, chunks, questions, QUICK, tmp_path / "together")
    lm = toy.lm_of()
    lm.model.config.rag_memtok_passages = "apart"
    apart = adapted(lm, chunks, questions, QUICK, tmp_path / "apart")
    assert (tmp_path / "apart" / lora.WEIGHTS).read_bytes() != (
        tmp_path / "together" / lora.WEIGHTS
    ).read_bytes()
    assert apart.dev["before"] == together.dev["before"]  # measured alike: alone and among others
    assert [manifest.trained_on["together"] for manifest in (together, apart)] == [5, 1]
    cards = {
        name: " ".join((tmp_path / name / "README.md").read_text().split())
        for name in ("apart", "together")
    }
    assert "its chunk alone" in cards["apart"]
    assert "its chunk among up to five" in cards["together"]


def test_one_that_reads_text_is_trained_the_same_way(toy_lm, chunks, questions, tmp_path):
    manifest = adapted(
        toy_lm,
        chunks,
        questions,
        replace(QUICK, kind="text", steps=4),
        tmp_path,
    )
    assert (
        manifest.kind == "text"
        and manifest.template_sha256 == ""
        and manifest.dev["text"] == manifest.dev["before"]
    )
    assert "text passages" in (tmp_path / "README.md").read_text()
