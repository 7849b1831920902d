"""The recipe of the reader of text: its notes, its lessons, its rows, and going on."""

import functools
import json
import lzma
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy

from rag_memtok.adapt.checkpoint import init_state
from rag_memtok.config import Adapt
from rag_memtok.errors import UsageError
from rag_memtok.model import lora
from rag_memtok.model.adapter_manifest import read_manifest
from rag_memtok.model.inject import inject
from rag_memtok.model.prompts import REFUSAL, qa_prompt, source_line
from training import text_reader
from training.facts import Words
from training.lessons import (
    CAPACITIES,
    TAKEN,
    Forbidden,
    Mix,
    Piece,
    TrainingExample,
    TrainingSet,
    all_pieces,
    pieces_of,
    says_all,
)
from training.notes import Writer
from training.text_reader import Training, attending, loss_of, row_of
from training.vocabulary import FOREIGN

WORDS = Words(
    ("Aldo", "Marta", "Lisbon", "Ruiz", "Kyoto", "Nairobi", "Vienna", "Ingrid", "O'Neill"),
    ("copper", "window", "bridge", "garden", "harbour", "engine", "letter"),
)
HEADS = "(Item|Name|Room|Event|Ingredient)"
# what tells a table's form from the others
FORMS = {
    "markdown": re.compile(r"^\| -{3}", re.MULTILINE),
    "tabs": re.compile(rf"^{HEADS}\t"),
    "commas": re.compile(rf"^{HEADS},"),
    "pairs": re.compile(rf"^{HEADS}: [^\n]*; "),
    "json": re.compile(r'^{"'),
}
LAYOUTS = ("prose", "listed", "sections", "numbered", "mixed")


def watched(name):
    def layout(self, some):
        made = getattr(Writer, name)(self, some)
        self.layout = name
        return made

    return layout


# says which layout was the last to be done
Watched = type("Watched", (Writer,), {name: watched(name) for name in LAYOUTS})


def notes():
    """Some hundred notes, each with its layout or, of a table, its form."""
    for seed in range(6):
        writer = Watched(random.Random(seed), WORDS)
        for number in range(150):
            writer.layout = ""
            text, asked = writer.note(3 + number % 7)
            forms = [form for form, mark in FORMS.items() if mark.search(text)]
            (layout,) = [writer.layout] if writer.layout else forms
            yield layout, text, asked


def test_what_a_note_is_asked_it_says_word_for_word_in_every_layout():
    seen = Counter()
    for layout, text, asked in notes():
        assert asked and all(answer and answer in text for _, answer in asked), (layout, text)
        seen[layout] += 1
    assert {*seen} == {*LAYOUTS, *FORMS}
    assert min(seen.values()) >= 20


def test_no_note_is_asked_the_same_twice():
    for _, text, asked in notes():
        questions = [question.lower() for question, _ in asked]
        assert len({*questions}) == len(questions), (text, asked)


@pytest.mark.parametrize("seed", range(30))
def test_a_facts_answers_stand_in_its_sentence_and_in_its_line(seed):
    writer = Writer(random.Random(seed), WORDS)
    made = [kind() for kind in writer.kinds] + [writer.foreign(tongue) for tongue in FOREIGN]
    for fact in made:
        assert fact.asked and "{" not in fact.sentence + fact.line
        for question, answer in fact.asked:
            assert answer and answer in fact.sentence and answer in fact.line, fact
            assert "{" not in question, fact


def counted(text):
    return len(text.split())


def cut(context, rows, seed):
    """The pieces of a context, and the capacity that was drawn for them."""
    made = pieces_of(context, rows, counted, random.Random(seed))
    return made, random.Random(seed).choice(CAPACITIES)


def told(sentences):
    """As many sentences, each with a value that no other has, and `lamp`."""
    return [f"In the year of lamp {n} the keeper K{n:03} wrote to H{n:03}." for n in sentences]


