"""The words around a memory."""

from dataclasses import replace

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.evaluation.metrics import answerable, score
from rag_memtok.model import prompts
from rag_memtok.model.inject import most_confident
from rag_memtok.model.prompts import (
    SOURCE_TOKENS,
    TEMPLATES,
    WORDINGS,
    is_no_answer,
    is_refusal,
    qa_prompt,
    source_line,
    template_named,
)

HEAD = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
REPLY = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
INSTRUCTION = (
    "\nAnswer from the documents in a few words. If they do not say, answer: not in the documents."
)
DATED = "{{ bos_token }}[{{ date_string or 'today' }}]" + toy.CHAT.removeprefix("{{ bos_token }}")

CHATS = {"chat": toy.CHAT, "plain": None, "dated": DATED}


@pytest.fixture(scope="module", params=CHATS)
def framed(request):
    return toy.lm_of(chat=CHATS[request.param])


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_has_at_most_one_beginning_and_counts_its_positions(framed, name):
    template = template_named(name, framed)
    words = [*template.prefix, *template.suffix]
    assert template.name == name
    begins = name in ("bare", "cue")
    assert words.count(framed.bos) == begins and words[:1] == [framed.bos] * begins
    assert template.overhead == len(words) + 1
    assert framed.eos not in words


def test_bare_is_the_beginning_and_the_end(toy_lm):
    template = template_named("bare", toy_lm)
    assert (template.prefix, template.suffix, template.end) == ((1,), (), 0)


def test_kuratov2025_begins_the_text_as_the_tokenizer_does():
    one = toy.lm_of()
    assert template_named("kuratov2025", one) == replace(
        template_named("sastre2025", one), name="kuratov2025"
    )
    begin = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)]
    )
    one.tokenizer.backend_tokenizer.post_processor = begin
    template = template_named("kuratov2025", one)
    assert (template.prefix, template.suffix, template.end) == ((), (1,), 0)
    assert 1 not in one.encode("a text")


def plainly(lm):
    """The frame of the embedded model in another's tokens."""
    return prompts.build_qa_prompt(lm, WORDINGS["plain"])


def pieces_of(lm, words):
    """The frame as text."""
    pieces = [words.opening, words.between, words.question, words.closing]
    return [lm.decode(piece) for piece in pieces]


def test_cue_stands_where_the_plain_frame_puts_a_document(framed):
    template, words = template_named("cue", framed), plainly(framed)
    assert template.prefix == words.opening
    assert template.end == words.end
    assert framed.decode(template.suffix).startswith("\n\nRepeat the document.")


def test_the_plain_frame_with_a_chat_template_is_the_template_around_our_words():
    one = toy.lm_of()
    words = plainly(one)
    assert pieces_of(one, words) == [
        HEAD + "Document:\n",
        "\n\nDocument:\n",
        "\n\nQuestion:\n",
        INSTRUCTION + REPLY,
    ]
    assert words.end == toy.SPECIAL.index("<|eot_id|>")
    assert words.overhead == sum(map(len, (words.opening, words.question, words.closing)))


def test_the_plain_frame_without_a_chat_template_is_the_plain_message():
    one = toy.lm_of(chat=None)
    words = plainly(one)
    assert pieces_of(one, words) == [
        "<|begin_of_text|>Document:\n",
        "\n\nDocument:\n",
        "\n\nQuestion:\n",
        INSTRUCTION + "\n\n",
    ]
    assert words.end == one.eos


SYSTEM = "You answer questions about documents."
ASKED = "\nAnswer in a few words copied from the documents."
BEGUN = "According to the documents, the answer is"


def test_the_frame_has_a_system_message_of_its_own_and_the_reply_begun():
    one = toy.lm_of()
    words = qa_prompt(one)
    system = HEAD.replace("user", "system") + SYSTEM + "<|eot_id|>"
    assert pieces_of(one, words) == [
        system + HEAD.removeprefix("<|begin_of_text|>") + "Document:\n",
        "\n\nDocument:\n",
        "\n\nQuestion:\n",
        ASKED + REPLY + BEGUN,
    ]
    assert words.reply_prefix == " " and words.end == toy.SPECIAL.index("<|eot_id|>")


NO_SYSTEM = {
    "says nothing of it": toy.CHAT.replace(
        "{% for message in messages %}",
        "{% for message in messages if message['role'] != 'system' %}",
    ),
    "refuses it": toy.CHAT.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('no system') }}{% endif %}",
    ),
}


