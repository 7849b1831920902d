"""What makes a memory readable.

That is the teacher's answers from the text, and how far the memory is from them.
"""

import numpy as np
import pytest
import torch
import toy

from rag_memtok.config import Memorize
from rag_memtok.errors import ChunkDoesNotFit
from rag_memtok.memory.batch import Request, init_pooled, make_task
from rag_memtok.memory.distill import (
    BATCH,
    LONGEST,
    POOL,
    TOP,
    Distillation,
    Teacher,
    kl_per_request,
)
from rag_memtok.memory.optimize import Clock, build_phases, memorize, run_phase
from rag_memtok.memory.recipes import RECIPES
from rag_memtok.memory.step import Row
from rag_memtok.memory.synthetic_questions import make_questions
from rag_memtok.model.inject import inject
from rag_memtok.model.prompts import template_named

TEXT = (
    "The lamp of the harbour was repaired in March, and its keeper wrote a letter. Colour: red "
    "and green. The keeper had lived there for nine years when the storm of 1911 came."
)


@pytest.fixture
def task(toy_lm):
    return make_task("harbour", tuple(toy_lm.encode(TEXT)), 4)


@pytest.fixture
def teacher(toy_lm):
    return Teacher(toy_lm, seed=0)


def test_the_teacher_says_what_the_model_says_in_the_prompt_that_ask_builds(toy_lm, task, teacher):
    asked = [toy_lm.encode(cue) for cue in make_questions(TEXT, BATCH + 3, 0)]
    for question, one in zip(asked, teacher.answers(task.tokens, asked), strict=True):
        prompt = inject(toy_lm, teacher.frame, [task.tokens], question)
        said = tuple(toy.answer_tokens(toy_lm, teacher.frame, prompt, LONGEST))
        assert one.answer == ((*said, teacher.frame.end) if len(said) < LONGEST else said)
        row = torch.cat([prompt, toy_lm.embed(one.answer[:-1])])[None]
        expected = toy_lm.logits(toy_lm.hidden(row))[0, len(prompt) - 1 :].softmax(-1)
        shares, top = expected.topk(TOP)
        assert torch.equal(one.token_ids, top)
        torch.testing.assert_close(
            one.probs, shares / shares.sum(-1, keepdim=True), rtol=1e-3, atol=1e-5
        )


def test_the_distance_is_zero_for_the_text_itself_and_not_for_noise(toy_lm, task, teacher):
    words, known = teacher.frame, teacher.pool(task)
    text = toy_lm.embed(task.tokens)[None]
    noise = torch.randn(text.shape, generator=torch.Generator().manual_seed(0))
    before = toy_lm.embed(words.opening)
    requests = [
        (
            Request(
                row=0,
                vectors=len(task.tokens),
                before=before,
                after=(*words.question, *one.question, *words.closing),
                answer=one.answer,
            ),
            one,
        )
        for one in known
    ]
    own, other = (kl_per_request(toy_lm, requests, vectors) for vectors in (text, noise))
    assert own.shape == (len(known),)
    assert own.mean() < 0.5 * other.mean()
    assert (own > -1e-4).all()


def test_every_row_is_asked_the_same_whoever_stands_beside_it(toy_lm, task):
    other = make_task("other", tuple(toy_lm.encode(TEXT[::-1])), 4)
    memories = [init_pooled(toy_lm, one) for one in (task, other)]
    widest = max(map(len, memories))
    vectors = torch.stack(
        [torch.nn.functional.pad(one, (0, 0, 0, widest - len(one))) for one in memories]
    )

    def losses(rows):
        return float(Distillation(toy_lm, Teacher(toy_lm, seed=3))(rows, vectors))

    both = losses({0: (task, 5), 1: (other, 2)})
    assert both == pytest.approx(losses({0: (task, 5)}) + losses({1: (other, 2)}), rel=1e-5)


