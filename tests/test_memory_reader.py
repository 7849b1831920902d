"""The recipe of readable memories: what a row costs, and going on where it was."""

import json
import math

import numpy as np
import pytest
import torch
import toy
from random_adapter import trained
from safetensors.torch import load_file

from rag_memtok.errors import UsageError
from rag_memtok.memory import encoder as encoders
from rag_memtok.memory.encoder import encode, set_parameters
from rag_memtok.model import lora
from rag_memtok.model.adapter_manifest import AdapterManifest, read_manifest
from rag_memtok.model.inject import inject
from rag_memtok.model.prompts import cue, qa_prompt
from training import memory_reader, text_reader
from training.lessons import Piece, TrainingExample, TrainingSet
from training.memory_reader import (
    LONGEST_QUOTE,
    SOFT,
    TEXT,
    Training,
    best_of_rank,
    embeddings_of,
    lengthened,
    measured,
    merged,
    quotation,
    stacked,
    task_of,
    upon,
)
from training.text_reader import CHECKPOINT, attending, exchange, scores_of
from training.token_costs import BASE, FEW, token_costs

TEXTS = (
    "The lamp of the harbour was repaired in March, and its keeper wrote a letter.",
    "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora.",
)
ASKED = (("Who wrote the letter?", "its keeper"), ("What is in the lamp?", None))


def parts(lm, seed=0):
    """A reader and an encoder that are no longer at their start."""
    student = lora.fuse_lora(lora.add_lora(lm, 4, seed))
    encoder = encoders.new_encoder(lm, 1, 4, 4, seed)
    draw = torch.Generator().manual_seed(seed)

    def drawn(known, size):
        return {name: torch.randn(w.shape, generator=draw) * size for name, w in known.items()}

    lora.set_weights(student, drawn(lora.lora_weights(student), 0.1))
    set_parameters(encoder, drawn(encoder.parameters, 0.05))
    return student, encoder


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_row_asks_what_prompts_with_the_vectors_ask(kind, count):
    lm = toy.lm_of(kind)
    (student, encoder), words = parts(lm), qa_prompt(lm)
    example = TrainingExample(tuple(("", t) for t in TEXTS[:count]), ASKED)
    task = task_of(lm, words, example, encoder, 4, recite=True, quoted=[ASKED[0]])
    with attending(student), torch.no_grad():
        found = scores_of(student, task.row, embeddings_of(student, encoder, task))
        vectors = [one.numpy() for one in encode(encoder, task.texts, task.windows)]
    assert int((task.row.ids == SOFT).sum()) == sum(map(len, vectors))
    wanted = []
    exchanges = [exchange(lm, words, *one) for one in ASKED]
    if count == 1:  # a chunk alone is repeated, too, in the words it is written in
        quote = quotation(lm, words, TEXTS[0], *ASKED[0])
        exchanges = [(cue(lm).suffix, [*task.texts[0], cue(lm).end]), quote, *exchanges]
        assert task.recited == len(task.texts[0]) + 1 + len(quote[1])
        assert task.exchanges == 2
    else:
        assert task.recited == task.exchanges == 0
    shared = inject(lm, words, vectors, [])[: task.row.shared]
    for asked, said in exchanges:
        whole = torch.cat([shared, lm.embed([*asked, *said[:-1]])])
        with torch.no_grad():
            hidden = student.hidden(whole[None])[0, len(shared) + len(asked) - 1 :]
            wanted.append(student.logits(hidden))
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-3, atol=1e-3)


def test_the_sentence_of_an_answer_is_asked_for_around_it():
    lm = toy.lm_of("llama")
    words = qa_prompt(lm)
    text = "The lamp is old. Its keeper, who lives alone, wrote a letter; it was sent in May. Rain."
    asked, said = quotation(lm, words, text, "When was it sent?", "in May")
    assert lm.decode(said[:-1]) == "it was sent in May." and said[-1] == words.end
    assert "When was it sent?" in lm.decode(asked)
    long = "word " * 100 + "the answer is here " + "word " * 100
    _, said = quotation(lm, words, long, "Where?", "the answer")
    assert len(said) == LONGEST_QUOTE + 1 and "the answer" in lm.decode(said)