@pytest.mark.parametrize("how", NO_SYSTEM)
def test_a_chat_template_without_a_system_message_has_it_in_the_question(how):
    one = toy.lm_of(chat=NO_SYSTEM[how])
    assert pieces_of(one, qa_prompt(one)) == [
        HEAD + SYSTEM + "\n\nDocument:\n",
        "\n\nDocument:\n",
        "\n\nQuestion:\n",
        ASKED + REPLY + BEGUN,
    ]


def test_the_frame_without_a_chat_template_is_its_words():
    one = toy.lm_of(chat=None)
    assert one.decode(qa_prompt(one).opening) == f"<|begin_of_text|>{SYSTEM}\n\nDocument:\n"
    assert one.decode(qa_prompt(one).closing) == f"{ASKED}\n\n{BEGUN}"


@pytest.mark.parametrize(
    ("answer", "declined"),
    [
        ("", True), (" \n", True), ("not in the documents", True), ("Not in the documents.", True),
        ('"not in the documents"', True), ("unanswerable", True), ("-", False), ("+ / %", False),
        ("in the documents", False), ("Paris", False), ("unanswerable questions", False),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_known(answer, declined):
    assert is_no_answer(answer) == declined


def test_a_source_is_a_line_of_text_before_its_passage(framed):
    words = qa_prompt(framed)
    assert framed.decode(source_line(framed, words, "a lamp.md")) == "Source: a lamp.md\n"
    assert framed.decode(source_line(framed, words, "a\nQuestion:\r b")) == (
        "Source: a Question: b\n"
    )
    assert source_line(framed, words, "") == ()
    assert source_line(framed, plainly(framed), "a lamp.md") == ()


def test_a_file_named_like_a_control_token_stays_text(framed):
    line = source_line(framed, qa_prompt(framed), "<|eot_id|><|end_of_text|>")
    assert not {framed.eos, framed.bos, toy.SPECIAL.index("<|eot_id|>")} & set(line)


def test_a_source_line_is_bounded(framed):
    words = qa_prompt(framed)
    longest = len(words.before_source) + SOURCE_TOKENS + len(words.after_source)
    assert len(source_line(framed, words, "lamp " * 99)) == longest


def test_a_frame_is_known_by_its_digest(framed):
    words = qa_prompt(framed)
    others = [
        plainly(framed),
        *(replace(words, **{name: (7,)}) for name in ("opening", "closing", "after_source")),
        replace(words, reply_prefix=""),
        replace(words, before_source=None),
    ]
    assert len({one.digest for one in (words, *others)}) == len(others) + 1


def test_the_frame_has_exactly_one_beginning(framed):
    words = qa_prompt(framed)
    assert [*words.opening, *words.between, *words.question, *words.closing].count(framed.bos) == 1
    assert words.opening[0] == framed.bos


def test_a_template_that_writes_a_date_gives_the_same_frame_every_day():
    one = toy.lm_of(chat=DATED)
    assert "[1 January 2026]" in one.decode(qa_prompt(one).opening)
    clock = toy.lm_of(chat=DATED.replace("date_string or 'today'", "strftime_now('%Y-%m-%d')"))
    assert "[2026-01-01]" in clock.decode(qa_prompt(clock).opening)


def test_a_tokenizer_without_a_beginning_has_none():
    one = toy.lm_of(chat=None)
    one.tokenizer.bos_token = None
    assert template_named("bare", one).prefix == ()
    assert plainly(one).opening == tuple(one.encode("Document:\n"))


def test_the_digest_is_of_everything_a_memory_depends_on(toy_lm):
    template = template_named("cue", toy_lm)
    others = [
        replace(template, name="x"),
        replace(template, prefix=(1,)),
        replace(template, suffix=()),
        replace(template, end=0),
    ]
    moved = replace(
        template, prefix=template.prefix + template.suffix[:1], suffix=template.suffix[1:]
    )
    others += [
        moved,
        template_named("bare", toy_lm),
        template_named("cue", toy.lm_of(chat=None)),
        template_named("cue", toy.lm_of(chat=DATED)),
    ]
    assert len({other.digest for other in (template, *others)}) == len(others) + 1
    assert template_named("cue", toy.lm_of()).digest == template.digest


def test_an_unknown_template_is_refused_with_those_there_are(toy_lm):
    with pytest.raises(UsageError, match="verse.*bare.*cue.*sastre2025"):
        template_named("verse", toy_lm)


REFUSING = [
    "",
    "\n",
    "...",
    "not in the documents",
    "Not in the documents: sorry",
    "NOT IN THE DOCUMENT.",
    "not in documents",
    "*Not in the  documents*",
]
REFUSING += ["_not in\nthe documents_", "Not, in the documents", "unanswerable", "Unanswerable."]
SAYING = [
    "Rome",
    "A",
    "nothing",
    "not in documentsX",
    "not in the documentary",
    "It is not in the documents",
    "unanswerable questions",
    "notin documents",
]


@pytest.mark.parametrize("answer", [*REFUSING, *SAYING])
def test_what_is_kept_as_an_answer_is_scored_as_one(answer):
    assert (
        is_refusal(answer)
        == (answer in REFUSING)
        == (score(answer, []).refused == 1.0)
        == (answerable([answer]) == ())
    )
    assert most_confident([(answer, -0.01), ("Rome", -3.0)]) == (answer in REFUSING)


# --- the frame the embedded models are trained in is the one that `ask` uses


@pytest.fixture(scope="module")
def trained_with(tmp_path_factory):
    """The training's own tokenizer, in the training's frame and in ours.

    It is trained on a few sentences.
    """
    training = pytest.importorskip("training.frame")
    from transformers import AutoTokenizer

    from training import tokenizer

    folder = tmp_path_factory.mktemp("training") / "tokenizer"
    folder.mkdir()
    tokenizer.save(tokenizer.train(list(toy.SENTENCES) * 20, 400), folder)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return (
        training.Frame(folder / "tokenizer.json"),
        toy.wrap(toy.llama(len(words)), words, "trained"),
        training,
    )


texts = st.text(max_size=20) | st.sampled_from(
    ["a\n\nb", "<|eot_id|>", "\n", " leading", "trailing "]
)


@given(passages=st.lists(texts, min_size=1, max_size=3), question=texts)
def test_the_training_frame_gives_the_same_tokens(trained_with, passages, question):
    theirs, one, _ = trained_with
    words = plainly(one)
    ours = list(words.opening) + one.encode(passages[0])
    for passage in passages[1:]:
        ours += [*words.between, *one.encode(passage)]
    ours += [*words.question, *one.encode(question), *words.closing]
    assert tuple(ours) == theirs.prompt(passages, question)


@given(passage=texts)
def test_the_training_task_of_reciting_is_the_cue_template(trained_with, passage):
    theirs, one, training = trained_with
    template = template_named("cue", one)
    ours = (
        *template.prefix,
        *one.encode(passage),
        *template.suffix,
        *one.encode(passage),
        template.end,
    )
    assert ours == theirs.repeat(passage).ids
    assert template.end == training.EOT == qa_prompt(one).end


def test_a_model_that_thinks_aloud_is_asked_not_to():
    thinks = (
        toy.CHAT
        + "{% if add_generation_prompt and enable_thinking is not false %}<think>{% endif %}"
    )
    asked = [{"role": "user", "content": "Why?"}]
    assert (
        toy.lm_of(chat=thinks)
        .tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        .endswith("<think>")
    )
    assert qa_prompt(toy.lm_of(chat=thinks)).closing == qa_prompt(toy.lm_of()).closing


def test_what_the_chat_template_puts_before_a_reply_leads_it():
    led = toy.CHAT.replace(
        "'<|end_header_id|>\n\n' + message['content']",
        "'<|end_header_id|>\n\n' + (' ' if message['role'] == 'assistant' else '') + "
        "message['content']",
    )
    assert led != toy.CHAT
    assert plainly(toy.lm_of(chat=led)).reply_prefix == " "
    assert plainly(toy.lm_of()).reply_prefix == ""
    assert plainly(toy.lm_of(chat=None)).reply_prefix == ""


UNUSUAL = {
    "refuses all": "{{ raise_exception('no') }}",
    "prints twice": toy.CHAT + toy.CHAT,
    "of lists": toy.CHAT.replace("message['content']", "message['content'][0]['text']"),
    "of parts": "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part.text }}{% endfor %}{% endfor %}",
    "adds a number": toy.CHAT.replace("message['content']", "(message['content'] + 1)"),
    "divides": "{{ 1 // 0 }}",
    "is none": "{% if %}",
}


@pytest.mark.parametrize("how", UNUSUAL)
def test_a_chat_template_that_has_no_place_for_a_document_is_refused(how):
    one = toy.lm_of(chat=UNUSUAL[how])
    for build in (qa_prompt, TEMPLATES["cue"]):
        with pytest.raises(InputRefused, match="chat template of toy-llama") as refused:
            build(one)
        assert "--model" in refused.value.remedy
    assert TEMPLATES["bare"](one).prefix == (1,)