def test_all_cues_of_a_chunk_come_before_one_comes_again_and_are_answered_once(task, teacher):
    drawn = [id(one) for step in range(40) for one in teacher.sample(task, step, count=2)]
    pool = teacher.pool(task)
    assert teacher.pool(task) is pool and len(set(drawn[: len(pool)])) == len(pool) == POOL
    teacher.forget(task)
    assert not teacher.pools


def test_an_odd_number_of_cues_is_gone_through_just_as_evenly(task, teacher):
    odd = teacher.pool(task)[:5]
    teacher.pools[task.key] = odd
    drawn = [odd.index(one) for step in range(5) for one in teacher.sample(task, step, count=2)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == list(range(5))


def test_a_chunk_of_few_cues_weighs_as_much_as_any(toy_lm, task, teacher):
    vectors = init_pooled(toy_lm, task)[None]
    (one,) = teacher.pools[task.key] = teacher.pool(task)[:1]
    found = [float(Distillation(toy_lm, teacher, each)({0: (task, 0)}, vectors)) for each in (1, 2)]
    assert found[0] > 0 and found[0] == pytest.approx(found[1])


def test_a_chunk_that_leaves_no_room_for_a_question_is_refused(toy_lm):
    room = toy_lm.context - template_named("cue", toy_lm).overhead - 1
    long = make_task("long", tuple(toy_lm.encode(TEXT * 20))[: room - 10], 8)
    assert len(long.tokens) == room - 10, "the text is too short: the test says nothing"
    with pytest.raises(ChunkDoesNotFit, match="a question about it"):
        Teacher(toy_lm, seed=0).pool(long)


def test_a_readable_memory_is_exact_and_nearer_to_the_text(toy_lm, task):
    template = template_named("cue", toy_lm)
    found = {}
    for recipe in ("margin", "readable"):
        settings = Memorize(recipe=recipe, steps=160, seconds_per_chunk=0.0, draft="float32")
        (written,) = memorize(toy_lm, template, [task], settings)
        assert written.wrong == 0
        # other cues than those it was written with
        reading = Distillation(toy_lm, Teacher(toy_lm, seed=1), questions_per_step=24)
        found[recipe] = float(reading({0: (task, 0)}, torch.from_numpy(written.vectors)[None]))
        assert 144 < written.steps <= 160 or recipe == "margin"
    assert found["readable"] < 0.8 * found["margin"]


def test_a_text_without_a_cue_is_written_all_the_same(toy_lm):
    task = make_task("short", tuple(toy_lm.encode("a b")), 1)
    settings = Memorize(recipe="readable", steps=30, seconds_per_chunk=0.0, draft="float32")
    (written,) = memorize(toy_lm, template_named("cue", toy_lm), [task], settings)
    assert np.isfinite(written.vectors).all()
    assert toy.WIDTH == written.vectors.shape[1]


def test_what_is_to_be_read_is_recited_alone_last(toy_lm, task):
    """The last stage has no reading in it and ends as soon as all is right.

    It mends what is wrong in small steps.
    """
    settings = Memorize(recipe="readable", steps=100, seconds_per_chunk=0.0, draft="float32")
    template, recipe = template_named("cue", toy_lm), RECIPES["readable"]
    (written,) = memorize(toy_lm, template, [task], settings)
    *_, reading, last = build_phases(
        toy_lm, template, recipe=recipe, settings=settings, teacher=Teacher(toy_lm, 0)
    )
    assert (
        (reading.steps, last.steps) == (90, 100) and reading.distillation and not last.distillation
    )
    vectors = torch.from_numpy(written.vectors)
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1)) * vectors.std()
    for size in (0.2, 0.4, 0.6, 0.8):  # the least that breaks it
        broken = Row(
            task=task,
            vectors=vectors + size * noise,
            exp_avg=torch.zeros_like(vectors),
            exp_avg_sq=torch.zeros_like(vectors),
            step=60,
        )
        (mended,) = run_phase(last, iter([broken]), 1, Clock(lambda progress: None))
        if mended.step > 61:
            break
    assert 61 < mended.step < 100 and mended.best[0] == 0