def run_of(lm, out, steps=4):
    torch.manual_seed(0)
    student, encoder = lora.fuse_lora(lora.add_lora(lm, 4, 0)), encoders.new_encoder(lm, 1, 4, 4, 0)
    pieces = [Piece("a.md", text, (ASKED[0],)) for text in TEXTS * 2]
    lessons = TrainingSet(
        pieces=pieces, near=np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]), idle=[], seed=0
    )
    out.mkdir(exist_ok=True)
    return Training(
        lm=lm,
        student=student,
        teacher=lm,
        encoder=encoder,
        reader={},
        alone=lessons,
        found=lessons,
        steps=steps,
        lr=1e-2,
        repeated=0.5,
        quoted=1.0,
        fall=0.5,
        run="run",
        out=out,
    )


def test_a_run_that_was_stopped_goes_on_to_the_same_end(monkeypatch, tmp_path):
    lm = toy.lm_of("llama")
    monkeypatch.setattr(memory_reader, "QUESTIONS", 3)
    dev = [(lm.encode(TEXTS[0]), "Who wrote the letter?", ["its keeper"])]
    whole = run_of(lm, tmp_path / "whole")
    whole.finish(dev, 3)
    halved = run_of(lm, tmp_path / "halved")
    halved.take(), halved.take()
    halved.save()
    again = run_of(lm, tmp_path / "halved")
    assert (again.step, again.used) == (2, halved.used)
    again.finish(dev, 3)
    for name, one in whole.live.items():
        assert torch.equal(one, again.live[name]), name
    moved = [float(one.detach().abs().sum()) for n, one in whole.live.items() if "lora_B" in n]
    assert all(moved) and float(whole.encoder.projection.detach().abs().sum()) > 0
    lines = (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    assert [one["step"] for one in curve] == [3, 4]  # the end, too
    assert {"f1_text", "f1_4", "loss_2", "recited_4"} <= curve[-1].keys()


def test_a_checkpoint_of_another_run_is_refused_and_stays(tmp_path):
    lm = toy.lm_of("llama")
    first = run_of(lm, tmp_path)
    first.run = "another"
    first.save()
    kept = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(UsageError, match="of another run"):
        run_of(lm, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept


def test_texts_are_read_on_as_the_reader_below_was_measured_to_be_best(tmp_path):
    lm = toy.lm_of("llama")
    below = trained(lm, tmp_path / "below", kind="text")
    training = run_of(lm, tmp_path)
    training.reader, training.passages = load_file(below / lora.WEIGHTS), "apart"
    (tmp_path / "curve.jsonl").write_text('{"f1_text": 50}')
    memory_reader.write(training, tmp_path / "adapter")
    assert read_manifest(tmp_path / "adapter").passages == "apart"


def said_after(run, asked, said, window):
    """The loss of what is said about a text in vectors, teacher-forced, and what comes right."""
    tokens = run.lm.encode(TEXTS[0])
    vectors = [
        one.detach().numpy()
        for one in encode(run.encoder, [tokens], run.encoder.plan([tokens], window))
    ]
    prompt = inject(run.lm, run.words, vectors, [])
    shared = prompt[: len(prompt) - len(run.words.question) - len(run.words.closing)]
    whole = torch.cat([shared, run.lm.embed([*asked, *said[:-1]])])
    with torch.no_grad():
        hidden = run.student.hidden(whole[None])[0, len(shared) + len(asked) - 1 :]
        scores, told = run.student.logits(hidden), torch.tensor(said)
    right = (scores.argmax(-1) == told).double().mean()
    return float(torch.nn.functional.cross_entropy(scores, told)), 100 * float(right)


@pytest.mark.parametrize("windows", [(2, 4), (1, 3)])
def test_what_is_measured_of_a_row_is_its_teacher_forced_loss_and_what_is_repeated(
    windows, tmp_path
):
    lm = toy.lm_of("llama")
    run = run_of(lm, tmp_path)
    run.student, run.encoder = parts(lm)
    run.windows = windows
    question, answer = ASKED[0]
    found = measured(run, [(lm.encode(TEXTS[0]), question, [answer])])
    told = {f"{what}_{window}" for what in ("f1", "loss", "recited") for window in windows}
    assert found.keys() == told | {"f1_text"}
    for window in windows:
        loss, _ = said_after(run, *exchange(lm, run.words, question, answer), window)
        again = [*lm.encode(TEXTS[0]), cue(lm).end]
        _, right = said_after(run, cue(lm).suffix, again, window)
        assert found[f"loss_{window}"] == pytest.approx(loss, rel=1e-3)
        assert found[f"recited_{window}"] == pytest.approx(right)
    narrow, wide = (found[f"loss_{window}"] for window in windows)
    assert wide != pytest.approx(narrow, rel=1e-3)


def test_a_run_takes_the_windows_it_is_for_in_their_shares(tmp_path):
    run = run_of(toy.lm_of("llama"), tmp_path, steps=200)
    run.windows, run.wide_shares = (1, 3), (0.0, 1.0)
    assert {run.task().windows[0][0] for _ in range(8)} == {1}
    run.step = 100  # the second half
    assert {run.task().windows[0][0] for _ in range(8)} == {3}


def test_a_run_takes_texts_and_windows_for_a_question_in_their_shares(tmp_path):
    run = run_of(toy.lm_of("llama"), tmp_path, steps=200)
    run.windows = (3, 4)
    plain = [run.task() for _ in range(8)]
    run.used, run.zoomed = 0, 1.0
    zoomed = [run.task() for _ in range(8)]
    for one, other in zip(zoomed, plain, strict=True):
        assert sum(map(len, one.windows)) == sum(map(len, other.windows))
    lengths = [{length for own in one.windows for length in own[:-1]} for one in (*zoomed, *plain)]
    assert max(map(len, lengths[:8])) > 1 == max(map(len, lengths[8:]))
    run.used, run.texts = 0, 1.0
    texts = [run.task() for _ in range(8)]
    assert not any((one.row.ids == SOFT).any() or one.texts for one in texts)
    assert {tuple(one.contents[0]) for one in texts} <= {tuple(run.lm.encode(t)) for t in TEXTS}
    run.student, run.encoder = parts(run.lm)
    found = measured(run, [(run.lm.encode(" ".join(TEXTS)), ASKED[0][0], [ASKED[0][1]])])
    assert {"loss_3_zoomed", "f1_3_zoomed", "loss_4_zoomed"} <= found.keys()
    assert found["loss_3_zoomed"] != found["loss_3"]


def test_an_answer_is_to_be_in_part_what_the_teacher_says_to_the_text(tmp_path):
    run = run_of(toy.lm_of("llama"), tmp_path, steps=200)
    run.student, run.encoder = parts(run.lm)
    example = TrainingExample((("", TEXTS[0]),), ASKED)
    plain = run.task_of(example, 4, recite=True)
    own, exact = run.losses(plain)
    run.taught = 0.25
    task = run.task_of(example, 4, recite=True)
    losses, right = run.losses(task)
    prompt = task_of(run.lm, run.words, example, run.encoder, 4, recite=False, form=TEXT)
    with torch.no_grad():
        with attending(run.lm):
            likely = scores_of(run.lm, prompt.row, run.lm.embed(prompt.row.ids)).softmax(-1)
        with attending(run.student):
            vectors = embeddings_of(run.student, run.encoder, plain)
            said = scores_of(run.student, plain.row, vectors)[plain.recited :].log_softmax(-1)
    assert plain.as_text is None and len(likely) == len(said) > 0
    assert torch.equal(right, exact)
    torch.testing.assert_close(losses[: task.recited], own[: task.recited])
    wanted = 0.75 * own[task.recited :] - 0.25 * (likely * said).sum(-1)
    torch.testing.assert_close(losses[task.recited :], wanted, rtol=1e-4, atol=1e-4)
    assert measured(run, [(run.lm.encode(TEXTS[0]), ASKED[0][0], [ASKED[0][1]])])["f1_text"] >= 0
    # to learn from: the student moves, the teacher stays
    losses.sum().backward()
    moving = lora.lora_weights(run.student).values()
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in moving)
    assert all(one.grad is None for one in run.teacher.model.parameters())


def test_a_longer_row_of_text_may_hold_fewer_answers_to_learn_from(monkeypatch, tmp_path):
    run = run_of(toy.lm_of("llama"), tmp_path, steps=200)
    run.taught = 1.0
    example = TrainingExample((("", TEXTS[0]),), ASKED * 3)
    room = len(run.task_of(example, 4).as_text.ids) - 1  # the last does not fit beside the text
    monkeypatch.setattr(text_reader, "ROOM", room)
    task = run.task_of(example, 4)
    said = run.said_to_text(task)
    assert 0 < len(said) < len(task.row.targets)
    losses = run.losses(task)[0]
    run.taught = 0.0
    own = run.losses(run.task_of(example, 4))[0]
    assert not torch.equal(losses[: len(said)], own[: len(said)])
    torch.testing.assert_close(losses[len(said) :], own[len(said) :])


def test_a_token_costs_its_mean_bits_and_one_seen_seldom_what_such_do():
    lm = toy.lm_of("llama")
    texts = [*TEXTS, *TEXTS, "Tee"]
    bits, seen = torch.zeros(len(lm.table)), torch.zeros(len(lm.table))
    for text in texts:
        tokens = lm.encode(text)
        opening = [lm.eos if lm.bos is None else lm.bos, *tokens[:-1]]
        with torch.no_grad():
            likely = lm.logits(lm.hidden(lm.embed(opening)[None])[0]).log_softmax(-1)
        for place, token in enumerate(tokens):
            bits[token] -= likely[place, token] / math.log(2)
            seen[token] += 1
    seldom = (seen > 0) & (seen < FEW)
    rare = bits[seldom].sum() / seen[seldom].sum()
    found = token_costs(lm, texts)
    assert found.dtype == torch.float16
    wanted = (bits + FEW * rare) / (seen + FEW) + BASE
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=2e-3)
    assert bool((seen >= FEW).any()) and float(wanted[seen == 0].std()) < 1e-5