@pytest.mark.parametrize("seed", range(20))
def test_a_question_is_asked_once_of_the_chunk_that_answers_it(seed):
    context = " ".join(told(range(60)))
    rows = [
        {"context": context, "question": f" Who wrote to H{n:03}? ", "answers": [f" K{n:03}"]}
        for n in range(0, 60, 7)
    ]
    made, capacity = cut(context, rows, seed)
    assert len(made) > 2 and len({one.source for one in made}) == 1
    assert all(counted(one.text) <= capacity and one.text in context for one in made)
    asked = [pair for one in made for pair in one.asked]
    assert sorted(asked) == [(f"Who wrote to H{n:03}?", f"K{n:03}") for n in range(0, 60, 7)]
    assert all(answer in one.text for one in made for _, answer in one.asked)


@pytest.mark.parametrize("seed", range(8))
def test_of_chunks_with_the_answer_that_is_asked_which_shares_most_words(seed):
    context = " ".join([*told(range(30)), "A zebra was at the lamp.", *told(range(30, 60))])
    row = {"context": context, "question": "At what was the zebra?", "answers": ["lamp"]}
    (made,), _ = cut(context, [row], seed)
    assert "zebra" in made.text and made.asked == (("At what was the zebra?", "lamp"),)


def test_an_answer_in_words_of_its_own_needs_a_context_of_one_chunk():
    rows = [
        {"question": "Who?", "answers": ["x" * 81, "somebody else"]},
        {"question": "How long?", "answers": ["x" * 81]},
        {"question": "Why?", "answers": []},
        {"question": "Where?", "answers": ["the moon"], "impossible": True},
    ]
    for count, known in ((3, [("Who?", "somebody else"), ("Where?", None)]), (60, [])):
        context = " ".join(told(range(count)))
        made, _ = cut(context, [row | {"context": context} for row in rows], 0)
        asked = [pair for one in made for pair in one.asked]
        assert asked == (known or [("Where?", None)])


def test_twelve_words_in_a_row_are_found_in_any_case_and_punctuation_and_eleven_are_not():
    words = "the lamp of the harbour was repaired by its keeper in march".split()
    assert len(words) == 12
    forbidden = Forbidden(["Once, it is said, " + " ".join(words) + ", and it has shone since."])
    shouted = (
        "Did you know?\nTHE lamp (of the harbour) -- was 'repaired': by\n\nIts keeper, in MARCH"
    )
    assert forbidden.touches(shouted) and forbidden.touches("of old " + " ".join(words) + " too")
    for part in (words[1:], words[:-1], [*words[:6], "not", *words[6:]]):
        assert not forbidden.touches("Elsewhere " + " ".join(part) + " or so they tell us here")
    assert not Forbidden([" ".join(words[1:])]).touches(" ".join(words))


COUNT = 14


def school(seed=0, **mix):
    """Lessons of pieces in a ring; each also says, aloud, what its successor is asked first.

    The piece n is asked twice about itself and once what it does not say.
    """
    pieces = []
    for n in range(COUNT):
        text = f"Page {n:02} has value{n:02} and other{n:02}. VALUE{(n + 1) % COUNT:02}!"
        asked = (
            (f"Value of {n:02}?", f"value{n:02}"),
            (f"Other of {n:02}?", f"other{n:02}"),
            (f"Moon of {n:02}?", None),
        )
        pieces.append(Piece(f"file{n:02}.md", text, asked))
    ring = [[(n + step) % COUNT for step in (1, -1, 2, -2, 3, -3)] for n in range(COUNT)]
    near = np.array(ring, np.int32)
    return TrainingSet(pieces=pieces, near=near, idle=["Hello", "ok"], seed=seed, mix=Mix(**mix))


def test_a_lesson_is_drawn_by_the_seed_and_its_number_alone():
    first, again = school(), school()
    backwards = {number: again.example(number) for number in reversed(range(60))}
    assert all(first.example(number) == backwards[number] for number in range(60))
    assert [first.example(n) for n in range(60)] != [school(1).example(n) for n in range(60)]


def test_every_piece_comes_first_once_in_a_turn():
    alone = school(alone=1.0, gone=0.0)
    turns = [
        [alone.example(number).passages for number in range(start, start + COUNT)]
        for start in (0, COUNT, 2 * COUNT)
    ]
    for turn in turns:
        assert sorted(text for ((_, text),) in turn) == [one.text for one in alone.pieces]
    names = Counter(source for turn in turns for ((source, _),) in turn)
    assert {*names} <= {"", *(one.source for one in alone.pieces)} and 0 < names[""] < COUNT * 2
    assert len({tuple(text for ((_, text),) in turn) for turn in turns}) == 3


