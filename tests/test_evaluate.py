"""The ways of reading differ as they should, and memories know no questions.

A run goes on where another ended.
"""

import ast
import dataclasses
import inspect
import json
import lzma

import numpy as np
import pytest
import torch
import toy
from random_adapter import reading_vectors, trained

from rag_memtok.config import Config
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.evaluation import baselines, memory_cache, results
from rag_memtok.evaluation.baselines import (
    BASELINES,
    WITH_DISTRACTOR,
    Material,
    decode_all,
)
from rag_memtok.evaluation.cases import (
    Sample,
    build_corpus,
    concatenated_samples,
    gold_samples,
    retrieved_samples,
    without_last,
)
from rag_memtok.evaluation.evaluate import encoder_in, evaluate, spread_evenly
from rag_memtok.evaluation.predictions import (
    Predictor,
    Prompt,
    kv_bytes,
    load_models,
    make_batches,
    mean_nats,
)
from rag_memtok.evaluation.questions import load_questions
from rag_memtok.evaluation.study import Study, available_readers
from rag_memtok.memory import encoder as encoders
from rag_memtok.memory.encoder import encode_readable, unpack_readable
from rag_memtok.model import lm
from rag_memtok.model.inject import answer_batch, inject, most_confident
from rag_memtok.model.prompts import qa_prompt, template_named
from rag_memtok.retrieval.relevance import in_best_sentence, overlap, split, zoomed
from rag_memtok.settings import updated

LAMP = "The lamp of the harbour was repaired in March. Its keeper, Aldo Ruiz, wrote a letter."
SOUP = "The empanada has 3 onions. It is baked for half an hour."
FAN = "The fan costs 118 euros. It is quiet."
ROWS = [
    {
        "context": LAMP,
        "question": "Who wrote a letter?",
        "answers": ["Aldo Ruiz"],
        "source": "harbour",
    },
    {
        "context": LAMP,
        "question": "When was the lamp repaired?",
        "answers": ["in March", "March"],
        "source": "harbour",
    },
    {
        "context": SOUP,
        "question": "How many onions are in it?",
        "answers": ["3", "3 onions"],
        "source": "kitchen",
    },
    {"context": FAN, "question": "Who sells the fan?", "answers": [], "source": "kitchen"},
]
QUICK = {
    "memorize.tokens_per_vector": 4,
    "memorize.steps": 80,
    "memorize.seconds_per_chunk": 0.0,
    "model.device": "cpu",
    "model.threads": 1,
}
QUICK |= {
    "memorize.template": "bare",
    "memorize.codec": "float16",
    "documents.chunk_tokens": 48,
    "ask.max_new_tokens": 4,
}
PLAIN = [name for name, arm in BASELINES.items() if not arm.adapter and not arm.control]
STUDY = Study(tokens_per_vector=(4,), k=(3,), timed=1)


def dials(**changes):
    return updated(
        Config(), QUICK | {name.replace("__", "."): value for name, value in changes.items()}
    )