def test_an_encoder_goes_on_with_longer_windows_from_what_it_was_for_shorter_ones():
    lm, texts = toy.lm_of("llama"), [toy.lm_of("llama").encode(TEXTS[0])]
    _, short = parts(lm)
    long = encoders.new_encoder(lm, 1, 4, 8, 1)
    begun = {name: one.detach() for name, one in short.parameters.items()}
    begun[encoders.PROJECTION] = lengthened(begun[encoders.PROJECTION], 8)
    set_parameters(long, begun)
    assert long.max_window == 8
    windows = short.plan(texts, 4)
    torch.testing.assert_close(encode(long, texts, windows)[0], encode(short, texts, windows)[0])
    assert lengthened(begun[encoders.PROJECTION], 4).shape[0] == 8  # never cut


def test_one_adapter_reads_as_the_one_upon_the_other(tmp_path):
    lm, text = toy.lm_of("llama"), lora.add_lora(toy.lm_of("llama"), 2, 1)
    draw = torch.Generator().manual_seed(1)
    for one in lora.lora_weights(text).values():
        one.data = 0.1 * torch.randn(one.shape, generator=draw)
    bond = AdapterManifest(
        kind="text", model="toy", weights_sha256=lm.identity.weights_sha256,
        tokenizer_sha256=lm.identity.tokenizer_sha256, template_sha256="", adapter_sha256="",
        steps=1, frame_sha256=qa_prompt(lm).digest,
    )  # fmt: skip
    for name, content in lora.adapter_files(text, bond).items():
        (tmp_path / name).write_bytes(content)
    second, asked = lora.add_lora(merged(lm, tmp_path), 3, 0), torch.tensor([lm.encode(TEXTS[0])])
    for one in lora.lora_weights(second).values():
        one.data = 0.1 * torch.randn(one.shape, generator=draw)
    both = stacked(lm, load_file(tmp_path / lora.WEIGHTS), second)
    with torch.no_grad():
        wanted, without = (one.hidden(one.embed(asked)) for one in (second, text))
        assert (wanted - without).abs().max() > 0.1
        torch.testing.assert_close(both.hidden(both.embed(asked)), wanted, rtol=1e-3, atol=1e-3)
    # and what it reads beside the one for texts comes out of it again
    again = upon(lora.lora_weights(both), load_file(tmp_path / lora.WEIGHTS), 3)
    lora.set_weights(second, again)
    with torch.no_grad():
        torch.testing.assert_close(second.hidden(second.embed(asked)), wanted, rtol=1e-3, atol=1e-3)


def test_an_adapter_of_a_smaller_rank_is_the_nearest_one():
    draw = torch.Generator().manual_seed(2)
    down, up = torch.randn(6, 20, generator=draw), torch.randn(30, 6, generator=draw)
    less_down, less_up = best_of_rank(down, up, 4)
    assert (less_down.shape, less_up.shape) == ((4, 20), (30, 4))
    left_out = torch.linalg.svdvals(up @ down)[4:6]
    apart = torch.linalg.matrix_norm(up @ down - less_up @ less_down)
    torch.testing.assert_close(apart, left_out.norm())
    same_down, same_up = best_of_rank(down, up, 6)
    torch.testing.assert_close(same_up @ same_down, up @ down, rtol=1e-4, atol=1e-4)