def test_as_many_passages_as_the_mix_says():
    for mix, counts in (
        ({"alone": 1.0}, {1}),
        ({"alone": 0.0, "few": 1.0}, {2, 3}),
        ({"alone": 0.0, "few": 0.0}, {4, 5}),
    ):
        made = [school(**mix).example(number) for number in range(60)]
        assert {len(one.passages) for one in made} == counts
        assert all(len({*one.passages}) == len(one.passages) for one in made)


@pytest.mark.parametrize("gone", [0.0, 1.0])
def test_what_is_asked_without_an_answer_stands_in_none_of_the_passages(gone):
    lessons = school(absent=1.0, gone=gone, idle=0.0)
    answers = {question: answer for one in lessons.pieces for question, answer in one.asked}
    refused = 0
    for number in range(300):
        lesson = lessons.example(number)
        texts = " ".join(text for _, text in lesson.passages)
        for question, answer in lesson.asked:
            if answer is not None:
                assert answer == answers[question] and answer in texts
            elif answers[question] is not None:  # of a piece that is near
                assert answers[question] not in texts.lower()
                refused += 1
        assert len({question for question, _ in lesson.asked}) == len(lesson.asked)
        assert sum("Moon" in question for question, _ in lesson.asked) <= 1  # of the first piece
    assert refused > 200


def test_the_question_of_a_made_note_is_not_refused_where_another_note_has_all_its_words():
    asked = ("Who is the plumber?", "Aldo phone", "Ruiz phone", "Who is it?")
    texts = ("Plumber: Marta", "Plumber: Aldo, 555-1", "Plumber: Ruiz, 555-2", "Nobody knows.")
    answers = ("Marta", "555-1", "555-2", "Nobody")
    pieces = [Piece("", texts[n], ((asked[n], answers[n]),), made=True) for n in range(4)]
    near = np.array([[(n + step) % 4 for step in (1, 2, 3)] for n in range(4)], np.int32)
    lessons = TrainingSet(
        pieces=pieces, near=near, idle=[], seed=0, mix=Mix(alone=1.0, absent=1.0, gone=1.0)
    )
    made = [lessons.example(number) for number in range(80)]
    seen = {one.passages[0][1] for one in made if (asked[0], None) in one.asked}
    assert seen == {"Nobody knows."} and {one.passages[0][1] for one in made} == {*texts}


def test_a_lesson_has_at_most_so_many_questions_and_those_of_its_first_piece_before_others():
    many = tuple((f"Question {k}?", "lamp") for k in range(20))
    pieces = [
        Piece(f"{n}", f"lamp {n}", tuple((f"{n}: {q}", a) for q, a in many)) for n in range(COUNT)
    ]
    near = school().near
    lessons = TrainingSet(
        pieces=pieces, near=near, idle=["Hello"], seed=0, mix=Mix(alone=0.0, absent=1.0, idle=1.0)
    )
    for number in range(100):
        asked = lessons.example(number).asked
        assert len(asked) == 7  # six and one idle; all near ones are answered by every piece
        assert len({question.partition(":")[0] for question, _ in asked[:6]}) == 1
        assert asked[-1] == ("Hello", None)
    few = TrainingSet(
        pieces=school().pieces,
        near=near,
        idle=["Hello"],
        seed=0,
        mix=Mix(alone=0.0, few=0.0, absent=1.0, idle=1.0),
    )
    counts = [len(few.example(number).asked) for number in range(100)]
    assert max(counts) == few.most == 8
    assert sum(answer is not None for _, answer in few.example(0).asked) > 2  # of several pieces


TEXTS = (
    "The lamp of the harbour was repaired in March.",
    "La empanada lleva cebolla, huevo y aceitunas.",
    "Its keeper wrote a letter.",
)
ASKED = (("who wrote the letter?", "its keeper"), ("what?", None), ("When was it?", "in March"))


def taught(lm, rank=4, scale=0.1):
    """A student of `lm` with some random weights, as if it had been trained."""
    student = lora.add_lora(lm, rank, 0)
    generator = torch.Generator().manual_seed(1)
    values = {
        name: torch.randn(one.shape, generator=generator) * scale
        for name, one in lora.lora_weights(student).items()
    }
    lora.set_weights(student, values)
    return student