def filed(folder, rows, name="questions.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def material(toy_lm, tmp_path_factory):
    """The corpus of ROWS with its memories, written once."""
    questions = load_questions(filed(tmp_path_factory.mktemp("questions"), ROWS))
    read = build_corpus(toy_lm, None, questions, 48, most=2, seed=0)
    template = template_named("bare", toy_lm)
    kept = memory_cache.optimize_cached(
        toy_lm, template, read.tokens, dials().memorize, None, lambda stage: None
    )
    encoder = encoders.new_encoder(toy_lm, 1, 4, 8, seed=0)
    encoded = {
        one: unpack_readable(encode_readable(encoder, some, 4)) for one, some in read.tokens.items()
    }
    decoded = decode_all(toy_lm, template, kept, read.tokens, batch=2)
    return Material(
        lm=toy_lm, corpus=read, memories=kept, decoded=decoded, seed=0, window=4, encoder=encoder,
        encoded=encoded,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(model_folder, tmp_path_factory):
    """A whole evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    return evaluate(
        filed(folder, ROWS), dials(model__id=str(model_folder)), STUDY, work=folder / "work"
    ), folder


# --- questions


def test_rows_become_questions(tmp_path):
    rows = [*ROWS, {"question": "And?", "answers": "unanswerable", "file": None}]
    path = filed(tmp_path, rows)
    found = load_questions(path)
    assert [one.answers for one in found] == [
        ("Aldo Ruiz",),
        ("in March", "March"),
        ("3", "3 onions"),
        (),
        (),
    ]
    assert (
        [one.line for one in found] == [1, 2, 3, 4, 5]
        and found[0].documents[0].text == LAMP
        and found[4].documents == ()
    )
    assert [one.line for one in load_questions(path, limit=2)] == [1, 3]


@pytest.mark.parametrize("form", ["lines", "list", "SQuAD"])
def test_texts_that_look_like_dates_are_texts(tmp_path, form):
    """A column in which every text is one is made times of by datasets."""
    rows = [{"context": day, "question": "When?", "answers": [day]} for day in DAYS]
    asked = [{"context": row["context"], "qas": [row]} for row in rows]
    content = {
        "lines": "".join(json.dumps(row) + "\n" for row in rows),
        "list": json.dumps(rows, indent=1),
        "SQuAD": json.dumps({"data": [{"title": "Days", "paragraphs": asked}]}),
    }[form]
    path = tmp_path / ("q.jsonl" if form == "lines" else "q.json")
    path.write_text("\ufeff" + content if form == "lines" else content, encoding="utf-8")
    found = load_questions(path)
    assert [one.answers for one in found] == [(day,) for day in DAYS]
    assert [one.documents[0].text for one in found] == list(DAYS)


def test_packed_rows_are_read(tmp_path):
    with lzma.open(tmp_path / "q.jsonl.xz", "wt") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert load_questions(tmp_path / "q.jsonl.xz")[0].answers == ("Aldo Ruiz",)


def test_a_row_may_name_a_file(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "lamp.md").write_text(LAMP)
    path = filed(tmp_path, [{"file": "lamp.md", "question": "Who?", "answers": ["Aldo Ruiz"]}])
    assert load_questions(path, tmp_path / "docs")[0].documents[0].text == LAMP
    with pytest.raises(InputRefused, match="line 1: there is no file"):
        load_questions(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_squad_is_flattened(tmp_path, indent):
    golds = [{"text": "Aldo Ruiz", "answer_start": LAMP.index("Aldo")}]
    asked = [{"id": "1", "question": "Who?", "answers": golds, "is_impossible": False}]
    asked += [{"id": "2", "question": "Why?", "answers": [], "is_impossible": True}]
    squad = {
        "version": "v2.0",
        "data": [{"title": "Lamp", "paragraphs": [{"context": LAMP, "qas": asked}]}],
    }
    (tmp_path / "dev.json").write_text(json.dumps(squad, indent=indent))
    one, other = load_questions(tmp_path / "dev.json")
    assert (one.answers, one.starts, one.source) == (("Aldo Ruiz",), (LAMP.index("Aldo"),), "Lamp")
    assert other.answers == () and other.question == "Why?"


GOOD = json.dumps(ROWS[0])
DAYS = ("2024-01-31", "2025-12-24")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "line 2: not JSON"),
        ("[1]", "line 2: no JSON object"),
        (
            json.dumps({"context": LAMP, "question": "  ", "answers": []}),
            "line 2: the question is '  '",
        ),
        ("\n" + json.dumps({"context": LAMP, "answers": []}), "line 3: no question"),
        (json.dumps({"context": LAMP, "question": "Who?"}), "line 2: no answers"),
        (json.dumps({"question": "Who?", "answers": ["I"]}), "line 2: neither context nor file"),
        (json.dumps({"context": LAMP, "question": 7, "answers": []}), "line 2: the question is 7"),
        (
            json.dumps({**ROWS[0], "answers": {"text": ["I"]}}),
            "line 2: answers without their texts",
        ),
        (json.dumps({**ROWS[0], "answers": [7]}), "line 2: an answer that is no text"),
        (json.dumps({**ROWS[0], "answers": ["\ud800"]}), "q.jsonl cannot be read: .*surrogates"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path, line, words):
    (tmp_path / "q.jsonl").write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(InputRefused, match=words):
        load_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_no_questions_are_refused(tmp_path, content):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(UsageError, match="has no questions"):
        load_questions(tmp_path / "q.jsonl")
    with pytest.raises(InputRefused, match="there is no file"):
        load_questions(tmp_path / "gone.jsonl")


# --- cases


def test_the_gold_chunk_holds_the_answer_and_the_others_do_not(toy_lm, tmp_path):
    rows = [
        {"context": f"{LAMP} {SOUP} {FAN}", "question": row["question"], "answers": row["answers"]}
        for row in ROWS
    ]
    read = build_corpus(toy_lm, None, load_questions(filed(tmp_path, rows)), 24, most=9, seed=0)
    assert len(read.texts) > 3 and read.whole == (True, True, True, False)
    for question, gold, others, wrong in zip(
        read.questions, read.gold, read.others, read.wrong, strict=True
    ):
        assert not question.answers or any(
            answer in read.texts[gold] for answer in question.answers
        )
        assert gold not in others and wrong in others
        assert not any(
            answer in read.texts[other] for answer in question.answers for other in others
        )


def test_the_gold_chunk_stands_first_in_the_middle_and_last_in_turn(material):
    cases = concatenated_samples(material.corpus, 3)
    assert [case.place for case in cases] == [0, 1, 2, 0]
    for case in cases:
        assert (
            case.ids[case.place] == material.corpus.gold[case.question] and len(set(case.ids)) == 3
        )
    assert [case.ids for case in gold_samples(material.corpus)] == [
        (gold,) for gold in material.corpus.gold
    ]


def test_apart_they_are_ranked_as_a_retriever_finds_them(material):
    read = material.corpus
    assert set(read.before) <= {0, 1, 2} and len(set(read.before)) > 1
    for case, before, gold, others in zip(
        retrieved_samples(read, 2), read.before, read.gold, read.others, strict=True
    ):
        assert (
            case.place == min(before, 1)
            and case.ids[case.place] == gold
            and case.ids[1 - case.place] == others[0]
        )


def test_what_finds_no_room_is_the_least_likely_other():
    assert without_last(Sample(0, ("gold", "near", "far"), 0)) == Sample(0, ("gold", "near"), 0)
    assert without_last(Sample(0, ("near", "far", "gold"), 2)) == Sample(0, ("near", "gold"), 1)
    assert without_last(Sample(0, ("near", "gold", "far"), 1)) == Sample(0, ("near", "gold"), 1)


# --- writing knows no questions


def test_other_questions_about_the_same_texts_leave_the_same_bytes(toy_lm, tmp_path):
    others = [
        {**row, "question": f"What about {number}?", "answers": []}
        for number, row in enumerate(ROWS)
    ]
    left = []
    for name, rows in (("one", ROWS), ("two", others)):
        (tmp_path / name).mkdir()
        read = build_corpus(
            toy_lm, None, load_questions(filed(tmp_path / name, rows)), 48, most=2, seed=0
        )
        texts = {chunk_id: read.tokens[chunk_id] for chunk_id in read.texts}
        memory_cache.optimize_cached(
            toy_lm,
            template_named("bare", toy_lm),
            texts,
            dials().memorize,
            tmp_path / name / "kept",
            lambda stage: None,
        )
        left.append({path.name: path.read_bytes() for path in (tmp_path / name / "kept").iterdir()})
    assert left[0].keys() == left[1].keys() and len(left[0]) == 3
    vectors = [
        [
            memory_cache.load_memory(tmp_path / name / "kept" / file).memory.vectors
            for file in sorted(left[0])
        ]
        for name in ("one", "two")
    ]
    assert all(np.array_equal(one, other) for one, other in zip(*vectors, strict=True))


def imported(tree):
    """The modules, and what of them, that a file imports, wherever in it."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        name.name
        if isinstance(node, ast.Import)
        else "." * node.level + f"{node.module or ''}.{name.name}"
        for node in found
        for name in node.names
    }


def test_the_writing_file_cannot_reach_questions():
    names = imported(ast.parse(inspect.getsource(memory_cache)))
    assert "rag_memtok.memory.workers.judge_record" in names  # else nothing is seen of what it has
    assert not [name for name in names if name.startswith((".", "rag_memtok.evaluation"))]
    assert "question" not in "".join(inspect.signature(memory_cache.optimize_cached).parameters)


def test_a_kept_memory_is_the_judged_one_and_a_torn_one_is_none(material, tmp_path):
    kept = next(iter(material.memories.values()))
    memory_cache.save_memory(tmp_path / "a.safetensors", kept)
    back = memory_cache.load_memory(tmp_path / "a.safetensors")
    assert (
        np.array_equal(back.memory.vectors, kept.memory.vectors)
        and back.memory.pins == kept.memory.pins
    )
    assert (back.verdict, back.steps, back.seconds) == (kept.verdict, kept.steps, kept.seconds)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    assert (
        memory_cache.load_memory(tmp_path / "a.safetensors") is None
        and memory_cache.load_memory(tmp_path / "gone") is None
    )


@pytest.mark.parametrize(
    "dial",
    [
        {"memorize__tokens_per_vector": 8},
        {"memorize__recipe": "cross-entropy"},
        {"memorize__seed": 1},
    ],
)
def test_other_settings_are_another_memory(toy_lm, dial):
    template, cue = template_named("bare", toy_lm), template_named("cue", toy_lm)
    name = memory_cache.cache_name(toy_lm, template, dials().memorize, (9, 9, 9, 9, 9))
    assert name != memory_cache.cache_name(
        toy_lm, template, dials(**dial).memorize, (9, 9, 9, 9, 9)
    )
    assert name != memory_cache.cache_name(toy_lm, cue, dials().memorize, (9, 9, 9, 9, 9))
    assert name != memory_cache.cache_name(toy_lm, template, dials().memorize, (9, 9, 9, 9, 8))


# --- ways of reading


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", BASELINES)
def test_every_way_of_reading_takes_the_positions_it_should(material, name, k):
    for case in (
        gold_samples(material.corpus) if k == 1 else concatenated_samples(material.corpus, k)
    ):
        passages = BASELINES[name].passages(material, case)
        prompt, words = (
            Prompt(passages=passages, question=material.corpus.asked[case.question]),
            qa_prompt(material.lm),
        )
        vectors = sum(len(material.vectors(one)) for one in case.ids)
        tokens = sum(len(material.corpus.tokens[one]) for one in case.ids)
        assert len(inject(material.lm, words, passages, prompt.question)) == prompt.positions(words)
        wrong = len(material.vectors(material.corpus.wrong[case.question]))
        expected = {
            "text": tokens,
            "text copied": tokens,
            "decode": tokens,
            "none": 0,
            "wrong": wrong,
            "encoded wrong": wrong,
            "sentences": min(vectors, tokens),
        }
        if name == "unfolded+adapter":  # the best sentence is text
            assert vectors < prompt.context < tokens
        else:
            assert prompt.context == expected.get(name.removesuffix("+adapter"), vectors)


def test_vectors_are_those_they_should_be(material):
    case = gold_samples(material.corpus)[0]
    (memory,), (wrong,), (noise,), (mean,) = (
        BASELINES[name].passages(material, case) for name in ("memory", "wrong", "random", "pooled")
    )
    assert memory is material.memories[case.ids[0]].memory.vectors
    assert (
        wrong is material.memories[material.corpus.wrong[0]].memory.vectors
        and material.corpus.wrong[0] != case.ids[0]
    )
    np.testing.assert_allclose(
        np.linalg.norm(noise, axis=1), np.linalg.norm(memory, axis=1), rtol=1e-5
    )
    assert abs(np.corrcoef(noise.ravel(), memory.ravel())[0, 1]) < 0.2
    assert np.array_equal(noise, BASELINES["random"].passages(material, case)[0])
    width = -(-len(material.corpus.tokens[case.ids[0]]) // len(mean))
    np.testing.assert_allclose(
        mean[0],
        material.lm.embed(material.corpus.tokens[case.ids[0]][: width - 1]).mean(0),
        atol=0.1,
    )


def test_controls_of_an_encoder_are_what_they_are_called(material):
    case = gold_samples(material.corpus)[0]
    (chunk_id,), tokens = case.ids, material.corpus.tokens[case.ids[0]]
    (own,), (wrong,), (noise,), (cut,), (telling,) = (
        BASELINES[name].passages(material, case)
        for name in ("encoded", "encoded wrong+adapter", "encoded random+adapter", "cut+adapter",
                     "telling+adapter")
    )  # fmt: skip
    assert own is material.encoded[chunk_id]
    assert wrong is material.encoded[material.corpus.wrong[0]]
    np.testing.assert_allclose(
        np.linalg.norm(noise, axis=1), np.linalg.norm(own, axis=1), rtol=1e-5
    )
    assert list(cut) == list(tokens[: len(own)])
    assert len(telling) == len(own)
    places = iter(tokens)
    assert all(token in places for token in telling)  # in their order
    lm = material.lm
    scores = lm.logits(lm.hidden(lm.embed([lm.bos, *tokens[:-1]])[None])[0])
    nats = torch.nn.functional.cross_entropy(scores, torch.tensor(tokens), reduction="none")
    assert tokens[int(nats.argmax())] in telling and telling != list(cut)


def test_the_sentence_of_the_question_has_the_most_vectors(material):
    case = gold_samples(material.corpus)[0]
    tokens = material.corpus.tokens[case.ids[0]]
    (own,) = BASELINES["encoded"].passages(material, case)
    (for_question,) = BASELINES["zoomed+adapter"].passages(material, case)
    assert for_question.shape == own.shape and not np.allclose(for_question, own)
    weights = zoomed(material.lm, [tokens], material.corpus.questions[case.question].question)
    (windows,) = material.encoder.plan([tokens], material.window, weights)
    ends = np.cumsum(windows)
    within = [max(weights[0][end - size : end]) for end, size in zip(ends, windows, strict=True)]
    mean = {
        weight: np.mean([size for size, one in zip(windows, within, strict=True) if one == weight])
        for weight in set(within)
    }
    assert len(mean) > 1 and min(mean, key=mean.__getitem__) == max(mean)
    first = material.lm.embed(tokens[: windows[0]]).sum(0) / np.sqrt(windows[0])
    np.testing.assert_allclose(for_question[0], first.detach().numpy(), atol=1e-5)


def test_the_sentence_of_the_question_stands_as_text_among_the_vectors(material):
    case = gold_samples(material.corpus)[0]
    tokens = material.corpus.tokens[case.ids[0]]
    (own,) = BASELINES["encoded"].passages(material, case)
    (unfolded,) = BASELINES["unfolded+adapter"].passages(material, case)
    question = material.corpus.questions[case.question].question
    (plain,) = in_best_sentence(material.lm, [tokens], question)
    embeddings = material.lm.embed(tokens).detach().numpy()
    shown = {row.tobytes() for row in unfolded}
    assert any(plain) and len(own) < len(unfolded) < len(tokens)
    assert all(row.tobytes() in shown for row in embeddings[np.array(plain)])
    assert {row.tobytes() for row in own} & shown


def test_decoding_gives_the_text(material):
    assert material.decoded == {one: material.corpus.tokens[one] for one in material.memories}


def test_sentences_are_the_ones_with_the_words_of_the_question(material):
    case = gold_samples(material.corpus)[0]
    (passage,) = BASELINES["sentences"].passages(material, case)
    room = len(material.vectors(case.ids[0]))
    best = material.lm.encode(split(LAMP)[1])
    assert list(passage) == best[:room] and len(passage) == room
    assert "".join(split(LAMP)) == LAMP and len(split(LAMP)) == 2
    assert (
        overlap({"letter"}, "a letter came")
        > overlap({"letter"}, "a letter that was long came")
        > overlap({"letter"}, "a lamp")
        == overlap({"letter"}, "## The letter")
        == 0
    )


def test_something_irrelevant_stands_before_the_gold_text(material):
    case = gold_samples(material.corpus)[0]
    gold = material.corpus.tokens[case.ids[0]]
    for name, arm in WITH_DISTRACTOR.items():
        passages = arm.passages(material, case)
        assert passages[-1] == gold and len(passages) == (1 if name.startswith("nothing") else 2)


def test_an_unknown_way_of_reading_is_refused():
    with pytest.raises(UsageError, match="no reader 'telepathy'"):
        baselines.baselines_named(["text", "telepathy"])


# --- answers


def test_a_batch_answers_as_one_by_one_do(material):
    words = qa_prompt(material.lm)
    prompts = [
        Prompt(
            passages=BASELINES["text"].passages(material, case),
            question=material.corpus.asked[case.question],
        )
        for case in concatenated_samples(material.corpus, 2)
    ]
    rows = [inject(material.lm, words, prompt.passages, prompt.question) for prompt in prompts]
    alone = [tuple(toy.answer_tokens(material.lm, words, row, 6)) for row in rows]
    assert [one.tokens for one in answer_batch(material.lm, words, rows, 6)] == alone


def test_of_several_prompts_the_surest_answer_is_given(material):
    words, texts = qa_prompt(material.lm), material.corpus.tokens
    prompts = [Prompt(passages=[texts[one]], question=material.corpus.asked[0]) for one in texts]
    said = answer_batch(
        material.lm,
        words,
        [inject(material.lm, words, one.passages, one.question) for one in prompts],
        4,
    )
    answers = [material.lm.decode(one.tokens).strip() for one in said]
    assert len(set(answers)) > 1
    pairs = [(answer, one.mean_logprob) for answer, one in zip(answers, said, strict=True)]
    replies = Predictor(lm=material.lm, frame=words, limit=4, file=None)
    ranked = [answers[most_confident(pairs)], answers[::-1][most_confident(pairs[::-1])]]
    assert replies.predict([prompts, prompts[::-1]], "all", lambda stage: None) == ranked
    for number, answer in enumerate(answers):
        fits = [9.0 * (place == number) for place in range(len(prompts))]
        fitting = [
            dataclasses.replace(one, relevance=fit) for one, fit in zip(prompts, fits, strict=True)
        ]
        assert replies.predict([fitting], "all", lambda stage: None) == [answer]


def test_batches_hold_everything_once_and_the_longest_first():
    prompts = {
        str(length): Prompt(passages=[(7,) * length], question=())
        for length in (9000, 5, 700, 8, *range(20, 50))
    }
    made = make_batches(prompts, lambda prompt: prompt.context)
    assert sorted(key for batch in made for key in batch) == sorted(prompts) and list(made[0]) == [
        "9000"
    ]
    assert all(len(batch) <= 16 for batch in made)


def test_a_torn_answer_is_given_again(material, tmp_path):
    prompts = [
        [Prompt(passages=[tokens], question=(9,))] for tokens in material.corpus.tokens.values()
    ]
    file, quiet = tmp_path / "answers.jsonl", lambda stage: None
    said = Predictor(lm=material.lm, frame=qa_prompt(material.lm), limit=4, file=file).predict(
        prompts, "all", quiet
    )
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    again = Predictor(lm=material.lm, frame=qa_prompt(material.lm), limit=4, file=file)
    assert len(again.known) == len(prompts) - 1 and again.predict(prompts, "all", quiet) == said
    assert len(
        Predictor(lm=material.lm, frame=qa_prompt(material.lm), limit=4, file=file).known
    ) == len(prompts)
    # another limit is another key
    assert Predictor(lm=material.lm, frame=qa_prompt(material.lm), limit=5, file=file).predict(
        prompts[:1], "all", quiet
    )
    assert (
        len(Predictor(lm=material.lm, frame=qa_prompt(material.lm), limit=4, file=file).known)
        == len(prompts) + 1
    )


def test_the_cache_of_a_prompt_is_counted(material):
    from rag_memtok.model.generate import KVDecoder

    run = KVDecoder(material.lm, [material.lm.embed([1, 2, 3])])
    # positions, K and V, layers, heads, width of a head, bytes
    assert kv_bytes(run) == 3 * 2 * toy.LAYERS * 2 * (toy.WIDTH // 4) * 4


def test_nats_are_those_of_the_text_alone(material):
    text, other = [20, 21, 22, 23], [40, 41]
    plain = mean_nats(material.lm, (), text)
    assert plain > 0 and plain != mean_nats(material.lm, other, text)
    vectors = material.lm.embed(other).numpy()
    assert mean_nats(material.lm, vectors, text) == pytest.approx(
        mean_nats(material.lm, other, text), abs=1e-5
    )


def test_what_is_timed_is_spread():
    assert spread_evenly([Prompt(passages=[], question=(number,)) for number in range(10)], 3)[
        1
    ].question == (3,)
    assert (
        len(spread_evenly([Prompt(passages=[], question=(1,))], 3)) == 1
        and spread_evenly([], 3) == ()
    )


# --- the whole


def test_every_cell_is_there(found):
    cells = [(cell.reader, cell.setting, cell.k, cell.tokens_per_vector) for cell in found[0].cells]
    assert len(set(cells)) == len(cells)
    assert {cell[0] for cell in cells if cell[1] == "alone"} == set(PLAIN)
    assert {cell[0] for cell in cells if cell[1] == "among"} == {
        name for name in PLAIN if BASELINES[name].several
    }
    assert {cell[0] for cell in cells if cell[1] == "apart"} == {
        name for name in PLAIN if BASELINES[name].several
    }
    assert {cell[0] for cell in cells if cell[1] == "beside"} == {
        name for name, arm in WITH_DISTRACTOR.items() if not arm.adapter
    }
    assert all(len(cell.answers) == len(cell.scores) == len(ROWS) for cell in found[0].cells)
    assert all(
        (cell.cost is not None and cell.cost.kv_bytes > 0) == (cell.setting != "beside")
        for cell in found[0].cells
    )


def test_decode_answers_as_the_text_does(found):
    answers = {
        (cell.reader, cell.setting): cell.answers
        for cell in found[0].cells
        if cell.setting != "beside"
    }
    assert all(
        answers["decode", setting] == answers["text", setting]
        for setting in ("alone", "among", "apart")
    )
    nothing = next(cell for cell in found[0].cells if cell.reader == "nothing")
    assert nothing.answers == answers["text", "alone"]


def test_the_table_compares_with_the_text(found):
    table = results.table_rows(found[0])
    text = next(row for row in table if (row.reader, row.setting) == ("text", "alone"))
    assert (text.difference.mean, text.difference.low, text.difference.high) == (0, 0, 0)
    memory = next(row for row in table if (row.reader, row.setting) == ("memory", "among"))
    assert set(memory.places) == {"first", "middle", "last"} and set(memory.sources) == {
        "harbour",
        "kitchen",
    }
    assert (
        memory.context
        < next(row for row in table if (row.reader, row.setting) == ("text", "among")).context
    )
    assert [shift.before for shift in results.off_topic_rows(found[0])] == [
        "nothing",
        "text",
        "memory",
        "random",
    ]
    assert results.off_topic_rows(found[0])[0].more.mean == 0


def test_memories_are_counted(found):
    (writing,) = found[0].writings
    assert sum(writing.verdicts.values()) == writing.chunks == 3 and writing.factor > 3


def test_a_second_run_writes_and_answers_nothing(found, model_folder):
    evaluation, folder = found
    files = {
        path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*") if path.is_file()
    }
    assert len(files) == 4
    again = evaluate(
        folder / "questions.jsonl", dials(model__id=str(model_folder)), STUDY, work=folder / "work"
    )
    assert {
        path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*") if path.is_file()
    } == files

    def without_costs(one):
        return [dataclasses.replace(cell, cost=None) for cell in one.cells]

    assert without_costs(again) == without_costs(evaluation)


@pytest.mark.parametrize(
    "command", [("eval", "questions.jsonl"), ("paper", "--docs", "questions.jsonl")]
)
def test_a_place_where_no_results_can_be_is_refused_before_a_model_is_loaded(
    command, command_line, tmp_path, monkeypatch
):
    filed(tmp_path, ROWS)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for out in (".", "questions.jsonl/a.json", "questions.jsonl/a/b.json"):
        code, _, err = command_line(*command, "--model", "no/such", "--out", out)
        assert code == UsageError.exit_code and "folder" in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_prompt_that_cannot_fit_is_refused(model_folder, tmp_path):
    study = Study(readers=("text",), k=(), timed=0)
    with pytest.raises(UsageError, match="the prompt of question 1 takes"):
        evaluate(
            filed(tmp_path, ROWS),
            dials(model__id=str(model_folder), ask__max_new_tokens=500),
            study,
        )


def test_adapters_read_too(model_folder, tmp_path):
    settings = dials(model__id=str(model_folder))
    model = lm.load(settings.model)
    adapters = {kind: trained(model, tmp_path / kind, kind=kind) for kind in ("memory", "text")}
    study = Study(
        readers=("text", "text+adapter", "memory+adapter"),
        tokens_per_vector=(8,),
        k=(),
        timed=1,
        unrelated=2,
    )
    path = filed(tmp_path, ROWS)
    found = evaluate(path, settings, study, adapters=adapters)
    answers = {(cell.reader, cell.setting): cell.answers for cell in found.cells}
    assert set(answers) == {
        *((reader, "alone") for reader in study.readers),
        *((reader, "beside") for reader in ("nothing+adapter", "memory+adapter")),
    }
    assert answers["text", "alone"] != answers["text+adapter", "alone"]
    assert [shift.before for shift in results.off_topic_rows(found)] == [
        f"{what}+adapter" for what in ("nothing", "text", "memory", "random")
    ]
    assert (
        evaluate(
            path,
            settings,
            Study(tokens_per_vector=(8,), k=(), timed=0, unrelated=1),
            limit=3,
            adapters=adapters,
        )
        .cells[1]
        .reader
        == "text+adapter"
    )
    with pytest.raises(UsageError, match="memory\\+adapter needs --adapter DIR"):
        evaluate(path, settings, study, adapters={"text": adapters["text"]})


def test_an_encoders_vectors_are_read_without_a_memory_being_written(tmp_path, model_folder):
    settings = dials(model__id=str(model_folder))
    reader = reading_vectors(lm.load(settings.model), tmp_path / "reader")
    encoded = [name for name, arm in BASELINES.items() if arm.needs == "encoded"]
    names = ("text+adapter", "none+adapter", "cut+adapter", "telling+adapter", *encoded)
    study = Study(readers=names, tokens_per_vector=(2, 4), k=(3,), timed=0)
    path = filed(tmp_path, ROWS)
    found = evaluate(path, settings, study, adapters={"text": reader})
    assert found.writings == ()
    cells = {(one.reader, one.tokens_per_vector, one.setting): one for one in found.cells}
    for window in (2, 4):
        own, text = cells["encoded+adapter", window, "alone"], cells["text+adapter", 0, "alone"]
        assert own.context == tuple(-(-size // window) for size in text.context)
        assert cells["cut+adapter", window, "apart"].context == (
            cells["encoded+adapter", window, "apart"].context
        )
    assert {"encoded wrong+adapter", "encoded random+adapter"} <= {key[0] for key in cells}
    # what they do to texts that have nothing to do with them; no memory was there to be tried
    shifts = [(one.before, one.tokens_per_vector) for one in results.off_topic_rows(found)]
    for lora in ("", "+adapter"):
        assert [one for one in shifts if one[0].endswith("+adapter") == bool(lora)] == [
            ("nothing" + lora, 0), ("text" + lora, 0), ("encoded" + lora, 2), ("encoded" + lora, 4)
        ]  # fmt: skip
    assert "beside" not in {key[2] for key in cells}
    # what is not asked for is no control, and needs what is there
    assert "encoded+adapter" in available_readers(
        (), {"vectors": reader}, encoder_in(reader, lm.load(settings.model))
    )
    assert not {*encoded, "cut+adapter"} & {*available_readers((), {"text": reader}, None)}
    # what reads texts and vectors is loaded once
    models = load_models(lm.load(settings.model), {"text": reader, "vectors": reader}, "")
    assert models["text"] is models["vectors"]
    with pytest.raises(UsageError, match="reads text, not memory"):
        evaluate(path, settings, study, adapters={"memory": reader})
    plain = trained(lm.load(settings.model), tmp_path / "plain", kind="text")
    with pytest.raises(UsageError, match="the adapter for texts has none"):
        evaluate(path, settings, study, adapters={"text": plain})