def gradients(student, loss):
    """The loss as a number, and its gradients by the weight's name."""
    own = lora.lora_weights(student)
    made = torch.autograd.grad(loss, list(own.values()))
    return float(loss.detach()), dict(zip(own, made, strict=True))


def asked_apart(lm, words, lesson):
    """The loss of the answers, each after the prompt that `ask` builds for its question."""
    passages = [[*source_line(lm, words, name), *lm.encode(text)] for name, text in lesson.passages]
    total = torch.zeros(())
    for question, answer in lesson.asked:
        prompt = inject(lm, words, passages, lm.encode(question))
        said = [*lm.encode(words.reply_prefix + (REFUSAL if answer is None else answer)), words.end]
        hidden = lm.hidden(torch.cat([prompt, lm.embed(said[:-1])])[None])
        total = total + torch.nn.functional.cross_entropy(
            lm.logits(hidden[0, len(prompt) - 1 :]), torch.tensor(said), reduction="sum"
        )
    return total


def alike(one, other, within):
    """Whether two tensors differ by less than a share of their size."""
    return float((one - other).norm()) <= within * float(other.norm())


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("named", [False, True])
def test_questions_in_a_row_cost_what_they_cost_in_prompts_of_their_own(kind, count, named):
    lm = toy.lm_of(kind)
    student, words = taught(lm), qa_prompt(lm)
    passages = [(f"file {n}.md" if named else "", TEXTS[n]) for n in range(count)]
    lesson = TrainingExample(tuple(passages), ASKED)
    row = row_of(student, words, lesson)
    assert ("Source" in lm.decode(row.ids.tolist())) == named and len(row.own) == len(ASKED)
    before = student.model.config._attn_implementation
    with attending(student):
        found, own = gradients(student, loss_of(student, row))
    assert student.model.config._attn_implementation == before != "rows"
    wanted, apart = gradients(student, asked_apart(student, words, lesson))
    assert found == pytest.approx(wanted, rel=1e-3)
    assert all(alike(own[name], apart[name], 1e-3) for name in apart)


def test_what_does_not_fit_in_a_row_is_left_out_but_never_the_first_question(monkeypatch, toy_lm):
    words, lesson = qa_prompt(toy_lm), TrainingExample((("", TEXTS[0]),), ASKED)
    whole = row_of(toy_lm, words, lesson)
    for room, kept in ((len(whole.ids), 3), (len(whole.ids) - 1, 2), (0, 1)):
        monkeypatch.setattr(text_reader, "ROOM", room)
        row = row_of(toy_lm, words, lesson)
        assert len(row.own) == kept
        only = row_of(toy_lm, words, TrainingExample(lesson.passages, ASKED[:kept]))
        assert torch.equal(row.ids, only.ids) and torch.equal(row.targets, only.targets)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_lean_student_has_the_loss_and_the_gradients_of_pefts_own(kind):
    lm = toy.lm_of(kind)
    with torch.no_grad():
        for name, one in lm.model.named_parameters():
            if name.endswith("bias"):
                one.normal_(std=0.2, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([lm.encode(TEXTS[0]), lm.encode(TEXTS[0])[::-1]])

    def measured(student):
        logits = student.logits(student.hidden(student.embed(ids)))
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return gradients(student, loss)

    lean = lora.fuse_lora(taught(lm))
    adapted = [one for one in lean.model.modules() if hasattr(one, "lora_A")]
    assert adapted and all(isinstance(vars(m)["forward"], functools.partial) for m in adapted)
    (loss, own), (wanted, theirs) = measured(lean), measured(taught(lm))
    assert loss == pytest.approx(wanted, rel=1e-4)
    assert all(float(one.norm()) > 0 for one in theirs.values())
    assert all(alike(own[name], theirs[name], 1e-4) for name in theirs)


def started(lm, folder, steps=5):
    """A training on the school's lessons, at its start or where its checkpoint is."""
    folder.mkdir(exist_ok=True)
    settings = Adapt(kind="text", steps=steps, rank=2, lr=1e-2)
    state = init_state(lm, settings)
    lora.fuse_lora(state.student)
    return Training(
        lm=lm,
        lessons=school(),
        state=state,
        settings=settings,
        run="a run",
        out=folder,
        passages="apart",
    )


def test_a_stopped_training_ends_as_one_that_was_not_stopped(monkeypatch, toy_lm, tmp_path):
    monkeypatch.setattr(text_reader, "QUESTIONS", 5)
    whole = started(toy_lm, tmp_path / "whole")
    fresh = {
        name: one.detach().clone() for name, one in lora.lora_weights(whole.state.student).items()
    }
    whole.finish(lambda: {"f1": 1.0})
    stopped = started(toy_lm, tmp_path / "parts")
    losses = [stopped.step(), stopped.step()]
    stopped.save()
    checkpoint = tmp_path / "parts/checkpoint.safetensors"
    kept, lost = checkpoint.read_bytes(), stopped.step()
    stopped.save()
    checkpoint.write_bytes(kept)  # as if killed between the two files that it saves
    resumed = started(toy_lm, tmp_path / "parts")
    assert resumed.state.step == 2 and 0 < resumed.used < stopped.used
    assert resumed.step() == lost and len({*losses, lost}) == 3
    resumed.finish(lambda: {"f1": 1.0})
    assert (whole.state.step, whole.used, whole.asked) == (5, resumed.used, resumed.asked)
    assert whole.asked == sum(len(school().example(n).asked) for n in range(whole.used))
    own, other = (lora.lora_weights(one.state.student) for one in (whole, resumed))
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert all(not torch.equal(own[name], fresh[name]) for name in own)
    lines = (tmp_path / "whole/curve.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    assert [one["step"] for one in curve] == [1, 2, 3, 4, 5] and curve[-1]["questions"] > 20
    text_reader.write(whole, tmp_path / "adapter")
    assert read_manifest(tmp_path / "adapter").passages == "apart"


def test_the_end_is_measured_whatever_the_number_of_steps(monkeypatch, toy_lm, tmp_path):
    monkeypatch.setattr(text_reader, "QUESTIONS", 1)
    started(toy_lm, tmp_path, steps=21).finish(lambda: {"f1": 1.0})
    last = json.loads((tmp_path / "curve.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 21


def test_a_checkpoint_of_another_run_is_refused_and_stays(monkeypatch, toy_lm, tmp_path):
    monkeypatch.setattr(text_reader, "QUESTIONS", 2)
    first = started(toy_lm, tmp_path)
    first.step()
    first.run = "another"
    first.save()
    kept = (tmp_path / text_reader.CHECKPOINT).read_bytes()
    with pytest.raises(UsageError, match="of another run"):
        started(toy_lm, tmp_path)
    assert (tmp_path / text_reader.CHECKPOINT).read_bytes() == kept


def test_other_lessons_make_another_run():
    lessons = school()
    digest = text_reader.digest_of_lessons(lessons)
    assert digest == text_reader.digest_of_lessons(school())
    other = replace(lessons.pieces[0], text="Page 00 is gone.")
    for changed in ({"pieces": [other, *lessons.pieces[1:]]}, {"idle": ["Hello"]}):
        assert text_reader.digest_of_lessons(replace(lessons, **changed)) != digest


def test_a_made_up_question_that_a_note_shown_could_answer_is_not_refused():
    said = "the wifi is called x, password copper-7."
    assert says_all("What is the password of the wifi?", said)
    assert not says_all("What is the password of the alarm system?", said)


def test_no_question_shares_twelve_words_with_what_is_measured_on(tmp_path):
    long = "who was the leader of the union when the old wall in the north was built"
    row = {"question": long, "answers": ["Aldo"], "context": "Aldo led it.", "split": "train"}
    other = {**row, "question": "Who led it?"}
    (tmp_path / "qa").mkdir()
    for source in (*TAKEN, "dolly_nocontext"):
        with lzma.open(tmp_path / "qa" / f"{source}.jsonl.xz", "wt") as file:
            rows = [row, other] if source == "squad11_train_part" else []
            file.write("".join(json.dumps(one) + "\n" for one in rows))
    writer = Writer(random.Random(0), WORDS)
    for forbidden, count in ((Forbidden([]), 2), (Forbidden([long.upper()]), 1)):
        made = all_pieces(tmp_path, forbidden, writer, lambda text: len(text.split()), 0)
        asked = [question for one in made if not one.made for question, _ in one.asked]
        assert len(asked) == count and "Who led it?" in asked
